"""The benchmark's private side, for one small round. TRL's side is not run here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ours, trl_peer
from benchmarks import round as benchmark
from fgrpo_secure.errors import ConfigurationError

UNITS = 4
OVERRIDES = [
    "privacy.rounds=2",
    "privacy.sampling_rate=0.01",
    "machine.microbatch=1",
    "server.learning_rate=1e-9",
]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    setup = {"config": "tiny", "overrides": OVERRIDES, "client": "sums"}
    federation = ours.open_federation(setup, tmp_path_factory.mktemp("round"))
    rows = [3, 1, 4, 15]
    return (
        federation,
        federation.step(rows),
        federation.step(rows, memory=True),
    )


def test_the_phases_add_up_to_the_whole(steps):
    _, step, _ = steps
    assert step["phases"].keys() == set(benchmark._CLIENT_PHASES)
    assert sum(step["phases"].values()) == pytest.approx(step["seconds"], rel=0.05)
    assert step["server"].keys() == set(benchmark._SERVER_PHASES)


def test_the_vector_goes_up_once_with_the_bytes_of_the_plan(steps):
    federation, step, _ = steps
    planned = federation.plan.bytes_up
    assert planned == 4 * (2304 + 1)
    assert planned < step["traffic"]["shares"]["up"] < planned + 512
    others = [row["up"] for phase, row in step["traffic"].items() if phase != "shares"]
    assert max(others) < planned


def test_the_units_that_are_asked_for_are_drawn_and_generated_for(steps):
    federation, step, again = steps
    each = federation.task.rollout
    for made in (step, again):
        least = UNITS * each.group_size
        assert least <= made["tokens"] <= least * each.max_tokens


def test_nothing_stays_wrapped(steps):
    for owner, name, _ in ours._HOOKS:
        assert not hasattr(getattr(owner, name), "__wrapped__")


def test_every_phase_has_a_peak_of_memory(steps):
    _, _, traced = steps
    assert traced["peaks"].keys() == set(benchmark._CLIENT_PHASES)
    assert traced["server_peaks"].keys() == set(benchmark._SERVER_PHASES)
    for peak in (*traced["peaks"].values(), *traced["server_peaks"].values()):
        assert 0 < peak < 64 * 2**30


def test_the_parties_peaks_of_a_phase_are_kept_apart(steps):
    """Both write a ledger."""
    _, step, traced = steps
    traced = traced | {"peaks": {"ledger": 1}, "server_peaks": {"ledger": 2}}
    for side, peak in ((benchmark._CLIENT, 1), (benchmark._SERVER, 2)):
        table = benchmark._phases([step], traced, side, ("ledger",))
        assert table["ledger"]["peak_bytes"] == peak


def test_groups_are_counted_and_those_of_equal_rewards_as_skipped(
    steps, tmp_path, monkeypatch
):
    _, step, _ = steps
    assert step["groups"] == UNITS
    assert 0 <= step["skipped"] <= UNITS
    setup = {"config": "tiny", "overrides": OVERRIDES, "client": "sums"}
    federation = ours.open_federation(setup, tmp_path)
    worth = iter([1, 0, 1, 0])

    def scored(self, unit, groups):
        top = next(worth)
        return [np.linspace(0, top, len(group.texts)) for group in groups]

    monkeypatch.setattr(ours.Draws, "_score", scored)
    made = federation.step([3, 1, 4, 15])
    assert (made["groups"], made["skipped"]) == (UNITS, 2)


def test_a_peak_that_is_forgotten_is_that_of_what_is_held():
    # A process of its own: what others of this one hold and free is not asked here.
    script = """
from benchmarks import worker
block = bytearray(b"\\1") * (96 * 2**20)
before = worker.peak_memory()
assert before >= len(block), before
del block
worker.forget_peak()
after = worker.peak_memory()
assert after < before - 64 * 2**20, (before, after)
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)  # noqa: S603


@pytest.mark.parametrize(
    ("values", "interval", "level"),
    [
        ([3.0, 1.0, 2.0, 5.0, 4.0], (1.0, 5.0), 1 - 2 / 2**5),
        (list(map(float, range(6))), (0.0, 5.0), 1 - 2 / 2**6),
        (list(map(float, range(9))), (1.0, 7.0), 1 - 2 * 10 / 2**9),
        ([2.0], (2.0, 2.0), 0.0),
    ],
)
def test_the_interval_of_a_median_is_made_of_its_order(values, interval, level):
    low, high, chance = benchmark.median_interval(values)
    assert (low, high) == interval
    assert chance == pytest.approx(level)


def test_the_peers_passes_are_whole_groups_that_divide_a_step():
    assert benchmark._batch(720, 4, 64) == 60
    assert benchmark._batch(80, 8, 64) == 40
    assert benchmark._batch(16, 8, 1) == 8


def test_without_trl_the_error_says_how_to_get_it_or_do_without(monkeypatch):
    sent = []

    class Talk:
        def receive(self):
            return {"config": "tiny"}

        def send(self, answer):
            sent.append(answer)

    monkeypatch.setattr(trl_peer, "Channel", Talk)
    monkeypatch.setattr(trl_peer.importlib.util, "find_spec", lambda _: None)
    trl_peer.main()
    with pytest.raises(ConfigurationError, match=r"bench.*--alone"):
        benchmark._present(*sent)


def test_a_client_that_is_not_there_is_an_error_that_says_who_is(capsys):
    assert benchmark.main(["--client", "nobody"]) == 1
    assert "Choose one of: count, shift, sort, sums" in capsys.readouterr().err


def test_the_report_shows_both_sides(steps):
    federation, step, traced = steps
    opened = {"held": 1, "bytes_up": federation.plan.bytes_up}
    slow = [made | {"seconds": 2 * made["seconds"]} for made in (step, step)]
    result = {
        "config": "tiny",
        "units": UNITS,
        "completions": 16,
        "max_tokens": 4,
        "dimension": 2304,
        "clients": 4,
        "threads": 1,
        "steps": 1,
        "machine": benchmark._machine(),
        "ours": benchmark._ours(opened, [step, step], traced),
        "server": benchmark._phases([step], traced, benchmark._SERVER, ("sum",)),
        "bytes": step["traffic"],
        "bytes_up_planned": opened["bytes_up"],
        "trl": benchmark._side(opened, slow),
        "ratio": benchmark._ratios([step, step], slow),
    }
    text = benchmark.report(json.loads(json.dumps(result)))
    assert "0.50 times TRL's" in text
    assert "| sum |" in text
    share = step["skipped"] / step["groups"]
    assert result["ours"]["skipped_share"] == share
    assert f"| groups that needed no gradient | {share:.0%} | 0% | |" in text
    assert f"Of our groups {share:.0%} were not differentiated" in text
    assert "9,220 bytes up" in text
