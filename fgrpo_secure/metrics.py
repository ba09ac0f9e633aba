"""What a client notes about its own rounds, for its own eyes.

These numbers depend on private data and are not noised. They stay in the client's
private folder, each line says `"local_only": true`, and no published file is made from
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fgrpo_secure.secrets import append_privately


def note(path: Path, values: Mapping[str, object]) -> None:
    """Append one line of local-only numbers to a file that only its owner may read."""
    append_privately(path, json.dumps({"local_only": True, **values}))
