"""What must hold of a run's files whenever all its processes are dead, and at its end.

The witness is the other side of each comparison: it was written outside of the run, by
the calls that draw and release, before they did.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from decimal import Decimal
from itertools import chain
from pathlib import Path

import numpy as np

from fgrpo_secure.checkpoint import read_checkpoint
from privacy.contribution import registered_event
from privacy.ledger import (
    Spend,
    claimed_epsilon,
    commitment,
    spend_of,
    verify_federation,
    verify_run,
)
from privacy.plan import SERVER
from privacy.secagg.messages import sum_digest
from tests.crash.lives import Life
from tests.crash.world import Run
from tests.end_to_end.program import records

Place = tuple[str, int, int]
"""Client, round, attempt."""

# Statuses with which the program says why it stopped: a folder that can be mended, a
# refusal, a ledger that is unreliable.
_REASONS = frozenset({1, 5, 6, 7})


def broken_now(run: Run, life: Life) -> list[str]:
    """What is wrong after a life, before anything was started again."""
    charged, committed = _charges(run), _commitments(run)
    seen = run.seen()
    wrong = []
    for what in ("draw", "statistic", "noise"):
        counts = Counter(_place(event) for event in seen if event["what"] == what)
        for place, count in counts.items():
            if count > charged.get(place, 0):
                wrong.append(f"{count} times {what} for {place}, fewer are charged")
    vectors: dict[Place, set[str]] = {}
    for event in seen:
        if event["what"] == "vector":
            vectors.setdefault(_place(event), set()).add(event["words"])
            words, opening = (
                bytes.fromhex(event["words"]),
                bytes.fromhex(event["opening"]),
            )
            if committed.get(_place(event)) != commitment(opening, words).hex():
                wrong.append(f"a vector of {_place(event)} that no COMMIT is of")
    for place, different in vectors.items():
        if len(different) > 1:
            wrong.append(f"{len(different)} vectors for {place}")
    wrong += _sums_that_differ(run, vectors)
    wrong += _how_it_ended(life)
    return wrong


def broken_at_the_end(run: Run, life: Life) -> list[str]:
    """What is wrong with a run that went on to its end."""
    wrong = broken_now(run, life)
    if life.status and not (run.output / "summary.json").exists():
        return [*wrong, f"it did not go on: {life.stderr[-400:]}"]
    spends, problems = _verified(run)
    wrong += problems
    for name in run.world.clients:
        spend = spends.get(name)
        drawn = sum(
            event["what"] == "draw" and event["client"] == name for event in run.seen()
        )
        if spend is None or spend.charges < drawn:
            wrong.append(f"{name} drew {drawn} times and its ledger says {spend}")
    plan = run.world.plans[0]
    charges = max(spend.charges for spend in spends.values())
    charged = ((registered_event(plan, plan.most_exposed), charges),) if charges else ()
    price = spend_of(charged, Decimal(plan.delta), plan.registered_charges)
    summary = json.loads((run.output / "summary.json").read_text("utf-8"))
    if summary["epsilon"] != float(claimed_epsilon(price)):
        wrong.append("the summary's epsilon is not that of the charges")
    told = summary.get("cohorts", [summary])
    if [one["plan_digest"] for one in told] != [one.digest for one in run.world.plans]:
        wrong.append("the run goes by another plan")
    last = [r for r in _server_lines(run)[0] if r["kind"] in {"published", "moved"}]
    if last:
        digest = bytes.fromhex(last[-1]["adapter_after"])
        read_checkpoint(run.output / SERVER, digest)
    wrong += [f"{path} was left behind" for path in _left_behind(run)]
    wrong += _vectors_at_rest(run)
    return wrong


def _place(event: dict) -> Place:
    return event["client"], event["round"], event["attempt"]


def _verified(run: Run) -> tuple[dict[str, Spend], list[str]]:
    """What every client has spent, and what is wrong with the folder."""
    if len(run.parts) == 1:
        report = verify_run(run.output)
        return dict(report.spends), [str(problem) for problem in report.problems]
    reports, between = verify_federation(run.output)
    spends = {n: spend for one in reports.values() for n, spend in one.spends.items()}
    within = [problem for one in reports.values() for problem in one.problems]
    return spends, [str(problem) for problem in (*within, *between)]


def _server_lines(run: Run) -> list[list[dict]]:
    """The whole lines of the server's ledger of each cohort."""
    return [_lines(run, part / "ledger" / f"{SERVER}.jsonl") for part in run.parts]


def _client_lines(run: Run, name: str) -> list[dict]:
    return _lines(run, run.store / name / "ledger" / f"{name}.jsonl")


def _lines(run: Run, path: Path) -> list[dict]:
    """The whole lines of a ledger; a piece at its end is no line."""
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    copy = run.folder / "whole-lines"
    copy.write_bytes(whole)
    return records(copy)


def _charges(run: Run) -> Counter[Place]:
    found: Counter[Place] = Counter()
    for name in run.world.clients:
        for record in _client_lines(run, name):
            if record["kind"] == "intent":
                place = name, record["round"], record["attempt"]
                found[place] += record["releases"]
    return found


def _commitments(run: Run) -> dict[Place, str]:
    return {
        (name, record["round"], record["attempt"]): record["commitment"]
        for name in run.world.clients
        for record in _client_lines(run, name)
        if record["kind"] == "commit"
    }


def _sums_that_differ(run: Run, vectors: dict[Place, set[str]]) -> list[str]:
    """Each sum that was opened must be that of the vectors which were sealed."""
    wrong = []
    for record in chain(*_server_lines(run)):
        if record["kind"] != "published":
            continue
        total = np.zeros(run.world.plans[0].vector_length, dtype=np.uint32)
        for name in record["survivors"]:
            place = name, record["round"], record["attempt"]
            words = min(vectors.get(place, {""}))
            total += np.frombuffer(bytes.fromhex(words), dtype="<u4")
        if sum_digest(total.astype("<u4").tobytes()).hex() != record["sum_digest"]:
            wrong.append(f"the sum of round {record['round']} is of other vectors")
    return wrong


def _how_it_ended(life: Life) -> list[str]:
    """A process that was not killed says in two lines what happened and what to do."""
    wrong = []
    if life.left:
        wrong.append(f"{life.left} processes did not end")
    if "Traceback" in life.stderr:
        wrong.append(f"a traceback: {life.stderr[-600:]}")
    if life.status > 0:
        lines = life.stderr.splitlines()[-2:]
        clear = lines[0].startswith("fgrpo: ") and lines[1].startswith("       ")
        if life.status not in _REASONS or not clear:
            wrong.append(f"status {life.status} without a reason: {lines}")
    return wrong


def _vectors_at_rest(run: Run) -> list[str]:
    """A vector before its mask is in no file, of the run or of the client."""
    starts = {
        event["words"][:64]: _place(event)
        for event in run.seen()
        if event["what"] == "vector"
    }
    wrong = []
    for path in [*run.output.rglob("*"), *run.store.rglob("*")]:
        held = path.read_bytes() if path.is_file() else b""
        for start, place in starts.items():
            words = bytes.fromhex(start)
            forms = (words, start.encode(), base64.b64encode(words)[:-2])
            if any(form in held for form in forms):
                wrong.append(f"the vector of {place} lies in {path.name}")
    return wrong


def _left_behind(run: Run) -> list[Path]:
    """Pieces of files that nothing will ever finish or remove."""
    every = [*run.output.rglob("*"), *run.store.rglob("*")]
    return [
        path.relative_to(run.folder)
        for path in every
        if path.suffix in {".tmp", ".new"} or path.name.startswith(".adapter")
    ]
