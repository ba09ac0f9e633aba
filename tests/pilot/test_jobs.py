"""Runs as the lead sees them: submitted once, again where the engine failed."""

import json

import pytest

from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.home import Home, HomeRole, make_home
from fgrpo_secure.pilot import dashboard, jobs
from fgrpo_secure.pilot.engine import Engine, EngineError
from fgrpo_secure.pilot.jobs import COMPLETED, LeadRun
from fgrpo_secure.runtime.engine_job import (
    RESULT,
    SITE_JOB,
    STATUS,
    Progress,
    job_files,
)

PROGRESS = Progress("running", 3, ((1, True, 3),), "2.5", "8", ("east",), "round 1")


@pytest.fixture
def run(tmp_path):
    home = Home(tmp_path / "lead", "lead", HomeRole.LEAD, "trial", "localhost", 1, 2)
    make_home(home)
    found = LeadRun(home, "first")
    found.folder.mkdir(parents=True)
    (found.folder / "jobs.json").write_text('["job-1"]')
    return found


@pytest.fixture
def engine(monkeypatch):
    """An engine that says what a test tells it to, and keeps what it was asked."""

    class Scripted:
        def __init__(self):
            self.statuses = []
            self.progress = None
            self.asked = []
            self.on_download = None

        def call(self, *words):
            self.asked.append([str(word) for word in words])
            command = words[1]
            if command == "meta":
                status = self.statuses.pop(0)
                if isinstance(status, Exception):
                    raise status
                return {"status": status}
            if command == "stats":
                if self.progress is None:
                    raise EngineError("x", "y", "JOB_NOT_RUNNING")
                return {"stats": {"server": {"fgrpo": {STATUS: self.progress}}}}
            if command == "submit":
                return {"job_id": f"job-{len(self.asked)}"}
            if command == "download":
                self.on_download(words[words.index("--output-dir") + 1])
            return {}

    scripted = Scripted()
    monkeypatch.setattr(Engine, "call", scripted.call)
    return scripted


def follow(run, resubmitted, waited):
    said = []
    found = list(
        jobs.follow(
            run,
            lambda: resubmitted.append("again"),
            said.append,
            waited.append,
        )
    )
    return found, said


def test_a_run_is_followed_to_its_end(run, engine):
    engine.statuses = ["SUBMITTED", "RUNNING", COMPLETED]
    engine.progress = PROGRESS.to_text()
    found, said = follow(run, again := [], [])
    assert [one.status for one in found] == ["SUBMITTED", "RUNNING", COMPLETED]
    assert found[1].progress == PROGRESS
    assert (said, again) == ([], [])


@pytest.mark.parametrize(
    "status", ["FINISHED:EXECUTION_EXCEPTION", "FINISHED:ABORTED", "FINISHED:ABNORMAL"]
)
def test_a_run_whose_job_failed_is_submitted_again(run, engine, status):
    engine.statuses = ["RUNNING", status, "RUNNING", COMPLETED]
    engine.progress = PROGRESS.to_text()
    found, said = follow(run, again := [], waited := [])
    assert again == ["again"]
    assert found[-1].status == COMPLETED
    assert len(said) == 1
    assert status in said[0]
    assert max(waited) >= 5


def test_a_run_that_comes_no_further_is_given_up(run, engine):
    engine.statuses = ["FINISHED:EXECUTION_EXCEPTION"] * 20
    with pytest.raises(StateError, match=f"failed {jobs.MOST_FAILURES} times"):
        follow(run, again := [], waited := [])
    assert len(again) == jobs.MOST_FAILURES - 1
    assert waited == sorted(waited)


def test_a_job_that_was_lost_with_the_servers_process_is_submitted_again(run, engine):
    """The engine calls it running for ever, and has forgotten it."""
    engine.statuses = ["RUNNING"] * 5 + [COMPLETED]
    found, said = follow(run, again := [], [])
    assert again == ["again"]
    assert found[-1].status == COMPLETED
    assert len(said) == 1


def test_a_job_that_is_about_to_run_is_waited_for(run, engine):
    engine.statuses = ["SUBMITTED"] * 9 + ["RUNNING"] * 4 + [COMPLETED]
    _, said = follow(run, again := [], [])
    assert (again, said) == ([], [])


def test_failures_count_anew_after_a_round(run, engine):
    failed, notes = "FINISHED:EXECUTION_EXCEPTION", []

    def play():
        for number in range(1, 9):
            notes.append((number, True, 3))
            progress = Progress("running", 9, tuple(notes), "1", "8", (), "")
            engine.progress = progress.to_text()
            yield "RUNNING"
            yield failed
        yield COMPLETED

    class Endless(list):
        def pop(self, at):
            return next(playing)

    playing = play()
    engine.statuses = Endless()
    found, _ = follow(run, again := [], [])
    assert len(again) == 8 > jobs.MOST_FAILURES
    assert found[-1].status == COMPLETED


def test_a_run_that_the_lead_stopped_is_not_submitted_again(run, engine):
    run.stop_file.touch()
    engine.statuses = ["FINISHED:ABORTED"]
    found, _ = follow(run, again := [], [])
    assert again == []
    assert found[-1].over


def test_a_server_that_is_not_reached_is_waited_for(run, engine):
    gone = EngineError("x", "y", "CONNECTION_FAILED")
    engine.statuses = [gone, gone, gone, COMPLETED]
    found, said = follow(run, [], waited := [])
    assert found[-1].status == COMPLETED
    assert len(said) == 1
    assert len(waited) == 3


def test_what_the_coordinator_said_last_is_told_with_a_failure(run, engine):
    engine.statuses = ["RUNNING", "FINISHED:EXECUTION_EXCEPTION", COMPLETED]
    refused = Progress("refused", 3, (), "0", "8", (), "another plan\x1b[0m")
    engine.progress = refused.to_text()
    _, said = follow(run, [], [])
    assert "another plan" in said[0]
    assert "\x1b" not in said[0]


def test_what_else_the_engine_refuses_is_told(run, engine):
    engine.statuses = [EngineError("no such right", "ask", "AUTH_FAILED")]
    with pytest.raises(EngineError, match="no such right"):
        follow(run, [], [])


def test_stop_marks_the_run_before_it_asks_the_engine(run, engine, monkeypatch):
    def refuse(self, *words):
        assert run.stop_file.exists()
        raise EngineError("gone", "wait", "CONNECTION_FAILED")

    monkeypatch.setattr(Engine, "call", refuse)
    with pytest.raises(EngineError, match="gone"):
        jobs.stop(run)
    assert run.stop_file.exists()


def test_a_job_that_has_ended_can_be_stopped_too(run, engine, monkeypatch):
    engine.statuses = ["FINISHED:ABORTED"]
    assert jobs.stop(run).over


def test_a_finished_run_is_collected_as_a_folder_of_its_own(run, engine, tmp_path):
    def bring(folder):
        source = folder / "job-1" / "workspace" / RESULT
        (source / "ledger").mkdir(parents=True)
        (source / "plan.json").write_text("{}")
        (source / "ledger" / "server.jsonl").write_text("x")

    engine.statuses = [COMPLETED, COMPLETED]
    engine.on_download = bring
    output = jobs.collect(run, tmp_path / "out")
    assert (output / "ledger" / "server.jsonl").read_text() == "x"
    with pytest.raises(StateError, match="not empty"):
        jobs.collect(run, tmp_path / "out")


def test_what_is_not_finished_is_not_collected(run, engine, tmp_path):
    engine.statuses = ["RUNNING"]
    with pytest.raises(StateError, match="not finished"):
        jobs.collect(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_in_what_the_engine_brings_is_refused(run, engine, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")

    def bring(folder):
        source = folder / RESULT
        source.mkdir(parents=True)
        (source / "plan.json").write_text("{}")
        (source / "summary.json").symlink_to(secret)

    engine.statuses = [COMPLETED]
    engine.on_download = bring
    with pytest.raises(StateError, match="link"):
        jobs.collect(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_download_without_a_run_is_told(run, engine, tmp_path):
    engine.statuses = [COMPLETED]
    engine.on_download = lambda folder: None
    with pytest.raises(StateError, match="no finished run"):
        jobs.collect(run, tmp_path / "out")


def test_a_run_that_is_not_there_is_told(run):
    with pytest.raises(ConfigurationError, match="no run second"):
        jobs.open_run(run.home, "second")


def test_runs_are_the_leads_alone(tmp_path):
    home = Home(tmp_path / "s", "server", HomeRole.SERVER, "t", "localhost", 1, 2)
    make_home(home)
    with pytest.raises(ConfigurationError, match="home of server"):
        jobs.open_run(home, "first")


def test_a_job_carries_no_code_and_gives_a_site_no_terms():
    files = job_files("first", ["a", "b", "c"], 3, {"run": "first"})
    assert all(path.endswith(".json") for path in files)
    assert not any("custom" in path for path in files)
    site = json.loads(files["site/config/config_fed_client.json"])
    assert site == SITE_JOB
    assert [e["executor"]["args"] for e in site["executors"]] == [{}]
    meta = json.loads(files["meta.json"])
    assert meta["deploy_map"] == {"server": ["server"], "site": ["a", "b", "c"]}


def test_progress_is_read_as_it_was_written():
    assert Progress.from_text(PROGRESS.to_text()) == PROGRESS


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": 1}', "null", "[" * 9999])
def test_what_is_no_progress_is_none(text):
    assert Progress.from_text(text) is None


def test_texts_of_the_server_do_not_reach_the_terminal_as_commands():
    evil = Progress("\x1b[2J", 3, (), "\x1b]0;x\x07", "8", ("\x1b[1m",), "\r\x1b[31m")
    watched = jobs.Watched("first", "job", "RUNNING\x1b[0m", evil, 1)
    assert "\x1b" not in dashboard.line(watched)
    assert "\r" not in dashboard.line(watched)
