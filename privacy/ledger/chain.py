"""Reading a ledger's bytes: signatures, sequence and chain, line by line.

Nothing here judges what the records mean; `history` does. All that is wrong is
collected with its line, since an auditor wants the whole list and not the first item.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from privacy.crypto import VerifyKey
from privacy.errors import (
    BadSignatureError,
    BrokenChainError,
    DisagreementError,
    LedgerError,
    MalformedMessageError,
)
from privacy.ledger.envelope import GENESIS, line_hash, open_line
from privacy.ledger.payload import Header, decode_record
from privacy.ledger.records import ClientOpened, Declined, Record, ServerOpened
from privacy.wire import parse_canonical_json

NEWLINE = b"\n"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong, and where.

    Attributes:
        file: name of the file, relative to what was verified.
        line: from 1; 0 means the file as a whole.
        what: in words.
        error: what kind of unreliability it is.
    """

    file: str
    line: int
    what: str
    error: type[LedgerError] = DisagreementError

    def __str__(self) -> str:
        """`file:line: what`, as compilers write it."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.what}"

    def as_error(self) -> LedgerError:
        """The same as an error that can be raised."""
        return self.error(str(self))


@dataclass(frozen=True, slots=True)
class Entry:
    """One record whose line is intact.

    Attributes:
        line: from 1.
        head: hash of the line, 32 bytes.
        header: place and party.
        record: what it says.
    """

    line: int
    head: bytes
    header: Header
    record: Record


@dataclass(frozen=True, slots=True)
class Chain:
    """The lines of one file.

    Attributes:
        entries: the intact lines, all of them if `problems` is empty.
        problems: what is wrong with the others, in order.
        key: the key under which the lines were checked, if one was found.
    """

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]
    key: VerifyKey | None


def split_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """The complete lines without their newlines, and what stands after the last."""
    *lines, rest = data.split(NEWLINE)
    return lines, rest


def read_chain(data: bytes, file: str, key: VerifyKey | None) -> Chain:
    """Check every line's form, signature, sequence number and link.

    Args:
        data: the whole file.
        file: how to call it in problems.
        key: whose signature is asked for; None takes the key that the first record
            names for its own party, which shows that the file is one signer's and
            not who the signer is.
    """
    lines, rest = split_lines(data)
    entries: list[Entry] = []
    problems: list[Problem] = []
    if not lines and not rest:
        problems.append(Problem(file, 0, "the ledger is empty", BrokenChainError))
    prev = GENESIS
    for number, line in enumerate(lines, start=1):
        head = line_hash(line)
        try:
            header, record, key = read_line(line, key)
        except LedgerError as error:
            problems.append(Problem(file, number, str(error), type(error)))
        else:
            for what in _link_faults(header, number - 1, prev):
                problems.append(Problem(file, number, what, BrokenChainError))
            entries.append(Entry(number, head, header, record))
        prev = head
    if rest:
        what = "the last line is cut short: it has no newline"
        problems.append(Problem(file, len(lines) + 1, what, BrokenChainError))
    return Chain(tuple(entries), tuple(problems), key)


def read_line(line: bytes, key: VerifyKey | None) -> tuple[Header, Record, VerifyKey]:
    """One line without its newline, and the key that signed it.

    Args:
        line: its bytes.
        key: whose signature is asked for; None takes the one that the record names.

    Raises:
        LedgerError: not a line of a ledger, or not signed by that key.
    """
    try:
        envelope = open_line(line)
    except MalformedMessageError as error:
        raise BrokenChainError(str(error)) from None
    try:
        header, record = decode_record(parse_canonical_json(envelope.payload))
    except MalformedMessageError as error:
        # A payload that its owner did not sign says nothing about its owner.
        if key is not None:
            envelope.check(key)
        raise BrokenChainError(str(error)) from None
    if key is None:
        key = _own_key(header, record)
    envelope.check(key)
    return header, record, key


def _own_key(header: Header, record: Record) -> VerifyKey:
    if isinstance(record, ClientOpened | ServerOpened | Declined):
        raw = record.roster.get(header.party)
        if raw is not None:
            try:
                return VerifyKey(raw)
            except MalformedMessageError as error:
                raise BadSignatureError(str(error)) from None
    msg = "no key is known: the first record does not open a run for its party"
    raise BadSignatureError(msg)


def _link_faults(header: Header, seq: int, prev: bytes) -> Iterator[str]:
    if header.seq != seq:
        yield (
            f"sequence number {header.seq} where {seq} belongs: a line was dropped, "
            "moved or repeated"
        )
    if header.prev != prev:
        yield "it does not link to the line before: one of the two was changed"
