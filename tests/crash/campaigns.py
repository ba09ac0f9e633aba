"""Ways to kill a run and start it again, at every boundary or at any time."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from privacy.plan import SERVER
from tests.crash.checks import broken_at_the_end, broken_now
from tests.crash.lives import Judge, go_on
from tests.crash.power import NAMES_KEPT, NAMES_LOST
from tests.crash.world import CHOSEN, Run, World

LISTED = Path(__file__).parent / "boundaries.txt"
# What the chosen client may never come to: the worker that is first makes the secret of
# the store, one client's evaluation set is public, and the dead are told of no abort.
_ANYBODYS = re.compile(r"\.units\.key|aborted|evaluate")
# Process, all processes, or the machine's power.
SCOPES = ("process", NAMES_LOST, "machine", NAMES_KEPT)
_MOST_LIVES = 40
_STOPPED_LIVES = 36


@dataclass(frozen=True)
class Finding:
    """One run that was killed and started again.

    Attributes:
        run: the name of its folder.
        killed: the boundaries at which it was killed, life by life.
        lives: how often it was started.
        seconds: all lives together.
        wrong: what did not hold.
    """

    run: str
    killed: tuple[str, ...]
    lives: int
    seconds: float
    wrong: tuple[str, ...]


def is_chosen(name: str, party: str) -> bool:
    """Whether this process is the one to be killed at a boundary."""
    return party in {SERVER, CHOSEN} or bool(_ANYBODYS.search(name))


def record(world: World) -> dict[str, int]:
    """Every boundary that a run can come to, with how often one process comes to it.

    A run that is not disturbed, one of which a client dies in round 1, and one that
    dies as a whole there and is taken up again.
    """
    lives = [world.run("recorded").live()]
    for scope in ("process", "machine"):
        run = world.run(f"recorded-{scope}")
        lives.append(run.live(at("client tear line commit", 1, scope)))
        lives.append(run.live())
    passed = [Counter(life.names) for life in lives]
    # The chosen client's passes are not told from those of the others, so that this is
    # more than it comes to.
    return {
        name: max(life[name] for life in passed) for life in passed for name in life
    }


def listed() -> list[str]:
    """The boundaries on the list."""
    return LISTED.read_text("utf-8").splitlines()


def is_another(name: str) -> bool:
    """Whether a boundary is passed by the same code for every kind of line.

    A head is written by one function, whatever its line says. The tests kill within it
    for two kinds of line, and before and after it for all.
    """
    _, _, what = name.partition(" ")
    verb, _, kind = what.partition(" head ")
    return verb in {"tear", "sync", "rename"} and kind not in {"intent", "published"}


def is_write(name: str) -> bool:
    """Whether a disk that is full from here on is tried by the tests."""
    return " write " in name and " head " not in name


def write_list(path: Path, names: Iterable[str]) -> None:
    """Replace a list by what was recorded."""
    path.write_text("".join(f"{name}\n" for name in sorted(names)), "utf-8")


def chain(
    world: World, names: Iterable[str], scopes: Sequence[str] = SCOPES
) -> Iterator[Finding]:
    """Stop at each name once: a run is stopped at the first that it comes to, always.

    Args:
        world: whose runs are stopped.
        names: of boundaries.
        scopes: what happens there, in turns.
    """
    left, number = set(names), 0
    while left:
        number += 1
        before = len(left)
        run = world.run(f"chain-{number}-{len(scopes)}")
        yield _chained(run, left, scopes)
        if len(left) == before:
            # No run comes to what is left.
            return


def _chained(run: Run, left: set[str], scopes: Sequence[str]) -> Finding:
    """One run, stopped at everything that is left until it comes to its end."""
    killed: list[str] = []
    wrong: list[str] = []
    seconds = 0.0
    while True:
        scope = scopes[run.lives % len(scopes)]
        spared = run.lives >= _STOPPED_LIVES
        life = run.live(go_on if spared else _at_any(left, scope))
        seconds += life.seconds
        killed += life.ended
        left -= set(life.ended)
        if not life.ended:
            wrong += broken_at_the_end(run, life)
            break
        wrong += [f"{life.ended} {scope}: {what}" for what in broken_now(run, life)]
    return Finding(run.folder.name, tuple(killed), run.lives, seconds, tuple(wrong))


def every(world: World, recorded: Mapping[str, int]) -> Iterator[Finding]:
    """Kill a new run at each pass of each boundary, in one of the ways in turns.

    Args:
        world: of the runs that were recorded.
        recorded: how often all processes together come to each boundary.
    """
    number = 0
    for name, count in sorted(recorded.items()):
        # That a bar moves on changes nothing but the bar.
        passes = 2 if name.endswith("progress") else count
        for turn in range(1, passes + 1):
            number += 1
            scope = SCOPES[number % len(SCOPES)]
            finding = _once(world.run(f"every-{number}"), name, turn, scope)
            if not finding.killed and not finding.wrong:
                # No process comes to it so often; the count is of all of them.
                break
            yield finding


def _once(run: Run, name: str, count: int, scope: str) -> Finding:
    """Kill a new run at one pass of one boundary, and have it go on to its end."""
    lives = [run.live(at(name, count, scope))]
    wrong = broken_now(run, lives[0])
    lives.append(run.live())
    wrong += broken_at_the_end(run, lives[-1])
    killed = tuple(lives[0].ended)
    return Finding(
        run.folder.name, killed, 2, sum(life.seconds for life in lives), tuple(wrong)
    )


def at_random(worlds: Sequence[World], kills: int, seed: int) -> Iterator[Finding]:
    """Kill at random times, one run after another, until so many kills are done.

    Args:
        worlds: whose runs are killed, in turns.
        kills: of all of them together.
        seed: of the times, and of who dies.
    """
    chance = random.Random(seed)  # noqa: S311
    longest_of = {
        world: world.run("measured").live().seconds for world in dict.fromkeys(worlds)
    }
    done = number = 0
    while done < kills:
        world = worlds[number % len(worlds)]
        longest = longest_of[world]
        number += 1
        run = world.run(f"random-{number}")
        killed: list[str] = []
        wrong: list[str] = []
        seconds = 0.0
        while run.lives < _MOST_LIVES:
            clients = world.clients
            scope = chance.choice(("machine", NAMES_LOST, NAMES_KEPT, SERVER, *clients))
            wait = chance.uniform(0, longest)
            life = run.live(then=_after(wait, scope, run) if done < kills else None)
            seconds += life.seconds
            if (run.output / "summary.json").exists():
                # Other work on the machine may have been less than it was.
                if run.lives == 1:
                    longest_of[world] = min(longest, life.seconds)
                break
            done += 1
            if scope in {NAMES_LOST, NAMES_KEPT}:
                run.lose(names=scope == NAMES_LOST)
            killed.append(f"{scope} after {wait:.3f} s")
            wrong += [f"{killed[-1]}: {what}" for what in broken_now(run, life)]
        wrong += broken_at_the_end(run, life)
        yield Finding(run.folder.name, tuple(killed), run.lives, seconds, tuple(wrong))


def _at_any(left: set[str], scope: str) -> Judge:
    def judge(passed: str, times: int, party: str) -> str | None:
        return scope if passed in left and is_chosen(passed, party) else None

    return judge


def at(name: str, count: int, scope: str) -> Judge:
    """Have something happen at one pass of one boundary."""

    def judge(passed: str, times: int, party: str) -> str | None:
        here = passed == name and times == count and is_chosen(name, party)
        return scope if here else None

    return judge


def _after(wait: float, scope: str, run: Run) -> Callable[[int], None]:
    """End a process, or all, some time after the start."""

    def end(process: int) -> None:
        time.sleep(wait)
        with suppress(ProcessLookupError):
            if scope == SERVER:
                os.kill(process, signal.SIGKILL)
            elif scope not in run.world.clients:
                os.killpg(process, signal.SIGKILL)
            elif scope in run.workers():
                os.kill(run.workers()[scope], signal.SIGKILL)

    return end
