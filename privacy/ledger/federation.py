"""Checking the folder of a run with several cohorts: each, and what joins them.

Each cohort's folder is checked as a run of its own (`folder`). Together:

1. There are at least two, numbered from 1, and no ledgers beside them.
2. Their plans differ in nothing but who takes part, no client and no key but the
   server's is in two of them, and each has a handle of its own.
3. A round starts from one adapter in every cohort and attempt. Where it moved the
   adapter, all cohorts say so, once and to the same: those with a sum by `published`,
   and there is one; the others by `moved`.
4. `summary.json` says what the ledgers of all cohorts add up to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from privacy.ledger.chain import Problem
from privacy.ledger.folder import LEDGER_SUFFIX, Report, verify_run
from privacy.ledger.keyfiles import KEY_SUFFIX, read_key_file
from privacy.ledger.pricing import Price, price_charges
from privacy.ledger.records import Moved, Published, RoundOpened
from privacy.ledger.summary import wrong_in
from privacy.ledger.terms import read_terms
from privacy.ledger.verify import Run, verify_ledger
from privacy.plan import SERVER
from privacy.wire import canonical_json

# A cohort's folder is called so, and its number.
COHORT = "cohort-"
_SUMMARY = "summary.json"
_ONE_RUN = ("plan.json", "keys", "ledger")
# What is a cohort's own; in every other term, whatever a plan may have, all agree.
_OWN_TERMS = frozenset({"clients", "min_survivors", "colluders"})

Steps = Mapping[str, Sequence["_Step"]]


@dataclass(frozen=True, slots=True)
class _Step:
    """Where a cohort's round has left the adapter, by the server's ledger.

    Attributes:
        line: of the ledger.
        after: digest of the adapter.
        has_sum: whether it is a sum of this cohort's that moved it.
    """

    line: int
    after: bytes
    has_sum: bool


def cohort_folders(directory: Path) -> list[Path]:
    """The folders of a run's cohorts; none where all clients are in one."""
    return sorted(path for path in directory.glob(f"{COHORT}*") if path.is_dir())


def is_cohort_folder(directory: Path) -> bool:
    """Whether a folder is that of one cohort of the run that it lies in."""
    whole = directory.resolve()
    named = re.fullmatch(rf"{COHORT}[0-9]+", whole.name) is not None
    return named and len(cohort_folders(whole.parent)) > 1


def verify_federation(
    directory: Path, *, price: Price = price_charges, unfinished: bool = False
) -> tuple[dict[str, Report], tuple[Problem, ...]]:
    """Check the folder of a run with several cohorts.

    Args:
        directory: the folder that `fgrpo run` wrote.
        price: the accountant.
        unfinished: accept a run that has not ended.

    Returns:
        What was found of each cohort, by the name of its folder, and what is wrong
        between them, which is looked for where each verifies.
    """
    names = [folder.name for folder in cohort_folders(directory)]
    reports = {
        name: verify_run(
            directory / name, price=price, unfinished=unfinished, cohort=True
        )
        for name in names
    }
    problems = [
        Problem(name, 0, "beside the cohorts, each of which has its own")
        for name in _ONE_RUN
        if (directory / name).exists()
    ]
    if len(names) < 2 or names != [f"{COHORT}{n + 1:04d}" for n in range(len(names))]:
        problems.append(Problem(f"{COHORT}*", 0, "not at least two, from 0001 on"))
    if problems or not all(report.ok for report in reports.values()):
        return reports, tuple(problems)
    runs = {name: _server(directory / name) for name in names}
    problems += _compare_terms(runs)
    told, opened = _told(runs)
    problems += _compare_steps(runs, told, opened, unfinished=unfinished)
    if not unfinished or (directory / _SUMMARY).exists():
        what = _wrong_summary(directory / _SUMMARY, reports, runs, told)
        problems += [Problem(_SUMMARY, 0, text) for text in what]
    return reports, tuple(problems)


def verify_folder(directory: Path, *, unfinished: bool = False) -> tuple[Report, int]:
    """Check a run's folder, and that of a cohort together with the cohorts beside it.

    Args:
        directory: the folder.
        unfinished: accept a run that has not ended.

    Returns:
        What was found of it, where for a cohort all that is wrong with the whole run
        is wrong, and how many cohorts the run has.
    """
    if not is_cohort_folder(directory):
        return verify_run(directory, unfinished=unfinished), 1
    here = directory.resolve()
    reports, between = verify_federation(here.parent, unfinished=unfinished)
    others = [
        Problem(f"../{name}/{problem.file}", problem.line, problem.what)
        for name, report in reports.items()
        if name != here.name
        for problem in report.problems
    ]
    joint = [Problem(f"../{one.file}", one.line, one.what) for one in between]
    own = reports[here.name]
    whole = replace(own, problems=(*own.problems, *others, *joint))
    return whole, len(reports)


def _server(folder: Path) -> Run:
    """The server's ledger of a folder that verifies."""
    key = read_key_file(folder / "keys" / f"{SERVER}{KEY_SUFFIX}")
    path = folder / "ledger" / f"{SERVER}{LEDGER_SUFFIX}"
    return verify_ledger(path, key=key, closed=False).runs[0]


def _compare_terms(runs: Mapping[str, Run]) -> Iterator[Problem]:
    """What the cohorts of one federation must agree in, and what they may not share."""
    opened = {name: run.opened for name, run in runs.items()}
    terms = {
        name: {term: v for term, v in one.plan.items() if term not in _OWN_TERMS}
        for name, one in opened.items()
    }
    first = next(iter(terms.values()))
    for name, own in terms.items():
        if canonical_json(own) != canonical_json(first):
            what = "it has other terms than the first, beside who takes part"
            yield Problem(f"{name}/plan.json", 0, what)
    rosters = [one.roster for one in opened.values()]
    servers = {roster[SERVER] for roster in rosters}
    if len(servers) > 1:
        yield Problem(f"{COHORT}*/keys", 0, "two cohorts have different servers")
    parties = [(n, k) for roster in rosters for n, k in roster.items() if n != SERVER]
    if len({name for name, _ in parties}) < len(parties):
        yield Problem(f"{COHORT}*/keys", 0, "a client is in two cohorts")
    if len({key for _, key in parties} | servers) < len(parties) + len(servers):
        yield Problem(f"{COHORT}*/keys", 0, "two parties have one key")
    if len({one.run for one in opened.values()}) < len(opened):
        what = "two cohorts have one handle"
        yield Problem(f"{COHORT}*/ledger/{SERVER}{LEDGER_SUFFIX}", 0, what)


def _told(
    runs: Mapping[str, Run],
) -> tuple[dict[int, dict[str, list[_Step]]], dict[int, dict[tuple[str, int], bytes]]]:
    """For each round the steps by cohort, and what it was opened with by line."""
    steps: dict[int, dict[str, list[_Step]]] = {}
    opened: dict[int, dict[tuple[str, int], bytes]] = {}
    for name, run in runs.items():
        for entry in run.entries:
            record = entry.record
            if isinstance(record, RoundOpened):
                steps.setdefault(record.round, {})
                places = opened.setdefault(record.round, {})
                places[name, entry.line] = record.adapter_digest
            elif isinstance(record, Published | Moved):
                step = _Step(
                    entry.line, record.adapter_after, isinstance(record, Published)
                )
                steps[record.round].setdefault(name, []).append(step)
    return steps, opened


def _compare_steps(
    runs: Mapping[str, Run],
    told: Mapping[int, Steps],
    opened: Mapping[int, Mapping[tuple[str, int], bytes]],
    *,
    unfinished: bool,
) -> Iterator[Problem]:
    """Whether all cohorts tell the same of the adapter, round by round."""
    for number in sorted(told):
        what = f"round {number}: "
        start = next(iter(opened[number].values()))
        for (name, line), before in opened[number].items():
            if before != start:
                wrong = f"{what}it starts from another adapter than in other cohorts"
                yield Problem(_file(name), line, wrong)
        steps = told[number]
        if not steps:
            continue
        after = next(iter(steps.values()))[0].after
        for name, own in steps.items():
            if len(own) > 1:
                wrong = f"{what}the adapter moves a second time"
                yield Problem(_file(name), own[1].line, wrong)
            if own[0].after != after:
                wrong = f"{what}it leaves the adapter otherwise than other cohorts"
                yield Problem(_file(name), own[0].line, wrong)
        # A running server writes one ledger after the other.
        if unfinished and number == max(told):
            continue
        for name in sorted(runs.keys() - steps.keys()):
            wrong = f"{what}it does not say how other cohorts left the adapter"
            yield Problem(_file(name), 0, wrong)
        if not any(step.has_sum for own in steps.values() for step in own):
            wrong = f"{what}the adapter moved, and no cohort has a sum"
            yield Problem(f"{COHORT}*/ledger/{SERVER}{LEDGER_SUFFIX}", 0, wrong)


def _wrong_summary(
    path: Path,
    reports: Mapping[str, Report],
    runs: Mapping[str, Run],
    told: Mapping[int, Steps],
) -> list[str]:
    """Whether the run's summary says what the ledgers of the cohorts do."""
    try:
        data = path.read_bytes()
    except OSError:
        return ["missing, or not a file that can be read"]
    completed = sum(bool(steps) for steps in told.values())
    terms = read_terms(next(iter(runs.values())).opened.plan)
    figures = {
        "delta": terms.delta,
        "target_epsilon": terms.epsilon,
        "rounds_completed": Decimal(completed),
        "rounds_aborted": Decimal(len(told) - completed),
    }
    repeated: dict[str, object] = {
        "cohorts": [
            {"folder": name, "plan_digest": run.opened.plan_digest.hex()}
            for name, run in runs.items()
        ],
        "survivors": [
            name for run in runs.values() for name in run.history.last_survivors
        ],
    }
    spends = {
        name: spend for one in reports.values() for name, spend in one.spends.items()
    }
    return wrong_in(data, figures, repeated, spends)


def _file(name: str) -> str:
    return f"{name}/ledger/{SERVER}{LEDGER_SUFFIX}"
