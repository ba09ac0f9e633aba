"""Kills of a run with several cohorts, at the boundaries that only such a run has.

Every cohort has a ledger and files of its own, so that there are boundaries between
one and the next. In every other life a client dies in round 1 at its first commit: its
cohort has no sum, the other has one, and the ledger of the first says `moved`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.crash.campaigns import SCOPES, Finding, at, is_chosen
from tests.crash.checks import broken_at_the_end, broken_now
from tests.crash.lives import Judge
from tests.crash.world import CHOSEN, Run, World

LISTED = Path(__file__).parent / "boundaries_of_cohorts.txt"
# Sorted, the first three are one cohort, and the client that dies is among them.
CLIENTS = ("count", "count-2", "shift", "shift-2", "sort", "sums")
_DEATH = "client tear line commit"
_STOPPED_LIVES = 30

# The tests kill where the ledgers of two cohorts may come to differ; what is written
# for each cohort by the same code as for a run by itself is left to `--cohorts`.
_BETWEEN = re.compile(
    r"run/server/step\.json"
    r"|(write|tear|sync) line (moved|published|closed|opened) of"
    r"|sync folder of head (moved|published|closed|opened) of"
    r"|(write|rename|sync folder of) run/cohort-0002/(plan\.json|summary\.json)"
    r"|make run/cohort-\d+$"
)


def world_of_cohorts(folder: Path) -> World:
    """Two cohorts of three clients, each in a process of its own."""
    return World(
        folder,
        CLIENTS,
        privacy={"rounds": 6},
        federation={"cohort_size": 3},
        machine={"workers": len(CLIENTS)},
    )


def record(world: World, others: Iterable[str]) -> list[str]:
    """Every boundary that a run of one cohort never comes to, sorted.

    Args:
        world: of several cohorts.
        others: what a run of one cohort comes to.
    """
    run = world.run("recorded")
    lives = [run.live(at(_DEATH, 1, "process")), run.live()]
    passed = Counter(name for life in lives for name in life.names)
    return sorted(passed.keys() - set(others))


def listed() -> list[str]:
    """The boundaries on the list."""
    return LISTED.read_text("utf-8").splitlines()


def is_between(name: str) -> bool:
    """Whether the tests kill at this boundary."""
    return bool(_BETWEEN.search(name))


def chain(world: World, names: Iterable[str]) -> Iterator[Finding]:
    """Stop at each name once, one run after another."""
    left, number = set(names), 0
    while left:
        number += 1
        before = len(left)
        yield _chained(world.run(f"cohorts-{number}"), left)
        if len(left) == before:
            # No run comes to what is left.
            return


def _chained(run: Run, left: set[str]) -> Finding:
    """One run, stopped at what is left until it comes to its end."""
    killed: list[str] = []
    wrong: list[str] = []
    seconds = 0.0
    while True:
        scope = SCOPES[run.lives % len(SCOPES)]
        wanted = left if run.lives < _STOPPED_LIVES else set[str]()
        loses = run.lives % 2 == 0 and bool(wanted)
        life = run.live(_judge(wanted, scope, loses=loses))
        seconds += life.seconds
        stopped = [name for name in life.ended if name in wanted]
        killed += stopped
        left -= set(stopped)
        if not life.ended:
            wrong += broken_at_the_end(run, life)
            break
        wrong += [f"{life.ended} {scope}: {what}" for what in broken_now(run, life)]
    return Finding(run.folder.name, tuple(killed), run.lives, seconds, tuple(wrong))


def _judge(wanted: set[str], scope: str, *, loses: bool) -> Judge:
    """Stop at what is wanted; where a client is to die first, only after that."""

    def judge(passed: str, times: int, party: str) -> str | None:
        if passed in wanted and is_chosen(passed, party):
            return scope
        dies = loses and passed == _DEATH and times == 1 and party == CHOSEN
        return "process" if dies else None

    return judge
