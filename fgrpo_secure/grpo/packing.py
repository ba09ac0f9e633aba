"""How prompts and completions become tensors of a fixed shape.

A group is one prompt and its G completions. In the *packed* layout a group is one row
of the batch: the prompt once, then all completions, under a mask that lets a completion
see the prompt and itself only. The prompt is computed once rather than G times, and a
row of the batch is a whole group, so per-row gradients are already per-group gradients.
In the *row* layout every completion is a row of its own, for models that do not take a
mask of four axes.

Shapes never depend on batch mates. A micro-batch has a fixed number of slots, which
dummies fill up, and its width is a function of each group's own length: only groups of
one width share a micro-batch. Together with kernels that treat all slots alike (which
`locality` probes) this makes a group's numbers independent of its mates, bit for bit.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

WIDTH_STEP = 32
"""Prompts are padded to a multiple of this many tokens, completions likewise."""

Key = TypeVar("Key", bound=Hashable)

Message = Mapping[str, str]
"""A turn of a conversation: a role and its content."""

Prompt = str | tuple[Message, ...]
"""Plain text, or a conversation."""


@dataclass(frozen=True, slots=True)
class Group:
    """The completions that the policy generated for one prompt.

    Attributes:
        prompt_ids: shape (P,), int64, padded on the left.
        prompt_mask: shape (P,), bool, true where there is a real token.
        completion_ids: shape (G, T), int64, padded on the right.
        completion_mask: shape (G, T), bool, true up to and including the end token.
        texts: G completions as text, without special tokens.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """What one forward pass takes.

    Attributes:
        ids: shape (B, L), int64.
        mask: shape (B, 1, L, K) in the model's dtype, added to the attention scores
            (packed layout), or shape (B, K), int64, one for a real token (row layout).
        positions: shape (B, L), int64.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor


def padded_width(length: int, limit: int) -> int:
    """The width that `length` tokens are padded to, at most `limit`."""
    return min(-(-max(length, 1) // WIDTH_STEP) * WIDTH_STEP, limit)


def microbatches(keys: Sequence[Key], slots: int) -> Iterator[tuple[Key, list[int]]]:
    """Split items into micro-batches of one key and at most `slots` items each.

    Args:
        keys: The shape that each item asks for, a function of the item alone.
        slots: Items in a full micro-batch.

    Yields:
        The key and the indices of the items, full micro-batches first.
    """
    waiting: dict[Key, list[int]] = {}
    for index, key in enumerate(keys):
        queue = waiting.setdefault(key, [])
        queue.append(index)
        if len(queue) == slots:
            yield key, waiting.pop(key)
    yield from waiting.items()


def left_padded(
    prompts: Sequence[Sequence[int]], width: int, slots: int, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Prompts at the right edge of a table, with dummies in the slots that are left.

    A prompt that is longer than the table keeps its last tokens. A dummy is a single
    padding token that counts as real, so that no row is without anything to attend to.

    Returns:
        Token ids, shape (slots, width), int64, and the mask of real tokens, bool.
    """
    ids = torch.full((slots, width), pad_id, dtype=torch.int64)
    mask = torch.zeros((slots, width), dtype=torch.bool)
    mask[:, -1] = True
    for slot, prompt in enumerate(prompts):
        kept = torch.as_tensor(prompt[-width:], dtype=torch.int64)
        ids[slot, width - len(kept) :] = kept
        mask[slot, width - len(kept) :] = True
    return ids, mask


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of what may be attended to, as numbers to add to attention scores.

    Args:
        allowed: shape (B, L, K), bool.
        dtype: The dtype of the model's attention scores.

    Returns:
        Shape (B, 1, L, K): zero where allowed, the least finite number elsewhere.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def prompt_positions(prompt_mask: Tensor) -> Tensor:
    """Positions of left-padded prompts, counted from the first real token."""
    return (prompt_mask.cumsum(-1) - 1).clamp_(min=0)


def prompt_inputs(ids: Tensor, mask: Tensor, dtype: torch.dtype | None) -> ModelInputs:
    """The forward pass over prompts alone.

    Args:
        ids: shape (B, P), int64.
        mask: shape (B, P), bool.
        dtype: The dtype of a packed mask, or None for the row layout.
    """
    positions = prompt_positions(mask)
    if dtype is None:
        return ModelInputs(ids, mask.long(), positions)
    return ModelInputs(ids, additive(_prompt_block(mask), dtype), positions)


def step_inputs(
    tokens: Tensor, prompt_mask: Tensor, step: int, dtype: torch.dtype | None
) -> ModelInputs:
    """The forward pass over one new token of every completion, with a cache.

    Packed, the cache holds the prompt and then, step after step, one token of each
    completion; a completion sees every G-th of them.

    Args:
        tokens: shape (B, G), int64, the tokens number `step` (from 0) of completions.
        prompt_mask: shape (B, P), bool.
        step: How many tokens of each completion the cache holds already.
        dtype: The dtype of a packed mask, or None for the row layout.
    """
    slots, size = tokens.shape
    positions = prompt_mask.sum(-1, keepdim=True).expand(-1, size) + step
    if dtype is None:
        mask = prompt_mask.repeat_interleave(size, 0).long()
        mask = torch.cat([mask, mask.new_ones(slots * size, step + 1)], -1)
        return ModelInputs(tokens.reshape(-1, 1), mask, positions.reshape(-1, 1))
    own = torch.eye(size, dtype=torch.bool, device=tokens.device).repeat(1, step + 1)
    prompt = prompt_mask[:, None].expand(-1, size, -1)
    allowed = torch.cat([prompt, own.expand(slots, -1, -1)], -1)
    return ModelInputs(tokens, additive(allowed, dtype), positions)


def group_inputs(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    dtype: torch.dtype | None,
) -> ModelInputs:
    """The forward pass over whole groups, without a cache.

    Args:
        prompt_ids: shape (B, P), int64.
        prompt_mask: shape (B, P), bool.
        completion_ids: shape (B, G, T), int64.
        completion_mask: shape (B, G, T), bool.
        dtype: The dtype of a packed mask, or None for the row layout.

    Returns:
        Inputs of B rows of P + G T tokens (packed) or of B G rows of P + T tokens.
    """
    slots, size, tokens = completion_ids.shape
    steps = torch.arange(tokens, device=prompt_ids.device)
    after = prompt_mask.sum(-1)[:, None, None] + steps.expand(slots, size, -1)
    before = prompt_positions(prompt_mask)
    if dtype is None:
        parts = [
            (prompt_ids, completion_ids),
            (prompt_mask.long(), completion_mask.long()),
            (before, after),
        ]
        ids, mask, positions = (
            torch.cat([prompt.repeat_interleave(size, 0), completion.flatten(0, 1)], -1)
            for prompt, completion in parts
        )
        return ModelInputs(ids, mask, positions)
    ids = torch.cat([prompt_ids, completion_ids.flatten(1)], -1)
    positions = torch.cat([before, after.flatten(1)], -1)
    width, length = prompt_ids.shape[1], ids.shape[1]
    allowed = torch.zeros(
        (slots, length, length), dtype=torch.bool, device=prompt_ids.device
    )
    allowed[:, :width, :width] = _prompt_block(prompt_mask)
    allowed[:, width:, :width] = prompt_mask[:, None]
    own = torch.eye(size, dtype=torch.bool, device=prompt_ids.device)
    past = steps[:, None] >= steps
    allowed[:, width:, width:] = (own[:, None, :, None] & past[:, None]).reshape(
        size * tokens, size * tokens
    )
    return ModelInputs(ids, additive(allowed, dtype), positions)


def completion_logps(
    logits: Tensor, completion_ids: Tensor, temperature: float, *, packed: bool
) -> Tensor:
    """Log-probabilities of the completions' tokens.

    Args:
        logits: The last G T + 1 positions of packed rows, shape (B, G T + 1, V), or the
            last T + 1 positions of single rows, shape (B G, T + 1, V).
        completion_ids: shape (B, G, T), int64.
        temperature: What the logits are divided by, as while generating.
        packed: Which layout the logits are in.

    Returns:
        Shape (B, G, T), float32.
    """
    slots, size, tokens = completion_ids.shape
    logits = logits.float() / temperature
    if not packed:
        rows = logits[:, :-1].reshape(slots, size, tokens, -1)
        return _chosen(rows, completion_ids)
    # The prompt's last position predicts the first token of every completion.
    first = logits[:, :1].expand(-1, size, -1)
    rest = logits[:, 1:].reshape(slots, size, tokens, -1)[:, :, :-1]
    return torch.cat(
        [
            _chosen(first, completion_ids[:, :, 0])[:, :, None],
            _chosen(rest, completion_ids[:, :, 1:]),
        ],
        -1,
    )


def _chosen(logits: Tensor, ids: Tensor) -> Tensor:
    picked = logits.gather(-1, ids[..., None])[..., 0]
    return picked - logits.logsumexp(-1)


def _prompt_block(mask: Tensor) -> Tensor:
    """Who sees whom within left-padded prompts, shape (B, P, P), bool.

    Padding sees itself: a row without anything to attend to would become NaN.
    """
    width = mask.shape[1]
    steps = torch.arange(width, device=mask.device)
    causal = steps[:, None] >= steps
    return (causal & mask[:, None]) | torch.eye(
        width, dtype=torch.bool, device=mask.device
    )
