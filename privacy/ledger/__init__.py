"""The signed, append-only, write-ahead ledger of each party, and its verifier.

`Ledger` writes; `verify_ledger` and `verify_run` check what was written; `show` puts it
in words. The format, byte for byte, is in docs/ledger.md.
"""

from privacy.ledger.chain import Entry, Problem
from privacy.ledger.codes import Reason, Role, Status, reason_of
from privacy.ledger.fields import HANDLE_BYTES
from privacy.ledger.folder import Report, verify_run
from privacy.ledger.history import (
    Charges,
    History,
    charge_count,
    charged,
    claimed_epsilon,
)
from privacy.ledger.keyfiles import read_key_file, write_key_file
from privacy.ledger.payload import commitment, plan_digest
from privacy.ledger.pricing import Price, price_charges, spend_of
from privacy.ledger.records import (
    Aborted,
    ClientClosed,
    ClientOpened,
    Commit,
    Event,
    Intent,
    Joined,
    Outcome,
    Published,
    Record,
    Refused,
    Resumed,
    Roster,
    RoundOpened,
    ServerClosed,
    ServerOpened,
    Spend,
    Survivors,
)
from privacy.ledger.show import show
from privacy.ledger.steps import Phase
from privacy.ledger.store import Ledger
from privacy.ledger.verify import Run, VerifiedLedger, verify_ledger

__all__ = [
    "HANDLE_BYTES",
    "Aborted",
    "Charges",
    "ClientClosed",
    "ClientOpened",
    "Commit",
    "Entry",
    "Event",
    "History",
    "Intent",
    "Joined",
    "Ledger",
    "Outcome",
    "Phase",
    "Price",
    "Problem",
    "Published",
    "Reason",
    "Record",
    "Refused",
    "Report",
    "Resumed",
    "Role",
    "Roster",
    "RoundOpened",
    "Run",
    "ServerClosed",
    "ServerOpened",
    "Spend",
    "Status",
    "Survivors",
    "VerifiedLedger",
    "charge_count",
    "charged",
    "claimed_epsilon",
    "commitment",
    "plan_digest",
    "price_charges",
    "read_key_file",
    "reason_of",
    "show",
    "spend_of",
    "verify_ledger",
    "verify_run",
    "write_key_file",
]
