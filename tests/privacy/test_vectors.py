import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.vectors import NoisedVector, from_residues, squared_norm, to_residues


@st.composite
def vectors_that_fit(draw):
    bits = draw(st.integers(1, 32))
    half = 2 ** (bits - 1)
    words = draw(st.lists(st.integers(-half, half - 1), max_size=20))
    return bits, np.array(words, dtype=np.int64)


@settings(deadline=None)
@given(vectors_that_fit())
def test_residues_lift_back_to_the_vector(case):
    bits, vector = case
    residues = to_residues(vector, bits)
    assert residues.dtype == np.uint32
    assert all(int(word) < 2**bits for word in residues)
    assert np.array_equal(from_residues(residues, bits), vector)


@pytest.mark.parametrize("bits", [1, 20, 32])
def test_what_follows_a_vector_is_reduced_alike(bits):
    vector, more = np.array([5, -7, 2**40 + 3]), (-1, 2**62, 9)
    whole = to_residues(np.array([*vector, *more]), bits)
    assert to_residues(vector, bits, *more).tolist() == whole.tolist()
    assert to_residues(vector, bits).tolist() == whole[:3].tolist()


@settings(deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=8))
def test_residues_are_the_integers_modulo_the_modulus(words):
    residues = to_residues(np.array(words, dtype=np.int64), 20)
    assert residues.tolist() == [word % 2**20 for word in words]


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_a_modulus_that_a_word_does_not_hold_is_refused(bits):
    with pytest.raises(ValueError, match="modulus_bits"):
        to_residues(np.zeros(1, dtype=np.int64), bits)
    with pytest.raises(ValueError, match="modulus_bits"):
        from_residues(np.zeros(1, dtype=np.uint32), bits)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**28), 2**28), max_size=60))
def test_the_squared_norm_is_exact(words):
    exact = sum(word * word for word in words)
    assert squared_norm(np.array(words, dtype=np.int64)) == exact


def test_no_repr_shows_an_unmasked_vector():
    words = np.array([12345678, 87654321], dtype=np.uint32)
    vector = NoisedVector(words, modulus_bits=32, plan_digest="aa", round_number=3)
    for shown in (repr(vector), str(vector), f"{[vector]}"):
        assert "round_number=3" in shown
        assert "12345678" not in shown
        assert "87654321" not in shown
