"""One draw and all that is released from it, as the accountants price it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeAlias

from privacy.errors import UnsupportedEventError

Real: TypeAlias = Fraction | float

# Beyond these the arithmetic of the accountants overflows, and what is not a number
# must never pass for a price.
_LEAST_MULTIPLIER: Final = 1e-6
_GREATEST_MULTIPLIER: Final = 1e9

# Randomised rounding of this width turns continuous noise into the discrete one.
ROUNDING_VARIANCE: Final = 4


@dataclass(frozen=True, slots=True)
class Event:
    """One draw and all that is released from it.

    Attributes:
        sampling_rate: 0 < q <= 1, the probability with which each unit is drawn.
        noise_multiplier: noise standard deviation over sensitivity, positive, of one
            release.
        inner_steps: how many such releases, each allowed to depend on those before,
            are made from the one draw. They are one event and not several: the same
            unit is in all of them or in none.
    """

    sampling_rate: Fraction
    noise_multiplier: float
    inner_steps: int = 1

    def __post_init__(self) -> None:
        """Refuse what has no price, with UnsupportedEventError."""
        if not isinstance(self.sampling_rate, (Fraction, int)):
            msg = "the sampling rate must be an exact rational"
            raise TypeError(msg)
        if not 0 < self.sampling_rate <= 1 or float(self.sampling_rate) == 0:
            msg = "the sampling rate is not in (0, 1]; give one that is"
            raise UnsupportedEventError(msg)
        if not _LEAST_MULTIPLIER <= self.noise_multiplier <= _GREATEST_MULTIPLIER:
            msg = "the noise multiplier is not from 1e-6 to 1e9; give one that is"
            raise UnsupportedEventError(msg)
        if self.inner_steps < 1:
            msg = "fewer than one inner step; give 1 or more"
            raise UnsupportedEventError(msg)

    @property
    def effective_multiplier(self) -> float:
        """That of the one Gaussian release which dominates all of the draw's.

        Guarantee:
            `inner_steps` releases on one draw cost as one at
            noise_multiplier / sqrt(inner_steps), never as that many draws.

        Source: Zhu, Dong and Wang, AISTATS 2022 (dominating pairs compose).
        """
        return self.noise_multiplier / math.sqrt(self.inner_steps)


def draw_event(
    *,
    sampling_rate: Fraction,
    variance: int,
    norm_bound: int,
    statistic_variance: int = 0,
    statistic_norm_bound: int = 0,
    inner_steps: int = 1,
) -> Event:
    """The one event that a draw of the integer mechanism costs.

    Args:
        sampling_rate: the plan's.
        variance: of the honest noise in the sum of the gradients, grid steps squared.
        norm_bound: of one unit's vector, grid steps.
        statistic_variance: of the noise on the mean reward; 0 without a statistic.
        statistic_norm_bound: of one unit's part in it; 0 without a statistic.
        inner_steps: gradient releases on one draw. The statistic is released once.

    Returns:
        An event of one step, whose multiplier holds everything released.
    """
    multiplier = transferred_multiplier(variance, norm_bound) / math.sqrt(inner_steps)
    if statistic_variance or statistic_norm_bound:
        multiplier = combined_multiplier(
            multiplier,
            transferred_multiplier(statistic_variance, statistic_norm_bound),
        )
    return Event(sampling_rate, multiplier)


def transferred_multiplier(variance: int, norm_bound: int) -> float:
    """The continuous noise multiplier by which discrete noise may be accounted.

    At the same standard deviation the discrete Gaussian can leak more than the
    continuous one. A continuous one of variance smaller by 4, rounded at random,
    becomes the discrete one up to a factor exp(1e-34) a coordinate.

    Args:
        variance: of the discrete noise, grid steps squared, above 4.
        norm_bound: the sensitivity in grid steps, at least 1.

    Returns:
        sqrt(variance - 4) / norm_bound.

    Raises:
        UnsupportedEventError: so little noise that the transfer does not hold.

    Source: docs/privacy.md, Theorem 2.
    """
    if norm_bound < 1:
        msg = "a norm bound below one grid step: raise the scale"
        raise UnsupportedEventError(msg)
    if variance <= ROUNDING_VARIANCE:
        msg = (
            f"a noise variance of {variance} grid steps squared is too small to be "
            "accounted for: raise the scale"
        )
        raise UnsupportedEventError(msg)
    return math.sqrt(variance - ROUNDING_VARIANCE) / norm_bound


def combined_multiplier(first: float, second: float) -> float:
    """The multiplier of two Gaussian releases on one draw, either seeing the other."""
    return 1.0 / math.hypot(1.0 / first, 1.0 / second)
