from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import MalformedMessageError
from privacy.vectors import View
from privacy.wire import (
    ATTACHED,
    MAX_JSON_DEPTH,
    Bytes32,
    Reader,
    Writer,
    canonical_json,
    decode,
    encode,
    parse_canonical_json,
    parse_rational,
    rational,
)


@dataclass(frozen=True)
class Inner:
    digest: Bytes32
    name: str


@dataclass(frozen=True)
class Outer:
    number: int
    body: bytes
    items: tuple[Inner, ...]
    by_name: Mapping[str, bytes]
    key: object = field(default=None, metadata=ATTACHED)


digests = st.binary(min_size=32, max_size=32)
inners = st.builds(Inner, digests, st.text(max_size=5))
outers = st.builds(
    Outer,
    number=st.integers(0, 2**64 - 1),
    body=st.binary(max_size=40),
    items=st.lists(inners, max_size=3).map(tuple),
    by_name=st.dictionaries(st.text(max_size=4), st.binary(max_size=9), max_size=4),
)
EXAMPLE = Outer(7, b"body", (Inner(bytes(32), "n"),), {"a": b"1", "b": b"22"})

scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text()
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(outers)
def test_a_record_is_read_back_as_it_was_written(record):
    assert decode(Outer, encode(record)) == record


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_no_record_unless_they_are_canonical(data):
    try:
        record = decode(Outer, data)
    except MalformedMessageError:
        return
    assert encode(record) == data


@settings(deadline=None)
@given(outers, st.data())
def test_a_truncated_or_extended_record_is_refused(record, data):
    whole = encode(record)
    length = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (whole[:length], whole + b"\0"):
        with pytest.raises(MalformedMessageError):
            decode(Outer, wrong)


@settings(deadline=None)
@given(st.data())
def test_a_flipped_bit_is_refused_or_another_record(data):
    whole = bytearray(encode(EXAMPLE))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << (bit % 8)
    try:
        record = decode(Outer, bytes(whole))
    except MalformedMessageError:
        return
    assert record != EXAMPLE
    assert encode(record) == bytes(whole)


def test_names_must_rise_and_differ():
    def mapping(*names):
        writer = Writer().integer(0).field(b"").integer(0).integer(len(names))
        for name in names:
            writer.text(name).field(b"")
        return writer.finish()

    assert list(decode(Outer, mapping("a", "b")).by_name) == ["a", "b"]
    for names in (("b", "a"), ("a", "a")):
        with pytest.raises(MalformedMessageError, match="sorted and distinct"):
            decode(Outer, mapping(*names))


def test_equal_mappings_have_equal_bytes():
    left = Outer(1, b"", (), {"a": b"1", "b": b"2"})
    right = Outer(1, b"", (), {"b": b"2", "a": b"1"})
    assert encode(left) == encode(right)


def test_a_list_longer_than_its_message_is_refused_before_it_is_read():
    data = Writer().integer(0).field(b"").integer(2**60).finish()
    with pytest.raises(MalformedMessageError, match="longer than its message"):
        decode(Outer, data)


def test_a_fixed_field_of_another_length_is_a_bug():
    with pytest.raises(ValueError, match="32 bytes"):
        encode(Inner(bytes(31), ""))


def test_attached_fields_are_not_written_and_are_given_again():
    record = Outer(1, b"", (), {}, key="secret")
    assert encode(record) == encode(Outer(1, b"", (), {}))
    assert decode(Outer, encode(record), {"key": "secret"}) == record


@dataclass(frozen=True)
class Large:
    head: int
    words: View


def test_large_bytes_are_read_without_a_copy_and_written_from_any_memory():
    words = np.arange(3, dtype="<u4")
    whole = encode(Large(1, words.tobytes()))
    assert encode(Large(1, words.data)) == whole
    record = decode(Large, whole)
    assert isinstance(record.words, memoryview)
    assert record.words.obj is whole
    assert record.words.readonly
    assert record.words == words.tobytes()
    assert encode(record) == whole
    for wrong in (whole[:-1], whole[:8] + b"\xff" * 8 + whole[16:]):
        with pytest.raises(MalformedMessageError):
            decode(Large, wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        Outer("7", b"", (), {}),
        Outer(7, "text", (), {}),
        Outer(7, b"", [], {}),
        Outer(7, b"", (), ()),
        Outer(7, b"", (Large(1, b""),), {}),
        Outer(7, b"", (Inner("text", "n"),), {}),
        Outer(7, b"", (Inner(bytes(32), b"n"),), {}),
        Large(1, "text"),
    ],
)
def test_a_value_of_another_type_than_its_annotation_is_a_bug(wrong):
    with pytest.raises(TypeError, match="no binary form"):
        encode(wrong)


def test_a_type_without_a_binary_form_is_a_bug():
    with pytest.raises(TypeError, match="float"):
        encode(Outer(1.5, b"", (), {}))

    @dataclass(frozen=True)
    class Floating:
        number: float

    Floating.__annotations__["number"] = float
    with pytest.raises(TypeError, match="float"):
        decode(Floating, bytes(8))


def test_an_integer_must_fit_eight_bytes():
    with pytest.raises(OverflowError):
        Writer().integer(2**64)
    with pytest.raises(OverflowError):
        Writer().integer(-1)


def test_a_reader_refuses_what_is_too_short_too_long_or_not_text():
    with pytest.raises(MalformedMessageError, match="too early"):
        Reader(b"1234567").integer()
    with pytest.raises(MalformedMessageError, match="limit"):
        Reader(Writer().field(b"12345").finish()).field(limit=4)
    with pytest.raises(MalformedMessageError, match="UTF-8"):
        Reader(Writer().field(b"\xff").finish()).text()
    with pytest.raises(MalformedMessageError, match="trailing"):
        Reader(b"1").finish()


@settings(deadline=None)
@given(json_values)
def test_canonical_json_is_read_back(value):
    assert parse_canonical_json(canonical_json(value)) == value


def test_canonical_json_meets_rfc_8785():
    # The sorting example of RFC 8785, section 3.2.3.
    value = {
        "\u20ac": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\U0001f600": "Emoji: Grinning Face",
        "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis",
    }
    keys = list(parse_canonical_json(canonical_json(value)))
    assert [value[key].split()[0] for key in keys] == [
        "Carriage",
        "One",
        "Control",
        "Latin",
        "Euro",
        "Emoji:",
        "Hebrew",
    ]
    text = canonical_json({"b": [True, None, "\u20ac$\x0f\nA'B\"\\/"], "a": -5})
    assert text == b'{"a":-5,"b":[true,null,"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\/"]}'


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a": 1}',
        b'{"a":1}\n',
        b"1.0",
        b"1e3",
        b"-0",
        b"NaN",
        b"9007199254740992",
        b'"\\u0041"',
        b'"\\ud800"',
        b"\xff",
        b"",
        b"[" * 100_000,
    ],
)
def test_json_in_any_other_form_is_refused(data):
    with pytest.raises(MalformedMessageError):
        parse_canonical_json(data)


@pytest.mark.parametrize("value", [0.5, {1: "a"}, {"a": b""}, [1.0], {"a": 1.0}])
def test_json_holds_no_floats_and_no_other_types(value):
    with pytest.raises(TypeError):
        canonical_json(value)


def test_json_is_nested_as_deep_for_every_caller():
    deepest = b"[" * MAX_JSON_DEPTH + b"1" + b"]" * MAX_JSON_DEPTH

    def called_from(frames):
        if frames:
            return called_from(frames - 1)
        assert canonical_json(parse_canonical_json(deepest)) == deepest
        with pytest.raises(MalformedMessageError):
            parse_canonical_json(b"[" + deepest + b"]")
        with pytest.raises(ValueError, match="nested deeper"):
            canonical_json([parse_canonical_json(deepest)])
        return frames

    assert called_from(0) == called_from(500) == 0


def test_json_integers_stay_exact():
    with pytest.raises(ValueError, match="2\\*\\*53"):
        canonical_json(2**53)


@settings(deadline=None)
@given(st.fractions())
def test_rationals_are_read_back(value):
    assert parse_rational(rational(value)) == value


@pytest.mark.parametrize(
    "text", ["2/4", "1", "1/0", "+1/2", "1/-2", " 1/2", "1_0/3", "a/b", "1/2/3", ""]
)
def test_rationals_in_any_other_form_are_refused(text):
    with pytest.raises(MalformedMessageError):
        parse_rational(text)


def test_a_rational_is_written_in_lowest_terms():
    assert rational(Fraction(6, 40)) == "3/20"
