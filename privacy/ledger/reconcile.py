"""Whether the clients' ledgers and the server's tell the same story of every round.

A server that shows two clients different rounds, and a client that denies what it
sent, both have to sign a lie that one of the others' ledgers contradicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from privacy.ledger.chain import Problem
from privacy.ledger.codes import Reason, Status
from privacy.ledger.records import (
    Aborted,
    Commit,
    Joined,
    Outcome,
    Published,
    Roster,
    RoundOpened,
)
from privacy.ledger.verify import Run

Place = tuple[int, int]
"""Round and attempt."""

# A survivor whose process died after sending may never learn that the sum was opened.
_CANNOT_KNOW = frozenset({Reason.INTERRUPTED, Reason.DEADLINE, Reason.STOPPED})


@dataclass(frozen=True, slots=True)
class RunFile:
    """One party's records of the run, and the file that they stand in."""

    file: str
    run: Run

    def heads(self) -> Mapping[bytes, int]:
        """The line of every hash."""
        return {entry.head: entry.line for entry in self.run.entries}


@dataclass(slots=True)
class _ServerRound:
    """What the server wrote of one attempt."""

    opened: RoundOpened
    line: int
    members: tuple[str, ...] = ()
    published: Published | None = None
    end_line: int = 0


@dataclass(slots=True)
class _ClientRound:
    """What one client wrote of one attempt, and the hashes of those lines."""

    joined: Joined
    line: int
    heads: set[bytes]
    commit: Commit | None = None
    outcome: Outcome | None = None
    outcome_line: int = 0


def reconcile(
    server: RunFile, clients: Mapping[str, RunFile], *, unfinished: bool
) -> list[Problem]:
    """Compare every round; the problems in the order of the server's rounds."""
    return list(_problems(server, clients, unfinished=unfinished))


def _problems(
    server: RunFile, clients: Mapping[str, RunFile], *, unfinished: bool
) -> Iterator[Problem]:
    rounds = _server_rounds(server.run)
    heads = server.heads()
    for name, client in sorted(clients.items()):
        own = _client_rounds(client.run)
        for place, theirs in rounds.items():
            mine = own.get(place)
            if mine is None:
                if name in theirs.members:
                    what = f"{client.file} has no record of this round"
                    yield Problem(server.file, theirs.line, what)
                continue
            for line, what in _compare(name, theirs, mine, heads, unfinished):
                yield Problem(client.file, line, f"round {place[0]}: {what}")
        for place, mine in own.items():
            if place not in rounds:
                what = f"round {place[0]}: the server's ledger does not have it"
                yield Problem(client.file, mine.line, what)


def _compare(
    name: str,
    theirs: _ServerRound,
    mine: _ClientRound,
    heads: Mapping[bytes, int],
    unfinished: bool,
) -> Iterator[tuple[int, str]]:
    """What is wrong between the server's and one client's view of an attempt."""
    joined, outcome, published = mine.joined, mine.outcome, theirs.published
    if joined.offer_digest != theirs.opened.offer_digest:
        yield mine.line, "joined another offer than the server recorded"
    if joined.adapter_digest != theirs.opened.adapter_digest:
        yield mine.line, "joined with another adapter than the server recorded"
    if published is not None:
        head = published.heads.get(name)
        if head is not None and head not in mine.heads:
            yield (
                mine.line,
                "the ledger hash that the server received is none of this round's",
            )
    if outcome is None:
        if not unfinished:
            yield mine.line, "it has no outcome"
        if published is None or name not in published.survivors:
            return
        if mine.commit is None:
            yield mine.line, "in the published sum without a commitment"
        return
    yield from _compare_outcome(name, theirs, mine, outcome)
    if outcome.server_head is not None:
        least = theirs.end_line or theirs.line
        if heads.get(outcome.server_head, 0) < least:
            yield (
                mine.outcome_line,
                "the server's ledger hash is of no line that reports this round",
            )


def _compare_outcome(
    name: str, theirs: _ServerRound, mine: _ClientRound, outcome: Outcome
) -> Iterator[tuple[int, str]]:
    published, line = theirs.published, mine.outcome_line
    if published is None:
        if outcome.survivors:
            yield line, "a sum that the server's ledger does not have"
        return
    if outcome.survivors:
        told = (outcome.survivors, outcome.adapter_digest, outcome.transcript)
        if told != (
            published.survivors,
            published.adapter_after,
            published.transcript,
        ):
            yield line, "other survivors, adapter or transcript than the server's"
    if name not in published.survivors:
        return
    if mine.commit is None:
        yield line, "in the published sum without a commitment"
    unaware = outcome.status is Status.MISSED and outcome.reason in _CANNOT_KNOW
    if outcome.status is not Status.PUBLISHED and not unaware:
        yield line, f"in the published sum, but recorded as {outcome.status.value}"


def _server_rounds(run: Run) -> dict[Place, _ServerRound]:
    rounds: dict[Place, _ServerRound] = {}
    for entry in run.entries:
        record = entry.record
        if isinstance(record, RoundOpened):
            rounds[_place(record)] = _ServerRound(record, entry.line)
        elif isinstance(record, Roster):
            rounds[_place(record)].members = record.members
        elif isinstance(record, Published):
            rounds[_place(record)].published = record
            rounds[_place(record)].end_line = entry.line
        elif isinstance(record, Aborted):
            rounds[_place(record)].end_line = entry.line
    return rounds


def _client_rounds(run: Run) -> dict[Place, _ClientRound]:
    rounds: dict[Place, _ClientRound] = {}
    current: _ClientRound | None = None
    for entry in run.entries:
        record = entry.record
        if isinstance(record, Joined):
            current = _ClientRound(record, entry.line, set())
            rounds[_place(record)] = current
        if current is None:
            continue
        if isinstance(record, Outcome):
            current.outcome, current.outcome_line = record, entry.line
            current = None
            continue
        current.heads.add(entry.head)
        if isinstance(record, Commit):
            current.commit = record
    return rounds


def _place(
    record: RoundOpened | Roster | Published | Aborted | Joined,
) -> Place:
    return record.round, record.attempt
