"""Secrets at rest: what is planted in a run is found in nobody else's files."""

import base64
import importlib.util
import json
import shutil
import stat
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fgrpo_secure.cli import main
from tests.end_to_end.leaks import (
    Haystack,
    artefacts,
    leaks,
    means_of,
    needles_of,
    reference,
)
from tests.end_to_end.program import NAMES, RIGHT, WRONG, secret


@pytest.fixture(scope="module")
def needles(finished):
    return needles_of(finished.folder, finished.output)


@pytest.fixture(scope="module")
def printed(finished):
    return [
        Haystack("standard output", finished.stdout.encode()),
        Haystack("standard error", finished.stderr.encode()),
    ]


@pytest.fixture(scope="module")
def reported(finished, tmp_path_factory):
    """The run's folder with its report."""
    folder = tmp_path_factory.mktemp("reported") / "out"
    shutil.copytree(finished.output, folder)
    assert main(["report", str(folder)]) == 0
    return folder


# The range of a reward is public, and its ends are the two rewards here.
KNOWN = {("config.toml", "a reward")}


def test_nothing_that_is_planted_is_in_any_artefact_of_a_run(
    reported, printed, needles
):
    assert leaks([*artefacts(reported), *printed], needles) == KNOWN


def test_nothing_of_one_party_lies_in_anothers_private_folder(finished, needles):
    for owner in (*NAMES, "server"):
        own = [needle for needle in needles if needle.owner == owner]
        assert len(own) > 4
        assert leaks(artefacts(finished.output, owner), own) == set()


def test_no_text_of_the_data_is_kept_by_the_client_itself(finished, needles):
    # What a client remembers of a run are numbers, its keys and its ledger.
    texts = [needle for needle in needles if needle.what != "a key"]
    every = artefacts(finished.output, "server")
    kept = [stack for stack in every if stack.name.startswith("clients/")]
    assert len(kept) > 3 * len(NAMES)
    # Its own means are what its metrics and its baseline are of.
    assert {what for _, what in leaks(kept, texts)} == {"a mean reward"}


def test_the_search_covers_every_kind_of_artefact(reported, needles):
    names = {stack.name for stack in artefacts(reported)}
    assert {name.partition("/")[0] for name in names} - {"tracking"} == {
        *("adapter", "keys", "ledger", "server"),
        *("claim.json", "config.toml", "plan.json", "report.html", "summary.json"),
    }
    assert {
        "plan.json",
        "summary.json",
        "config.toml",
        "keys/sums.pub",
        "ledger/server.jsonl",
        "ledger/sums.jsonl.head",
        "ledger/checkpoint",
        "server/before.json",
        "server/rounds.jsonl",
        "adapter/adapter_model.safetensors",
    } <= names
    assert any(name.startswith("server/adapter-") for name in names)
    kinds = {needle.what for needle in needles}
    assert kinds == {
        "a prompt",
        "a column",
        "a reference answer",
        "a unit's id",
        "a key",
        "a reward",
        "a mean reward",
    }
    if importlib.util.find_spec("tensorboard"):
        assert any("tfevents" in name for name in names)


@pytest.fixture
def spoilt(reported, tmp_path):
    return shutil.copytree(reported, tmp_path / "out")


def append(path, data):
    path.write_bytes(path.read_bytes() + data)


def in_json(path, key, value):
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: value}))


def in_tensor(path, value):
    """A reward among the numbers of a checkpoint, as they are kept there."""
    tensors = load_file(path)
    tensors["kept"] = np.full(2, value, dtype=np.float32)
    save_file(tensors, path)


def in_a_record(path, text):
    """A text in a ledger's payload, which is base64 within JSON."""
    payload = json.dumps({"kind": "note", "reason": text}).encode()
    line = json.dumps({"payload": base64.b64encode(payload).decode()})
    append(path, line.encode() + b"\n")


def in_json_line(path, value):
    append(path, json.dumps({"round": 3, "mean": value}).encode() + b"\n")


def event(output, data):
    (output / "tracking").mkdir(exist_ok=True)
    (output / "tracking/planted").write_bytes(b"\x0a\x05" + data)


def a_mean(output):
    """Some client's: one client's draws may all have means that chance would write."""
    means = set().union(*(means_of(output, name) for name in NAMES))
    return max(means, key=lambda mean: len(str(mean)))


def form(needles, what, owner):
    """Some form of something private."""
    return next(n.form for n in needles if (n.what, n.owner) == (what, owner))


def key_of(output, name):
    return (output / name / "identity.key").read_bytes()


LEAKS = {
    "a column in the summary": (
        lambda out, _: in_json(out / "summary.json", "note", secret("sums", 7)),
        ("summary.json", "a column"),
    ),
    "a column in a ledger": (
        lambda out, _: in_a_record(out / "ledger/sums.jsonl", f"x{secret('sums', 0)}"),
        ("ledger/sums.jsonl", "a column"),
    ),
    "a column in base64 in the plan": (
        lambda out, _: append(
            out / "plan.json", base64.b64encode(f"see {secret('sort', 3)}!".encode())
        ),
        ("plan.json", "a column"),
    ),
    "a reward among the numbers of a checkpoint": (
        lambda out, _: in_tensor(next((out / "server").glob("adapter-*")), RIGHT),
        "a reward",
    ),
    "a reward beside the scores": (
        lambda out, _: in_json(out / "server/before.json", "raw", WRONG),
        ("server/before.json", "a reward"),
    ),
    "a key in hex beside the public ones": (
        lambda out, _: append(
            out / "keys/sums.pub", key_of(out, "clients/sums").hex().encode()
        ),
        ("keys/sums.pub", "a key"),
    ),
    "the server's key in the adapter's folder": (
        lambda out, _: append(out / "adapter/README.md", key_of(out, "server")),
        ("adapter/README.md", "a key"),
    ),
    "a reference answer in the report": (
        lambda out, _: append(out / "report.html", reference("sort", 5).encode()),
        ("report.html", "a reference answer"),
    ),
    "a prompt in the claim": (
        lambda out, needles: append(
            out / "claim.json", form(needles, "a prompt", "count")
        ),
        ("claim.json", "a prompt"),
    ),
    "a mean reward in the coordinator's notes": (
        lambda out, _: in_json_line(out / "server/rounds.jsonl", a_mean(out)),
        ("server/rounds.jsonl", "a mean reward"),
    ),
    "a mean reward in an event file": (
        lambda out, _: event(out, struct.pack("<f", a_mean(out))),
        ("tracking/planted", "a mean reward"),
    ),
    "a unit's id in a note of the log": (
        lambda out, needles: append(
            next((out / "ledger/log").iterdir()),
            form(needles, "a unit's id", "sums"),
        ),
        "a unit's id",
    ),
    "a mean reward beside the adapter": (
        lambda out, _: in_json(out / "adapter/adapter_config.json", "m", a_mean(out)),
        ("adapter/adapter_config.json", "a mean reward"),
    ),
    "a unit's id beside a remembered head": (
        lambda out, needles: append(
            out / "ledger/sums.jsonl.head", form(needles, "a unit's id", "sums")
        ),
        ("ledger/sums.jsonl.head", "a unit's id"),
    ),
    "a key in the log's checkpoint": (
        lambda out, _: append(
            out / "ledger/checkpoint", base64.b64encode(key_of(out, "clients/shift"))
        ),
        ("ledger/checkpoint", "a key"),
    ),
    "a key in the middle of base64": (
        lambda out, _: append(
            out / "config.toml", base64.b64encode(b"key:" + key_of(out, "clients/sort"))
        ),
        ("config.toml", "a key"),
    ),
}


@pytest.mark.parametrize(("plant", "where"), LEAKS.values(), ids=LEAKS.keys())
def test_a_planted_leak_is_found(spoilt, needles, plant, where):
    plant(spoilt, needles)
    found = leaks(artefacts(spoilt), needles) - KNOWN
    assert len(found) == 1
    assert where in {*found, next(iter(found))[1]}


def test_a_planted_leak_in_what_is_printed_or_in_another_folder_is_found(
    spoilt, needles
):
    prompt = next(n for n in needles if (n.what, n.owner) == ("a prompt", "sums"))
    said = Haystack("standard error", b"round 1: " + prompt.form)
    assert leaks([said], needles) == {("standard error", "a prompt")}
    append(spoilt / "clients/sort/identity.key", key_of(spoilt, "clients/sums"))
    own = [needle for needle in needles if needle.owner == "sums"]
    wanted = {("clients/sort/identity.key", "a key")}
    assert leaks(artefacts(spoilt, "sums"), own) == wanted


def test_what_a_client_keeps_on_disk_is_what_outlives_a_round(finished):
    # No mask, no share and no vector is there: they live and end in memory.
    for name in NAMES:
        top = finished.output / "clients" / name
        names = {path.name for path in top.rglob("*") if path.is_file()}
        openings = {f"opening-{number:05d}.key" for number in (1, 2)}
        assert names == {
            "identity.key",
            "baseline.json",
            "metrics.jsonl",
            *openings,
        }
        for path in top.rglob("*"):
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted
