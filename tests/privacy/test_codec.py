"""No input escapes the norm bound; what is within it is only rounded."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from privacy import codec
from privacy.codec import (
    check_dimension,
    decode,
    encode,
    weight_coordinate,
    weighted,
)
from privacy.errors import RefusalError
from privacy.randomness import RandomStream
from privacy.sampling import uniforms
from privacy.vectors import squared_norm

WHOLE = 2**16

any_float = st.one_of(
    st.floats(width=64),
    st.floats(width=32),
    st.sampled_from(
        [0.0, -0.0, 5e-324, 1e-310, 1e38, -3.4e38, 1.7e308, math.inf, -math.inf]
    ),
    st.sampled_from([math.nan, 0.5, 1.5, 2.5, -0.5, 2.0**31, 2.0**32, 2.0**63]),
)
any_gradient = arrays.arrays(
    np.float64, st.integers(1, 40), elements=any_float, fill=any_float
)
any_weight = st.one_of(
    st.integers(1, WHOLE), st.sampled_from([1, 2, WHOLE // 2, WHOLE - 1, WHOLE])
)
any_bound = st.one_of(st.integers(1, 20), st.integers(1, 2**28))
any_scale = st.fractions(min_value=Fraction(1, 10**9), max_value=10**12)


def plain(gradient, *, scale=Fraction(1), norm_bound=2**15, weight=WHOLE):
    return encode(
        np.asarray(gradient), scale=scale, norm_bound=norm_bound, weight=weight
    )


def gaussian_like(count, number=0):
    """A fixed vector with normal-looking entries, from a keystream."""
    first = uniforms(bytes([number]) * 32, count)
    second = uniforms(bytes([number + 1]) * 32, count)
    return np.sqrt(-2 * np.log(1 - first)) * np.cos(2 * np.pi * second)


@settings(max_examples=600, deadline=None)
@given(any_gradient, any_scale, any_bound, any_weight)
def test_no_input_escapes_the_norm_bound(gradient, scale, norm_bound, weight):
    assume(gradient.size * norm_bound**2 < 2**62)
    vector = encode(gradient, scale=scale, norm_bound=norm_bound, weight=weight)
    bound = (norm_bound * weight) >> 16
    assert vector.dtype == np.int64
    assert vector.shape == gradient.shape
    # Python integers: the test itself cannot wrap.
    assert sum(int(entry) ** 2 for entry in vector) <= bound**2


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)),
    any_weight,
)
def test_no_float32_input_escapes_the_norm_bound(gradient, weight):
    vector = plain(gradient, weight=weight)
    assert squared_norm(vector) <= ((2**15 * weight) >> 16) ** 2


def within(vector, norm_bound, weight):
    """Whether the norm bound holds, in Python's integers, which cannot wrap."""
    bound = (norm_bound * weight) >> 16
    return sum(int(entry) ** 2 for entry in vector) <= bound**2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("weight", [1, 2, 40_000, WHOLE])
@pytest.mark.parametrize("norm_bound", [1, 2, 100, 2**15, 2**28])
def test_the_extremes_of_every_float_type_stay_within_the_bound(
    dtype, weight, norm_bound
):
    limits = np.finfo(dtype)
    numbers = [limits.max, limits.min, limits.tiny, limits.smallest_subnormal, -0.0]
    for number in numbers:
        for spike in (*numbers, dtype(1), dtype(np.nan), dtype(np.inf)):
            gradient = np.full(9, number, dtype)
            gradient[4] = spike
            with np.errstate(over="ignore"):
                vector = plain(gradient, norm_bound=norm_bound, weight=weight)
            assert vector.dtype == np.int64
            assert within(vector, norm_bound, weight)
            if not np.isfinite(spike):
                assert not vector.any()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.lists(st.integers(-(2**10), 2**10), min_size=1, max_size=60),
    st.integers(-1, 1),
    st.integers(1, 3000),
    st.sampled_from([1, 2**8, 2**15, WHOLE]),
)
def test_coordinates_at_a_rounding_edge_stay_within_the_bound(
    dtype, halves, side, norm_bound, weight
):
    """Every coordinate is half a step from two integers, or the next number to it."""
    # The codec multiplies by the weight, a power of two, which is exact.
    edges = (np.array(halves) + 0.5) * (WHOLE // weight)
    with np.errstate(over="ignore"):
        gradient = edges.astype(dtype)
        if side:
            gradient = np.nextafter(gradient, dtype(side * math.inf))
    assert within(
        plain(gradient, norm_bound=norm_bound, weight=weight), norm_bound, weight
    )


@pytest.mark.parametrize("size", [1, 2, 100, 9999])
def test_edges_that_all_round_up_are_shrunk_below_a_bound_that_they_would_pass(size):
    """Of about norm D before rounding; then each coordinate gains half a step."""
    norm_bound = math.isqrt(math.ceil(1.5**2 * size))
    gradient = np.full(size, 1.5)
    assert squared_norm(np.rint(gradient).astype(np.int64)) > norm_bound**2
    assert within(plain(gradient, norm_bound=norm_bound), norm_bound, WHOLE)


@settings(max_examples=300, deadline=None)
@given(any_float, any_scale, any_bound, any_weight)
def test_one_number_is_rounded_and_cut_off_at_the_bound(
    number, scale, norm_bound, weight
):
    found = encode(
        np.array([number]), scale=scale, norm_bound=norm_bound, weight=weight
    )
    bound = (norm_bound * weight) >> 16
    if not math.isfinite(number):
        assert found.tolist() == [0]
        return
    exact = Fraction(number) * scale * Fraction(weight, WHOLE)
    # Floating point may err near a tie, and within a step of the bound it may shrink.
    nearest = max(-bound, min(bound, exact))
    assert abs(found[0]) <= bound
    assert abs(int(found[0]) - nearest) <= Fraction(1, 2) + abs(nearest) / 2**20


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(
        np.float64,
        st.integers(1, 40),
        elements=st.one_of(
            st.floats(-300, 300), st.sampled_from([0.5, 1.5, -2.5, 5e-324, -0.0])
        ),
    ),
    st.integers(2**12, 2**15),
    any_weight,
)
def test_what_is_within_the_bound_is_rounded_and_nothing_else(
    gradient, norm_bound, weight
):
    wanted = np.rint(gradient * (weight / WHOLE)).astype(np.int64)
    assume(within(wanted, norm_bound, weight))
    vector = plain(gradient, norm_bound=norm_bound, weight=weight)
    assert np.array_equal(vector, wanted)


def test_the_float_clip_alone_would_escape_it():
    """The property above can fail: this is the code that it must not be."""
    escaped = 0
    for number in range(20):
        gradient = gaussian_like(1000, 2 * number)
        clipped = gradient * (100 / np.linalg.norm(gradient))
        escaped += squared_norm(np.rint(clipped).astype(np.int64)) > 100**2
        assert squared_norm(plain(gradient * 1e3, norm_bound=100)) <= 100**2
    assert escaped > 10


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_entry_that_is_not_finite_makes_the_vector_zero(bad):
    gradient = np.ones(7)
    gradient[3] = bad
    assert not plain(gradient).any()


@pytest.mark.parametrize("place", [0, 3, 9])
def test_a_long_vector_is_judged_as_a_whole(monkeypatch, place):
    """It is worked on in pieces; what one holds, or how large it is, counts for all."""
    monkeypatch.setattr(codec, "_PIECE", 4)
    gradient = gaussian_like(10, 0)
    for norm_bound in (1, 3, 1000):
        expected = plain(gradient * 100, norm_bound=norm_bound)
        with monkeypatch.context() as whole:
            whole.setattr(codec, "_PIECE", 10)
            found = plain(gradient * 100, norm_bound=norm_bound)
        assert found.tolist() == expected.tolist()
    gradient[place] = 1e9
    vector = plain(gradient, norm_bound=1000)
    assert vector[place] == np.abs(vector).max() == 1000
    assert np.count_nonzero(vector) == 1
    gradient[place] = math.nan
    assert not plain(gradient).any()


def test_a_square_that_would_wrap_is_clipped_first():
    """In int64, (2**32)**2 is 0, which would pass a check made after the cast."""
    assert plain([2.0**32]).tolist() == [2**15]
    assert plain([-(2.0**32)]).tolist() == [-(2**15)]
    assert plain([1e308, -1e308]).tolist() == [23170, -23170]


def test_a_rounding_that_fails_cannot_wrap_the_check(monkeypatch):
    """Each square here is a multiple of 2**64, which int64 takes for 0."""
    monkeypatch.setattr(np, "rint", lambda values: np.full_like(values, 2.0**32))
    assert plain([1.0, 2.0]).tolist() == [0, 0]


def test_a_gradient_within_the_bound_is_rounded_to_nearest_even():
    gradient = np.array([0.5, 1.5, -2.5, 3.25, -0.0])
    assert plain(gradient).tolist() == [0, 2, -2, 3, 0]


def test_the_scale_is_in_grid_steps_for_one_gradient_unit():
    vector = plain([0.25, -1.0], scale=Fraction(2**15))
    assert vector.tolist() != [2**13, -(2**15)]  # Its norm is above the bound.
    assert plain([0.25, -0.5], scale=Fraction(2**15)).tolist() == [2**13, -(2**14)]


@given(st.integers(1, WHOLE))
def test_the_weight_scales_vector_and_bound_alike(weight):
    bound = (2**15 * weight) >> 16
    assert plain([1e6], weight=weight).tolist() == [bound]
    small = plain([1000.0], weight=weight)
    assert small.tolist() == [round(1000 * weight / 2**16)]


def test_the_least_weight_of_a_small_bound_leaves_nothing():
    assert plain([1e9, 1.0], weight=1).tolist() == [0, 0]


def test_a_bound_of_one_step_in_one_dimension_keeps_the_sign():
    assert plain([-7.0], norm_bound=1).tolist() == [-1]


def test_many_equal_entries_that_cannot_be_rounded_within_the_bound_become_zero():
    assert not plain(np.ones(100) * 10, norm_bound=5).any()


@settings(deadline=None)
@given(st.floats(0.0, 1e30), st.integers(0, 100))
def test_clipping_keeps_direction_and_norm(length, number):
    gradient = gaussian_like(200, number)
    gradient *= length / np.linalg.norm(gradient)
    vector = plain(gradient)
    expected = min(length, 2.0**15)
    # Each coordinate is off by half a step, and each shrink by a millionth.
    assert np.linalg.norm(vector) == pytest.approx(expected, rel=1e-5, abs=8)
    if length > 1e4:
        cosine = vector @ gradient / np.linalg.norm(vector) / length
        assert cosine > 0.9999


@pytest.mark.parametrize(
    ("norm_bound", "lost"), [(1000, 0.0426), (10_000, 4.2e-4), (2**15, 4.0e-5)]
)
def test_a_million_parameters_lose_to_rounding_what_is_documented(norm_bound, lost):
    gradient = gaussian_like(10**6)
    gradient *= norm_bound / np.linalg.norm(gradient)
    vector = plain(gradient, norm_bound=norm_bound)
    assert squared_norm(vector) <= norm_bound**2
    projection = vector @ gradient / norm_bound**2
    assert 1 - projection == pytest.approx(lost, rel=0.05)


def test_a_vector_that_rounding_keeps_above_the_bound_is_given_up():
    """Its norm is 90, but each entry rounds to 1, for as long as it is tried."""
    assert not plain(np.full(10_001, 0.9), norm_bound=100).any()
    assert plain(np.full(10_000, 0.9), norm_bound=100).all()


def test_what_a_unit_contributes_is_a_function_of_its_own_gradient():
    gradients = [gaussian_like(50, number) * 1e4 for number in range(4)]
    alone = [plain(gradient) for gradient in gradients]
    gradients[0][:] = math.nan
    again = [plain(gradient) for gradient in reversed(gradients)][::-1]
    assert not again[0].any()
    assert all(np.array_equal(*pair) for pair in zip(alone[1:], again[1:], strict=True))


def test_encoding_does_not_change_the_gradient():
    gradient = gaussian_like(10) * 1e9
    before = gradient.copy()
    plain(gradient)
    assert np.array_equal(gradient, before)


def test_dimension_and_bound_must_fit_exact_sums():
    check_dimension(4, 2**30 - 1)
    with pytest.raises(RefusalError, match="lower the scale"):
        check_dimension(4, 2**30)
    with pytest.raises(RefusalError, match="lower the scale"):
        plain([1.0], norm_bound=2**31)
    for wrong in [(0, 1), (1, 0), (1, -5)]:
        with pytest.raises(RefusalError, match="1 or more"):
            check_dimension(*wrong)


@pytest.mark.parametrize("weight", [0, -1, WHOLE + 1, 2 * WHOLE])
def test_a_weight_above_one_or_not_positive_is_a_bug(weight):
    with pytest.raises(ValueError, match="weight"):
        plain([1.0], weight=weight)
    with pytest.raises(ValueError, match="weight"):
        weight_coordinate(weight, WHOLE)
    with pytest.raises(ValueError, match="weight"):
        weight_coordinate(WHOLE, weight)


def test_a_matrix_or_a_scale_of_zero_is_a_bug():
    with pytest.raises(ValueError, match="flat"):
        plain(np.ones((2, 2)))
    with pytest.raises(ValueError, match="scale"):
        plain([1.0], scale=Fraction(0))


@given(any_weight, any_weight)
def test_the_weight_coordinate_is_the_rounded_product_and_never_zero(weight, share):
    coordinate = weight_coordinate(weight, share)
    assert 1 <= coordinate <= WHOLE
    assert abs(coordinate - max(Fraction(weight * share, WHOLE), 1)) <= Fraction(1, 2)


@given(any_weight, any_weight, st.integers(0, 16))
def test_the_weight_coordinate_of_few_bits_is_a_coarser_product(weight, share, power):
    steps = 2**power
    coordinate = weight_coordinate(weight, share, steps)
    assert 1 <= coordinate <= steps
    exact = Fraction(weight * share * steps, WHOLE**2)
    assert abs(coordinate - max(exact, 1)) <= Fraction(1, 2)


def test_the_weight_coordinate_of_whole_weights_is_exact():
    assert weight_coordinate(WHOLE, WHOLE) == WHOLE
    assert weight_coordinate(12345, WHOLE) == 12345
    assert weight_coordinate(WHOLE, 777) == 777


@settings(deadline=None)
@given(any_gradient, any_gradient, any_weight, any_weight)
def test_the_extra_coordinate_is_the_same_whatever_the_data_and_the_rest_is_bounded(
    first, second, weight, share
):
    """It adds nothing to what one unit can move: gradients alone have a bound."""
    coordinate = weight_coordinate(weight, share)
    vectors = [
        np.append(plain(gradient, weight=weight), coordinate)
        for gradient in (first, second)
    ]
    assert vectors[0][-1] == vectors[1][-1]
    for vector in vectors:
        moved = vector - np.append(np.zeros(vector.size - 1, np.int64), coordinate)
        assert within(moved, 2**15, weight)


@given(
    st.lists(st.integers(-(2**46) + 1, 2**46 - 1), min_size=1, max_size=20), any_weight
)
def test_a_weight_of_what_is_released_is_exact_to_half_a_step(total, weight):
    product = weighted(np.array(total), weight)
    assert product.dtype == np.int64
    exact = [Fraction(value * weight, WHOLE) for value in total]
    assert product.tolist() == [math.floor(value + Fraction(1, 2)) for value in exact]


def test_the_whole_weight_of_what_is_released_changes_nothing():
    total = np.array([-(2**46) + 1, -1, 0, 1, 2**46 - 1])
    assert np.array_equal(weighted(total, WHOLE), total)
    for wrong in (0, WHOLE + 1):
        with pytest.raises(ValueError, match="weight"):
            weighted(total, wrong)


def test_decoding_undoes_the_scale():
    gradient = gaussian_like(100)
    scale = Fraction(2**15, 10)
    decoded = decode(plain(gradient, scale=scale, norm_bound=2**20), scale)
    assert decoded.dtype == np.float64
    assert np.max(np.abs(decoded - gradient)) <= 0.5 / float(scale) * (1 + 1e-9)


def test_encoding_feeds_exact_integer_sums():
    """The sum over units is the same in any order, bit for bit."""
    stream = RandomStream(bytes)
    order = np.argsort(stream.uint64(50))
    vectors = [plain(gaussian_like(30, number) * 1e5) for number in range(50)]
    forwards = sum(vectors)
    shuffled = sum(vectors[index] for index in order)
    assert np.array_equal(forwards, shuffled)
