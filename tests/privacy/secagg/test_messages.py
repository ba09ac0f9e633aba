from collections.abc import Mapping
from dataclasses import fields
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.crypto import Label
from privacy.errors import MalformedMessageError
from privacy.secagg import messages
from privacy.secagg.messages import (
    Advert,
    repeated_keys,
    sharers_hash_of,
    survivors_hash_of,
    words_from_bytes,
    words_to_bytes,
)
from privacy.vectors import View
from privacy.wire import decode, encode

# Every dataclass of the module that travels, in an envelope or around one.
KINDS = [
    value
    for name, value in sorted(vars(messages).items())
    if hasattr(value, "LABEL") or name in ("KeyShares", "MaskedInput", "Delivery")
]


def values_of(hint):
    """A strategy for any annotation that the wire format knows."""
    if get_args(hint) and isinstance(get_args(hint)[-1], int):
        return st.binary(min_size=get_args(hint)[1], max_size=get_args(hint)[1])
    if get_origin(hint) is tuple:
        return st.lists(values_of(get_args(hint)[0]), max_size=3).map(tuple)
    if get_origin(hint) is Mapping:
        return st.dictionaries(
            st.text(max_size=5), values_of(get_args(hint)[1]), max_size=3
        )
    plain = {
        int: st.integers(0, 2**64 - 1),
        str: st.text(max_size=9),
        bytes: st.binary(max_size=50),
        View: st.binary(max_size=50),
    }
    return plain[hint] if hint in plain else records(hint)


def records(kind):
    hints = get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{f.name: values_of(hints[f.name]) for f in fields(kind)})


def test_every_message_is_covered():
    assert len(KINDS) == 15
    labels = [kind.LABEL for kind in KINDS if hasattr(kind, "LABEL")]
    assert len(set(labels)) == len(labels) == 12
    assert set(labels) <= set(Label)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_message_is_read_back_and_nothing_else_is_read(kind):
    @settings(deadline=None)
    @given(records(kind), st.data())
    def check(message, data):
        whole = encode(message)
        assert decode(kind, whole) == message
        cut = data.draw(st.integers(0, len(whole) - 1))
        for wrong in (whole[:cut], whole + data.draw(st.binary(min_size=1))):
            with pytest.raises(MalformedMessageError):
                decode(kind, wrong)

    check()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_random_bytes_are_read_only_where_they_are_canonical(kind):
    @settings(deadline=None)
    @given(st.binary(max_size=400))
    def check(data):
        try:
            message = decode(kind, data)
        except MalformedMessageError:
            return
        assert encode(message) == data

    check()


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=30))
def test_words_are_read_back(words):
    data = b"".join(word.to_bytes(4, "little") for word in words)
    residues = words_from_bytes(data)
    assert residues.tolist() == words
    assert words_to_bytes(residues) == data


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_a_broken_word_is_refused(length):
    with pytest.raises(MalformedMessageError, match="whole number of words"):
        words_from_bytes(bytes(length))


def test_repeated_keys_are_found_wherever_they_are():
    def advert(left, right):
        return Advert(left * 32, right * 32, bytes(32))

    plain = {"a": advert(b"1", b"2"), "b": advert(b"3", b"4")}
    assert repeated_keys(plain) == set()
    assert repeated_keys(plain | {"c": advert(b"5", b"5")}) == {"c"}
    assert repeated_keys(plain | {"c": advert(b"2", b"5")}) == {"a", "c"}


sets = st.dictionaries(
    st.text(max_size=3), st.binary(min_size=32, max_size=32), max_size=3
)


@settings(deadline=None)
@given(sets, sets)
def test_set_hashes_bind_names_and_what_they_sent(left, right):
    base = bytes(32)
    for hash_of in (sharers_hash_of, survivors_hash_of):
        assert (hash_of(base, left) == hash_of(base, right)) == (left == right)
        assert hash_of(b"\x01" * 32, left) != hash_of(base, left)
