"""Canonical bytes: one encoding for each value, and strict parsing.

Two forms. Protocol messages are binary, big-endian and length-prefixed: a message is a
frozen dataclass, and its annotations are its format (`encode`, `decode`). Plans and
ledger records are RFC 8785 JSON without floating-point numbers: a rational is a string
"numerator/denominator", a decimal a string.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from fractions import Fraction
from functools import cache
from typing import (
    Annotated,
    NoReturn,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from privacy.errors import MalformedMessageError
from privacy.vectors import View

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"

# RFC 8785 numbers are IEEE doubles; integers beyond this would not survive them.
MAX_JSON_INTEGER = 2**53 - 1
# Deeper than anything here is nested. Without a limit the interpreter's stack would be
# one, and whether bytes are accepted would hang on who calls the parser.
MAX_JSON_DEPTH = 32
_LENGTH_BYTES = 8
MAX_FIELD_BYTES = 2**36

# The shortest item of a list is an integer or a length.
_LEAST_ITEM_BYTES = 8


def canonical_json(value: Json) -> bytes:
    """RFC 8785 bytes of a value without floats.

    Raises:
        TypeError: a float, a non-string key or any other type.
        ValueError: an integer beyond 2**53 - 1, text that is not valid Unicode, or a
            value nested deeper than `MAX_JSON_DEPTH`.
    """
    _check_json(value, 0)
    text = _encode(value)
    return text.encode("utf-8")


def parse_canonical_json(data: bytes) -> Json:
    """Parse, and accept only the bytes that `canonical_json` would write.

    Raises:
        MalformedMessageError: not JSON, or not in canonical form.
    """
    try:
        value: Json = json.loads(data.decode("utf-8"))
        again = canonical_json(value)
    except (ValueError, TypeError, RecursionError):
        msg = "not JSON in its canonical form (RFC 8785, no floats)"
        raise MalformedMessageError(msg) from None
    if again != data:
        msg = "not JSON in its canonical form (RFC 8785, no floats)"
        raise MalformedMessageError(msg)
    return value


def rational(value: Fraction) -> str:
    """The canonical text of a rational: lowest terms, "3/20"."""
    return f"{value.numerator}/{value.denominator}"


def parse_rational(text: str) -> Fraction:
    """Read what `rational` writes, and nothing else.

    Raises:
        MalformedMessageError: not that form, or not in lowest terms.
    """
    try:
        numerator, denominator = text.split("/")
        value = Fraction(int(numerator), int(denominator))
    except (ValueError, ZeroDivisionError):
        value = None
    if value is None or rational(value) != text:
        msg = "not a rational in lowest terms"
        raise MalformedMessageError(msg)
    return value


def _check_json(value: Json, depth: int) -> None:
    if depth > MAX_JSON_DEPTH:
        msg = f"a value that is nested deeper than {MAX_JSON_DEPTH} levels"
        raise ValueError(msg)
    if value is None or isinstance(value, (bool, str)):
        return
    if isinstance(value, int):
        if abs(value) > MAX_JSON_INTEGER:
            msg = "an integer beyond 2**53 - 1: write it as a string"
            raise ValueError(msg)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                msg = "a JSON key must be a string"
                raise TypeError(msg)
            _check_json(item, depth + 1)
    else:
        msg = f"{type(value).__name__} has no canonical JSON form here"
        raise TypeError(msg)


def _encode(value: Json) -> str:
    if isinstance(value, dict):
        # RFC 8785 section 3.2.3 sorts keys by their UTF-16 code units.
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        items = (f"{_encode(key)}:{_encode(value[key])}" for key in keys)
        return "{" + ",".join(items) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_encode(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


class Writer:
    """Builds one binary message, field by field."""

    __slots__ = ("_pieces",)

    def __init__(self) -> None:
        self._pieces: list[View] = []

    def integer(self, value: int) -> Writer:
        """An unsigned integer below 2**64, 8 bytes."""
        self._pieces.append(value.to_bytes(8, "big"))
        return self

    def field(self, value: bytes) -> Writer:
        """Bytes behind their length."""
        self._pieces += [len(value).to_bytes(_LENGTH_BYTES, "big"), value]
        return self

    def text(self, value: str) -> Writer:
        """UTF-8 behind its length."""
        return self.field(value.encode("utf-8"))

    def fixed(self, value: bytes, length: int) -> Writer:
        """Bytes of a length that the format fixes."""
        if len(value) != length:
            msg = f"this field has {length} bytes, got {len(value)}"
            raise ValueError(msg)
        self._pieces.append(value)
        return self

    def finish(self) -> bytes:
        """The whole message."""
        return b"".join(self._pieces)


class Reader:
    """Reads one binary message; whatever is not exactly right is an error.

    Args:
        data: the message.
    """

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def fixed(self, length: int) -> bytes:
        """The next `length` bytes.

        Raises:
            MalformedMessageError: the message ends before.
        """
        start = self._position
        self._skip(length)
        return self._data[start : self._position]

    def _skip(self, length: int) -> None:
        end = self._position + length
        if end > len(self._data):
            msg = "a message that ends too early"
            raise MalformedMessageError(msg)
        self._position = end

    def integer(self) -> int:
        """An unsigned integer of 8 bytes."""
        return int.from_bytes(self.fixed(_LENGTH_BYTES), "big")

    def field(self, limit: int = MAX_FIELD_BYTES) -> bytes:
        """Bytes behind their length, at most `limit`.

        Raises:
            MalformedMessageError: too long, or the message ends before.
        """
        return self.fixed(self._length(limit))

    def view(self) -> memoryview:
        """As `field`, but a view of the message, which stays in memory with it."""
        length = self._length(MAX_FIELD_BYTES)
        start = self._position
        self._skip(length)
        return memoryview(self._data)[start : self._position]

    def _length(self, limit: int) -> int:
        length = self.integer()
        if length > limit:
            msg = "a field that is longer than its limit"
            raise MalformedMessageError(msg)
        return length

    def text(self, limit: int = 4096) -> str:
        """UTF-8 behind its length.

        Raises:
            MalformedMessageError: too long or not UTF-8.
        """
        try:
            return self.field(limit).decode("utf-8")
        except UnicodeDecodeError:
            msg = "a text that is not UTF-8"
            raise MalformedMessageError(msg) from None

    def count(self) -> int:
        """How many items follow; never more than the bytes that are left could hold.

        Raises:
            MalformedMessageError: more.
        """
        value = self.integer()
        if value > (len(self._data) - self._position) // _LEAST_ITEM_BYTES:
            msg = "a list that is longer than its message"
            raise MalformedMessageError(msg)
        return value

    def finish(self) -> None:
        """Nothing may follow.

        Raises:
            MalformedMessageError: trailing bytes.
        """
        if self._position != len(self._data):
            msg = "a message with trailing bytes"
            raise MalformedMessageError(msg)


# Bytes of a length that the annotation fixes, written without a prefix.
Bytes32: TypeAlias = Annotated[bytes, 32]
Bytes64: TypeAlias = Annotated[bytes, 64]

# `field(metadata=ATTACHED)` marks a field that is not part of the encoding.
ATTACHED: Mapping[str, bool] = {"attached": True}

_Record = TypeVar("_Record")


def encode(record: object) -> bytes:
    """The canonical bytes of a dataclass instance: its fields, in order.

    A field is an `int` (below 2**64), `str`, `bytes`, `View`, `Bytes32`, `Bytes64`,
    another such dataclass, a `tuple[X, ...]` or a `Mapping[str, X]`. Mappings are
    written in the order of their keys, so that equal records have equal bytes.

    Raises:
        TypeError: a value of any other type.
        ValueError: a fixed-length field of another length.
    """
    pieces: list[View] = []
    kind: type = type(record)
    _writer(kind)(pieces, record)
    return b"".join(pieces)


def decode(
    kind: type[_Record], data: bytes, attached: Mapping[str, object] | None = None
) -> _Record:
    """Read what `encode` writes for a record of this kind, and nothing else.

    Args:
        kind: the dataclass.
        data: the bytes.
        attached: values of the fields marked `ATTACHED`, where they have no default.

    Guarantee:
        `encode(decode(kind, data)) == data` whenever `decode` returns.

    Raises:
        MalformedMessageError: other bytes.
    """
    reader = Reader(data)
    plain_type: type = kind
    values = _values(reader, plain_type)
    reader.finish()
    make: Callable[..., _Record] = kind
    return make(**values, **(attached or {}))


@cache
def _layout(kind: type) -> tuple[tuple[str, object], ...]:
    """Name and annotation of every encoded field."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        (item.name, hints[item.name])
        for item in fields(kind)
        if not item.metadata.get("attached", False)
    )


def _fixed_length(hint: object) -> int | None:
    """The length of an annotation like `Bytes32`, and None of any other."""
    metadata: tuple[int, ...] | None = getattr(hint, "__metadata__", None)
    return None if metadata is None else metadata[0]


# An annotation is looked at once; what it stands for is then a chain of plain calls.
_Write: TypeAlias = Callable[[list[View], object], None]
_Read: TypeAlias = Callable[[Reader], object]


def _refuse(name: object) -> NoReturn:
    msg = f"{name} has no binary form here"
    raise TypeError(msg)


def _write_bytes(pieces: list[View], value: object) -> None:
    if not isinstance(value, bytes):
        _refuse(type(value).__name__)
    pieces += (len(value).to_bytes(_LENGTH_BYTES, "big"), value)


def _write_view(pieces: list[View], value: object) -> None:
    if not isinstance(value, (bytes, memoryview)):
        _refuse(type(value).__name__)
    view = memoryview(value).cast("B")
    pieces += (len(view).to_bytes(_LENGTH_BYTES, "big"), view)


def _write_integer(pieces: list[View], value: object) -> None:
    if not isinstance(value, int):
        _refuse(type(value).__name__)
    pieces.append(value.to_bytes(_LENGTH_BYTES, "big"))


def _write_text(pieces: list[View], value: object) -> None:
    if not isinstance(value, str):
        _refuse(type(value).__name__)
    _write_bytes(pieces, value.encode("utf-8"))


# How the plainest annotations are written and read.
_PLAIN: Mapping[object, tuple[_Write, _Read]] = {
    bytes: (_write_bytes, Reader.field),
    View: (_write_view, Reader.view),
    int: (_write_integer, Reader.integer),
    str: (_write_text, Reader.text),
}


@cache
def _writer(hint: object) -> _Write:
    """What writes a value of this annotation."""
    length = _fixed_length(hint)
    if length is not None:
        return _fixed_writer(length)
    if hint in _PLAIN:
        return _PLAIN[hint][0]
    origin = get_origin(hint)
    if origin is tuple:
        return _tuple_writer(_writer(get_args(hint)[0]))
    if origin is Mapping:
        return _mapping_writer(_writer(get_args(hint)[1]))
    if isinstance(hint, type) and is_dataclass(hint):
        return _record_writer(hint)
    _refuse(hint)


def _fixed_writer(length: int) -> _Write:
    def write(pieces: list[View], value: object) -> None:
        if not isinstance(value, bytes):
            _refuse(type(value).__name__)
        if len(value) != length:
            msg = f"this field has {length} bytes, got {len(value)}"
            raise ValueError(msg)
        pieces.append(value)

    return write


def _tuple_writer(write_item: _Write) -> _Write:
    def write(pieces: list[View], value: object) -> None:
        if not isinstance(value, tuple):
            _refuse(type(value).__name__)
        _write_integer(pieces, len(value))
        for item in value:
            write_item(pieces, item)

    return write


def _mapping_writer(write_item: _Write) -> _Write:
    def write(pieces: list[View], value: object) -> None:
        if not isinstance(value, Mapping):
            _refuse(type(value).__name__)
        _write_integer(pieces, len(value))
        for key in sorted(value):
            _write_text(pieces, key)
            write_item(pieces, value[key])

    return write


def _record_writer(kind: type) -> _Write:
    parts = tuple((name, _writer(hint)) for name, hint in _layout(kind))

    def write(pieces: list[View], value: object) -> None:
        if type(value) is not kind:
            _refuse(type(value).__name__)
        for name, write_part in parts:
            write_part(pieces, getattr(value, name))

    return write


@cache
def _reader(hint: object) -> _Read:
    """What reads a value of this annotation."""
    length = _fixed_length(hint)
    if length is not None:
        return _fixed_reader(length)
    if hint in _PLAIN:
        return _PLAIN[hint][1]
    origin = get_origin(hint)
    if origin is tuple:
        return _tuple_reader(_reader(get_args(hint)[0]))
    if origin is Mapping:
        return _mapping_reader(_reader(get_args(hint)[1]))
    if isinstance(hint, type) and is_dataclass(hint):
        return _record_reader(hint)
    _refuse(hint)


def _fixed_reader(length: int) -> _Read:
    def read(reader: Reader) -> object:
        return reader.fixed(length)

    return read


def _tuple_reader(read_item: _Read) -> _Read:
    def read(reader: Reader) -> object:
        return tuple([read_item(reader) for _ in range(reader.count())])

    return read


def _mapping_reader(read_item: _Read) -> _Read:
    """Of a mapping whose keys rise strictly: sorted, and none twice."""

    def read(reader: Reader) -> object:
        result: dict[str, object] = {}
        previous: str | None = None
        for _ in range(reader.count()):
            key = reader.text()
            if previous is not None and key <= previous:
                msg = "names that are not sorted and distinct"
                raise MalformedMessageError(msg)
            result[key] = read_item(reader)
            previous = key
        return result

    return read


@cache
def _parts(kind: type) -> tuple[tuple[str, _Read], ...]:
    """Name and reader of every encoded field."""
    return tuple((name, _reader(hint)) for name, hint in _layout(kind))


def _values(reader: Reader, kind: type) -> dict[str, object]:
    return {name: read(reader) for name, read in _parts(kind)}


def _record_reader(kind: type) -> _Read:
    def read(reader: Reader) -> object:
        return kind(**_values(reader, kind))

    return read
