"""What is left to an attacker: against closed forms, and against the stated pairs."""

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest

from privacy import accountant
from privacy.accountant import delta_profile, delta_slack, epsilon_pld
from privacy.attacker import (
    NO_LIMIT,
    RenyiLimit,
    Tradeoff,
    filter_limit,
    tradeoff,
    worst,
)
from privacy.errors import UnsupportedEventError
from privacy.events import Event
from privacy.renyi import (
    epsilon_at_order,
    epsilon_from_curve,
    filter_order,
    summed_curve,
)

NORMAL = NormalDist()
RATES = (1e-4, 1e-3, 1e-2, 0.1, 0.5)
DELTA = 1e-5


def gaussian(rate, mean):
    """Found by the best test between two normal laws that lie `mean` apart."""
    return NORMAL.cdf(NORMAL.inv_cdf(rate) + mean)


# The Gaussian mechanism, whose trade-off is known exactly.


@pytest.mark.parametrize(
    ("multiplier", "rounds"), [(1.0, 1), (5.0, 50), (0.3, 1), (20.0, 4), (2.0, 100)]
)
def test_it_is_the_trade_off_of_two_gaussians_and_never_below(multiplier, rounds):
    """Source: Dong, Roth and Su, 2022, equation 6: mu is sqrt(rounds) / multiplier."""
    found = tradeoff({Event(Fraction(1), multiplier): rounds}, DELTA)
    mean = math.sqrt(rounds) / multiplier
    exact = NORMAL.cdf(mean / 2)
    assert exact <= found.accuracy < exact + 1e-4
    for rate in RATES:
        exact = gaussian(rate, mean)
        assert exact <= found.found(rate) < exact + 1e-3


def test_a_composition_is_that_of_one_release_with_less_noise():
    many = tradeoff({Event(Fraction(1), 3.0): 9}, DELTA)
    one = tradeoff({Event(Fraction(1), 1.0): 1}, DELTA)
    for rate in RATES:
        assert many.found(rate) == pytest.approx(one.found(rate), abs=1e-4)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("sampling", "multiplier"), [(0.1, 1.0), (0.5, 0.7)])
def test_a_sampled_release_is_bounded_in_both_directions(rate, sampling, multiplier):
    """Neyman and Pearson's tests of N(0, 1) against its mixture with N(mean, 1).

    Present is the mixture: its likelihood ratio rises, so that the best test is a
    threshold. Called the other way round, absent is the mixture, and the best test
    looks for small values.
    """
    found = tradeoff({Event(Fraction(str(sampling)), multiplier): 1}, DELTA)
    mean = 1 / multiplier
    present = (1 - sampling) * rate + sampling * gaussian(rate, mean)

    def wrong(threshold):
        shifted = NORMAL.cdf(threshold - mean)
        return (1 - sampling) * NORMAL.cdf(threshold) + sampling * shifted

    low, high = -40.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if wrong(middle) < rate else (low, middle)
    absent = NORMAL.cdf(low)
    assert found.found(rate) >= max(present, absent) - 1e-12
    assert found.found(rate) < max(present, absent) + 5e-3


# What any mechanism must respect.


@pytest.mark.parametrize("rounds", [1, 30, 1000])
def test_no_test_beats_the_stated_epsilon_and_delta(rounds):
    event = Event(Fraction(1, 50), 1.1)
    found = tradeoff({event: rounds}, DELTA)
    for delta in (1e-6, 1e-5, 1e-3):
        epsilon = epsilon_pld(event, rounds, delta)
        for rate in RATES:
            # The pair's own bound, which the whole profile may only tighten.
            assert found.found(rate) <= math.exp(epsilon) * rate + delta + 1e-3
            assert found.found(rate) <= Tradeoff(((epsilon, delta),)).found(rate) + 1e-3


def test_the_profile_agrees_with_epsilon_at_every_delta():
    event = Event(Fraction(1, 20), 0.9)
    deltas = (1e-6, 1e-5, 1e-3, 0.05)
    epsilons = [epsilon_pld(event, 40, delta) for delta in deltas]
    profile = delta_profile({event: 40}, epsilons, DELTA)
    assert profile == pytest.approx(deltas, rel=1e-3)


def test_the_arithmetic_is_charged_to_every_delta():
    event = Event(Fraction(1), 50.0)
    profile = delta_profile({event: 100}, [11.0, 12.0], DELTA)
    assert min(profile) >= delta_slack(100) > 0


def test_found_rises_with_false_alarms_and_is_never_below_them():
    found = tradeoff({Event(Fraction(1, 10), 2.0): 20}, DELTA)
    rates = np.geomspace(1e-5, 1, 60)
    values = [found.found(rate) for rate in rates]
    assert values == sorted(values)
    assert all(value >= rate for value, rate in zip(values, rates, strict=True))
    assert values[-1] == 1


def test_more_charges_never_help_less():
    event = Event(Fraction(1, 10), 1.0)
    few, many = (tradeoff({event: rounds}, DELTA) for rounds in (5, 50))
    for rate in RATES:
        assert few.found(rate) <= many.found(rate)
    assert few.accuracy <= many.accuracy


def test_the_worst_of_several_is_as_bad_as_each_and_hardly_worse():
    often = tradeoff({Event(Fraction(1, 2), 1.0): 2}, DELTA)
    rarely = tradeoff({Event(Fraction(1, 100), 0.4): 40}, DELTA)
    coarse = Tradeoff(((0.5, 0.2), (3.0, 0.01)))
    both = worst([often, rarely])
    for rate in RATES:
        most = max(often.found(rate), rarely.found(rate))
        assert most <= both.found(rate) < most + 1e-2
        assert worst([often, coarse]).found(rate) >= often.found(rate)
        assert worst([often, coarse]).found(rate) >= coarse.found(rate)
    assert both.accuracy == max(often.accuracy, rarely.accuracy)
    assert worst([often]).found(0.01) == often.found(0.01)
    assert worst([often, NO_LIMIT]).found(0.01) == 1


# Where there is no noise, no charge, or no distribution.


def test_without_noise_an_attacker_has_everything():
    assert NO_LIMIT.accuracy == 1
    assert NO_LIMIT.found(1e-3) == 1
    assert Tradeoff(((1e6, 1e-5),)).found(1e-3) == 1


def test_without_a_charge_an_attacker_has_nothing():
    found = tradeoff({}, DELTA)
    assert found.accuracy == 0.5
    assert found.found(0.01) == 0.01


def test_without_a_distribution_the_renyi_divergence_bounds(monkeypatch):
    event = Event(Fraction(1), 4.0)
    whole = tradeoff({event: 4}, DELTA)

    def none(*_, **__):
        msg = "not resolved"
        raise UnsupportedEventError(msg)

    monkeypatch.setattr(accountant, "_checked_pld", none)
    found = tradeoff({event: 4}, DELTA)
    curve = summed_curve([(event, 4)])
    for delta in (1e-6, 1e-3, 0.1):
        pair = Tradeoff(((epsilon_from_curve(curve, delta), delta),))
        assert found.found(0.01) <= pair.found(0.01) + 0.02
    for rate in RATES:
        assert whole.found(rate) <= found.found(rate) < 1


# Several runs under a Renyi filter.


@pytest.mark.parametrize("order", [2, 5, 30, 256])
@pytest.mark.parametrize("mean", [0.05, 0.5, 2.0])
def test_a_renyi_divergence_never_limits_a_gaussian_test_too_much(order, mean):
    """Two normal laws `mean` apart diverge by order mean^2 / 2, at every order."""
    limit = RenyiLimit(order, order * mean**2 / 2)
    assert limit.accuracy >= NORMAL.cdf(mean / 2)
    for rate in RATES:
        assert limit.found(rate) >= gaussian(rate, mean)


@pytest.mark.parametrize(("order", "divergence"), [(2, 0.01), (3, 1.0), (20, 1.6)])
def test_a_renyi_limit_is_met_by_some_two_laws_and_passed_by_none(order, divergence):
    limit = RenyiLimit(order, divergence)

    def diverges(one, other):
        moment = sum(
            a**order * b ** (1 - order) for a, b in ((one, other), (1 - one, 1 - other))
        )
        return math.log(moment) / (order - 1)

    for rate in RATES:
        found = limit.found(rate)
        assert rate < found < 1
        worst_way = max(diverges(found, rate), diverges(rate, found))
        assert worst_way == pytest.approx(divergence, rel=1e-6)
        for more in np.linspace(found, 1, 50)[1:-1]:
            assert max(diverges(more, rate), diverges(rate, more)) > divergence
    rates = np.linspace(1e-4, 0.9999, 4001)
    best = max((1 + limit.found(rate) - rate) / 2 for rate in rates)
    assert best <= limit.accuracy + 1e-9
    assert limit.accuracy < best + 1e-4


@pytest.mark.parametrize(
    ("order", "cap", "delta"),
    [(4, 20.0, 1e-4), (20, 2.0, 1e-5), (60, 0.5, 1e-5), (8, 8.0, 1e-6)],
)
def test_what_the_filter_leaves_is_within_the_one_pair_and_below(order, cap, delta):
    pair = Tradeoff(((cap, delta),))
    found = filter_limit(order, cap, delta)
    assert found.accuracy <= pair.accuracy
    for rate in RATES:
        assert found.found(rate) <= pair.found(rate)
    if cap <= 2:
        assert found.accuracy < 0.97 * pair.accuracy
        assert found.found(1e-2) < 0.97 * pair.found(1e-2)


def test_the_filter_leaves_at_least_what_the_charges_that_it_let_through_give_away():
    event = Event(Fraction(1, 10), 1.0)
    cap = 3.0
    order = filter_order(event, cap, DELTA)
    rounds = 1
    while epsilon_at_order([(event, rounds + 1)], order, DELTA) <= cap:
        rounds += 1
    spent = tradeoff({event: rounds}, DELTA)
    limit = filter_limit(order, cap, DELTA)
    assert limit.accuracy >= spent.accuracy
    for rate in RATES:
        assert limit.found(rate) >= spent.found(rate)


def test_no_divergence_leaves_an_attacker_to_guess_and_no_cap_leaves_everything():
    nothing = RenyiLimit(7, 0.0)
    # A divergence of the slack alone lets through its square root.
    assert nothing.accuracy == pytest.approx(0.5, abs=1e-4)
    assert nothing.found(0.01) == pytest.approx(0.01, abs=1e-4)
    assert (nothing.found(0.0), nothing.found(1.0)) == (0.0, 1.0)
    assert filter_limit(7, math.inf, DELTA) is NO_LIMIT
    # A conversion that is above the cap by itself leaves no divergence.
    assert filter_limit(7, 1e-3, 1e-9) == nothing


@pytest.mark.parametrize("order", [1, 257])
def test_an_order_that_no_filter_has_is_refused(order):
    with pytest.raises(UnsupportedEventError):
        filter_limit(order, 1.0, DELTA)
