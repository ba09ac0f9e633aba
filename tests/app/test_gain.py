"""Weights from a client's own past: bounded, and free of anyone else's scale."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrpo_secure.gain import (
    Baseline,
    adaptive_weight,
    cohort_factor,
    fixed_weight,
    gain,
    updated,
)
from privacy.plan import WEIGHT_ONE, Weighting
from tests.plans import NO_STATISTIC, SIZE, UNIFORM, cohort, make_plan

GAINS = ("relative", "zscore", "logit")
means = st.floats(-3, 3)


def weighting(gain="relative", temperature=1, decay=Fraction(4, 5), ratio=3):
    return Weighting("fgrpo", gain, Fraction(temperature), decay, Fraction(ratio))


temperatures = st.sampled_from([Fraction(-3), Fraction(-1, 10), Fraction(1, 2), 5])
ratios = st.fractions(1, 1000)


@given(st.floats(allow_nan=False), temperatures, ratios)
def test_no_weight_is_above_one_or_below_the_ratio(value, temperature, ratio):
    terms = weighting(temperature=temperature, ratio=ratio)
    weight = adaptive_weight(terms, value)
    assert isinstance(weight, int)
    assert 0 < weight <= WEIGHT_ONE
    assert weight * ratio >= WEIGHT_ONE * (1 - 1e-12)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), temperatures, ratios)
def test_two_weights_differ_by_no_more_than_the_ratio(one, other, temperature, ratio):
    terms = weighting(temperature=temperature, ratio=ratio)
    weights = sorted(adaptive_weight(terms, value) for value in (one, other))
    # Integers are rounded up, which lifts the smaller one and so lowers the quotient.
    assert weights[1] <= weights[0] * ratio * (1 + Fraction(1, 10**9))


def test_the_ends_of_the_range_are_reached():
    terms = weighting(ratio=3)
    assert adaptive_weight(terms, 100.0) == WEIGHT_ONE
    assert adaptive_weight(terms, -100.0) == math.ceil(WEIGHT_ONE / 3)
    middle = adaptive_weight(terms, 0.0)
    assert middle == math.ceil(WEIGHT_ONE / math.sqrt(3))


def test_inside_its_range_a_weight_is_the_exponential_of_the_gain():
    terms = weighting(temperature=Fraction(1, 2), ratio=1000)
    quotient = adaptive_weight(terms, 0.3) / adaptive_weight(terms, 0.1)
    assert quotient == pytest.approx(math.exp(0.2 / 0.5), rel=1e-3)


@given(means, means)
def test_a_positive_temperature_favours_the_larger_gain(one, other):
    low, high = sorted((one, other))
    terms = weighting()
    assert adaptive_weight(terms, low) <= adaptive_weight(terms, high)


@given(means, means)
def test_a_negative_temperature_favours_those_who_fall_behind(one, other):
    low, high = sorted((one, other))
    terms = weighting(temperature=-1)
    assert adaptive_weight(terms, low) >= adaptive_weight(terms, high)


def test_a_ratio_of_one_makes_all_weights_equal():
    terms = weighting(ratio=1)
    assert {adaptive_weight(terms, value) for value in (-5.0, 0.0, 5.0)} == {WEIGHT_ONE}


@pytest.mark.parametrize("mode", GAINS)
@pytest.mark.parametrize("mean", [-1.0, 0.0, 0.7, 5.0])
def test_the_first_round_is_neutral(mode, mean):
    assert gain(weighting(mode), Baseline(), mean) == 0.0


@pytest.mark.parametrize("mode", GAINS)
def test_better_than_ones_past_is_a_gain_and_worse_a_loss(mode):
    before = Baseline(0.1, 0.04)
    assert gain(weighting(mode), before, 0.1) == 0.0
    assert gain(weighting(mode), before, 0.4) > 0.0
    assert gain(weighting(mode), before, -0.4) < 0.0


def test_by_size_a_unit_counts_alike_however_often_its_client_draws():
    plan = make_plan(
        clients=tuple(
            replace(client, sampling_rate=Fraction(1, part))
            for client, part in zip(cohort(40, 80, 20), (1, 4, 8), strict=True)
        ),
        weighting=SIZE,
        **NO_STATISTIC,
        min_survivors=2,
    )
    parts = [
        fixed_weight(plan, c.name) * plan.expected_batch(c.name) for c in plan.clients
    ]
    assert [part / sum(parts) for part in parts] == [
        Fraction(c.units, 140) for c in plan.clients
    ]


def test_the_relative_gain_is_over_the_baseline_on_the_scale_from_0_to_1():
    # -0.6 stands for a mean reward of 0.2, and -0.4 for one of 0.3.
    assert gain(weighting(), Baseline(-0.6), -0.4) == pytest.approx(0.5)


@given(st.floats(-1.2, -0.9), means)
def test_a_baseline_near_the_worst_reward_does_not_blow_a_gain_up(mean, now):
    assert abs(gain(weighting(), Baseline(mean), now)) <= 2.5 / 0.05


@given(means, means)
def test_the_logit_gain_is_finite_whatever_the_noise(mean, now):
    assert math.isfinite(gain(weighting("logit"), Baseline(mean), now))


def run(terms, values, noise_std):
    """The gains of a history, each against the baseline before it."""
    baseline, gains = Baseline(), []
    for value in values:
        gains.append(gain(terms, baseline, value))
        baseline = updated(terms, baseline, value, noise_std)
    return gains


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=8),
    st.floats(0.1, 50),
    st.floats(-10, 10),
)
def test_the_zscore_gain_knows_neither_scale_nor_shift_of_rewards(values, scale, shift):
    terms = weighting("zscore")
    one = run(terms, values, 0.2)
    other = run(terms, [scale * value + shift for value in values], scale * 0.2)
    assert other == pytest.approx(one, rel=1e-5, abs=1e-5)


def test_the_relative_gain_knows_no_scale_above_its_floor():
    one = gain(weighting(), Baseline(2 * 0.2 - 1), 2 * 0.3 - 1)
    other = gain(weighting(), Baseline(2 * 0.4 - 1), 2 * 0.6 - 1)
    assert one == pytest.approx(other)


def test_a_surprise_below_the_known_noise_is_not_believed():
    baseline = updated(weighting("zscore"), Baseline(), 0.0, 0.5)
    assert baseline == Baseline(0.0, 0.25)
    baseline = updated(weighting("zscore"), baseline, 0.01, 0.5)
    assert baseline.variance == pytest.approx(0.25)


def test_the_baseline_is_an_exponential_moving_average():
    terms = weighting(decay=Fraction(3, 4))
    baseline = updated(terms, Baseline(0.4, 0.0), 0.8, 0.0)
    assert baseline.mean == pytest.approx(0.75 * 0.4 + 0.25 * 0.8)
    assert baseline.variance == pytest.approx(0.25 * 0.4**2)


def test_a_decay_of_0_remembers_the_last_round_alone():
    terms = weighting(decay=Fraction(0))
    assert updated(terms, Baseline(0.4, 1.0), 0.8, 0.0).mean == 0.8


SIZES = cohort(50, 100, 200, names=("a", "b", "c"))


def fixed(rule):
    plan = make_plan(clients=SIZES, weighting=rule, min_survivors=2, **NO_STATISTIC)
    return {client.name: fixed_weight(plan, client.name) for client in plan.clients}


def test_by_size_every_unit_counts_alike():
    assert set(fixed(SIZE).values()) == {WEIGHT_ONE}


def test_uniform_makes_every_clients_expected_batch_count_alike():
    weights = fixed(UNIFORM)
    assert max(weights.values()) == WEIGHT_ONE
    counted = {client.name: weights[client.name] * client.units for client in SIZES}
    assert set(counted.values()) == {WEIGHT_ONE * 50}


def plans_of(rule, *clients):
    return [
        make_plan(clients=own, weighting=rule, min_survivors=2, **NO_STATISTIC)
        for own in clients
    ]


def test_between_cohorts_uniform_scales_down_to_the_smallest_of_all():
    other = cohort(25, 75, 100, names=("d", "e", "f"))
    plans = plans_of(UNIFORM, SIZES, other)
    factors = [cohort_factor(plan, plans) for plan in plans]
    assert factors == [WEIGHT_ONE // 2, WEIGHT_ONE]
    # A client's weight times its cohort's factor times its units: the same for all.
    counted = {
        Fraction(fixed_weight(plan, c.name) * factor * c.units, WEIGHT_ONE**2)
        for plan, factor in zip(plans, factors, strict=True)
        for c in plan.clients
    }
    assert max(counted) - min(counted) < Fraction(1, 100)
    assert max(counted) == 25


def test_between_cohorts_size_lets_every_unit_count_alike():
    rarely = tuple(
        replace(client, sampling_rate=Fraction(1, 40))
        for client in cohort(50, 50, 50, names=("d", "e", "f"))
    )
    plans = plans_of(SIZE, SIZES, rarely)
    assert [cohort_factor(plan, plans) for plan in plans] == [
        WEIGHT_ONE // 4,
        WEIGHT_ONE,
    ]


def test_weights_by_gain_are_each_clients_own_in_all_cohorts():
    plans = [make_plan(clients=SIZES, min_survivors=2), make_plan()]
    assert [cohort_factor(plan, plans) for plan in plans] == [WEIGHT_ONE, WEIGHT_ONE]


def test_uniform_never_gives_a_weight_of_0():
    sizes = cohort(1, 10**6, 10**6, names=("a", "b", "c"))
    changes = {"sampling_rate": Fraction(1, 10**4), "delta": "0.00000001"}
    plan = make_plan(
        clients=sizes, weighting=UNIFORM, min_survivors=2, **NO_STATISTIC, **changes
    )
    assert fixed_weight(plan, "b") == 1
