"""What all parties share of a run, and that no site and no lead can stretch it."""

from decimal import Decimal
from pathlib import Path

import pytest
import tomli_w

from fgrpo_secure import assets
from fgrpo_secure.agreement import ELSEWHERE, OWN, SHARED, read_agreement
from fgrpo_secure.config import ClientSection, load_config
from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.home import Home, HomeRole, make_home
from fgrpo_secure.registration import recipe_digest

NAMES = ("north", "east", "south")
TINY = Path(assets.__file__).parent / "tiny"


def tree():
    return {
        "privacy": {
            "unit": "prompt",
            "trust": "distributed",
            "epsilon": 8.0,
            "delta": 0.00001,
            "rounds": 3,
            "sampling_rate": 0.1,
            "clip_norm": 0.5,
            "statistic_multiplier": 10.0,
        },
        "federation": {"min_survivors": 3, "colluders": 1},
        "client": [
            {
                "name": name,
                "units": 3000,
                "reward": "rewards.py:exact",
                "reward_range": [0.0, 1.0],
            }
            for name in NAMES
        ],
        "model": {"base": "embedded:tiny"},
    }


def agreed(change=lambda tree: None):
    whole = tree()
    change(whole)
    return read_agreement(tomli_w.dumps(whole))


@pytest.fixture
def make(tmp_path):
    def made(party, role=HomeRole.SITE, **tables):
        home = Home(tmp_path / party, party, role, "trial", "localhost", 8002, 8003)
        make_home(home)
        if role is HomeRole.SITE:
            tables.setdefault("client", {})
            tables["client"] = {
                "data": "rows.jsonl",
                "reward": "mine.py:exact",
            } | tables["client"]
            home.site_file.write_text(tomli_w.dumps(tables))
            home.policy.write_text("")
        elif tables:
            home.server_file.write_text(tomli_w.dumps(tables))
        return home

    return made


def test_every_key_of_a_client_is_shared_or_its_own():
    named = {*SHARED, *OWN, "policy"}
    assert named == set(ClientSection.model_fields)


def test_a_site_adds_its_own_paths_and_nothing_of_the_others(make):
    home = make("north", client={"data_set": "july", "epsilon_cap": 12})
    config = agreed().at_site(home)
    own = config.client_named("north")
    assert own.data == str(home.root / "rows.jsonl")
    assert own.reward == (f"{home.root}/mine.py:exact",)
    assert (own.data_set, own.epsilon_cap) == ("july", Decimal(12))
    assert own.policy == str(home.policy)
    assert config.machine.state == str(home.state)
    for name in ("east", "south"):
        other = config.client_named(name)
        assert (other.data, other.reward) == (ELSEWHERE, ("exact",))
        assert other.policy is None


def test_a_sites_configuration_is_read_back_as_it_was(make, tmp_path):
    config = agreed().at_site(make("north"))
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert load_config(str(path))[0] == config


def test_every_party_has_the_same_recipe(make):
    agreement = agreed()
    digests = {recipe_digest(agreement.at_site(make(name))) for name in NAMES}
    digests.add(recipe_digest(agreement.at_server(make("server", HomeRole.SERVER))))
    assert len(digests) == 1


def test_a_model_in_a_directory_of_each_party_has_the_same_recipe(make):
    agreement = agreed(lambda tree: tree["model"].update(base="our/model"))
    model = {"base": str(TINY)}
    site = agreement.at_site(make("north", model=model))
    server = agreement.at_server(make("server", HomeRole.SERVER, model=model))
    assert site.model.base == str(TINY)
    assert recipe_digest(site) == recipe_digest(server)
    named = agreement.at_site(make("east"))
    assert recipe_digest(named) != recipe_digest(site)


def test_a_folder_of_the_home_is_never_taken_for_an_agreed_model(make):
    home = make("north")
    named = agreed(lambda tree: tree["model"].update(base="state/north"))
    with pytest.raises(ConfigurationError, match="like a folder"):
        named.at_site(home)
    server = make("server", HomeRole.SERVER)
    with pytest.raises(ConfigurationError, match="like a folder"):
        agreed(lambda tree: tree["model"].update(base="runs")).at_server(server)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "east"),
        ("units", 2000),
        ("sampling_rate", 0.05),
        ("reward_range", [0.0, 2.0]),
        ("reward_weights", [0.5]),
        ("reward", "mine.py:lenient"),
    ],
)
def test_a_site_cannot_contradict_what_all_share(make, key, value):
    home = make("north", client={key: value})
    with pytest.raises(ConfigurationError, match=f"client.{key} is not what the"):
        agreed().at_site(home)


def test_a_site_may_repeat_what_all_share(make):
    home = make("north", client={"units": 3000, "reward_range": [0, 1]})
    assert agreed().at_site(home).client_named("north").units == 3000


@pytest.mark.parametrize("section", ["privacy", "federation", "grpo", "server"])
def test_a_site_cannot_set_what_all_agree_on(make, section):
    home = make("north", **{section: {}})
    with pytest.raises(ConfigurationError, match="agreed by all"):
        agreed().at_site(home)


def test_a_site_cannot_move_its_state(make):
    home = make("north", machine={"state": "elsewhere"})
    with pytest.raises(ConfigurationError, match="always the folder state/"):
        agreed().at_site(home)


@pytest.mark.parametrize("key", ["policy", "lora_rank", "dta"])
def test_an_unknown_key_of_a_site_is_told(make, key):
    home = make("north", client={key: "x"})
    with pytest.raises(ConfigurationError, match=f"client.{key} is not a known key"):
        agreed().at_site(home)


def test_without_a_policy_nothing_is_joined(make):
    home = make("north")
    home.policy.unlink()
    with pytest.raises(ConfigurationError, match="no policy"):
        agreed().at_site(home)


def test_a_site_that_is_no_client_is_told(make):
    with pytest.raises(ConfigurationError, match="no client of this run"):
        agreed().at_site(make("west"))


def test_a_site_without_its_file_is_told(make):
    home = make("north")
    home.site_file.unlink()
    with pytest.raises(ConfigurationError, match=r"There is no .*site.toml"):
        agreed().at_site(home)


def test_single_brackets_are_asked_for(make):
    home = make("north")
    home.site_file.write_text('[[client]]\ndata = "rows.jsonl"\n')
    with pytest.raises(ConfigurationError, match="another way"):
        agreed().at_site(home)


@pytest.mark.parametrize("key", [*OWN, "policy"])
def test_the_lead_cannot_write_what_is_a_sites_own(key):
    with pytest.raises(ConfigurationError, match="the site's own"):
        agreed(lambda tree: tree["client"][0].update({key: "x"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.update(machine={}), r"\[machine\] is not shared"),
        (lambda tree: tree["client"][1].pop("units"), "east.units is missing"),
        (lambda tree: tree["client"][1].pop("reward"), "east.reward is missing"),
        (lambda tree: tree["model"].update(base="../other"), "is a path"),
        (lambda tree: tree["model"].update(base="/etc"), "is a path"),
        (lambda tree: tree["privacy"].pop("epsilon"), "epsilon is missing"),
        (lambda tree: tree.update(extra={}), "extra is not a known key"),
        (lambda tree: tree["client"][0].update(name="../x"), "is no name"),
        (lambda tree: tree.update(client={"name": "x"}), "another way"),
        (lambda tree: tree.update(client=["x"]), "another way"),
    ],
)
def test_a_wrong_agreement_is_told_at_once(change, words):
    with pytest.raises(ConfigurationError, match=words):
        agreed(change)


def test_an_agreement_that_is_not_toml_is_told():
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        read_agreement("[privacy")


def test_the_order_of_clients_changes_nothing(make):
    home = make("north")
    turned = agreed(lambda tree: tree["client"].reverse())
    assert turned.names == tuple(sorted(NAMES))
    assert turned.at_site(home) == agreed().at_site(home)


def test_the_paths_that_a_lead_writes_for_rewards_are_dropped(make):
    def change(tree):
        for client in tree["client"]:
            client["reward"] = "os:exact"

    config = agreed(change).at_server(make("server", HomeRole.SERVER))
    assert all(client.reward == ("exact",) for client in config.client)
