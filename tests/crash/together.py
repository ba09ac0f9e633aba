"""What else may befall a run: a second process, an orphan, a clock, a umask, long life.

Each returns what did not hold.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from itertools import pairwise
from pathlib import Path

from fgrpo_secure.checkpoint import read_checkpoint
from privacy.ledger import verify_run
from privacy.plan import SERVER
from tests.crash.campaigns import at
from tests.crash.checks import broken_at_the_end, broken_now
from tests.crash.world import CHOSEN, Run, World
from tests.end_to_end.program import records

_IN_USE = "in use by another process"
_DECADE = 10 * 365.25 * 86400
_OURS = ("privacy", "fgrpo_secure")


def second_start(world: World) -> list[str]:
    """Start a run that another process is in the middle of."""
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
    return _orphaned(world.run("orphan"), "client draw")


def orphan_at_the_start(world: World) -> list[str]:
    """Likewise where its server died before the worker could say that it is ready."""
    return _orphaned(world.run("early-orphan"), "client send ready")


def orphan_within_a_line(world: World) -> list[str]:
    """Likewise where the worker has written a line, and not synced it."""
    return _orphaned(world.run("writing-orphan"), "client sync line shown")


def orphan_that_is_stuck(world: World) -> list[str]:
    """Start a run again whose worker would never have come to an end by itself."""
    run = world.run("stuck-orphan")
    life = run.live(at("client draw", 1, "stuck"))
    wrong = [f"{life.left} orphans did not end"] if life.left else []
    wrong += broken_now(run, life)
    return wrong + broken_at_the_end(run, run.live())


def _orphaned(run: Run, boundary: str) -> list[str]:
    first = run.start(at(boundary, 1, "orphan"))
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
    if "Traceback" in first.files.stderr.read_text("utf-8"):
        wrong.append("an orphan printed a traceback")
    return wrong + broken_at_the_end(run, run.live())


def clock_goes_back(world: World) -> list[str]:
    """Go on with a run ten years before it began, on a clock that runs backwards."""
    run = world.run("clock")
    wrong = broken_now(run, run.live(at("client vector", 1, "machine")))
    life = run.live(planted=_turn_clock_back)
    return wrong + broken_at_the_end(run, life)


def older_copy_within_a_round(world: World) -> list[str]:
    """Bring a ledger back to the line before a charge, its vector counted since.

    Nothing follows: the client says in its ledger that it has forgotten, draws no more,
    and accuses nobody.
    """
    run = world.run("older-copy")
    here, kept = run.store / CHOSEN / "ledger", run.folder / "older"
    charge, counted = "client write line intent", "server sync folder of head survivors"

    def judge(name: str, times: int, party: str) -> str | None:
        if times > 1 or party not in {CHOSEN, SERVER}:
            return None
        return {charge: "stall", counted: "machine"}.get(name)

    first = run.start(judge)
    try:
        first.wait_for("stall")
        shutil.copytree(here, kept)
    finally:
        first.go_on()
        life = first.end()
    wrong = broken_now(run, life)
    shutil.rmtree(here)
    shutil.copytree(kept, here)
    drawn = len(_draws(run))
    life = run.live()
    said = records(here / f"{CHOSEN}.jsonl")
    if [line["reason"] for line in said if line["kind"] == "refused"] != ["rollback"]:
        wrong.append(f"the ledger says {[line['kind'] for line in said]}")
    if len(_draws(run)) != drawn:
        wrong.append("it was charged on top of a ledger that has forgotten")
    if life.status != 5 or f"No word of {CHOSEN}" not in life.stderr:
        wrong.append(f"status {life.status}: {life.stderr[-400:]}")
    if not verify_run(run.output, unfinished=True).problems:
        wrong.append("the folder verifies")
    return wrong


def _draws(run: Run) -> list[dict]:
    seen = run.seen()
    return [e for e in seen if e["what"] == "draw" and e["client"] == CHOSEN]


def no_umask(world: World) -> list[str]:
    """Run with umask 0, which takes nothing from the mode that a file is made with."""
    run = world.run("umask")
    wrong = broken_at_the_end(run, run.live(planted=lambda: os.umask(0)))
    for path in (run.store, *run.store.rglob("*"), run.output / SERVER):
        if path.is_dir():
            wanted = {0o700}
        elif path.parent.name == "ledger" and path.suffix in {".jsonl", ".head"}:
            # A copy of it is published; its folder is closed.
            wanted = {0o644}
        else:
            wanted = {0o600}
        if _mode(path) not in wanted:
            wrong.append(f"{path.relative_to(run.folder)} has mode {_mode(path):o}")
    for path in (run.output, *run.output.rglob("*")):
        if _mode(path) & 0o022:
            wrong.append(f"{path.relative_to(run.folder)}: others may write")
    if _mode(run.output / SERVER / "identity.key") != 0o600:
        wrong.append("the server's identity is open")
    return wrong


def resumed_after_each_round(world: World) -> list[str]:
    """End the machine after every round that was completed, and go on each time."""
    run = world.run("rounds")
    wrong = []
    for _ in range(world.plans[0].rounds):
        # The second sync of the folder: the line and its head are on the disk.
        life = run.live(at("server sync folder of head published", 2, "machine"))
        wrong += broken_now(run, life)
    wrong += broken_at_the_end(run, run.live())
    lines = records(run.output / "ledger" / f"{SERVER}.jsonl")
    published = [line for line in lines if line["kind"] == "published"]
    if len(published) != world.plans[0].rounds:
        wrong.append(
            f"{len(published)} rounds of {world.plans[0].rounds} were published"
        )
    for one, following in pairwise(published):
        if one["adapter_after"] != following["adapter_before"]:
            wrong.append(f"round {following['round']} began from another adapter")
    last = bytes.fromhex(published[-1]["adapter_after"])
    steps = read_checkpoint(run.output / SERVER, last).optimizer.steps
    if steps != len(published):
        wrong.append(f"the optimizer counts {steps} steps")
    return wrong


def _refused(status: int, stderr: str, wanted: str) -> list[str]:
    said = " ".join(stderr.splitlines()[-2:])
    if str(status) == wanted and _IN_USE in said and "Wait until it ends" in said:
        return []
    return [f"status {status}: {said}"]


def _bytes_of(run: Run) -> dict[Path, bytes]:
    every = [*run.output.rglob("*"), *run.store.rglob("*")]
    return {path: path.read_bytes() for path in every if path.is_file()}


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _turn_clock_back() -> None:
    """Have the time of day run backwards, and nothing of ours ask for it."""
    now = time.time() - _DECADE

    def asked() -> float:
        nonlocal now
        who = sys._getframe(1).f_globals.get("__name__", "")
        if who.partition(".")[0] in _OURS:
            msg = f"{who} asks for the time of day"
            raise RuntimeError(msg)
        now -= 60
        return now

    time.time = asked
    time.time_ns = lambda: int(asked() * 1e9)
