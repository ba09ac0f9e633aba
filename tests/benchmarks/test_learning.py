"""The learning benchmark: its arms train and are charged, and its figures are right."""

import math
from pathlib import Path

import arms
import learning
import numpy as np
import pytest
import rewards as changed_rewards
from arms import Arm, Curve

SHORT = ("privacy.rounds=1", "privacy.sampling_rate=0.5", "grpo.group_size=2")


def curve(*means, worst=0.0, epsilon=8.0):
    """Two clients whose mean is as given, `worst` apart from it."""
    scores = [{"a": mean - worst, "b": mean + worst} for mean in means]
    return Curve(tuple(scores), scores[-1], epsilon)


# The arms.


def test_a_federated_arm_is_charged_what_its_verified_ledgers_say():
    private = ("privacy.epsilon=8", "aggregation.rule=uniform")
    found = arms.run_arm("tiny", Arm("x", "federated", (*SHORT, *private), rows=20), 0)
    assert 7.9 < found.epsilon <= 8
    assert len(found.rounds) == 2
    assert found.rounds[0] != found.rounds[1]
    assert found.final.keys() == {"count", "shift", "sort", "sums"}


def test_an_arm_without_noise_is_charged_infinity_and_may_miss_a_client():
    noiseless = Arm("x", "federated", (*SHORT, "privacy.epsilon=inf"), 1, 20)
    assert arms.run_arm("tiny", noiseless, 0).epsilon == math.inf


def test_too_many_absent_clients_are_no_silent_result():
    lonely = Arm("x", "federated", (*SHORT, "privacy.epsilon=inf"), 3, 20)
    with pytest.raises(RuntimeError, match="abort"):
        arms.run_arm("tiny", lonely, 0)


@pytest.mark.parametrize("kind", ["central", "alone"])
@pytest.mark.parametrize("epsilon", [8, math.inf])
def test_arms_without_a_federation_move_the_adapter(kind, epsilon):
    overrides = (*SHORT, f"privacy.epsilon={epsilon}")
    found = arms.run_arm("tiny", Arm("x", kind, overrides, rows=20), 0)
    assert found.rounds[0] != found.rounds[1]
    assert found.epsilon == epsilon


def test_clients_that_share_a_task_have_different_prompts_of_it(tmp_path):
    config, _ = arms.load_config("tiny")
    shared = arms._shortened(config, Arm("x", "alone", rows=30, task="sort"), tmp_path)
    parts = [Path(client.data).read_text("utf-8") for client in shared.client]
    lines = [line for part in parts for line in part.splitlines()]
    whole = Path(config.client_named("sort").data).read_text("utf-8").splitlines()
    assert lines == whole[:120]
    assert {client.reward for client in shared.client} == {
        config.client_named("sort").reward
    }
    assert [client.name for client in shared.client] == [c.name for c in config.client]


def test_the_private_sum_has_the_calibrated_noise_and_clips():
    config, _ = arms.load_config("tiny")
    add_up = arms._private_sum(config, 20_000)
    noise = add_up(iter(()))
    # About 0.5516 times the clip norm, and a little less without a statistic.
    assert 0.045 < noise.std() < 0.06
    long = np.zeros(20_000, dtype=np.float32)
    long[7] = 1e6
    assert 0 < add_up(iter([long] * 50))[7] < 50 * 0.1 + 1
    assert arms._plain_sum(20_000)(iter([long]))[7] == 1e6


def test_the_coin_knows_nothing_but_prompt_and_completion():
    prompts, completions = ["p"] * 200, [str(n) for n in range(200)]
    values = changed_rewards.coin(prompts, completions)
    assert values == changed_rewards.coin(prompts, completions)
    assert set(values) == {-5.0, 0.0}
    assert 60 < values.count(0.0) < 140


# The figures.


def test_an_interval_is_students():
    mean, half = learning.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(2.776 * math.sqrt(2.5 / 5))


def test_a_share_counts_the_errors_of_both_means():
    assert learning.share([1.0, 1.0], [2.0, 2.0]) == (0.5, 0.0)
    # Where both vary together the quotient is sure, and where one varies it is not.
    assert learning.share([1.0, 2.0], [2.0, 4.0])[1] == pytest.approx(0)
    quotient, half = learning.share([1.0, 1.0], [1.0, 3.0])
    assert quotient == 0.5
    assert half == pytest.approx(12.706 * math.sqrt(0.5 / 2) / 2)


def table():
    return learning.Table(
        "T",
        (Arm("base", "base"), Arm("best", "central"), Arm("x", "federated")),
        central="best",
        noiseless="best",
    )


def curves():
    return {
        ("T", "base"): [curve(0.2), curve(0.2)],
        ("T", "best"): [curve(0.2, 0.5, 0.8, 0.8), curve(0.2, 0.7, 0.8, 0.8)],
        ("T", "x"): [
            curve(0.2, 0.3, 0.9, 0.5, worst=0.1),
            curve(0.2, 0.75, 0.76, 0.5),
        ],
    }


def test_the_share_kept_is_of_the_noiseless_gain():
    rows = {row["arm"]: row for row in learning.summary(table(), curves())["rows"]}
    assert rows["base"]["kept"][0] == pytest.approx(0)
    assert rows["best"]["kept"][0] == pytest.approx(1)
    assert rows["x"]["kept"][0] == pytest.approx(0.5)
    assert rows["x"]["worst"][0] == pytest.approx(0.45)


def test_rounds_are_counted_to_nine_tenths_of_the_central_gain():
    rows = {row["arm"]: row for row in learning.summary(table(), curves())["rows"]}
    # The goal is 0.2 + 0.9 * 0.6 = 0.74.
    assert rows["best"]["rounds to 90%"] == [2, 2]
    assert rows["x"]["rounds to 90%"] == [1, None]


def test_the_table_says_never_where_the_middle_run_never_arrives():
    shown = learning.as_markdown(learning.summary(table(), curves()))
    assert "| base | 0.200 ± 0.000 | 0.200 ± 0.000 | 0% ± 0% | never |" in shown


def test_every_part_names_arms_that_exist_and_the_plan_accepts():
    for part in ("main", "weights", "same", "small"):
        for one in learning.tables(part):
            names = [arm.name for arm in one.arms]
            assert len(set(names)) == len(names)
            assert {one.central, one.noiseless, *one.plotted} - {None} <= set(names)
            for arm in one.arms:
                arms.load_config("tiny", arm.overrides)
