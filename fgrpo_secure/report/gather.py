"""From a run's folder to what it proves.

Nothing is taken from a folder that does not verify.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from fgrpo_secure.report.audited import Audited, read_audits
from fgrpo_secure.report.exposure import Exposure
from fgrpo_secure.report.facts import (
    NOT_ENDED,
    ClientFacts,
    DataSet,
    Declination,
    Refuted,
    RoundFacts,
    RunFacts,
)
from fgrpo_secure.report.unsigned import Summary, missing, read_summary
from fgrpo_secure.rounds import RoundNote, read_notes
from privacy.contribution import registered_spend
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
    VerifiedLedger,
    claimed_epsilon,
    read_key_file,
    split_views,
    verify_folder,
    verify_ledger,
)
from privacy.plan import SERVER, Plan


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
    problems = _problems(report)
    if problems:
        open_end = not unfinished and not _problems(
            verify_folder(folder, unfinished=True)[0]
        )
        return Refuted(problems, open_end, tuple(_declined_in(folder, report.run)))
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


def _problems(report: Report) -> tuple[str, ...]:
    """All that is wrong with a folder; two histories that its ledgers hold, too."""
    wrong = map(str, report.problems)
    return (*wrong, *map(str, split_views(report.roots)))


def _declined_in(folder: Path, this: bytes | None) -> Iterator[tuple[str, Declination]]:
    """What clients said no to, by those ledgers that verify by themselves.

    A plan that a site declined has no run that could verify, and why it was declined
    is what its reader wants to know.
    """
    for path in sorted((folder / "ledger").glob("*.jsonl")):
        if path.stem == SERVER:
            continue
        try:
            key = read_key_file(folder / "keys" / f"{path.stem}.pub")
            ledger = verify_ledger(path, key=key, closed=False)
        except (LedgerError, OSError):
            continue
        for said in _declined(ledger, this):
            yield path.stem, said


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
    summary = read_summary(folder)
    log = report.checkpoint
    exposure = Exposure(plan)
    clients = tuple(
        _client(plan, ledgers[terms.name], runs[terms.name], report, exposure, summary)
        for terms in sorted(plan.clients, key=lambda terms: terms.name)
    )
    rounds = _rounds(own, clients, read_notes(folder / SERVER))
    log_size = log.size if log else 0
    own_audits = any(audit.findings and not audit.released for audit in audits)
    return RunFacts(
        plan=plan,
        cohorts=cohorts,
        finished=all(run.history.phase is Phase.CLOSED for run in runs.values()),
        handle=own.opened.run.hex(),
        software=tuple(sorted({run.opened.software for run in runs.values()})),
        rounds=rounds,
        clients=clients,
        resumed=_resumptions(own),
        server_fingerprint=server.key.fingerprint,
        server_head=server.head.hex(),
        server_records=server.history.records,
        log_size=log_size,
        log_root=log.root.hex() if log else "",
        seconds=summary.seconds,
        audits=audits,
        missing=missing(
            rounds, clients, summary, log_size=log_size, audited=own_audits
        ),
    )


def _client(
    plan: Plan,
    ledger: VerifiedLedger,
    run: Run,
    report: Report,
    exposure: Exposure,
    summary: Summary,
) -> ClientFacts:
    name, history = ledger.party, run.history
    spend, registered = report.spends[name], registered_spend(plan, name)
    own = exposure.of_run(run, name)
    anyhow, if_fixed = exposure.of_data_set(ledger, own)
    place = ledger.runs.index(run)
    before, after = summary.scores.get(name, (None, None))
    return ClientFacts(
        terms=plan.client(name),
        registered=max(registered, spend, key=lambda one: one.charges),
        spend=spend,
        data_set=DataSet(
            budget=Budget.of(ledger.runs),
            earlier=place,
            later=len(ledger.runs) - 1 - place,
            limits=anyhow,
            limits_if_fixed=if_fixed,
        ),
        charged={
            entry.record.round: claimed_epsilon(entry.record.spend)
            for entry in run.entries
            if isinstance(entry.record, Intent)
        },
        limits=own,
        outcomes=(history.published, history.missed, history.aborted),
        declined=tuple(_declined(ledger, run.opened.run)),
        resumed=_resumptions(run),
        fingerprint=ledger.key.fingerprint,
        head=ledger.head.hex(),
        records=ledger.history.records,
        cosigned=report.cosigned.get(name, 0),
        reward_before=before,
        reward_after=after,
    )


def _declined(ledger: VerifiedLedger, this: bytes | None) -> Iterator[Declination]:
    """All that a client said no to: runs that it did not open, then parts of others.

    Args:
        ledger: the client's.
        this: handle of the run that the report is of. Where it is not known, nothing
            is called another's.
    """
    for record in ledger.declined:
        own = this in {None, record.run}
        yield Declination(own, False, 0, record.reason)
    for run in ledger.runs:
        own = this in {None, run.opened.run}
        for entry in run.entries:
            if isinstance(entry.record, Refused):
                said = entry.record
                yield Declination(own, True, said.round, said.reason)


def _resumptions(run: Run) -> int:
    return sum(isinstance(entry.record, Resumed) for entry in run.entries)


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
        survivors = end.survivors if isinstance(end, Published) else ()
        found.append(
            RoundFacts(
                number=number,
                attempt=attempt,
                status=end.kind if end else NOT_ENDED,
                reason=end.reason.value if isinstance(end, Aborted) else "",
                moved=place in moved,
                members=members.get(place, ()),
                survivors=survivors,
                dropouts=end.dropouts if isinstance(end, Aborted) else (),
                charged=len(spent),
                epsilon=epsilon,
                note=_believable(notes.get(number), survivors),
            )
        )
    return tuple(found)


def _believable(note: RoundNote | None, survivors: Sequence[str]) -> RoundNote | None:
    """A note that contradicts the ledger is not shown.

    Args:
        note: what the coordinator noted.
        survivors: of the sum, by its ledger; none where there is no sum.
    """
    if note is None or note.published != bool(survivors):
        return None
    # Without a sum nothing was divided by anything.
    same = note.survivors == len(survivors) and (note.published or not note.weights)
    return note if same else None


def is_run(folder: Path) -> bool:
    """Whether a folder holds anything of a run."""
    return (folder / "plan.json").exists() or (folder / "ledger").is_dir()
