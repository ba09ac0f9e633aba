"""A run's folder as records that can be changed and signed again, and as bytes.

A client's record names the head of a server's line and the other way round. Here such
a head is a `Told`: which record it is of. So when a party changes a record before it
tells of it, all that follows is signed anew and fits, and what a verifier finds is the
lie itself and not the traces of a forgery. In the same way the notes of the server's
log, and what clients write of them, are made from the lines that the server has.
"""

from __future__ import annotations

import contextlib
import json
import re
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from privacy.crypto import Label, SigningKey, sha256
from privacy.ledger.checkpoint import (
    Checkpoint,
    Note,
    log_origin,
    parse_note,
    sign_checkpoint,
)
from privacy.ledger.envelope import GENESIS, line_hash, open_line, seal_line
from privacy.ledger.merkle import Tree
from privacy.plan import SERVER
from privacy.wire import canonical_json
from tests.privacy.ledger.synthetic import make_key, number

Record = dict[str, Any]
Files = dict[str, bytes]
CHECKPOINT = "ledger/checkpoint"
LEDGER = re.compile(r"ledger/([^/]+)\.jsonl")
ENDS = ("published", "aborted")


def text_of(value: object) -> bytes:
    """Canonical JSON, also of what may not be written: names here are all ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest_of(plan: Record) -> str:
    """The digest of a plan, also of one that may not be written."""
    return sha256(Label.PLAN, text_of(plan)).hex()


@dataclass(frozen=True, slots=True)
class Told:
    """The head of the line that a record stands in.

    Attributes:
        record: the very object; another with the same content is another line.
        head: in the honest run, for a record that was left out since.
    """

    record: Record
    head: str


@dataclass(frozen=True, slots=True)
class Shown:
    """The root of so many of the server's lines, or the server's signature of it."""


def ledger_file(party: str) -> str:
    """Where a ledger lies."""
    return f"ledger/{party}.jsonl"


class Story:
    """A folder whose parties may lie. The summary says what the ledgers then add up to.

    Args:
        files: of a run that verifies.

    Attributes:
        clients: their names, sorted.
        parties: the clients, and the server last.
        files: the folder's other files, to be changed as bytes.
        records: of each party, in order; `seq` and `prev` are made when signed.
        keys: who signs for each party.
        notes: who signed the note of each size, the server as `server`.
        forced: header fields of a record, by its identity, that are not made anew.
    """

    def __init__(self, files: Files) -> None:
        self.files = dict(files)
        known = [
            found[1] for name in sorted(files) if (found := LEDGER.fullmatch(name))
        ]
        self.clients = tuple(name for name in known if name != SERVER)
        self.parties = (*self.clients, SERVER)
        self.keys: dict[str, SigningKey] = {
            name: make_key(name) for name in self.parties
        }
        lines = {name: files[ledger_file(name)].splitlines() for name in self.parties}
        self.records: dict[str, list[Record]] = {
            name: [json.loads(open_line(line).payload) for line in lines[name]]
            for name in self.parties
        }
        told = {
            line_hash(line).hex(): Told(record, line_hash(line).hex())
            for name in self.parties
            for line, record in zip(lines[name], self.records[name], strict=True)
        }
        self.forced: dict[int, Record] = {}
        self.notes: dict[int, list[str]] = {}
        for name in sorted(files):
            if name.startswith("ledger/log/"):
                note = parse_note(self.files.pop(name))
                signers = [one.name for one in note.signatures]
                own = note.checkpoint.origin
                self.notes[note.checkpoint.size] = [
                    SERVER if signer == own else signer for signer in signers
                ]
        self.files.pop(CHECKPOINT, None)
        for record in (each for name in self.parties for each in self.records[name]):
            if record["kind"] == "cosigned":
                record |= {"root": Shown(), "signature": Shown()}
            if record.get("server_head"):
                record["server_head"] = told[record["server_head"]]
            for name, head in record.get("heads", {}).items():
                record["heads"][name] = told[head]

    def of(self, party: str, kind: str, number: int = 0) -> Record:
        """A record to change: the n-th of a kind."""
        return [each for each in self.records[party] if each["kind"] == kind][number]

    def every(self, kind: str) -> list[Record]:
        """The records of a kind, of all parties."""
        return [
            r for name in self.parties for r in self.records[name] if r["kind"] == kind
        ]

    def change_plan(
        self, *, parties: tuple[str, ...] | None = None, **terms: object
    ) -> None:
        """Other terms in `opened` with a fitting digest; in plan.json if all do."""
        for name in parties or self.parties:
            for opened in (r for r in self.records[name] if r["kind"] == "opened"):
                opened["plan"] |= terms
                opened["plan_digest"] = digest_of(opened["plan"])
        if parties in (None, self.parties):
            plan = json.loads(self.files["plan.json"]) | terms
            self.files["plan.json"] = text_of(plan)

    def leave_out(self, party: str, *kinds: str, round: int = 0) -> None:  # noqa: A002
        """Take records away, make later counts fit, and reprice what is left."""
        self.records[party] = [
            record
            for record in self.records[party]
            if record["kind"] not in kinds or (round and record["round"] != round)
        ]
        self.mend(party)

    def mend(self, party: str) -> None:
        """Make the totals, and the figures of the charges that are left, true again.

        All charges of the runs are alike, so that the figures of n of them are those
        that the honest ledger had after n.
        """
        records = self.records[party]
        intents = [record for record in records if record["kind"] == "intent"]
        honest = Story(self.files).records[party]
        figures = [r for r in honest if r["kind"] == "intent"]
        for intent, figure in zip(intents, figures, strict=False):
            intent["spend"] = deepcopy(figure["spend"])
            intent["lifetime"] = deepcopy(figure["lifetime"])
        closed = records[-1]
        closed["records"] = len(records)
        if party != SERVER:
            closed |= {
                name: deepcopy(intents[-1][name]) for name in ("spend", "lifetime")
            }
        kind = "outcome" if party != SERVER else None
        for status in ("published", "aborted", "missed"):
            if status in closed:
                closed[status] = sum(
                    r["kind"] == kind and r["status"] == status
                    if kind
                    else r["kind"] == status
                    for r in records
                )

    def _summary(self, told: Record) -> bytes:
        """What the records add up to, as far as they have what it takes."""
        plan, server = json.loads(self.files["plan.json"]), self.records[SERVER]
        ended = {kind: [r for r in server if r["kind"] == kind] for kind in ENDS}
        run = server[0]["run"]
        told |= {
            "plan_digest": digest_of(plan),
            "rounds_completed": len(ended["published"]),
            "rounds_aborted": len(ended["aborted"]),
            "survivors": ([[]] + [r["survivors"] for r in ended["published"]])[-1],
        }
        figures = {}
        for name in self.clients:
            spent = [r for r in self.records[name] if "spend" in r and r["run"] == run]
            spend = spent[-1]["spend"] if spent else {"epsilon_pld": "0"}
            pld, rdp = spend["epsilon_pld"], spend.get("epsilon_rdp")
            figures[name] = rdp if pld == "infinity" else pld
        for client in told["clients"]:
            client["epsilon"] = number(Decimal(figures[client["name"]]))
        told["epsilon"] = number(max(map(Decimal, figures.values())))
        told["delta"] = number(Decimal(plan["delta"]))
        told["target_epsilon"] = number(Decimal(plan["epsilon"]))
        return json.dumps(told, indent=2).encode()

    def written(self) -> Files:
        """The folder, every line signed by its party."""
        lines: dict[int, bytes] = {}

        def seal(party: str, place: int) -> bytes:
            """The line of a record; those that it names are signed before it."""
            record = self.records[party][place]
            if id(record) not in lines:
                prev = line_hash(seal(party, place - 1)) if place else GENESIS
                body = record | {"seq": place, "prev": prev.hex()}
                body |= self.forced.get(id(record), {})
                if isinstance(body.get("root"), Shown):
                    body["root"] = root_of(body["size"]).hex()
                if isinstance(body.get("signature"), Shown):
                    root = bytes.fromhex(body["root"])
                    origin = log_origin(bytes.fromhex(body["run"]))
                    head = Checkpoint(origin, body["size"], root)
                    signed = sign_checkpoint(head, origin, self.keys[SERVER])
                    body["signature"] = signed.signature.hex()
                if isinstance(body.get("server_head"), Told):
                    body["server_head"] = head_of(body["server_head"])
                if "heads" in body:
                    body["heads"] = {
                        name: head_of(head) if isinstance(head, Told) else head
                        for name, head in body["heads"].items()
                    }
                lines[id(record)] = seal_line(text_of(body), self.keys[party])
            return lines[id(record)]

        def root_of(size: int) -> bytes:
            most = min(size, len(self.records[SERVER]))
            return Tree([seal(SERVER, place) for place in range(most)]).root()

        def head_of(told: Told) -> str:
            place = places.get(id(told.record))
            return line_hash(seal(*place)).hex() if place else told.head

        places = {
            id(record): (name, place)
            for name in self.parties
            for place, record in enumerate(self.records[name])
        }
        files = dict(self.files)
        if "summary.json" in files:
            # Where figures are no figures, the summary stays as it was.
            with contextlib.suppress(
                ArithmeticError, LookupError, TypeError, ValueError
            ):
                told = json.loads(files["summary.json"])
                files["summary.json"] = self._summary(told)
        for name in self.parties:
            own = [seal(name, place) for place in range(len(self.records[name]))]
            files[ledger_file(name)] = b"".join(line + b"\n" for line in own)
            head = {"head": line_hash(own[-1]).hex(), "records": len(own)}
            files[ledger_file(name) + ".head"] = canonical_json(head) + b"\n"
        origin = log_origin(bytes.fromhex(self.records[SERVER][0]["run"]))
        for size, signers in sorted(self.notes.items()):
            head = Checkpoint(origin, size, root_of(size))
            signatures = tuple(
                sign_checkpoint(
                    head, origin if name == SERVER else name, self.keys[name]
                )
                for name in signers
            )
            note = Note(head, signatures).to_bytes()
            files |= {f"ledger/log/{size}.note": note, CHECKPOINT: note}
        return files


def edits(before: Files, after: Files) -> list[dict[str, object]]:
    """What turns one folder into another: for each file that differs, one piece of it.

    Returns:
        Objects with `file`, and either `gone` or `start`, `end` (bytes of the file that
        are taken out; a new file is 0, 0) and `put` (text) or `put_hex`.
    """
    found: list[dict[str, object]] = []
    for file in sorted(before.keys() | after.keys()):
        old, new = before.get(file, b""), after.get(file)
        if new is None:
            found.append({"file": file, "gone": True})
        elif new != old or file not in before:
            shortest = min(len(old), len(new))
            start = next((i for i in range(shortest) if old[i] != new[i]), shortest)
            tail = next(
                (i for i in range(shortest - start) if old[-1 - i] != new[-1 - i]),
                shortest - start,
            )
            piece = new[start : len(new) - tail]
            put = (
                {"put": piece.decode()} if piece.isascii() else {"put_hex": piece.hex()}
            )
            found.append({"file": file, "start": start, "end": len(old) - tail, **put})
    return found


def applied(before: Files, changes: list[dict[str, Any]]) -> Files:
    """The other folder."""
    files = dict(before)
    for change in changes:
        file = change["file"]
        if change.get("gone"):
            del files[file]
            continue
        old = files.get(file, b"")
        hexed = bytes.fromhex(change.get("put_hex", ""))
        piece = change.get("put", "").encode() + hexed
        files[file] = old[: change["start"]] + piece + old[change["end"] :]
    return files
