from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest

from privacy import accountant
from privacy.events import draw_event
from privacy.ledger import Spend, charged, price_charges, spend_of
from tests.privacy.ledger.synthetic import event_of, make_plan

PLAN = make_plan()
EVENT = event_of(PLAN)
DELTA = Decimal("0.00001")


def test_figures_are_the_accountants_rounded_up_to_six_decimals():
    event = draw_event(
        sampling_rate=PLAN.sampling_rate,
        variance=PLAN.noise_variance,
        norm_bound=PLAN.norm_bound,
        statistic_variance=PLAN.statistic_variance,
        statistic_norm_bound=PLAN.statistic_norm_bound,
    )
    exact = accountant.price_events(
        [event] * 2, Fraction(1, 10**5), registered_rounds=3
    )
    figures = price_charges(((EVENT, 2),), DELTA, 3)
    for figure, value in zip(
        figures, (exact.epsilon_pld, exact.epsilon_rdp), strict=True
    ):
        assert 0 <= figure - Decimal(value) < Decimal("0.000001")
        assert figure.as_tuple().exponent == -6


def test_a_statistic_is_charged_with_the_sum():
    with_it, without = (
        EVENT,
        replace(EVENT, statistic_norm_bound=0, statistic_variance=0),
    )
    event = draw_event(
        sampling_rate=Fraction(1, 50),
        variance=2**22,
        norm_bound=1024,
        statistic_variance=4096,
        statistic_norm_bound=16,
    )
    exact = accountant.price_events(
        [event] * 2, Fraction(1, 10**5), registered_rounds=3
    )
    pld, rdp = price_charges(((with_it, 2),), DELTA, 3)
    assert 0 <= pld - Decimal(exact.epsilon_pld) < Decimal("0.000001")
    assert 0 <= rdp - Decimal(exact.epsilon_rdp) < Decimal("0.000001")
    assert (str(pld), str(rdp)) == ("0.101126", "0.312379")
    cheaper = price_charges(((without, 2),), DELTA, 3)
    assert tuple(map(str, cheaper)) == ("0.079620", "0.241941")
    assert pld > cheaper[0]
    assert rdp > cheaper[1]


def test_no_charges_cost_nothing():
    assert spend_of((), DELTA, 3) == Spend(0, DELTA, Decimal(0), Decimal(0))


def test_more_charges_cost_more_and_other_events_are_added():
    one = spend_of(((EVENT, 1),), DELTA, 3)
    two = spend_of(((EVENT, 2),), DELTA, 3)
    other = event_of(make_plan(norm_bound=1025))
    mixed = spend_of(charged(((EVENT, 1),), other, 1), DELTA, 3)
    assert one.epsilon_pld < two.epsilon_pld < mixed.epsilon_pld
    assert (one.charges, two.charges, mixed.charges) == (1, 2, 2)


def test_an_event_without_noise_costs_infinity_and_not_nothing():
    event = event_of(PLAN)
    silent = type(event)(event.sampling_rate, 1, 1024, 0, 0, 0)
    infinite = Decimal("Infinity")
    assert price_charges(((silent, 1),), DELTA, 3) == (infinite, infinite)


def test_a_delta_that_the_loss_distribution_cannot_resolve_leaves_the_other_figure():
    pld, rdp = price_charges(((EVENT, 1),), Decimal("1E-30"), 3)
    assert pld.is_infinite()
    assert 0 < rdp < Decimal("Infinity")


@pytest.mark.parametrize("field", ["noise_variance", "statistic_variance"])
def test_less_noise_costs_more(field):
    louder = spend_of(((EVENT, 3),), DELTA, 3)
    changed = event_of(make_plan(**{field: getattr(PLAN, field) // 4}))
    quieter = spend_of(((changed, 3),), DELTA, 3)
    assert quieter.epsilon_pld > louder.epsilon_pld
    assert quieter.epsilon_rdp > louder.epsilon_rdp


def test_a_number_of_charges_that_nobody_could_compose_is_priced_at_once():
    """A plan in a stranger's ledger may state any number of steps a round."""
    pld, rdp = price_charges(((EVENT, 2**53),), DELTA, 3)
    assert pld.is_infinite()
    assert rdp > 10**6
