"""A pilot's runs as Prometheus reads them: public numbers, and no others.

What is here is made of what a run publishes anyway: the plan, and what the coordinator
notes of a round that may be shown (`rounds.py`). How long the vectors took depends on
what was drawn, and so does any phase that waits for a site which may still be at them:
of these no seconds are told, nor the time of day, nor any word. Labels are names of
runs, phases and clients.

Source: Prometheus, text-based exposition format, version 0.0.4.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from fgrpo_secure.errors import FgrpoError
from fgrpo_secure.home import Home, check_name
from fgrpo_secure.rounds import RoundNote, read_notes
from fgrpo_secure.runtime.engine_job import Progress
from fgrpo_secure.runtime.posting import read_posted
from privacy.contribution import registered_event
from privacy.errors import PrivacyError
from privacy.ledger import claimed_epsilon, spend_of
from privacy.plan import SERVER, Plan
from privacy.wire import parse_canonical_json

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Whatever else stands in a note is not told.
_PHASES = (
    *("log", "offer", "roster", "shares", "survivors", "quorum"),
    *("published", "aborted"),
)
# They ask only who has answered the phase before. An offer, or the news of an abort,
# may reach a site that is late and still learns, which answers it when that is done.
TIMED = ("roster", "survivors", "quorum", "published")


@dataclass(frozen=True, slots=True)
class Family:
    """All samples of one metric.

    Attributes:
        name: of the metric, with its unit.
        kind: "counter" or "gauge".
        words: what it is.
        samples: labels and value.
    """

    name: str
    kind: str
    words: str
    samples: list[tuple[Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: float, **labels: str) -> None:
        """Add one sample."""
        self.samples.append((labels, value))

    def lines(self) -> Iterator[str]:
        """As text, nothing where there is no sample."""
        if self.samples:
            words = self.words.replace("\\", r"\\").replace("\n", r"\n")
            yield f"# HELP {self.name} {words}"
            yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.samples:
            pairs = ",".join(f'{key}="{escape(text)}"' for key, text in labels.items())
            yield f"{self.name}{{{pairs}}} {number(value)}"


def escape(text: str) -> str:
    """A label's value, whatever is in it."""
    escaped = text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    # What no encoding holds would end the answer in the middle.
    return escaped.encode("utf-8", "replace").decode("utf-8")


def number(value: float) -> str:
    """A value as the format has it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def expose(runs: Mapping[str, Run]) -> str:
    """All runs as one text.

    Args:
        runs: by name.
    """
    families = _Families()
    for name, run in sorted(runs.items()):
        families.add(name, run)
    lines = [line for family in families.all for line in family.lines()]
    return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of a run.

    Attributes:
        plan: its terms.
        notes: of the rounds that are over, by number.
        spent: epsilon that a client was charged that was in all of them.
        progress: what it shows while a process runs it.
        finished: whether its summary is written.
    """

    plan: Plan
    notes: Mapping[int, RoundNote]
    spent: float
    progress: Progress | None
    finished: bool


class Runs:
    """The runs in a server's home, read again where their files have changed."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._read: dict[Path, tuple[object, Run]] = {}

    def now(self) -> dict[str, Run]:
        """Every run that has a plan, by name; what cannot be read is left out."""
        found = {}
        for root in sorted(self._home.runs.glob("*/")):
            try:
                check_name(root.name, "a run")
                found[root.name] = self._run(root)
            except (FgrpoError, PrivacyError, OSError, ValueError, TypeError, KeyError):
                continue
        return found

    def _run(self, root: Path) -> Run:
        terms = root / "plan.json"
        stamp = _stamp(terms), _stamp(root / SERVER / "rounds.jsonl")
        if self._read.get(root, (None,))[0] != stamp:
            plan = Plan.from_json(parse_canonical_json(terms.read_bytes()))
            notes = read_notes(root / SERVER)
            spent = _spent(plan, max(notes, default=0))
            self._read[root] = stamp, Run(plan, notes, spent, None, finished=False)
        known = self._read[root][1]
        finished = (root / "summary.json").exists()
        return replace(known, progress=read_posted(root / SERVER), finished=finished)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _spent(plan: Plan, rounds: int) -> float:
    """What a client has spent, at most, that was charged so many rounds."""
    if not rounds:
        return 0.0
    event = registered_event(plan, plan.most_exposed)
    charges = ((event, min(rounds, plan.rounds) * plan.local_steps),)
    spend = spend_of(charges, Decimal(plan.delta), plan.registered_charges)
    return float(claimed_epsilon(spend))


class _Families:
    """The metrics, in the order in which they are told."""

    def __init__(self) -> None:
        self._planned = Family(
            "fgrpo_rounds_planned", "gauge", "Rounds that the plan registers."
        )
        self._rounds = Family(
            "fgrpo_rounds_total", "counter", "Rounds that are over, by their outcome."
        )
        self._survivors = Family(
            "fgrpo_last_sum_survivors",
            "gauge",
            "Clients in the last sum that was opened.",
        )
        self._spent = Family(
            "fgrpo_epsilon_spent",
            "gauge",
            "Epsilon of a client that was charged every round so far.",
        )
        self._target = Family(
            "fgrpo_epsilon_target", "gauge", "Epsilon of the whole plan."
        )
        self._delta = Family("fgrpo_delta", "gauge", "Delta of the plan.")
        self._bytes = Family(
            "fgrpo_payload_bytes_total",
            "counter",
            "Bytes of the messages of all rounds, by phase and direction.",
        )
        self._seconds = Family(
            "fgrpo_phase_seconds_total",
            "counter",
            "Seconds of the phases that wait for no site that may still learn.",
        )
        self._alive = Family(
            "fgrpo_run_alive", "gauge", "1 while a process of the server runs it."
        )
        self._finished = Family(
            "fgrpo_run_finished", "gauge", "1 once its summary is written."
        )
        self._present = Family(
            "fgrpo_client_present",
            "gauge",
            "1 for a client of a run under way that is connected.",
        )

    @property
    def all(self) -> Sequence[Family]:
        """Every one."""
        return tuple(vars(self).values())

    def add(self, name: str, run: Run) -> None:
        """Add a run to all of them."""
        plan, notes = run.plan, list(run.notes.values())
        self._planned.add(plan.rounds, run=name)
        published = [note for note in notes if note.published]
        for outcome, count in (
            ("published", len(published)),
            ("aborted", len(notes) - len(published)),
        ):
            self._rounds.add(count, run=name, outcome=outcome)
        if published:
            last = max(published, key=lambda note: note.round)
            self._survivors.add(last.survivors, run=name)
        self._spent.add(run.spent, run=name)
        self._target.add(float(plan.epsilon), run=name)
        self._delta.add(float(plan.delta), run=name)
        for direction in ("down", "up"):
            bytes_by_phase = _sums(getattr(note, direction) for note in notes)
            for phase in _PHASES:
                if phase in bytes_by_phase:
                    labels = {"phase": phase, "direction": direction}
                    self._bytes.add(bytes_by_phase[phase], run=name, **labels)
        seconds = _sums(note.seconds for note in notes)
        for phase in TIMED:
            if phase in seconds:
                self._seconds.add(round(seconds[phase], 4), run=name, phase=phase)
        self._alive.add(run.progress is not None, run=name)
        self._finished.add(run.finished, run=name)
        if run.progress is not None:
            for client in sorted(one.name for one in plan.clients):
                there = client in run.progress.present
                self._present.add(there, run=name, client=client)


def _sums(tables: Any) -> Counter[str]:  # noqa: ANN401
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return total
