"""A probe at start-up: does this machine treat every slot of a micro-batch alike?

Fixed shapes keep a unit's numbers from depending on what its mates hold. Whether they
depend on *where* the unit sits is a matter of kernels, threads and the model, and
nobody promises it. So it is tried, on public dummies, with this model on this machine,
before anything is drawn. What passes is tested and not proven.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgrpo_secure.errors import ModelError
from fgrpo_secure.grpo.adapter import read_vector, write_vector
from fgrpo_secure.grpo.gradient import GradientSettings, ScoredGroup, UnitGradients
from fgrpo_secure.grpo.packing import WIDTH_STEP, Group, padded_width
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.grpo.rollout import RolloutSettings, generate

_SEED = 20_240_501


def verify_locality(
    policy: Policy, rollout: RolloutSettings, gradient: GradientSettings
) -> None:
    """Check that dummies come out equal in other slots and with other mates.

    A micro-batch of full width is generated and differentiated, then again in reverse,
    then shifted with every other unit replaced: once with the widest prompts and
    completions of many tokens, once with the narrowest and of one token. The bits of
    the logits behind every token are compared, of the tokens, of the log-probabilities
    that later steps are given and of the gradient: a difference in the last bit hardly
    ever moves a token of a few dummies, and would move one of many units. The adapter
    is given numbers other than zero meanwhile, and gets its own back.

    Args:
        policy: What generates and learns.
        rollout: How to generate.
        gradient: How to differentiate.

    Raises:
        ConfigurationError: Prompt and completion do not fit the model.
        ModelError: A dummy changed with its slot or its mates. A micro-batch of one
            unit needs no such property, so the caller may go on with that.
    """
    policy.check_width(rollout.max_prompt_tokens, rollout.max_tokens)
    tokens = rollout.max_tokens
    narrowest = padded_width(1, rollout.max_prompt_tokens)
    kept = read_vector(policy.model)
    generator = torch.Generator().manual_seed(_SEED)
    try:
        write_vector(
            policy.model, 0.05 * torch.randn(kept.size, generator=generator).numpy()
        )
        for top, lengths in (
            (rollout.max_prompt_tokens, (tokens, (tokens + 1) // 2)),
            (narrowest, (1, 1)),
        ):
            _verify(policy, rollout, gradient, top, lengths)
    finally:
        write_vector(policy.model, kept)


def _verify(
    policy: Policy,
    rollout: RolloutSettings,
    gradient: GradientSettings,
    top: int,
    lengths: tuple[int, int],
) -> None:
    """Try one width in all arrangements.

    Args:
        policy: What generates and learns.
        rollout: How to generate.
        gradient: How to differentiate.
        top: Tokens of the longest prompt.
        lengths: Tokens of every other completion that are differentiated, and of those
            between.

    Raises:
        ModelError: A dummy changed with its slot or its mates.
    """
    slots = max(rollout.microbatch_units, gradient.microbatch_units)
    prompts, uniforms = _dummies(policy, rollout, 2 * slots, top)
    # Nothing ends here, so that a dummy is seen for all its steps whatever its mates.
    endless = replace(policy, eos_ids=())
    first = list(range(slots))
    shifted = [i + slots * (i % 2) for i in (*first[1:], first[0])]
    known: dict[int, dict[str, bytes]] = {}
    for order in (first, first[::-1], shifted):
        logits = _Digests(slots)
        groups = generate(
            endless,
            [prompts[i] for i in order],
            uniforms[order],
            rollout,
            observer=logits.add,
        )
        computing = UnitGradients(policy, gradient)
        scored = [[ScoredGroup(_cut(g, lengths), _advantages(g))] for g in groups]
        said = computing.behaviour_logps(scored)
        vectors = computing.compute(scored)
        for index, group, (logps,), vector, digest in zip(
            order, groups, said, vectors, logits.read(), strict=True
        ):
            found = {
                "logits": digest,
                "completions": group.completion_ids.numpy().tobytes(),
                "log-probabilities": b"" if logps is None else logps.numpy().tobytes(),
                "gradient": vector.tobytes(),
            }
            _compare(known.setdefault(index, found), found)


class _Digests:
    """The bits of all logits that decided on a dummy's tokens, as one digest each."""

    def __init__(self, count: int) -> None:
        self._hashes = [hashlib.sha256() for _ in range(count)]

    def add(self, chosen: Sequence[int], logits: Tensor) -> None:
        """Take a step's logits, shape (N, G, V), of the dummies `chosen`."""
        # Not every dtype has a counterpart in numpy, and a byte does.
        bits = logits.contiguous().view(torch.uint8).cpu().numpy()
        for number, own in zip(chosen, bits, strict=True):
            self._hashes[number].update(own)

    def read(self) -> list[bytes]:
        return [found.digest() for found in self._hashes]


def _dummies(
    policy: Policy, settings: RolloutSettings, count: int, top: int
) -> tuple[list[list[int]], NDArray[np.float64]]:
    """Public prompts of many lengths but one shape, and public numbers."""
    generator = torch.Generator().manual_seed(_SEED)
    vocabulary = policy.network.config.get_text_config().vocab_size
    # All lengths that are padded to one shape, so that any two may be mates.
    spread = top - (top - 1) // WIDTH_STEP * WIDTH_STEP
    prompts = [
        torch.randint(vocabulary, (top - i % spread,), generator=generator).tolist()
        for i in range(count)
    ]
    shape = (count, settings.group_size, settings.max_tokens)
    uniforms = torch.rand(shape, generator=generator, dtype=torch.float64)
    return prompts, uniforms.numpy()


def _cut(group: Group, lengths: tuple[int, int]) -> Group:
    """The group with completions of these lengths in turn, as every other dummy's.

    Only groups of one width share a micro-batch, and where they ended by themselves
    they would hardly ever meet.
    """
    size, tokens = group.completion_mask.shape
    ends = torch.full((size, 1), lengths[0])
    ends[1::2] = lengths[1]
    return replace(group, completion_mask=torch.arange(tokens) < ends)


def _advantages(group: Group) -> NDArray[np.float64]:
    """Advantages that differ between completions and add up to nothing special."""
    return np.linspace(-1.0, 1.5, len(group.texts))


def _compare(known: dict[str, bytes], found: dict[str, bytes]) -> None:
    for what, bits in known.items():
        if found[what] != bits:
            raise ModelError(
                f"A unit's {what} changed with its place in the micro-batch on this "
                "machine.",
                "Set [machine] microbatch to 1: per-unit clipping needs units that do "
                "not touch each other.",
            )
