"""A step that was at fault ends its run: what it said is kept, and said again.

Otherwise the next round would be charged and come to the same.
"""

from __future__ import annotations

from pathlib import Path

from fgrpo_secure.errors import ModelError
from fgrpo_secure.secrets import write_atomically

_FILE = "stopped.txt"


class StepError(ModelError):
    """A step of an optimizer left a trained tensor as it was, or out of all bounds."""


def stop(folder: Path, error: StepError, *, private: bool) -> None:
    """Keep what was wrong with a step.

    Args:
        folder: of the party, within its run.
        error: read off what is released already.
        private: whether the file is for its owner alone.
    """
    write_atomically(folder / _FILE, str(error).encode(), private=private)


def refuse_if_stopped(folder: Path) -> None:
    """Begin nothing after a step that was at fault.

    Raises:
        StepError: what that step said.
    """
    path = folder / _FILE
    if path.exists():
        what, _, fix = path.read_text("utf-8").partition("\n")
        raise StepError(what, fix)
