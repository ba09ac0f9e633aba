"""One step of several cohorts, in as many ledgers: all of them say so, or none does.

Each ledger is written in one piece, and several are not. So what all of them will say
is noted first, in the server's folder, and a process that takes up the run after a
crash finishes what was noted. Otherwise one ledger could say that a round gave no sum
while the adapter of the others holds it. The note stays: once every ledger has its
line, it asks for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fgrpo_secure.cohort import Cohort
from fgrpo_secure.errors import StateError
from fgrpo_secure.secrets import write_atomically
from privacy.errors import MalformedMessageError
from privacy.ledger import Moved, Published, from_object, to_object
from privacy.wire import canonical_json

_FILE = "step.json"
_KINDS = {record.kind: record for record in (Published, Moved)}


def record_step(
    folder: Path, cohorts: Sequence[Cohort], records: Sequence[Published | Moved]
) -> None:
    """Write to every cohort's ledger what has become of the adapter.

    Args:
        folder: the server's.
        cohorts: all of them.
        records: one for each.
    """
    if len(cohorts) > 1:
        noted = [{"kind": one.kind, "record": to_object(one)} for one in records]
        write_atomically(folder / _FILE, canonical_json(list(noted)))
    for cohort, record in zip(cohorts, records, strict=True):
        cohort.record(record)


def finish_step(folder: Path, cohorts: Sequence[Cohort]) -> None:
    """Write what a process that died had noted and not written.

    Raises:
        StateError: the note is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return
    try:
        noted = json.loads(path.read_bytes())
        records = [from_object(_KINDS[one["kind"]], one["record"]) for one in noted]
        pairs = list(zip(cohorts, records, strict=True))
    except (ValueError, TypeError, KeyError, MalformedMessageError):
        raise StateError(
            f"{path} is damaged, so the run cannot go on.",
            "Restore it from a backup, or begin a new run in another folder.",
        ) from None
    for cohort, record in pairs:
        cohort.record(record)
