"""The words of a ledger that are fixed: sides, how a round ends, and why."""

from __future__ import annotations

from enum import StrEnum

from privacy.errors import (
    BadSignatureError,
    BelowThresholdError,
    BudgetExceededError,
    EquivocationError,
    FaultyClientError,
    FaultyPeerOrServerError,
    FaultyServerError,
    LedgerError,
    MalformedMessageError,
    PlanMismatchError,
    PrivacyError,
    ReplayError,
    RollbackError,
    UnsupportedEventError,
)


class Role(StrEnum):
    """On which side of the federation a ledger is kept."""

    CLIENT = "client"
    SERVER = "server"


class Status(StrEnum):
    """How a round ended for a client."""

    PUBLISHED = "published"
    ABORTED = "aborted"
    MISSED = "missed"


class Claim(StrEnum):
    """Which accountant's figure of a whole ledger counts."""

    PLD = "pld"
    RDP = "rdp"


class Reason(StrEnum):
    """Why something was refused, aborted or missed: codes, never free text.

    None depends on private data. The `policy_*` codes are a site's own rules.
    """

    BELOW_THRESHOLD = "below_threshold"
    MALFORMED_MESSAGE = "malformed_message"
    BAD_SIGNATURE = "bad_signature"
    FAULTY_SERVER = "faulty_server"
    FAULTY_CLIENT = "faulty_client"
    FAULTY_PEER_OR_SERVER = "faulty_peer_or_server"
    SERVER_ABORTED = "server_aborted"
    DEADLINE = "deadline"
    LEFT_OUT = "left_out"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"
    REFUSED = "refused"
    REPLAY = "replay"
    PLAN_MISMATCH = "plan_mismatch"
    ADAPTER_MISMATCH = "adapter_mismatch"
    UNKNOWN_PARTY = "unknown_party"
    BUDGET_EXCEEDED = "budget_exceeded"
    UNSUPPORTED_EVENT = "unsupported_event"
    LEDGER_UNRELIABLE = "ledger_unreliable"
    EQUIVOCATION = "equivocation"
    ROLLBACK = "rollback"
    POLICY_EPSILON = "policy_epsilon"
    POLICY_DELTA = "policy_delta"
    POLICY_COHORT = "policy_cohort"
    POLICY_SURVIVORS = "policy_survivors"
    POLICY_COLLUDERS = "policy_colluders"
    POLICY_UNIT = "policy_unit"
    POLICY_TRUST = "policy_trust"
    POLICY_MODEL = "policy_model"
    POLICY_REWARD = "policy_reward"
    POLICY_CODE = "policy_code"
    POLICY_TASK = "policy_task"
    NOT_APPROVED = "not_approved"
    ENVIRONMENT = "environment"


_REASONS: tuple[tuple[type[PrivacyError], Reason], ...] = (
    (BudgetExceededError, Reason.BUDGET_EXCEEDED),
    (UnsupportedEventError, Reason.UNSUPPORTED_EVENT),
    (PlanMismatchError, Reason.PLAN_MISMATCH),
    (ReplayError, Reason.REPLAY),
    (BelowThresholdError, Reason.BELOW_THRESHOLD),
    (MalformedMessageError, Reason.MALFORMED_MESSAGE),
    (FaultyServerError, Reason.FAULTY_SERVER),
    (FaultyClientError, Reason.FAULTY_CLIENT),
    (FaultyPeerOrServerError, Reason.FAULTY_PEER_OR_SERVER),
    (BadSignatureError, Reason.BAD_SIGNATURE),
    (EquivocationError, Reason.EQUIVOCATION),
    (RollbackError, Reason.ROLLBACK),
    (LedgerError, Reason.LEDGER_UNRELIABLE),
)


def reason_of(error: PrivacyError) -> Reason:
    """The code under which an error of the kernel stands in a ledger."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return Reason.STOPPED
