"""What is left to an attacker who wants to know whether one unit was there.

An attacker is a test between the data with and without the unit. It has two errors:
false alarms, the absent units that it takes for present, and misses. A mechanism is
(epsilon, delta)-private at many pairs at once, its privacy profile, and every one of
them limits every test. Together they limit it exactly as far as the privacy loss
distribution does.

Over runs that were chosen one after another there is no such distribution. What the
filter holds is the Renyi divergence at one order, and that limits every test too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from privacy.accountant import delta_profile
from privacy.errors import UnsupportedEventError
from privacy.events import Event, Real
from privacy.renyi import divergence_allowed, epsilon_from_curve, summed_curve

# A test is limited by the pair at its own likelihood ratio. No false alarm rate from
# 1e-5 on needs a larger one than the last, and between two neighbours little is lost.
_EPSILONS: Final = np.linspace(0.0, 12.0, 481)

# Where there is no distribution, Renyi divergence has an epsilon at each of these.
_DELTAS: Final = np.geomspace(1e-9, 0.5, 60)

# Halving an interval of length 1 as often as this leaves nothing that a float shows.
_HALVINGS: Final = 80

# Far above what the floats of a sum and of its logarithm err by.
_DIVERGENCE_SLACK: Final = 1e-9

# Euler's number to a higher power than this is no float.
_GREATEST_EXPONENT: Final = 700.0


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """Pairs of epsilon and delta that all hold of one mechanism.

    Attributes:
        pairs: epsilon, at least 0, and delta; none leave an attacker everything.
    """

    pairs: tuple[tuple[float, float], ...]

    def found(self, false_alarms: float) -> float:
        """Most of the present units that a test finds.

        Args:
            false_alarms: share of the absent units that it takes for present.

        Guarantee:
            No test does better, whichever of the two data sets is called present.

        Source: Kairouz, Oh and Viswanath, ICML 2015, theorem 2.1: with misses m and
        false alarms f, m + exp(epsilon) f >= 1 - delta and f + exp(epsilon) m >=
        1 - delta. That all pairs together are exact: Dong, Roth and Su, 2022,
        proposition 2.12.
        """
        most = 1.0
        for epsilon, delta in self.pairs:
            most = min(most, 1.0 - math.exp(-epsilon) * (1.0 - delta - false_alarms))
            if epsilon < _GREATEST_EXPONENT:
                most = min(most, false_alarms * math.exp(epsilon) + delta)
        return max(most, false_alarms)

    @property
    def accuracy(self) -> float:
        """Most right guesses where present and absent are equally likely, 0.5 to 1.

        Such a guess is right with probability (1 + found - false alarms) / 2, at most
        at the false alarms for which both inequalities meet.
        """
        most = 1.0
        for epsilon, delta in self.pairs:
            shrunk = math.exp(-epsilon)
            most = min(most, 1.0 - (1.0 - delta) * shrunk / (1.0 + shrunk))
        return most


@dataclass(frozen=True, slots=True)
class RenyiLimit:
    """A Renyi divergence that no two neighbours exceed, in either direction.

    Attributes:
        order: an integer, at least 2.
        divergence: most that it is at that order, at least 0.
    """

    order: int
    divergence: float

    def found(self, false_alarms: float) -> float:
        """Most of the present units that a test finds.

        Args:
            false_alarms: share of the absent units that it takes for present.

        Guarantee:
            No test does better, whichever of the two data sets is called present, and
            some pair of laws with that divergence has a test that does as well.

        Source: van Erven and Harremoes, 2014, theorem 9: what a test says diverges by
        no more than what it looked at.
        """
        if not 0.0 < false_alarms < 1.0:
            return false_alarms
        return self._largest(false_alarms, lambda _: false_alarms)

    @property
    def accuracy(self) -> float:
        """Most right guesses where present and absent are equally likely, 0.5 to 1.

        What tests achieve is convex, and the same with present and absent exchanged, so
        that the best guess errs on both equally often.
        """
        return self._largest(0.5, lambda found: 1.0 - found)

    def _largest(self, least: float, alarms: Callable[[float], float]) -> float:
        """The share found above which the divergence would be larger than it is."""
        low, high = least, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._allows(middle, alarms(middle)):
                low = middle
            else:
                high = middle
        return high

    def _allows(self, found: float, alarms: float) -> bool:
        most = (self.order - 1) * (self.divergence + _DIVERGENCE_SLACK)
        both = (found, alarms), (alarms, found)
        return all(_log_moment(one, other, self.order) <= most for one, other in both)


Limits: TypeAlias = Tradeoff | RenyiLimit


def _log_moment(one: float, other: float, order: int) -> float:
    """Of two laws on two outcomes: the divergence, times the order less one."""
    parts = []
    for mine, theirs in ((one, other), (1.0 - one, 1.0 - other)):
        if theirs <= 0.0:
            # What the other never says gives it away.
            parts.append(math.inf if mine > 0.0 else -math.inf)
        elif mine > 0.0:
            ratio = math.log(mine) - math.log(theirs)
            parts.append(math.log(mine) + (order - 1) * ratio)
    most = max(parts)
    if math.isinf(most):
        return most
    return most + math.log(math.fsum(math.exp(part - most) for part in parts))


# No noise, and so nothing that would limit anybody.
NO_LIMIT: Final = Tradeoff(())


def worst(tradeoffs: Sequence[Tradeoff]) -> Tradeoff:
    """What holds of all of several mechanisms: what is left where most is left.

    Delta never rises with epsilon, so that each mechanism's delta at an epsilon is at
    most the one that is known of it at a smaller one.

    Args:
        tradeoffs: at least one.
    """
    epsilons = sorted({epsilon for one in tradeoffs for epsilon, _ in one.pairs})
    pairs = []
    for at in epsilons:
        known = [
            min((d for e, d in one.pairs if e <= at), default=1.0) for one in tradeoffs
        ]
        pairs.append((at, max(known)))
    return Tradeoff(tuple(pairs))


def filter_limit(order: int, epsilon: Real, delta: Real) -> Limits:
    """What a Renyi filter leaves to an attacker on all runs that it let through.

    Args:
        order: at which the filter counts, fixed before the first run.
        epsilon: the cap that it holds them to; infinite ones hold nothing.
        delta: at which.

    Guarantee:
        However the runs were chosen, no test on all of them together does better, and
        none of these bounds is above that of the one pair (epsilon, delta).
    """
    if math.isinf(epsilon):
        return NO_LIMIT
    return RenyiLimit(order, divergence_allowed(order, epsilon, delta))


def tradeoff(events: Mapping[Event, int], delta: Real) -> Tradeoff:
    """What charged events leave to an attacker, by the accountant.

    Args:
        events: each with how often it is charged, all registered before the run.
        delta: at which they are priced otherwise.

    Returns:
        The pairs of the privacy loss distribution; where the accountant gives none,
        those of Renyi divergence, which leave more.

    Guarantee:
        For one Gaussian release it is at most 1e-3 above the exact trade-off.
    """
    try:
        profile = delta_profile(events, [float(at) for at in _EPSILONS], delta)
    except UnsupportedEventError:
        return _by_renyi(events)
    return Tradeoff(
        tuple((float(e), float(d)) for e, d in zip(_EPSILONS, profile, strict=True))
    )


def _by_renyi(events: Mapping[Event, int]) -> Tradeoff:
    curve = summed_curve(events.items())
    pairs = [(epsilon_from_curve(curve, float(d)), float(d)) for d in _DELTAS]
    return Tradeoff(tuple(pair for pair in pairs if math.isfinite(pair[0])))
