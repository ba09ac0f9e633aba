"""One cohort at the server: a whole protocol with a ledger of its own.

It opens a round and brings it to an open sum, or to an abort. What is made of the sums
of all cohorts is `server`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fgrpo_secure.terms import round_terms
from privacy.crypto import SigningKey, VerifyKey
from privacy.errors import FaultyClientError, PrivacyError
from privacy.ledger import (
    Aborted,
    History,
    Ledger,
    Moved,
    Phase,
    Published,
    Reason,
    Roster,
    RoundOpened,
    ServerClosed,
    SharedLog,
    Survivors,
    reason_of,
)
from privacy.plan import Plan
from privacy.randomness import system_entropy
from privacy.secagg.server import (
    CollectingAdverts,
    Unmasked,
    abort_message,
    open_round,
)
from privacy.secagg.terms import RoundTerms
from privacy.vectors import IntVector, from_residues
from privacy.wire import Writer

if TYPE_CHECKING:
    from fgrpo_secure.runtime.exchange import Exchange

# The server never asks for a second attempt: a round that fails is skipped and stays
# charged. Asking again would show one client's vector under one noise share.
ATTEMPT = 1


class RoundAbortedError(Exception):
    """This cohort's round has ended without a sum; ledger and clients say so.

    Args:
        cause: what ended it.
    """

    def __init__(self, cause: PrivacyError) -> None:
        super().__init__(str(cause))


@dataclass(slots=True)
class _Seen:
    """What the server knows of a round when it ends early.

    Attributes:
        terms: of the round.
        offer_digest: of its offer.
        clients: those who answered the last phase.
    """

    terms: RoundTerms
    offer_digest: bytes
    clients: frozenset[str]


class _Openings(Mapping[str, bytes]):
    """For each client the same message, and behind it what is shown to it of the log.

    A message is put together when it is sent: an adapter for each client at once would
    fill the memory.

    Args:
        message: for all.
        shown: by client.
    """

    def __init__(self, message: bytes, shown: Mapping[str, bytes]) -> None:
        self._message = message
        self._shown = shown

    def __getitem__(self, name: str) -> bytes:
        """The message to one client."""
        return self._message + Writer().field(self._shown[name]).finish()

    def __iter__(self) -> Iterator[str]:
        """The clients, sorted."""
        return iter(sorted(self._shown))

    def __len__(self) -> int:
        """How many clients there are."""
        return len(self._shown)


class Cohort:
    """The server's side of one cohort.

    Args:
        plan: the cohort's registered terms.
        ledger: the server's own for this cohort, opened for this run.
        key: the server's identity.
        roster: pinned public key of every party of the cohort.
        deadline: seconds for each phase.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        ledger: Ledger,
        key: SigningKey,
        roster: Mapping[str, VerifyKey],
        deadline: float,
    ) -> None:
        self.plan = plan
        self.roster = roster
        self.names = frozenset(client.name for client in plan.clients)
        self._ledger = ledger
        self._key = key
        self._deadline = deadline
        self._seen: _Seen | None = None
        clients = {name: roster[name] for name in self.names}
        self._log = SharedLog(ledger, key, clients)
        # Where the run was opened just now, nobody has seen anything of its log.
        self._met = ledger.history.records == 1

    @property
    def history(self) -> History:
        """What the ledger says so far."""
        return self._ledger.history

    def recover(self) -> None:
        """Record a round that was in flight when the process died as aborted."""
        if self.history.unfinished:
            # Nobody dropped out: it was the server that went away.
            self._abort(Reason.INTERRUPTED, frozenset())

    def meet(self, exchange: Exchange) -> None:
        """Ask every client, once a process, how much of the log it has checked.

        Raises:
            RollbackError: a client has a checkpoint of another log than the ledger's.
        """
        if not self._met:
            asked = dict.fromkeys(sorted(self.names), b"")
            self._log.meet(exchange.exchange("log", asked, self._deadline))
            self._met = True

    def gather(self, exchange: Exchange, number: int, adapter: bytes) -> Unmasked:
        """Run a round up to its open sum.

        Args:
            exchange: reaches the clients.
            number: of the round, from 1.
            adapter: that the round starts from.

        Raises:
            RoundAbortedError: there is no sum.
            LedgerError: the record is unreliable; nothing more may be done.
        """
        terms = round_terms(
            self.plan,
            roster=self.roster,
            federation=self.history.run.hex(),
            round_number=number,
            adapter=adapter,
        )
        adverts, offer = open_round(terms, self._key, system_entropy, ())
        shown = self._log.updates(self.names)
        self._seen = _Seen(terms, adverts.desk.offer_digest, frozenset())
        self._ledger.append(
            RoundOpened(
                round=number,
                attempt=ATTEMPT,
                offer_digest=self._seen.offer_digest,
                adapter_digest=terms.adapter_digest,
            )
        )
        opening = Writer().integer(number).field(offer).field(adapter)
        openings = _Openings(opening.finish(), shown)
        try:
            unmasked = self._collect(exchange, number, adverts, openings, self._seen)
            self._check_weights(unmasked)
        except PrivacyError as error:
            if self.history.phase is Phase.IDLE:
                raise
            self.abandon(exchange, reason_of(error))
            raise RoundAbortedError(error) from error
        return unmasked

    def weights(self, unmasked: Unmasked) -> float:
        """The sum of the weights: each client's, times its batch over the largest."""
        last = from_residues(unmasked.residues[-1:], self.plan.modulus_bits)
        return int(last[0]) / self.plan.weight_steps

    def total(self, unmasked: Unmasked) -> IntVector:
        """The decoded sum, shape (d + 1,), int64, grid steps."""
        return from_residues(unmasked.residues, self.plan.modulus_bits)

    def publication(self, unmasked: Unmasked, before: bytes, after: bytes) -> Published:
        """What the ledger will say of a sum, once the adapter is on disk.

        Args:
            unmasked: the sum.
            before: digest of the adapter that the round started from.
            after: digest of the one that it led to.
        """
        return Published(
            round=self.history.round,
            attempt=ATTEMPT,
            survivors=unmasked.survivors,
            sum_digest=unmasked.sum_digest,
            adapter_before=before,
            adapter_after=after,
            transcript=unmasked.transcript_hash,
            heads=unmasked.heads,
        )

    def movement(self, before: bytes, after: bytes) -> Moved:
        """What the ledger will say where only other cohorts' sums moved the adapter."""
        return Moved(self.history.round, ATTEMPT, before, after)

    def record(self, record: Published | Moved) -> None:
        """Write what has become of the adapter, unless the ledger has it already."""
        history = self.history
        if history.round != record.round:
            return
        awaited = history.phase is Phase.COUNTED
        if isinstance(record, Moved):
            awaited = history.adapter != record.adapter_after
        if awaited:
            self._ledger.append(record)

    def tell(self, exchange: Exchange, unmasked: Unmasked, after: bytes) -> None:
        """Tell the survivors what became of the round."""
        message = unmasked.publish(after, self._ledger.head)
        self._tell(exchange, "published", message, unmasked.survivors)

    def abandon(self, exchange: Exchange, reason: Reason) -> None:
        """Abort the round in flight: ledger first, then the clients."""
        seen = self._seen
        if seen is None:
            msg = "no round of this cohort is in flight"
            raise RuntimeError(msg)
        self._abort(reason, self.names - seen.clients)
        told = abort_message(
            seen.terms, seen.offer_digest, self._key, reason.value, self._ledger.head
        )
        self._tell(exchange, "aborted", told, self.names)

    def last_words(self) -> Mapping[str, bytes]:
        """What each client is shown of the whole log before it closes its own."""
        return self._log.updates(self.names)

    def take_cosignatures(self, replies: Mapping[str, bytes]) -> None:
        """Keep what this cohort's clients answered to the last words."""
        self._log.take(
            {name: reply for name, reply in replies.items() if name in self.names}
        )

    def close(self) -> None:
        """Close the run in the ledger."""
        history = self.history
        if history.phase is Phase.CLOSED:
            return
        self._ledger.append(
            ServerClosed(
                records=history.records + 1,
                published=history.published,
                aborted=history.aborted,
            )
        )

    def _collect(
        self,
        exchange: Exchange,
        number: int,
        adverts: CollectingAdverts,
        openings: Mapping[str, bytes],
        seen: _Seen,
    ) -> Unmasked:
        """All phases up to the open sum."""

        def ask(phase: str, messages: Mapping[str, bytes]) -> dict[str, bytes]:
            replies = exchange.exchange(phase, messages, self._deadline)
            seen.clients = frozenset(replies)
            return replies

        shares, messages = adverts.collect(ask("offer", openings))
        self._ledger.append(
            Roster(
                round=number,
                attempt=ATTEMPT,
                members=shares.roster.names,
                roster_hash=shares.roster.roster_hash,
            )
        )
        masked, messages = shares.collect(ask("roster", messages))
        deal = masked.deal
        confirmations, messages = masked.collect(ask("shares", messages))
        self._ledger.append(
            Survivors(
                round=number,
                attempt=ATTEMPT,
                sharers=deal.sharers,
                survivors=confirmations.survivors,
                sharers_hash=deal.sharers_hash,
                survivors_hash=confirmations.survivors_hash,
            )
        )
        reveals, messages = confirmations.collect(ask("survivors", messages))
        return reveals.collect(ask("quorum", messages))

    def _tell(
        self, exchange: Exchange, phase: str, message: bytes, names: Collection[str]
    ) -> None:
        """Tell clients how a round ended, show them the log, keep who cosigned."""
        shown = _Openings(Writer().field(message).finish(), self._log.updates(names))
        self._log.take(exchange.exchange(phase, shown, self._deadline))

    def _check_weights(self, unmasked: Unmasked) -> None:
        """Refuse a sum of weights that no honest clients' weights add up to.

        Raises:
            FaultyClientError: there is one among the survivors that sent another.
        """
        if not 0 < self.weights(unmasked) <= len(unmasked.survivors):
            who = ", ".join(unmasked.survivors)
            reason = "one of these sent a weight that no honest client sends"
            raise FaultyClientError(who, reason)

    def _abort(self, reason: Reason, dropouts: frozenset[str]) -> None:
        history = self.history
        self._ledger.append(
            Aborted(
                round=history.round,
                attempt=history.attempt,
                reason=reason,
                dropouts=tuple(sorted(dropouts)),
            )
        )
