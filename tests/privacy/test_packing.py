"""Words without gaps, against one large integer that holds all of their bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import packing
from privacy.errors import MalformedMessageError
from privacy.packing import (
    check_packed,
    pack,
    pack_in_place,
    packed_bytes,
    unpack,
    within_modulus,
)

every_modulus = pytest.mark.parametrize("bits", range(1, 33))


@st.composite
def packable(draw):
    bits = draw(st.integers(1, 32))
    words = draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    return bits, np.array(words, dtype=np.uint32)


def oracle(words, bits):
    """The bytes, from an integer whose lowest bits are the first word."""
    total = sum(int(word) << (place * bits) for place, word in enumerate(words))
    return total.to_bytes((len(words) * bits + 7) // 8, "little")


def some_words(bits, length):
    words = np.arange(length, dtype=np.uint64) * np.uint64(2_654_435_761) + 12_345
    return (words % 2**bits).astype(np.uint32)


@settings(deadline=None)
@given(packable())
def test_words_are_packed_as_the_oracle_says_and_read_back(case):
    bits, words = case
    packed = pack(words, bits)
    assert packed == oracle(words, bits)
    assert len(packed) == packed_bytes(len(words), bits)
    read = unpack(packed, len(words), bits)
    assert read.dtype == np.uint32
    assert np.array_equal(read, words)


@every_modulus
def test_long_vectors_meet_the_oracle_across_chunks(bits, monkeypatch):
    monkeypatch.setattr(packing, "_CHUNK_WORDS", 16)
    words = some_words(bits, 16 * 5 + 3)
    packed = pack(words, bits)
    assert packed == oracle(words, bits)
    assert np.array_equal(unpack(packed, len(words), bits), words)


@every_modulus
def test_words_that_may_be_overwritten_give_the_same_bytes(bits, monkeypatch):
    monkeypatch.setattr(packing, "_CHUNK_WORDS", 16)
    for length in (0, 1, 7, 83):
        words = some_words(bits, length)
        assert pack_in_place(words.copy(), bits) == oracle(words, bits)


@every_modulus
def test_packing_leaves_the_callers_vector_alone(bits):
    words = some_words(bits, 20)
    before = words.copy()
    pack(words, bits)
    assert np.array_equal(words, before)


def test_the_documented_bytes_of_24_and_20_bits():
    words = np.array([0xABCDE, 0x12345, 0xFEDCB], dtype=np.uint32)
    assert pack(words, 24).hex() == "debc0a452301cbed0f"
    assert pack(words, 20).hex() == "debc5a3412cbed0f"
    assert pack(words, 32) == words.astype("<u4").tobytes()


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 30), st.integers(1, 32))
def test_bytes_that_are_read_are_those_that_are_written(data, length, bits):
    try:
        words = unpack(data, length, bits)
    except MalformedMessageError:
        return
    assert pack(words, bits) == data
    assert within_modulus(words, bits)


@pytest.mark.parametrize("bits", [32, 24, 20, 17])
@pytest.mark.parametrize("change", [-1, 1, -3, 100])
def test_another_number_of_bytes_is_refused(bits, change):
    size = packed_bytes(11, bits) + change
    with pytest.raises(MalformedMessageError, match="not 11 words"):
        unpack(bytes(size), 11, bits)


@every_modulus
def test_bits_after_the_last_word_are_refused(bits):
    packed = bytearray(pack(some_words(bits, 11), bits))
    unused = 8 * len(packed) - 11 * bits
    for place in range(unused):
        altered = bytearray(packed)
        altered[-1] |= 0x80 >> place
        with pytest.raises(MalformedMessageError, match="not zero"):
            check_packed(bytes(altered), 11, bits)
        with pytest.raises(MalformedMessageError, match="not zero"):
            unpack(bytes(altered), 11, bits)


def test_a_word_that_does_not_fit_is_not_cut():
    with pytest.raises(ValueError, match="more than 20 bits"):
        pack(np.array([2**20], dtype=np.uint32), 20)


def test_words_are_held_against_the_modulus():
    word = np.array([2**20 - 1], dtype=np.uint32)
    assert within_modulus(word, 20)
    assert not within_modulus(word, 19)
    assert within_modulus(np.zeros(0, dtype=np.uint32), 1)
    assert within_modulus(np.array([2**32 - 1], dtype=np.uint32), 32)


@pytest.mark.parametrize("bits", [0, 33])
def test_a_modulus_that_a_word_does_not_hold_is_refused(bits):
    with pytest.raises(ValueError, match="modulus_bits"):
        packed_bytes(1, bits)
