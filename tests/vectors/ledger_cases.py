"""The files of tests/vectors/ledgers: honest folders, and the edits of each lie."""

from __future__ import annotations

import json

from tests.vectors import (  # noqa: F401 - they register their lies
    ledger_cohort_lies,
    ledger_cohorts,
    ledger_contradictions,
    ledger_log_lies,
    ledger_runs,
)
from tests.vectors.ledger_lies import LIES
from tests.vectors.ledger_runs import Files
from tests.vectors.ledger_story import edits

ABOUT = (
    "Folders of runs and whether they verify, by docs/ledger.md. `valid` are folders "
    "beside this file, to be taken as they are. `bad` are the same folders with edits: "
    "the bytes of `file` from `start` to `end` are replaced by `put` (or `put_hex`); "
    "`gone` takes a file away, and 0, 0 of a file that is not there makes it. `rule` "
    "is the rule of the page that is broken. Where `unfinished` is true, the run may "
    "be unfinished."
)

ALL = [happens for happens, _ in ledger_runs.RUNS] + [*ledger_cohorts.RUNS]
UNFINISHED = ledger_runs.UNFINISHED | ledger_cohorts.UNFINISHED


def files() -> Files:
    """What every file must hold, by its path in tests/vectors/ledgers."""
    runs = ledger_runs.folders() | ledger_cohorts.folders()
    written = {
        f"{run}/{name}": data
        for run, held in runs.items()
        for name, data in held.items()
    }
    valid = [
        {
            "name": happens.__name__,
            "what": happens.__doc__,
            "unfinished": happens.__name__ in UNFINISHED,
        }
        for happens in ALL
    ]
    bad = [
        {
            "name": f"bad_{name}",
            "what": lie.what,
            "folder": lie.run,
            "unfinished": lie.run in UNFINISHED,
            "rule": lie.rule,
            "edits": edits(runs[lie.run], lie.tell(dict(runs[lie.run]))),
        }
        for name, lie in LIES.items()
    ]
    text = json.dumps({"about": ABOUT, "valid": valid, "bad": bad}, indent=1) + "\n"
    return written | {"cases.json": text.encode()}
