"""What machine a benchmark ran on."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, or its kind where the system does not tell."""
    source = Path("/proc/cpuinfo")
    text = source.read_text("ascii", "replace") if source.exists() else ""
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
