"""The coordinator's side of a round: it sees noised sums, and moves the adapter.

It holds no secret of a client. Whatever it does with a sum is post-processing, which
the guarantee permits; whatever it says goes into its signed ledger first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from fgrpo_secure.cohort import Cohort, RoundAbortedError
from fgrpo_secure.config import ServerSection
from fgrpo_secure.errors import StateError
from fgrpo_secure.gain import cohort_factor
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.joint import finish_step, record_step
from fgrpo_secure.server_optimizer import OptimizerState, step
from fgrpo_secure.stopping import StepError, refuse_if_stopped, stop
from fgrpo_secure.terms import adapter_digest
from privacy.cohorts import Cohorts, CohortSum
from privacy.ledger import Reason
from privacy.plan import WEIGHT_ONE
from privacy.secagg.server import Unmasked
from privacy.vectors import FloatVector

if TYPE_CHECKING:
    from fgrpo_secure.runtime.exchange import Exchange

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


class Server:
    """The coordinator.

    Args:
        cohorts: one, or several whose sums are added; each with a ledger of its own.
        policy: the model whose adapter it moves; never run here.
        settings: the optimizer.
        folder: where checkpoints lie.

    Raises:
        PlanMismatchError: cohorts whose sums may not be added.
    """

    def __init__(
        self,
        *,
        cohorts: Sequence[Cohort],
        policy: Policy,
        settings: ServerSection,
        folder: Path,
    ) -> None:
        self._cohorts = tuple(cohorts)
        self._joint = Cohorts(tuple(cohort.plan for cohort in cohorts))
        self._joint.check_identities([cohort.roster for cohort in cohorts])
        self._plan = cohorts[0].plan
        self._policy = policy
        self._settings = settings
        self._folder = folder
        self._state = Checkpoint(b"", OptimizerState.fresh(0))

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
        for cohort in self._cohorts:
            cohort.meet(exchange)

    def recover(self) -> int:
        """Take up the state that the ledgers vouch for.

        A round that was in flight when the process died is recorded as aborted: its
        charges stand, and it is not tried again.

        Returns:
            The last round that was begun, 0 before the first.

        Raises:
            StateError: the checkpoint is missing or damaged, or the ledgers of the
                cohorts do not belong together.
            StepError: a round's step left part of the adapter as it was.
        """
        finish_step(self._folder, self._cohorts)
        for cohort in self._cohorts:
            cohort.recover()
        refuse_if_stopped(self._folder)
        histories = [cohort.history for cohort in self._cohorts]
        adapters = {history.adapter for history in histories}
        if len(adapters) > 1:
            raise StateError(
                "The ledgers of the cohorts end with different adapters.",
                "Restore all of them, and the server's folder, from one moment.",
            )
        self._state = read_checkpoint(self._folder, adapters.pop())
        return max(history.round for history in histories)

    def run_round(self, exchange: Exchange, number: int) -> RoundOutcome:
        """Run one round: publish a new adapter, or abort cleanly.

        The cohorts take their turns, and one step is taken with the sum of those that
        came to one. That a cohort is left out moves the adapter without it, and nothing
        else: to choose among open sums is post-processing of them.

        Args:
            exchange: reaches the clients.
            number: of the round, from 1.

        Returns:
            What came of it.

        Raises:
            LedgerError: a record is unreliable; nothing more may be done.
            RollbackError: as `meet`.
            StepError: the step left part of the adapter as it was, or made numbers
                that are not finite. The round is aborted and stays charged, and no
                other may follow in this run.
        """
        refuse_if_stopped(self._folder)
        self.meet(exchange)
        opened: dict[int, Unmasked] = {}
        failed: dict[int, str] = {}
        for place, cohort in enumerate(self._cohorts):
            try:
                opened[place] = cohort.gather(exchange, number, self.adapter)
            except RoundAbortedError as error:
                failed[place] = f"aborted: {error}"
        if not opened:
            return RoundOutcome(published=False, words=self._words(opened, failed))
        try:
            self._publish(exchange, number, opened)
        except StepError as error:
            # Kept before the ledger speaks, so that no process that takes up this run
            # has another round charged.
            stop(self._folder, error, private=False)
            for place in opened:
                self._cohorts[place].abandon(exchange, Reason.STOPPED)
            raise
        return RoundOutcome(
            published=True,
            words=self._words(opened, failed),
            survivors=sum(len(unmasked.survivors) for unmasked in opened.values()),
            weights=self._weights(opened),
        )

    def last_words(self) -> Mapping[str, bytes]:
        """What each client is shown of the whole log before it closes its own."""
        return {
            name: shown
            for cohort in self._cohorts
            for name, shown in cohort.last_words().items()
        }

    def take_cosignatures(self, replies: Mapping[str, bytes]) -> None:
        """Keep what the clients answered to the last words."""
        for cohort in self._cohorts:
            cohort.take_cosignatures(replies)

    def close(self) -> None:
        """Close the run in every ledger."""
        for cohort in self._cohorts:
            cohort.close()

    def _words(self, opened: Mapping[int, Unmasked], failed: Mapping[int, str]) -> str:
        """What came of a round, for people."""
        if len(self._cohorts) == 1 and failed:
            return failed[0]
        summed = sum(len(unmasked.survivors) for unmasked in opened.values())
        clients = sum(len(cohort.names) for cohort in self._cohorts)
        parts = [f"{summed} of {clients} clients in the sum"] if opened else []
        parts += [f"cohort {place + 1} {why}" for place, why in failed.items()]
        return "; ".join(parts)

    def _weights(self, opened: Mapping[int, Unmasked]) -> float:
        """What the sum is divided by, in parts of the largest expected batch."""
        plans = self._joint.plans
        largest = max(plan.largest_batch for plan in plans)
        return sum(
            self._cohorts[place].weights(unmasked)
            * float(plans[place].largest_batch / largest)
            * cohort_factor(plans[place], plans)
            / WEIGHT_ONE
            for place, unmasked in opened.items()
        )

    def _decode(self, opened: Mapping[int, Unmasked]) -> FloatVector:
        """The weighted mean of the clipped unit gradients of all cohorts, noised.

        Both the sum of the gradients and the sum of the weights are in the vectors, so
        their quotient is the weighted mean over clients without anyone's weight shown.
        """
        plans = self._joint.plans
        joined = self._joint.add(
            CohortSum(
                place,
                self._cohorts[place].total(unmasked),
                unmasked.desk.offer_digest,
                cohort_factor(plans[place], plans),
            )
            for place, unmasked in opened.items()
        )
        return joined.mean(self._plan.scale)

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

    def _publish(
        self, exchange: Exchange, number: int, opened: Mapping[int, Unmasked]
    ) -> None:
        """Move the adapter: checkpoint, then ledgers, then the clients.

        Raises:
            StepError: it does not move as it should; nothing is written or sent.
        """
        gradient = self._decode(opened)
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
        records = [
            cohort.publication(opened[place], before, after)
            if place in opened
            else cohort.movement(before, after)
            for place, cohort in enumerate(self._cohorts)
        ]
        record_step(self._folder, self._cohorts, records)
        keep_only(self._folder, after)
        self._state = following
        for place, unmasked in opened.items():
            self._cohorts[place].tell(exchange, unmasked, after)
