"""What the two workers of `round.py` share: a line of talk, and the peak of memory.

Each side works in a process of its own, so that neither pays for what the other holds.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class Channel:
    """JSON, a line each way: requests on standard input, answers on standard output.

    Libraries print as they please, so standard output is put aside for the answers and
    everything else goes to standard error.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def receive(self) -> dict[str, Any] | None:
        """The next request, or None when there are no more."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def send(self, answer: dict[str, Any]) -> None:
        """Answer a request."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def peak_memory() -> int:
    """The most memory that this process held since `forget_peak`, in bytes."""
    return _status("VmHWM")


def held_memory() -> int:
    """The memory that this process holds, in bytes."""
    return _status("VmRSS")


def forget_peak() -> None:
    """Count the peak of memory from here on."""
    _CLEAR.write_text(_RESET_PEAK, "ascii")


def _status(key: str) -> int:
    for line in _STATUS.read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return 1024 * int(value.split()[0])
    raise KeyError(key)
