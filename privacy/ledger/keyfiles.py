"""Public keys as files: 64 lower-case hex digits and a newline."""

from __future__ import annotations

import re
from pathlib import Path

from privacy.crypto import VerifyKey
from privacy.errors import LedgerError, MalformedMessageError
from privacy.ledger.durable import replace_file

KEY_SUFFIX = ".pub"

_FORM = re.compile(rb"[0-9a-f]{64}\n")


def key_file_bytes(key: VerifyKey) -> bytes:
    """What a key's file holds."""
    return key.raw.hex().encode() + b"\n"


def parse_key_file(data: bytes) -> VerifyKey:
    """Read a key's file.

    Raises:
        LedgerError: not exactly 64 lower-case hex digits and a newline, or a key that
            must not be used.
    """
    if _FORM.fullmatch(data) is None:
        msg = "not a public key: 64 lower-case hex digits and a newline"
        raise LedgerError(msg)
    try:
        return VerifyKey(bytes.fromhex(data[:-1].decode()))
    except MalformedMessageError as error:
        raise LedgerError(str(error)) from None


def write_key_file(path: Path, key: VerifyKey) -> None:
    """Write a public key for others to pin.

    Guarantee:
        A crash leaves the whole key or the file that was there before.

    Raises:
        OSError: it cannot be written.
    """
    replace_file(path, key_file_bytes(key))


def read_key_file(path: Path) -> VerifyKey:
    """Read a key that another party published.

    Raises:
        LedgerError: not a key file.
        OSError: it cannot be read.
    """
    return parse_key_file(path.read_bytes())
