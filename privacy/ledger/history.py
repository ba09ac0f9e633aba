"""What a ledger has said so far, and what it may say next.

The same rules are applied before a record is written and when a ledger is read, so
that no honest program writes a line that its verifier refuses.

What the cap promises. Take any number E, and all that is released before a record with
a cap above E. That is (E, cap_delta)-differentially private, however the runs were
chosen:

1. Say that the first run's registered charges, all of them, pass the filter under E.
   Then every history does: later charges are refused unless all charges so far pass,
   under a cap of E or less, and while only the first run is there its charges are a
   part of what passed. The filter's theorem needs no more than that: one order, fixed
   before the first charge, at which the sum never exceeds what E allows.
2. Say that they do not pass. Then no second run is ever opened under a cap of E or
   less, whatever the first one showed. So all that is charged is the first run, its
   events were fixed in advance, and its price by PLD is at most E.

Which of the two holds is decided by the first record alone, before anything is drawn.
So no delta is split between them, and the tighter accountant is not given up where one
run is all there is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from privacy.crypto import VerifyKey
from privacy.errors import (
    BadSignatureError,
    BrokenChainError,
    BudgetExceededError,
    DisagreementError,
    MalformedMessageError,
)
from privacy.ledger.charges import (
    INFINITE,
    Charges,
    cap_order,
    charge_count,
    charged,
    filter_epsilon,
)
from privacy.ledger.checkpoint import Checkpoint, log_origin
from privacy.ledger.codes import Claim, Reason, Role, Status
from privacy.ledger.payload import Header, plan_digest
from privacy.ledger.records import (
    Aborted,
    ClientClosed,
    ClientOpened,
    Commit,
    Cosigned,
    Declined,
    Disputed,
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
from privacy.ledger.steps import STEPS, Phase
from privacy.ledger.terms import Terms, read_terms
from privacy.plan import SERVER

# Records that do not speak of the round that was begun last.
_PLACELESS = (
    ClientOpened
    | ServerOpened
    | Joined
    | RoundOpened
    | Resumed
    | Refused
    | Declined
    | Cosigned
    | Disputed
    | ClientClosed
    | ServerClosed
)


@dataclass(frozen=True, slots=True)
class History:
    """A ledger's state: what replaying all its records gives.

    Attributes:
        party: whose ledger.
        role: client or server.
        phase: what may come next.
        records: how many records there are.
        last: kind of the last record.
        run: handle of the run, of the last one if closed.
        runs: handles of all runs so far.
        opened: the record that opened the run.
        terms: the terms of the run's plan.
        round: last round begun in the run, 0 without one.
        attempt: its attempt.
        first: all that the ledger's first run registers, charged or not (client).
        charges: charged in the run.
        lifetime: charged in all runs.
        spend: what the run's charges cost, as recorded; None before the first.
        lifetime_spend: what all charges cost, as recorded.
        published: outcomes of the run, by status.
        aborted: likewise.
        missed: likewise.
        moved: rounds without a sum in which other cohorts moved the adapter (server).
        left_out: whether the last attempt gave no sum, and nothing says since then that
            others moved the adapter (server).
        adapter: digest of the adapter as the last published sum, of this cohort or of
            others, has left it (server).
        offered: digest of the adapter that the round starts from (server).
        offer_digest: of the round's offer; empty before the first round.
        shown: whether it stands what this client was shown of the round (client).
        members: of the round's roster (server).
        survivors: of the round (server).
        last_survivors: of the last published sum, none before the first (server).
        checked: sizes of the server's log that were checked in the run, with their
            roots, rising (client).
        distrusted: keys of servers that were refused for two histories, in any run of
            this ledger (client).
    """

    party: str
    role: Role
    phase: Phase = Phase.CLOSED
    records: int = 0
    last: str = ""
    run: bytes = b""
    runs: frozenset[bytes] = frozenset()
    opened: ClientOpened | ServerOpened | None = None
    terms: Terms | None = None
    round: int = 0
    attempt: int = 0
    first: Charges = ()
    charges: Charges = ()
    lifetime: Charges = ()
    spend: Spend | None = None
    lifetime_spend: Lifetime | None = None
    published: int = 0
    aborted: int = 0
    missed: int = 0
    moved: int = 0
    left_out: bool = False
    adapter: bytes | None = None
    offered: bytes = b""
    offer_digest: bytes = b""
    shown: bool = False
    members: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()
    last_survivors: tuple[str, ...] = ()
    checked: tuple[tuple[int, bytes], ...] = ()
    distrusted: frozenset[bytes] = frozenset()

    @property
    def unfinished(self) -> bool:
        """Whether a round was begun and its end is not recorded."""
        return self.phase not in {Phase.CLOSED, Phase.IDLE}

    @property
    def plan_delta(self) -> Decimal:
        """The delta at which the run's spend is priced."""
        if self.terms is None:
            msg = "no run is open"
            raise BrokenChainError(msg)
        return self.terms.delta

    @property
    def registered_charges(self) -> int:
        """Events that the run's plan registers for one client."""
        if self.terms is None:
            msg = "no run is open"
            raise BrokenChainError(msg)
        return self.terms.registered_charges

    @property
    def cap_delta(self) -> Decimal:
        """The delta at which the ledger's whole spend is priced."""
        return self._client_opened.cap_delta

    @property
    def cap_order(self) -> int:
        """The Renyi order at which the filter counts."""
        return self._client_opened.cap_order

    @property
    def server_key(self) -> bytes:
        """The server's public key that the run pins, 32 bytes."""
        if self.opened is None:
            msg = "no run is open"
            raise BrokenChainError(msg)
        return self.opened.roster[SERVER]

    @property
    def _client_opened(self) -> ClientOpened:
        if not isinstance(self.opened, ClientOpened):
            msg = "no client's run is open"
            raise BrokenChainError(msg)
        return self.opened

    def lifetime_of(self, charges: Charges, epsilon_pld: Decimal) -> Lifetime:
        """The record of what charges of all runs cost.

        Args:
            charges: those of this ledger, and any that are about to follow.
            epsilon_pld: what they cost by PLD, which speaks of one run only.
        """
        if len(self.runs) > 1:
            # As if all runs had been fixed in advance it would be a smaller figure
            # that nothing proves, and seconds of work in every round.
            epsilon_pld = INFINITE
        several = epsilon_pld.is_infinite()
        return Lifetime(
            charges=charge_count(charges),
            delta=self.cap_delta,
            epsilon_pld=epsilon_pld,
            epsilon_rdp=filter_epsilon(charges, self.cap_delta, self.cap_order),
            claimed=Claim.RDP if several else Claim.PLD,
        )

    def resumption(self, torn_bytes: int) -> Resumed:
        """The record to write when a process takes up this ledger."""
        return Resumed(self.last, self.round, self.attempt, torn_bytes)

    def after(self, header: Header, record: Record) -> History:
        """The history with one more record.

        Raises:
            BrokenChainError: the record does not follow.
            DisagreementError: it contradicts the plan or the records before.
            BudgetExceededError: a charge beyond the plan's target or the own cap.
        """
        if (header.party, header.role) != (self.party, self.role):
            msg = "a record of another party"
            raise BrokenChainError(msg)
        phase = STEPS[self.role][self.phase].get(record.kind)
        if phase is None:
            msg = f"{record.kind!r} cannot follow in the phase {self.phase.value!r}"
            raise BrokenChainError(msg)
        if not isinstance(record, ClientOpened | ServerOpened | Declined):
            _require(header.run == self.run, "a record of another run")
        following = self._apply(record)
        return replace(
            following, phase=phase, records=self.records + 1, last=record.kind
        )

    def _apply(self, record: Record) -> History:
        following = self
        if not isinstance(record, _PLACELESS):
            self._check_place(record.round, record.attempt)
        match record:
            case ClientOpened() | ServerOpened():
                following = self._open(record)
            case Joined() | RoundOpened():
                following = self._begin(record)
            case Intent():
                following = self._charge(record)
            case Commit():
                self._check_commit(record)
            case Outcome():
                following = self._end(record)
            case Roster() | Survivors():
                following = self._gather(record)
            case Published() | Moved():
                following = self._advance(record)
            case Aborted():
                self._check_cohort(record.dropouts)
                following = replace(self, aborted=self.aborted + 1, left_out=True)
            case Declined():
                self._check_declined(record)
            case Resumed() | Refused() | Cosigned() | Disputed() | Shown():
                following = self._aside(record)
            case ClientClosed() | ServerClosed():
                self._check_totals(record)
        return following

    def _open(self, record: ClientOpened | ServerOpened) -> History:
        try:
            terms = read_terms(record.plan)
        except MalformedMessageError as error:
            raise DisagreementError(str(error)) from None
        _require(
            record.plan_digest == plan_digest(record.plan),
            "the plan's digest is not the digest of the plan",
        )
        _require(
            record.roster.keys() == terms.parties,
            "the roster does not hold exactly the plan's clients and the server",
        )
        _require(self.party in record.roster, "the roster does not hold this party")
        _require(
            (self.role is Role.SERVER) == (self.party == SERVER),
            "only the server's ledger is of the party 'server'",
        )
        _require(record.run not in self.runs, "a run that was opened before")
        first = self.first
        if isinstance(record, ClientOpened):
            first = first or ((terms.events[self.party], terms.registered_charges),)
            self._check_cap(record, first)
        if self.opened is not None and self.terms is not None:
            _require(
                record.roster[self.party] == self.opened.roster[self.party],
                "another key of this party than before",
            )
            _require(terms.unit == self.terms.unit, "another privacy unit than before")
            _require(self.role is Role.CLIENT, "the server's ledger holds one run")
        return History(
            party=self.party,
            role=self.role,
            records=self.records,
            run=record.run,
            runs=self.runs | {record.run},
            opened=record,
            terms=terms,
            first=first,
            distrusted=self.distrusted,
            lifetime=self.lifetime,
            lifetime_spend=self.lifetime_spend
            and replace(self.lifetime_spend, epsilon_pld=INFINITE, claimed=Claim.RDP),
        )

    def _check_cap(self, record: ClientOpened, first: Charges) -> None:
        """Hold a run to the cap of the data set, and a second run to the filter."""
        _require(0 < record.cap_delta < 1, "a cap at a delta that is not in (0, 1)")
        if not isinstance(self.opened, ClientOpened):
            ((event, _),) = first
            _require(
                record.cap_order
                == cap_order(event, record.cap_epsilon, record.cap_delta),
                "another order for the filter than the plan and the cap give",
            )
            return
        _require(record.data == self.opened.data, "another data set than before")
        _require(
            record.cap_delta == self.opened.cap_delta,
            "a cap at another delta than before",
        )
        _require(
            record.cap_order == self.opened.cap_order,
            "another order for the filter than before",
        )
        # A baseline without noise would undo every cap that was recorded.
        _require(
            record.cap_epsilon.is_infinite() <= self.opened.cap_epsilon.is_infinite(),
            "no cap, where there was one before",
        )
        # What was charged of it does not count here: see the second case above.
        if (
            filter_epsilon(first, record.cap_delta, record.cap_order)
            > record.cap_epsilon
        ):
            msg = "the first run as registered leaves the filter no second one"
            raise BudgetExceededError(msg)

    def _begin(self, record: Joined | RoundOpened) -> History:
        place = (record.round, record.attempt)
        _require(place > (self.round, self.attempt), "a round that is not later")
        _require(
            self.terms is not None and record.round <= self.terms.rounds,
            "a round beyond the rounds of the plan",
        )
        if isinstance(record, RoundOpened):
            _require(
                self.adapter in {None, record.adapter_digest},
                "a round that does not start from the published adapter",
            )
        else:
            _require(
                self.server_key not in self.distrusted,
                "a round of a server that this ledger has refused",
            )
        return replace(
            self,
            round=record.round,
            attempt=record.attempt,
            offered=record.adapter_digest,
            offer_digest=record.offer_digest,
            shown=False,
            members=(),
            survivors=(),
            left_out=False,
        )

    def _charge(self, record: Intent) -> History:
        terms, opened = self.terms, self.opened
        if terms is None or not isinstance(opened, ClientOpened):
            msg = "a charge outside a run"
            raise BrokenChainError(msg)
        _require(
            record.event == terms.events.get(self.party)
            and record.releases == terms.local_steps,
            "the event is not the one that the plan registers",
        )
        charges = charged(self.charges, record.event, record.releases)
        lifetime = charged(self.lifetime, record.event, record.releases)
        _require(
            record.spend.charges == charge_count(charges)
            and record.lifetime.charges == charge_count(lifetime),
            "the number of charges is not the number of charges recorded",
        )
        _require(
            record.spend.delta == terms.delta
            and record.lifetime.delta == opened.cap_delta,
            "an epsilon at another delta than the plan's and the cap's",
        )
        if record.spend.charges > terms.registered_charges:
            msg = "more charges than the plan registers"
            raise BudgetExceededError(msg)
        if claimed_epsilon(record.spend) > terms.epsilon:
            msg = "the spend passes the plan's target epsilon"
            raise BudgetExceededError(msg)
        _require(
            record.lifetime == self.lifetime_of(lifetime, record.lifetime.epsilon_pld),
            "the lifetime is not what the filter counts, or claims the wrong figure",
        )
        if claimed_epsilon(record.lifetime) > opened.cap_epsilon:
            msg = "the spend passes the client's own cap"
            raise BudgetExceededError(msg)
        return replace(
            self,
            charges=charges,
            lifetime=lifetime,
            spend=record.spend,
            lifetime_spend=record.lifetime,
        )

    def _end(self, record: Outcome) -> History:
        if record.survivors:
            self._check_sum(record.survivors)
        if record.status is Status.PUBLISHED:
            _require(
                self.phase is Phase.COMMITTED and self.party in record.survivors,
                "published, without a commitment or without this client",
            )
            return replace(self, published=self.published + 1)
        if record.status is Status.MISSED:
            _require(
                self.party not in record.survivors,
                "missed, though this client is in the sum",
            )
            return replace(self, missed=self.missed + 1)
        return replace(self, aborted=self.aborted + 1)

    def _advance(self, record: Published | Moved) -> History:
        """The adapter has moved, by this cohort's sum or by those of others alone."""
        if isinstance(record, Moved):
            _require(self.left_out, "moved by others, and no round was just aborted")
            _require(
                record.adapter_before == self.offered
                and self.adapter in {None, record.adapter_before},
                "another adapter than the round started from",
            )
            return replace(
                self,
                adapter=record.adapter_after,
                moved=self.moved + 1,
                left_out=False,
            )
        self._check_sum(record.survivors)
        _require(
            record.survivors == self.survivors, "other survivors than were announced"
        )
        _require(
            record.adapter_before == self.offered,
            "another adapter than the round started from",
        )
        _require(
            record.heads.keys() <= set(self.members),
            "the ledger head of a client that is not in the roster",
        )
        return replace(
            self,
            published=self.published + 1,
            adapter=record.adapter_after,
            last_survivors=record.survivors,
        )

    def _check_totals(self, record: ClientClosed | ServerClosed) -> None:
        counts = (record.records, record.published, record.aborted)
        _require(
            counts == (self.records + 1, self.published, self.aborted),
            "the totals are not those of the records",
        )
        if isinstance(record, ClientClosed):
            spends = (record.spend, record.lifetime)
            _require(
                record.missed == self.missed and spends == self.totals(),
                "the totals are not those of the records",
            )

    def totals(self) -> tuple[Spend, Lifetime]:
        """What the run and the ledger have spent, as recorded, for `closed`."""
        zero = Decimal(0)
        spend = self.spend or Spend(0, self.plan_delta, zero, zero)
        return spend, self.lifetime_spend or self.lifetime_of((), zero)

    def _gather(self, record: Roster | Survivors) -> History:
        if isinstance(record, Roster):
            self._check_cohort(record.members)
            return replace(self, members=record.members)
        _require(
            set(record.survivors) <= set(record.sharers) <= set(self.members),
            "survivors, sharers and roster are not within each other",
        )
        self._check_threshold(record.survivors)
        return replace(self, survivors=record.survivors)

    def _check_commit(self, record: Commit) -> None:
        _require(
            self.terms is not None and record.modulus_bits == self.terms.modulus_bits,
            "another modulus than the plan's",
        )

    def _aside(
        self, record: Resumed | Refused | Cosigned | Disputed | Shown
    ) -> History:
        """Records that may stand between the steps of a round, or of two."""
        if isinstance(record, Refused):
            return self._refuse(record)
        if isinstance(record, Shown):
            _require(not self.shown, "what was shown of a round stands there once")
            return replace(self, shown=True)
        if isinstance(record, Cosigned | Disputed):
            return self._check_log(record)
        said = (record.last, record.round, record.attempt)
        _require(
            said == (self.last, self.round, self.attempt),
            "'resumed' does not say what was last",
        )
        return self

    def _refuse(self, record: Refused) -> History:
        _require(
            (record.round == 0) == (record.attempt == 0),
            "round 0 and attempt 0 stand only together",
        )
        if record.reason is not Reason.EQUIVOCATION:
            return self
        return replace(self, distrusted=self.distrusted | {self.server_key})

    def _check_log(self, record: Cosigned | Disputed) -> History:
        """A checkpoint that the server signed; what was vouched for only grows."""
        head = Checkpoint(log_origin(self.run), record.size, record.root)
        try:
            VerifyKey(self.server_key).verify_raw(record.signature, head.text())
        except (BadSignatureError, MalformedMessageError):
            msg = "a checkpoint that the run's server did not sign"
            raise DisagreementError(msg) from None
        if isinstance(record, Disputed):
            return self
        _require(
            not self.checked or record.size > self.checked[-1][0],
            "a log that is not longer than before",
        )
        _require(
            self.server_key not in self.distrusted,
            "the log of a server that this ledger has refused",
        )
        return replace(self, checked=(*self.checked, (record.size, record.root)))

    def _check_declined(self, record: Declined) -> None:
        """It names the plan and the signer, and nothing that follows depends on it."""
        _require(
            record.plan_digest == plan_digest(record.plan),
            "the plan's digest is not the digest of the plan",
        )
        _require(self.party in record.roster, "the roster does not hold this party")

    def _check_place(self, round_number: int, attempt: int) -> None:
        _require(
            (round_number, attempt) == (self.round, self.attempt),
            "another round or attempt than was begun",
        )

    def _check_cohort(self, names: tuple[str, ...]) -> None:
        _require(
            self.terms is not None and set(names) <= self.terms.clients,
            "a client that is not in the plan",
        )

    def _check_sum(self, survivors: tuple[str, ...]) -> None:
        self._check_cohort(survivors)
        _require(
            self.terms is not None and len(survivors) >= self.terms.min_survivors,
            "a sum of fewer clients than the plan's min_survivors",
        )

    def _check_threshold(self, survivors: tuple[str, ...]) -> None:
        """The server's side knows the roster, and with it what a sum needs."""
        least = self.terms.least_clients(len(self.members)) if self.terms else 0
        _require(
            len(survivors) >= least,
            f"{len(survivors)} survivors where a roster of {len(self.members)} needs "
            f"{least}",
        )


def claimed_epsilon(spend: Spend | Lifetime) -> Decimal:
    """The epsilon that counts: by PLD, or by RDP where PLD is infinite.

    At a very small delta the privacy loss distribution's tail is not resolved and its
    epsilon is infinite; the Renyi bound still holds. Over several runs the filter's
    figure counts in any case.
    """
    pld, rdp = spend.epsilon_pld, spend.epsilon_rdp
    if isinstance(spend, Lifetime):
        return rdp if spend.claimed is Claim.RDP else pld
    return rdp if pld.is_infinite() else pld


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DisagreementError(message)
