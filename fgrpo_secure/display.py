"""What a person sees while a run goes on: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

_SHOWN_ANSWER = 40
_INFINITE = "infinity"
_NO_PRIVACY = "NO PRIVACY: no noise was added, and every ledger says so."


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One round, for people.

    Attributes:
        number: of the round, from 1.
        rounds: registered by the plan.
        published: whether the adapter moved.
        survivors: clients in the sum, 0 without one.
        outcome: what came of it, in words.
        spent: epsilon so far, of a client that was charged every round.
        target: the plan's epsilon.
        seconds_left: an estimate for the rounds to come.
    """

    number: int
    rounds: int
    published: bool
    survivors: int
    outcome: str
    spent: float
    target: float
    seconds_left: float


def stated_epsilon(epsilon: Decimal) -> float | str:
    """An epsilon as JSON holds it, which knows no infinite number."""
    return _INFINITE if epsilon.is_infinite() else float(epsilon)


class Display:
    """Progress of one run, on standard error, so that standard output stays data.

    Args:
        quiet: print nothing but errors.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._rounds: TaskID | None = None

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def running(self, rounds: int, done: int) -> Iterator[None]:
        """Show progress while the block runs.

        Args:
            rounds: how many the plan registers.
            done: how many were done before, by a run that is resumed.
        """
        if not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as bars:
            self._bars = bars
            self._rounds = bars.add_task(
                "rounds", total=rounds, completed=done, note=""
            )
            try:
                yield
            finally:
                self._bars = None
                self._tasks.clear()

    def progress(self, label: str, done: int, total: int) -> None:
        """Move the bar of one client's rollouts or of an evaluation."""
        if self._bars is None:
            return
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total, note="")
        self._bars.update(self._tasks[label], completed=done, total=total)

    def round_done(self, report: RoundReport) -> None:
        """Report one round: what came of it, what is spent, how long it may take."""
        left = f"about {report.seconds_left:.0f} s of rounds to go"
        budget = f"epsilon {report.spent:.3f} of {report.target:g}; {left}"
        if math.isinf(report.target):
            budget = f"NO PRIVACY: epsilon is infinite; {left}"
        if self._bars is None or self._rounds is None:
            place = f"round {report.number}/{report.rounds}"
            self.say(f"{place}: {report.outcome}; {budget}")
            return
        self._bars.update(self._rounds, completed=report.number, note=budget)
        if not report.published:
            self.say(f"round {report.number}: {report.outcome}")

    def result(
        self, summary: Mapping[str, Any], samples: Sequence[tuple[str, str, str, str]]
    ) -> None:
        """Print what a run gave, as far as it may be shown."""
        if any(client["reward_before"] is not None for client in summary["clients"]):
            self._print_rewards(summary)
        else:
            self.say("No client declares a public evaluation set: rewards not shown.")
        if summary["target_epsilon"] == _INFINITE:
            self.say(_NO_PRIVACY)
        self.say(
            f"epsilon {_number(summary['epsilon'], '.3f')} of "
            f"{_number(summary['target_epsilon'], 'g')} at "
            f"delta {summary['delta']:g}; {summary['rounds_completed']} rounds "
            f"completed, {summary['rounds_aborted']} aborted; last survivors: "
            f"{', '.join(summary['survivors']) or 'none'}; {summary['seconds']:.0f} s"
        )
        if samples:
            answers = Table(title="Sample answers (public prompts)")
            for column in ("client", "prompt", "before", "after"):
                answers.add_column(column)
            for row in samples:
                answers.add_row(*(text[:_SHOWN_ANSWER] for text in row))
            self.console.print(answers)

    def _print_rewards(self, summary: Mapping[str, Any]) -> None:
        table = Table(title="Held-out reward, rescaled to [0, 1]")
        for column in ("client", "before", "after", "change", "epsilon"):
            table.add_column(column, justify="left" if column == "client" else "right")
        for client in summary["clients"]:
            table.add_row(
                *_row(client["name"], client, _number(client["epsilon"], ".3f"))
            )
        spent = _number(summary["epsilon"], ".3f")
        table.add_row(*_row("mean", summary, spent), style="bold")
        self.console.print(table)


def _number(value: float | str, form: str) -> str:
    return value if isinstance(value, str) else format(value, form)


def _row(name: str, values: Mapping[str, object], epsilon: str) -> list[str]:
    before, after = values["reward_before"], values["reward_after"]
    if not isinstance(before, float) or not isinstance(after, float):
        return [name, "not public", "not public", "", epsilon]
    return [name, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}", epsilon]
