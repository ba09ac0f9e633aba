"""Kill runs and look at what is left: `python -m tests.crash [options]`."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.crash import campaigns
from tests.crash.campaigns import Finding
from tests.crash.world import World, changes_files

_SHORT = {"rounds": 2}


def main() -> int:
    """Run what is asked for; returns 1 where anything did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--record", action="store_true", help="write the list anew")
    asked.add_argument("--chain", action="store_true", help="each boundary, once")
    asked.add_argument("--full", action="store_true", help="a full disk at each write")
    asked.add_argument("--every", action="store_true", help="each pass, in a new run")
    asked.add_argument("--random", metavar="N", type=int, help="N kills at any time")
    parser.add_argument("--seed", type=int, default=1, help="of the times (default: 1)")
    parser.add_argument("--report", type=Path, help="write what was found, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crash-") as scratch:
        found = _found(options, Path(scratch))
    return 1 if found["wrong"] else 0


def _found(options: argparse.Namespace, scratch: Path) -> dict:
    started = time.monotonic()
    recorded: dict[str, int] = {}
    if options.record or options.chain or options.full:
        recorded = campaigns.record(World(scratch / "short", privacy=_SHORT))
    if options.record:
        campaigns.write_list(recorded)
    findings = [] if options.record else list(_findings(options, scratch, recorded))
    killed = [name for finding in findings for name in finding.killed]
    wrong = [text for finding in findings for text in finding.wrong]
    report = {
        "recorded": sorted(recorded),
        "killed": killed,
        "wrong": wrong,
        "findings": [asdict(finding) for finding in findings],
    }
    if options.report is not None:
        options.report.write_text(json.dumps(report, indent=1), "utf-8")
    lives = sum(finding.lives for finding in findings)
    print(
        f"{len(recorded)} boundaries recorded; {len(killed)} kills, {lives} starts, "
        f"{len(findings)} runs, {time.monotonic() - started:.0f} s; {len(wrong)} wrong"
    )
    return report


def _findings(
    options: argparse.Namespace, scratch: Path, recorded: dict[str, int]
) -> Iterator[Finding]:
    changes = {"privacy": _SHORT} if options.every else {}
    world = World(scratch / "world", **changes)
    if options.chain:
        going = campaigns.chain(world, set(recorded))
    elif options.full:
        refused = filter(changes_files, recorded)
        going = campaigns.chain(world, refused, ("full",))
    elif options.every:
        going = campaigns.every(world)
    else:
        going = campaigns.at_random(world, options.random, options.seed)
    for finding in going:
        for text in finding.wrong:
            print(f"WRONG after {finding.killed}: {text}", flush=True)
        if not finding.wrong:
            for left in (scratch / "world").glob("*-[0-9]*"):
                shutil.rmtree(left, ignore_errors=True)
        yield finding


if __name__ == "__main__":
    raise SystemExit(main())
