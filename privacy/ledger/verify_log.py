"""Checking the shared log: notes, cosignatures, and what the clients vouched for.

1. Every note is a checkpoint of this run's log that the server signed, with the root
   that the server's ledger really has at that size.
2. A signature in a client's name is that client's, and its ledger holds the same
   checkpoint: it was written there before it left.
3. Every checkpoint in a client's ledger is of the server's ledger. The server signed
   it, so that another root of the same size is a second history.
4. The last note is not older than what any client vouched for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from privacy.crypto import VerifyKey
from privacy.errors import (
    BadSignatureError,
    EquivocationError,
    LedgerError,
    MalformedMessageError,
    RollbackError,
)
from privacy.ledger.chain import Entry, Problem
from privacy.ledger.checkpoint import (
    Checkpoint,
    Note,
    NoteSignature,
    log_origin,
    parse_note,
)
from privacy.ledger.merkle import Tree
from privacy.ledger.reconcile import RunFile
from privacy.ledger.records import ClientOpened, Cosigned, Disputed, ServerOpened
from privacy.ledger.shared_log import CHECKPOINT, LOG_FOLDER, note_name
from privacy.ledger.verify import Run
from privacy.plan import SERVER

_NOTES = f"ledger/{LOG_FOLDER}/"
_CHECKPOINT = f"ledger/{CHECKPOINT}"
_LINE = re.compile(r":[0-9]+\Z")


@dataclass(frozen=True, slots=True)
class SignedRoot:
    """What a server signed of its log, and who has it.

    Attributes:
        head: the checkpoint.
        server: the server's public key, 32 bytes.
        where: file and line that have it.
    """

    head: Checkpoint
    server: bytes
    where: str


@dataclass(slots=True)
class LogReport:
    """What checking the log of a run found.

    Attributes:
        problems: all that is wrong.
        size: lines of the server's ledger.
        root: of the tree over them, None where that ledger does not verify.
        checkpoint: of the largest note, None without one.
        cosigned: the largest size that each client cosigned, by the notes.
        roots: all that the server signed, by the notes.
    """

    problems: list[Problem] = field(default_factory=list)
    size: int = 0
    root: bytes | None = None
    checkpoint: Checkpoint | None = None
    cosigned: dict[str, int] = field(default_factory=dict)
    roots: list[SignedRoot] = field(default_factory=list)


def check_log(
    lines: Sequence[bytes],
    notes: Mapping[str, bytes],
    run: bytes,
    keys: Mapping[str, VerifyKey],
    clients: Mapping[str, RunFile],
    *,
    unfinished: bool,
) -> LogReport:
    """Check the log of a run whose server's ledger verifies.

    Args:
        lines: of the server's ledger, without newlines.
        notes: files of notes, by their name within the run's folder.
        run: the run's handle.
        keys: pinned public key of every party.
        clients: the part of each client's ledger that belongs to the run.
        unfinished: whether the run may still be going on.
    """
    check = _LogCheck(lines, run, keys, clients)
    for file, data in notes.items():
        check.note(file, data)
    check.ledgers()
    check.last(notes, unfinished=unfinished)
    return check.report


class _LogCheck:
    """One pass over the notes and the clients' checkpoints."""

    def __init__(
        self,
        lines: Sequence[bytes],
        run: bytes,
        keys: Mapping[str, VerifyKey],
        clients: Mapping[str, RunFile],
    ) -> None:
        self._tree = Tree(lines)
        self._origin = log_origin(run)
        self._keys = keys
        self._clients = clients
        self._largest = 0
        self._vouched = {
            name: {(r.size, r.root) for _, r in _checkpoints(client.run, Cosigned)}
            for name, client in clients.items()
        }
        self.report = LogReport(size=self._tree.size, root=self._tree.root())

    def note(self, file: str, data: bytes) -> None:
        """Check one note, and take down who cosigned it."""
        try:
            note = self._parsed(file, data)
        except (MalformedMessageError, LedgerError) as error:
            kind = type(error) if isinstance(error, LedgerError) else BadSignatureError
            self._note_problem(file, str(error), kind)
            return
        head, key = note.checkpoint, self._keys[SERVER]
        self.report.roots.append(SignedRoot(head, key.raw, file))
        if not self._holds(head.size, head.root):
            what = f"not the root of the {head.size} lines of the server's ledger"
            self._note_problem(file, what, EquivocationError)
        if self.report.checkpoint is None or head.size > self._largest:
            self.report.checkpoint, self._largest = head, head.size
        for one in note.signatures:
            if one.name in self._keys and one.name != SERVER:
                self._cosignature(file, head, one)

    def ledgers(self) -> None:
        """Check what every client vouched for, or disputed, in its own ledger."""
        for client in self._clients.values():
            for line, record in _checkpoints(client.run, Cosigned, Disputed):
                if isinstance(record, Disputed):
                    what = self._disputed(record)
                elif not self._holds(record.size, record.root):
                    what = (
                        f"the server signed another history of {record.size} lines to "
                        "this client than its ledger has"
                    )
                else:
                    continue
                self._note_problem(client.file, what, EquivocationError, line)

    def _disputed(self, record: Disputed) -> str:
        """What to make of a dispute: who lies is for the reader to say, by this."""
        what = (
            "it disputes the server's log, and refused the server; the checkpoint is "
        )
        if self._holds(record.size, record.root):
            return what + (
                "that of the server's ledger, so that a round in it must contradict "
                "this ledger, or the dispute is a false one"
            )
        return what + f"not of the {record.size} lines of the server's ledger"

    def last(self, notes: Mapping[str, bytes], *, unfinished: bool) -> None:
        """Check that the last note is there, and what it should be."""
        newest = max((s for v in self._vouched.values() for s, _ in v), default=0)
        if newest > self._largest:
            what = f"clients vouched for {newest} lines, and no note has as many"
            self._note_problem(_CHECKPOINT, what, RollbackError)
        # A process may have died between the two.
        if not notes or unfinished:
            return
        last = notes.get(f"{_NOTES}{note_name(self._largest)}")
        if last is None or notes.get(_CHECKPOINT) != last:
            what = "missing, or not the note of the largest size"
            self._note_problem(_CHECKPOINT, what, LedgerError)

    def _parsed(self, file: str, data: bytes) -> Note:
        note = parse_note(data)
        size = note.checkpoint.size
        if file not in {_CHECKPOINT, f"{_NOTES}{note_name(size)}"}:
            msg = "a note of another size than its name says"
            raise LedgerError(msg)
        if note.checkpoint.origin != self._origin:
            msg = "a checkpoint of another run's log"
            raise LedgerError(msg)
        note.require(self._origin, self._keys[SERVER])
        return note

    def _cosignature(self, file: str, head: Checkpoint, signed: NoteSignature) -> None:
        name = signed.name
        try:
            Note(head, (signed,)).require(name, self._keys[name])
        except BadSignatureError:
            what = f"a signature in the name of {name!r} that is not of its key"
            self._note_problem(file, what, BadSignatureError)
            return
        before = self.report.cosigned.get(name, 0)
        self.report.cosigned[name] = max(before, head.size)
        known = self._vouched.get(name)
        if known is not None and (head.size, head.root) not in known:
            what = (
                f"{name!r} cosigned it, and the ledger of {name!r} does not hold it: "
                "that ledger is an older copy, or was forged"
            )
            self._note_problem(file, what, RollbackError)

    def _holds(self, size: int, root: bytes) -> bool:
        return size <= self._tree.size and self._tree.root(size) == root

    def _note_problem(
        self, file: str, what: str, kind: type[LedgerError], line: int = 0
    ) -> None:
        self.report.problems.append(Problem(file, line, what, kind))


def roots_of(file: str, runs: Iterable[Run]) -> list[SignedRoot]:
    """Every checkpoint in a client's ledger; each line shows that the server signed."""
    return [
        SignedRoot(
            Checkpoint(log_origin(run.opened.run), record.size, record.root),
            run.opened.roster[SERVER],
            f"{file}:{line}",
        )
        for run in runs
        for line, record in _checkpoints(run, Cosigned, Disputed)
    ]


def roots_of_log(
    file: str, lines: Sequence[bytes], opened: ClientOpened | ServerOpened
) -> list[SignedRoot]:
    """The root at every size of a server's ledger that verifies.

    Its lines are signed and linked, so that each of them says what all before it were.
    Without these, a server that shows two histories hides them by never letting the
    sizes of their checkpoints be the same.
    """
    origin, server, tree = log_origin(opened.run), opened.roster[SERVER], Tree(lines)
    return [
        SignedRoot(Checkpoint(origin, size, tree.root(size)), server, f"{file}:{size}")
        for size in range(1, tree.size + 1)
    ]


def split_views(roots: Iterable[SignedRoot]) -> list[str]:
    """Where one server signed two roots for one size of one log, in words.

    Nobody but the server can make such a pair, so that it needs no other evidence. Of
    two files that part ways at a size, and so at every larger one, one is named.
    """
    known: dict[tuple[str, bytes, int], SignedRoot] = {}
    found: dict[tuple[str, str], str] = {}
    for root in roots:
        place = (root.head.origin, root.server, root.head.size)
        first = known.setdefault(place, root)
        if first.head.root != root.head.root:
            pair = (_LINE.sub("", first.where), _LINE.sub("", root.where))
            found.setdefault(
                pair,
                f"{first.where} and {root.where}: the server signed two histories of "
                f"{root.head.size} lines",
            )
    return list(found.values())


def _checkpoints(
    run: Run, *kinds: type[Cosigned | Disputed]
) -> Iterator[tuple[int, Cosigned | Disputed]]:
    entries: Sequence[Entry] = run.entries
    for entry in entries:
        if isinstance(entry.record, Cosigned | Disputed) and isinstance(
            entry.record, kinds
        ):
            yield entry.line, entry.record
