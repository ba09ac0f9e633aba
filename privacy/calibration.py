"""From a target epsilon to integer noise variances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from privacy.accountant import epsilon_pld
from privacy.errors import RefusalError
from privacy.events import (
    ROUNDING_VARIANCE,
    Event,
    Real,
    draw_event,
    transferred_multiplier,
)
from privacy.plan import MAX_NOISE_VARIANCE
from privacy.renyi import epsilon_rdp

# The bound on one unit's part in the statistic. Rewards need no finer grid.
STATISTIC_NORM_BOUND = 2**12

# How far below its target a calibrated epsilon may stay, relative.
_TOLERANCE = 1e-6
_VARIANCE_BITS = 20
_LEAST_MULTIPLIER = 1e-2
_GREATEST_MULTIPLIER = 1e6
_MAX_STEPS = 100


@dataclass(frozen=True, slots=True)
class Calibration:
    """Integer noise that meets a target, and what it was found from.

    Attributes:
        total_variance: of the honest noise in the sum of gradients, grid steps
            squared.
        statistic_variance: of the noise on the mean reward; 0 without a statistic.
        statistic_norm_bound: of one unit's part in it; 0 without a statistic.
        noise_multiplier: transferred, of one gradient release.
        statistic_multiplier: transferred, of the statistic; None without one.
        event: the one event of a draw; its multiplier holds gradients and statistic.
        epsilon_pld: the claim after all rounds, at most the target.
        epsilon_rdp: the second opinion.
    """

    total_variance: int
    statistic_variance: int
    statistic_norm_bound: int
    noise_multiplier: float
    statistic_multiplier: float | None
    event: Event
    epsilon_pld: float
    epsilon_rdp: float

    @property
    def combined_multiplier(self) -> float:
        """The multiplier of all that one draw releases."""
        return self.event.noise_multiplier


def calibrate(
    *,
    epsilon: Real,
    delta: Real,
    sampling_rate: Fraction,
    rounds: int,
    norm_bound: int,
    statistic_multiplier: Fraction | None,
    inner_steps: int = 1,
) -> Calibration:
    """Find the least integer noise, to 20 bits, whose claim meets the target.

    The statistic's noise is fixed by its own multiplier; the gradients get what
    remains of each draw's budget.

    Args:
        epsilon: the target, positive and finite.
        delta: in (0, 1).
        sampling_rate: the plan's.
        rounds: all draws of the run, at least 1.
        norm_bound: of one unit's vector, grid steps.
        statistic_multiplier: noise over sensitivity of the mean reward; None where
            none is released.
        inner_steps: gradient releases on one draw.

    Returns:
        The calibration; `epsilon_pld` is below the target by a few parts in a million.

    Raises:
        RefusalError: the target cannot be met with these settings.

    Guarantee:
        `epsilon_pld <= epsilon`, computed from the integers returned.
    """
    if not 0 < epsilon < math.inf:
        msg = "the target epsilon is not positive and finite; state one that is"
        raise RefusalError(msg)
    if rounds < 1 or inner_steps < 1:
        msg = "fewer than one round or inner step; give 1 or more of each"
        raise RefusalError(msg)
    statistic_variance = statistic_bound = 0
    transferred = None
    if statistic_multiplier is not None:
        statistic_variance = _statistic_variance(statistic_multiplier)
        statistic_bound = STATISTIC_NORM_BOUND
        transferred = transferred_multiplier(statistic_variance, statistic_bound)
    needed = _least_multiplier(float(epsilon), delta, sampling_rate, rounds)
    variance = _gradient_variance(needed, transferred, norm_bound, inner_steps)
    for _ in range(_MAX_STEPS):
        event = draw_event(
            sampling_rate=sampling_rate,
            variance=variance,
            norm_bound=norm_bound,
            statistic_variance=statistic_variance,
            statistic_norm_bound=statistic_bound,
            inner_steps=inner_steps,
        )
        claim = epsilon_pld(event, rounds, delta)
        if claim <= epsilon:
            break
        # Only the rounding of floats can bring us here, and a nudge away from it.
        variance = _round_up(variance + 1)
    else:
        raise RefusalError(_UNREACHABLE)
    if variance > MAX_NOISE_VARIANCE:
        msg = (
            "the target needs a noise variance above 2**52 grid steps squared; ask for "
            "a larger epsilon, or lower the scale"
        )
        raise RefusalError(msg)
    return Calibration(
        total_variance=variance,
        statistic_variance=statistic_variance,
        statistic_norm_bound=statistic_bound,
        noise_multiplier=transferred_multiplier(variance, norm_bound),
        statistic_multiplier=transferred,
        event=event,
        epsilon_pld=claim,
        epsilon_rdp=epsilon_rdp(event, rounds, delta),
    )


_UNREACHABLE = (
    "no noise meets the target epsilon; ask for a larger one, run fewer rounds, or "
    "lower the sampling rate"
)


def _statistic_variance(multiplier: Fraction) -> int:
    """Integer noise whose transferred multiplier is no less than the one asked for."""
    if multiplier <= 0:
        msg = "the statistic's noise multiplier is not positive; add noise to it"
        raise RefusalError(msg)
    variance = math.ceil((multiplier * STATISTIC_NORM_BOUND) ** 2) + ROUNDING_VARIANCE
    if variance > MAX_NOISE_VARIANCE:
        msg = "the statistic's noise is too large to be useful; lower its multiplier"
        raise RefusalError(msg)
    return variance


def _gradient_variance(
    needed: float, statistic: float | None, norm_bound: int, inner_steps: int
) -> int:
    """What the gradients need so that a draw reaches the multiplier `needed`."""
    precision = needed**-2 - (0.0 if statistic is None else statistic**-2)
    if precision <= 0:
        msg = (
            "the statistic alone spends the target epsilon; raise "
            "statistic_multiplier, use an aggregation without a statistic, or ask for "
            "a larger epsilon"
        )
        raise RefusalError(msg)
    exact = math.ceil(norm_bound**2 * inner_steps / precision) + ROUNDING_VARIANCE
    return _round_up(exact)


def _round_up(variance: int) -> int:
    """Keep 20 significant bits, rounding up.

    Machines differ in the last bits of their floats, and all parties to a plan must
    find the same integers.
    """
    step = 1 << max(0, variance.bit_length() - _VARIANCE_BITS)
    return -(-variance // step) * step


def _least_multiplier(
    target: float, delta: Real, sampling_rate: Fraction, rounds: int
) -> float:
    """The least multiplier of one release a draw that meets the target.

    The Renyi figure costs nothing and bounds the claim from above, so it gives the
    first multiplier that suffices; then the claim is solved for on logarithmic scales,
    where it is nearly a straight line, by the Illinois form of false position.
    """

    def excess(log_multiplier: float) -> float:
        event = Event(sampling_rate, math.exp(log_multiplier))
        # Nothing below one part in a thousand million of the target matters here.
        claim = max(epsilon_pld(event, rounds, delta), target * 1e-9)
        return math.log(claim / target)

    high = _renyi_multiplier(target, delta, sampling_rate, rounds)
    above = excess(high)
    if above > 0:
        raise RefusalError(_UNREACHABLE)
    low, below = high, above
    step = 0.05
    while below <= 0:
        if low < math.log(_LEAST_MULTIPLIER):
            # The target is so large that hardly any noise is needed.
            return math.exp(high)
        high, above = low, below
        low -= step
        step *= 2
        below = excess(low)
    side = 0
    for _ in range(_MAX_STEPS):
        if above >= -_TOLERANCE:
            break
        # Aim a little inside the target, so that the last step ends on its safe side.
        aim_above, aim_below = above + _TOLERANCE / 2, below + _TOLERANCE / 2
        middle = high - aim_above * (high - low) / (aim_above - aim_below)
        found = excess(middle)
        if found <= 0:
            high, above = middle, found
            below = below / 2 if side == 1 else below
            side = 1
        else:
            low, below = middle, found
            above = above / 2 if side == -1 else above
            side = -1
    return math.exp(high)


def _renyi_multiplier(
    target: float, delta: Real, sampling_rate: Fraction, rounds: int
) -> float:
    """Logarithm of a multiplier at which the Renyi figure meets the target."""

    def meets(log_multiplier: float) -> bool:
        event = Event(sampling_rate, math.exp(log_multiplier))
        return epsilon_rdp(event, rounds, delta) <= target

    low, high = math.log(_LEAST_MULTIPLIER), math.log(_GREATEST_MULTIPLIER)
    if not meets(high):
        raise RefusalError(_UNREACHABLE)
    while high - low > 1e-3:
        middle = (low + high) / 2
        if meets(middle):
            high = middle
        else:
            low = middle
    return high
