"""Score an adapter on the held-out prompts in minutes: `score.py CONFIG [--adapter D]`.

`fgrpo eval` generates 2,000 completions for each client, which takes longer here than
the training. This script asks two cheaper questions instead: with which probability
would the model generate the answer and nothing else, a number without sampling error
that one forward pass gives; and, on fewer prompts, how often does it really.
Beside them stands what the commonest answer alone would score, since a policy may have
learnt no more than that. All prompts here are synthetic, so showing scores spends
nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from fgrpo_secure.config import ClientSection, RunConfig, load_config
from fgrpo_secure.errors import FgrpoError
from fgrpo_secure.grpo.data import Example, load_examples
from fgrpo_secure.grpo.policy import Policy, load_trained_policy
from fgrpo_secure.grpo.rollout import generate
from fgrpo_secure.task import load_reward_set, load_run_policy, rollout_settings, score
from privacy.sampling import uniforms


@torch.no_grad()
def answer_probability(policy: Policy, example: Example, temperature: float) -> float:
    """The probability that a completion is the answer, followed by the end.

    It counts the answer's usual tokens only, so it is a lower bound of the success
    rate: other tokens can spell the same text, and white space around it is forgiven.
    """
    prompt = policy.encode(example.prompt)
    text = str(example.columns["answer"])
    answer = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = 0.0
    for end in policy.eos_ids:
        tokens = [*answer, end]
        ids = torch.tensor([[*prompt, *tokens]], device=policy.device)
        # The last token is only looked for, so its own logits are one too many.
        keep = len(tokens) + 1
        logits = policy.network(ids, logits_to_keep=keep).logits[0, -keep:-1]
        logps = (logits.double() / temperature).log_softmax(-1)
        found += float(logps[range(len(tokens)), tokens].sum().exp())
    return found


def sampled_reward(
    config: RunConfig, client: ClientSection, policy: Policy, examples: list[Example]
) -> tuple[float, list[str]]:
    """Mean reward over one group for each prompt, and a completion of each.

    The random numbers are the same at every call, so two adapters differ by what they
    learnt alone.

    Returns:
        The mean, rescaled to [0, 1] by the public range, and the first completions.
    """
    rewards = load_reward_set(client)
    low, high = rewards.range
    settings = replace(rollout_settings(config), microbatch_units=1)
    shape = (len(examples), settings.group_size, settings.max_tokens)
    key = hashlib.sha256(f"score {client.name}".encode()).digest()
    prompts = policy.encode_all([example.prompt for example in examples])
    numbers = uniforms(key, int(np.prod(shape))).reshape(shape)
    groups = generate(policy, prompts, numbers, settings)
    values = [
        (score(rewards, example, group) - low) / (high - low)
        for example, group in zip(examples, groups, strict=True)
    ]
    return float(np.mean(values)), [group.texts[0] for group in groups]


def score_all(
    config: RunConfig, policy: Policy, *, prompts: int, sampled: int
) -> dict[str, dict[str, object]]:
    """Scores of every client, on the first of its held-out prompts."""
    found: dict[str, dict[str, object]] = {}
    for client in config.client:
        if client.eval_data is None:
            continue
        examples = load_examples(client.eval_data)[:prompts]
        exact = [
            answer_probability(policy, example, config.grpo.temperature)
            for example in examples
        ]
        answers = Counter(example.columns["answer"] for example in examples)
        found[client.name] = {
            "probability": float(np.mean(exact)),
            "commonest_answer": answers.most_common(1)[0][1] / len(examples),
        }
        if sampled:
            mean, texts = sampled_reward(config, client, policy, examples[:sampled])
            found[client.name] |= {"sampled": mean, "texts": texts[:4]}
        print(client.name, json.dumps(found[client.name]), file=sys.stderr, flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the scores as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument(
        "--adapter", metavar="DIR", type=Path, help="a PEFT directory; else the base"
    )
    parser.add_argument("--prompts", type=int, default=64, help="for the probability")
    parser.add_argument(
        "--sampled", type=int, default=16, help="prompts to generate for"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(os.cpu_count() or 1)
    logging.set_verbosity_error()
    try:
        config, _ = load_config(options.config)
        if options.adapter is None:
            policy = load_run_policy(config)
        else:
            policy = load_trained_policy(
                config.model.base, options.adapter, device=config.machine.device
            )
        found = score_all(
            config, policy, prompts=options.prompts, sampled=options.sampled
        )
    except FgrpoError as error:
        print(f"score: {error.what}\n       {error.fix}", file=sys.stderr)
        return error.exit_code
    means = [client["probability"] for client in found.values()]
    print(json.dumps({"clients": found, "probability": float(np.mean(means))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
