"""What a run's folder proves, gathered once: the one source of page and claim.

Nothing is taken from a folder that does not verify. What no signature vouches for
(scores, bytes, seconds) is taken defensively and marked where it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from fgrpo_secure.guarantee import limits_of
from fgrpo_secure.report.audited import Audited, read_audits
from fgrpo_secure.rounds import RoundNote, read_notes
from privacy.attacker import NO_LIMIT, Tradeoff, tradeoff, worst
from privacy.errors import LedgerError, PlanMismatchError
from privacy.ledger import (
    Aborted,
    Budget,
    Intent,
    Moved,
    Phase,
    Published,
    Refused,
    Report,
    Resumed,
    Roster,
    RoundOpened,
    Run,
    Spend,
    VerifiedLedger,
    claimed_epsilon,
    priced,
    read_key_file,
    verify_folder,
    verify_ledger,
)
from privacy.plan import SERVER, ClientTerms, Plan

_RUNNING = "not ended"

# JSON has integers that no float holds.
_GREATEST = 1e15


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """One client's part.

    Attributes:
        terms: what the plan says of it.
        spend: what this run was charged, by its ledger.
        budget: what its data set has spent by the end of this run, in all runs.
        charged: the claimed epsilon after each round in which it was charged.
        limits: what the charges of this run leave to an attacker; of an unfinished run
            all that are registered.
        outcomes: how many of its rounds were published, missed and aborted.
        refusals: what it declined: round (0: the plan as a whole) and reason.
        resumed: how often its process took the run up again.
        fingerprint: of its key.
        head: hash of its ledger's last line, hex.
        records: lines of its ledger.
        cosigned: lines of the server's ledger that it checked and vouches for.
        reward_before: held-out, as published; None where it is not public.
        reward_after: likewise.
    """

    terms: ClientTerms
    spend: Spend
    budget: Budget
    charged: Mapping[int, Decimal]
    limits: Tradeoff
    outcomes: tuple[int, int, int]
    refusals: tuple[tuple[int, str], ...]
    resumed: int
    fingerprint: str
    head: str
    records: int
    cosigned: int
    reward_before: float | None
    reward_after: float | None

    @property
    def name(self) -> str:
        """As in the plan."""
        return self.terms.name

    @property
    def epsilon(self) -> Decimal:
        """The claim, of this run."""
        return claimed_epsilon(self.spend)


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """One attempt, by the ledgers.

    Attributes:
        number: from 1.
        attempt: from 1.
        status: "published", "aborted" or "not ended".
        reason: a code, empty unless aborted.
        moved: whether other cohorts' sums moved the adapter, where it aborted.
        members: clients that advertised keys.
        survivors: clients in the sum.
        dropouts: clients that the server names as gone, where it aborted.
        charged: clients that were charged.
        epsilon: the largest claim of any client after it.
        note: what the coordinator noted, unsigned; None where nothing is there.
    """

    number: int
    attempt: int
    status: str
    reason: str
    moved: bool
    members: tuple[str, ...]
    survivors: tuple[str, ...]
    dropouts: tuple[str, ...]
    charged: int
    epsilon: Decimal
    note: RoundNote | None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run that verifies.

    Attributes:
        plan: its terms.
        cohorts: how many the run has; 1 where this is all of it.
        finished: whether every ledger is closed.
        handle: of the run, hex.
        software: as every party's ledger names it, distinct and sorted.
        rounds: every attempt, in order.
        clients: in the plan's order.
        server_fingerprint: of the server's key.
        server_head: hash of its ledger's last line, hex.
        server_records: lines of its ledger.
        log_size: lines that the last checkpoint of the shared log is of, 0 without one.
        log_root: its root, hex; empty without one.
        seconds: the whole run, as its summary says; None where it does not.
        audits: results of audits, of the folder and of the release.
    """

    plan: Plan
    cohorts: int
    finished: bool
    handle: str
    software: tuple[str, ...]
    rounds: tuple[RoundFacts, ...]
    clients: tuple[ClientFacts, ...]
    server_fingerprint: str
    server_head: str
    server_records: int
    log_size: int
    log_root: str
    seconds: float | None
    audits: tuple[Audited, ...]

    @property
    def worst(self) -> ClientFacts:
        """The client whose units are exposed most: the claim is its."""
        return max(self.clients, key=lambda c: (c.epsilon, c.terms.sampling_rate))

    @property
    def limits(self) -> Tradeoff:
        """What is left to an attacker on a unit of any client."""
        return worst(list({client.limits for client in self.clients}))

    @property
    def epsilon(self) -> Decimal:
        """The largest claim of any client."""
        return self.worst.epsilon

    def count(self, status: str) -> int:
        """Attempts that ended so."""
        return sum(one.status == status for one in self.rounds)


@dataclass(frozen=True, slots=True)
class Refuted:
    """A folder of which nothing may be claimed.

    Attributes:
        problems: what is wrong, at least one.
        unfinished: whether it would verify as a run that has not ended.
    """

    problems: tuple[str, ...]
    unfinished: bool = False


def gather(
    folder: Path, audits: Sequence[tuple[str, Path]], *, unfinished: bool
) -> RunFacts | Refuted:
    """Verify a run's folder and read what it proves.

    Args:
        folder: that `fgrpo run` wrote, or that of a cohort in it.
        audits: names and folders with results of audits.
        unfinished: accept a run that has not ended.

    Guarantee:
        Facts come of a folder that `fgrpo ledger verify` accepts, or of a cohort in
        such a folder, and of no other.
    """
    report, cohorts = verify_folder(folder, unfinished=unfinished)
    if not report.ok:
        problems = tuple(str(problem) for problem in report.problems)
        open_end = not unfinished and verify_folder(folder, unfinished=True)[0].ok
        return Refuted(problems, open_end)
    try:
        facts = _facts(
            folder, report, cohorts, read_audits(audits), unfinished=unfinished
        )
    except (LedgerError, PlanMismatchError) as error:
        return Refuted((str(error),))
    refuting = [audit for audit in facts.audits if audit.refuted]
    if refuting:
        named = (f"{audit.source}: the audit refutes the claim" for audit in refuting)
        return Refuted(tuple(named))
    return facts


def _facts(
    folder: Path,
    report: Report,
    cohorts: int,
    audits: tuple[Audited, ...],
    *,
    unfinished: bool,
) -> RunFacts:
    names = [*report.spends, SERVER]
    ledgers = {
        name: verify_ledger(
            folder / "ledger" / f"{name}.jsonl",
            key=read_key_file(folder / "keys" / f"{name}.pub"),
            closed=not unfinished,
        )
        for name in names
    }
    runs = {
        name: next(run for run in ledger.runs if run.opened.run == report.run)
        for name, ledger in ledgers.items()
    }
    server, own = ledgers[SERVER], runs[SERVER]
    plan = Plan.from_json(own.opened.plan)
    finished = all(run.history.phase is Phase.CLOSED for run in runs.values())
    summary = _summary(folder)
    log = report.checkpoint
    limits = _Limits(plan, finished=finished)
    clients = tuple(
        _client(plan, ledgers[terms.name], runs[terms.name], report, limits, summary)
        for terms in sorted(plan.clients, key=lambda terms: terms.name)
    )
    return RunFacts(
        plan=plan,
        cohorts=cohorts,
        finished=finished,
        handle=own.opened.run.hex(),
        software=tuple(sorted({run.opened.software for run in runs.values()})),
        rounds=_rounds(own, clients, read_notes(folder / SERVER)),
        clients=clients,
        server_fingerprint=server.key.fingerprint,
        server_head=server.head.hex(),
        server_records=server.history.records,
        log_size=log.size if log else 0,
        log_root=log.root.hex() if log else "",
        seconds=_number(summary.get("seconds")),
        audits=audits,
    )


class _Limits:
    """What a client's charges leave to an attacker; equal charges are priced once."""

    def __init__(self, plan: Plan, *, finished: bool) -> None:
        self._plan = plan
        self._finished = finished
        self._known: dict[object, Tradeoff] = {}

    def of(self, name: str, run: Run) -> Tradeoff:
        """Of a finished run what was charged, else all that is registered."""
        plan, charges = self._plan, run.history.charges
        if not plan.promises_privacy:
            return NO_LIMIT
        key: object = charges if self._finished else plan.client(name).sampling_rate
        if key not in self._known:
            if self._finished:
                events = {priced(event): count for event, count in charges}
                self._known[key] = tradeoff(events, Decimal(plan.delta))
            else:
                self._known[key] = limits_of(plan, name)
        return self._known[key]


def _client(
    plan: Plan,
    ledger: VerifiedLedger,
    run: Run,
    report: Report,
    limits: _Limits,
    summary: Mapping[str, object],
) -> ClientFacts:
    records = [entry.record for entry in run.entries]
    history = run.history
    before, after = _rewards(summary, ledger.party)
    return ClientFacts(
        terms=plan.client(ledger.party),
        spend=report.spends[ledger.party],
        budget=report.budgets[ledger.party],
        charged={
            record.round: claimed_epsilon(record.spend)
            for record in records
            if isinstance(record, Intent)
        },
        limits=limits.of(ledger.party, run),
        outcomes=(history.published, history.missed, history.aborted),
        refusals=tuple(
            (record.round, record.reason.value)
            for record in records
            if isinstance(record, Refused)
        ),
        resumed=sum(isinstance(record, Resumed) for record in records),
        fingerprint=ledger.key.fingerprint,
        head=ledger.head.hex(),
        records=ledger.history.records,
        cosigned=report.cosigned.get(ledger.party, 0),
        reward_before=before,
        reward_after=after,
    )


def _rounds(
    server: Run, clients: Sequence[ClientFacts], notes: Mapping[int, RoundNote]
) -> tuple[RoundFacts, ...]:
    """Every attempt that the server opened, and what the clients were charged in it."""
    members: dict[tuple[int, int], tuple[str, ...]] = {}
    ends: dict[tuple[int, int], Published | Aborted] = {}
    opened: list[tuple[int, int]] = []
    moved: set[tuple[int, int]] = set()
    for entry in server.entries:
        record = entry.record
        if isinstance(record, RoundOpened):
            opened.append((record.round, record.attempt))
        elif isinstance(record, Roster):
            members[record.round, record.attempt] = record.members
        elif isinstance(record, Moved):
            moved.add((record.round, record.attempt))
        elif isinstance(record, Published | Aborted):
            ends[record.round, record.attempt] = record
    found, epsilon = [], Decimal(0)
    for place in opened:
        number, attempt = place
        end = ends.get(place)
        spent = [c.charged[number] for c in clients if number in c.charged]
        epsilon = max([epsilon, *spent])
        published = isinstance(end, Published)
        found.append(
            RoundFacts(
                number=number,
                attempt=attempt,
                status=end.kind if end else _RUNNING,
                reason=end.reason.value if isinstance(end, Aborted) else "",
                moved=place in moved,
                members=members.get(place, ()),
                survivors=end.survivors if isinstance(end, Published) else (),
                dropouts=end.dropouts if isinstance(end, Aborted) else (),
                charged=len(spent),
                epsilon=epsilon,
                note=_believable(notes.get(number), published=published),
            )
        )
    return tuple(found)


def _believable(note: RoundNote | None, *, published: bool) -> RoundNote | None:
    """A note that contradicts the ledger is not shown."""
    return note if note is not None and note.published == published else None


def _summary(folder: Path) -> Mapping[str, object]:
    """The summary, which an unfinished run has not; its epsilons are verified."""
    try:
        said = json.loads((folder / "summary.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _rewards(
    summary: Mapping[str, object], name: str
) -> tuple[float | None, float | None]:
    clients = summary.get("clients")
    for client in clients if isinstance(clients, list) else []:
        if isinstance(client, dict) and client.get("name") == name:
            before, after = client.get("reward_before"), client.get("reward_after")
            return _share(before), _share(after)
    return None, None


def _share(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and number <= 1 else None


def _number(value: object) -> float | None:
    """A finite number from 0, or nothing: it may be anything that was written there."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _GREATEST else None


def is_run(folder: Path) -> bool:
    """Whether a folder holds anything of a run."""
    return (folder / "plan.json").exists() or (folder / "ledger").is_dir()
