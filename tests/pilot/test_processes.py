"""A home's processes are found and ended, whatever session they hide in."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.home import Home, HomeRole, make_home
from fgrpo_secure.pilot import processes
from fgrpo_secure.pilot.processes import HOME_VARIABLE

# Two processes: the second in a session of its own, as the engine starts its jobs, and
# deaf to what asks it to end. Each says that it is there.
_DEAF = """\
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
signal.pause()
"""
_PARENT = f"""\
import signal, subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", {_DEAF!r}],
    stdout=subprocess.PIPE, start_new_session=True, close_fds=False,
)
child.stdout.readline()
print(child.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def home(tmp_path):
    found = Home(tmp_path / "north", "north", HomeRole.SITE, "t", "localhost", 1, 2)
    make_home(found)
    return found


@pytest.fixture
def started(home):
    """An engine and its job, and the numbers of both."""
    running = []

    def start(lock=None):
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", _PARENT],
            env=dict(os.environ) | {HOME_VARIABLE: str(home.root)},
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        )
        running.append(process)
        return process.pid, int(process.stdout.readline())

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def test_processes_are_told_by_the_home_that_they_carry(home, started, tmp_path):
    pair = started()
    assert processes.processes(home) == sorted(pair)
    other = Home(tmp_path / "nort", "nort", HomeRole.SITE, "t", "localhost", 1, 2)
    assert processes.processes(other) == []
    processes.stop(home)


def test_stop_ends_what_is_deaf_and_in_another_session(home, started):
    pair = started()
    began = time.monotonic()
    assert processes.stop(home)
    assert time.monotonic() - began < processes.STOP_SECONDS
    assert processes.processes(home) == []
    for process in pair:
        assert not alive(process)


def alive(process):
    try:
        with open(f"/proc/{process}/stat") as handle:
            return handle.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_stop_leaves_the_marker_that_forbids_computing(home):
    assert not processes.stop(home)
    assert home.stop_file.exists()
    assert processes.look(home).stopped


def test_the_lock_is_held_as_long_as_a_job_lives(home, started):
    with processes._locked(home) as lock:
        engine, job = started(lock)
        assert processes.look(home).alive
    os.kill(engine, 9)
    assert processes.look(home).alive
    with pytest.raises(StateError, match="runs already"), processes._locked(home):
        pass
    os.kill(job, 9)
    end = time.monotonic() + 10
    while processes.look(home).alive and time.monotonic() < end:
        pass
    assert not processes.look(home).alive


def test_a_process_that_has_a_dead_supervisors_number_is_left_alone(home, started):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with processes._locked(home) as lock:
            started(lock)
        # The supervisor was killed, and the engine lives.
        record = {"supervisor": stranger.pid, "began": 1, "engine": 1}
        processes._record_file(home).write_text(json.dumps(record))
        assert processes.look(home).supervisor is None
        assert processes.stop(home)
        assert stranger.poll() is None
        record["began"] = processes._began(stranger.pid)
        processes._record_file(home).write_text(json.dumps(record))
        with processes._locked(home):
            assert processes.look(home).supervisor == stranger.pid
    finally:
        stranger.kill()
        stranger.wait()


def test_a_supervisor_starts_again_an_engine_that_dies(home, monkeypatch):
    counted = []

    def engine(home, lock):
        counted.append(lock)
        if len(counted) == 3:
            home.stop_file.touch()
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(processes, "check_ready", lambda home: None)
    monkeypatch.setattr(processes, "_start_engine", engine)
    monkeypatch.setattr(processes, "_RESTART_SECONDS", 0.0)
    monkeypatch.setattr(processes.signal, "signal", lambda number, handler: None)
    said = []
    assert processes.supervise(home, said.append) == 0
    assert len(counted) == 3
    assert sum("starting it again" in line for line in said) == 2


def test_an_engine_that_keeps_dying_is_given_up(home, monkeypatch):
    monkeypatch.setattr(processes, "check_ready", lambda home: None)
    monkeypatch.setattr(
        processes,
        "_start_engine",
        lambda home, lock: subprocess.Popen([sys.executable, "-c", ""]),
    )
    monkeypatch.setattr(processes, "_RESTART_SECONDS", 0.0)
    monkeypatch.setattr(processes.signal, "signal", lambda number, handler: None)
    with pytest.raises(StateError, match="keeps ending"):
        processes.supervise(home, lambda line: None)
    assert not processes.look(home).alive


def test_what_a_home_lacks_is_told_before_anything_starts(home, monkeypatch):
    monkeypatch.setattr(processes, "check_installed", lambda: None)
    with pytest.raises(ConfigurationError, match="not enrolled"):
        processes.check_ready(home)
    (home.kit / "startup").mkdir(parents=True)
    (home.kit / "startup" / "rootCA.pem").write_text("x")
    with pytest.raises(StateError, match="does not hold the keys"):
        processes.check_ready(home)


def test_a_server_whose_port_is_taken_says_so_and_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "check_ready", lambda home: None)
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = other.getsockname()[1]
        server = Home(
            tmp_path / "s", "server", HomeRole.SERVER, "t", "localhost", taken, taken
        )
        make_home(server)
        with pytest.raises(StateError, match=f"cannot listen on port {taken}"):
            processes.supervise(server, lambda line: None)
    assert not processes.look(server).alive


def test_what_runs_already_is_ended_by_its_own_command(tmp_path):
    for role, words in (
        (HomeRole.SITE, "fgrpo site stop"),
        (HomeRole.SERVER, "fgrpo pilot serve"),
    ):
        home = Home(tmp_path / role, role, role, "t", "localhost", 1, 2)
        assert words in processes._runs_already(home).fix


def test_the_leads_home_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "check_installed", lambda: None)
    lead = Home(tmp_path / "lead", "lead", HomeRole.LEAD, "t", "localhost", 1, 2)
    make_home(lead)
    with pytest.raises(ConfigurationError, match="runs nothing"):
        processes.check_ready(lead)
