"""The coordinator's side of a round: it sees one noised sum, and moves the adapter.

It holds no secret of a client. Whatever it does with the sum is post-processing, which
the guarantee permits; whatever it says goes into its signed ledger first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel

from fgrpo_secure.checkpoint import (
    Checkpoint,
    keep_only,
    read_checkpoint,
    write_checkpoint,
)
from fgrpo_secure.config import ServerSection
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.server_optimizer import OptimizerState, step
from fgrpo_secure.stopping import StepError, refuse_if_stopped, stop
from fgrpo_secure.terms import adapter_digest, round_terms
from privacy.codec import decode
from privacy.crypto import SigningKey, VerifyKey
from privacy.errors import FaultyClientError, PrivacyError
from privacy.ledger import (
    Aborted,
    Ledger,
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
from privacy.rotation import Rotation
from privacy.secagg.server import (
    CollectingAdverts,
    Unmasked,
    abort_message,
    open_round,
)
from privacy.secagg.terms import RoundTerms
from privacy.vectors import FloatVector, IntVector, from_residues
from privacy.wire import Writer

if TYPE_CHECKING:
    from fgrpo_secure.runtime.exchange import Exchange

# The server never asks for a second attempt: a round that fails is skipped and stays
# charged. Asking again would show one client's vector under one noise share.
ATTEMPT = 1

_ANEW = "begin a new run in another folder: what this one has spent stays spent."


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """What came of a round.

    Attributes:
        published: whether the adapter moved.
        words: the same for people; nothing in them is private.
        survivors: clients in the sum, 0 without one.
        weights: what the sum was divided by: each client's weight times its expected
            batch over the largest one; 0 without a sum.
    """

    published: bool
    words: str
    survivors: int = 0
    weights: float = 0.0


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


class Server:
    """The coordinator.

    Args:
        plan: the registered terms.
        policy: the model whose adapter it moves; never run here.
        settings: the optimizer.
        folder: where checkpoints lie.
        ledger: its own, opened for this run.
        key: identity.
        roster: pinned public key of every party.
        deadline: seconds for each phase.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        policy: Policy,
        settings: ServerSection,
        folder: Path,
        ledger: Ledger,
        key: SigningKey,
        roster: Mapping[str, VerifyKey],
        deadline: float,
    ) -> None:
        self._plan = plan
        self._policy = policy
        self._settings = settings
        self._folder = folder
        self._ledger = ledger
        self._key = key
        self._roster = roster
        self._deadline = deadline
        self._names = frozenset(client.name for client in plan.clients)
        self._state = Checkpoint(b"", OptimizerState.fresh(0))
        clients = {name: roster[name] for name in self._names}
        self._log = SharedLog(ledger, key, clients)
        # Where the run was opened just now, nobody has seen anything of its log.
        self._met = ledger.history.records == 1

    @property
    def adapter(self) -> bytes:
        """The adapter that the next round starts from, as clients receive it."""
        return self._state.adapter

    def model_with_adapter(self) -> PeftModel:
        """The model, carrying that adapter."""
        adapter.from_bytes(self._policy.model, self.adapter)
        return self._policy.model

    def meet(self, exchange: Exchange) -> None:
        """Ask every client, once a process, how much of the log it has checked.

        A server whose ledger was replaced by an older copy learns it here, before it
        signs a second history.

        Raises:
            RollbackError: a client has a checkpoint of another log than the ledger's.
        """
        if not self._met:
            asked = dict.fromkeys(sorted(self._names), b"")
            self._log.meet(exchange.exchange("log", asked, self._deadline))
            self._met = True

    def recover(self) -> int:
        """Take up the state that the ledger vouches for.

        A round that was in flight when the process died is recorded as aborted: its
        charges stand, and it is not tried again.

        Returns:
            The last round that was begun, 0 before the first.

        Raises:
            StateError: the checkpoint is missing or damaged.
            StepError: a round's step left part of the adapter as it was.
        """
        if self._ledger.history.unfinished:
            # Nobody dropped out: it was the server that went away.
            self._abort(Reason.INTERRUPTED, frozenset())
        refuse_if_stopped(self._folder)
        history = self._ledger.history
        self._state = read_checkpoint(self._folder, history.adapter)
        return history.round

    def run_round(self, exchange: Exchange, number: int) -> RoundOutcome:
        """Run one round: publish a new adapter, or abort cleanly.

        Args:
            exchange: reaches the clients.
            number: of the round, from 1.

        Returns:
            What came of it.

        Raises:
            LedgerError: the record is unreliable; nothing more may be done.
            RollbackError: as `meet`.
            StepError: the step left part of the adapter as it was, or made numbers
                that are not finite. The round is aborted and stays charged, and no
                other may follow in this run.
        """
        refuse_if_stopped(self._folder)
        self.meet(exchange)
        terms = round_terms(
            self._plan,
            roster=self._roster,
            federation=self._ledger.history.run.hex(),
            round_number=number,
            adapter=self.adapter,
        )
        adverts, offer = open_round(terms, self._key, system_entropy, ())
        shown = self._log.updates(self._names)
        seen = _Seen(terms, adverts.desk.offer_digest, frozenset())
        self._ledger.append(
            RoundOpened(
                round=number,
                attempt=ATTEMPT,
                offer_digest=seen.offer_digest,
                adapter_digest=terms.adapter_digest,
            )
        )
        try:
            opening = Writer().integer(number).field(offer).field(self.adapter)
            openings = _Openings(opening.finish(), shown)
            unmasked = self._collect(exchange, number, adverts, openings, seen)
            gradient = self._decode(unmasked)
        except PrivacyError as error:
            if self._ledger.history.phase is Phase.IDLE:
                raise
            self._abandon(exchange, seen, reason_of(error))
            return RoundOutcome(published=False, words=f"aborted: {error}")
        try:
            self._publish(exchange, number, unmasked, gradient)
        except StepError as error:
            # Kept before the ledger speaks, so that no process that takes up this run
            # has another round charged.
            stop(self._folder, error, private=False)
            self._abandon(exchange, seen, Reason.STOPPED)
            raise
        words = f"{len(unmasked.survivors)} of {len(self._names)} clients in the sum"
        return RoundOutcome(
            published=True,
            words=words,
            survivors=len(unmasked.survivors),
            weights=int(unmasked.residues[-1]) / self._plan.weight_steps,
        )

    def last_words(self) -> Mapping[str, bytes]:
        """What each client is shown of the whole log before it closes its own."""
        return self._log.updates(self._names)

    def take_cosignatures(self, replies: Mapping[str, bytes]) -> None:
        """Keep what the clients answered to the last words."""
        self._log.take(replies)

    def close(self) -> None:
        """Close the run in the ledger."""
        history = self._ledger.history
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

    def _decode(self, unmasked: Unmasked) -> FloatVector:
        """The weighted mean of the clipped unit gradients, noised.

        Both the sum of the gradients and the sum of the weights are in the vector, so
        their quotient is the weighted mean over clients without anyone's weight shown.
        """
        total = from_residues(unmasked.residues, self._plan.modulus_bits)
        weights = int(total[-1])
        if not 0 < weights <= len(unmasked.survivors) * self._plan.weight_steps:
            who = ", ".join(unmasked.survivors)
            reason = "one of these sent a weight that no honest client sends"
            raise FaultyClientError(who, reason)
        mean = mean_gradient(self._plan, total)
        if not self._plan.rotation:
            return mean
        digest = unmasked.desk.offer_digest
        return Rotation.of_round(digest, self._plan.dimension).inverse(mean)

    def _check_step(
        self,
        number: int,
        gradient: FloatVector,
        before: NDArray[np.float32],
        after: NDArray[np.float32],
    ) -> None:
        """Stop where a step did not move every trained tensor.

        Noise reaches every number of every sum, so a tensor that stays as it was is one
        that cannot learn, and epsilon would be spent on it for nothing.

        Args:
            number: of the round.
            gradient: shape (d,), gradient units.
            before: shape (d,), the trained numbers.
            after: shape (d,), likewise.

        Raises:
            StepError: a tensor did not move, or a number is not finite.
        """
        model = self._policy.model
        if not np.isfinite(after).all():
            raise StepError(
                f"The step of round {number} made numbers that are not finite.",
                f"Lower [server] learning_rate, and {_ANEW}",
            )
        stuck = adapter.unchanged_tensors(model, before, after)
        if not self._plan.promises_privacy:
            # Without noise a sum may well be zero: where all rewards are equal.
            pull = gradient.astype(np.float32)
            idle = adapter.unchanged_tensors(model, np.zeros_like(before), pull)
            stuck = tuple(name for name in stuck if name not in idle)
        if stuck:
            raise StepError(
                f"The step of round {number} left the adapter of "
                f"{adapter.layers_of(stuck)} as it was.",
                "Raise [server] learning_rate, or leave these layers out of "
                f"target_modules, and {_ANEW}",
            )

    def _abandon(self, exchange: Exchange, seen: _Seen, reason: Reason) -> None:
        """Abort the round in flight: ledger first, then the clients."""
        self._abort(reason, self._names - seen.clients)
        told = abort_message(
            seen.terms, seen.offer_digest, self._key, reason.value, self._ledger.head
        )
        self._tell(exchange, "aborted", told, self._names)

    def _publish(
        self,
        exchange: Exchange,
        number: int,
        unmasked: Unmasked,
        gradient: FloatVector,
    ) -> None:
        """Move the adapter: checkpoint, then ledger, then the clients.

        Raises:
            StepError: it does not move as it should; nothing is written or sent.
        """
        before = adapter_digest(self.adapter)
        model = self.model_with_adapter()
        start = adapter.read_vector(model)
        optimizer, parameters = step(
            self._settings, self._state.optimizer, start, gradient
        )
        self._check_step(number, gradient, start, parameters)
        adapter.write_vector(model, parameters)
        following = Checkpoint(adapter.to_bytes(model), optimizer)
        after = adapter_digest(following.adapter)
        write_checkpoint(self._folder, after, following)
        head = self._ledger.append(
            Published(
                round=number,
                attempt=ATTEMPT,
                survivors=unmasked.survivors,
                sum_digest=unmasked.sum_digest,
                adapter_before=before,
                adapter_after=after,
                transcript=unmasked.transcript_hash,
                heads=unmasked.heads,
            )
        )
        keep_only(self._folder, after)
        self._state = following
        message = unmasked.publish(after, head)
        self._tell(exchange, "published", message, unmasked.survivors)

    def _tell(
        self, exchange: Exchange, phase: str, message: bytes, names: Collection[str]
    ) -> None:
        """Tell clients how a round ended, show them the log, keep who cosigned."""
        shown = _Openings(Writer().field(message).finish(), self._log.updates(names))
        self._log.take(exchange.exchange(phase, shown, self._deadline))

    def _abort(self, reason: Reason, dropouts: frozenset[str]) -> None:
        history = self._ledger.history
        self._ledger.append(
            Aborted(
                round=history.round,
                attempt=history.attempt,
                reason=reason,
                dropouts=tuple(sorted(dropouts)),
            )
        )


def mean_gradient(plan: Plan, total: IntVector) -> FloatVector:
    """Divide the summed gradients by the summed weights.

    Args:
        plan: scale and expected batches.
        total: shape (d + 1,), grid steps: the d coordinates and the weight coordinate,
            which sums w_i * b_i / b_max in parts of the plan's `weight_steps`.

    Returns:
        Shape (d,), gradient units, rotated where the plan has a rotation.
    """
    largest = max(plan.expected_batch(client.name) for client in plan.clients)
    weights = int(total[-1]) / plan.weight_steps * float(largest)
    mean: FloatVector = decode(total[:-1], plan.scale) / weights
    return np.asarray(mean, dtype=np.float64)
