"""The rotation: orthogonal, exactly the documented map, and flat."""

import hashlib
import math
import warnings

import numpy as np
import pytest

from privacy.rotation import Rotation, block_size, spread
from tests.plans import Counter
from tests.privacy.secagg import oracle

OFFER = bytes(range(32))
DIMENSIONS = [1, 2, 3, 5, 8, 13, 64, 100, 1000]

every_dimension = pytest.mark.parametrize("dimension", DIMENSIONS)


def columns(dimension, offer=OFFER):
    """The matrix of the rotation, a column for each direction."""
    rotation = Rotation.of_round(offer, dimension)
    return np.stack([rotation.forward(row) for row in np.eye(dimension)], axis=1)


def plain_hadamard(size):
    """Entry (i, j) is the parity of the common bits of i and j, over sqrt(size)."""
    parity = [[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    return np.array(parity) / math.sqrt(size)


def plain_signs(count, key):
    """By the document: bits of the keystream, the lowest of each byte first."""
    stream = b"".join(word.to_bytes(4, "little") for word in oracle.words(key, count))
    return [1 - 2 * ((stream[k // 8] >> (k % 8)) & 1) for k in range(8 * len(stream))]


def vector(dimension, seed=""):
    words = np.frombuffer(Counter(seed)(8 * dimension), dtype="<i8")
    return words / 2.0**63


@every_dimension
def test_the_rotation_is_the_documented_matrix(dimension):
    framed = oracle.prefixed(b"fgrpo-secure/1/rotation") + oracle.prefixed(OFFER)
    key = hashlib.sha256(framed).digest()
    size = block_size(dimension)
    bits = plain_signs(4 * dimension, key)
    expected = np.eye(dimension)
    used = 0
    for start in [0, dimension - size] if size < dimension else [0]:
        block = np.eye(dimension)
        inner = plain_hadamard(size) * bits[used : used + size]
        block[start : start + size, start : start + size] = inner
        expected = block @ expected
        # Each block begins with a byte of its own.
        used += 8 * math.ceil(size / 8)
    assert np.abs(columns(dimension) - expected).max() < 1e-12


@every_dimension
def test_the_rotation_is_orthogonal_and_undone_by_its_inverse(dimension):
    matrix = columns(dimension)
    assert np.abs(matrix.T @ matrix - np.eye(dimension)).max() < 1e-12
    rotation = Rotation.of_round(OFFER, dimension)
    before = vector(dimension)
    after = rotation.forward(before)
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=1e-12)
    assert np.abs(rotation.inverse(after) - before).max() < 1e-12
    assert np.abs(rotation.forward(rotation.inverse(before)) - before).max() < 1e-12


def test_it_leaves_the_callers_vector_alone_and_takes_any_numbers():
    rotation = Rotation.of_round(OFFER, 6)
    whole = np.array([3, -1, 4, 1, -5, 9], dtype=np.int64)
    single = whole.astype(np.float32)
    found = rotation.forward(single)
    assert found.dtype == np.float64
    assert np.array_equal(found, rotation.forward(whole))
    assert single.tolist() == whole.tolist()
    rotation.inverse(whole)
    assert whole.tolist() == [3, -1, 4, 1, -5, 9]


def test_another_round_has_another_rotation_and_the_same_round_the_same():
    before = vector(100)
    one = Rotation.of_round(OFFER, 100).forward(before)
    assert np.array_equal(one, Rotation.of_round(OFFER, 100).forward(before))
    other = Rotation.of_round(bytes(32), 100).forward(before)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e308])
@pytest.mark.parametrize("place", [0, 50, 99])
def test_what_is_not_finite_stays_so_without_a_warning(bad, place):
    before = np.full(100, bad if bad == 1e308 else 1.0)
    before[place] = bad
    with warnings.catch_warnings():
        # It would say in a log that some unit's gradient is broken.
        warnings.simplefilter("error")
        after = Rotation.of_round(OFFER, 100).forward(before)
    assert not np.isfinite(after).all()


@pytest.mark.parametrize("dimension", [4096, 5000, 8191])
def test_every_direction_is_spread(dimension):
    """All of the norm in one place, or alike everywhere: the bound holds for each."""
    bound = spread(dimension, dimension, 1e-6)
    assert bound < 0.15
    one = np.zeros(dimension)
    one[dimension - 1] = 1.0
    first = np.zeros(dimension)
    first[0] = 1.0
    alike = np.full(dimension, dimension**-0.5)
    for number in range(20):
        rotation = Rotation.of_round(number.to_bytes(32, "big"), dimension)
        for before in (one, first, alike):
            assert np.abs(rotation.forward(before)).max() <= bound


@pytest.mark.parametrize("dimension", [2**20, 2**20 + 3, 3 * 2**18])
def test_the_inverse_is_as_exact_as_floats_are_at_a_million_numbers(dimension):
    rotation = Rotation.of_round(OFFER, dimension)
    before = np.rint(vector(dimension) * 2.0**30)
    back = rotation.inverse(rotation.forward(before))
    # Integers of 30 bits come back as themselves once rounded.
    assert np.abs(back - before).max() < 1e-4
    norm = np.linalg.norm(rotation.forward(before)) / np.linalg.norm(before)
    assert norm == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("dimension", [64, 96, 127])
@pytest.mark.parametrize("failure", [0.5, 0.05])
def test_the_spread_fails_no_more_often_than_it_says(dimension, failure):
    """And by a level that is not far above what rotations really reach."""
    bound = spread(dimension, dimension, failure)
    found = []
    for number in range(400):
        rotation = Rotation.of_round(number.to_bytes(32, "big"), dimension)
        before = vector(dimension, f"{number}")
        before /= np.linalg.norm(before)
        found.append(np.abs(rotation.forward(before)).max())
    assert np.mean(np.array(found) > bound) <= failure
    assert bound < 2 * np.quantile(found, 1 - failure)


@pytest.mark.parametrize("shape", [(5,), (7,), (0,), (6, 1), (1, 6), ()])
def test_a_vector_of_another_shape_is_not_rotated_in_part(shape):
    rotation = Rotation.of_round(OFFER, 6)
    for way in (rotation.forward, rotation.inverse):
        with pytest.raises(ValueError, match="6 numbers"):
            way(np.zeros(shape))


def test_without_signs_a_vector_could_be_put_in_one_place():
    """What the signs are for: the transform alone has its own worst case."""
    alike = np.full(4096, 4096**-0.5)
    plain = Rotation(4096, ((0, np.ones(4096, dtype=np.int8)),))
    assert np.abs(plain.forward(alike)).max() == pytest.approx(1.0)


def test_the_bound_is_hoeffdings():
    # 2 exp(-t^2 2^m / 2), times the tries, is the failure.
    bound = spread(1000, 7.0, 1e-9)
    assert 7.0 * 2 * math.exp(-(bound**2) * 512 / 2) == pytest.approx(1e-9)
    assert spread(4, 4.0, 1e-12) == 1.0
