"""Canonical bytes: one encoding for each value, and strict parsing.

Two forms. Protocol messages are binary, big-endian and length-prefixed (`Writer`,
`Reader`). Plans and ledger records are RFC 8785 JSON without floating-point numbers:
a rational is a string "numerator/denominator", a decimal a string.
"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TypeAlias

from privacy.errors import MalformedMessageError

Json: TypeAlias = "None | bool | int | str | list[Json] | dict[str, Json]"

# RFC 8785 numbers are IEEE doubles; integers beyond this would not survive them.
MAX_JSON_INTEGER = 2**53 - 1
_LENGTH_BYTES = 8
MAX_FIELD_BYTES = 2**36


def canonical_json(value: Json) -> bytes:
    """RFC 8785 bytes of a value without floats.

    Raises:
        TypeError: a float, a non-string key or any other type.
        ValueError: an integer beyond 2**53 - 1, or text that is not valid Unicode.
    """
    _check_json(value)
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


def _check_json(value: Json) -> None:
    if value is None or isinstance(value, (bool, str)):
        return
    if isinstance(value, int):
        if abs(value) > MAX_JSON_INTEGER:
            msg = "an integer beyond 2**53 - 1: write it as a string"
            raise ValueError(msg)
    elif isinstance(value, list):
        for item in value:
            _check_json(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                msg = "a JSON key must be a string"
                raise TypeError(msg)
            _check_json(item)
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
        self._pieces: list[bytes] = []

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
        self._data = memoryview(data)
        self._position = 0

    def fixed(self, length: int) -> bytes:
        """The next `length` bytes.

        Raises:
            MalformedMessageError: the message ends before.
        """
        end = self._position + length
        if end > len(self._data):
            msg = "a message that ends too early"
            raise MalformedMessageError(msg)
        piece = bytes(self._data[self._position : end])
        self._position = end
        return piece

    def integer(self) -> int:
        """An unsigned integer of 8 bytes."""
        return int.from_bytes(self.fixed(8), "big")

    def field(self, limit: int = MAX_FIELD_BYTES) -> bytes:
        """Bytes behind their length, at most `limit`.

        Raises:
            MalformedMessageError: too long, or the message ends before.
        """
        length = int.from_bytes(self.fixed(_LENGTH_BYTES), "big")
        if length > limit:
            msg = "a field that is longer than its limit"
            raise MalformedMessageError(msg)
        return self.fixed(length)

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

    def finish(self) -> None:
        """Nothing may follow.

        Raises:
            MalformedMessageError: trailing bytes.
        """
        if self._position != len(self._data):
            msg = "a message with trailing bytes"
            raise MalformedMessageError(msg)
