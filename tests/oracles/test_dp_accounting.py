"""Our figures against dp-accounting's own accountants.

Our claim composes distributions of the same library, by grouping and on grids of our
own; its Renyi accountant shares nothing with ours.
"""

from fractions import Fraction

import pytest
from dp_accounting import (
    ComposedDpEvent,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from privacy.accountant import epsilon_pld, price_events
from privacy.events import Event
from privacy.renyi import ORDERS, epsilon_rdp
from tests.oracles.grid import DELTAS, FEW, SETTINGS, UNEQUAL


def run_of(*settings):
    """Its form of a run."""
    return ComposedDpEvent(
        [
            SelfComposedDpEvent(
                PoissonSampledDpEvent(
                    float(Fraction(rate)), GaussianDpEvent(multiplier)
                ),
                rounds,
            )
            for rate, multiplier, rounds in settings
        ]
    )


@pytest.mark.parametrize(("rate", "multiplier", "rounds"), SETTINGS)
def test_renyi_epsilons_agree_at_integer_orders(rate, multiplier, rounds):
    theirs = RdpAccountant(ORDERS.tolist())
    theirs.compose(run_of((rate, multiplier, rounds)))
    for delta in DELTAS:
        ours = epsilon_rdp(Event(Fraction(rate), multiplier), rounds, delta)
        expected = theirs.get_epsilon(delta)
        assert ours == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("rate", "multiplier", "rounds", "delta"), FEW[1::2])
def test_the_claim_is_that_of_its_accountant_up_to_the_grids(
    rate, multiplier, rounds, delta
):
    theirs = PLDAccountant(value_discretization_interval=2e-4)
    theirs.compose(run_of((rate, multiplier, rounds)))
    ours = epsilon_pld(Event(Fraction(rate), multiplier), rounds, delta)
    # Each exceeds the truth by about rounds * interval**2, ours by 1e-5 at most.
    assert ours == pytest.approx(
        theirs.get_epsilon(delta), abs=2e-5 + 4 * rounds * 4e-8
    )


def test_unequal_events_cost_what_its_accountants_say():
    counts = {
        Event(Fraction(rate), multiplier): rounds
        for rate, multiplier, rounds in UNEQUAL
    }
    ours = price_events(counts, 1e-5)
    renyi, loss = RdpAccountant(ORDERS.tolist()), PLDAccountant()
    for theirs, figure, tolerance in [
        (renyi, ours.epsilon_rdp, 1e-9),
        (loss, ours.epsilon_pld, 2e-5),
    ]:
        theirs.compose(run_of(*UNEQUAL))
        assert figure == pytest.approx(theirs.get_epsilon(1e-5), abs=tolerance)
