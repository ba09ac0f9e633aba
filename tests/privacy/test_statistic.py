"""The noised mean reward: exact sensitivity, and noise of the registered size."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import norm

from privacy.codec import encode
from privacy.events import draw_event
from privacy.randomness import RandomStream
from privacy.statistic import _to_grid, noised_mean

FALSE_ALARM = 1e-6
BOUND = 2**12


def stream(number=0):
    return RandomStream(lambda count: number.to_bytes(count, "big"))


def mean(values, *, variance=1, expected_batch=Fraction(10), number=0):
    return noised_mean(
        values,
        norm_bound=BOUND,
        variance=variance,
        expected_batch=expected_batch,
        stream=stream(number),
    )


any_value = st.one_of(st.none(), st.floats(), st.sampled_from([1, -1, 0, True]))


@given(any_value, st.integers(1, 2**40))
def test_one_unit_moves_the_sum_by_at_most_the_norm_bound(value, norm_bound):
    step = _to_grid(value, norm_bound)
    assert isinstance(step, int)
    assert abs(step) <= norm_bound


@given(st.lists(any_value, max_size=8), any_value)
def test_a_unit_more_moves_the_release_by_its_own_value_alone(values, value):
    """The same noise key on both sides leaves the difference of the true sums."""
    before, after = mean(values), mean([*values, value])
    steps = round((after - before) * BOUND * 10)
    assert steps == _to_grid(value, BOUND)
    assert abs(steps) <= BOUND


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_value_counts_as_zero_and_does_not_raise(missing):
    assert mean([0.5, missing]) == mean([0.5]) == mean([0.5, 0.0])


def test_values_outside_the_range_are_clipped():
    assert mean([7.0, -math.inf, math.inf]) == mean([1.0, -1.0, 1.0])


def test_rounding_is_to_nearest_even():
    assert [_to_grid(k / 8, 4) for k in (1, 3, -1, -3)] == [0, 2, 0, -2]


def test_the_divisor_is_the_public_batch_whatever_was_drawn():
    few = mean([1.0] * 5, expected_batch=Fraction(7, 2))
    many = mean([1.0] * 50, expected_batch=Fraction(7, 2))
    assert few == pytest.approx(5 / 3.5, abs=1e-3)
    assert many == pytest.approx(50 / 3.5, abs=1e-3)


def test_an_empty_draw_still_carries_noise():
    releases = {mean([], variance=2**30, number=number) for number in range(5)}
    assert len(releases) == 5


def variance_rejects(releases, variance):
    """Whether the spread of releases of an empty draw is not `variance`."""
    steps = np.array(releases) * BOUND * 10
    ratio = np.mean(steps**2) / variance
    return abs(ratio - 1) * math.sqrt(steps.size / 2) > norm.isf(FALSE_ALARM / 2)


def test_the_noise_has_the_registered_variance():
    variance = (5 * BOUND) ** 2
    releases = [mean([], variance=variance, number=k) for k in range(2000)]
    assert not variance_rejects(releases, variance)
    halved = [mean([], variance=variance // 2, number=k) for k in range(2000)]
    assert variance_rejects(halved, variance)


@pytest.mark.parametrize(
    ("norm_bound", "batch", "variance"), [(0, 1, 1), (1, 0, 1), (1, -1, 1), (1, 1, 0)]
)
def test_arguments_out_of_range_are_bugs(norm_bound, batch, variance):
    with pytest.raises(ValueError, match=r"positive|variance"):
        noised_mean(
            [1.0],
            norm_bound=norm_bound,
            variance=variance,
            expected_batch=Fraction(batch),
            stream=stream(),
        )


def precision_used(gradient, value, *, weight, norm_bound, variances):
    """Squared shift over variance, of one unit's vector and statistic together.

    Exact; each variance is less by the 4 of the transfer to continuous noise.
    """
    vector = encode(gradient, scale=Fraction(1), norm_bound=norm_bound, weight=weight)
    squares = sum(int(entry) ** 2 for entry in vector), _to_grid(value, BOUND) ** 2
    return sum(
        Fraction(square, variance - 4)
        for square, variance in zip(squares, variances, strict=True)
    )


@settings(max_examples=150, deadline=None)
@given(
    arrays.arrays(np.float64, st.integers(1, 20), elements=st.floats()),
    any_value,
    st.integers(1, 2**16),
    st.integers(1, 2**20),
    st.tuples(st.integers(5, 2**52), st.integers(5, 2**52)),
)
def test_gradient_and_statistic_of_one_unit_stay_within_the_one_event_of_the_draw(
    gradient, value, weight, norm_bound, variances
):
    """The two releases are two parts of one vector, whose bound the event prices."""
    # Less noise than a millionth of the bound is priced by nobody, and refused.
    assume(variances[0] * 10**10 >= norm_bound**2)
    event = draw_event(
        sampling_rate=Fraction(1, 10),
        variance=variances[0],
        norm_bound=norm_bound,
        statistic_variance=variances[1],
        statistic_norm_bound=BOUND,
    )
    used = precision_used(
        gradient, value, weight=weight, norm_bound=norm_bound, variances=variances
    )
    # The multiplier is a double; ten roundings at most are between it and its integers.
    assert used <= Fraction(event.noise_multiplier) ** -2 * (1 + Fraction(10, 2**52))


def test_an_event_without_the_statistic_would_be_exceeded():
    """By a unit that uses both bounds in full; with it, the event is met exactly."""
    variances = (2**20, 25 * BOUND**2 + 4)
    used = precision_used(
        np.array([2.0**10]), 1.0, weight=2**16, norm_bound=2**10, variances=variances
    )
    gradients = {"sampling_rate": Fraction(1, 10), "variance": 2**20}
    alone = draw_event(norm_bound=2**10, **gradients)
    whole = draw_event(
        norm_bound=2**10,
        statistic_variance=variances[1],
        statistic_norm_bound=BOUND,
        **gradients,
    )
    assert used > alone.noise_multiplier**-2 * 1.03
    assert float(used) == pytest.approx(whole.noise_multiplier**-2, rel=1e-14)
