"""A loss of power: what was written and not synced is gone, as a disk may have it.

A killed process leaves all that it wrote in the system's memory; a machine without
power does not. Each process keeps a journal of what it changed and what it synced, and
after its death the folder is put back to what the disk was promised to hold: data that
were not synced are cut off, and names whose folder was not synced are as they were.

Of what is not promised a disk keeps what it likes. Two extremes are tried: it keeps no
name that was not synced, or every name and nothing of what it stands for.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NAMES_LOST = "power: names lost"
NAMES_KEPT = "power: names kept"


class Journal:
    """Keeps one process's changes, in a file that all processes of a life share.

    Args:
        write: appends bytes to that file.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def note(self, what: str, path: str | Path, **more: object) -> None:
        """Keep a change that was made, or a sync that returned."""
        values = {"what": what, "path": os.path.abspath(path), **more}
        self._write((json.dumps(values) + "\n").encode())


def content(path: str | Path) -> str | None:
    """A file as the journal keeps it; None where there is none."""
    if not Path(path).is_file():
        return None
    return base64.b64encode(Path(path).read_bytes()).decode()


def lose(journal: Path, *, names: bool) -> None:
    """Take from the disk what nobody had it promise.

    Args:
        journal: of a life whose processes are all dead.
        names: whether names go too, and not only data.
    """
    sizes: dict[str, int] = {}
    pending: list[dict] = []
    for line in journal.read_text("utf-8").splitlines():
        change = json.loads(line)
        what, path = change["what"], change["path"]
        if what == "wrote":
            sizes.setdefault(path, change["size"])
        elif what == "synced":
            sizes.pop(path, None)
        elif what == "named":
            pending = [c for c in pending if str(Path(c["path"]).parent) != path]
        else:
            pending.append(change)
        if what == "renamed" and change["source"] in sizes:
            sizes[path] = sizes.pop(change["source"])
    for path, size in sizes.items():
        with suppress(FileNotFoundError):
            os.truncate(path, size)
    if names:
        for change in reversed(pending):
            _undo(change)


def _undo(change: dict) -> None:
    path = Path(change["path"])
    if change["what"] in {"made", "created"}:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    elif change["what"] == "renamed":
        if path.exists():
            path.rename(change["source"])
        _restore(path, change["old"])
    elif change["what"] == "removed":
        _restore(path, change["old"])


def _restore(path: Path, old: str | None) -> None:
    if old is not None:
        path.write_bytes(base64.b64decode(old))
