"""The accountant against published and independently computed figures."""

import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp

from privacy import accountant
from privacy.accountant import (
    epsilon_pld,
    epsilons_by_round,
    price,
    price_events,
)
from privacy.errors import RefusalError, UnsupportedEventError
from privacy.events import (
    Event,
    combined_multiplier,
    draw_event,
    transferred_multiplier,
)
from privacy.renyi import (
    ORDERS,
    epsilon_at_order,
    epsilon_rdp,
    filter_order,
    rdp_curve,
)

rates = st.fractions(min_value=Fraction(1, 1000), max_value=1)
multipliers = st.floats(0.3, 50)


def event(rate="1/100", multiplier=1.0, inner_steps=1):
    return Event(Fraction(rate), multiplier, inner_steps)


def exact_gaussian_epsilon(multiplier, delta):
    """Of one Gaussian release, from its closed form (Balle and Wang, ICML 2018)."""
    with mp.workdps(50):
        z, target = mp.mpf(multiplier), mp.mpf(delta)
        low, high = mp.mpf(0), mp.mpf(1000)
        for _ in range(150):
            middle = (low + high) / 2
            found = mp.ncdf(1 / (2 * z) - middle * z) - mp.exp(middle) * mp.ncdf(
                -1 / (2 * z) - middle * z
            )
            low, high = (middle, high) if found > target else (low, middle)
        return float(high)


@pytest.mark.parametrize(
    ("one", "rounds", "delta", "pld", "rdp"),
    [
        (event("1/100", 1.0), 1000, 1e-5, 1.82824, 2.10775),
        (event("256/60000", 1.1), 14063, 1e-5, 2.38169, 2.59708),
        (event("1/50", 1.0), 300, 1e-5, 2.19829, 2.59222),
        (event("1/10", 2.0), 200, 1e-6, 3.80588, 4.13967),
        (event("32/1000", 0.8), 100, 1e-5, 3.87180, 4.64173),
    ],
)
def test_known_prices(one, rounds, delta, pld, rdp):
    found = price(
        sampling_rate=one.sampling_rate,
        noise_multiplier=one.noise_multiplier,
        rounds=rounds,
        inner_steps=1,
        delta=delta,
    )
    # The grid is allowed an excess near 1e-5, and no figure below the truth.
    assert -5e-6 <= found.epsilon_pld - pld <= 1.5e-5
    assert found.epsilon_rdp == pytest.approx(rdp, abs=5e-6)


def test_the_known_price_of_unsampled_releases():
    assert epsilon_pld(event("1", 10.0), 50, 1e-5) == pytest.approx(2.943225, abs=1e-5)


def test_the_noise_of_one_gaussian_release_is_the_least_that_suffices():
    """Balle and Wang, ICML 2018: sigma for epsilon 1 at delta 1e-5."""
    assert exact_gaussian_epsilon(3.73063, 1e-5) == pytest.approx(1, abs=2e-6)
    assert epsilon_pld(event("1", 3.73063), 1, 1e-5) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("factor", "least"),
    # A weight that can be 2, and a clip of each of 8 completions instead of the unit.
    [(2, 14), (8, 544)],
)
def test_noise_that_is_calibrated_for_a_smaller_sensitivity_costs_far_more(
    factor, least
):
    claimed = epsilon_pld(event("1/50", 1.0), 300, 1e-5)
    real = epsilon_pld(event("1/50", 1.0 / factor), 300, 1e-5)
    assert claimed == pytest.approx(2.2, abs=0.01)
    assert least <= real < 1.03 * least


def test_the_central_limit_would_understate_the_price():
    """Dong, Roth and Su, 2022, section 5: mu = q * sqrt(T * (exp(1 / z**2) - 1))."""
    for rate, multiplier, rounds in [("1/100", 1.0, 1000), ("32/1000", 0.8, 100)]:
        mu = float(Fraction(rate)) * math.sqrt(rounds * math.expm1(multiplier**-2))
        claim = epsilon_pld(event(rate, multiplier), rounds, 1e-5)
        assert exact_gaussian_epsilon(1 / mu, 1e-5) < 0.95 * claim


def test_the_renyi_curve_has_its_exact_values():
    curve = rdp_curve(event())
    for order, value in [
        (2, 1.71813422e-4),
        (8, 8.93643907606e-4),
        (16, 3.08785078370),
        (32, 11.2462759371),
    ]:
        assert curve[order - 2] == pytest.approx(value, rel=1e-9)


def test_without_sampling_the_renyi_curve_is_that_of_the_gaussian():
    assert np.allclose(rdp_curve(event("1", 3.0)), ORDERS / 18, rtol=1e-14, atol=0)


@pytest.mark.parametrize("order", [2, 5, 40, 256])
@pytest.mark.parametrize(("rate", "multiplier"), [("1/1000", 50.0), ("1/3", 0.4)])
def test_the_renyi_curve_keeps_its_precision(order, rate, multiplier):
    with mp.workdps(60):
        q, z = mp.mpf(Fraction(rate).numerator) / Fraction(rate).denominator, multiplier
        total = mp.fsum(
            mp.binomial(order, k)
            * (1 - q) ** (order - k)
            * q**k
            * mp.exp(mp.mpf(k * k - k) / (2 * mp.mpf(z) ** 2))
            for k in range(order + 1)
        )
        expected = float(mp.log(total) / (order - 1))
    found = rdp_curve(event(rate, multiplier))[order - 2]
    assert found == pytest.approx(expected, rel=1e-12)


def test_abadi_and_others_moments_accountant_is_reproduced():
    """Their conversion, with their orders (CCS 2016, section 3.2)."""
    curve = 10_000 * rdp_curve(event("1/100", 4.0))
    epsilon = min(
        curve[order - 2] + math.log(1e5) / (order - 1) for order in range(2, 33)
    )
    assert epsilon == pytest.approx(1.25857, abs=5e-6)


@pytest.mark.parametrize(
    ("rate", "multiplier", "rounds", "delta", "expected"),
    [
        ("150/60000", 1.3, 6000, 1e-5, 0.7242234026),
        ("1/1000", 1.0, 30_000, 1e-7, 1.4154988495),
    ],
)
def test_published_renyi_figures_are_reproduced(
    rate, multiplier, rounds, delta, expected
):
    """Those of TensorFlow Privacy's tests of `compute_dp_sgd_privacy`."""
    found = epsilon_rdp(event(rate, multiplier), rounds, delta)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("rate", "multiplier", "rounds", "inner_steps", "expected"),
    [
        ("1/100", 1.0, 1000, 2, 4.4808),
        ("1/100", 1.0, 1000, 4, 13.3608),
        ("1/100", 1.0, 1000, 8, 41.400),
        ("1/50", 2.0, 300, 2, 1.15692),
        ("1/50", 2.0, 300, 4, 2.1983),
        ("1/10", 4.0, 100, 4, 2.3374),
    ],
)
def test_inner_steps_on_one_draw_are_one_event(
    rate, multiplier, rounds, inner_steps, expected
):
    one = event(rate, multiplier, inner_steps)
    found = epsilon_pld(one, rounds, 1e-5)
    assert found == pytest.approx(expected, rel=5e-5)
    as_draws_of_their_own = epsilon_pld(
        event(rate, multiplier), rounds * inner_steps, 1e-5
    )
    assert found > as_draws_of_their_own


@pytest.mark.parametrize(
    ("multiplier", "rounds", "delta"),
    [
        (1.0, 1, 1e-5),
        (1.0, 1, 1e-12),
        (10.0, 50, 1e-3),
        (30.0, 1000, 1e-8),
        (100.0, 14_000, 1e-5),
        (100.0, 14_000, 1e-9),
        (100.0, 14_000, 1e-10),
    ],
)
def test_the_claim_is_never_below_the_exact_price_of_gaussian_releases(
    multiplier, rounds, delta
):
    """Composition by Fourier transform alone is, for small deltas and long runs."""
    exact = exact_gaussian_epsilon(multiplier / math.sqrt(rounds), delta)
    claim = epsilon_pld(event("1", multiplier), rounds, delta)
    assert exact <= claim <= exact * 1.006 + 1e-5


def test_uncharged_fourier_errors_would_fall_below_the_exact_price(monkeypatch):
    monkeypatch.setattr(accountant, "_DELTA_SLACK_PER_ROUND", 0.0)
    accountant._composed_epsilon.cache_clear()
    found = epsilon_pld(event("1", 100.0), 14_000, 1e-10)
    accountant._composed_epsilon.cache_clear()
    assert found < exact_gaussian_epsilon(100 / math.sqrt(14_000), 1e-10) - 1e-4


def test_the_neighbours_differ_by_one_unit_present_or_absent():
    """The price of replacing a unit is another, larger number: 2.84, not 1.83."""
    assert epsilon_pld(event(), 1000, 1e-5) < 1.83
    replaced = accountant.pld.from_gaussian_mechanism(
        1.0,
        sampling_prob=0.01,
        value_discretization_interval=1e-3,
        neighboring_relation=accountant.pld.NeighborRel.REPLACE_ONE,
    )
    epsilon = replaced.self_compose(1000).get_epsilon_for_delta(1e-5)
    assert epsilon == pytest.approx(2.84, abs=0.01)


@settings(max_examples=60, deadline=None)
@given(rates, multipliers, st.integers(1, 3000))
def test_the_renyi_price_rises_with_rate_rounds_and_falls_with_noise(
    rate, multiplier, rounds
):
    found = epsilon_rdp(Event(rate, multiplier), rounds, 1e-5)
    more_often = Event(min(Fraction(1), rate * 2), multiplier)
    assert found <= epsilon_rdp(more_often, rounds, 1e-5)
    assert found < epsilon_rdp(Event(rate, multiplier), rounds + 1, 1e-5)
    assert found > epsilon_rdp(Event(rate, multiplier * 1.1), rounds, 1e-5)
    assert found > epsilon_rdp(Event(rate, multiplier), rounds, 2e-5)


@settings(max_examples=15, deadline=None)
@given(rates, st.floats(0.7, 20), st.integers(1, 500))
def test_the_claim_rises_with_rate_rounds_and_falls_with_noise(
    rate, multiplier, rounds
):
    found = epsilon_pld(Event(rate, multiplier), rounds, 1e-5)
    slack = 5e-5
    more_often = Event(min(Fraction(1), rate * 2), multiplier)
    assert found <= epsilon_pld(more_often, rounds, 1e-5) + slack
    assert found <= epsilon_pld(Event(rate, multiplier), 2 * rounds, 1e-5) + slack
    assert found + slack >= epsilon_pld(Event(rate, multiplier * 1.1), rounds, 1e-5)
    assert found <= epsilon_rdp(Event(rate, multiplier), rounds, 1e-5)


# What the grid of a run may add to its figure, and the resolution of a double.
GRID_EXCESS = 1e-5 + 1e-12


def test_the_claim_is_monotone_on_a_grid_up_to_the_excess_of_the_grids():
    figures = np.array(
        [
            [
                [epsilon_pld(event(rate, z), rounds, 1e-6) for rounds in (1, 20, 400)]
                for z in (8.0, 1.0, 0.8)
            ]
            for rate in ("1/1000", "1/100", "1/10")
        ]
    )
    assert np.all(figures > 0)
    for axis in range(3):
        assert np.all(np.diff(figures, axis=axis) >= -GRID_EXCESS)
    # The longest run costs clearly more by rate and by noise.
    for axis in (0, 1):
        assert np.all(np.diff(figures[:, :, -1], axis=axis) > 1e-3)


def test_the_claim_falls_as_delta_rises():
    figures = [
        epsilon_pld(event("1/10", 1.0), 30, delta)
        for delta in (1e-10, 1e-8, 1e-6, 2e-6, 1e-3, 0.1)
    ]
    assert all(np.diff(figures) < 0)


@settings(max_examples=25, deadline=None)
@given(
    rates,
    st.floats(0.7, 20),
    st.integers(1, 200),
    st.fractions(min_value=1, max_value=3),
    st.floats(1, 1.5),
    st.integers(0, 50),
)
def test_a_rate_a_noise_or_a_length_a_little_dearer_never_costs_less(
    rate, multiplier, rounds, oftener, quieter, more
):
    """On one grid all three steps are monotone but for what the grid may add."""
    registered = rounds + more
    dearer = Event(min(Fraction(1), rate * oftener), multiplier / quieter)
    first = epsilon_pld(
        Event(rate, multiplier), rounds, 1e-5, registered_rounds=registered
    )
    last = epsilon_pld(dearer, registered, 1e-5, registered_rounds=registered)
    assert first <= last + GRID_EXCESS


def test_the_rounds_of_a_run_rise_to_the_figure_of_the_whole():
    one = event("1/10", 1.0)
    figures = epsilons_by_round(one, 30, 1e-5)
    assert len(figures) == 30
    assert all(np.diff(figures) > 0)
    assert figures[-1] == epsilon_pld(one, 30, 1e-5)
    assert figures[9] == pytest.approx(epsilon_pld(one, 10, 1e-5), abs=2e-5)


def test_no_rounds_cost_nothing():
    assert epsilon_pld(event(), 0, 1e-5) == 0
    assert epsilon_rdp(event(), 0, 1e-5) == 0
    assert price_events([], 1e-5) == accountant.Price(0, 0)


def test_a_coarser_grid_is_still_an_upper_bound(monkeypatch):
    fine = epsilon_pld(event(), 300, 1e-5)
    monkeypatch.setattr(accountant, "_GRID_EXCESS", 1e-2)
    monkeypatch.setattr(accountant, "_COARSEST", 1e-2)
    assert fine < epsilon_pld(event(), 300, 1e-5) < fine * 1.02


def test_replaying_equal_events_gives_the_figures_of_the_run():
    replayed = price_events([event("1/10", 2.0)] * 40, 1e-5)
    assert replayed.epsilon_pld == epsilon_pld(event("1/10", 2.0), 40, 1e-5)
    assert replayed.epsilon_rdp == epsilon_rdp(event("1/10", 2.0), 40, 1e-5)


def test_replaying_unequal_events_does_not_depend_on_their_order():
    one, other = event("1/10", 2.0), event("1/20", 1.0)
    events = [one, other, other, one, one]
    replayed = price_events(events, 1e-5)
    assert replayed == price_events(events[::-1], 1e-5)
    dearer = price_events([one, one, one, other, other, other], 1e-5)
    assert replayed.epsilon_pld < dearer.epsilon_pld
    assert replayed.epsilon_rdp < dearer.epsilon_rdp
    assert replayed.epsilon_pld > epsilon_pld(one, 3, 1e-5)
    assert replayed.epsilon_pld < replayed.epsilon_rdp


# Dear enough that the grid itself depends on what all of them cost together.
DEAR = [
    (event("1/2", 0.3), 30),
    (event("1/3", 0.4), 50),
    (event("1/5", 0.5), 41),
    (event("1/3", 0.31), 70),
]


def test_a_replay_gives_the_same_digits_whatever_the_order():
    """Sums of floats depend on their order, so the accountant must not."""
    found = {
        (figures.epsilon_pld.hex(), figures.epsilon_rdp.hex())
        for order in permutations(DEAR)
        for figures in [price_events(dict(order), 1e-5)]
    }
    assert len(found) == 1


REPLAY = """
import json, sys
from fractions import Fraction
from privacy.accountant import price_events
from privacy.events import Event
stored = json.load(sys.stdin)
found = price_events([Event(Fraction(q), z, mu) for q, z, mu in stored], 1e-5)
print(found.epsilon_pld.hex(), found.epsilon_rdp.hex())
"""


def test_a_replay_in_another_process_gives_the_same_digits():
    """Nothing but the stored list takes part: no cache, no object, no hash seed."""
    events = [event("1/10", 2.0)] * 5 + [event("1/7", 1.3, 2)] * 4
    events += [event("1/20", 1.0)] * 6
    here = price_events(events, 1e-5)
    stored = [(str(e.sampling_rate), e.noise_multiplier, e.inner_steps) for e in events]
    shuffled = stored[::2] + stored[1::2]
    there = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "ignore", "-c", REPLAY],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": "4711"},
        input=json.dumps(shuffled),
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.split() == [here.epsilon_pld.hex(), here.epsilon_rdp.hex()]


def test_unsampled_events_compose_as_gaussians_do():
    """3 releases at z=10 and 2 at z=5 are one of precision 3/100 + 2/25."""
    events = [event("1", 10.0)] * 3 + [event("1", 5.0)] * 2
    exact = exact_gaussian_epsilon((3 / 100 + 2 / 25) ** -0.5, 1e-5)
    assert exact <= price_events(events, 1e-5).epsilon_pld <= exact + 2e-5


def test_discrete_noise_is_accounted_for_as_continuous_noise_of_variance_less_four():
    assert transferred_multiplier(104, 5) == pytest.approx(2.0)
    assert transferred_multiplier(2**30, 2**15) < 1.0
    for variance in (4, 1, 0, -5):
        with pytest.raises(UnsupportedEventError, match="too small"):
            transferred_multiplier(variance, 1)
    with pytest.raises(UnsupportedEventError, match="norm bound"):
        transferred_multiplier(100, 0)


@given(multipliers, multipliers)
def test_two_releases_on_one_draw_add_their_precisions(first, second):
    combined = combined_multiplier(first, second)
    assert combined < min(first, second)
    assert combined == pytest.approx((first**-2 + second**-2) ** -0.5)


def test_a_statistic_of_multiplier_five_costs_two_percent_at_multiplier_one():
    combined = combined_multiplier(1.0, 5.0)
    assert 1 - combined == pytest.approx(0.0194, abs=1e-4)


def test_the_event_of_a_draw_holds_gradients_statistic_and_inner_steps():
    plain = draw_event(sampling_rate=Fraction(1, 10), variance=10_004, norm_bound=50)
    assert plain == Event(Fraction(1, 10), 2.0)
    full = draw_event(
        sampling_rate=Fraction(1, 10),
        variance=10_004,
        norm_bound=50,
        statistic_variance=90_004,
        statistic_norm_bound=100,
        inner_steps=3,
    )
    assert full.inner_steps == 1
    assert full.noise_multiplier**-2 == pytest.approx(3 / 4 + 1 / 9)


@pytest.mark.parametrize("half", [(100, 0), (0, 100)])
def test_half_a_statistic_has_no_price(half):
    with pytest.raises(UnsupportedEventError):
        draw_event(
            sampling_rate=Fraction(1, 10),
            variance=10_004,
            norm_bound=50,
            statistic_variance=half[0],
            statistic_norm_bound=half[1],
        )


@pytest.mark.parametrize("rate", [Fraction(0), Fraction(-1), Fraction(101, 100)])
def test_a_rate_out_of_range_has_no_price(rate):
    with pytest.raises(UnsupportedEventError, match="sampling rate"):
        Event(rate, 1.0)


def test_a_rate_that_is_a_float_is_a_bug():
    with pytest.raises(TypeError, match="rational"):
        Event(0.1, 1.0)


@pytest.mark.parametrize("multiplier", [0.0, -1.0, math.nan, math.inf])
def test_a_multiplier_that_is_not_positive_and_finite_has_no_price(multiplier):
    with pytest.raises(UnsupportedEventError, match="noise multiplier"):
        Event(Fraction(1, 10), multiplier)


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 1.5, math.nan])
def test_a_delta_out_of_range_has_no_price(delta):
    for figure in (epsilon_pld, epsilon_rdp):
        with pytest.raises(UnsupportedEventError, match="delta"):
            figure(event(), 10, delta)
    with pytest.raises(UnsupportedEventError, match="delta"):
        price_events([], delta)


def test_rounds_and_inner_steps_that_are_not_positive_have_no_price():
    with pytest.raises(UnsupportedEventError, match="inner step"):
        event(inner_steps=0)
    with pytest.raises(UnsupportedEventError, match="round"):
        epsilon_pld(event(), -1, 1e-5)
    with pytest.raises(UnsupportedEventError, match="round"):
        price(
            sampling_rate=Fraction(1, 10),
            noise_multiplier=1.0,
            rounds=0,
            inner_steps=1,
            delta=1e-5,
        )


def test_a_delta_that_the_arithmetic_cannot_resolve_is_refused_not_called_infinite():
    with pytest.raises(UnsupportedEventError, match=r"Renyi bound [\d.]+\)"):
        epsilon_pld(event(), 10, 1e-15)
    assert math.isfinite(epsilon_rdp(event(), 10, 1e-15))


@pytest.mark.parametrize("delta", [1e-11, 1e-12, 1e-13, 1e-15, 1e-30, 1e-300])
def test_a_tiny_delta_has_a_finite_claim_or_none_and_always_a_renyi_figure(delta):
    renyi = epsilon_rdp(event(), 1000, delta)
    assert epsilon_rdp(event(), 1000, 1e-10) < renyi < math.inf
    if delta >= 1e-11:
        assert 3 < epsilon_pld(event(), 1000, delta) < renyi
    else:
        with pytest.raises(UnsupportedEventError, match="does not resolve"):
            epsilon_pld(event(), 1000, delta)


@pytest.mark.parametrize("multiplier", [0.3, 0.01])
def test_a_huge_epsilon_is_a_finite_number_below_the_renyi_figure(multiplier):
    """Another accountant calls the first of these infinite, after minutes."""
    one = event("1/2", multiplier)
    figures = [epsilon_pld(one, rounds, 1e-5) for rounds in (10, 30, 1000)]
    renyi = [epsilon_rdp(one, rounds, 1e-5) for rounds in (10, 30, 1000)]
    assert 70 < figures[0] < figures[1] < figures[2]
    assert all(np.array(figures) < renyi)
    assert math.isfinite(renyi[-1])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["1", "1/2", "1/1000", "1/1000000000000"]),
    st.one_of(st.floats(1e-320, 1e308), st.floats(1e-4, 100)),
    st.integers(1, 10**6),
    st.sampled_from([1e-300, 1e-12, 1e-5, 0.5]),
)
def test_no_event_however_extreme_is_called_free_for_being_infinite(
    rate, multiplier, rounds, delta
):
    """It has figures, or it is refused for a stated reason."""
    try:
        one = event(rate, multiplier)
        figures = [
            epsilon_rdp(one, rounds, delta),
            epsilon_at_order([(one, rounds)], 8, delta),
        ]
    except UnsupportedEventError:
        return
    for figure in figures:
        assert 0 <= figure < math.inf
        # Only where a unit is hardly ever drawn can so little noise cost little.
        if multiplier < 0.01 and rate != "1/1000000000000":
            assert figure > 100


@pytest.mark.parametrize("multiplier", [1e-200, 1e-160, 1e-100, 1e-10, 1e160, 1e300])
def test_a_multiplier_beyond_all_arithmetic_is_refused(multiplier):
    with pytest.raises(UnsupportedEventError, match="noise multiplier"):
        event("1/2", multiplier)


@pytest.mark.parametrize(("multiplier", "rounds"), [(1e-3, 1000), (0.01, 10**6)])
def test_events_too_dear_for_any_grid_have_no_claim(multiplier, rounds):
    one = event("1/2", multiplier)
    assert 1e8 < epsilon_rdp(one, rounds, 1e-5) < math.inf
    with pytest.raises(UnsupportedEventError, match="Renyi bound"):
        epsilon_pld(one, rounds, 1e-5)


@pytest.mark.parametrize("rounds", [10**6 + 1, 10**9, 2**53])
def test_more_draws_than_can_be_composed_are_refused_at_once(rounds):
    one = event("1/100", 50.0)
    with pytest.raises(UnsupportedEventError, match="more than 1000000 draws"):
        epsilon_pld(one, rounds, 1e-5)
    with pytest.raises(UnsupportedEventError, match="more than 1000000 draws"):
        price_events({one: rounds}, 1e-5)
    with pytest.raises(UnsupportedEventError, match="more than 1000000 draws"):
        epsilon_pld(one, 1, 1e-5, registered_rounds=rounds)
    assert math.isfinite(epsilon_rdp(one, rounds, 1e-5))


def test_events_may_be_listed_or_counted():
    one, other = event("1/10", 2.0), event("1/20", 1.0)
    listed = price_events([one, other, one], 1e-5)
    assert price_events({one: 2, other: 1}, 1e-5) == listed


@pytest.mark.parametrize("figure", [math.inf, math.nan, 1e3])
def test_a_claim_above_the_renyi_figure_is_refused(monkeypatch, figure):
    monkeypatch.setattr(accountant, "_composed_epsilon", lambda *_: figure)
    with pytest.raises(RefusalError, match="does not resolve"):
        epsilon_pld(event(), 10, 1e-5)


def test_hardly_any_noise_costs_a_large_number_and_not_zero():
    """Figures this large need a coarser grid to be computed at all."""
    found = epsilon_pld(event("1/2", 0.05), 1000, 1e-5)
    assert 1e4 < found < epsilon_rdp(event("1/2", 0.05), 1000, 1e-5)


def best_order(one, rounds, delta):
    """The order at which this many draws cost least."""
    return min(
        ORDERS, key=lambda order: epsilon_at_order([(one, rounds)], order, delta)
    )


def test_the_filter_allows_the_registered_rounds_and_not_one_more():
    one, rounds = event("1/10", 1.0), 30
    order = best_order(one, rounds, 1e-5)
    budget = epsilon_rdp(one, rounds, 1e-5)
    for charged in (1, 2, rounds):
        assert epsilon_at_order([(one, charged)], order, 1e-5) <= budget
    assert epsilon_at_order([(one, rounds + 1)], order, 1e-5) > budget
    dearer = [(one, rounds - 1), (event("1/5", 1.0), 1)]
    assert epsilon_at_order(dearer, order, 1e-5) > budget


def test_the_filter_allows_more_rounds_of_more_noise():
    registered, quieter = event("1/10", 1.0), event("1/10", 1.5)
    order = best_order(registered, 30, 1e-5)
    budget = epsilon_rdp(registered, 30, 1e-5)
    assert epsilon_at_order([(quieter, 31)], order, 1e-5) <= budget


def test_what_the_filter_counts_is_above_the_renyi_figure_and_equal_at_its_order():
    counts = [(event("1/10", 1.0), 30)]
    figures = [epsilon_at_order(counts, order, 1e-5) for order in ORDERS]
    assert min(figures) == epsilon_rdp(event("1/10", 1.0), 30, 1e-5)
    assert epsilon_at_order([], 8, 1e-5) == 0
    assert epsilon_at_order([(event(), 0)], 8, 1e-5) == 0


@settings(max_examples=40, deadline=None)
@given(rates, multipliers, st.floats(0.05, 20), st.sampled_from([1e-5, 1e-8]))
def test_the_registered_order_admits_as_many_rounds_as_any(
    rate, multiplier, cap, delta
):
    one = Event(rate, multiplier)
    order = filter_order(one, cap, delta)
    curve = rdp_curve(one)

    def admitted(at):
        conversion = math.log1p(-1 / at) - math.log(delta * at) / (at - 1)
        return (cap - conversion) / curve[at - 2]

    assert admitted(order) >= max(map(admitted, ORDERS)) * (1 - 2e-5) - 1e-12


@pytest.mark.parametrize("order", [1, 0, 257, 2.5])
def test_the_filter_takes_only_integer_orders(order):
    with pytest.raises(UnsupportedEventError, match="integer orders"):
        epsilon_at_order([(event(), 1)], order, 1e-5)


def test_a_filter_check_after_ten_thousand_rounds_takes_milliseconds():
    """Rounds are counted, not listed, and the curve of an event is made once."""
    counts = [(event("1/100", 1.0 + place / 100), 100) for place in range(100)]
    epsilon_at_order(counts, 8, 1e-5)
    before = rdp_curve.cache_info().misses
    assert epsilon_at_order(counts, 8, 1e-5) <= 500.0
    assert rdp_curve.cache_info().misses == before
