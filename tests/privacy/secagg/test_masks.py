from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import crypto
from privacy.crypto import AgreementKey
from privacy.errors import MalformedMessageError
from privacy.secagg import masks
from privacy.secagg.masks import MaskContext, apply_masks
from tests.privacy.secagg import oracle
from tests.privacy.secagg.harness import Counter

CONTEXT = MaskContext(*(bytes([k]) * 32 for k in range(1, 5)))
LEFT, RIGHT = AgreementKey(b"l" * 32), AgreementKey(b"r" * 32)
ENDS = [("left", LEFT.public), ("right", RIGHT.public)]
PARTS = (
    CONTEXT.roster_hash,
    CONTEXT.sharers_hash,
    CONTEXT.adapter_digest,
    CONTEXT.plan_digest,
)

keys = st.binary(min_size=32, max_size=32)


def test_both_ends_derive_one_pairwise_key():
    left = CONTEXT.pairwise_key(LEFT, *ENDS)
    assert left == CONTEXT.pairwise_key(RIGHT, *reversed(ENDS))


def test_mask_keys_meet_the_oracle():
    expected = oracle.pairwise_key(LEFT.seed, ENDS, RIGHT.public, PARTS)
    assert CONTEXT.pairwise_key(LEFT, *ENDS) == expected
    expected = oracle.self_key(b"b" * 32, "left", PARTS)
    assert CONTEXT.self_key(b"b" * 32, "left") == expected


@pytest.mark.parametrize(
    "part", ["roster_hash", "sharers_hash", "adapter_digest", "plan_digest"]
)
def test_clients_that_were_shown_different_things_share_no_mask(part):
    other = replace(CONTEXT, **{part: b"\xee" * 32})
    assert other.pairwise_key(LEFT, *ENDS) != CONTEXT.pairwise_key(LEFT, *ENDS)
    assert other.self_key(b"b" * 32, "left") != CONTEXT.self_key(b"b" * 32, "left")


def test_mask_keys_are_bound_to_names_and_public_keys():
    usual = CONTEXT.pairwise_key(LEFT, *ENDS)
    renamed = CONTEXT.pairwise_key(LEFT, ENDS[0], ("other", RIGHT.public))
    assert renamed != usual
    assert CONTEXT.self_key(b"b" * 32, "a") != CONTEXT.self_key(b"b" * 32, "b")


def test_a_low_order_peer_gives_no_mask_key():
    with pytest.raises(MalformedMessageError, match="low order"):
        CONTEXT.pairwise_key(LEFT, ENDS[0], ("right", bytes(32)))


@settings(deadline=None)
@given(
    length=st.integers(0, 40),
    bits=st.integers(1, 32),
    added=st.lists(keys, max_size=3),
    subtracted=st.lists(keys, max_size=3),
    chunk=st.integers(1, 16),
)
def test_masks_meet_the_oracle(length, bits, added, subtracted, chunk):
    start = np.frombuffer(Counter("start")(4 * length), dtype="<u4").astype(np.uint32)
    start &= np.uint32(2**bits - 1)
    expected = [int(word) for word in start]
    for sign, group in ((1, added), (-1, subtracted)):
        for key in group:
            mask = oracle.words(key, length)
            expected = [a + sign * b for a, b in zip(expected, mask, strict=True)]
    residues = start.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "CHUNK_WORDS", chunk)
        apply_masks(residues, added=added, subtracted=subtracted, modulus_bits=bits)
    assert residues.tolist() == [word % 2**bits for word in expected]
    assert residues.dtype == np.uint32


@pytest.mark.parametrize(
    "length",
    [1, masks.CHUNK_WORDS - 1, masks.CHUNK_WORDS, masks.CHUNK_WORDS + 1, 100_000],
)
def test_long_vectors_meet_the_oracle_across_chunks(length):
    residues = np.zeros(length, dtype=np.uint32)
    apply_masks(residues, added=[b"a" * 32], subtracted=[], modulus_bits=32)
    assert residues.tolist() == oracle.words(b"a" * 32, length)


def test_what_was_added_and_subtracted_is_gone():
    residues = np.arange(70_000, dtype=np.uint32)
    pair = [b"a" * 32, b"b" * 32]
    apply_masks(residues, added=pair, subtracted=[], modulus_bits=32)
    assert not np.array_equal(residues, np.arange(70_000))
    apply_masks(residues, added=[], subtracted=pair, modulus_bits=32)
    assert np.array_equal(residues, np.arange(70_000))


@pytest.mark.parametrize("chunk", [100, 2000])
@pytest.mark.parametrize("length", [1, 15, 64, 1000, 4097])
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_words_do_not_depend_on_the_number_of_threads(
    monkeypatch, length, threads, chunk
):
    monkeypatch.setattr(crypto, "_LONG_READ_BYTES", 4096)
    monkeypatch.setattr(masks, "CHUNK_WORDS", chunk)
    whole = np.arange(length, dtype=np.uint32)
    parted = whole.copy()
    pair = {"added": [b"a" * 32, b"b" * 32], "subtracted": [b"c" * 32]}
    monkeypatch.setattr(masks, "MAX_THREADS", 1)
    apply_masks(whole, **pair, modulus_bits=20)
    monkeypatch.setattr(masks, "MAX_THREADS", threads)
    monkeypatch.setattr(masks, "THREAD_WORDS", 1)
    monkeypatch.setattr(masks, "_STRETCH_CHUNKS", 2)
    assert masks._threads(length, 3) > 1
    apply_masks(parted, **pair, modulus_bits=20)
    assert parted.tolist() == whole.tolist()


def test_a_vector_that_begins_within_a_cache_line_meets_the_oracle():
    room, expected = np.zeros(50_100, np.uint32), oracle.words(b"a" * 32, 50_001)
    for offset in range(20):
        residues = room[offset : offset + 50_001]
        residues[:] = 0
        apply_masks(residues, added=[b"a" * 32], subtracted=[], modulus_bits=32)
        assert np.array_equal(residues, expected)


def test_an_error_in_a_thread_is_raised(monkeypatch):
    def failing(group, length):
        raise MemoryError(length)

    monkeypatch.setattr(masks, "THREAD_WORDS", 1)
    monkeypatch.setattr(masks._Masks, "sum", failing)
    pair = {"added": [b"a" * 32], "subtracted": [b"b" * 32]}
    with pytest.raises(MemoryError):
        apply_masks(np.zeros(100, np.uint32), **pair, modulus_bits=32)
