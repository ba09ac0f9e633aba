"""Kill -9 at every boundary of a run, on either side, and what the next start finds."""

import fcntl
import json
import os
import subprocess
import sys

import pytest

from tests.crash.campaigns import listed
from tests.end_to_end.program import ROOT, environment

_SECONDS = 500
# The witness has to see each of these, or it would prove nothing.
_RELEASES = ("client draw", "client statistic", "client noise", "client vector")


@pytest.fixture(scope="session")
def killed(tmp_path_factory):
    """What was found when runs were killed at each boundary; once for all processes."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    report = base / "crash.json"
    with (base / "crash.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not report.exists():
            command = [sys.executable, "-m", "tests.crash", "--chain"]
            subprocess.run(  # noqa: S603
                [*command, "--report", report],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                timeout=_SECONDS,
                check=False,
            )
    return json.loads(report.read_text("utf-8"))


def test_every_boundary_of_a_run_is_on_the_list(killed):
    # Where this fails, a run writes, sends or draws something new, or no longer does:
    # look at what, and make the list again by `python -m tests.crash --record`.
    assert killed["recorded"] == listed()


def test_a_run_is_killed_at_every_boundary(killed):
    assert set(listed()) <= set(killed["killed"])
    assert set(_RELEASES) <= set(killed["killed"])


def test_nothing_is_lost_released_twice_or_half_written_by_any_kill(killed):
    assert killed["wrong"] == []


def test_runs_that_were_killed_many_times_come_to_their_end(killed):
    for finding in killed["findings"]:
        assert finding["lives"] > len(set(finding["killed"])) / 4
    assert max(finding["lives"] for finding in killed["findings"]) > 10
