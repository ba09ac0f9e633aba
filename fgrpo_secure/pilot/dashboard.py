"""A run of a pilot in a terminal: rounds, who is there, and what is spent.

What it shows is what the coordinator sends, which is what may be shown to anybody. The
texts come from another machine, and are printed as text and nothing else.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fgrpo_secure.explanations import shown
from fgrpo_secure.pilot.jobs import Watched

_LAST_ROUNDS = 12


def facts(watched: Watched) -> dict[str, Any]:
    """A run's state for programs."""
    progress = None if watched.progress is None else asdict(watched.progress)
    return {
        "run": watched.run,
        "job": watched.job,
        "status": watched.status,
        "jobs": watched.attempts,
        "progress": progress,
    }


def line(watched: Watched) -> str:
    """A run's state in one line."""
    progress = watched.progress
    if progress is None:
        return f"{watched.run}: {shown(watched.status)}"
    if not progress.rounds:
        # The coordinator is still registering its plan.
        return f"{watched.run}: {shown(progress.state)}; {shown(progress.last)}"
    return (
        f"{watched.run}: {shown(progress.state)}, round {len(progress.notes)} of "
        f"{progress.rounds}; epsilon {shown(progress.spent)} of "
        f"{shown(progress.target)}; present: {_names(progress.present)}; "
        f"{shown(progress.last)}"
    )


def screen(watched: Watched) -> RenderableType:
    """A run's state as a page of a terminal."""
    progress = watched.progress
    title = Text(
        f"{watched.run}  job {watched.attempts}: {shown(watched.status)}", style="bold"
    )
    if progress is None:
        return title
    table = Table("round", "outcome", "in the sum")
    for number, published, survivors in progress.notes[-_LAST_ROUNDS:]:
        outcome = "published" if published else "dropped"
        table.add_row(str(number), outcome, str(survivors) if published else "-")
    return Group(
        title,
        ProgressBar(total=max(1, progress.rounds), completed=len(progress.notes)),
        Text(f"epsilon  {shown(progress.spent)} of {shown(progress.target)}"),
        Text(f"present  {_names(progress.present)}"),
        Text(f"last     {shown(progress.last)}"),
        table,
    )


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(shown(name) for name in names) or "nobody"
