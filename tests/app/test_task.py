"""What a client learns from: loaded once, tried once, refused without its text."""

import json
from dataclasses import replace

import pytest
import torch

from fgrpo_secure import task as task_module
from fgrpo_secure.cli import main
from fgrpo_secure.config import load_config
from fgrpo_secure.errors import (
    ConfigurationError,
    DataError,
    FgrpoError,
    ModelError,
    RewardError,
)
from fgrpo_secure.grpo.policy import make_policy
from fgrpo_secure.preparation import make_plan
from fgrpo_secure.site import open_site
from fgrpo_secure.task import (
    gradient_settings,
    load_run_policy,
    load_task,
    load_units,
    public_size,
    rollout_settings,
)
from tests.app.federation import RUN, edit_rows
from tests.end_to_end.program import UNITS, write_config


@pytest.fixture(scope="module")
def policy():
    config, _ = load_config("tiny")
    return load_run_policy(config)


@pytest.fixture
def given(tmp_path):
    return write_config(tmp_path / "given")


def sums(path, *overrides):
    config, _ = load_config(str(path), overrides)
    return config, config.client_named("sums")


def test_units_are_the_distinct_prompts_and_their_number_is_the_public_size(given):
    data = given.parent / "data/sums.jsonl"
    edit_rows(data, lambda rows: [*rows, rows[0], rows[3]])
    config, client = sums(given)
    assert len(load_units(config, client)) == UNITS
    assert public_size(config, client) == UNITS


def test_a_declared_size_is_taken_as_it_is(given):
    config, client = sums(given, "client.sums.units=1000")
    assert public_size(config, client) == 1000


def test_a_declared_size_below_the_units_is_refused_before_a_plan_is_made(
    given, policy, capsys
):
    fewer = f"client.sums.units={UNITS - 1}"
    config, client = sums(given, fewer)
    said = []
    for refuse in (public_size, lambda *parts: load_task(*parts, policy)):
        with pytest.raises(ConfigurationError, match="fewer units than") as caught:
            refuse(config, client)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert str(UNITS) not in said[0]
    assert main(["plan", str(given), "--set", fewer]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert "declares fewer units than it has" in shown.err
    config, client = sums(given, f"client.sums.units={UNITS}")
    assert public_size(config, client) == UNITS


def test_a_plan_with_a_declared_size_needs_no_data(given):
    (given.parent / "data/sums.jsonl").unlink()
    assert public_size(*sums(given, "client.sums.units=500")) == 500
    with pytest.raises(DataError, match="no file"):
        public_size(*sums(given))


def test_a_task_holds_every_unit_with_its_tokens(given, policy):
    config, client = sums(given, "machine.microbatch=1")
    task = load_task(config, client, policy)
    assert len(task.units) == UNITS
    assert task.prompts.keys() == task.units.keys()
    assert all(len(prompts) == 1 for prompts in task.prompts.values())
    assert task.rollout.microbatch_units == task.gradient.microbatch_units == 1


def test_settings_follow_the_configuration(given):
    config, _ = sums(given, "grpo.top_p=0.9", "grpo.kl_coefficient=0.2")
    assert rollout_settings(config).top_p == 0.9
    assert gradient_settings(config).loss.kl_coefficient == 0.2
    assert gradient_settings(config).temperature == config.grpo.temperature


BAD_REWARDS = {
    "no such function": "def other(prompts, completions, **columns): return []",
    "not a function": "exact = 3",
    "a module that raises": "raise ValueError",
    "bad syntax": "def exact(:",
    "the wrong length": "def exact(prompts, completions, **columns): return [1.0]",
    "no list": "def exact(prompts, completions, **columns): return 1.0",
    "text": "def exact(prompts, completions, **columns): return prompts",
    "an error": "def exact(prompts, completions, **c): raise ValueError(prompts[0])",
    "a column it wants": "def exact(prompts, completions, age): return [0.0] * 4",
}


@pytest.mark.parametrize("code", BAD_REWARDS.values(), ids=BAD_REWARDS.keys())
def test_a_bad_reward_is_an_error_that_names_it_and_shows_no_prompt(
    given, policy, code
):
    (given.parent / "rewards.py").write_text(code + "\n")
    config, client = sums(given)
    prompts = [
        json.loads(line)["prompt"]
        for line in (given.parent / "data/sums.jsonl").read_text().splitlines()
    ]
    with pytest.raises(RewardError) as caught:
        load_task(config, client, policy)
    assert "rewards.py" in str(caught.value) or "exact" in str(caught.value)
    assert caught.value.exit_code == 3
    assert not any(prompt in str(caught.value) for prompt in prompts)


def test_a_reward_that_is_not_there_is_an_error_that_names_it(given, policy):
    for target in ("nowhere:exact", "none.py:exact", "exact"):
        config, client = sums(given, f'client.sums.reward="{target}"')
        with pytest.raises(FgrpoError) as caught:
            load_task(config, client, policy)
        assert caught.value.exit_code in {2, 3}
        assert target.partition(":")[0] in str(caught.value)


def test_an_empty_data_set_is_an_error(given, policy):
    (given.parent / "data/sums.jsonl").write_text("")
    config, client = sums(given)
    with pytest.raises(DataError, match="empty"):
        load_task(config, client, policy)


def test_several_rewards_are_weighted(given, policy):
    (given.parent / "rewards.py").write_text(
        "def exact(prompts, completions, **c): return [1.0] * len(completions)\n"
        "def brief(prompts, completions, **c): return [-2.0] * len(completions)\n"
    )
    path = str(given.parent / "rewards.py")
    config, client = sums(
        given,
        f'client.sums.reward=["{path}:exact", "{path}:brief"]',
        "client.sums.reward_range=[[0, 1], [-4, 0]]",
        "client.sums.reward_weights=[1.0, 0.5]",
    )
    task = load_task(config, client, policy)
    assert task.rewards.range == (-2.0, 1.0)
    columns = {"answer": ["1"], "note": ["x"]}
    assert task.rewards.score(["p"], ["c"], columns).tolist() == [0.0]


# A model of which a tensor would not learn.


@pytest.fixture
def spare_layer(policy, monkeypatch):
    """Models have one layer more, with an adapter, that no forward pass uses."""
    plain = task_module.load_policy

    def load(base, lora, **where):
        model = plain(base, lora, **where).model.unload()
        width = model.config.hidden_size
        model.model.layers[1].self_attn.spare = torch.nn.Linear(width, width)
        names = (*lora.target_modules, "spare")
        return make_policy(model, policy.tokenizer, replace(lora, target_modules=names))

    monkeypatch.setattr(task_module, "load_policy", load)


def test_a_layer_that_no_pass_uses_stops_a_site_before_anything_is_charged(
    federation, request
):
    one = federation()
    request.getfixturevalue("spare_layer")
    with pytest.raises(ModelError) as caught:
        open_site(one.config, one.plan, one.folder, one.names, RUN, lambda *_: None)
    assert "model.layers.1.self_attn.spare gets no gradient" in caught.value.what
    assert "target_modules" in caught.value.fix
    assert caught.value.exit_code == 4
    for name in one.names:
        assert one.kinds(name) == ["opened"]


def test_no_plan_is_made_of_it_either(given, spare_layer):
    config, _ = load_config(str(given))
    with pytest.raises(ModelError, match="gets no gradient"):
        make_plan(config)
