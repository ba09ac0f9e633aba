"""Two processes on one run: the second is refused, and the first loses nothing."""

from __future__ import annotations

from pathlib import Path

from tests.crash.campaigns import at
from tests.crash.checks import broken_at_the_end, broken_now
from tests.crash.world import Run, World

_IN_USE = "in use by another process"


def second_start(world: World) -> list[str]:
    """Start a run that another process is in the middle of; what did not hold."""
    run = world.run("second-start")
    # No client has anything to do at that point.
    first = run.start(at("server send shares", 1, "stall"))
    try:
        first.wait_for("stall")
        before = _bytes_of(run)
        second = run.live()
        wrong = _refused(second.status, second.stderr, "5")
        if _bytes_of(run) != before:
            wrong.append("the second process changed files of the first")
    finally:
        first.go_on()
        life = first.end()
    return wrong + broken_at_the_end(run, life)


def orphan(world: World) -> list[str]:
    """Start a run again while a worker of its dead server still computes."""
    run = world.run("orphan")
    first = run.start(at("client draw", 1, "orphan"))
    try:
        first.wait_for("orphan")
        first.end_of_server()
        second = run.live()
        wrong = _refused(second.status, second.stderr, "6")
        wrong += broken_now(run, second)
    finally:
        first.go_on()
        left = first.end_of_workers()
    if left:
        wrong.append(f"{left} orphans did not end")
    return wrong + broken_at_the_end(run, run.live())


def _refused(status: int, stderr: str, wanted: str) -> list[str]:
    said = " ".join(stderr.splitlines()[-2:])
    if str(status) == wanted and _IN_USE in said and "Wait until it ends" in said:
        return []
    return [f"status {status}: {said}"]


def _bytes_of(run: Run) -> dict[Path, bytes]:
    every = [*run.output.rglob("*"), *run.store.rglob("*")]
    return {path: path.read_bytes() for path in every if path.is_file()}
