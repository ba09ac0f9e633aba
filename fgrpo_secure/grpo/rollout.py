"""Generating completions, so that a unit's tokens depend on that unit alone.

A token is where the cumulated distribution passes a number from the unit's own random
stream, so a completion is a function of its prompt, the adapter and those numbers. A
shared generator would hand every later unit other numbers as soon as one is added.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.grpo.packing import (
    Group,
    left_padded,
    microbatches,
    padded_width,
    prompt_inputs,
    row_step_inputs,
    step_inputs,
)
from fgrpo_secure.grpo.policy import Policy


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How completions are generated. All but the last are constants of the plan.

    Attributes:
        group_size: Completions of one prompt, G, at least 2.
        max_tokens: Tokens of a completion at most, T.
        temperature: What the logits are divided by, above 0.
        top_p: Mass of the most likely tokens that are kept, in (0, 1].
        max_prompt_tokens: Longer prompts keep their last tokens.
        microbatch_units: Prompts that are generated for at once.
    """

    group_size: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    max_prompt_tokens: int = 256
    microbatch_units: int = 1

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            ConfigurationError: A setting is out of its range.
        """
        counts = {
            "group_size": (self.group_size, 2),
            "max_tokens": (self.max_tokens, 1),
            "max_prompt_tokens": (self.max_prompt_tokens, 1),
            "microbatch": (self.microbatch_units, 1),
        }
        for name, (value, least) in counts.items():
            if value < least:
                raise ConfigurationError(
                    f"{name} is {value}.", f"Set it to {least} or more."
                )
        if not 0 < self.temperature < float("inf"):
            raise ConfigurationError(
                f"The temperature is {self.temperature}.",
                "Set [grpo] temperature above 0: a group of equal answers teaches "
                "nothing.",
            )
        if not 0 < self.top_p <= 1:
            raise ConfigurationError(
                f"top_p is {self.top_p}.", "Set it above 0 and at most 1."
            )


def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    uniforms: NDArray[np.float64],
    settings: RolloutSettings,
    progress: Callable[[int], None] | None = None,
    observer: Callable[[Sequence[int], Tensor], None] | None = None,
) -> list[Group]:
    """Generate a group of completions for each prompt.

    Args:
        policy: What generates.
        prompts: U prompts as token ids, encoded before the draw.
        uniforms: shape (U, G, T), float64 in [0, 1), each unit's own.
        settings: How to generate.
        progress: Called with the number of prompts done since the last call.
        observer: Called before each token with the numbers of N prompts of one
            micro-batch and the logits that decide, shape (N, G, V).

    Returns:
        U groups in the order of the prompts.

    Guarantee:
        A unit's group is unchanged, bit for bit, when other units change, come, go or
        move, on a machine where `locality.verify_locality` passes.
    """
    size, tokens = settings.group_size, settings.max_tokens
    if uniforms.shape != (len(prompts), size, tokens):
        raise ValueError(f"uniforms has the shape {uniforms.shape}")
    cut = [prompt[-settings.max_prompt_tokens :] for prompt in prompts]
    widths = [padded_width(len(prompt), settings.max_prompt_tokens) for prompt in cut]
    groups: dict[int, Group] = {}
    for width, chosen in microbatches(widths, settings.microbatch_units):
        own = np.zeros((settings.microbatch_units, size, tokens))
        own[: len(chosen)] = uniforms[chosen]
        seen = None if observer is None else partial(observer, chosen)
        made = _microbatch(policy, [cut[i] for i in chosen], width, own, settings, seen)
        groups |= dict(zip(chosen, made, strict=True))
        if progress is not None:
            progress(len(chosen))
    return [groups[index] for index in range(len(prompts))]


@torch.no_grad()
def _microbatch(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    width: int,
    uniforms: NDArray[np.float64],
    settings: RolloutSettings,
    observer: Callable[[Tensor], None] | None,
) -> list[Group]:
    """Generate for at most one micro-batch of prompts of one width."""
    size, tokens = settings.group_size, settings.max_tokens
    dtype = policy.mask_dtype(width + tokens)
    # Attention takes another kernel when no row of a plain mask is padded, which would
    # depend on the mates; a column that is always padded rules that out.
    columns = width + (dtype is None)
    prompt_ids, prompt_mask = left_padded(
        prompts, columns, len(uniforms), policy.pad_id
    )
    device_mask = prompt_mask.to(policy.device)
    numbers = torch.from_numpy(uniforms).to(policy.device)
    eos = torch.tensor(policy.eos_ids, device=policy.device)
    ids = torch.full(
        uniforms.shape, policy.pad_id, dtype=torch.int64, device=policy.device
    )
    mask = torch.zeros_like(ids, dtype=torch.bool)
    ended = torch.zeros_like(ids[:, :, 0], dtype=torch.bool)
    ended[len(prompts) :] = True

    logits, cache = policy.forward(
        prompt_inputs(prompt_ids.to(policy.device), device_mask, dtype),
        1,
        use_cache=True,
    )
    logits = logits.expand(-1, size, -1)
    if dtype is None and cache is not None:
        cache.batch_repeat_interleave(size)
    going = torch.arange(size, device=policy.device)
    owners = going[:0]
    for step in range(tokens):
        if observer is not None:
            observer(logits[: len(prompts)])
        over = ended[:, going]
        chosen = _choose(logits, numbers[:, going, step], settings)
        ids[:, going, step] = chosen.masked_fill(over, policy.pad_id)
        mask[:, going, step] = ~over
        ended[:, going] = over | torch.isin(chosen, eos)
        if step == tokens - 1 or bool(ended.all()):
            break
        if dtype is not None and len(uniforms) == 1:
            # A unit that is alone has no mates whose numbers a change of shape could
            # move, so what has ended takes part no more.
            going = (~ended[0]).nonzero()[:, 0]
        last = ids[:, going, step]
        if dtype is None:
            inputs, keep = row_step_inputs(last, device_mask, step), 1
        else:
            owners = torch.cat([owners, going])
            inputs = step_inputs(last, device_mask, step, going, owners, dtype)
            keep = len(going)
        logits, cache = policy.forward(inputs, keep, cache, use_cache=True)
        logits = logits.reshape(len(uniforms), len(going), -1)

    ids, mask = ids[: len(prompts)].cpu(), mask[: len(prompts)].cpu()
    texts = policy.decode(ids.flatten(0, 1), mask.flatten(0, 1))
    return [
        Group(
            prompt_ids=prompt_ids[i],
            prompt_mask=prompt_mask[i],
            completion_ids=ids[i],
            completion_mask=mask[i],
            texts=tuple(texts[i * size : (i + 1) * size]),
        )
        for i in range(len(prompts))
    ]


def _choose(logits: Tensor, uniforms: Tensor, settings: RolloutSettings) -> Tensor:
    """Tokens where the cumulated distribution passes the given numbers.

    Args:
        logits: shape (B, G, V).
        uniforms: shape (B, G), float64 in [0, 1).
        settings: Temperature and top-p.

    Returns:
        Shape (B, G), int64.
    """
    weights = (logits.double() / settings.temperature).softmax(-1)
    order = None
    if settings.top_p < 1:
        weights, order = torch.sort(weights, dim=-1, descending=True, stable=True)
        before = weights.cumsum(-1) - weights
        weights = weights.masked_fill(before >= settings.top_p, 0)
    cumulated = weights.cumsum(-1)
    total = cumulated[..., -1:]
    passed = (cumulated <= uniforms[..., None] * total).sum(-1)
    # A number so close to 1 that the product rounds to the total takes the last token
    # that has any mass.
    chosen = torch.minimum(passed, (cumulated < total).sum(-1))
    if order is not None:
        chosen = order.gather(-1, chosen[..., None])[..., 0]
    return chosen
