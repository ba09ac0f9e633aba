"""How often an attacker guesses right, and what that says of epsilon.

Source: Nasr et al., Tight auditing of differentially private machine learning, USENIX
Security 2023; Dong, Roth and Su, Gaussian differential privacy, JRSS-B 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr
from scipy.stats import beta, binom, norm

CONFIDENCE = 0.95
# With scores enough, a sound mechanism gives a bound between this part of the claim
# and the claim.
WARN_BELOW = 0.7
# How often a sound mechanism may be called weak by chance.
FALSE_ALARM = 1e-3
# A claim above this part of what the scores can show at most is not audited: no lack of
# noise could refute it.
IN_SIGHT = 0.9


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What an attack found.

    Attributes:
        epsilon_claimed: the target that the noise was calibrated to.
        epsilon_lower_bound: at least this much is lost, with the confidence below.
        delta: of both.
        scores: guesses made.
        confidence: of the bound.
    """

    epsilon_claimed: float
    epsilon_lower_bound: float
    delta: float
    scores: int
    confidence: float = CONFIDENCE

    @property
    def refuted(self) -> bool:
        """Whether more is lost than is claimed."""
        return self.epsilon_lower_bound > self.epsilon_claimed

    @property
    def weak_below(self) -> float:
        """The bound that a sound mechanism shows at least.

        It is `WARN_BELOW` of the claim, or less where so many scores do not give as
        much in all but `FALSE_ALARM` of the attacks.
        """
        part = WARN_BELOW * self.epsilon_claimed
        return min(part, sound_bound(self.epsilon_claimed, self.delta, self.scores))

    @property
    def weak(self) -> bool:
        """Whether the attack falls short of what a sound mechanism would show."""
        return self.epsilon_lower_bound < self.weak_below


def lower_bound(
    scores: NDArray[np.float64], present: NDArray[np.bool_], delta: float
) -> float:
    """Epsilon that a mechanism must have lost at least, given the guesses.

    Args:
        scores: shape (m,), about 1 where a canary was present and about 0 where not;
            independent of each other.
        present: shape (m,).
        delta: at which epsilon is asked for.
    """
    # The threshold is fixed before any score is seen, so that one test is made.
    guesses = scores > 0.5
    false_positive = _upper(int((guesses & ~present).sum()), int((~present).sum()))
    false_negative = _upper(int((~guesses & present).sum()), int(present.sum()))
    mu = float(norm.isf(false_positive) + norm.isf(false_negative))
    return epsilon_of_mu(mu, delta)


def largest_bound(scores: int, delta: float) -> float:
    """What so many scores bound epsilon by if every guess is right.

    Args:
        scores: of them, half with a canary.
        delta: at which epsilon is asked for.
    """
    return epsilon_of_mu(2 * float(norm.isf(_upper(0, scores // 2))), delta)


def sound_bound(epsilon: float, delta: float, scores: int) -> float:
    """What a Gaussian mechanism that loses its whole claim is bounded by, or more.

    Args:
        epsilon: the claim.
        delta: of the claim.
        scores: of them, half with a canary.

    Returns:
        A number below which the bound falls in at most `FALSE_ALARM` of the attacks;
        0 where the scores are too few to show anything as surely.
    """
    trials = scores // 2
    rate = float(norm.sf(mu_of_epsilon(epsilon, delta) / 2))
    # Counts of errors that are rarer than this are left out.
    tail = 1e-9 * FALSE_ALARM
    errors = np.arange(
        int(binom.isf(tail, trials, rate)), int(binom.ppf(tail, trials, rate)) - 1, -1
    )
    # One side's part of mu, which grows as its errors become fewer.
    part = norm.isf([_upper(int(count), trials) for count in errors])
    chance = binom.pmf(errors, trials, rate)
    below = np.concatenate([[0.0], np.cumsum(chance)])

    # Both sides err independently of each other.
    low, high = 2 * float(part[0]), 2 * float(part[-1])
    for _ in range(60):
        middle = (low + high) / 2
        if chance @ below[np.searchsorted(part, middle - part)] <= FALSE_ALARM:
            low = middle
        else:
            high = middle
    return epsilon_of_mu(low, delta)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Epsilon of mu-Gaussian differential privacy at a delta, 0 for a mu of 0 or less.

    Source: Dong, Roth and Su (2022), equation 6.
    """
    if mu <= 0 or _delta(0.0, mu) <= delta:
        return 0.0
    highest = 10 + 10 * mu**2 + 10 * mu
    return float(brentq(lambda epsilon: _delta(epsilon, mu) - delta, 0.0, highest))


def mu_of_epsilon(epsilon: float, delta: float) -> float:
    """Mu of the Gaussian mechanism that loses epsilon at a delta, and no less."""
    # At the upper end delta would be above 0.99.
    highest = 10 + 3 * math.sqrt(epsilon)
    return float(brentq(lambda mu: _delta(epsilon, mu) - delta, 1e-9, highest))


def _delta(epsilon: float, mu: float) -> float:
    """Delta of mu-Gaussian differential privacy at an epsilon."""
    # By logarithms, since e^epsilon overflows long before the product does.
    right = math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
    return float(ndtr(mu / 2 - epsilon / mu) - right)


def _upper(errors: int, trials: int) -> float:
    """Clopper and Pearson's upper bound; both sides share the error probability."""
    if errors >= trials:
        return 1.0
    return float(beta.ppf(1 - (1 - CONFIDENCE) / 2, errors + 1, trials - errors))
