"""Identity keys and private state on disk: the only module that reads or writes them.

Private directories are mode 0700 and private files 0600, whatever the umask.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fgrpo_secure.errors import StateError
from privacy.crypto import KEY_BYTES, SigningKey, VerifyKey
from privacy.ledger.durable import (
    PUBLIC_FILE_MODE,
    UNFINISHED_SUFFIX,
    WRITING,
    make_directory,
    replace_file,
)
from privacy.randomness import system_entropy

PRIVATE_DIRECTORY_MODE = 0o700
PRIVATE_FILE_MODE = 0o600

_IDENTITY = "identity.key"


def private_directory(path: Path) -> Path:
    """Make a directory that only its owner may enter."""
    make_directory(path, mode=PRIVATE_DIRECTORY_MODE)
    # It may have been there, under another mode, and a umask takes bits away.
    path.chmod(PRIVATE_DIRECTORY_MODE)
    return path


def write_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace a file so that a crash leaves the old one or the new one, whole.

    Args:
        path: where to write.
        data: the whole content.
        private: whether only the owner may read it.

    Raises:
        OSError: the disk refused.
    """
    mode = PRIVATE_FILE_MODE if private else PUBLIC_FILE_MODE
    replace_file(path, data, mode=mode)


def append_privately(path: Path, line: str) -> None:
    """Add one line to a file that only its owner may read.

    Raises:
        OSError: the disk refused.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, flags, PRIVATE_FILE_MODE)
    try:
        size = os.fstat(descriptor).st_size
        # What a process left that died here stays a line of its own, which no reader
        # takes for a whole one.
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
        with WRITING:
            os.write(descriptor, (b"\n" if torn else b"") + f"{line}\n".encode())
    finally:
        os.close(descriptor)


def remove_unfinished(directory: Path) -> None:
    """Remove what a process left here that died while it wrote a file.

    To be called by whoever alone writes in a folder, before it writes. Where the same
    file is written again the piece is taken over anyway; that of a round's file would
    stay for good.
    """
    for path in directory.glob(f"*{UNFINISHED_SUFFIX}"):
        path.unlink()


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
        # Where two processes make it at once, one of them does, and both read that.
        with _alone_in(path.parent):
            if not path.exists():
                write_atomically(path, system_entropy(KEY_BYTES), private=True)
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


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Wait until no other process makes something here; a dead one makes nothing."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_identity(path: Path) -> SigningKey:
    seed = path.read_bytes()
    if len(seed) != KEY_BYTES:
        raise StateError(
            f"{path} is not an identity key",
            "restore it from a backup, or begin a new run with a new key",
        )
    return SigningKey(seed)
