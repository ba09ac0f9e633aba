"""What a run's folder proves, as plain values: the one source of page and claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from fgrpo_secure.report.audited import Audited
from fgrpo_secure.rounds import RoundNote
from privacy.attacker import Limits, Tradeoff, worst
from privacy.ledger import Budget, Reason, Spend, claimed_epsilon
from privacy.plan import ClientTerms, Plan

PUBLISHED = "published"
NOT_ENDED = "not ended"


@dataclass(frozen=True, slots=True)
class Declination:
    """What a client said no to, by its own ledger.

    Attributes:
        this_run: whether it is of the run that the report is of.
        opened: whether the client had opened that run; one that its site's rules keep
            it out of it never opens.
        round: that was declined; 0 is the plan as a whole.
        reason: a code.
    """

    this_run: bool
    opened: bool
    round: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class DataSet:
    """What all runs in a client's ledger come to.

    Attributes:
        budget: at the end of the ledger, this run and all others together.
        earlier: runs before this one.
        later: runs after it.
        limits: what they leave to an attacker, however they were chosen. Of one run
            alone it is that run's.
        limits_if_fixed: what they would leave, had all of them been fixed before the
            first.
    """

    budget: Budget
    earlier: int
    later: int
    limits: Limits
    limits_if_fixed: Limits


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """One client's part.

    Attributes:
        terms: what the plan says of it.
        registered: what all registered rounds cost it, charged or not. The promise is
            this, since what was seen may have decided that a round was not charged.
        spend: what this run was charged, by its ledger.
        data_set: all runs on its data that its ledger holds.
        charged: the claimed epsilon after each round in which it was charged.
        limits: what the registered rounds leave to an attacker.
        outcomes: how many of its rounds were published, missed and aborted.
        declined: what it said no to, in any run of its ledger.
        resumed: how often its process took the run up again.
        fingerprint: of its key.
        head: hash of its ledger's last line, hex.
        records: lines of its ledger.
        cosigned: lines of the server's ledger that it checked and vouches for.
        reward_before: held-out, as published; None where it is not public.
        reward_after: likewise.
    """

    terms: ClientTerms
    registered: Spend
    spend: Spend
    data_set: DataSet
    charged: Mapping[int, Decimal]
    limits: Tradeoff
    outcomes: tuple[int, int, int]
    declined: tuple[Declination, ...]
    resumed: int
    fingerprint: str
    head: str
    records: int
    cosigned: int
    reward_before: float | None
    reward_after: float | None

    @property
    def name(self) -> str:
        """As in the plan."""
        return self.terms.name

    @property
    def epsilon(self) -> Decimal:
        """The claim, of this run."""
        return claimed_epsilon(self.registered)

    @property
    def spent(self) -> Decimal:
        """The epsilon of what was charged."""
        return claimed_epsilon(self.spend)


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """One attempt, by the ledgers.

    Attributes:
        number: from 1.
        attempt: from 1.
        status: "published", "aborted" or "not ended".
        reason: a code, empty unless aborted.
        moved: whether other cohorts' sums moved the adapter, where it aborted.
        members: clients that advertised keys.
        survivors: clients in the sum.
        dropouts: clients that the server names as gone, where it aborted.
        charged: clients that were charged.
        epsilon: the largest that any client has spent after it.
        note: what the coordinator noted, unsigned; None where nothing is there.
    """

    number: int
    attempt: int
    status: str
    reason: str
    moved: bool
    members: tuple[str, ...]
    survivors: tuple[str, ...]
    dropouts: tuple[str, ...]
    charged: int
    epsilon: Decimal
    note: RoundNote | None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run that verifies.

    Attributes:
        plan: its terms.
        cohorts: how many the run has; 1 where this is all of it.
        finished: whether every ledger is closed.
        handle: of the run, hex.
        software: as every party's ledger names it, distinct and sorted.
        rounds: every attempt, in order.
        clients: in the plan's order.
        resumed: how often the coordinator's process took the run up again.
        server_fingerprint: of the server's key.
        server_head: hash of its ledger's last line, hex.
        server_records: lines of its ledger.
        log_size: lines that the last checkpoint of the shared log is of, 0 without one.
        log_root: its root, hex; empty without one.
        seconds: of the process that ended the run, as the summary says; None where it
            does not.
        audits: results of audits, of the folder and of the release.
        missing: what a folder may hold and this one does not, in words.
    """

    plan: Plan
    cohorts: int
    finished: bool
    handle: str
    software: tuple[str, ...]
    rounds: tuple[RoundFacts, ...]
    clients: tuple[ClientFacts, ...]
    resumed: int
    server_fingerprint: str
    server_head: str
    server_records: int
    log_size: int
    log_root: str
    seconds: float | None
    audits: tuple[Audited, ...]
    missing: tuple[str, ...]

    @property
    def worst(self) -> ClientFacts:
        """The client whose units are exposed most: the claim is its."""
        return max(self.clients, key=lambda c: (c.epsilon, c.terms.sampling_rate))

    @property
    def limits(self) -> Tradeoff:
        """What is left to an attacker on a unit of any client."""
        return worst(list({client.limits for client in self.clients}))

    @property
    def epsilon(self) -> Decimal:
        """The largest claim of any client."""
        return self.worst.epsilon

    @property
    def spent(self) -> Decimal:
        """The most that any client was charged."""
        return max(client.spent for client in self.clients)

    @property
    def charged_less(self) -> bool:
        """Whether some client was charged less than the plan registers."""
        return any(c.spend.charges < c.registered.charges for c in self.clients)

    @property
    def noted(self) -> tuple[RoundFacts, ...]:
        """The rounds of which there is a note."""
        return tuple(one for one in self.rounds if one.note is not None)

    def count(self, status: str) -> int:
        """Attempts that ended so."""
        return sum(one.status == status for one in self.rounds)


@dataclass(frozen=True, slots=True)
class Refuted:
    """A folder of which nothing may be claimed.

    Attributes:
        problems: what is wrong, at least one.
        unfinished: whether it would verify as a run that has not ended.
        declined: what clients said no to, by those ledgers that verify by themselves.
    """

    problems: tuple[str, ...]
    unfinished: bool = False
    declined: tuple[tuple[str, Declination], ...] = ()
