"""One client's round, from the charge to the noised vector: the only door out.

The steps are in one order and each happens once. In distributed trust::

    charge -> draw -> noised_mean (if the plan has a statistic) -> weigh -> add* -> seal

In local trust, where every release carries all the noise and may be used by the client
before the next one, a round has `local_steps` draws with `inner_steps` releases each::

    charge -> (draw -> noised_mean? -> (add* -> release)*)* -> weigh -> seal

`charge` has the INTENT on disk before it returns, and every random number of the round
is drawn after it: a crash over-counts, never under-counts. `seal` has the COMMIT on
disk before the vector exists for anyone else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.codec import (
    check_weight,
    decode,
    encode,
    weight_coordinate,
    weighted,
)
from privacy.crypto import KEY_BYTES
from privacy.errors import PlanMismatchError
from privacy.ledger import (
    Commit,
    Event,
    Intent,
    Ledger,
    Spend,
    commitment,
    spend_of,
    spends_after,
)
from privacy.noise import discrete_gaussian
from privacy.packing import pack
from privacy.plan import WEIGHT_ONE, Plan
from privacy.randomness import Entropy, RandomStream
from privacy.rotation import Rotation
from privacy.sampling import poisson_draw, uniforms, unit_stream
from privacy.statistic import noised_mean
from privacy.vectors import FloatVector, IntVector, NoisedVector, to_residues


def registered_event(plan: Plan, name: str) -> Event:
    """What one draw of a client costs, whatever happens in it.

    Raises:
        PlanMismatchError: the client is not in the plan.
    """
    return Event(
        sampling_rate=plan.client(name).sampling_rate,
        inner_steps=plan.inner_steps,
        norm_bound=plan.norm_bound,
        noise_variance=plan.noise_variance,
        statistic_norm_bound=plan.statistic_norm_bound,
        statistic_variance=plan.statistic_variance,
    )


def registered_spend(plan: Plan, name: str, delta: Decimal | None = None) -> Spend:
    """What the whole run costs a client, as registered.

    Args:
        plan: the registered terms.
        name: the client.
        delta: at which to price it; default: the plan's.
    """
    registered = plan.registered_charges
    charges = ((registered_event(plan, name), registered),)
    at = Decimal(plan.delta) if delta is None else delta
    return spend_of(charges, at, registered)


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
    event = registered_event(plan, name)
    spend, lifetime = spends_after(ledger.history, event, plan.local_steps)
    intent = Intent(
        round=round_number,
        attempt=attempt,
        event=event,
        releases=plan.local_steps,
        spend=spend,
        lifetime=lifetime,
    )
    ledger.append(intent)
    return Contribution(plan, name, intent, ledger, entropy)


class _Stage(IntEnum):
    CHARGED = 0
    DRAWN = 1
    MEASURED = 2
    RELEASED = 3
    WEIGHED = 4
    SEALED = 5


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
        self._draw_key = entropy(KEY_BYTES)
        self._stage = _Stage.CHARGED
        self._draws = 0
        self._releases = 0
        self._drawn: frozenset[str] = frozenset()
        self._awaited: set[str] = set()
        # Of the offer that the ledger says was joined, as the server has it.
        self._rotation = (
            Rotation.of_round(ledger.history.offer_digest, plan.dimension)
            if plan.rotation
            else None
        )
        # In local trust the weight multiplies what is released, noise and all.
        self._weight = WEIGHT_ONE if plan.is_local else 0
        self._total = np.zeros(plan.dimension, dtype=np.int64)
        self._released = np.zeros(plan.dimension, dtype=np.int64)

    def draw(self, unit_ids: Sequence[str]) -> list[str]:
        """Draw units, each with the plan's probability for this client.

        In local trust it is called `local_steps` times, each draw on its own.

        Args:
            unit_ids: every unit of the client's data set, distinct.

        Returns:
            The drawn units, possibly none. All of them count; none may be left out for
            reasons of size or time.
        """
        self._expect(_Stage.RELEASED if self._draws else _Stage.CHARGED)
        if self._draws:
            if self._draws == self._plan.local_steps:
                msg = "a draw beyond those of the plan: it was not charged"
                raise RuntimeError(msg)
            # The streams of units that are drawn again must be new ones.
            self._draw_key = self._entropy(KEY_BYTES)
        self._stage = _Stage.DRAWN
        self._draws += 1
        self._releases = 0
        rate = self._plan.client(self._name).sampling_rate
        drawn = poisson_draw(unit_ids, rate, self._stream)
        self._drawn = frozenset(drawn)
        self._awaited = set(drawn)
        return drawn

    def uniforms(self, unit_id: str, count: int) -> FloatVector:
        """Numbers in [0, 1) for generating this unit's completions, and no other's.

        Each unit has a stream of its own under a secret key of the draw, so that one
        unit more or less changes no other unit's completions.

        Returns:
            Shape (count,), float64.
        """
        return uniforms(unit_stream(self._draw_key, unit_id), count)

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
        if self._plan.is_local and self._draws < self._plan.local_steps:
            msg = "out of order: draws are left that were charged"
            raise RuntimeError(msg)
        before = _Stage.RELEASED if self._plan.is_local else self._ready
        self._advance(before, _Stage.WEIGHED)
        self._weight = weight

    def add(self, unit_id: str, gradient: NDArray[np.floating[Any]] | None) -> None:
        """Clip one unit's gradient and add it to the sum.

        Args:
            unit_id: a drawn unit that was not added yet.
            gradient: shape (d,), gradient units; None where anything failed for this
                unit, which then counts as zeros, as a gradient that is not finite does.

        Raises:
            RuntimeError: the unit was not drawn, or was added to this release before:
                it would count twice under a bound for one.
        """
        self._expect(self._ready if self._plan.is_local else _Stage.WEIGHED)
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
        if self._rotation is not None and not self._plan.is_local:
            # Before the clip, which is what bounds it: a rotation keeps every norm up
            # to rounding, and the integers are measured after both.
            gradient = self._rotation.forward(gradient)
        self._total += encode(
            gradient,
            scale=self._plan.scale,
            norm_bound=self._plan.norm_bound,
            weight=self._weight,
        )

    def release(self) -> FloatVector:
        """Close one step of local trust: add all the noise, and give the mean gradient.

        What it returns is paid for. The client may move its model by it and compute the
        next step's gradients there.

        Returns:
            Shape (d,), float64, gradient units: the noised sum of the added gradients
            over the public expected batch.

        Raises:
            PlanMismatchError: the plan is not of local trust. A share of the noise
                protects nothing by itself, so nothing is released before the sum.
        """
        plan = self._plan
        if not plan.is_local:
            msg = "one noise share protects nothing: only local trust releases steps"
            raise PlanMismatchError(msg)
        self._expect(self._ready)
        self._releases += 1
        if self._releases == plan.inner_steps:
            self._stage = _Stage.RELEASED
        step = self._total + self._noise()
        self._released += step
        self._total = np.zeros(plan.dimension, dtype=np.int64)
        self._awaited = set(self._drawn)
        mean: FloatVector = decode(step, plan.scale)
        return mean / float(plan.expected_batch(self._name))

    def seal(self) -> tuple[NoisedVector, bytes]:
        """Add this client's noise share, commit, and hand the vector out.

        The noise is the same whatever the weight and however few units were drawn.
        In local trust it is in every release already; the vector is their sum times
        the weight, which is computed from nothing else, and a rotation is of that.

        Returns:
            The vector for secure aggregation, and the 32 secret bytes that open the
            commitment in the ledger.
        """
        self._advance(_Stage.WEIGHED, _Stage.SEALED)
        plan = self._plan
        if plan.is_local:
            self._total = self._weighted_release()
        else:
            self._total += self._noise()
        share = weight_coordinate(
            self._weight, plan.batch_share(self._name), plan.weight_steps
        )
        residues = to_residues(self._total, plan.modulus_bits, share)
        opening = self._entropy(KEY_BYTES)
        self._ledger.append(
            Commit(
                round=self._intent.round,
                attempt=self._intent.attempt,
                commitment=commitment(opening, pack(residues, plan.modulus_bits)),
                length=plan.vector_length,
                modulus_bits=plan.modulus_bits,
            )
        )
        self._forget()
        return (
            NoisedVector(residues, plan.modulus_bits, plan.digest, self._intent.round),
            opening,
        )

    @property
    def _ready(self) -> _Stage:
        """The stage in which a draw's statistic, if there is one, is released."""
        measured = self._plan.weighting.needs_statistic
        return _Stage.MEASURED if measured else _Stage.DRAWN

    def _noise(self) -> IntVector:
        """Fresh noise of this client, shape (d,), grid steps.

        There is none where the plan promises nothing and every charge is infinite.
        """
        plan = self._plan
        if not plan.promises_privacy:
            return np.zeros(plan.dimension, dtype=np.int64)
        return discrete_gaussian(
            self._stream, plan.noise_share_variance, plan.dimension
        )

    def _weighted_release(self) -> IntVector:
        """What a client of local trust has released, times its weight, as it is sent.

        The rotation is post-processing here, after all the noise. It is drawn before
        the releases and none of them is made with it, so that it stays independent of
        them: steps at a model that it had moved would not be.

        Returns:
            Shape (d,), int64, grid steps.
        """
        if self._rotation is None:
            return weighted(self._released, self._weight)
        rotated = self._rotation.forward(self._released)
        return np.rint(rotated * (self._weight / WEIGHT_ONE)).astype(np.int64)

    def _forget(self) -> None:
        """Drop what must not outlive the round."""
        del self._stream, self._draw_key, self._total, self._released

    def _advance(self, before: _Stage, after: _Stage) -> None:
        self._expect(before)
        self._stage = after

    def _expect(self, stage: _Stage) -> None:
        if self._stage is not stage:
            msg = f"out of order: expected {stage.name}, at {self._stage.name}"
            raise RuntimeError(msg)
