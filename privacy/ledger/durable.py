"""Files that a crash leaves whole: the old bytes or the new ones, never a part."""

from __future__ import annotations

import os
from pathlib import Path

# What a file is called before it takes another's place.
TEMPORARY = ".tmp"


def replace_file(path: Path, data: bytes) -> None:
    """Write beside the file, sync, and put the new file in its place.

    Raises:
        OSError: the disk refused; the file is as it was.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o644)
    try:
        if os.write(descriptor, data) != len(data):
            msg = f"the disk took only a part of {path.name}"
            raise OSError(msg)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make creations and renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
