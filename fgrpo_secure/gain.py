"""Adaptive aggregation: how much a client's update counts, by its relative gain.

A client compares the noised mean reward of its draw with its own moving average, and
turns the gain into a weight. The server never sees a reward: the client scales its own
update, and the weight's share travels as one exact coordinate of the masked sum, so
that dividing the two sums is the softmax over clients.

Everything here is computed from the noised statistic alone, and is free
post-processing of it.

Source: reconstructed from the abstract of FGRPO (arXiv 2606.03094): weights by relative
performance gain over the client's own historical baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from privacy.plan import WEIGHT_ONE, Plan, Weighting

# Rewards are rescaled to [0, 1]; a baseline below this does not blow a gain up.
_FLOOR = 0.05
# Logits are taken inside this margin of 0 and 1.
_MARGIN = 0.02


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a client remembers of its own past.

    Attributes:
        mean: moving average of the noised mean reward, in [-1, 1] give or take noise;
            None before the first round.
        variance: moving average of the squared surprise, for the z-score.
    """

    mean: float | None = None
    variance: float = 0.0


def gain(weighting: Weighting, baseline: Baseline, noised_mean: float) -> float:
    """The client's gain over its own baseline; 0 in the first round.

    Args:
        weighting: the plan's constants.
        baseline: before this round.
        noised_mean: the statistic of this round, centred: -1 is the worst reward and 1
            the best.
    """
    if baseline.mean is None:
        return 0.0
    now = (noised_mean + 1) / 2
    before = (baseline.mean + 1) / 2
    if weighting.gain == "relative":
        return (now - before) / max(before, _FLOOR)
    if weighting.gain == "logit":
        return _logit(now) - _logit(before)
    surprise = math.sqrt(baseline.variance)
    return 0.0 if surprise == 0 else (noised_mean - baseline.mean) / surprise


def updated(
    weighting: Weighting, baseline: Baseline, noised_mean: float, noise_std: float
) -> Baseline:
    """The baseline after this round.

    Args:
        weighting: the plan's constants.
        baseline: before this round.
        noised_mean: the statistic of this round.
        noise_std: its known noise, below which no surprise is believed.
    """
    if baseline.mean is None:
        return Baseline(noised_mean, noise_std**2)
    decay = float(weighting.baseline_decay)
    surprise = max((noised_mean - baseline.mean) ** 2, noise_std**2)
    return Baseline(
        decay * baseline.mean + (1 - decay) * noised_mean,
        decay * baseline.variance + (1 - decay) * surprise,
    )


def adaptive_weight(weighting: Weighting, gain_now: float) -> int:
    """exp(clip(gain) / tau), scaled so that the largest possible weight is 1.

    Returns:
        An integer k with 0 < k <= 2**16; the weight is k / 2**16.

    Guarantee:
        The weights of any two gains differ by at most `max_weight_ratio`, and none is
        above 1.
    """
    temperature = float(weighting.temperature)
    span = math.log(weighting.max_weight_ratio)
    exponent = max(-span / 2, min(span / 2, gain_now / temperature)) - span / 2
    return max(1, min(WEIGHT_ONE, math.ceil(WEIGHT_ONE * math.exp(exponent))))


def fixed_weight(plan: Plan, name: str) -> int:
    """The weight of a client under the rules that look at no reward.

    `size` lets every unit count alike: a client that draws from its units more often
    than another is scaled down by as much. `uniform` scales larger clients down until
    every client's expected batch counts alike.
    """
    share = _least(plan) / _measure(plan, name)
    return max(1, math.floor(WEIGHT_ONE * share))


def cohort_factor(plan: Plan, plans: Sequence[Plan]) -> int:
    """By what a cohort's sum is scaled, so that its clients count as all others do.

    A fixed weight compares a client with the least one of its own plan, which is all
    that a client knows of. The cohorts' least ones are compared here.

    Args:
        plan: the cohort's.
        plans: of all cohorts.

    Returns:
        An integer k with 0 < k <= 2**16; the factor is k / 2**16.
    """
    if plan.weighting.needs_statistic:
        return WEIGHT_ONE
    share = min(_least(other) for other in plans) / _least(plan)
    return max(1, math.floor(WEIGHT_ONE * share))


def _least(plan: Plan) -> Fraction:
    """The least of what a plan's clients are scaled down to."""
    return min(_measure(plan, client.name) for client in plan.clients)


def _measure(plan: Plan, name: str) -> Fraction:
    """What a fixed rule evens out: rates where units count alike, batches else."""
    if plan.weighting.rule == "size":
        return plan.client(name).sampling_rate
    return plan.expected_batch(name)


def _logit(value: float) -> float:
    inside = max(_MARGIN, min(1 - _MARGIN, value))
    return math.log(inside / (1 - inside))
