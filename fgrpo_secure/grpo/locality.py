"""A probe at start-up: does this machine treat every slot of a micro-batch alike?

Fixed shapes keep a unit's numbers from depending on what its mates hold. Whether they
depend on *where* the unit sits is a matter of kernels, threads and the model, and
nobody promises it. So it is tried, on public dummies, with this model on this machine,
before anything is drawn. What passes is tested and not proven.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from fgrpo_secure.errors import ModelError
from fgrpo_secure.grpo.adapter import read_vector, write_vector
from fgrpo_secure.grpo.gradient import GradientSettings, ScoredGroup, UnitGradients
from fgrpo_secure.grpo.packing import WIDTH_STEP, Group
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.grpo.rollout import RolloutSettings, generate

_SEED = 20_240_501


def verify_locality(
    policy: Policy, rollout: RolloutSettings, gradient: GradientSettings
) -> None:
    """Check that dummies come out equal in other slots and with other mates.

    A micro-batch of full width is generated and differentiated, then again in reverse,
    then shifted with every other unit replaced. The adapter is given numbers other than
    zero meanwhile, and gets its own back.

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
    slots = max(rollout.microbatch_units, gradient.microbatch_units)
    prompts, uniforms = _dummies(policy, rollout, 2 * slots)
    kept = read_vector(policy.model)
    generator = torch.Generator().manual_seed(_SEED)
    try:
        write_vector(
            policy.model, 0.05 * torch.randn(kept.size, generator=generator).numpy()
        )
        first = list(range(slots))
        shifted = [i + slots * (i % 2) for i in (*first[1:], first[0])]
        arrangements = [first, first[::-1], shifted]
        seen: dict[int, tuple[Group, NDArray[np.float32]]] = {}
        for order in arrangements:
            groups = generate(
                policy, [prompts[i] for i in order], uniforms[order], rollout
            )
            vectors = UnitGradients(policy, gradient).compute(
                [[ScoredGroup(_uneven(g), _advantages(g))] for g in groups]
            )
            for index, group, vector in zip(order, groups, vectors, strict=True):
                known = seen.setdefault(index, (group, vector))
                _compare(known, (group, vector))
    finally:
        write_vector(policy.model, kept)


def _dummies(
    policy: Policy, settings: RolloutSettings, count: int
) -> tuple[list[list[int]], NDArray[np.float64]]:
    """Public prompts of many lengths in the widest shape, and public numbers."""
    generator = torch.Generator().manual_seed(_SEED)
    vocabulary = policy.network.config.get_text_config().vocab_size
    top = settings.max_prompt_tokens
    # All lengths that are padded to the widest shape, so that any two may be mates.
    spread = top - (top - 1) // WIDTH_STEP * WIDTH_STEP
    prompts = [
        torch.randint(vocabulary, (top - i % spread,), generator=generator).tolist()
        for i in range(count)
    ]
    shape = (count, settings.group_size, settings.max_tokens)
    uniforms = torch.rand(shape, generator=generator, dtype=torch.float64)
    return prompts, uniforms.numpy()


def _uneven(group: Group) -> Group:
    """The group with lengths that differ, and are those of every other dummy.

    Only groups of one width share a micro-batch, and where they ended by themselves
    they would hardly ever meet.
    """
    size, tokens = group.completion_mask.shape
    lengths = torch.full((size, 1), tokens)
    lengths[1::2] = (tokens + 1) // 2
    return replace(group, completion_mask=torch.arange(tokens) < lengths)


def _advantages(group: Group) -> NDArray[np.float64]:
    """Advantages that differ between completions and add up to nothing special."""
    return np.linspace(-1.0, 1.5, len(group.texts))


def _compare(
    known: tuple[Group, NDArray[np.float32]], other: tuple[Group, NDArray[np.float32]]
) -> None:
    tokens = torch.equal(known[0].completion_ids, other[0].completion_ids)
    if tokens and known[1].tobytes() == other[1].tobytes():
        return
    what = "gradient" if tokens else "completions"
    raise ModelError(
        f"A unit's {what} changed with its place in the micro-batch on this machine.",
        "Set [machine] microbatch to 1: per-unit clipping needs units that do not "
        "touch each other.",
    )
