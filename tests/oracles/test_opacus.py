"""Our figures against Opacus's accountants."""

from fractions import Fraction

import numpy as np
import pytest

from privacy.accountant import epsilon_pld, price_events
from privacy.events import Event
from privacy.renyi import ORDERS, epsilon_rdp, rdp_curve
from tests.oracles.grid import DELTAS, FEW, SETTINGS, UNEQUAL

pytest.importorskip("opacus")

from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

# It warns where the best order is the first or the last, which ours may be as well.
pytestmark = pytest.mark.filterwarnings("ignore:Optimal order is the")


def history(*settings):
    """Opacus's form of a run."""
    return [
        (multiplier, float(Fraction(rate)), rounds)
        for rate, multiplier, rounds in settings
    ]


@pytest.mark.parametrize(("rate", "multiplier", "rounds"), SETTINGS)
def test_renyi_curves_and_epsilons_agree_at_integer_orders(rate, multiplier, rounds):
    theirs = compute_rdp(
        q=float(Fraction(rate)),
        noise_multiplier=multiplier,
        steps=rounds,
        orders=ORDERS.tolist(),
    )
    event = Event(Fraction(rate), multiplier)
    assert np.allclose(rounds * rdp_curve(event), theirs, rtol=2e-9, atol=0)
    for delta in DELTAS:
        expected, _ = get_privacy_spent(orders=ORDERS.tolist(), rdp=theirs, delta=delta)
        ours = epsilon_rdp(event, rounds, delta)
        assert ours == pytest.approx(max(0.0, expected), rel=2e-9, abs=1e-12)


@pytest.mark.parametrize(("rate", "multiplier", "rounds", "delta"), FEW)
def test_the_claim_is_within_the_stated_error_of_the_prv_accountant(
    rate, multiplier, rounds, delta
):
    """Opacus adds its error of 0.01 to the estimate that it returns."""
    theirs = PRVAccountant()
    theirs.history = history((rate, multiplier, rounds))
    upper = theirs.get_epsilon(delta, eps_error=0.01)
    ours = epsilon_pld(Event(Fraction(rate), multiplier), rounds, delta)
    assert upper - 0.021 <= ours <= upper


def test_unequal_events_cost_what_opacus_says():
    counts = {
        Event(Fraction(rate), multiplier): rounds
        for rate, multiplier, rounds in UNEQUAL
    }
    renyi, prv = RDPAccountant(), PRVAccountant()
    renyi.history = prv.history = history(*UNEQUAL)
    ours = price_events(counts, 1e-5)
    expected = renyi.get_epsilon(1e-5, alphas=ORDERS.tolist())
    assert ours.epsilon_rdp == pytest.approx(expected, rel=1e-9)
    upper = prv.get_epsilon(1e-5, eps_error=0.01)
    assert upper - 0.021 <= ours.epsilon_pld <= upper


def test_the_figure_of_opacus_own_tests_is_reproduced():
    ours = epsilon_pld(Event(Fraction(1, 25), 1.5), 2250, 1e-5)
    assert ours == pytest.approx(6.7774, abs=0.01)
