"""Identity keys and private state on disk: the only module that reads or writes them.

Private directories are mode 0700 and private files 0600, whatever the umask.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fgrpo_secure.errors import StateError
from privacy.crypto import KEY_BYTES, SigningKey, VerifyKey
from privacy.randomness import system_entropy

PRIVATE_DIRECTORY_MODE = 0o700
PRIVATE_FILE_MODE = 0o600

_IDENTITY = "identity.key"


def private_directory(path: Path) -> Path:
    """Make a directory that only its owner may enter."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(PRIVATE_DIRECTORY_MODE)
    return path


def write_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace a file so that a crash leaves the old one or the new one, whole.

    Args:
        path: where to write.
        data: the whole content.
        private: whether only the owner may read it.
    """
    temporary = path.with_name(f".{path.name}.new")
    mode = PRIVATE_FILE_MODE if private else 0o644
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def identity_key(directory: Path) -> SigningKey:
    """The party's Ed25519 key, made on first use.

    Raises:
        StateError: the key file is not 32 bytes.
    """
    path = private_directory(directory) / _IDENTITY
    if not path.exists():
        write_atomically(path, system_entropy(KEY_BYTES), private=True)
    return _read_identity(path)


def store_key(path: Path) -> bytes:
    """A secret of 32 bytes that the processes of a store share, made on first use.

    Raises:
        StateError: the file is not 32 bytes.
    """
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        write_atomically(fresh, system_entropy(KEY_BYTES), private=True)
        # Where two processes make it at once, one of them does, and both read that.
        with suppress(FileExistsError):
            path.hardlink_to(fresh)
        fresh.unlink()
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise StateError(
            f"{path} is not a key of this store",
            "restore it from a backup, together with the rest of the store",
        )
    return key


def existing_identity(directory: Path) -> VerifyKey | None:
    """The public half of the key that a party has; nothing is made or changed.

    Raises:
        StateError: the key file is not 32 bytes.
    """
    path = directory / _IDENTITY
    return _read_identity(path).verify_key if path.exists() else None


def _read_identity(path: Path) -> SigningKey:
    seed = path.read_bytes()
    if len(seed) != KEY_BYTES:
        raise StateError(
            f"{path} is not an identity key",
            "restore it from a backup, or begin a new run with a new key",
        )
    return SigningKey(seed)
