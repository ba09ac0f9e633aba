"""A reward's scale is its client's own affair: an affine change of it changes nothing.

Two runs with the same draws and completions differ in one client's reward, which is
squeezed to a third and shifted. There is no noise, so that nothing hides a difference.
"""

import json

import numpy as np
import pytest

from fgrpo_secure import learner
from fgrpo_secure.grpo import adapter
from tests.app.federation import Federation
from tests.plans import Counter

CHANGED = "sort"
ROUNDS = 6
REWARDS = '''\
def plain(prompts, completions, answer, **columns):
    """Right characters at their places: groups have many values."""
    return [
        sum(a == b for a, b in zip(c.strip(), w)) / len(w)
        for c, w in zip(completions, answer)
    ]


def squeezed(prompts, completions, answer, **columns):
    return [value / 3 - 2 for value in plain(prompts, completions, answer)]
'''


class Result:
    """What six rounds of a federation gave.

    Attributes:
        moved: shape (d,), how far the adapter came.
        weights: by round, of the client whose reward is changed.
    """

    def __init__(self, folder, monkeypatch, gain, reward):
        folder.mkdir(parents=True)
        (folder / "affine.py").write_text(REWARDS)
        clients = [
            f"client.{name}.{key}={value}"
            for name in ("count", "shift", "sort", "sums")
            for key, value in (
                ("reward", f"{folder}/affine.py:plain"),
                ("reward_range", [-2, 1]),
            )
        ]
        # The same draws and completions in every federation.
        monkeypatch.setattr(learner, "system_entropy", Counter("affine"))
        federation = Federation(
            folder / "run",
            units=8,
            overrides=[
                *clients,
                f"client.{CHANGED}.reward={folder}/affine.py:{reward}",
            ],
            privacy={"epsilon": float("inf"), "rounds": ROUNDS, "sampling_rate": 1},
            aggregation={
                "gain": gain,
                "temperature": 2 if gain == "zscore" else 0.25,
                "max_weight_ratio": 9,
            },
            # Adam turns the sign of a rounding error into a whole step.
            server={"optimizer": "sgd", "learning_rate": 0.3, "momentum": 0.5},
        )
        start = adapter.read_vector(federation.server.model_with_adapter())
        for number in range(1, ROUNDS + 1):
            assert federation.round(number).published
        end = adapter.read_vector(federation.server.model_with_adapter())
        self.moved = end - start
        metrics = federation.client_folder(CHANGED) / "metrics.jsonl"
        notes = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
        self.weights = np.array([note["weight"] for note in notes if "weight" in note])
        federation.close()


def compared(tmp_path, monkeypatch, gain):
    """How far the weights and the adapters of the two runs are apart, relative."""
    one, two = (
        Result(tmp_path / f"{gain}-{reward}", monkeypatch, gain, reward)
        for reward in ("plain", "squeezed")
    )
    assert np.linalg.norm(one.moved) > 0
    assert np.unique(one.weights).size > ROUNDS // 2
    weights = np.abs(one.weights / two.weights - 1).max()
    return weights, np.linalg.norm(one.moved - two.moved) / np.linalg.norm(one.moved)


def test_an_affine_change_of_a_reward_changes_no_zscore_and_no_adapter(
    tmp_path, monkeypatch
):
    weights, adapters = compared(tmp_path, monkeypatch, "zscore")
    # The statistic's grid, and the floor under a group's deviation, leave this much.
    assert weights < 0.03
    assert adapters < 0.005


@pytest.mark.parametrize("gain", ["relative", "logit"])
def test_the_same_change_moves_the_weights_of_the_other_gains(
    tmp_path, monkeypatch, gain
):
    weights, _ = compared(tmp_path, monkeypatch, gain)
    assert weights > 0.03
