"""Kill -9 at every boundary of a run, on either side, and what the next start finds."""

import fcntl
import json
import os
import subprocess
import sys

import pytest

from tests.crash import cohorts
from tests.crash.campaigns import is_another, is_write, listed
from tests.end_to_end.program import ROOT, environment

_SECONDS = 900
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
            command = [sys.executable, "-m", "tests.crash", "--suite"]
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
    assert killed["recorded_of_cohorts"] == cohorts.listed()


def test_a_run_is_killed_at_every_boundary(killed):
    wanted = {name for name in listed() if not is_another(name)}
    assert set(killed["killed"]) == wanted
    assert set(_RELEASES) <= set(killed["killed"])


def test_a_run_of_several_cohorts_is_killed_between_their_ledgers(killed):
    wanted = {name for name in cohorts.listed() if cohorts.is_between(name)}
    assert set(killed["killed_of_cohorts"]) == wanted
    for what in ("run/server/step.json", "line moved", "line published"):
        assert sum(what in name for name in wanted) > 2


def test_nothing_is_lost_released_twice_or_half_written_by_any_kill(killed):
    assert killed["wrong"] == []


def test_runs_that_were_killed_many_times_come_to_their_end(killed):
    # A run that did not is one of those that are wrong.
    assert max(len(finding["killed"]) for finding in killed["findings"]) > 20


def test_a_disk_that_is_full_from_any_write_on_is_told_and_costs_a_round_at_most(
    killed,
):
    writes = {name for name in listed() if is_write(name)}
    assert set(killed["refused"]) == writes
    assert len(writes) > 25


def test_each_planted_fault_is_seen(killed):
    assert killed["unseen"] == []


def test_a_second_process_on_a_run_is_refused_and_changes_nothing(killed):
    assert killed["second_start"] == []


def test_a_run_waits_for_a_worker_that_outlives_its_server(killed):
    assert killed["orphan"] == []
    assert killed["orphan_at_the_start"] == []
    assert killed["orphan_within_a_line"] == []


def test_a_worker_whose_server_died_ends_though_it_is_stuck(killed):
    assert killed["orphan_that_is_stuck"] == []


def test_a_clock_that_goes_back_changes_nothing(killed):
    assert killed["clock_goes_back"] == []


def test_a_ledger_that_is_an_older_copy_from_within_a_round_is_told_and_not_charged(
    killed,
):
    assert killed["older_copy_within_a_round"] == []


def test_private_files_of_a_run_are_private_without_a_umask(killed):
    assert killed["no_umask"] == []


def test_a_run_goes_on_from_every_round_that_was_completed(killed):
    assert killed["resumed_after_each_round"] == []
