"""The ledger that a running party writes: one writer, ahead of what it records.

What `append` has returned for is on disk. What it has not returned for may be there,
which over-counts; it is never there by half.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from privacy.crypto import SigningKey
from privacy.errors import (
    BrokenChainError,
    DisagreementError,
    LedgerError,
    MalformedMessageError,
    PrivacyError,
)
from privacy.ledger.chain import NEWLINE, Entry, Problem, read_chain, split_lines
from privacy.ledger.codes import Role
from privacy.ledger.durable import WRITING, holder_of, sync_directory
from privacy.ledger.envelope import GENESIS, line_hash, seal_line
from privacy.ledger.history import History
from privacy.ledger.payload import Header, decode_record, encode_record
from privacy.ledger.records import ClientOpened, Declined, Record, ServerOpened
from privacy.ledger.remembered import (
    EMPTY,
    HEAD_SUFFIX,
    Head,
    load_head,
    store_head,
)
from privacy.ledger.steps import Phase
from privacy.wire import parse_canonical_json


class Ledger:
    """One party's append-only file, locked for as long as this object is open.

    `Ledger.open` makes it. After an error in `append` the object refuses to go on:
    what reached the disk is then unknown, and opening the file again finds out.

    Guarantee:
        When `append` returns, the record is on disk; the process may die at any
        point, and the next `open` finds either all of a record or nothing of it.
    """

    __slots__ = (
        "_descriptor",
        "_entries",
        "_head",
        "_head_path",
        "_history",
        "_key",
        "_path",
        "_process",
        "_usable",
    )

    def __init__(
        self,
        path: Path,
        head_path: Path,
        signing_key: SigningKey,
        descriptor: int,
        history: History,
    ) -> None:
        self._path = path
        self._head_path = head_path
        self._key = signing_key
        self._descriptor = descriptor
        self._process = os.getpid()
        self._history = history
        self._head = GENESIS
        self._entries: list[Entry] = []
        self._usable = True

    @classmethod
    def open(
        cls,
        path: Path,
        signing_key: SigningKey,
        *,
        party: str,
        role: Role,
        head_path: Path | None = None,
    ) -> Ledger:
        """Lock a ledger, verify all of it, and take up its run.

        A missing file is created. A run that is not closed gets a `resumed` record. A
        last line that was only half written, and that nobody was told of, is cut off.

        Args:
            path: the file; its directory exists.
            signing_key: the party's identity; every line must be signed by it.
            party: the party's name.
            role: client or server.
            head_path: where the remembered head is kept; default `<path>.head`.

        Raises:
            LedgerError: another process holds it, or the directory cannot be written.
            BrokenChainError: shorter than remembered, altered, or out of order.
            BadSignatureError: a line of another signer.
            DisagreementError: records that contradict each other.
        """
        head_path = head_path or path.with_name(path.name + HEAD_SUFFIX)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            raise _cannot(path, "cannot be opened for writing", error) from error
        ledger = cls(path, head_path, signing_key, descriptor, History(party, role))
        try:
            ledger._lock()
            torn_bytes = ledger._replay()
            if ledger._history.phase is not Phase.CLOSED:
                ledger.append(ledger._history.resumption(torn_bytes))
        except OSError as error:
            ledger.close()
            raise _cannot(path, "cannot be read", error) from error
        except BaseException:
            ledger.close()
            raise
        return ledger

    @property
    def history(self) -> History:
        """What the ledger says: charges, round, phase. Immutable."""
        return self._history

    @property
    def head(self) -> bytes:
        """Hash of the last line, 32 bytes; zeros before the first."""
        return self._head

    @property
    def entries(self) -> Sequence[Entry]:
        """Every line, read or written, as it grows."""
        return self._entries

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def append(self, record: Record) -> bytes:
        """Write one record; it is on disk when this returns.

        Returns:
            The hash of its line, 32 bytes.

        Raises:
            BudgetExceededError: an intent beyond the plan's target or the own cap;
                nothing was written and the ledger stays usable.
            LedgerError: the record may not follow (nothing was written), or the disk
                refused it (open the ledger again).
        """
        if os.getpid() != self._process:
            msg = "a ledger does not survive a fork: open it in one process"
            raise RuntimeError(msg)
        if not self._usable:
            msg = f"{self._path.name} had a failed write; close it and open it again"
            raise LedgerError(msg)
        run = self._history.run
        if isinstance(record, ClientOpened | ServerOpened | Declined):
            self._check_own_key(record)
            run = record.run
        header = Header(
            seq=self._history.records,
            prev=self._head,
            party=self._history.party,
            role=self._history.role,
            run=run,
        )
        payload = _checked_payload(header, record)
        history = self._history.after(header, record)
        line = seal_line(payload, self._key)
        head = line_hash(line)
        # Whatever interrupts from here on, Ctrl-C included, leaves it unusable.
        self._usable = False
        with WRITING:
            self._write(line + NEWLINE)
            self._remember(Head(history.records, head))
        self._history, self._head = history, head
        self._entries.append(Entry(history.records, head, header, record))
        self._usable = True
        return head

    def close(self) -> None:
        """Release the lock. It may be called twice."""
        self._usable = False
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        """The ledger itself; the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = (
                f"{self._path.name} is in use by another process"
                f"{holder_of(self._descriptor)}, and two writers would break the "
                "chain; wait until it ends, or stop it"
            )
            raise LedgerError(msg) from None

    def _replay(self) -> int:
        """Verify what is there; returns how many bytes of a torn line were cut."""
        data = self._path.read_bytes()
        lines, torn = split_lines(data)
        remembered = load_head(self._head_path)
        self._check_remembered(lines, torn, remembered)
        if lines:
            whole = data[: len(data) - len(torn)]
            chain = read_chain(whole, self._path.name, self._key.verify_key)
            if chain.problems:
                raise chain.problems[0].as_error()
            for entry in chain.entries:
                self._replay_entry(entry.line, entry.header, entry.record)
            self._entries = list(chain.entries)
            self._head = chain.entries[-1].head
        if torn:
            os.ftruncate(self._descriptor, len(data) - len(torn))
        # The last line may be in memory only, from a process that died.
        os.fsync(self._descriptor)
        self._remember(Head(len(lines), self._head))
        return len(torn)

    def _replay_entry(self, line: int, header: Header, record: Record) -> None:
        try:
            self._history = self._history.after(header, record)
        except PrivacyError as error:
            kind = type(error) if isinstance(error, LedgerError) else DisagreementError
            raise Problem(self._path.name, line, str(error), kind).as_error() from None

    def _check_remembered(
        self, lines: list[bytes], torn: bytes, remembered: Head | None
    ) -> None:
        if remembered is None:
            if lines:
                msg = (
                    f"{self._head_path.name} is missing, so that nobody can tell "
                    f"whether {self._path.name} is whole. Restore both together."
                )
                raise BrokenChainError(msg)
            remembered = EMPTY
        count = len(lines)
        if remembered.records > count:
            msg = (
                f"{self._path.name} has {count} whole lines and once had "
                f"{remembered.records}: it was cut or replaced by an older copy. "
                "Find the newer one; going on would forget charges."
            )
            raise BrokenChainError(msg)
        # One more is a process that died between the line and its acknowledgement.
        # It writes nothing else then, so that a torn line after it is not its own.
        extra = count - remembered.records
        if extra > 1 or (extra == 1 and torn):
            msg = (
                f"{self._path.name} has more lines than {self._head_path.name} "
                "acknowledges: the two are not from the same moment. Restore both."
            )
            raise DisagreementError(msg)
        if remembered.records:
            head = line_hash(lines[remembered.records - 1])
            if head != remembered.head:
                msg = (
                    f"{self._path.name} does not hold the line that was last "
                    "acknowledged: it was rewritten. Restore the original."
                )
                raise BrokenChainError(msg)

    def _check_own_key(self, record: ClientOpened | ServerOpened | Declined) -> None:
        if record.roster.get(self._history.party) != self._key.verify_key.raw:
            msg = "the roster pins another key for this party than the one that signs"
            raise DisagreementError(msg)

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, data) != len(data):
                msg = "only a part of the line was taken"
                raise OSError(msg)
            os.fsync(self._descriptor)
        except OSError as error:
            self._restore(size)
            raise _cannot(self._path, "cannot be written", error) from error

    def _restore(self, size: int) -> None:
        """Take back what was written, if the disk lets us; else `open` will."""
        try:
            os.ftruncate(self._descriptor, size)
            os.fsync(self._descriptor)
        except OSError:
            return

    def _remember(self, head: Head) -> None:
        try:
            store_head(self._head_path, head)
            sync_directory(self._path.parent)
        except OSError as error:
            raise _cannot(self._head_path, "cannot be written", error) from error


def _checked_payload(header: Header, record: Record) -> bytes:
    """The payload, only if a reader gets the same record out of it."""
    try:
        payload = encode_record(header, record)
        same = decode_record(parse_canonical_json(payload)) == (header, record)
    except MalformedMessageError as error:
        msg = f"a {record.kind!r} record that no reader would accept: {error}"
        raise ValueError(msg) from None
    if not same:
        msg = f"a {record.kind!r} record that reads back as another"
        raise ValueError(msg)
    return payload


def _cannot(path: Path, what: str, error: OSError) -> LedgerError:
    reason = error.strerror or str(error)
    msg = f"{path.name} {what}: {reason}. Nothing more is done without its record."
    return LedgerError(msg)
