"""The remembered head: a small file beside a ledger that says how long it was.

A chain shows a change in its middle, but not that its end was cut off or that the
whole file is an older copy. The remembered head does, as long as the two are not
replaced together; the heads that other parties hold are the defence against that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from privacy.errors import BrokenChainError, MalformedMessageError
from privacy.ledger.durable import replace_file
from privacy.ledger.envelope import GENESIS
from privacy.ledger.fields import Count, Digest, from_object, to_object
from privacy.wire import canonical_json, parse_canonical_json

HEAD_SUFFIX = ".head"


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a ledger.

    Attributes:
        records: how many lines it has.
        head: hash of the last one; 32 zero bytes for an empty ledger.
    """

    records: Count
    head: Digest


EMPTY = Head(0, GENESIS)


def parse_head(data: bytes) -> Head:
    """Read the file's bytes.

    Raises:
        MalformedMessageError: not what `store_head` writes.
    """
    if not data.endswith(b"\n"):
        msg = "not a remembered head"
        raise MalformedMessageError(msg)
    return from_object(Head, parse_canonical_json(data[:-1]))


def load_head(path: Path) -> Head | None:
    """The remembered head, or None if there is no such file.

    Raises:
        BrokenChainError: it is not readable as one.
    """
    try:
        return parse_head(path.read_bytes())
    except FileNotFoundError:
        return None
    except MalformedMessageError:
        msg = f"{path.name} is damaged: find out why before this ledger is used again"
        raise BrokenChainError(msg) from None


def store_head(path: Path, head: Head) -> None:
    """Replace the file, so that a crash leaves the old head or the new one."""
    replace_file(path, canonical_json(to_object(head)) + b"\n")
