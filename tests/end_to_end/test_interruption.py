"""Ctrl-C, a machine switched off, a worker that dies: what is kept and what goes on."""

import json
import os
import shutil
import signal
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from fgrpo_secure.cli import main
from tests.end_to_end.program import NAMES, Gate, Program, kinds, records, write_config

ROUNDS = 3
GATED = "shift"
TRIO = ("count", "shift", "sort")


@dataclass(frozen=True)
class Stop:
    """One start of the program that did not reach the end.

    Attributes:
        status: with which the first process ended.
        stderr: what it printed for people.
        folder: a copy of the run's folder as it was then.
    """

    status: int
    stderr: str
    folder: Path

    def kinds(self, party):
        return kinds(self.folder / f"ledger/{party}.jsonl")


@dataclass(frozen=True)
class Story:
    """A run that was interrupted by Ctrl-C, then killed, then went on to its end.

    Attributes:
        config: its configuration.
        output: its folder at the end.
        interrupted: after Ctrl-C in round 1.
        killed: after SIGKILL of all its processes in round 2.
        status: of the last start.
        stderr: of the last start.
    """

    config: Path
    output: Path
    interrupted: Stop
    killed: Stop
    status: int
    stderr: str

    def records(self, party):
        return records(self.output / f"ledger/{party}.jsonl")


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("story")
    settings = {"privacy": {"rounds": ROUNDS}, "machine": {"workers": 1}}
    config = write_config(folder / "given", gated=GATED, **settings)
    output = folder / "out"
    command = ("run", config, "--output", output)
    gate = Gate(config.parent)
    stops = []
    for stop in ("interrupted", "killed"):
        program = Program(folder, *command)
        try:
            gate.wait()
            if stop == "interrupted":
                program.interrupt()
                status = program.wait()
            else:
                program.kill_all()
                status = program.process.returncode
        finally:
            program.kill_all()
        kept = shutil.copytree(output, folder / stop)
        stops.append(Stop(status, program.stderr, Path(kept)))
    gate.lift()
    program = Program(folder, *command)
    status = program.wait()
    return Story(config, output, *stops, status, program.stderr)


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(story):
    assert story.interrupted.status == 130
    last = story.interrupted.stderr.splitlines()[-2:]
    assert last[0].startswith("fgrpo: Interrupted")
    assert f"fgrpo run {story.config} --output {story.output}" in last[1]


def test_ctrl_c_prints_no_traceback(story):
    assert "Traceback" not in story.interrupted.stderr
    assert "Error" not in story.interrupted.stderr


def test_the_charge_was_on_disk_when_the_run_stopped(story):
    assert story.interrupted.kinds(GATED)[-1] == "intent"
    assert story.killed.kinds(GATED)[-1] == "intent"
    assert story.killed.kinds(GATED).count("intent") == 2


def test_a_run_that_was_killed_goes_on_to_its_end(story):
    assert story.status == 0, story.stderr
    assert "Going on after round" in story.stderr
    summary = json.loads((story.output / "summary.json").read_text("utf-8"))
    assert summary["rounds_completed"] == 1
    assert summary["rounds_aborted"] == 2


def test_its_ledgers_verify(story):
    assert main(["ledger", "verify", str(story.output)]) == 0


def test_no_charge_is_forgotten_by_an_interruption(story):
    for name in NAMES:
        charged = [r for r in story.records(name) if r["kind"] == "intent"]
        kept = story.killed.kinds(name).count("intent")
        # Whoever was charged before the interruption stays charged.
        assert len(charged) >= kept
        assert [r["spend"]["charges"] for r in charged] == [
            number + 1 for number in range(len(charged))
        ]
    gated = [r for r in story.records(GATED) if r["kind"] == "intent"]
    assert [r["round"] for r in gated] == [1, 2, 3]
    spent = [Decimal(r["spend"]["epsilon_pld"]) for r in gated]
    assert spent == sorted(spent)


def test_the_interrupted_rounds_are_aborted_in_the_servers_ledger(story):
    ends = [
        (r["round"], r["kind"], r.get("reason"))
        for r in story.records("server")
        if r["kind"] in {"aborted", "published"}
    ]
    assert [(number, kind) for number, kind, _ in ends] == [
        (1, "aborted"),
        (2, "aborted"),
        (3, "published"),
    ]
    assert {reason for _, kind, reason in ends if kind == "aborted"} == {"interrupted"}


def test_every_restart_is_recorded(story):
    for party in (*NAMES, "server"):
        resumed = [r for r in story.records(party) if r["kind"] == "resumed"]
        assert len(resumed) == 2


def test_an_interrupted_round_is_never_joined_again(story):
    for name in NAMES:
        joined = [r["round"] for r in story.records(name) if r["kind"] == "joined"]
        assert joined == sorted(set(joined))


def test_identities_survive_an_interruption(story):
    for party in (*NAMES, "server"):
        first = (story.interrupted.folder / f"keys/{party}.pub").read_bytes()
        assert (story.output / f"keys/{party}.pub").read_bytes() == first


def test_an_unfinished_folder_refuses_another_plan(story, tmp_path, capsys):
    folder = shutil.copytree(story.killed.folder, tmp_path / "out")
    before = (folder / "ledger/server.jsonl").read_bytes()
    arguments = ["run", str(story.config), "--output", str(folder)]
    assert main([*arguments, "--set", "privacy.rounds=2"]) == 5
    assert "another plan" in capsys.readouterr().err
    assert (folder / "ledger/server.jsonl").read_bytes() == before


def test_an_unfinished_folder_refuses_another_identity(story, tmp_path, capsys):
    folder = shutil.copytree(story.killed.folder, tmp_path / "out")
    (folder / "clients/sums/identity.key").unlink()
    assert main(["run", str(story.config), "--output", str(folder)]) == 5
    assert "sums" in capsys.readouterr().err


def test_an_unfinished_run_does_not_pass_for_a_finished_one(story, capsys):
    assert main(["ledger", "verify", str(story.killed.folder)]) == 1
    assert main(["ledger", "verify", "--unfinished", str(story.killed.folder)]) == 0


@pytest.fixture(scope="module")
def bereaved(tmp_path_factory):
    """A run of three clients in three processes, one of which is killed in round 1.

    Its folder at the end, and the first start: how that ended, and a copy of what it
    left.
    """
    folder = tmp_path_factory.mktemp("bereaved")
    config = write_config(
        folder / "given",
        names=TRIO,
        gated=GATED,
        federation={"min_survivors": 2, "colluders": 0},
        machine={"workers": 3},
    )
    command = ("run", config, "--output", folder / "out")
    gate = Gate(config.parent)
    program = Program(folder, *command)
    try:
        os.kill(gate.wait(), signal.SIGKILL)
        gate.lift()
        status = program.wait()
    finally:
        program.kill_all()
    kept = Path(shutil.copytree(folder / "out", folder / "kept"))
    stop = Stop(status, program.stderr, kept)
    again = Program(folder, *command)
    assert again.wait() == 0, again.stderr
    return folder / "out", stop


def ends(output):
    return [
        r
        for r in records(output / "ledger/server.jsonl")
        if r["kind"] in {"aborted", "published"}
    ]


def test_the_clients_of_a_dead_worker_drop_out_and_the_rest_are_summed(bereaved):
    _, stop = bereaved
    (first,) = ends(stop.folder)
    assert first["kind"] == "published"
    assert first["survivors"] == [name for name in TRIO if name != GATED]
    assert f"client {GATED}" in stop.stderr
    assert "Traceback" not in stop.stderr


def test_too_few_processes_stop_the_run_before_another_round_is_used_up(bereaved):
    _, stop = bereaved
    assert stop.status == 5
    assert f"The processes of {GATED} have ended" in stop.stderr
    assert "goes on from here" in stop.stderr
    assert not (stop.folder / "summary.json").exists()
    for name in TRIO:
        assert stop.kinds(name).count("intent") == 1


def test_the_same_command_brings_the_dead_client_back(bereaved):
    output, _ = bereaved
    assert [(r["round"], r["kind"], len(r["survivors"])) for r in ends(output)] == [
        (1, "published", 2),
        (2, "published", 3),
    ]
    summary = json.loads((output / "summary.json").read_text("utf-8"))
    assert (summary["rounds_completed"], summary["rounds_aborted"]) == (2, 0)
    assert summary["survivors"] == list(TRIO)
    assert main(["ledger", "verify", str(output)]) == 0


def test_the_dead_clients_ledger_says_what_it_missed(bereaved):
    output, _ = bereaved
    outcomes = [
        (r["round"], r["status"])
        for r in records(output / f"ledger/{GATED}.jsonl")
        if r["kind"] == "outcome"
    ]
    assert outcomes == [(1, "missed"), (2, "published")]
