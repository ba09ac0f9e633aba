"""Our figures against Opacus's accountants."""

from fractions import Fraction

import numpy as np
import pytest

from privacy.accountant import ORDERS, Event, epsilon_pld, epsilon_rdp, rdp_curve

pytest.importorskip("opacus")

from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp

SETTINGS = [
    ("1/25", 1.5, 2250),
    ("1/100", 1.0, 1000),
    ("1/10", 1.0, 30),
    ("1/500", 0.7, 5000),
]


@pytest.mark.parametrize(("rate", "multiplier", "rounds"), SETTINGS)
def test_renyi_curves_agree_at_integer_orders(rate, multiplier, rounds):
    theirs = compute_rdp(
        q=float(Fraction(rate)),
        noise_multiplier=multiplier,
        steps=rounds,
        orders=ORDERS.tolist(),
    )
    ours = rounds * rdp_curve(Event(Fraction(rate), multiplier))
    assert np.allclose(ours, theirs, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("rate", "multiplier", "rounds"), SETTINGS)
def test_renyi_epsilons_agree_at_integer_orders(rate, multiplier, rounds):
    theirs = RDPAccountant()
    theirs.history = [(multiplier, float(Fraction(rate)), rounds)]
    ours = epsilon_rdp(Event(Fraction(rate), multiplier), rounds, 1e-5)
    expected = theirs.get_epsilon(1e-5, alphas=ORDERS.tolist())
    assert ours == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("rate", "multiplier", "rounds"), SETTINGS)
def test_the_claim_is_within_the_stated_error_of_the_prv_accountant(
    rate, multiplier, rounds
):
    """Opacus adds its error of 0.01 to the estimate that it returns."""
    theirs = PRVAccountant()
    theirs.history = [(multiplier, float(Fraction(rate)), rounds)]
    upper = theirs.get_epsilon(1e-5, eps_error=0.01)
    ours = epsilon_pld(Event(Fraction(rate), multiplier), rounds, 1e-5)
    assert upper - 0.021 <= ours <= upper


def test_the_figure_of_opacus_own_tests_is_reproduced():
    ours = epsilon_pld(Event(Fraction(1, 25), 1.5), 2250, 1e-5)
    assert ours == pytest.approx(6.7774, abs=0.01)
