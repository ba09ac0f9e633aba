"""Files that a crash leaves whole: the old bytes or the new ones, never a part.

A crash is a process that is killed, or a machine that loses its power: then data that
were not synced are gone, and so are names whose directory was not.

Everything that is written as a whole, here and in the application, is written by
`replace_file`, so that there is one place to get it right and one to attack.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

PUBLIC_FILE_MODE = 0o644
_OTHERS = 0o077
PUBLIC_DIRECTORY_MODE = 0o755

# What a process that died while it wrote leaves beside a file; the next write of the
# same file takes it over.
UNFINISHED_SUFFIX = ".tmp"

# Held by whoever writes something that is to be whole. A thread that ends its process
# takes it first, so that it cuts no line or file in two. A kill does not ask: what it
# leaves is mended when a ledger is opened.
WRITING = threading.RLock()


def replace_file(path: Path, data: bytes, *, mode: int = PUBLIC_FILE_MODE) -> None:
    """Write beside the file, sync, and put the new file in its place.

    Args:
        path: where to write.
        data: the whole content.
        mode: who may read it, from the first byte on.

    Raises:
        OSError: the disk refused. The file holds the old bytes or all of the new ones,
            and nothing else is left.
    """
    temporary = path.with_name(path.name + UNFINISHED_SUFFIX)
    with WRITING:
        try:
            _write(temporary, data, mode)
            temporary.replace(path)
        except OSError:
            # A part of a file would take the room that is missing.
            with suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)


def make_directory(path: Path, *, mode: int = PUBLIC_DIRECTORY_MODE) -> None:
    """Make a directory, and those above it, such that a loss of power leaves them.

    To sync a file and its directory says nothing of the names above: without this, a
    ledger whose every line is on disk could be gone with the directory that it is in.

    Args:
        path: where; nothing is done where it is there.
        mode: of the directory itself, under the umask.
    """
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(mode, exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make creations and renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def holder_of(descriptor: int) -> str:
    """Who else has locked an open file, in words for an error; empty if not known.

    Only a system that lists its locks says it, and only of processes that it shows.
    """
    found = os.fstat(descriptor)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        listed = Path("/proc/locks").read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    for words in map(str.split, listed):
        if len(words) > _LOCK_PLACE and words[1] == "FLOCK":
            process, where = words[_LOCK_PLACE - 1], words[_LOCK_PLACE]
            if where == place and process.isdecimal() and int(process):
                return f" ({process})"
    return ""


# Of the words in a line of /proc/locks; the process stands before it.
_LOCK_PLACE = 5


def _write(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, mode)
    try:
        if mode & _OTHERS == 0:
            # A piece that lies here from before may have been readable to others.
            os.fchmod(descriptor, mode)
        # The kernel takes no more than 2 GiB at once.
        left = memoryview(data)
        while left:
            taken = os.write(descriptor, left)
            if not taken:
                msg = f"the disk took only a part of {path.name}"
                raise OSError(msg)
            left = left[taken:]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
