"""What one client learns from: its units, its rewards, and the settings of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgrpo_secure.config import PROMPT, ClientSection, RunConfig
from fgrpo_secure.errors import ConfigurationError, ModelError
from fgrpo_secure.grpo.adapter import LoraSettings
from fgrpo_secure.grpo.data import Example, load_examples, source_name
from fgrpo_secure.grpo.gradient import GradientSettings
from fgrpo_secure.grpo.gradient_probe import verify_gradients
from fgrpo_secure.grpo.locality import verify_locality
from fgrpo_secure.grpo.loss import LOSSES, LossSettings, check_settings
from fgrpo_secure.grpo.packing import Group
from fgrpo_secure.grpo.policy import Policy, load_policy
from fgrpo_secure.grpo.rewards import RewardSet, RewardSpec, load_rewards
from fgrpo_secure.grpo.rollout import RolloutSettings
from fgrpo_secure.grpo.units import Unit, units, units_by_column


@dataclass(frozen=True, slots=True)
class Task:
    """One client's learning problem.

    Attributes:
        units: its privacy units, by id.
        prompts: token ids of each unit's prompts, in the order of its examples.
        rewards: what its completions earn.
        rollout: how completions are generated.
        gradient: how they are differentiated.
        scale_rewards: how a group's advantages are scaled.
        local_learning_rate: of the client's own steps in local trust.
    """

    units: Mapping[str, Unit]
    prompts: Mapping[str, list[tuple[int, ...]]]
    rewards: RewardSet
    rollout: RolloutSettings
    gradient: GradientSettings
    scale_rewards: str
    local_learning_rate: float


def load_run_policy(config: RunConfig) -> Policy:
    """The base model with the adapter of the configuration, untrained.

    Raises:
        ModelError: the model cannot be found, read or adapted, or a trained tensor
            would not get its gradient.
        ConfigurationError: prompt and completion do not fit the model, or the loss
            would couple units.
    """
    model = config.model
    lora = LoraSettings(
        rank=model.lora_rank,
        alpha=model.lora_alpha,
        target_modules=model.target_modules,
        layers=model.layers,
    )
    policy = load_policy(model.base, lora, device=config.machine.device)
    policy.check_width(config.grpo.max_prompt_tokens, config.grpo.max_tokens)
    verify_gradients(policy, gradient_settings(config), config.grpo.max_prompt_tokens)
    return policy


def load_units(config: RunConfig, client: ClientSection) -> dict[str, Unit]:
    """A client's privacy units: distinct prompts, or the values of a column.

    Raises:
        DataError: the data set cannot be read, or a row does not say whose it is.
    """
    privacy = config.privacy
    examples = load_examples(client.data)
    if privacy.unit == PROMPT:
        return units(examples)
    return units_by_column(
        examples,
        privacy.unit,
        max_prompts=privacy.prompts_per_unit,
        name=source_name(client.data),
    )


def public_size(config: RunConfig, client: ClientSection) -> int:
    """The number of units that the plan states: declared, or else counted.

    Raises:
        DataError: as `load_units` raises it.
        ConfigurationError: fewer are declared than there are.
    """
    if client.units is not None and not Path(client.data).is_file():
        # Whoever reads a plan need not have everybody's data.
        return client.units
    count = len(load_units(config, client))
    _check_declared(client, count)
    return count if client.units is None else client.units


def load_task(
    config: RunConfig,
    client: ClientSection,
    policy: Policy,
    allowed: Mapping[str, str] | None = None,
) -> Task:
    """Load all that a client learns from, and try its rewards once.

    Args:
        config: the run's configuration.
        client: whose task.
        policy: the model.
        allowed: as `load_reward_set` takes it.

    Raises:
        DataError, RewardError, ConfigurationError: what is wrong, without any text of
            the data.
    """
    own = load_units(config, client)
    _check_declared(client, len(own))
    rewards = load_reward_set(client, allowed)
    first = next(iter(own.values())).examples[0]
    count = config.grpo.group_size
    columns = {name: [value] * count for name, value in first.columns.items()}
    rewards.check([first.prompt] * count, [""] * count, columns)
    flat = [example.prompt for unit in own.values() for example in unit.examples]
    tokens = policy.encode_all(flat)
    policy.check_tokens(tokens)
    encoded = iter(tokens)
    prompts = {
        name: [next(encoded) for _ in unit.examples] for name, unit in own.items()
    }
    rollout, gradient = rollout_settings(config), gradient_settings(config)
    microbatch = local_microbatch(policy, rollout, gradient)
    return Task(
        units=own,
        prompts=prompts,
        rewards=rewards,
        rollout=replace(rollout, microbatch_units=microbatch),
        gradient=replace(gradient, microbatch_units=microbatch),
        scale_rewards=config.grpo.scale_rewards,
        local_learning_rate=config.grpo.local_learning_rate,
    )


def _check_declared(client: ClientSection, count: int) -> None:
    """Refuse a size that would state the guarantee of a smaller data set.

    Raises:
        ConfigurationError: a client declares fewer units than it has.
    """
    if client.units is not None and client.units < count:
        raise ConfigurationError(
            f"Client {client.name} declares fewer units than it has.",
            "Declare at least as many as there are: delta is held against that number.",
        )


def load_reward_set(
    client: ClientSection, allowed: Mapping[str, str] | None = None
) -> RewardSet:
    """The reward functions that a client names.

    Args:
        client: the client.
        allowed: of each reward the hex SHA-256 of the one file that may be run; None
            runs what is there.

    Raises:
        RewardError: one cannot be found or imported, or is another file.
    """
    weights = client.reward_weights or (1.0,) * len(client.reward)
    specs = [
        RewardSpec(
            target, low, high, weight, None if allowed is None else allowed[target]
        )
        for target, (low, high), weight in zip(
            client.reward, client.reward_range, weights, strict=True
        )
    ]
    return load_rewards(specs, Path())


def rollout_settings(config: RunConfig) -> RolloutSettings:
    """How the plan has completions generated."""
    grpo = config.grpo
    return RolloutSettings(
        group_size=grpo.group_size,
        max_tokens=grpo.max_tokens,
        temperature=grpo.temperature,
        top_p=grpo.top_p,
        max_prompt_tokens=grpo.max_prompt_tokens,
        microbatch_units=config.machine.microbatch,
    )


def gradient_settings(config: RunConfig) -> GradientSettings:
    """How the plan has completions differentiated.

    Raises:
        ConfigurationError: the loss or the scaling would couple units.
    """
    grpo = config.grpo
    check_settings(grpo.model_dump())
    loss = LossSettings(
        max_tokens=grpo.max_tokens,
        average=LOSSES[grpo.loss],
        ratio_clip=grpo.ratio_clip,
        kl_coefficient=grpo.kl_coefficient,
    )
    return GradientSettings(
        loss=loss,
        temperature=grpo.temperature,
        microbatch_units=config.machine.microbatch,
    )


def local_microbatch(
    policy: Policy, rollout: RolloutSettings, gradient: GradientSettings
) -> int:
    """The configured micro-batch if units do not touch one another in it, else 1.

    Kernels may round a row differently by where it stands in a batch. Whether they do
    is measured on this machine, on dummies; a unit that is alone has no mates.
    """
    if rollout.microbatch_units == 1:
        return 1
    try:
        verify_locality(policy, rollout, gradient)
    except ModelError:
        return 1
    return rollout.microbatch_units


def score(rewards: RewardSet, example: Example, group: Group) -> NDArray[np.float64]:
    """Rewards of one prompt's completions.

    Returns:
        Shape (G,), float64; NaN where a reward is missing.
    """
    count = len(group.texts)
    columns = {name: [value] * count for name, value in example.columns.items()}
    return rewards.score([example.prompt] * count, list(group.texts), columns)
