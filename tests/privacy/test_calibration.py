"""From a target to integers that meet it."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import calibration
from privacy.accountant import epsilon_pld
from privacy.calibration import (
    STATISTIC_NORM_BOUND,
    _statistic_variance,
    calibrate,
)
from privacy.errors import RefusalError
from privacy.events import draw_event

PLAN = {
    "epsilon": 8,
    "delta": Fraction(1, 10**5),
    "sampling_rate": Fraction(1, 10),
    "rounds": 30,
    "norm_bound": 2**15,
    "statistic_multiplier": Fraction(5),
}


def claim_of(found, plan, variance=None):
    event = draw_event(
        sampling_rate=plan["sampling_rate"],
        variance=found.total_variance if variance is None else variance,
        norm_bound=plan["norm_bound"],
        statistic_variance=found.statistic_variance,
        statistic_norm_bound=found.statistic_norm_bound,
        inner_steps=plan.get("inner_steps", 1),
    )
    return epsilon_pld(event, plan["rounds"], plan["delta"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"statistic_multiplier": None},
        {"inner_steps": 3},
        {"epsilon": 1, "sampling_rate": Fraction(1, 100), "rounds": 300},
        {"epsilon": Fraction(1, 2), "statistic_multiplier": Fraction(40)},
        {"epsilon": 3, "sampling_rate": Fraction(1), "rounds": 5},
        {"delta": Fraction(1, 10**9)},
    ],
)
def test_the_integers_meet_the_target_and_hardly_less_noise_would(changes):
    plan = PLAN | changes
    found = calibrate(**plan)
    assert found.epsilon_pld == claim_of(found, plan)
    assert found.epsilon_pld <= plan["epsilon"]
    assert found.epsilon_pld == pytest.approx(float(plan["epsilon"]), rel=1e-5)
    assert (
        claim_of(found, plan, found.total_variance * 9999 // 10_000) > plan["epsilon"]
    )
    assert found.epsilon_pld <= found.epsilon_rdp


def test_halving_the_noise_would_miss_the_target_by_far():
    found = calibrate(**PLAN)
    assert claim_of(found, PLAN, found.total_variance // 2) > 1.5 * PLAN["epsilon"]


def test_one_gaussian_release_gets_the_analytic_noise():
    """Balle and Wang, ICML 2018: sigma = 3.73063 at epsilon 1 and delta 1e-5."""
    found = calibrate(
        epsilon=1,
        delta=1e-5,
        sampling_rate=Fraction(1),
        rounds=1,
        norm_bound=2**20,
        statistic_multiplier=None,
    )
    assert found.noise_multiplier == pytest.approx(3.73063, rel=2e-6)
    assert math.sqrt(found.total_variance) / 2**20 == pytest.approx(3.73063, rel=2e-6)
    assert found.statistic_multiplier is None
    assert found.statistic_variance == found.statistic_norm_bound == 0
    assert found.combined_multiplier == found.noise_multiplier


def test_a_coarse_grid_gets_the_least_integer_that_meets_the_target():
    plan = PLAN | {"norm_bound": 5}
    found = calibrate(**plan)
    assert found.epsilon_pld <= 8
    assert claim_of(found, plan, found.total_variance - 1) > 8


def test_a_statistic_makes_the_gradients_pay():
    with_one = calibrate(**PLAN)
    without = calibrate(**PLAN | {"statistic_multiplier": None})
    assert with_one.total_variance > without.total_variance
    assert with_one.combined_multiplier == pytest.approx(
        without.noise_multiplier, rel=1e-5
    )
    assert with_one.statistic_multiplier == pytest.approx(5)


def test_inner_steps_need_that_many_times_the_variance():
    one = calibrate(**PLAN | {"statistic_multiplier": None})
    four = calibrate(**PLAN | {"statistic_multiplier": None, "inner_steps": 4})
    assert four.total_variance == pytest.approx(4 * one.total_variance, rel=1e-5)


@given(st.fractions(min_value=Fraction(1, 1000), max_value=10_000))
def test_the_statistics_transferred_multiplier_is_no_less_than_asked_for(multiplier):
    variance = _statistic_variance(multiplier)
    assert Fraction(variance - 4, STATISTIC_NORM_BOUND**2) >= multiplier**2
    assert Fraction(variance - 5, STATISTIC_NORM_BOUND**2) < multiplier**2


def test_a_tighter_target_needs_more_noise():
    variances = [
        calibrate(**PLAN | {"epsilon": epsilon}).total_variance
        for epsilon in (16, 8, 4, 2)
    ]
    assert variances == sorted(variances)


def test_the_integers_do_not_depend_on_the_last_bits_of_floats(monkeypatch):
    """All parties must find one plan, on machines whose arithmetic differs a little."""
    found = calibrate(**PLAN)
    exact = calibration.epsilon_pld
    for shift in (1e-12, -1e-12):
        monkeypatch.setattr(
            calibration,
            "epsilon_pld",
            lambda *given, shift=shift: exact(*given) * (1 + shift),
        )
        assert calibrate(**PLAN).total_variance == found.total_variance
    assert found.total_variance.bit_length() > 20
    assert found.total_variance % 2 ** (found.total_variance.bit_length() - 20) == 0


def test_a_variance_that_misses_by_a_rounding_is_nudged(monkeypatch):
    found = calibrate(**PLAN)
    exact = calibration._least_multiplier
    monkeypatch.setattr(
        calibration, "_least_multiplier", lambda *given: exact(*given) * (1 - 3e-6)
    )
    nudged = calibrate(**PLAN)
    assert nudged.epsilon_pld <= 8
    assert nudged.total_variance <= found.total_variance
    monkeypatch.setattr(calibration, "_MAX_STEPS", 2)
    monkeypatch.setattr(calibration, "_least_multiplier", lambda *_: 0.5)
    with pytest.raises(RefusalError, match="ask for a larger one"):
        calibrate(**PLAN)


def test_a_search_that_is_cut_short_ends_on_the_safe_side(monkeypatch):
    monkeypatch.setattr(calibration, "_MAX_STEPS", 1)
    assert calibrate(**PLAN).epsilon_pld <= 8


def test_a_renyi_figure_below_the_claim_is_not_believed(monkeypatch):
    monkeypatch.setattr(calibration, "_renyi_multiplier", lambda *_: math.log(0.5))
    with pytest.raises(RefusalError, match="ask for a larger one"):
        calibrate(**PLAN)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"statistic_multiplier": Fraction(1, 2)}, "raise statistic_multiplier"),
        ({"statistic_multiplier": Fraction(0)}, "not positive"),
        ({"statistic_multiplier": Fraction(10**6)}, "lower its multiplier"),
        ({"epsilon": 0}, "target epsilon"),
        ({"epsilon": -1}, "target epsilon"),
        ({"epsilon": math.nan}, "target epsilon"),
        ({"epsilon": math.inf}, "target epsilon"),
        ({"epsilon": 1e-4}, "ask for a larger one"),
        ({"norm_bound": 2**27, "statistic_multiplier": None}, "lower the scale"),
        ({"rounds": 0}, "round"),
        ({"inner_steps": 0}, "inner step"),
        ({"delta": 0}, "delta"),
        ({"delta": 1e-15}, "larger delta"),
        ({"sampling_rate": Fraction(0)}, "sampling rate"),
        ({"norm_bound": 0}, "norm bound"),
    ],
)
def test_a_target_that_cannot_be_met_says_what_to_change(changes, advice):
    with pytest.raises(RefusalError, match=advice):
        calibrate(**PLAN | changes)


def test_a_target_that_needs_hardly_any_noise_still_gets_some():
    found = calibrate(**PLAN | {"epsilon": 10**7, "statistic_multiplier": None})
    assert found.total_variance > 4
    assert found.epsilon_pld <= 10**7


def test_more_rounds_than_can_be_priced_are_refused_with_the_reason():
    for rounds in (10**7, 2**31 - 1):
        with pytest.raises(RefusalError, match="register fewer rounds"):
            calibrate(**PLAN | {"rounds": rounds})
