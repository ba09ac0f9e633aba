"""Whether the clients' ledgers and the server's tell the same story of every round.

A server that shows two clients different rounds, and a client that denies what it
sent, both have to sign a lie that one of the others' ledgers contradicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from privacy.ledger.chain import Entry, Problem
from privacy.ledger.codes import Status
from privacy.ledger.records import (
    Aborted,
    Commit,
    Intent,
    Joined,
    Outcome,
    Published,
    Resumed,
    Roster,
    RoundOpened,
    Shown,
    Survivors,
)
from privacy.ledger.verify import Run

Place = tuple[int, int]
"""Round and attempt."""


@dataclass(frozen=True, slots=True)
class RunFile:
    """One party's records of the run, and the file that they stand in."""

    file: str
    run: Run

    def heads(self) -> Mapping[bytes, int]:
        """The line of every hash."""
        return {entry.head: entry.line for entry in self.run.entries}


@dataclass(slots=True)
class ServerRound:
    """What the server wrote of one attempt."""

    opened: RoundOpened
    line: int
    roster: Roster | None = None
    counted: Survivors | None = None
    published: Published | None = None
    aborted_head: bytes | None = None
    end_line: int = 0

    @property
    def members(self) -> tuple[str, ...]:
        """Who advertised keys, as far as the server has said."""
        return self.roster.members if self.roster else ()

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors came in, whether or not their sum was opened."""
        return self.counted.survivors if self.counted else ()


@dataclass(slots=True)
class ClientRound:
    """What one client wrote of one attempt, and the hashes of those lines.

    After `resumed` within it, what the lines miss may be what a copy of them lost.
    """

    joined: Joined
    line: int
    heads: set[bytes]
    shown: Shown | None = None
    shown_line: int = 0
    charge_line: int = 0
    commit: Commit | None = None
    outcome: Outcome | None = None
    outcome_line: int = 0
    resumed: bool = False


def reconcile(
    server: RunFile, clients: Mapping[str, RunFile], *, unfinished: bool
) -> list[Problem]:
    """Compare every round; the problems in the order of the server's rounds."""
    return list(_problems(server, clients, unfinished=unfinished))


def _problems(
    server: RunFile, clients: Mapping[str, RunFile], *, unfinished: bool
) -> Iterator[Problem]:
    rounds = server_rounds(server.run.entries)
    heads = server.heads()
    for name, client in sorted(clients.items()):
        own = client_rounds(client.run.entries)
        for place, theirs in rounds.items():
            mine = own.get(place)
            if mine is None:
                if name in theirs.members:
                    what = f"{client.file} has no record of this round"
                    yield Problem(server.file, theirs.line, what)
                continue
            for line, what in compare_round(
                name, theirs, mine, heads, unfinished=unfinished
            ):
                yield Problem(client.file, line, f"round {place[0]}: {what}")
        for place, mine in own.items():
            if place not in rounds:
                what = f"round {place[0]}: the server's ledger does not have it"
                yield Problem(client.file, mine.line, what)


def compare_round(
    name: str,
    theirs: ServerRound,
    mine: ClientRound,
    heads: Mapping[bytes, int],
    *,
    unfinished: bool,
) -> Iterator[tuple[int, str]]:
    """What is wrong between the server's and one client's view of an attempt.

    Args:
        name: the client.
        theirs: the server's view.
        mine: the client's.
        heads: the server's line of every hash.
        unfinished: whether the client's outcome may be missing.

    Yields:
        The client's line, and what is wrong with it.
    """
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
    yield from _compare_shown(theirs, mine)
    yield from _compare_charge(name, theirs, mine)
    if outcome is not None:
        yield from _compare_outcome(theirs, mine, outcome)
        yield from _compare_server_head(theirs, mine, outcome, heads)
    elif not unfinished:
        yield mine.line, "it has no outcome"


def _compare_shown(theirs: ServerRound, mine: ClientRound) -> Iterator[tuple[int, str]]:
    """Whether the server recorded the roster and the sharers that it showed.

    The roster is on disk before anybody is told of it; the sharers are written down
    with the survivors, after they were shown.
    """
    if mine.shown is None:
        return
    line, roster, counted = mine.shown_line, theirs.roster, theirs.counted
    ended = theirs.published is not None or theirs.aborted_head is not None
    if (roster is None and ended) or (
        roster is not None and roster.roster_hash != mine.shown.roster_hash
    ):
        yield line, "it was shown another roster than the server recorded"
    if counted is not None and counted.sharers_hash != mine.shown.sharers_hash:
        yield line, "it was shown other sharers than the server recorded"


def _compare_charge(
    name: str, theirs: ServerRound, mine: ClientRound
) -> Iterator[tuple[int, str]]:
    """Whether the server's record has this client where its charge says it was.

    A server tells a client of a roster or of key shares only after they are verified
    and recorded, so that an honest charge implies both. A server that ended the
    attempt without a roster has claimed nothing that a charge could contradict: no
    sum can be recorded there, and the charge stands.
    """
    if mine.charge_line:
        if theirs.roster is not None and name not in theirs.members:
            yield (
                mine.charge_line,
                "charged, but not in the roster that the server recorded: it was "
                "shown another roster, whose sum is hidden",
            )
        elif theirs.counted is not None and name not in theirs.counted.sharers:
            yield (
                mine.charge_line,
                "charged, but not among the sharers that the server recorded: it was "
                "shown other sharers, whose sum is hidden",
            )
    if name in theirs.survivors and mine.commit is None:
        where = "in the published sum" if theirs.published else "counted as a survivor"
        yield mine.outcome_line or mine.line, f"{where} without a commitment"


def _compare_server_head(
    theirs: ServerRound,
    mine: ClientRound,
    outcome: Outcome,
    heads: Mapping[bytes, int],
) -> Iterator[tuple[int, str]]:
    """Whether the hash that the client was told reports this attempt."""
    head = outcome.server_head
    if head is None:
        return
    if outcome.status is Status.ABORTED:
        reports = head == theirs.aborted_head
    else:
        reports = heads.get(head, 0) >= (theirs.end_line or theirs.line)
    if not reports:
        yield (
            mine.outcome_line,
            "the server's ledger hash is of no line that reports this round",
        )


def _compare_outcome(
    theirs: ServerRound, mine: ClientRound, outcome: Outcome
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
    # One that sent its vector and missed the news cannot know that the sum was opened,
    # whatever stopped it; its charge stands. "aborted" claims that there is no sum.
    if outcome.status is Status.ABORTED:
        yield line, "recorded as aborted, but the server published a sum"


def server_rounds(entries: Sequence[Entry]) -> dict[Place, ServerRound]:
    """What the server wrote of each attempt that these lines begin."""
    rounds: dict[Place, ServerRound] = {}
    for entry in entries:
        record = entry.record
        if isinstance(record, RoundOpened):
            rounds[_place(record)] = ServerRound(record, entry.line)
        elif isinstance(record, Roster):
            rounds[_place(record)].roster = record
        elif isinstance(record, Survivors):
            rounds[_place(record)].counted = record
        elif isinstance(record, Published):
            rounds[_place(record)].published = record
            rounds[_place(record)].end_line = entry.line
        elif isinstance(record, Aborted):
            rounds[_place(record)].aborted_head = entry.head
            rounds[_place(record)].end_line = entry.line
    return rounds


def client_rounds(entries: Sequence[Entry]) -> dict[Place, ClientRound]:
    """What a client wrote of each attempt that it joined."""
    rounds: dict[Place, ClientRound] = {}
    current: ClientRound | None = None
    for entry in entries:
        record = entry.record
        if isinstance(record, Joined):
            current = ClientRound(record, entry.line, set())
            rounds[_place(record)] = current
        if current is None:
            continue
        if isinstance(record, Outcome):
            current.outcome, current.outcome_line = record, entry.line
            current = None
            continue
        current.heads.add(entry.head)
        current.resumed |= isinstance(record, Resumed)
        if isinstance(record, Shown):
            current.shown, current.shown_line = record, entry.line
        if isinstance(record, Intent | Commit):
            current.charge_line = current.charge_line or entry.line
        if isinstance(record, Commit):
            current.commit = record
    return rounds


def _place(
    record: RoundOpened | Roster | Survivors | Published | Aborted | Joined,
) -> Place:
    return record.round, record.attempt
