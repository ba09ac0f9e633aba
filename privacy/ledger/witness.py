"""The client's side of the server's log: check what is new, vouch for it, or refuse.

A client vouches for a checkpoint after it has seen that

1. the server signed it, and the update around it, for this run and this client;
2. the log begins with the one that this client vouched for last (consistency proof);
3. the lines that were sent are all that came since, and follow the rules of a ledger:
   the plan, with its registered event, and the keys are this client's own, and no sum
   has fewer survivors than the plan and the roster ask for;
4. every round that this client took part in since ends in them, and stands there as in
   its own ledger: offer, adapters, the roster and the sharers that it was shown,
   survivors, transcript, the hash of its line; and with the hashes of the survivors and
   the sum, as far as its process lived to remember them;
5. they name no line of its own ledger which that ledger does not hold.

Then the checkpoint goes into the client's own ledger, and only then does a cosignature
leave. What leaves depends on the log alone, and so on nothing private.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from privacy.crypto import SigningKey, VerifyKey, equal
from privacy.errors import (
    BadSignatureError,
    BrokenChainError,
    EquivocationError,
    FaultyServerError,
    LedgerError,
    MalformedMessageError,
    ReplayError,
    RollbackError,
)
from privacy.ledger.chain import Entry, read_line
from privacy.ledger.checkpoint import (
    Checkpoint,
    Note,
    NoteSignature,
    key_id,
    log_origin,
    parse_note,
    sign_checkpoint,
)
from privacy.ledger.codes import Reason, Role, Status
from privacy.ledger.envelope import GENESIS, line_hash
from privacy.ledger.history import History
from privacy.ledger.log_update import LogUpdate, open_update
from privacy.ledger.merkle import EMPTY_ROOT, Peaks, verify_consistency
from privacy.ledger.payload import Header
from privacy.ledger.reconcile import (
    ClientRound,
    Place,
    ServerRound,
    client_rounds,
    compare_round,
    server_rounds,
)
from privacy.ledger.records import (
    ClientOpened,
    Cosigned,
    Disputed,
    Joined,
    Moved,
    Record,
    Refused,
    Resumed,
    ServerClosed,
    ServerOpened,
)
from privacy.ledger.steps import STEPS, Phase
from privacy.ledger.store import Ledger
from privacy.plan import SERVER


@dataclass(frozen=True, slots=True)
class View:
    """A checkpoint of the server's log that was checked.

    Attributes:
        head: the checkpoint.
        signature: the server's.
        server: state of the server's ledger there.
        whole: whether `server` was followed from the first line, so that it knows all.
    """

    head: Checkpoint
    signature: bytes
    server: History
    whole: bool

    def may_be_followed_by(self, round_number: int, adapter_digest: bytes) -> bool:
        """Whether the server can offer such a round without lying about its log.

        It cannot after it has closed, nor an earlier round, nor on another adapter than
        it published last, as far as this client has followed it.
        """
        return (
            self.server.phase is Phase.IDLE
            and self.server.round < round_number
            and self.server.adapter in {None, adapter_digest}
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client saw of a round beside what its ledger says; None where it did not.

    It is lost with the process. Of one roster no two sets of survivors find a quorum,
    and the sum is in the transcript and in the server's line, whose hashes are in the
    ledger: so nothing is hidden from a client that has forgotten these.

    Attributes:
        survivors_hash: U3, as the client computed it from the signed message.
        sum_digest: as the server told it.
    """

    survivors_hash: bytes | None = None
    sum_digest: bytes | None = None


class Witness:
    """A client that keeps watch over the server's log.

    Args:
        ledger: the client's own, in which the run is open.
        key: the client's identity.
    """

    def __init__(self, ledger: Ledger, key: SigningKey) -> None:
        self._ledger = ledger
        self._key = key
        self._name = ledger.history.party
        self._run = ledger.history.run
        self._origin = log_origin(self._run)
        self._server = VerifyKey(ledger.history.server_key)
        self._view: View | None = None
        self._seen: dict[Place, Seen] = {}
        self._forgot = False

    def saw(
        self,
        *,
        survivors_hash: bytes | None = None,
        sum_digest: bytes | None = None,
    ) -> None:
        """Remember what was seen of the round that was begun last."""
        history = self._ledger.history
        place = (history.round, history.attempt)
        before = self._seen.get(place, Seen())
        self._seen[place] = Seen(
            survivors_hash or before.survivors_hash,
            sum_digest or before.sum_digest,
        )

    def position(self) -> bytes:
        """The last note that this client vouched for; nothing before the first."""
        own = self._own_entries()
        kept = [entry.record for entry in own if isinstance(entry.record, Cosigned)]
        if not kept:
            return b""
        head = Checkpoint(self._origin, kept[-1].size, kept[-1].root)
        return self._note(head, kept[-1].signature)

    def check(self, data: bytes) -> View:
        """Check an update; nothing is vouched for yet.

        Raises:
            EquivocationError: the server contradicts what it signed or told before.
                That is in the ledger, and no round with this server may follow.
            RollbackError: this client's ledger has lost lines; the refusal is in it,
                once as long as this process lives.
            ReplayError: an older checkpoint than was checked.
            FaultyServerError: not signed by the server, or not all that is needed.
            MalformedMessageError: not an update.
        """
        history = self._ledger.history
        if history.server_key in history.distrusted:
            msg = (
                "this ledger holds a refusal of this server for two histories; compare "
                "the ledgers of all parties, and go on only with another server"
            )
            raise EquivocationError(msg)
        update = open_update(data, self._server, self._run, self._name)
        head, signature = self._head(update.note)
        try:
            self._check_memory(update)
            return self._followed(update, head, signature)
        except EquivocationError:
            self._ledger.append(Disputed(head.size, head.root, signature))
            self._ledger.append(Refused(0, 0, Reason.EQUIVOCATION, None))
            raise
        except RollbackError:
            # What was lost stays lost, however often somebody shows what proves it.
            if not self._forgot:
                self._ledger.append(Refused(0, 0, Reason.ROLLBACK, None))
                self._forgot = True
            raise

    def vouch(self, view: View) -> bytes:
        """Write that a log was checked into the own ledger, and then sign it.

        Returns:
            The note, with the server's signature and this client's.
        """
        checked = self._ledger.history.checked
        if not checked or checked[-1][0] < view.head.size:
            self._ledger.append(
                Cosigned(view.head.size, view.head.root, view.signature)
            )
        self._view = view
        self._seen.clear()
        return self._note(view.head, view.signature)

    def _head(self, note: bytes) -> tuple[Checkpoint, bytes]:
        parsed = parse_note(note)
        if parsed.checkpoint.origin != self._origin:
            msg = "a checkpoint of another log"
            raise FaultyServerError(msg)
        try:
            signature = parsed.require(self._origin, self._server)
        except BadSignatureError:
            msg = "a checkpoint that the server did not sign"
            raise FaultyServerError(msg) from None
        return parsed.checkpoint, signature

    def _note(self, head: Checkpoint, signature: bytes) -> bytes:
        theirs = NoteSignature(
            self._origin, key_id(self._origin, self._server), signature
        )
        return Note(
            head, (theirs, sign_checkpoint(head, self._name, self._key))
        ).to_bytes()

    def _check_memory(self, update: LogUpdate) -> None:
        """Hold the own ledger to what this client once signed.

        Raises:
            RollbackError: it has forgotten.
        """
        try:
            note = parse_note(update.cosigned)
            note.require(self._name, self._key.verify_key)
        except (MalformedMessageError, BadSignatureError):
            # Nothing, or nothing that this client signed: so nothing follows from it.
            return
        head = note.checkpoint
        known = dict(self._ledger.history.checked)
        if head.origin == self._origin and known.get(head.size) != head.root:
            raise self._forgotten(f"a checkpoint of {head.size} lines that it signed")

    def _followed(self, update: LogUpdate, head: Checkpoint, signature: bytes) -> View:
        checked = self._ledger.history.checked
        size, root = checked[-1] if checked else (0, EMPTY_ROOT)
        if dict(checked).get(head.size, head.root) != head.root:
            msg = f"the server signed two roots for its log of {head.size} lines"
            raise EquivocationError(msg)
        if head.size < size:
            msg = "an older checkpoint than was checked before"
            raise ReplayError(msg)
        self._check_lines(update, head, size, root)
        view = self._view
        if view is None or view.head.size != size:
            view = self._without_memory(size)
        fresh = update.lines[size - update.start :]
        try:
            entries, server = self._replayed(view, fresh)
        except LedgerError as error:
            msg = f"the server's log breaks the rules of a ledger: {error}"
            raise EquivocationError(msg) from None
        self._check_own(entries)
        return View(head, signature, server, view.whole)

    def _check_lines(
        self, update: LogUpdate, head: Checkpoint, size: int, root: bytes
    ) -> None:
        """See that the lines lead from what was checked to the checkpoint.

        Raises:
            EquivocationError: another log than before, or other lines than its own.
            FaultyServerError: it begins where this client cannot follow.
        """
        start, known = update.start, dict(self._ledger.history.checked)
        if start and start not in known:
            msg = "a log that begins where this client has not checked it"
            raise FaultyServerError(msg)
        if len(update.lines) != head.size - start:
            msg = "not all lines of the log up to the checkpoint"
            raise FaultyServerError(msg)
        peaks: Peaks | None = Peaks()
        if start:
            try:
                peaks = verify_consistency(
                    start, head.size, known[start], head.root, update.proof
                )
            except BrokenChainError as error:
                msg = (
                    f"the server's log of {head.size} lines does not begin with the "
                    f"{start} that were checked: {error}"
                )
                raise EquivocationError(msg) from None
        if peaks is None:
            return
        for line in update.lines:
            peaks = peaks.extended(line)
            if peaks.size == size and not equal(peaks.root(), root):
                msg = f"the server's log no longer holds the {size} lines checked"
                raise EquivocationError(msg)
        if not equal(peaks.root(), head.root):
            msg = "the lines that were sent are not those of the checkpoint"
            raise EquivocationError(msg)

    def _without_memory(self, size: int) -> View:
        """What is known of the server's ledger at a size by one that just started.

        A checkpoint is made between rounds, so that the phase is known.
        """
        opened = self._ledger.history.opened
        start = History(SERVER, Role.SERVER)
        if size and isinstance(opened, ClientOpened):
            start = replace(
                start,
                phase=Phase.IDLE,
                records=size,
                run=self._run,
                runs=frozenset({self._run}),
                opened=ServerOpened(
                    self._run, "", opened.plan, opened.plan_digest, opened.roster
                ),
                terms=self._ledger.history.terms,
            )
        head = Checkpoint(self._origin, size, EMPTY_ROOT)
        return View(head, b"", start, whole=size == 0)

    def _replayed(
        self, view: View, lines: Sequence[bytes]
    ) -> tuple[list[Entry], History]:
        """Read new lines as a verifier does, and follow the server's state.

        Raises:
            LedgerError: a line is not the server's, or may not stand there.
        """
        server, prev = view.server, GENESIS if view.server.records == 0 else None
        entries = []
        for line in lines:
            header, record, _ = read_line(line, self._server)
            if header.seq != server.records or prev not in {None, header.prev}:
                msg = "a line that is not linked to the one before"
                raise BrokenChainError(msg)
            if isinstance(record, ServerOpened):
                self._check_opened(record)
            server = _after(server, header, record, whole=view.whole)
            prev = line_hash(line)
            entries.append(Entry(server.records, prev, header, record))
        if server.phase not in {Phase.IDLE, Phase.CLOSED}:
            msg = "a checkpoint in the middle of a round"
            raise BrokenChainError(msg)
        return entries, server

    def _check_opened(self, record: ServerOpened) -> None:
        own = self._ledger.history.opened
        if (
            own is None
            or record.run != self._run
            or record.plan_digest != own.plan_digest
            or dict(record.roster) != dict(own.roster)
        ):
            msg = "the server opened another run, plan or roster than this client"
            raise BrokenChainError(msg)

    def _check_own(self, entries: Sequence[Entry]) -> None:
        """Find this client's part of each round, and compare it.

        Raises:
            RollbackError: the server has lines of this client that it does not have.
            EquivocationError: the server tells another story than this client knows.
            FaultyServerError: the end of a round is not there.
        """
        theirs, own = server_rounds(entries), client_rounds(self._own_entries())
        held = {entry.head for entry in self._ledger.entries}
        heads = {entry.head: entry.line for entry in entries}
        for place, told in theirs.items():
            head = told.published.heads.get(self._name) if told.published else None
            mine = own.get(place)
            lost = mine is None and self._name in told.members
            lost |= mine is not None and _may_have_forgotten(self._name, told, mine)
            # What the server itself ended here is whole: then the contradiction is its.
            ended = mine is not None and _told_by_server(mine)
            if lost or (head is not None and head not in held and not ended):
                raise self._forgotten(f"lines of round {place[0]}")
        for place in theirs.keys() & own.keys():
            for _, what in compare_round(
                self._name, theirs[place], own[place], heads, unfinished=True
            ):
                msg = f"round {place[0]} in the server's log: {what}"
                raise EquivocationError(msg)
            if not _agrees(theirs[place], self._seen.get(place, Seen())):
                msg = (
                    f"round {place[0]} in the server's log: other survivors, or "
                    "another sum, than this client was shown"
                )
                raise EquivocationError(msg)
        moves = [entry.record for entry in entries if isinstance(entry.record, Moved)]
        for moved in moves:
            mine = own.get((moved.round, moved.attempt))
            if mine is not None and not _may_be_moved(mine, moved):
                msg = f"round {moved.round} in the server's log: it moved otherwise"
                raise EquivocationError(msg)
        for place in self._joined_since():
            if place not in theirs:
                msg = f"the server's log does not have round {place[0]}"
                raise FaultyServerError(msg)

    def _joined_since(self) -> Iterator[Place]:
        """The rounds joined after the last checkpoint that was vouched for."""
        since: list[Place] = []
        for entry in self._own_entries():
            if isinstance(entry.record, Cosigned):
                since = []
            elif isinstance(entry.record, Joined):
                since.append((entry.record.round, entry.record.attempt))
        return iter(since)

    def _own_entries(self) -> list[Entry]:
        """The lines of this run in the own ledger."""
        return [e for e in self._ledger.entries if e.header.run == self._run]

    def _forgotten(self, what: str) -> RollbackError:
        msg = (
            f"{self._ledger.path.name} does not hold {what} and that the server has: "
            "it was replaced by an older copy, or the server made it up; restore the "
            "newest copy with its .head file, since going on would forget charges"
        )
        return RollbackError(msg)


def _agrees(told: ServerRound, seen: Seen) -> bool:
    """Whether a round stands in the log as it was seen.

    The server writes each of these down before it shows them, so that one which was
    seen and is missing is a contradiction too.
    """
    survivors = told.counted.survivors_hash if told.counted else None
    opened = told.published.sum_digest if told.published else None
    return seen.survivors_hash in {None, survivors} and seen.sum_digest in {
        None,
        opened,
    }


def _may_have_forgotten(name: str, told: ServerRound, mine: ClientRound) -> bool:
    """Whether a vector came in of which there is no commitment, at one that restarted.

    A client that lived through the round has it in memory that it sent none.
    """
    return mine.resumed and mine.commit is None and name in told.survivors


def _told_by_server(mine: ClientRound) -> bool:
    """Whether the server told this client how the round ended."""
    return mine.outcome is not None and mine.outcome.status is not Status.MISSED


def _may_be_moved(mine: ClientRound, moved: Moved) -> bool:
    """Whether others can have moved the adapter after a round of this client's."""
    published = mine.outcome is not None and mine.outcome.status is Status.PUBLISHED
    return not published and mine.joined.adapter_digest == moved.adapter_before


def _after(server: History, header: Header, record: Record, *, whole: bool) -> History:
    """The server's state after one more line.

    Who does not know the lines before cannot tell whether what `resumed` and `closed`
    say of these is true, nor which round it was after which others moved the adapter.
    It decides nothing for a client; an auditor checks it.
    """
    # Once a round was begun in these lines, all that a move must fit is known.
    ended_before = isinstance(record, Moved) and not server.round
    known = not isinstance(record, Resumed | ServerClosed) and not ended_before
    if whole or known:
        return server.after(header, record)
    phase = STEPS[Role.SERVER][server.phase].get(record.kind)
    ours = (header.party, header.role, header.run) == (SERVER, Role.SERVER, server.run)
    if phase is None or not ours:
        msg = f"{record.kind!r} cannot follow there"
        raise BrokenChainError(msg)
    if isinstance(record, Moved):
        server = replace(
            server,
            round=record.round,
            attempt=record.attempt,
            adapter=record.adapter_after,
            moved=server.moved + 1,
        )
    return replace(server, phase=phase, records=server.records + 1, last=record.kind)
