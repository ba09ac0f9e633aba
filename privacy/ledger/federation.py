"""Checking the folder of a run with several cohorts: each, and what joins them.

Each cohort's folder is checked as a run of its own (`folder`). Together:

1. There are at least two, numbered from 1; their sums may be added by their plans
   (`privacy.cohorts`), and no client and no identity but the server's is in two.
2. A round starts from one adapter in every cohort that began it.
3. Where a round moved the adapter, all cohorts say so, from and to the same: those with
   a sum by `published`, the others by `moved`.
4. `summary.json` says what the ledgers of all cohorts add up to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from privacy.cohorts import Cohorts
from privacy.errors import PlanMismatchError
from privacy.ledger.chain import Problem
from privacy.ledger.folder import LEDGER_SUFFIX, Report, verify_run
from privacy.ledger.history import claimed_epsilon
from privacy.ledger.keyfiles import KEY_SUFFIX, read_key_file
from privacy.ledger.pricing import Price, price_charges
from privacy.ledger.records import Moved, Published, RoundOpened
from privacy.ledger.verify import VerifiedLedger, verify_ledger
from privacy.plan import SERVER, Plan

# A cohort's folder is called so, and its number.
COHORT = "cohort-"
_SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class _Step:
    """What a cohort's server wrote of the adapter in one round.

    Attributes:
        line: of its ledger.
        before: digest of what the round started from.
        after: of what it led to; None where this ledger does not say that it moved.
    """

    line: int
    before: bytes
    after: bytes | None = None


def cohort_folders(directory: Path) -> list[Path]:
    """The folders of a run's cohorts; none where all clients are in one."""
    return sorted(path for path in directory.glob(f"{COHORT}*") if path.is_dir())


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
        name: verify_run(directory / name, price=price, unfinished=unfinished)
        for name in names
    }
    if len(names) < 2 or names != [f"{COHORT}{n + 1:04d}" for n in range(len(names))]:
        return reports, (Problem(f"{COHORT}*", 0, "not at least two, from 0001 on"),)
    if not all(report.ok for report in reports.values()):
        return reports, ()
    ledgers = {name: _server(directory / name) for name in names}
    problems = _compare_terms(directory, ledgers)
    problems += _compare_steps(ledgers, unfinished=unfinished)
    if not unfinished or (directory / _SUMMARY).exists():
        problems += _compare_summary(directory / _SUMMARY, reports)
    return reports, tuple(problems)


def _server(folder: Path) -> VerifiedLedger:
    key = read_key_file(folder / "keys" / f"{SERVER}{KEY_SUFFIX}")
    path = folder / "ledger" / f"{SERVER}{LEDGER_SUFFIX}"
    return verify_ledger(path, key=key, closed=False)


def _compare_terms(
    directory: Path, ledgers: Mapping[str, VerifiedLedger]
) -> list[Problem]:
    """Whether the plans may be added, and who is in two cohorts."""
    plans, rosters = [], []
    for name, ledger in ledgers.items():
        opened = ledger.runs[0].opened
        try:
            plans.append(Plan.from_json(dict(opened.plan)))
        except PlanMismatchError as error:
            return [Problem(f"{name}/plan.json", 0, str(error))]
        keys = directory / name / "keys"
        rosters.append(
            {who: read_key_file(keys / f"{who}{KEY_SUFFIX}") for who in opened.roster}
        )
    try:
        Cohorts(tuple(plans)).check_identities(rosters)
    except PlanMismatchError as error:
        return [Problem(f"{COHORT}*/plan.json", 0, str(error))]
    return []


def _compare_steps(
    ledgers: Mapping[str, VerifiedLedger], *, unfinished: bool
) -> list[Problem]:
    """Whether all cohorts tell the same of the adapter, round by round."""
    told = {name: _steps(ledger) for name, ledger in ledgers.items()}
    rounds = sorted({number for steps in told.values() for number in steps})
    problems = []
    for number in rounds:
        steps = {name: own[number] for name, own in told.items() if number in own}
        what = f"round {number}: "
        first = next(iter(steps.values()))
        for name, step in steps.items():
            if step.before != first.before:
                wrong = f"{what}it starts from another adapter than in other cohorts"
                problems.append(Problem(_file(name), step.line, wrong))
        moved = [step.after for step in steps.values() if step.after is not None]
        # A running server writes one ledger after the other.
        if not moved or (unfinished and number == rounds[-1]):
            continue
        for name in ledgers:
            if name not in steps or steps[name].after != moved[0]:
                wrong = f"{what}it does not say how other cohorts left the adapter"
                line = steps[name].line if name in steps else 0
                problems.append(Problem(_file(name), line, wrong))
    return problems


def _steps(ledger: VerifiedLedger) -> dict[int, _Step]:
    """What one ledger says of the adapter in each round."""
    steps: dict[int, _Step] = {}
    for entry in ledger.runs[0].entries:
        record = entry.record
        if isinstance(record, RoundOpened):
            steps[record.round] = _Step(entry.line, record.adapter_digest)
        elif isinstance(record, Published | Moved):
            steps[record.round] = _Step(
                entry.line, record.adapter_before, record.adapter_after
            )
    return steps


def _compare_summary(path: Path, reports: Mapping[str, Report]) -> list[Problem]:
    """Whether the run's summary says what the ledgers of the cohorts do."""
    spends = {
        name: claimed_epsilon(spend)
        for report in reports.values()
        for name, spend in report.spends.items()
    }
    try:
        summary = json.loads(path.read_bytes())
        stated = {client["name"]: client["epsilon"] for client in summary["clients"]}
        listed = len(summary["clients"])
        epsilon = summary["epsilon"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return [Problem(path.name, 0, "missing, or not a summary")]
    problems = []
    if listed != len(spends) or stated.keys() != spends.keys():
        what = "'clients' does not list exactly the clients of all cohorts"
        problems.append(Problem(path.name, 0, what))
    if not _same(epsilon, max(spends.values())):
        what = "'epsilon' is not the largest of the ledgers"
        problems.append(Problem(path.name, 0, what))
    for name in sorted(stated.keys() & spends.keys()):
        if not _same(stated[name], spends[name]):
            what = f"the epsilon of {name!r} is not its ledger's"
            problems.append(Problem(path.name, 0, what))
    return problems


def _same(value: object, expected: Decimal) -> bool:
    """Whether a summary's number is this decimal, as the nearest double."""
    if expected.is_infinite():
        return value == "infinity"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and value == float(expected)


def _file(name: str) -> str:
    return f"{name}/ledger/{SERVER}{LEDGER_SUFFIX}"
