"""A probe at start-up: does every trained tensor get a gradient, and the right one?

A tensor that silently gets none is noised and charged all the same, and never learns.
Whether it gets one, and whether per-sample hooks see all that a layer does, depends on
how the model's author wrote the forward pass. So it is tried on made-up tokens, before
anything is charged: the gradients that a round would use are held against plain
backward passes over one text at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from fgrpo_secure.errors import FgrpoError, ModelError
from fgrpo_secure.grpo.adapter import (
    adapter_off,
    layers_of,
    trainable_names,
    trainable_tensors,
)
from fgrpo_secure.grpo.gradient import GradientSettings, ScoredGroup, UnitGradients
from fgrpo_secure.grpo.loss import group_loss
from fgrpo_secure.grpo.packing import Group, left_padded, padded_width
from fgrpo_secure.grpo.policy import Policy

_SEED = 20_240_502
_PROMPTS = (6, 4)
"""Tokens of the probe's prompts; both are padded to one width."""
_TOKENS = 4
"""Tokens of a completion at most."""
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
"""How far a tensor's gradient may be off, relative to its norm: rounding, not errors.

A token too many, too few or in a mate's place moves it by a good part of its norm.
"""
_COARSE = 0.1
"""The same where the base model computes in fewer bits."""
_NEGLIGIBLE = 1e-5
"""What may be off in any tensor, relative to the norm of the whole gradient."""
_UNUSED = (
    "Leave layers that the model's forward pass does not use, or reads without calling "
    "them, out of target_modules."
)


def verify_gradients(
    policy: Policy, settings: GradientSettings, max_prompt_tokens: int
) -> None:
    """Check that every trained tensor gets its gradient, on made-up tokens.

    Two groups are differentiated in a micro-batch as a round would do it (packed, or by
    rows, or both where the length of a prompt decides), with the adapter as it is. It
    costs a handful of passes over a few tokens, and nothing of the data is touched.

    Args:
        policy: What learns.
        settings: How to differentiate.
        max_prompt_tokens: Tokens of a prompt at most.

    Raises:
        ModelError: A trained tensor gets no gradient, one of exact zeros, one that is
            not finite, or another one than a plain backward pass gives it.

    Guarantee:
        A model of which a tensor cannot learn is refused before anything is charged.
    """
    slots = min(settings.microbatch_units, len(_PROMPTS))
    tokens = min(settings.loss.max_tokens, _TOKENS)
    chosen = replace(settings, microbatch_units=slots)
    items = _dummies(policy, tokens)
    wanted = [_one_by_one(policy, item, chosen) for item in items]
    for layout in _layouts(policy, settings.loss.max_tokens, max_prompt_tokens):
        vectors = _per_sample(layout, items, chosen)
        for vector, reference in zip(vectors, wanted, strict=True):
            _compare(policy, _parts(policy, vector), reference)


def _compare(policy: Policy, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Hold one unit's gradient against the plain one, tensor by tensor.

    Raises:
        ModelError: A tensor's is zero, not finite or another.
    """
    names = trainable_names(policy.model)
    pairs = list(zip(names, found, wanted, strict=True))
    _refuse(
        "gets a gradient that is not finite",
        [n for n, one, two in pairs if not (one + two).isfinite().all()],
        "Check the base model's weights, or choose another base model.",
    )
    _refuse(
        "gets no gradient, or one of zeros",
        [n for n, one, two in pairs if not (one.any() and two.any())],
        _UNUSED,
    )
    share = _TOLERANCE.get(policy.network.dtype, _COARSE)
    limit = _NEGLIGIBLE * float(torch.cat([two.flatten() for two in wanted]).norm())
    _refuse(
        "gets another gradient, unit by unit, than by a plain backward pass",
        [n for n, one, two in pairs if (one - two).norm() > limit + share * two.norm()],
        "Leave these layers out of target_modules, or choose another base model: "
        "clipping bounds nothing where a unit's gradient is not its own.",
    )


def _dummies(policy: Policy, tokens: int) -> list[ScoredGroup]:
    """Two public groups of one shape, of two completions each, one of them shorter."""
    generator = torch.Generator().manual_seed(_SEED)
    vocabulary = policy.network.config.get_text_config().vocab_size
    width = padded_width(max(_PROMPTS))
    items = []
    for number, length in enumerate(_PROMPTS):
        prompt = torch.randint(vocabulary, (length,), generator=generator)
        ids, mask = left_padded([prompt.tolist()], width, 1, policy.pad_id)
        ends = torch.tensor([[tokens], [max(1, tokens - 1 - number)]])
        group = Group(
            prompt_ids=ids[0],
            prompt_mask=mask[0],
            completion_ids=torch.randint(vocabulary, (2, tokens), generator=generator),
            completion_mask=torch.arange(tokens) < ends,
            texts=("", ""),
        )
        items.append(ScoredGroup(group, np.array([1.0, -0.5])))
    return items


def _layouts(
    policy: Policy, max_tokens: int, max_prompt_tokens: int
) -> Iterator[Policy]:
    """The policy in each layout that groups of a run may have."""
    widths = (padded_width(1), max_prompt_tokens)
    for packed in {policy.mask_dtype(n + max_tokens) is not None for n in widths}:
        yield policy if packed else replace(policy, takes_packed=False)


def _per_sample(
    policy: Policy, items: Sequence[ScoredGroup], settings: GradientSettings
) -> list[NDArray[np.float32]]:
    """The gradients that a round would use.

    Raises:
        ModelError: They cannot be computed.
    """
    try:
        return list(UnitGradients(policy, settings).compute([[i] for i in items]))
    except FgrpoError:
        raise
    # In a round an exception counts as the failure of a unit, and if all units fail,
    # every round is charged for noise alone.
    except Exception as error:
        raise ModelError(
            "The gradients of single units cannot be computed on this model "
            f"({type(error).__name__}).",
            "Name other target_modules, or choose another base model.",
        ) from error


def _one_by_one(
    policy: Policy, item: ScoredGroup, settings: GradientSettings
) -> list[Tensor]:
    """A group's gradient by tensor, float64, from passes over one text at a time.

    Raises:
        ModelError: The loss does not depend on a tensor.
    """
    reference = None
    if settings.loss.kl_coefficient > 0:
        with adapter_off(policy.model), torch.no_grad():
            reference = _plain_logps(policy, item.group, settings.temperature)
    logps = _plain_logps(policy, item.group, settings.temperature)
    loss = group_loss(
        logps,
        logps.detach(),
        item.group.completion_mask.to(logps.device),
        torch.from_numpy(item.advantages).to(logps),
        reference,
        settings=settings.loss,
    )
    tensors = trainable_tensors(policy.model)
    found: Sequence[Tensor | None] = [None] * len(tensors)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, tensors, allow_unused=True)
    pairs = list(zip(trainable_names(policy.model), found, strict=True))
    missing = [name for name, gradient in pairs if gradient is None]
    _refuse("gets no gradient", missing, _UNUSED)
    return [one.double().cpu() for _, one in pairs if one is not None]


def _plain_logps(policy: Policy, group: Group, temperature: float) -> Tensor:
    """Log-probabilities, shape (G, T), without padding, packing or mates."""
    prompt = group.prompt_ids[group.prompt_mask]
    size, tokens = group.completion_mask.shape
    rows = []
    for ids, mask in zip(group.completion_ids, group.completion_mask, strict=True):
        own = ids[mask].to(policy.device)
        text = torch.cat([prompt.to(policy.device), own])[None]
        logits = policy.network(input_ids=text, use_cache=False).logits[0]
        if logits.dtype != torch.float64:
            logits = logits.float()
        table = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        chosen = table.gather(-1, own[:, None])[:, 0]
        rows.append(pad(chosen, (0, tokens - len(own))))
    return torch.stack(rows).reshape(size, tokens)


def _parts(policy: Policy, vector: NDArray[np.float32]) -> list[Tensor]:
    """A flat gradient as float64 tensors of the trained tensors' shapes."""
    tensors = trainable_tensors(policy.model)
    flat = torch.from_numpy(vector).double().split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(flat, tensors, strict=True)]


def _refuse(what: str, names: Sequence[str], fix: str) -> None:
    """Refuse tensors, if there are any, by the names of their layers.

    Raises:
        ModelError: There are some.
    """
    if names:
        raise ModelError(f"The adapter of {layers_of(names)} {what}.", fix)
