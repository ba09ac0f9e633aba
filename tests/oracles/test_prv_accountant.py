"""Our claim against Microsoft's accountant, which bounds epsilon from both sides.

Source: Gopi, Lee and Wutschitz, NeurIPS 2021.
"""

from fractions import Fraction

import pytest

from privacy.accountant import epsilon_pld, price_events
from privacy.events import Event
from tests.oracles.grid import FEW, UNEQUAL

pytest.importorskip("prv_accountant")

from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant


def bounds(settings, delta):
    """Below, estimate and above, for unequal events."""
    mechanisms = [
        PoissonSubsampledGaussianMechanism(float(Fraction(rate)), multiplier)
        for rate, multiplier, _ in settings
    ]
    rounds = [count for *_, count in settings]
    accountant = PRVAccountant(
        mechanisms,
        max_self_compositions=rounds,
        eps_error=0.01,
        delta_error=delta / 1000,
    )
    return accountant.compute_epsilon(delta, rounds)


@pytest.mark.parametrize(("rate", "multiplier", "rounds", "delta"), FEW)
def test_the_claim_lies_between_the_bounds_and_near_the_estimate(
    rate, multiplier, rounds, delta
):
    low, middle, high = bounds([(rate, multiplier, rounds)], delta)
    ours = epsilon_pld(Event(Fraction(rate), multiplier), rounds, delta)
    assert low <= ours <= high
    # The bounds are 0.02 apart and the two libraries agree far better.
    assert ours == pytest.approx(middle, abs=3e-4)


def test_the_claim_of_unequal_events_lies_between_the_bounds():
    low, middle, high = bounds(UNEQUAL, 1e-5)
    counts = {
        Event(Fraction(rate), multiplier): rounds
        for rate, multiplier, rounds in UNEQUAL
    }
    ours = price_events(counts, 1e-5).epsilon_pld
    assert low <= ours <= high
    assert ours == pytest.approx(middle, abs=3e-4)
