"""What a client notes about its own rounds, for its own eyes.

These numbers depend on private data and are not noised. They stay in the client's
private folder, each line says `"local_only": true`, and no published file is made from
them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fgrpo_secure.secrets import PRIVATE_FILE_MODE


def note(path: Path, values: Mapping[str, object]) -> None:
    """Append one line of local-only numbers to a file that only its owner may read."""
    line = json.dumps({"local_only": True, **values}) + "\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, flags, PRIVATE_FILE_MODE)
    try:
        # In one call, so that a process that dies leaves all of a line or none.
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
