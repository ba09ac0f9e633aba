"""Public numbers for TensorBoard and MLflow: these and nothing else."""

import json
import os
import re
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fgrpo_secure.config import load_config
from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.rounds import RoundNote
from fgrpo_secure.tracking import METRICS, Mlflow, TensorBoard, Tracking, tracked
from tests.end_to_end.program import (
    NAMES,
    RIGHT,
    WRONG,
    Program,
    secret,
    write_config,
)

NOTE = RoundNote(
    round=1,
    published=True,
    survivors=3,
    weights=1.5,
    down={"offer": 4000},
    up={"offer": 100, "shares": 900},
    seconds={"offer": 7.318205},
)
SUMMARY = {
    "rounds_aborted": 1,
    "clients": [
        {"name": "north", "reward_before": 0.25, "reward_after": 0.75},
        {"name": "south", "reward_before": None, "reward_after": None},
    ],
}


class Kept:
    """A sink that remembers."""

    def __init__(self):
        self.told, self.closed = [], False

    def write(self, step, values):
        self.told.append((step, dict(values)))

    def close(self):
        self.closed = True


def never(words):
    raise AssertionError(words)


def events(folder):
    """(step, tag, value) of every event of every file, and all wall times."""
    loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_file_loader"
    )
    told, times = [], []
    for path in sorted(folder.iterdir()):
        for event in loader.LegacyEventFileLoader(str(path)).Load():
            times.append(event.wall_time)
            told += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return told, times


# What is told.


def test_a_round_is_told_by_its_public_numbers_alone():
    sink = Kept()
    tracking = Tracking([sink], never)
    tracking.round_done(NOTE, 1.5)
    tracking.round_done(replace(NOTE, round=2, published=False, weights=0), 2.0)
    tracking.run_done(2, SUMMARY)
    tracking.close()
    assert sink.closed
    assert sink.told[0] == (
        1,
        {
            "epsilon": 1.5,
            "published": 1.0,
            "survivors": 3.0,
            "bytes": 5000.0,
            "sum_of_weights": 1.5,
        },
    )
    assert "sum_of_weights" not in sink.told[1][1]
    # South declares no public set, so that nothing of it is told.
    assert sink.told[2] == (
        2,
        {"aborted": 1.0, "reward_before/north": 0.25, "reward_after/north": 0.75},
    )


def test_a_number_that_is_not_listed_is_told_to_nobody():
    sink = Kept()
    tracking = Tracking([sink], never)
    for name in ("mean_reward", "drawn", "seconds", "reward", "reward_beforehand/x"):
        with pytest.raises(ValueError, match="not public"):
            tracking._tell(1, {"epsilon": 1.0, name: 0.5})
    assert sink.told == []


def test_the_list_of_public_numbers_is_what_the_documents_say():
    text = (Path(__file__).parents[2] / "docs/report.md").read_text("utf-8")
    said = text.partition("## Tracking")[2].partition("The number of the round")[0]
    named = set(re.findall(r"`([a-z_]+)(?:/CLIENT)?`", said))
    assert named == METRICS


def test_a_sink_that_fails_ends_itself_and_neither_the_others_nor_the_run():
    class Failing(Kept):
        def write(self, step, values):
            raise OSError("/secret/path is full")

    said, good = [], Kept()
    tracking = Tracking([Failing(), good], said.append)
    tracking.round_done(NOTE, 1.0)
    tracking.round_done(replace(NOTE, round=2), 2.0)
    tracking.close()
    assert [step for step, _ in good.told] == [1, 2]
    assert said == ["Failing failed (OSError); the run goes on."]


# TensorBoard.


def test_an_event_file_holds_the_numbers_and_no_hour_and_no_machine(tmp_path):
    pytest.importorskip("tensorboard")
    with tracked(["tensorboard"], tmp_path, bytes(16), 0, never) as tracking:
        tracking.round_done(NOTE, 1.5)
    with tracked(["tensorboard"], tmp_path, bytes(16), 1, never) as tracking:
        tracking.round_done(replace(NOTE, round=2), 2.5)
        tracking.run_done(2, SUMMARY)
    folder = tmp_path / "tracking/tensorboard"
    told, times = events(folder)
    assert (1, "epsilon", 1.5) in told
    assert (2, "epsilon", 2.5) in told
    assert (2, "reward_after/north", 0.75) in told
    assert {tag.partition("/")[0] for _, tag, _ in told} <= METRICS
    # The number of the round stands where TensorBoard has the hour.
    assert set(times) <= {0.0, 1.0, 2.0}
    names = [path.name for path in folder.iterdir()]
    assert len(names) == 2
    for place in (socket.gethostname(), str(os.getpid())):
        assert not any(place in name for name in names)
        for path in folder.iterdir():
            assert place.encode() not in path.read_bytes()


def test_tensorboard_itself_reads_the_file(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoard(tmp_path, 0)
    sink.write(1, {"epsilon": 1.25, "survivors": 3.0})
    sink.write(2, {"epsilon": float("inf")})
    sink.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {"epsilon", "survivors"}
    assert [one.value for one in read.Scalars("epsilon")] == [1.25, float("inf")]


# MLflow.


def test_mlflow_gets_the_same_numbers_and_finds_its_run_again(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    handle = bytes(range(16))
    for done, spent in ((0, 1.5), (1, float("inf"))):
        with tracked(["mlflow"], tmp_path, handle, done, never) as tracking:
            tracking.round_done(replace(NOTE, round=done + 1), spent)
    store = (tmp_path / "tracking/mlflow").resolve().as_uri()
    client = mlflow.MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("fgrpo-secure")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["fgrpo.run"] == handle.hex()
    assert (run.info.start_time, run.info.end_time) == (1, 1)
    assert set(run.data.metrics) <= METRICS
    history = client.get_metric_history(run.info.run_id, "epsilon")
    assert [(one.step, one.value, one.timestamp) for one in history] == [(1, 1.5, 1)]
    steps = client.get_metric_history(run.info.run_id, "survivors")
    assert [one.step for one in steps] == [1, 2]


def test_a_store_that_cannot_be_reached_is_no_reason_to_stop(tmp_path, monkeypatch):
    """A stand-in for the library, whose client fails on every number."""

    class Client:
        def __init__(self, tracking_uri):
            self.store = tracking_uri

        def get_experiment_by_name(self, name):
            return type("Experiment", (), {"experiment_id": "1"})

        def search_runs(self, experiments, filter_string):
            info = type("Info", (), {"run_id": "r"})
            return [type("Run", (), {"info": info})]

        def log_metric(self, *arguments, **named):
            raise ConnectionError("host.example refused")

        def set_terminated(self, *arguments, **named):
            raise AssertionError("closed after it failed")

    tracking_module = type(sys)("mlflow.tracking")
    tracking_module.MlflowClient = Client
    monkeypatch.setitem(sys.modules, "mlflow", type(sys)("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking_module)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///elsewhere")
    said = []
    with tracked(["mlflow"], tmp_path, bytes(16), 0, said.append) as tracking:
        tracking.round_done(NOTE, 1.0)
    assert said == ["Mlflow failed (ConnectionError); the run goes on."]
    assert Mlflow("file:///elsewhere", "00")._client.store == "file:///elsewhere"


# The configuration.


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_named_before_anything_runs(
    tmp_path, monkeypatch, name
):
    for module in ("tensorboard", "mlflow"):
        for known in [m for m in sys.modules if m.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, known)
        monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(ConfigurationError) as told,
        tracked([name], tmp_path, bytes(16), 0, never),
    ):
        pass
    assert f"fgrpo-secure[{name}]" in told.value.fix


def test_nothing_is_tracked_unless_it_is_asked_for(tmp_path):
    config, _ = load_config("tiny")
    assert config.machine.tracking == ()
    with tracked((), tmp_path, bytes(16), 0, never) as tracking:
        tracking.round_done(NOTE, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_one_name_or_several_may_be_given_and_no_other():
    both = ['machine.tracking=["tensorboard", "mlflow"]']
    assert load_config("tiny", both)[0].machine.tracking == ("tensorboard", "mlflow")
    one = ['machine.tracking="mlflow"']
    assert load_config("tiny", one)[0].machine.tracking == ("mlflow",)
    with pytest.raises(ConfigurationError, match="tracking"):
        load_config("tiny", ['machine.tracking="wandb"'])


# A real run.


def test_a_tracked_run_shows_nothing_private(tmp_path):
    pytest.importorskip("tensorboard")
    machine = {"tracking": ["tensorboard"]}
    config = write_config(tmp_path, public=("sums",), machine=machine)
    output = tmp_path / "out"
    program = Program(tmp_path, "run", config, "--output", output, "--json")
    assert program.wait() == 0, program.stderr
    summary = json.loads(program.stdout.splitlines()[-1])
    told, _ = events(output / "tracking/tensorboard")
    assert (2, "reward_after/sums") in {(step, tag) for step, tag, _ in told}
    assert not any("count" in tag for _, tag, _ in told)
    spent = {step: value for step, tag, value in told if tag == "epsilon"}
    assert spent[2] == pytest.approx(summary["epsilon"], abs=1e-4)
    # Raw rewards, private means and texts are in the clients' folders alone.
    private = [RIGHT, WRONG]
    for name in NAMES:
        (path,) = (output / "clients" / name).glob("run-*/metrics.jsonl")
        for line in path.read_text("utf-8").splitlines():
            noted = json.loads(line)
            assert noted["local_only"] is True
            private += [noted["mean_reward"], noted["drawn"]]
    values = {value for _, _, value in told}
    for number in private:
        if number != int(number) or number > 4:
            assert not any(abs(value - number) < 1e-6 for value in values)
    for path in (output / "tracking").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for number in private:
                if len(str(number)) > 5:
                    assert str(number).encode() not in data
            for name in NAMES:
                assert secret(name, 0).encode() not in data
