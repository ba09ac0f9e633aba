"""The server's ledger as a log that its clients can check: checkpoints and updates.

The lines of the ledger are the entries of a Merkle tree. After each round the server
signs a checkpoint, shows each client what is new together with a proof that nothing old
was changed, and keeps the cosignatures that come back beside the ledger:

    ledger/log/<size>.note    the checkpoint of that size, and who signed it
    ledger/checkpoint         the last of them
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from privacy.crypto import SigningKey, VerifyKey
from privacy.errors import (
    BadSignatureError,
    LedgerError,
    MalformedMessageError,
    RollbackError,
)
from privacy.ledger.chain import split_lines
from privacy.ledger.checkpoint import (
    Checkpoint,
    Note,
    NoteSignature,
    key_id,
    log_origin,
    merged,
    parse_note,
    sign_checkpoint,
)
from privacy.ledger.durable import UNFINISHED_SUFFIX, make_directory, replace_file
from privacy.ledger.log_update import LogUpdate, seal_update
from privacy.ledger.merkle import Tree
from privacy.ledger.store import Ledger

LOG_FOLDER = "log"
CHECKPOINT = "checkpoint"
NOTE_SUFFIX = ".note"

_NOTE_NAME = re.compile(r"[1-9][0-9]{0,15}\.note")


def note_name(size: int) -> str:
    """The file of the checkpoint of a size."""
    return f"{size}{NOTE_SUFFIX}"


def is_note_name(name: str) -> bool:
    """Whether a file is called as a checkpoint's is."""
    return _NOTE_NAME.fullmatch(name) is not None


class SharedLog:
    """The server's side of its log.

    Args:
        ledger: its own, in which the run is open.
        key: identity.
        clients: pinned public key of every client.

    Raises:
        RollbackError: the ledger does not hold what a kept checkpoint says.
        LedgerError: a kept checkpoint cannot be read.
    """

    def __init__(
        self, ledger: Ledger, key: SigningKey, clients: Mapping[str, VerifyKey]
    ) -> None:
        self._ledger = ledger
        self._key = key
        self._clients = dict(clients)
        self._run = ledger.history.run
        self._origin = log_origin(self._run)
        self._folder = ledger.path.parent / LOG_FOLDER
        self._tree = Tree()
        self._lines: list[bytes] = []
        self._read = 0
        # The last note of each client, with the server's signature and its own.
        self._last: dict[str, Note] = {}
        self._note: Note | None = None
        self._follow()
        self._load()

    def checkpoint(self) -> Checkpoint:
        """Sign the log as it is now; the signature is kept before anybody is told.

        Raises:
            LedgerError: it cannot be written, or a round is under way: clients could
                not tell then what may follow.
        """
        if self._ledger.history.unfinished:
            msg = "a checkpoint is signed between rounds, and a round is under way"
            raise LedgerError(msg)
        self._follow()
        size = self._tree.size
        if self._note is None or self._note.checkpoint.size != size:
            head = Checkpoint(self._origin, size, self._tree.root())
            own = sign_checkpoint(head, self._origin, self._key)
            self._keep(Note(head, (own,)))
        return Checkpoint(self._origin, size, self._tree.root())

    def updates(self, names: Iterable[str]) -> dict[str, bytes]:
        """What to show each client, from what it has checked on to the end."""
        head = self.checkpoint()
        own = sign_checkpoint(head, self._origin, self._key)
        note = Note(head, (own,)).to_bytes()
        return {name: self._update(name, head.size, note) for name in names}

    def meet(self, replies: Mapping[str, bytes]) -> None:
        """Learn from clients, before anything else is done, how far they have checked.

        Args:
            replies: what they answered to the question for it.

        Raises:
            RollbackError: one of them holds a checkpoint that this server signed and
                whose log it does not have.
        """
        self._follow()
        for name, reply in replies.items():
            note = self._cosigned(name, reply)
            if note is not None:
                self._require_held(note.checkpoint, f"client {name}")
                self._advance(name, note)

    def take(self, replies: Mapping[str, bytes]) -> tuple[str, ...]:
        """Keep the cosignatures that came back, all of them at once.

        Returns:
            Clients whose answer is no cosignature of this log; it is dropped.

        Raises:
            LedgerError: they cannot be written.
        """
        fresh: dict[str, NoteSignature] = {}
        dropped = []
        for name, reply in sorted(replies.items()):
            note = self._cosigned(name, reply)
            if note is None or not self._holds(note.checkpoint):
                dropped.append(name)
                continue
            self._advance(name, note)
            if self._note and note.checkpoint == self._note.checkpoint:
                fresh[name] = note.signatures[-1]
        if self._note and fresh:
            self._keep(merged(self._note, fresh))
        return tuple(dropped)

    def _advance(self, name: str, note: Note) -> None:
        """Remember the largest; an older one may be a message that came again."""
        last = self._last.get(name)
        if last is None or last.checkpoint.size < note.checkpoint.size:
            self._last[name] = note

    def _update(self, name: str, size: int, note: bytes) -> bytes:
        last = self._last.get(name)
        start = last.checkpoint.size if last else 0
        proof = self._tree.consistency(start, size) if start else ()
        update = LogUpdate(
            note=note,
            start=start,
            lines=tuple(self._lines[start:size]),
            proof=proof,
            cosigned=last.to_bytes() if last else b"",
        )
        return seal_update(update, self._key, self._run, name)

    def _cosigned(self, name: str, reply: bytes) -> Note | None:
        """A note that both the server and this client signed, stripped of the rest."""
        key = self._clients.get(name)
        try:
            note = parse_note(reply)
            if key is None or note.checkpoint.origin != self._origin:
                return None
            note.require(self._origin, self._key.verify_key)
            theirs = NoteSignature(name, key_id(name, key), note.require(name, key))
        except (MalformedMessageError, BadSignatureError):
            return None
        own = sign_checkpoint(note.checkpoint, self._origin, self._key)
        return Note(note.checkpoint, (own, theirs))

    def _holds(self, head: Checkpoint) -> bool:
        return head.size <= self._tree.size and self._tree.root(head.size) == head.root

    def _require_held(self, head: Checkpoint, holder: str) -> None:
        if not self._holds(head):
            msg = (
                f"{self._ledger.path.name} is not the ledger whose {head.size} lines "
                f"{holder} has a checkpoint of: it was cut or replaced by an older "
                "copy; restore the newer one, or begin a new run in another folder"
            )
            raise RollbackError(msg)

    def _follow(self) -> None:
        """Take in the lines that the ledger has got since."""
        with self._ledger.path.open("rb") as handle:
            handle.seek(self._read)
            lines, rest = split_lines(handle.read())
            self._read = handle.tell() - len(rest)
        for line in lines:
            self._tree.append(line)
        self._lines += lines

    def _load(self) -> None:
        """Hold the ledger to every checkpoint that was signed; see who cosigned."""
        for path in self._folder.glob(f"*{UNFINISHED_SUFFIX}"):
            # Half of a note, of a process that died. Nobody was told of it.
            path.unlink()
        kept = [
            self._read_note(path)
            for path in self._folder.glob("*")
            if is_note_name(path.name)
        ]
        kept.sort(key=lambda note: note.checkpoint.size, reverse=True)
        for note in kept:
            name = note_name(note.checkpoint.size)
            self._require_held(note.checkpoint, f"{LOG_FOLDER}/{name}")
            for client in self._clients.keys() - self._last.keys():
                last = self._cosigned(client, note.to_bytes())
                if last is not None:
                    self._last[client] = last
        self._note = kept[0] if kept else None

    def _read_note(self, path: Path) -> Note:
        try:
            note = parse_note(path.read_bytes())
            note.require(self._origin, self._key.verify_key)
            if note_name(note.checkpoint.size) == path.name:
                return note
        except (OSError, MalformedMessageError, BadSignatureError):
            pass
        msg = f"{LOG_FOLDER}/{path.name} is damaged; restore it from a backup"
        raise LedgerError(msg)

    def _keep(self, note: Note) -> None:
        data = note.to_bytes()
        try:
            make_directory(self._folder)
            replace_file(self._folder / note_name(note.checkpoint.size), data)
            replace_file(self._folder.parent / CHECKPOINT, data)
        except OSError as error:
            reason = error.strerror or str(error)
            msg = (
                f"{LOG_FOLDER}/{note_name(note.checkpoint.size)} cannot be written: "
                f"{reason}. Nothing more is done without its record."
            )
            raise LedgerError(msg) from error
        self._note = note
