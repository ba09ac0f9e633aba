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
from scipy.stats import beta, norm

CONFIDENCE = 0.95
# A sound mechanism gives a bound between this part of the claim and the claim.
WARN_BELOW = 0.7


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
    def weak(self) -> bool:
        """Whether the attack falls short of what a sound mechanism would show."""
        return self.epsilon_lower_bound < WARN_BELOW * self.epsilon_claimed


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
    return epsilon_of_mu(mu, delta) if mu > 0 else 0.0


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Epsilon of mu-Gaussian differential privacy at a delta (Dong et al., eq. 6)."""

    def excess(epsilon: float) -> float:
        left = norm.cdf(mu / 2 - epsilon / mu)
        right = math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        return float(left - right) - delta

    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, 10 + 10 * mu**2 + 10 * mu))


def _upper(errors: int, trials: int) -> float:
    """Clopper and Pearson's upper bound; both sides share the error probability."""
    if errors >= trials:
        return 1.0
    return float(beta.ppf(1 - (1 - CONFIDENCE) / 2, errors + 1, trials - errors))
