"""The benchmark of secure aggregation, at a small size.

The other side needs packages of its own from the registry, so that ours stands in for
it here: its figures do not count, and the way they take does.
"""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import secagg, secagg_ours, secagg_task

SIZE = {"dimension": 1000, "neighbours": 4, "bits": 32, "threads": None}
STEPS = {
    "client": [
        "join",
        "roster, dealing",
        "inbox, agreement",
        "rounding",
        "masks, hash, message",
        "consistency, reveal",
    ],
    "server": ["keys and shares", "vectors", "consistency", "unmasking", "decoding"],
}


@pytest.fixture(scope="module")
def side():
    return secagg_ours.OurSide(**SIZE, dropouts=[0, 1])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secagg")
    given = ["--dimension", "1000", "--neighbours", "4", "--repeats", "2", "--json"]
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda line, **_: lines.append(line))
        patch.setattr(secagg, "environment", lambda _: Path(sys.executable))
        patch.setattr(secagg, "_PEER", "benchmarks.secagg_ours")
        assert secagg.main([*given, "--output", str(folder)]) == 0
    return folder, lines


def test_the_last_line_holds_the_four_figures(written):
    _, lines = written
    figures = json.loads(lines[-1])
    assert list(figures) == [
        "client_cpu_ratio",
        "server_cpu_ratio",
        "keystream_fraction",
        "bytes_per_parameter",
    ]
    assert "\n" not in lines[-1]
    # The same side twice: nobody is far ahead, and a vector has its header.
    assert 0.2 < figures["client_cpu_ratio"] < 5
    assert 0.2 < figures["server_cpu_ratio"] < 5
    assert 0 < figures["keystream_fraction"] < 4
    assert 4.0 < figures["bytes_per_parameter"] < 4.5


def test_a_cell_is_written_for_each_number_of_dropouts(written):
    folder, lines = written
    stored = json.loads((folder / "secagg.json").read_text("utf-8"))
    assert [cell["dropouts"] for cell in stored["cells"]] == [0, 1]
    for cell in stored["cells"]:
        for party, steps in STEPS.items():
            assert list(cell[party]["ours"]["steps"]) == steps
    assert (folder / "secagg.md").read_text("utf-8") == lines[0]


def test_a_run_puts_its_cells_beside_those_of_earlier_runs(written):
    folder, _ = written
    stored = json.loads((folder / "secagg.json").read_text("utf-8"))
    cell = stored["cells"][0] | {"dimension": 500, "repeats": 3}
    again = stored["cells"][1] | {"repeats": 11}
    text = secagg._write(folder, {(500, 4, 0): cell, (1000, 4, 1): again})
    after = json.loads((folder / "secagg.json").read_text("utf-8"))
    assert [secagg._key(cell) for cell in after["cells"]] == [
        (500, 4, 0),
        (1000, 4, 0),
        (1000, 4, 1),
    ]
    assert after["cells"][2]["repeats"] == 11
    assert "| 500 | 4 | 0 |" in text


def test_cells_of_another_machine_are_not_kept(written, tmp_path, monkeypatch):
    folder, _ = written
    stored = (folder / "secagg.json").read_text("utf-8")
    (tmp_path / "secagg.json").write_text(stored, "utf-8")
    monkeypatch.setattr(
        secagg, "_machine", lambda: json.loads(stored)["machine"] | {"cores": 99}
    )
    cell = json.loads(stored)["cells"][0]
    secagg._write(tmp_path, {(7, 4, 0): cell})
    after = json.loads((tmp_path / "secagg.json").read_text("utf-8"))
    assert [secagg._key(cell) for cell in after["cells"]] == [(7, 4, 0)]


@pytest.mark.parametrize(
    ("key", "just", "short"),
    [
        ("client_cpu_ratio", 5.0, 4.99),
        ("server_cpu_ratio", 50.0, 49.9),
        ("keystream_fraction", 0.9, 0.899),
        ("bytes_per_parameter", 4.04, 4.06),
    ],
)
def test_a_goal_that_is_just_missed_is_not_called_met(key, just, short):
    figures = {
        "client_cpu_ratio": 5.0,
        "server_cpu_ratio": 50.0,
        "keystream_fraction": 0.9,
        "bytes_per_parameter": 4.0,
    }
    assert all(secagg.goals(figures | {key: just}).values())
    missed = secagg.goals(figures | {key: short})
    assert [name for name, met in missed.items() if not met] == [key]


def test_fewer_bits_have_a_goal_of_their_own():
    figures = {"bytes_per_parameter": 2.54}
    rest = dict.fromkeys(("client_cpu_ratio", "server_cpu_ratio"), 99.0)
    rest["keystream_fraction"] = 1.0
    assert all(secagg.goals(rest | figures, 20).values())
    missed = secagg.goals(rest | {"bytes_per_parameter": 2.56}, 20)
    assert [name for name, met in missed.items() if not met] == ["bytes_per_parameter"]


def test_packed_bytes_and_what_they_cost_have_a_table_of_their_own(tmp_path):
    given = ["--dimension", "10000", "--neighbours", "4", "--dropouts", "1"]
    options = ["--repeats", "1", "--alone", "--bits", "20"]
    assert secagg.main([*given, *options, "--output", str(tmp_path)]) == 0
    assert not (tmp_path / "secagg.json").exists()
    [cell] = json.loads((tmp_path / "secagg-20-bits.json").read_text("utf-8"))["cells"]
    assert cell["bits"] == 20
    # Two and a half bytes a number, the weight's too, and a header.
    assert 2.5 < cell["bytes_per_parameter"]["ours"] < 2.55
    assert cell["packing"].keys() == {"pack", "unpack"}
    assert all(0 < seconds < 1 for seconds in cell["packing"].values())
    assert "| 10,000 | 20 | 2.5" in (tmp_path / "secagg-20-bits.md").read_text("utf-8")


def test_a_ratio_is_the_median_of_the_turns_ratios():
    turns = [
        {
            "ours client": {"cpu": ours, "wall": 1.0, "steps": {"all": ours}},
            "flower client": {"cpu": theirs, "wall": 3.0, "steps": {"all": theirs}},
        }
        for ours, theirs in [(1.0, 2.0), (1.0, 8.0), (4.0, 12.0)]
    ]
    party = secagg._party(turns, "client", ["ours", "flower"])
    assert party["cpu_ratio"] == 3.0
    assert party["cpu_ratio_range"] == [2.0, 8.0]
    assert party["wall_ratio"] == 3.0
    assert party["ours"]["cpu"] == 1.0


def test_a_secure_sum_that_is_not_the_sum_stops_the_benchmark(monkeypatch):
    real = secagg_ours.values
    calls = []

    def other(client, dimension):
        # What is summed and what the sum is held against differ by one client's value.
        calls.append(client)
        return real(client + (len(calls) > 5), dimension)

    monkeypatch.setattr(secagg_ours, "values", other)
    with pytest.raises(RuntimeError, match="is not the sum"):
        secagg_ours.OurSide(**SIZE, dropouts=[0])


def test_a_party_does_the_same_work_again(side):
    for _ in range(2):
        assert list(side.client().cpu) == STEPS["client"]
        assert list(side.server(1).cpu) == STEPS["server"]


def test_clients_have_different_values_within_the_clipping_of_both_sides():
    left, right = secagg_task.values(0, 1000), secagg_task.values(1, 1000)
    assert left.dtype == "float32"
    assert (left != right).all()
    assert abs(left).max() * secagg_task.STEPS <= 128


@pytest.mark.parametrize(("bits", "dimension"), [(32, 9 * 10**6), (20, 15 * 10**6)])
def test_masking_holds_no_more_than_three_vectors(bits, dimension):
    """In a process of its own, and of bytes that go back to the system when freed:
    memory that was let go and kept would hide a peak.
    """
    worker = secagg.Worker(Path(sys.executable), "benchmarks.secagg_ours")
    try:
        worker.ask(
            "open",
            **SIZE | {"dimension": dimension, "neighbours": 2, "bits": bits},
            dropouts=[0],
        )
        held = worker.ask("memory")["vectors"]
    finally:
        worker.close()
    # The third of them is the message, of so many bits a word.
    assert 2 + bits / 64 < held < 2.1 + bits / 32


def test_threads_are_measured_and_put_back(side):
    def settings():
        masks, server = secagg_ours.masks, secagg_ours.server_side
        return masks.MAX_THREADS, masks.THREAD_WORDS, server.HASH_THREADS

    before = settings()
    taken = side.scaling(2, 1)
    assert [list(of) for of in taken.values()] == [list(taken["masks"])] * 2
    assert len(taken["server"]["1"]) == 2
    masks = side.expansion(2)
    assert {what: len(times) for what, times in masks.items()} == {
        "counter mode": 2,
        "keystream": 2,
        "masks": 2,
    }
    assert before == settings()


def test_what_no_server_is_spared_grows_with_vectors_masks_and_signatures():
    floors = {"hash": 1.0, "signature": 10_000.0}
    # Of three clients, whose masks are three; with one lost two pairs' are left, too.
    whole = secagg.least_server(floors, {"keystream": 300.0}, 2, 0)
    assert whole == {
        "hash": 3.0,
        "keystream": 300.0,
        "signatures": 150_000.0,
        "all": 150_303.0,
    }
    less = secagg.least_server(floors, {"keystream": 300.0}, 2, 1)
    assert less == {
        "hash": 2.0,
        "keystream": 400.0,
        "signatures": 120_000.0,
        "all": 120_402.0,
    }
