"""A run's progress in a file, for other processes of the server's own account.

The process that runs a run ends with the engine's job, and another one of the same home
may want to know how it stands. The file is for reading only: nothing goes on from it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from fgrpo_secure.runtime.engine_job import Progress
from fgrpo_secure.secrets import PRIVATE_FILE_MODE

_FILE = "progress.json"
_BEAT_SECONDS = 2.0
# A process that was killed leaves its file, which then is this old soon.
_FRESH_SECONDS = 15.0
_MOST_BYTES = 2**24


@contextmanager
def posted(text: Callable[[], str], folder: Path) -> Iterator[None]:
    """Keep the file up to date while the block runs; afterwards it is gone.

    Args:
        text: a `Progress`, as it stands.
        folder: the coordinator's own folder of the run.
    """
    path, over = folder / _FILE, Event()

    def keep() -> None:
        before = None
        while not over.is_set():
            # What is shown of a run must not end it.
            with suppress(OSError):
                now = text()
                if now == before:
                    os.utime(path)
                else:
                    _replace(path, now)
                    before = now
            over.wait(_BEAT_SECONDS)

    thread = Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(OSError):
            path.unlink(missing_ok=True)


def read_posted(folder: Path) -> Progress | None:
    """What a run that is alive shows of itself; None where no process runs it."""
    path = folder / _FILE
    try:
        found = path.stat()
        if abs(time.time() - found.st_mtime) > _FRESH_SECONDS:
            return None
        if found.st_size > _MOST_BYTES:
            return None
        return Progress.from_text(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _replace(path: Path, text: str) -> None:
    """Whole or not at all; after a crash it may be an older one, or none."""
    partial = path.with_suffix(".part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(partial, flags, PRIVATE_FILE_MODE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)
