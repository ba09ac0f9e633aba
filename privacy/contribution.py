"""One client's round, from the charge to the noised vector: the only door out.

The steps are in one order and each happens once::

    charge -> draw -> noised_mean (if the plan has a statistic) -> weigh -> add* -> seal

`charge` has the INTENT on disk before it returns, and every random number of the round
is drawn after it: a crash over-counts, never under-counts. `seal` has the COMMIT on
disk before the vector exists for anyone else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.codec import check_weight, encode, weight_coordinate
from privacy.crypto import KEY_BYTES
from privacy.errors import PlanMismatchError
from privacy.ledger import (
    Commit,
    Event,
    Intent,
    Ledger,
    charged,
    commitment,
    spend_of,
)
from privacy.noise import discrete_gaussian
from privacy.plan import Plan
from privacy.randomness import Entropy, RandomStream
from privacy.sampling import poisson_draw, uniforms, unit_stream
from privacy.statistic import noised_mean
from privacy.vectors import FloatVector, NoisedVector, to_residues


def registered_event(plan: Plan) -> Event:
    """What one round of the plan charges, whatever happens in it."""
    return Event(
        sampling_rate=plan.sampling_rate,
        inner_steps=plan.inner_steps,
        norm_bound=plan.norm_bound,
        noise_variance=plan.noise_variance,
        statistic_norm_bound=plan.statistic_norm_bound,
        statistic_variance=plan.statistic_variance,
    )


def charge(
    plan: Plan,
    name: str,
    *,
    round_number: int,
    attempt: int,
    ledger: Ledger,
    entropy: Entropy,
) -> Contribution:
    """Write the charge of a round to the ledger, and only then begin it.

    Args:
        plan: the registered terms.
        name: this client.
        round_number: from 1.
        attempt: from 1.
        ledger: this client's own, in which it has joined the round.
        entropy: where all randomness of the round comes from.

    Returns:
        The round in progress; the INTENT is on disk.

    Raises:
        BudgetExceededError: the charge would pass the plan's target or the client's
            cap. Nothing was written and nothing drawn.
        LedgerError: the charge could not be recorded, so nothing was drawn.
    """
    event = registered_event(plan)
    history = ledger.history
    spent, lifetime = history.totals()
    intent = Intent(
        round=round_number,
        attempt=attempt,
        event=event,
        releases=1,
        spend=spend_of(charged(history.charges, event, 1), spent.delta, plan.rounds),
        lifetime=spend_of(
            charged(history.lifetime, event, 1), lifetime.delta, plan.rounds
        ),
    )
    ledger.append(intent)
    return Contribution(plan, name, intent, ledger, entropy)


class _Stage(IntEnum):
    CHARGED = 0
    DRAWN = 1
    MEASURED = 2
    WEIGHED = 3
    SEALED = 4


class Contribution:
    """A client's round in progress.

    Make one with `charge`. Using it out of order, or twice, is a programming error and
    raises RuntimeError: a second draw, statistic or seal would be a release that nobody
    priced.
    """

    def __init__(
        self, plan: Plan, name: str, intent: Intent, ledger: Ledger, entropy: Entropy
    ) -> None:
        self._plan = plan
        self._name = name
        self._intent = intent
        self._ledger = ledger
        self._entropy = entropy
        self._stream = RandomStream(entropy)
        self._round_key = entropy(KEY_BYTES)
        self._stage = _Stage.CHARGED
        self._awaited: set[str] = set()
        self._weight = 0
        self._total = np.zeros(plan.dimension, dtype=np.int64)

    def draw(self, unit_ids: Sequence[str]) -> list[str]:
        """Draw this round's units, each with the plan's probability.

        Args:
            unit_ids: every unit of the client's data set, distinct.

        Returns:
            The drawn units, possibly none. All of them count; none may be left out for
            reasons of size or time.
        """
        self._advance(_Stage.CHARGED, _Stage.DRAWN)
        drawn = poisson_draw(unit_ids, self._plan.sampling_rate, self._stream)
        self._awaited = set(drawn)
        return drawn

    def uniforms(self, unit_id: str, count: int) -> FloatVector:
        """Numbers in [0, 1) for generating this unit's completions, and no other's.

        Each unit has a stream of its own under a secret key of the round, so that one
        unit more or less changes no other unit's completions.

        Returns:
            Shape (count,), float64.
        """
        return uniforms(unit_stream(self._round_key, unit_id), count)

    def noised_mean(self, rewards: Iterable[float | None]) -> float:
        """The mean reward of the draw, noised; for the client's own baseline only.

        Args:
            rewards: one number for each drawn unit, its mean reward rescaled to
                [-1, 1]; None and NaN count as 0.

        Returns:
            The noised sum over the public expected batch.

        Raises:
            PlanMismatchError: the plan has no statistic.
        """
        if not self._plan.weighting.needs_statistic:
            msg = "the plan has no statistic, so none may be released"
            raise PlanMismatchError(msg)
        self._advance(_Stage.DRAWN, _Stage.MEASURED)
        return noised_mean(
            rewards,
            norm_bound=self._plan.statistic_norm_bound,
            variance=(
                self._plan.statistic_variance if self._plan.promises_privacy else None
            ),
            expected_batch=self._plan.expected_batch(self._name),
            stream=self._stream,
        )

    def weigh(self, weight: int) -> None:
        """Fix the weight of this client's update.

        Args:
            weight: k of the weight k / 2**16, 0 < k <= 2**16, computed from noised
                statistics and the plan alone.

        Raises:
            ValueError: the weight is out of range. One above 1 would raise the
                sensitivity above what the noise was made for.
        """
        check_weight(weight)
        measured = self._plan.weighting.needs_statistic
        before = _Stage.MEASURED if measured else _Stage.DRAWN
        self._advance(before, _Stage.WEIGHED)
        self._weight = weight

    def add(self, unit_id: str, gradient: NDArray[np.floating[Any]] | None) -> None:
        """Clip one unit's gradient and add it to the sum.

        Args:
            unit_id: a drawn unit that was not added yet.
            gradient: shape (d,), gradient units; None where anything failed for this
                unit, which then counts as zeros, as a gradient that is not finite does.

        Raises:
            RuntimeError: the unit was not drawn, or was added before: it would count
                twice under a bound for one.
        """
        self._expect(_Stage.WEIGHED)
        if unit_id not in self._awaited:
            msg = "this unit was not drawn, or was added already"
            raise RuntimeError(msg)
        self._awaited.remove(unit_id)
        if gradient is None:
            return
        if gradient.shape != self._total.shape:
            wanted = self._total.size
            msg = f"a gradient of {gradient.size} numbers; the plan has {wanted}"
            raise PlanMismatchError(msg)
        self._total += encode(
            gradient,
            scale=self._plan.scale,
            norm_bound=self._plan.norm_bound,
            weight=self._weight,
        )

    def seal(self) -> tuple[NoisedVector, bytes]:
        """Add this client's noise share, commit, and hand the vector out.

        The noise is the same whatever the weight and however few units were drawn.
        There is none where the plan promises nothing and every charge is infinite.

        Returns:
            The vector for secure aggregation, and the 32 secret bytes that open the
            commitment in the ledger.
        """
        self._advance(_Stage.WEIGHED, _Stage.SEALED)
        plan = self._plan
        if plan.promises_privacy:
            self._total += discrete_gaussian(
                self._stream, plan.noise_share_variance, plan.dimension
            )
        share = weight_coordinate(self._weight, plan.batch_share(self._name))
        whole = np.append(self._total, np.int64(share))
        residues = to_residues(whole, plan.modulus_bits)
        opening = self._entropy(KEY_BYTES)
        self._ledger.append(
            Commit(
                round=self._intent.round,
                attempt=self._intent.attempt,
                commitment=commitment(opening, residues.astype("<u4").tobytes()),
                length=plan.vector_length,
                modulus_bits=plan.modulus_bits,
            )
        )
        self._forget()
        return (
            NoisedVector(residues, plan.modulus_bits, plan.digest, self._intent.round),
            opening,
        )

    def _forget(self) -> None:
        """Drop what must not outlive the round."""
        del self._stream, self._round_key, self._total

    def _advance(self, before: _Stage, after: _Stage) -> None:
        self._expect(before)
        self._stage = after

    def _expect(self, stage: _Stage) -> None:
        if self._stage is not stage:
            msg = f"out of order: expected {stage.name}, at {self._stage.name}"
            raise RuntimeError(msg)
