"""Policies of a site for tests: one that allows what is proposed, and changes to it."""

import os

import tomli_w

from fgrpo_secure.base_model import read_base_model
from fgrpo_secure.grpo.reward_sources import reward_sources
from tests.end_to_end.program import ASSETS


def reward_entries(config, name):
    """The rewards of a client as a policy lists them."""
    specs = config.client_named(name).reward
    sources = [reward_sources(spec, ASSETS) for spec in specs]
    return [{"name": source.name, "sha256": source.sha256} for source in sources]


def allowing(config, name, approval="auto"):
    """The tables of a policy that just allows what a configuration proposes."""
    privacy, federation = config.privacy, config.federation
    rewards = reward_entries(config, name)
    data_set = config.client_named(name).data_set or name
    return {
        "plan": {
            "units": [privacy.unit],
            "trust": [privacy.trust],
            "least_clients": len(config.client),
            "least_survivors": federation.min_survivors,
            "least_colluders": federation.colluders,
            "base_models": [read_base_model(config.model.base).digest],
        },
        "data_set": [
            {
                "name": data_set,
                "epsilon": privacy.epsilon,
                "delta": privacy.delta,
                "epsilon_for_life": config.client_named(name).epsilon_cap
                or privacy.epsilon,
                "delta_for_life": privacy.delta,
            }
        ],
        "reward": rewards,
        "task": [
            {
                "data_set": data_set,
                "rewards": [reward["name"] for reward in rewards],
                "approval": approval,
            }
        ],
    }


def write_policy(path, tables):
    """Put a policy in place of another, as an editor does."""
    beside = path.with_suffix(".new")
    beside.write_text(tomli_w.dumps(tables))
    beside.chmod(0o600)
    os.replace(beside, path)
    return path
