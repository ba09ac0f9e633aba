"""Held-out reward, before and after, of evaluation sets that are declared public."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgrpo_secure.config import ClientSection, RunConfig
from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.grpo.data import load_examples
from fgrpo_secure.grpo.policy import Policy, load_trained_policy
from fgrpo_secure.grpo.rollout import generate
from fgrpo_secure.task import (
    load_reward_set,
    rollout_settings,
    score,
)
from privacy.sampling import uniforms

# Completions generated for each evaluation set, at least.
MIN_COMPLETIONS = 2000


# Called with a label, what is done and what there is to do.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to a public prompt, to show to people.

    Attributes:
        prompt: the prompt's text.
        completion: what the policy answered.
        reward: rescaled to [0, 1].
    """

    prompt: str
    completion: str
    reward: float


@dataclass(frozen=True, slots=True)
class Score:
    """How a policy did on one evaluation set.

    Attributes:
        mean: mean reward over all completions, rescaled to [0, 1] by the public range.
        completions: how many were generated.
        samples: a few of them.
    """

    mean: float
    completions: int
    samples: tuple[Sample, ...]


def evaluate(
    config: RunConfig,
    client: ClientSection,
    policy: Policy,
    progress: Progress,
    shown: int = 2,
    every: int = 1,
    allowed: Mapping[str, str] | None = None,
) -> Score:
    """Score a policy on a client's public evaluation set.

    The same prompts and the same random numbers at every call, so that two adapters
    differ by what they learnt alone.

    Args:
        config: the run's configuration.
        client: whose evaluation set; it must be declared public.
        policy: the model with the adapter to score.
        progress: called with what is done and what there is to do.
        shown: samples to keep.
        every: score each so-manieth prompt only, in one pass, for a quick look.
        allowed: of each reward the one file that may be run, as `load_reward_set`
            takes it.

    Returns:
        The score.

    Raises:
        DataError: the evaluation set cannot be read.
        ValueError: the set is not declared public.
    """
    if client.eval_data is None or not client.eval_public:
        msg = f"client {client.name!r} declares no public evaluation set"
        raise ValueError(msg)
    examples = load_examples(client.eval_data)[::every]
    rewards = load_reward_set(client, allowed)
    low, high = rewards.range
    settings = rollout_settings(config)
    wanted = MIN_COMPLETIONS if every == 1 else 1
    passes = -(-wanted // (len(examples) * settings.group_size))
    prompts = policy.encode_all([example.prompt for example in examples])
    shape = (len(examples), settings.group_size, settings.max_tokens)
    means = []
    samples: list[Sample] = []
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(f"evaluating {client.name}", done, passes * len(examples))

    for number in range(passes):
        name = f"evaluation {config.machine.seed} {client.name} {number}"
        key = hashlib.sha256(name.encode()).digest()
        numbers = uniforms(key, int(np.prod(shape))).reshape(shape)
        groups = generate(policy, prompts, numbers, settings, advance)
        for example, group in zip(examples, groups, strict=True):
            values = (score(rewards, example, group) - low) / (high - low)
            means.append(np.nan_to_num(values, nan=0.0).mean())
            if number == 0 and len(samples) < shown:
                said = example.prompt
                text = said if isinstance(said, str) else said[-1]["content"]
                samples.append(
                    Sample(text, group.texts[0], float(np.nan_to_num(values[0])))
                )
    return Score(
        float(np.mean(means)), len(means) * settings.group_size, tuple(samples)
    )


def score_adapter(
    config: RunConfig, directory: Path, progress: Progress
) -> dict[str, Score]:
    """Score a PEFT directory on every public evaluation set.

    Raises:
        ModelError: the directory holds no adapter that fits the base model.
        ConfigurationError: no client declares a public evaluation set.
    """
    clients = [c for c in config.client if c.eval_public and c.eval_data is not None]
    if not clients:
        raise ConfigurationError(
            "No client declares a public evaluation set.",
            "Set eval_data and eval_public = true in a [[client]] table.",
        )
    device = config.machine.device
    policy = load_trained_policy(config.model.base, directory, device=device)
    return {
        client.name: evaluate(config, client, policy, progress) for client in clients
    }
