"""White-box gradient canaries through the real round: how much does a release tell?

Every coordinate is one canary: a unit whose gradient is the whole clip norm in that
coordinate, present with probability 1/2. The canaries go through the real charge, clip
and noise. In distributed trust the attacker sees the sum of `min_survivors` clients,
after real masks and unmasking, and subtracts the shares of the colluders (of one other
client at least); a rotation is public, and it undoes it. In local trust it sees every
release of the one client.

How often it guesses right which canaries were there bounds epsilon from below: Clopper
and Pearson on both error rates, turned into the mu of Gaussian differential privacy. A
bound above the claim refutes the claim; one far below what so many guesses should give
means that the attack or the mechanism is not what it should be.

Source: Nasr et al., Tight auditing of differentially private machine learning, USENIX
Security 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from audits.bounds import AuditResult, lower_bound
from audits.rounds import Cohort, Data, Progress
from privacy.calibration import Calibration, calibrate
from privacy.crypto import Label, sha256
from privacy.errors import WrappingSumError
from privacy.plan import ClientTerms, Plan, Weighting
from privacy.randomness import RandomStream, system_entropy
from privacy.vectors import FloatVector

CANARIES = 1000
RELEASES = 10
# A joint attack makes one score a round, and so many rounds for each release above.
JOINT_FACTOR = 250

# What the attacker learns of the canaries, about 1 for one that is there, else about 0.
View: TypeAlias = Callable[[Cohort, Data], FloatVector]


def audit_plan(
    *,
    epsilon: float,
    delta: float,
    clip_norm: Fraction,
    norm_bound: int,
    min_survivors: int,
    colluders: int,
    clients: int = 0,
    trust: str = "distributed",
    local_steps: int = 1,
    inner_steps: int = 1,
    modulus_bits: int = 32,
    rotation: bool = False,
    sampling_rate: Fraction = Fraction(1),
    statistic: bool = False,
    canaries: int = CANARIES,
    units: int | None = None,
) -> Plan:
    """The plan of one round, its noise made for the whole target.

    At small rates this attack reads a fraction of the claim whatever the mechanism
    does, so the rate is 1 here and the draw is tested apart.

    Args:
        epsilon: the claim.
        delta: of the claim.
        clip_norm: gradient units.
        norm_bound: grid steps; halved until the modulus holds the sum.
        min_survivors: clients in the sum.
        colluders: clients whose noise the attacker knows.
        clients: in the cohort; `min_survivors` of them, and 3, at least.
        trust: "distributed" or "local".
        local_steps: draws in the round, each its own event.
        inner_steps: releases on one draw.
        modulus_bits: in which numbers are sent.
        rotation: whether vectors are rotated before they are.
        sampling_rate: of every client.
        statistic: whether rewards are released too; they get three quarters of each
            draw's budget, so that wrong noise on them shows.
        canaries: how many, which is the dimension.
        units: of the first client, which alone has data. Default: as many as there are
            canaries, or as the delta allows.
    """
    allowed = int(1 / (10 * Fraction(repr(delta))))
    sized = units or max(1, min(canaries, allowed))

    def calibrated(
        norm_bound: int, statistic_multiplier: Fraction | None
    ) -> Calibration:
        return calibrate(
            epsilon=epsilon,
            delta=delta,
            sampling_rate=sampling_rate,
            rounds=local_steps,
            norm_bound=norm_bound,
            statistic_multiplier=statistic_multiplier,
            inner_steps=inner_steps,
        )

    count = max(3, min_survivors, clients)
    rule = "fgrpo" if statistic else "size"

    def plan(norm_bound: int) -> Plan:
        noise = calibrated(norm_bound, None)
        if statistic:
            multiplier = noise.combined_multiplier * math.sqrt(4 / 3)
            rational = Fraction(multiplier).limit_denominator(1000)
            noise = calibrated(norm_bound, rational)
        return Plan(
            unit="canary",
            max_prompts_per_unit=1,
            trust=trust,
            epsilon=format(Decimal(repr(epsilon)).normalize(), "f"),
            delta=format(Decimal(repr(delta)).normalize(), "f"),
            rounds=1,
            local_steps=local_steps,
            inner_steps=inner_steps,
            clip_norm=clip_norm,
            norm_bound=norm_bound,
            noise_variance=noise.total_variance,
            statistic_norm_bound=noise.statistic_norm_bound,
            statistic_variance=noise.statistic_variance,
            modulus_bits=modulus_bits,
            rotation=rotation,
            dimension=canaries,
            min_survivors=max(3, min_survivors),
            colluders=colluders,
            clients=tuple(
                # The first alone has data, and few bits must hold the sum.
                ClientTerms(
                    f"client-{number:03}", 1 if number else sized, sampling_rate
                )
                for number in range(count)
            ),
            weighting=Weighting(
                rule, "relative", Fraction(1), Fraction(1, 2), Fraction(1)
            ),
            recipe=sha256(Label.PLAN, b"canaries").hex(),
        )

    while True:
        try:
            return plan(norm_bound)
        except WrappingSumError:
            if norm_bound == 1:
                raise
            norm_bound //= 2


def attack(
    plan: Plan,
    releases: int = RELEASES,
    progress: Progress | None = None,
    view: View | None = None,
) -> AuditResult:
    """Run the canaries and bound epsilon.

    Args:
        plan: as `audit_plan` makes it, without a statistic.
        releases: rounds to play, each with fresh parties; every one gives as many
            scores as the plan has dimensions.
        progress: called with a label, what is done and what there is to do.
        view: what the attacker makes of a round. Default: `what_is_released`.
    """
    look = what_is_released if view is None else view
    present: list[NDArray[np.bool_]] = []
    scores: list[FloatVector] = []
    for number in range(releases):
        there = _coins(plan.dimension)
        present.append(there)
        scores.append(look(Cohort.of(plan), _canaries(plan, there)))
        if progress is not None:
            progress("releases", number + 1, releases)
    return _result(plan, np.concatenate(scores), np.concatenate(present))


def what_is_released(cohort: Cohort, data: Data) -> FloatVector:
    """The honest part of what one round shows: the sum, or one client's releases."""
    plan = cohort.plan
    if plan.is_local:
        # A canary is in all of them, so that their mean is all there is to know.
        return _mean(_released(cohort, data))
    honest = cohort.less_known(*cohort.play(data))
    return cohort.turned_back(honest) / plan.norm_bound


def alternating(cohort: Cohort, data: Data) -> FloatVector:
    """Canaries of local trust that change sign from one release to the next.

    For fresh noise that makes no difference; noise that comes twice goes away.
    """

    def gradient(unit: str, release: int) -> FloatVector | None:
        vector = data.gradient(unit, release)
        return -vector if vector is not None and release % 2 else vector

    released = _released(cohort, Data(data.units, gradient, data.reward))
    released[1::2] *= -1
    return _mean(released)


def less_another_round(cohort: Cohort, data: Data) -> FloatVector:
    """What one round shows, less a round of noise alone: the same noise goes away."""
    first = what_is_released(cohort, data)
    return first - what_is_released(cohort, data.silent())


def less_own_noise(cohort: Cohort, data: Data) -> FloatVector:
    """The sum, less one's own noise for every client's.

    A client that sends noise alone knows it, and so all noise, if all have the same.
    """
    made, total = cohort.play(data)
    own = made[cohort.survivors[-1]].integers
    return cohort.turned_back(total - len(made) * own) / cohort.plan.norm_bound


def attack_jointly(
    plan: Plan,
    releases: int = JOINT_FACTOR * RELEASES,
    progress: Progress | None = None,
) -> AuditResult:
    """One canary a round, seen in its gradient and in the reward statistic at once.

    Both come from one draw and are priced as one event, so that the attacker gets
    both, each weighed by its precision. The client is alone: whoever knows the vectors
    of all the others has its vector, since masks leave the sum exactly.

    Args:
        plan: as `audit_plan` makes it, with a statistic and one canary, and so many
            colluders that one honest noise share is left.
        releases: rounds to play; one score each.
        progress: called with a label, what is done and what there is to do.
    """
    gradient_part = (
        plan.releases_per_round * plan.norm_bound**2 / plan.noise_share_variance
    )
    statistic_part = (
        plan.local_steps * plan.statistic_norm_bound**2 / plan.statistic_variance
    )
    cohort = Cohort.of(plan)
    name = cohort.survivors[0]
    present = _coins(releases)
    scores = np.zeros(releases)
    for number, there in enumerate(present):
        made = cohort.contribute(name, _canaries(plan, np.array([there])))
        sent = cohort.turned_back(made.integers)[0]
        gradient = sent / plan.norm_bound / plan.releases_per_round
        # The expected batch is one unit, so that the mean is the sum.
        reward = float(np.mean(made.statistics))
        both = gradient_part * gradient + statistic_part * reward
        scores[number] = both / (gradient_part + statistic_part)
        if progress is not None:
            progress("joint releases", number + 1, releases)
    return _result(plan, scores, present)


def _released(cohort: Cohort, data: Data) -> FloatVector:
    """Every release of one client, shape (releases, d), of which a canary is 1."""
    made = cohort.contribute(cohort.survivors[0], data)
    return np.stack(made.releases) / cohort.plan.norm_bound


def _mean(releases: FloatVector) -> FloatVector:
    mean: FloatVector = np.mean(releases, axis=0)
    return mean


def _coins(count: int) -> NDArray[np.bool_]:
    words = RandomStream(system_entropy).uint64(count)
    return (words & np.uint64(1)).astype(bool)


def _canaries(plan: Plan, there: NDArray[np.bool_]) -> Data:
    """The canaries that are there; each has the best reward."""

    def gradient(unit: str, _: int) -> FloatVector:
        vector = np.zeros(plan.dimension)
        # Far above the clip norm: what is left of it is for the codec to say.
        vector[int(unit)] = 100.0 * float(plan.clip_norm)
        return vector

    units = tuple(str(index) for index in np.flatnonzero(there))
    return Data(units, gradient, lambda _: 1.0)


def _result(plan: Plan, scores: FloatVector, present: NDArray[np.bool_]) -> AuditResult:
    delta = float(plan.delta)
    return AuditResult(
        epsilon_claimed=float(plan.epsilon),
        epsilon_lower_bound=lower_bound(scores, present, delta),
        delta=delta,
        scores=scores.size,
    )
