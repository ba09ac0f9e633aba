"""The configuration: typed, frozen, with no key that nobody reads."""

import tomllib
from decimal import Decimal

import pytest
import tomli_w
from pydantic import ValidationError

from fgrpo_secure.config import MOST, RunConfig, load_config
from fgrpo_secure.errors import ConfigurationError

MINIMAL = {
    "privacy": {
        "unit": "prompt",
        "trust": "distributed",
        "epsilon": 8,
        "delta": 0.00001,
        "rounds": 3,
        "sampling_rate": 0.1,
        "clip_norm": 0.5,
        "statistic_multiplier": 10,
    },
    "federation": {"min_survivors": 3, "colluders": 1},
    "client": [
        {
            "name": name,
            "data": f"{name}.jsonl",
            "reward": "rewards:exact",
            "reward_range": [0, 1],
        }
        for name in ("north", "east", "south.1")
    ],
    "model": {"base": "some/model"},
}


@pytest.fixture
def write(tmp_path):
    def written(change=lambda tree: None, folder=tmp_path):
        tree = tomllib.loads(tomli_w.dumps(MINIMAL))
        change(tree)
        folder.mkdir(exist_ok=True, parents=True)
        path = folder / "run.toml"
        path.write_text(tomli_w.dumps(tree))
        return str(path)

    return written


def refusal(source, overrides=()):
    with pytest.raises(ConfigurationError) as caught:
        load_config(source, overrides)
    assert caught.value.exit_code == 2
    assert caught.value.fix
    return caught.value.what


def test_a_minimal_configuration_loads_with_its_defaults(write):
    config, name = load_config(write())
    assert name == "run"
    assert config.privacy.epsilon == 8
    assert config.grpo.loss == "dr_grpo"
    assert config.aggregation.rule == "fgrpo"
    assert config.machine.state is None
    assert not any(client.eval_public for client in config.client)


def test_the_embedded_default_loads_by_its_name():
    config, name = load_config("tiny")
    assert name == "tiny"
    assert len(config.client) == 4
    assert config.privacy.epsilon == 8
    assert config.privacy.delta == Decimal("0.00001")
    assert (config.federation.min_survivors, config.federation.colluders) == (3, 1)


def test_decimals_keep_their_digits(write):
    config, _ = load_config(write(), ["privacy.delta=0.000012345678901234567"])
    assert str(config.privacy.delta) == "0.000012345678901234567"


def test_clients_are_put_in_the_order_of_their_names(write):
    config, _ = load_config(write())
    assert [client.name for client in config.client] == ["east", "north", "south.1"]


def test_nothing_in_a_configuration_can_be_changed(write):
    config, _ = load_config(write())
    with pytest.raises(ValidationError):
        config.privacy.rounds = 4


# What is refused.


@pytest.mark.parametrize("section", ["privacy", "federation"])
def test_the_sections_of_the_promise_have_no_defaults(write, section):
    for key in MINIMAL[section]:

        def without(tree, key=key):
            del tree[section][key]

        assert f"{section}.{key} is missing" in refusal(write(without))


@pytest.mark.parametrize("section", ["privacy", "federation", "model", "client"])
def test_a_missing_section_is_named(write, section):
    assert section in refusal(write(lambda tree: tree.pop(section)))


SECTIONS = ("privacy", "federation", "model", "grpo", "aggregation", "server")


@pytest.mark.parametrize("section", [*SECTIONS, "machine"])
def test_an_unknown_key_is_refused_by_its_name(write, section):
    def with_typo(tree):
        tree.setdefault(section, {})["epsilonn"] = 1

    assert f"{section}.epsilonn is not a known key" in refusal(write(with_typo))


def test_an_unknown_section_is_refused_by_its_name(write):
    def with_section(tree):
        tree["privcy"] = {}

    assert "privcy is not a known key" in refusal(write(with_section))


def test_an_unknown_key_of_a_client_is_refused_by_its_name(write):
    def with_typo(tree):
        tree["client"][1]["epsilon"] = 1

    assert "epsilon is not a known key" in refusal(write(with_typo))


def test_all_that_is_wrong_is_said_at_once(write):
    def spoilt(tree):
        tree["privacy"]["extra"] = 1
        del tree["federation"]["colluders"]

    what = refusal(write(spoilt))
    assert "privacy.extra" in what
    assert "federation.colluders" in what


WRONG = [
    'privacy.rounds="3"',
    "privacy.rounds=true",
    "privacy.rounds=3.5",
    "privacy.rounds=0",
    'privacy.epsilon="8"',
    "privacy.epsilon=0",
    "privacy.epsilon=-1",
    "privacy.epsilon=nan",
    "privacy.epsilon=true",
    "privacy.delta=0",
    "privacy.sampling_rate=0",
    "privacy.sampling_rate=1.1",
    "privacy.clip_norm=0",
    "privacy.statistic_multiplier=0",
    "privacy.unit=3",
    "federation.min_survivors=1",
    "federation.colluders=-1",
    'client.east.eval_public="yes"',
    "client.east.eval_public=1",
    "client.east.units=0",
    "client.east.reward=[]",
    'client.east.reward=["a:b", "c:d"]',
    "client.east.reward_range=[1, 0]",
    "client.east.reward_range=[1, 1]",
    "client.east.reward_range=[1]",
    "client.east.reward_range=[nan, 1]",
    "client.east.reward_range=[0, inf]",
    "client.east.reward_weights=[1, 2]",
    "client.east.reward_weights=[nan]",
    "client.east.epsilon_cap=0",
    "model.lora_rank=0",
    'model.layers=["1"]',
    "grpo.group_size=1",
    "grpo.temperature=0",
    "grpo.temperature=inf",
    "grpo.top_p=1.5",
    "grpo.kl_coefficient=-1",
    'aggregation.rule="best"',
    'aggregation.gain="best"',
    "aggregation.temperature=nan",
    "aggregation.baseline_decay=1",
    "aggregation.max_weight_ratio=0.5",
    'server.optimizer="rmsprop"',
    "server.learning_rate=0",
    "server.learning_rate=nan",
    "server.betas=[0.9, 1.0]",
    "machine.workers=0",
    "machine.seed=1.5",
    "machine.deadline_seconds=0",
]


COUNTS = [
    "privacy.max_prompts_per_unit",
    "privacy.rounds",
    "federation.min_survivors",
    "federation.colluders",
    "client.east.units",
    "model.lora_rank",
    "grpo.group_size",
    "grpo.max_tokens",
    "grpo.max_prompt_tokens",
    "machine.microbatch",
    "machine.workers",
    "machine.threads",
]


@pytest.mark.parametrize("key", COUNTS)
@pytest.mark.parametrize("value", [MOST + 1, 10**30])
def test_a_number_that_no_plan_can_hold_is_refused_by_the_name_of_its_key(
    write, key, value
):
    assert f"{key} should be less than or equal to {MOST}" in refusal(
        write(), [f"{key}={value}"]
    )


@pytest.mark.parametrize(
    "key",
    [
        "privacy.epsilon",
        "privacy.delta",
        "privacy.sampling_rate",
        "privacy.clip_norm",
        "privacy.statistic_multiplier",
        "client.east.epsilon_cap",
        "aggregation.temperature",
        "aggregation.baseline_decay",
        "aggregation.max_weight_ratio",
    ],
)
@pytest.mark.parametrize("value", ["1e-99999999", "1e99999999", "0." + "1" * 1001])
def test_a_decimal_whose_fraction_no_machine_can_hold_is_refused(write, key, value):
    name = key.rpartition(".")[2]
    assert f"{name} has more than 1000 digits" in refusal(write(), [f"{key}={value}"])


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(write, override):
    what = refusal(write(), [override])
    key = override.partition("=")[0].split(".")[-1]
    assert key in what or "client 'east'" in what


def test_a_file_that_is_missing_or_not_toml_is_an_error(tmp_path):
    assert "no configuration file" in refusal(str(tmp_path / "none.toml"))
    assert "no configuration file" in refusal("large")
    (tmp_path / "bad.toml").write_text("[privacy\n")
    assert "not valid TOML" in refusal(str(tmp_path / "bad.toml"))


# --set.


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("privacy.rounds=7", lambda c: c.privacy.rounds == 7),
        (" privacy.rounds = 7", lambda c: c.privacy.rounds == 7),
        ("privacy.epsilon=2.5", lambda c: c.privacy.epsilon == Decimal("2.5")),
        ("grpo.loss=grpo", lambda c: c.grpo.loss == "grpo"),
        ('grpo.loss="grpo"', lambda c: c.grpo.loss == "grpo"),
        ("model.layers=[0, 2]", lambda c: c.model.layers == (0, 2)),
        (
            "client.east.eval_public=true",
            lambda c: c.client_named("east").eval_public,
        ),
        (
            "client.south.1.units=50",
            lambda c: c.client_named("south.1").units == 50,
        ),
        (
            "client.east.reward_range=[-1, 2.5]",
            lambda c: c.client_named("east").reward_range == ((-1.0, 2.5),),
        ),
        ("model.base=a/b=c", lambda c: c.model.base == "a/b=c"),
    ],
)
def test_one_key_can_be_set_on_the_command_line(write, override, found):
    config, _ = load_config(write(), [override])
    assert found(config)


def test_the_last_setting_of_a_key_wins(write):
    config, _ = load_config(write(), ["privacy.rounds=7", "privacy.rounds=9"])
    assert config.privacy.rounds == 9


@pytest.mark.parametrize(
    "override",
    [
        "privacy.rounds",
        "rounds=3",
        "=3",
        "",
        "a.b.c=3",
        "client.east=3",
        "client.west.units=3",
        "client.units=3",
    ],
)
def test_a_setting_of_another_form_is_refused(write, override):
    assert "--set" in refusal(write(), [override])


def test_a_setting_of_an_unknown_key_is_refused(write):
    assert "not a known key" in refusal(write(), ["privacy.rouns=3"])


# Lists, paths and the resolved form.


def test_one_reward_and_a_list_of_rewards_are_both_lists(write):
    def several(tree):
        tree["client"][0] |= {
            "reward": ["rewards:exact", "rewards:brief"],
            "reward_range": [[0, 1], [-1, 0]],
            "reward_weights": [1.0, 0.5],
        }

    config, _ = load_config(write(several))
    assert config.client_named("north").reward == ("rewards:exact", "rewards:brief")
    assert config.client_named("north").reward_range == ((0, 1), (-1, 0))
    assert config.client_named("east").reward == ("rewards:exact",)
    assert config.client_named("east").reward_range == ((0, 1),)


def test_paths_resolve_from_the_file_and_not_from_where_one_stands(
    write, tmp_path, monkeypatch
):
    def with_paths(tree):
        tree["client"][0]["reward"] = "own/rewards.py:exact"
        tree["client"][0]["eval_data"] = "../held.csv"
        tree["model"]["base"] = "base"
        tree["machine"] = {"state": "state"}

    folder = tmp_path / "deep" / "down"
    source = write(with_paths, folder)
    (folder / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    config, _ = load_config("deep/down/run.toml")
    assert config == load_config(source)[0]
    north = config.client_named("north")
    assert north.data == str(folder / "north.jsonl")
    assert north.eval_data == str(tmp_path / "deep" / "held.csv")
    assert north.reward == (f"{folder / 'own' / 'rewards.py'}:exact",)
    assert config.model.base == str(folder / "base")
    assert config.machine.state == str(folder / "state")


def test_what_is_no_file_stays_the_name_of_a_hub(write):
    config, _ = load_config(write(), ["client.east.data=squad:train"])
    assert config.client_named("east").data == "squad:train"
    assert config.model.base == "some/model"
    assert config.client_named("north").reward == ("rewards:exact",)


@pytest.mark.parametrize("source", ["minimal", "tiny"])
def test_the_resolved_configuration_loads_to_an_equal_one(write, tmp_path, source):
    config, _ = load_config("tiny" if source == "tiny" else write())
    path = tmp_path / "elsewhere" / "config.toml"
    path.parent.mkdir()
    path.write_text(config.to_toml())
    again, _ = load_config(str(path))
    assert again == config
    assert isinstance(again, RunConfig)
    assert again.to_toml() == config.to_toml()
