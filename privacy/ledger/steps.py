"""What may follow what: the state machines of a ledger, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from privacy.ledger.codes import Role


class Phase(StrEnum):
    """Where a ledger stands between two records."""

    CLOSED = "closed"
    IDLE = "idle"
    JOINED = "joined"
    CHARGED = "charged"
    INTERRUPTED = "interrupted"
    COMMITTED = "committed"
    OFFERED = "offered"
    ROSTERED = "rostered"
    COUNTED = "counted"


# A charge whose process died may be followed by a new charge for the same attempt,
# since its noise died with it; a commitment may not, since its vector may have left.
# A new run may follow one that was never closed, and a run that is declined changes
# nothing at any time.
CLIENT_STEPS: Mapping[Phase, Mapping[str, Phase]] = {
    Phase.CLOSED: {"opened": Phase.IDLE, "declined": Phase.CLOSED},
    Phase.IDLE: {
        "joined": Phase.JOINED,
        "cosigned": Phase.IDLE,
        "disputed": Phase.IDLE,
        "refused": Phase.IDLE,
        "declined": Phase.IDLE,
        "resumed": Phase.IDLE,
        "closed": Phase.CLOSED,
        "opened": Phase.IDLE,
    },
    Phase.JOINED: {
        "shown": Phase.JOINED,
        "intent": Phase.CHARGED,
        "outcome": Phase.IDLE,
        "disputed": Phase.JOINED,
        "refused": Phase.JOINED,
        "declined": Phase.JOINED,
        "resumed": Phase.JOINED,
        "opened": Phase.IDLE,
    },
    Phase.CHARGED: {
        "commit": Phase.COMMITTED,
        "outcome": Phase.IDLE,
        "disputed": Phase.CHARGED,
        "refused": Phase.CHARGED,
        "declined": Phase.CHARGED,
        "resumed": Phase.INTERRUPTED,
        "opened": Phase.IDLE,
    },
    Phase.INTERRUPTED: {
        "intent": Phase.CHARGED,
        "commit": Phase.COMMITTED,
        "outcome": Phase.IDLE,
        "disputed": Phase.INTERRUPTED,
        "refused": Phase.INTERRUPTED,
        "declined": Phase.INTERRUPTED,
        "resumed": Phase.INTERRUPTED,
        "opened": Phase.IDLE,
    },
    Phase.COMMITTED: {
        "outcome": Phase.IDLE,
        "disputed": Phase.COMMITTED,
        "refused": Phase.COMMITTED,
        "declined": Phase.COMMITTED,
        "resumed": Phase.COMMITTED,
        "opened": Phase.IDLE,
    },
}

SERVER_STEPS: Mapping[Phase, Mapping[str, Phase]] = {
    Phase.CLOSED: {"opened": Phase.IDLE},
    Phase.IDLE: {
        "round_opened": Phase.OFFERED,
        "moved": Phase.IDLE,
        "resumed": Phase.IDLE,
        "closed": Phase.CLOSED,
    },
    Phase.OFFERED: {
        "roster": Phase.ROSTERED,
        "aborted": Phase.IDLE,
        "resumed": Phase.OFFERED,
    },
    Phase.ROSTERED: {
        "survivors": Phase.COUNTED,
        "aborted": Phase.IDLE,
        "resumed": Phase.ROSTERED,
    },
    Phase.COUNTED: {
        "published": Phase.IDLE,
        "aborted": Phase.IDLE,
        "resumed": Phase.COUNTED,
    },
}

STEPS: Mapping[Role, Mapping[Phase, Mapping[str, Phase]]] = {
    Role.CLIENT: CLIENT_STEPS,
    Role.SERVER: SERVER_STEPS,
}
