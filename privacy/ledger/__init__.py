"""The signed, append-only, write-ahead ledger of each party, and its verifier.

`Ledger` writes; `verify_ledger` and `verify_run` check what was written; `show` puts it
in words. The format, byte for byte, is in docs/ledger.md.
"""

from privacy.ledger.budget import Budget
from privacy.ledger.chain import Entry, Problem
from privacy.ledger.charges import (
    Charges,
    cap_order,
    charge_count,
    charged,
    filter_epsilon,
    priced,
)
from privacy.ledger.checkpoint import Checkpoint, Note, log_origin, parse_note
from privacy.ledger.codes import Claim, Reason, Role, Status, reason_of
from privacy.ledger.federation import (
    COHORT,
    cohort_folders,
    is_cohort_folder,
    verify_federation,
    verify_folder,
)
from privacy.ledger.fields import (
    HANDLE_BYTES,
    decimal_text,
    from_object,
    to_object,
)
from privacy.ledger.folder import Report, verify_run
from privacy.ledger.history import History, claimed_epsilon
from privacy.ledger.keyfiles import read_key_file, write_key_file
from privacy.ledger.payload import commitment, plan_digest
from privacy.ledger.pricing import (
    Price,
    price_charges,
    spend_of,
    spends_after,
)
from privacy.ledger.records import (
    Aborted,
    ClientClosed,
    ClientOpened,
    Commit,
    Cosigned,
    Declined,
    Disputed,
    Event,
    Intent,
    Joined,
    Lifetime,
    Moved,
    Outcome,
    Published,
    Record,
    Refused,
    Resumed,
    Roster,
    RoundOpened,
    ServerClosed,
    ServerOpened,
    Shown,
    Spend,
    Survivors,
)
from privacy.ledger.remembered import HEAD_SUFFIX
from privacy.ledger.shared_log import SharedLog
from privacy.ledger.show import show
from privacy.ledger.steps import Phase
from privacy.ledger.store import Ledger
from privacy.ledger.verify import (
    Run,
    VerifiedLedger,
    read_history,
    verify_ledger,
)
from privacy.ledger.verify_log import (
    SignedRoot,
    roots_of,
    roots_of_log,
    split_views,
)
from privacy.ledger.witness import View, Witness

__all__ = [
    "COHORT",
    "HANDLE_BYTES",
    "HEAD_SUFFIX",
    "Aborted",
    "Budget",
    "Charges",
    "Checkpoint",
    "Claim",
    "ClientClosed",
    "ClientOpened",
    "Commit",
    "Cosigned",
    "Declined",
    "Disputed",
    "Entry",
    "Event",
    "History",
    "Intent",
    "Joined",
    "Ledger",
    "Lifetime",
    "Moved",
    "Note",
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
    "SharedLog",
    "Shown",
    "SignedRoot",
    "Spend",
    "Status",
    "Survivors",
    "VerifiedLedger",
    "View",
    "Witness",
    "cap_order",
    "charge_count",
    "charged",
    "claimed_epsilon",
    "cohort_folders",
    "commitment",
    "decimal_text",
    "filter_epsilon",
    "from_object",
    "is_cohort_folder",
    "log_origin",
    "parse_note",
    "plan_digest",
    "price_charges",
    "priced",
    "read_history",
    "read_key_file",
    "reason_of",
    "roots_of",
    "roots_of_log",
    "show",
    "spend_of",
    "spends_after",
    "split_views",
    "to_object",
    "verify_federation",
    "verify_folder",
    "verify_ledger",
    "verify_run",
    "write_key_file",
]
