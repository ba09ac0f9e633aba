"""How each kind of value stands in a record: one JSON form, checked both ways.

A record's class says `round: Round`; the alias carries the codec that writes the value
and the one that reads it back. Whatever is not in its one canonical form is refused, so
that two different lines never mean the same record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any, Generic, TypeVar, get_args, get_type_hints

from privacy.crypto import DIGEST_BYTES, KEY_BYTES, SIGNATURE_BYTES
from privacy.errors import MalformedMessageError
from privacy.wire import MAX_JSON_INTEGER, Json, parse_rational, rational

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

HANDLE_BYTES = 16
MAX_NAMES = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KIND = re.compile(r"[a-z_]{1,32}")
_SOFTWARE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+_/-]{0,99}")
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,17})(\.[0-9]{0,99}[1-9])?")
_INTEGER = re.compile(r"0|[1-9][0-9]{0,38}")
_INFINITY = "infinity"
_MAX_RATIONAL_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """The JSON form of one kind of value.

    Attributes:
        encode: writes the value.
        decode: reads it back, or raises `MalformedMessageError`.
    """

    encode: Callable[[T], Json]
    decode: Callable[[Json], T]


def refuse(what: str) -> MalformedMessageError:
    """The error for a value that is not in its form."""
    return MalformedMessageError(what)


def _integer(least: int, most: int = MAX_JSON_INTEGER) -> Codec[int]:
    def decode(value: Json) -> int:
        # In Python a bool is an int; in the format it is not.
        if isinstance(value, bool) or not isinstance(value, int):
            msg = "not an integer"
            raise refuse(msg)
        if not least <= value <= most:
            msg = f"an integer out of range (at least {least}, at most {most})"
            raise refuse(msg)
        return value

    return Codec(int, decode)


def _text(pattern: re.Pattern[str], what: str) -> Codec[str]:
    def decode(value: Json) -> str:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            msg = f"not {what}"
            raise refuse(msg)
        return value

    return Codec(str, decode)


def _hex(length: int) -> Codec[bytes]:
    pattern = re.compile(f"[0-9a-f]{{{2 * length}}}")

    def decode(value: Json) -> bytes:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            msg = f"not {length} bytes in lower-case hex"
            raise refuse(msg)
        return bytes.fromhex(value)

    return Codec(bytes.hex, decode)


def _decode_big(value: Json) -> int:
    if not isinstance(value, str) or _INTEGER.fullmatch(value) is None:
        msg = "not an integer from 0 in a string"
        raise refuse(msg)
    return int(value)


def _decode_rate(value: Json) -> Fraction:
    if not isinstance(value, str) or len(value) > _MAX_RATIONAL_CHARACTERS:
        msg = "not a rational"
        raise refuse(msg)
    rate = parse_rational(value)
    if not 0 < rate <= 1:
        msg = "a rate must be above 0 and at most 1"
        raise refuse(msg)
    return rate


def decimal_text(value: Decimal) -> str:
    """The one text of a decimal: no exponent, no trailing zero, or "infinity"."""
    if value.is_infinite():
        return _INFINITY
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _decode_decimal(value: Json) -> Decimal:
    if value == _INFINITY:
        return Decimal("Infinity")
    if not isinstance(value, str) or _DECIMAL.fullmatch(value) is None:
        msg = "not a decimal from 0 in its shortest plain form"
        raise refuse(msg)
    return Decimal(value)


def _decode_names(value: Json) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_NAMES:
        msg = "not a list of names"
        raise refuse(msg)
    names = tuple(NAME.decode(item) for item in value)
    if list(names) != sorted(set(names)):
        msg = "names must be sorted and distinct"
        raise refuse(msg)
    return names


def _encode_keyed(value: Mapping[str, bytes]) -> Json:
    return {name: raw.hex() for name, raw in value.items()}


def _keyed(codec: Codec[bytes]) -> Codec[Mapping[str, bytes]]:
    def decode(value: Json) -> Mapping[str, bytes]:
        if not isinstance(value, dict) or len(value) > MAX_NAMES:
            msg = "not an object with a value for each name"
            raise refuse(msg)
        return {NAME.decode(name): codec.decode(raw) for name, raw in value.items()}

    return Codec(_encode_keyed, decode)


def _decode_object(value: Json) -> Mapping[str, Json]:
    if not isinstance(value, dict):
        msg = "not a JSON object"
        raise refuse(msg)
    return value


def choice(values: type[E]) -> Codec[E]:
    """One of the members of an enumeration, by its value."""
    allowed = frozenset(member.value for member in values)

    def decode(value: Json) -> E:
        if not isinstance(value, str) or value not in allowed:
            msg = f"not a known {values.__name__.lower()}"
            raise refuse(msg)
        return values(value)

    return Codec(lambda member: member.value, decode)


def optional(codec: Codec[T]) -> Codec[T | None]:
    """The same, or null."""
    return Codec(
        lambda value: None if value is None else codec.encode(value),
        lambda value: None if value is None else codec.decode(value),
    )


NAME = _text(_NAME, "a party's name")
NUMBER = Codec(decimal_text, _decode_decimal)
_DIGEST_CODEC = _hex(DIGEST_BYTES)

_CODECS: dict[type, Mapping[str, Codec[Any]]] = {}

Count = Annotated[int, _integer(0)]
Positive = Annotated[int, _integer(1)]
Order = Annotated[int, _integer(2, 256)]
BigInteger = Annotated[int, Codec(str, _decode_big)]
Name = Annotated[str, NAME]
Names = Annotated[tuple[str, ...], Codec(list, _decode_names)]
Kind = Annotated[str, _text(_KIND, "a kind of record")]
Software = Annotated[str, _text(_SOFTWARE, "a version of the software")]
Digest = Annotated[bytes, _DIGEST_CODEC]
MaybeDigest = Annotated[bytes | None, optional(_DIGEST_CODEC)]
Handle = Annotated[bytes, _hex(HANDLE_BYTES)]
Signature = Annotated[bytes, _hex(SIGNATURE_BYTES)]
Rate = Annotated[Fraction, Codec(rational, _decode_rate)]
Number = Annotated[Decimal, NUMBER]
Keys = Annotated[Mapping[str, bytes], _keyed(_hex(KEY_BYTES))]
Heads = Annotated[Mapping[str, bytes], _keyed(_DIGEST_CODEC)]
Object = Annotated[Mapping[str, Json], Codec(dict, _decode_object)]


def codecs(record: type) -> Mapping[str, Codec[Any]]:
    """The codec of each field of a record's class."""
    if record not in _CODECS:
        # `Json` refers to itself by name, which is not defined where a record is.
        hints = get_type_hints(record, localns={"Json": object}, include_extras=True)
        names = [item.name for item in fields(record)]
        _CODECS[record] = {name: get_args(hints[name])[1] for name in names}
    return _CODECS[record]


def to_object(value: object) -> dict[str, Json]:
    """The JSON object of a record: its fields under their own names."""
    table = codecs(type(value))
    return {name: codec.encode(getattr(value, name)) for name, codec in table.items()}


def from_object(record: type[T], value: Json) -> T:
    """Read an object that has exactly the fields of this class.

    Raises:
        MalformedMessageError: a field is missing, unknown or not in its form.
    """
    table = codecs(record)
    if not isinstance(value, dict) or value.keys() != table.keys():
        msg = f"the fields are not exactly {_listed(table)}"
        raise refuse(msg)
    decoded = {}
    for name, codec in table.items():
        try:
            decoded[name] = codec.decode(value[name])
        except MalformedMessageError as error:
            msg = f"field {name!r}: {error}"
            raise refuse(msg) from None
    return record(**decoded)


def nested(record: type[T]) -> Codec[T]:
    """An object inside a record."""
    return Codec(to_object, lambda value: from_object(record, value))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
