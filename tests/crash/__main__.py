"""Kill runs and look at what is left: `python -m tests.crash [options]`."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from tests.crash import campaigns, cohorts, planted, together
from tests.crash.campaigns import Finding, is_write
from tests.crash.lives import changes_files
from tests.crash.world import World

_SHORT = {"rounds": 2}
_BEFALLS = (
    together.second_start,
    together.orphan,
    together.orphan_at_the_start,
    together.orphan_within_a_line,
    together.orphan_that_is_stuck,
    together.clock_goes_back,
    together.older_copy_within_a_round,
    together.no_umask,
    together.resumed_after_each_round,
)
_SHOWN = 5


def main() -> int:
    """Do what is asked for; returns 1 where anything did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--record", action="store_true", help="write the list anew")
    asked.add_argument("--suite", action="store_true", help="what the tests ask for")
    asked.add_argument("--chain", action="store_true", help="each boundary, once")
    asked.add_argument("--full", action="store_true", help="a full disk at each write")
    asked.add_argument("--every", action="store_true", help="each pass, in a new run")
    asked.add_argument("--cohorts", action="store_true", help="each of cohorts, once")
    asked.add_argument("--random", metavar="N", type=int, help="N kills at any time")
    parser.add_argument("--seed", type=int, default=1, help="of the times (default: 1)")
    parser.add_argument("--report", type=Path, help="write what was found, as JSON")
    parser.add_argument("--keep", type=Path, help="leave the runs of findings here")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        found = _find(options, Path(tempfile.mkdtemp(dir=options.keep)))
    else:
        with tempfile.TemporaryDirectory(prefix="crash-") as scratch:
            found = _find(options, Path(scratch))
    if options.report is not None:
        options.report.write_text(json.dumps(found, indent=1), "utf-8")
    return 1 if found["wrong"] else 0


def _find(options: argparse.Namespace, scratch: Path) -> dict:
    """What is asked for, as the report has it."""
    tally = _Tally(scratch)
    short = World(scratch / "short", privacy=_SHORT)
    passes = campaigns.record(short)
    recorded = sorted(passes)
    refused = [name for name in recorded if changes_files(name)]
    several = cohorts.world_of_cohorts(scratch / "cohorts")
    between = cohorts.record(several, recorded)
    report: dict = {"recorded": recorded, "recorded_of_cohorts": between}
    if options.record:
        campaigns.write_list(campaigns.LISTED, recorded)
        campaigns.write_list(cohorts.LISTED, between)
    elif options.every:
        tally.take(campaigns.every(short, passes))
    else:
        world = World(scratch / "world")
        if options.random is not None:
            # Every third run is one of several cohorts, which takes longer.
            turns = (world, world, several)
            tally.take(campaigns.at_random(turns, options.random, options.seed))
        if options.full:
            tally.take(campaigns.chain(world, refused, ("full",)))
        if options.chain:
            tally.take(campaigns.chain(world, recorded))
        if options.cohorts:
            tally.take(cohorts.chain(several, between))
        if options.suite:
            once = [name for name in recorded if not campaigns.is_another(name)]
            tally.take(campaigns.chain(world, once))
            report["killed"] = tally.stopped()
            writes = [name for name in once if is_write(name)]
            tally.take(campaigns.chain(world, writes, ("full",)))
            report["refused"] = tally.stopped()[len(report["killed"]) :]
            before = len(tally.stopped())
            chosen = [name for name in between if cohorts.is_between(name)]
            tally.take(cohorts.chain(several, chosen))
            report["killed_of_cohorts"] = tally.stopped()[before:]
            report["unseen"] = planted.unseen(short)
            for befalls in _BEFALLS:
                report[befalls.__name__] = befalls(short)
    print(f"{len(recorded)} boundaries; {tally}")
    report["findings"] = [asdict(finding) for finding in tally.findings]
    report["wrong"] = [text for finding in tally.findings for text in finding.wrong]
    return report


class _Tally:
    """Counts what was found, and clears away what held.

    Args:
        scratch: where the runs lie.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._started = time.monotonic()
        self.findings: list[Finding] = []

    def take(self, going: Iterable[Finding]) -> None:
        """Look at each finding as it comes."""
        for finding in going:
            self.findings.append(finding)
            for text in finding.wrong[:_SHOWN]:
                print(f"WRONG after {finding.killed}: {text}", flush=True)
            if not finding.wrong:
                for run in self._scratch.glob(f"*/{finding.run}"):
                    shutil.rmtree(run)

    def stopped(self) -> list[str]:
        """The boundaries at which something happened."""
        return [name for finding in self.findings for name in finding.killed]

    def __str__(self) -> str:
        lives = sum(finding.lives for finding in self.findings)
        wrong = sum(len(finding.wrong) for finding in self.findings)
        return (
            f"{len(self.stopped())} stops, {lives} starts, {len(self.findings)} runs, "
            f"{time.monotonic() - self._started:.0f} s; {wrong} wrong"
        )


if __name__ == "__main__":
    raise SystemExit(main())
