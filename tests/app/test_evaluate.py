"""Scores: of public sets alone, with the same prompts and numbers every time."""

import numpy as np
import pytest

from fgrpo_secure.config import load_config
from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.evaluate import MIN_COMPLETIONS, evaluate, score_adapter
from fgrpo_secure.grpo import adapter
from fgrpo_secure.task import load_run_policy
from tests.end_to_end.program import RIGHT, WRONG, write_config


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A configuration with one public set, and its policy."""
    path = write_config(tmp_path_factory.mktemp("given") / "given", public=("sums",))
    config, _ = load_config(str(path))
    return config, load_run_policy(config)


def nothing(label, done, total):
    return None


def test_a_set_that_is_not_public_is_never_scored(scored):
    config, policy = scored
    client = config.client_named("sums").model_copy(update={"eval_public": False})
    with pytest.raises(ValueError, match="no public evaluation set"):
        evaluate(config, client, policy, nothing)


def test_no_public_set_at_all_is_an_error_that_says_what_to_set(scored, tmp_path):
    config, _ = scored
    clients = tuple(c.model_copy(update={"eval_public": False}) for c in config.client)
    with pytest.raises(ConfigurationError, match="eval_public"):
        score_adapter(config.model_copy(update={"client": clients}), tmp_path, nothing)


def test_a_score_is_rescaled_repeatable_and_of_enough_completions(scored):
    config, policy = scored
    told = []
    client = config.client_named("sums")
    first = evaluate(config, client, policy, lambda *args: told.append(args))
    assert 0 < first.mean < 1
    assert first.completions >= MIN_COMPLETIONS
    assert told[-1][1] == told[-1][2]
    again = evaluate(config, client, policy, nothing)
    assert again == first
    assert len(first.samples) == 2
    assert all(0 <= sample.reward <= 1 for sample in first.samples)


def test_another_adapter_and_another_seed_give_other_scores(scored):
    config, policy = scored
    client = config.client_named("sums")
    first = evaluate(config, client, policy, nothing)
    machine = config.machine.model_copy(update={"seed": 1})
    seeded = config.model_copy(update={"machine": machine})
    assert evaluate(seeded, client, policy, nothing).mean != first.mean
    kept = adapter.read_vector(policy.model)
    adapter.write_vector(policy.model, np.full(kept.size, 0.3, dtype=np.float32))
    try:
        spoilt = evaluate(config, client, policy, nothing)
    finally:
        adapter.write_vector(policy.model, kept)
    assert spoilt.mean < first.mean


def test_the_mean_is_the_share_of_right_answers_on_a_range_of_two_values(scored):
    """Rewards of this range are its two ends, so the rescaled mean is a share."""
    config, policy = scored
    client = config.client_named("sums")
    (low, high) = client.reward_range[0]
    assert (low, high) == (WRONG, RIGHT)
    mean = evaluate(config, client, policy, nothing)
    assert mean.mean * mean.completions == pytest.approx(
        round(mean.mean * mean.completions)
    )
