"""What a pilot's server tells Prometheus: public numbers, and where it is asked to."""

import argparse
import re
import socket
import time
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection
from types import SimpleNamespace

import pytest

from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.home import Home, HomeRole, make_home
from fgrpo_secure.pilot import arguments, commands, exporter, exposition, processes
from fgrpo_secure.pilot.exporter import Address, exposed, read_address
from fgrpo_secure.pilot.exposition import TIMED, Family, Run, Runs, escape, expose
from fgrpo_secure.rounds import RoundNote, write_note
from fgrpo_secure.runtime.engine_job import Progress
from privacy.ledger import claimed_epsilon
from privacy.wire import canonical_json
from tests.plans import NO_PROMISE, make_plan

# Values that no public number of these runs is, and a word that nobody may read.
SECRET_SECONDS, SECRET_WEIGHTS, SECRET = 7123.25, 2.625, "tell-nobody"
PHASES = ("offer", "roster", "shares", "survivors", "quorum", "published")
NOTE = RoundNote(
    round=1,
    published=True,
    survivors=3,
    weights=SECRET_WEIGHTS,
    down=dict.fromkeys(PHASES, 100) | {SECRET: 1},
    up=dict.fromkeys(PHASES, 10),
    seconds=dict.fromkeys(PHASES, 0.25) | {"shares": SECRET_SECONDS, SECRET: 1.0},
)
DROPPED = replace(NOTE, round=2, published=False, survivors=0, weights=0.0)
PROGRESS = Progress(
    "running", 3, (), "0", "8", ("client-a", SECRET), f"client x: {SECRET}"
)
SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)"
    r'\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*",?)*)\} '
    r"(-?[0-9.]+(?:e-?[0-9]+)?|\+Inf|NaN)"
)
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
UNITS = ("_bytes_total", "_seconds_total")


def read(text):
    """An exposition as a strict reader takes it: kinds, and values by name and labels.

    Every family has its help and its kind before its samples, once, and all of its
    samples in one place.
    """
    kinds, samples, helped = {}, {}, set()
    current = None
    assert text.endswith("\n")
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            name, words = line.removeprefix("# HELP ").split(" ", 1)
            assert name not in helped
            assert words
            helped.add(name)
        elif line.startswith("# TYPE "):
            current, kind = line.removeprefix("# TYPE ").split(" ")
            assert current in helped - kinds.keys()
            kinds[current] = kind
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            assert found[1] == current
            labels = {
                key: re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), value)
                for key, value in LABEL.findall(found[2])
            }
            key = found[1], tuple(sorted(labels.items()))
            assert key not in samples
            samples[key] = float(found[3])
    return kinds, samples


def value(samples, name, **labels):
    return samples[name, tuple(sorted(labels.items()))]


@pytest.fixture
def home(tmp_path):
    found = Home(tmp_path / "s", "server", HomeRole.SERVER, "t", "localhost", 1, 2)
    make_home(found)
    return found


@pytest.fixture
def plan():
    return make_plan()


@pytest.fixture
def run(home, plan):
    """A run with one round that was published and one that was not."""
    root = home.run("trial")
    (root / "server").mkdir(parents=True)
    (root / "plan.json").write_bytes(canonical_json(plan.to_json()))
    for note in (NOTE, DROPPED):
        write_note(root / "server", note)
    (root / "server" / "progress.json").write_text(PROGRESS.to_text(), "utf-8")
    return root


@pytest.fixture
def told(home, run):
    return expose(Runs(home).now())


# What is told.


def test_the_exposition_is_what_prometheus_reads(told):
    kinds, samples = read(told)
    assert set(kinds.values()) == {"counter", "gauge"}
    assert {name for name, _ in samples} == kinds.keys()


def test_names_follow_the_conventions(told):
    kinds, _ = read(told)
    for name, kind in kinds.items():
        assert re.fullmatch(r"fgrpo_[a-z]+(_[a-z]+)*", name)
        assert (kind == "counter") == name.endswith("_total")
        assert not name.endswith(("_count", "_sum", "_bucket"))
        if "seconds" in name or "bytes" in name:
            assert name.endswith(UNITS)


def test_the_numbers_are_those_of_the_plan_and_of_the_notes(told, plan):
    _, samples = read(told)
    assert value(samples, "fgrpo_rounds_planned", run="trial") == plan.rounds
    for outcome in ("published", "aborted"):
        labels = {"run": "trial", "outcome": outcome}
        assert value(samples, "fgrpo_rounds_total", **labels) == 1
    assert value(samples, "fgrpo_last_sum_survivors", run="trial") == 3
    assert value(samples, "fgrpo_epsilon_target", run="trial") == 8
    assert value(samples, "fgrpo_delta", run="trial") == float(plan.delta)
    for direction, count in (("down", 200), ("up", 20)):
        labels = {"run": "trial", "phase": "shares", "direction": direction}
        assert value(samples, "fgrpo_payload_bytes_total", **labels) == count
    labels = {"run": "trial", "phase": "roster"}
    assert value(samples, "fgrpo_phase_seconds_total", **labels) == 0.5
    assert value(samples, "fgrpo_run_alive", run="trial") == 1
    assert value(samples, "fgrpo_run_finished", run="trial") == 0


def test_a_round_that_was_dropped_is_in_the_epsilon(home, run, plan):
    """All were charged for it: what is told is no less than what the ledgers say."""
    from fgrpo_secure.course import _Course

    spent = [exposition._spent(plan, rounds) for rounds in range(plan.rounds + 1)]
    assert spent[0] == 0
    assert spent == sorted(set(spent))
    course = SimpleNamespace(_plan=plan)
    assert spent[2] == float(claimed_epsilon(_Course._cost(course, 2)))
    _, samples = read(expose(Runs(home).now()))
    assert value(samples, "fgrpo_epsilon_spent", run="trial") == spent[2]


def test_clients_of_the_plan_are_shown_and_no_other_name(told, plan):
    _, samples = read(told)
    present = {
        dict(labels)["client"]: there
        for (name, labels), there in samples.items()
        if name == "fgrpo_client_present"
    }
    assert present.keys() == {client.name for client in plan.clients}
    assert SECRET not in told


def test_no_private_number_and_no_words_are_told(told):
    """How long the vectors took, what they weighed, and what happened last."""
    _, samples = read(told)
    assert SECRET not in told
    assert not [v for v in samples.values() if v in {SECRET_SECONDS, SECRET_WEIGHTS}]
    timed = {
        dict(labels)["phase"]
        for (name, labels) in samples
        if name == "fgrpo_phase_seconds_total"
    }
    assert timed == set(TIMED)
    # A site that is late answers an offer or an abort once it has learnt.
    assert not set(TIMED) & {"shares", "offer", "aborted", "log", "evaluate", "close"}
    whole = sum(NOTE.seconds.values())
    assert not [v for v in samples.values() if v >= whole]
    assert not re.search(r"time(stamp)?_seconds|_created", told)


def test_metrics_of_a_sites_own_are_nowhere_near(home, run):
    private = run / "server" / "metrics.jsonl"
    private.write_text('{"mean_reward": 7123.25, "drawn": 99}\n', "utf-8")
    (home.private / "metrics.jsonl").write_text('{"drawn": 99}\n', "utf-8")
    told = expose(Runs(home).now())
    assert "reward" not in told
    assert "drawn" not in told
    assert "99" not in re.sub(r"0\.\d+", "", told)


def test_a_run_that_no_process_runs_says_nothing_of_who_is_there(home, run):
    (run / "server" / "progress.json").unlink()
    (run / "summary.json").write_text("{}", "utf-8")
    told = expose(Runs(home).now())
    _, samples = read(told)
    assert value(samples, "fgrpo_run_alive", run="trial") == 0
    assert value(samples, "fgrpo_run_finished", run="trial") == 1
    assert "fgrpo_client_present" not in told


def test_a_run_without_noise_has_an_infinite_epsilon(home):
    root = home.run("plain")
    (root / "server").mkdir(parents=True)
    loud = make_plan(**NO_PROMISE)
    (root / "plan.json").write_bytes(canonical_json(loud.to_json()))
    write_note(root / "server", NOTE)
    _, samples = read(expose(Runs(home).now()))
    assert value(samples, "fgrpo_epsilon_target", run="plain") == float("inf")
    assert value(samples, "fgrpo_epsilon_spent", run="plain") == float("inf")


@pytest.mark.parametrize(
    "hostile", ['a"} 1\nfgrpo_epsilon_spent{run="b', "\\", "\n", '\\"', "\ud800", "ä"]
)
def test_a_hostile_label_stays_a_label(hostile, plan):
    told = expose({hostile: Run(plan, {1: NOTE}, 1.0, None, finished=False)})
    _, samples = read(told)
    runs = {dict(labels)["run"] for _, labels in samples}
    assert runs == {hostile.encode("utf-8", "replace").decode("utf-8")}
    assert told.encode("utf-8")
    assert read("# HELP a b\n# TYPE a gauge\n" + f'a{{l="{escape(hostile)}"}} 1\n')


def test_hostile_words_of_help_stay_on_their_line():
    family = Family("fgrpo_a", "gauge", "a\n# TYPE b\\gauge")
    family.add(1.0, run="r")
    assert len(list(family.lines())) == 3


def test_a_folder_that_is_no_run_is_left_out(home, run):
    for name in ("empty", ".hidden", "broken"):
        (home.runs / name).mkdir()
    (home.runs / "broken" / "plan.json").write_text("{", "utf-8")
    assert Runs(home).now().keys() == {"trial"}


def test_a_new_round_is_seen(home, run):
    runs = Runs(home)
    assert runs.now()["trial"].notes.keys() == {1, 2}
    write_note(run / "server", replace(NOTE, round=3))
    assert runs.now()["trial"].notes.keys() == {1, 2, 3}


# The port.


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def get(port, path="/metrics", method="GET"):
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer, answer.read().decode("utf-8")


def test_prometheus_is_told_over_http(home, run):
    port, lines = free_port(), []
    with exposed(home, Address("127.0.0.1", port), lines.append):
        answer, text = get(port)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == (
            "text/plain; version=0.0.4; charset=utf-8"
        )
        assert answer.headers["Server"] == "fgrpo"
        read(text)
        assert get(port, "/")[0].status == 404
        assert get(port, "/metrics/../runs")[0].status == 404
        assert get(port, method="POST")[0].status == 501
    assert lines == [f"server: metrics on http://127.0.0.1:{port}/metrics"]
    with pytest.raises(ConnectionRefusedError):
        get(port)


def test_the_port_is_closed_unless_it_is_asked_for(home, monkeypatch):
    opened = []
    monkeypatch.setattr(exporter, "_Server", lambda *given: opened.append(given))
    with exposed(home, None, opened.append):
        pass
    monkeypatch.setattr(commands.processes, "supervise", lambda *_: 0)
    options = parse("serve", str(home.root))
    assert options.metrics is None
    assert commands.serve(options) == 0
    assert not opened


def test_a_port_without_a_host_is_this_machines_own():
    assert read_address("9464") == Address("127.0.0.1", 9464)
    assert read_address("9464").is_here
    assert read_address("[::1]:9464").is_here
    assert not read_address("0.0.0.0:9464").is_here
    assert not read_address("metrics.example:9464").is_here


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "65536", ":9464", "host:", "localhost", "\u0661"]
)
def test_what_is_no_port_is_refused(text):
    with pytest.raises(ConfigurationError, match="no port"):
        read_address(text)


def test_a_port_beyond_this_machine_is_said_to_be_open(home):
    lines = []
    with exposed(home, Address("0.0.0.0", free_port()), lines.append):  # noqa: S104
        pass
    assert "without a password" in lines[1]


def test_a_port_that_is_taken_or_the_servers_own_is_refused(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = Address("127.0.0.1", taken.getsockname()[1])
        with (
            pytest.raises(ConfigurationError, match="Cannot listen"),
            exposed(home, place, print),
        ):
            pass
    with (
        pytest.raises(ConfigurationError, match="own"),
        exposed(home, Address("127.0.0.1", home.admin_port), print),
    ):
        pass


def test_clients_that_say_nothing_keep_nobody_out_for_long(home, run, monkeypatch):
    monkeypatch.setattr(exporter._Handler, "timeout", 0.2)
    port = free_port()
    with exposed(home, Address("127.0.0.1", port), lambda _text: None):
        idle = [
            socket.create_connection(("127.0.0.1", port))
            for _ in range(2 * exporter._MOST_CLIENTS)
        ]
        end = time.monotonic() + 20
        status = None
        while status is None and time.monotonic() < end:
            try:
                status = get(port)[0].status
            except ConnectionError:
                continue
        for connection in idle:
            connection.close()
    assert status == 200


def test_files_are_looked_at_once_a_second_however_often_it_is_asked():
    looked = []

    class Counted:
        def now(self):
            looked.append(1)
            return {}

    text = exporter._Text(Counted())
    assert text.now() == text.now() == text.now()
    assert len(looked) == 1


# The command.


def parse(*words):
    parser = argparse.ArgumentParser()
    arguments.add_pilot(parser.add_subparsers())
    return parser.parse_args(["pilot", *words])


def test_a_server_in_the_background_is_given_the_port_too(home, monkeypatch):
    given = []
    monkeypatch.setattr(
        processes, "start_in_background", lambda *a, **k: given.append(k) or 7
    )
    options = parse("serve", str(home.root), "--background", "--metrics", "9464")
    assert commands.serve(options) == 0
    assert given == [{"words": ("--metrics", "9464")}]


def test_the_port_is_open_while_the_server_runs(home, run, monkeypatch):
    port, seen = free_port(), []
    monkeypatch.setattr(
        processes, "supervise", lambda *_: seen.append(get(port)[0].status) or 0
    )
    assert commands.serve(parse("serve", str(home.root), "--metrics", str(port))) == 0
    assert seen == [200]
