"""Vectors of every encoding: one value of each kind, and bytes that are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from fractions import Fraction
from typing import Annotated, get_args, get_origin, get_type_hints

from privacy.errors import MalformedMessageError
from privacy.secagg import messages
from privacy.secagg.envelope import Signed
from privacy.secagg.key_shares import Direction, SealedShare, SharePair
from privacy.secagg.transcript import Entry
from privacy.vectors import View
from privacy.wire import MAX_JSON_DEPTH, Json, canonical_json, encode, rational
from tests.vectors.derivations import fixed
from tests.vectors.form import Case, File, bad, good

OTHERS = (
    Signed,
    messages.KeyShares,
    messages.Delivery,
    messages.MaskedInput,
    SealedShare,
    SharePair,
    Direction,
    Entry,
)
KINDS: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (*(k for k in vars(messages).values() if hasattr(k, "LABEL")), *OTHERS)
}
# The names of every map in these vectors, in order.
NAMES = (b"client-a", b"client-b")


def example(hint: object, path: str) -> object:  # noqa: PLR0911
    """A value of an annotation; every field of a message has another one."""
    origin = get_origin(hint)
    if origin is Annotated:
        return fixed(path, get_args(hint)[1])
    if origin is tuple:
        return tuple(example(get_args(hint)[0], f"{path}{k}") for k in range(2))
    if origin is Mapping:
        return {
            name.decode(): example(get_args(hint)[1], path + name.decode())
            for name in NAMES
        }
    if hint is int:
        return fixed(path, 1)[0]
    if hint is str:
        return f"{path} \u00e9"
    if hint in (bytes, View):
        return fixed(path, 5)
    if isinstance(hint, type):
        hints = get_type_hints(hint, include_extras=True)
        values = {
            item.name: example(hints[item.name], f"{path}.{item.name}")
            for item in fields(hint)
        }
        return hint(**values)
    msg = f"no example of {hint}"
    raise TypeError(msg)


def _damages(data: bytes, first: object) -> Iterator[tuple[str, bytes]]:
    """Bytes that differ from an encoding and must not be read."""
    yield "empty", b""
    yield "one byte short", data[:-1]
    yield "one byte long", data + b"\0"
    for name in NAMES:
        if name not in data:
            return
    left, right = NAMES
    yield "names unsorted", data.replace(left, b"client-z")
    yield "a name twice", data.replace(right, left)
    yield "a name that is not UTF-8", data.replace(left, b"client-\xff")
    if get_origin(first) not in (None, Annotated):
        yield "more items than bytes", b"\xff" * 8 + data[8:]
        yield "one item more", (3).to_bytes(8, "big") + data[8:]
        yield "one item less", (1).to_bytes(8, "big") + data[8:]


def encodings() -> File:
    """Every record that travels or is hashed."""
    valid: list[Case] = []
    wrong: list[Case] = []
    for name, kind in KINDS.items():
        value = example(kind, name)
        data = encode(value)
        valid.append(good(name, kind=name, value=value, bytes=data))
        hints = get_type_hints(kind, include_extras=True)
        first = hints[fields(kind)[0].name]
        damages = dict(_damages(data, first))
        if first is bytes:
            damages["a length beyond the message"] = b"\xff" * 8 + data[8:]
        if first is str:
            damages["text that is not UTF-8"] = data[:8] + b"\xff" + data[9:]
        if kind is messages.Aborted:
            long = (4097).to_bytes(8, "big") + b"x" * 4097
            damages["text of 4097 bytes"] = long + data[8 + data[7] :]
        wrong += [
            bad(f"{name}: {what}", MalformedMessageError, kind=name, bytes=altered)
            for what, altered in damages.items()
        ]
    return File(
        "Messages and other records: `bytes` is the canonical encoding of `value`, "
        "whose byte strings are in hex.",
        tuple(valid),
        tuple(wrong),
    )


def json_forms() -> File:
    """Canonical JSON and rationals, as plans and ledgers have them."""
    nested: Json = 1
    for _ in range(MAX_JSON_DEPTH):
        nested = [nested]
    values: dict[str, Json] = {
        "scalars": [None, True, False, 0, -1, 2**53 - 1, 1 - 2**53, ""],
        "keys by their UTF-16 code units": {"\ufb33": 1, "\U0001f600": 2, "b": 3},
        "escapes": "\u20ac$\u000f\nA'B\"\\/\u007f",
        "empty": {"list": [], "object": {}},
        "as deep as it may be": nested,
    }
    deep = canonical_json(nested)
    wrong = {
        "keys unsorted": b'{"b":1,"a":2}',
        "a key twice": b'{"a":1,"a":1}',
        "a space": b'{"a": 1}',
        "a newline after it": b"1\n",
        "a fraction": b"1.0",
        "an exponent": b"1e3",
        "minus zero": b"-0",
        "not a number": b"NaN",
        "an integer of 54 bits": b"9007199254740992",
        "an escape without need": b'"\\u0041"',
        "half a surrogate": b'"\\ud800"',
        "not UTF-8": b"\xff",
        "a byte order mark": b"\xef\xbb\xbf1",
        "nothing": b"",
        "one level too deep": b"[" + deep + b"]",
    }
    rationals = ("0/1", "1/1", "-3/20", rational(Fraction(10**30, 3)))
    not_rationals = ("2/4", "1", "1/0", "+1/2", "1/-2", "0/2", " 1/2", "1_0/3", "")
    return File(
        "RFC 8785 without floating-point numbers, at most "
        f"{MAX_JSON_DEPTH} levels deep; rationals in lowest terms.",
        (
            *(
                good(name, value=value, bytes=canonical_json(value))
                for name, value in values.items()
            ),
            *(good(f"rational {text}", rational=text) for text in rationals),
        ),
        (
            *(
                bad(name, MalformedMessageError, bytes=data)
                for name, data in wrong.items()
            ),
            *(
                bad(f"rational {text!r}", MalformedMessageError, rational=text)
                for text in not_rationals
            ),
        ),
    )


def files() -> dict[str, File]:
    """By file name, without its suffix."""
    return {"encodings": encodings(), "json": json_forms()}
