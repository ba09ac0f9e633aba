"""How prompts and completions become tensors of a fixed shape.

A group is one prompt and its G completions. In the *packed* layout a group is one row
of the batch: the prompt once, then all completions end to end, under a mask that lets a
completion see the prompt and itself only. The prompt is computed once rather than G
times, short completions take no more room than they have tokens, and a row of the batch
is a whole group, so per-row gradients are already per-group gradients. In the *row*
layout every completion is a row of its own, for models that do not take a mask of four
axes.

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
from torch.nn.functional import pad

WIDTH_STEP = 8
"""Prompts are padded to a multiple of this many tokens, packed rows likewise.

It keeps the shapes few, so that units find mates of their own width. A multiple of 8 is
also what most kernels treat alike in every slot, but neither do all passes have one
(prompts that are cut at their limit, one new token of each completion, the logits), nor
is it known to suffice or to be needed: `locality` tries what the machine does.
"""

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


def padded_width(length: int, limit: int | None = None) -> int:
    """The width that `length` tokens are padded to, at most `limit`."""
    width = -(-max(length, 1) // WIDTH_STEP) * WIDTH_STEP
    return width if limit is None else min(width, limit)


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
    tokens: Tensor,
    prompt_mask: Tensor,
    step: int,
    going: Tensor,
    owners: Tensor,
    dtype: torch.dtype,
) -> ModelInputs:
    """The forward pass over one new token of each completion, packed, with a cache.

    The cache holds the prompt and then, step after step, a token of each completion
    that was going on; a completion sees the prompt and its own tokens.

    Args:
        tokens: shape (B, N), int64, the tokens number `step` (from 0) of completions.
        prompt_mask: shape (B, P), bool.
        step: How many tokens of each of these completions the cache holds already.
        going: shape (N,), int64, which completions of the groups these are.
        owners: shape (K,), int64, whose each token behind the prompt is, the new ones
            included.
        dtype: The dtype of the mask.
    """
    slots, count = tokens.shape
    positions = prompt_mask.sum(-1, keepdim=True).expand(-1, count) + step
    prompt = prompt_mask[:, None].expand(-1, count, -1)
    own = (going[:, None] == owners).expand(slots, -1, -1)
    return ModelInputs(tokens, additive(torch.cat([prompt, own], -1), dtype), positions)


def row_step_inputs(tokens: Tensor, prompt_mask: Tensor, step: int) -> ModelInputs:
    """The forward pass over one new token of every completion, by rows, with a cache.

    Args:
        tokens: shape (B, G), int64, the tokens number `step` (from 0) of completions.
        prompt_mask: shape (B, P), bool.
        step: How many tokens of each completion the cache holds already.
    """
    slots, size = tokens.shape
    positions = prompt_mask.sum(-1, keepdim=True).expand(-1, size) + step
    mask = prompt_mask.repeat_interleave(size, 0).long()
    mask = torch.cat([mask, mask.new_ones(slots * size, step + 1)], -1)
    return ModelInputs(tokens.reshape(-1, 1), mask, positions.reshape(-1, 1))


def row_inputs(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> ModelInputs:
    """The forward pass over whole groups in the row layout, without a cache.

    Args:
        prompt_ids: shape (B, P), int64.
        prompt_mask: shape (B, P), bool.
        completion_ids: shape (B, G, T), int64.
        completion_mask: shape (B, G, T), bool.

    Returns:
        Inputs of B G rows of P + T tokens.
    """
    slots, size, tokens = completion_ids.shape
    steps = torch.arange(tokens, device=prompt_ids.device)
    after = prompt_mask.sum(-1)[:, None, None] + steps.expand(slots, size, -1)
    parts = [
        (prompt_ids, completion_ids),
        (prompt_mask.long(), completion_mask.long()),
        (prompt_positions(prompt_mask), after),
    ]
    return ModelInputs(
        *(
            torch.cat([prompt.repeat_interleave(size, 0), completion.flatten(0, 1)], -1)
            for prompt, completion in parts
        )
    )


def packed_columns(completion_mask: Tensor) -> int:
    """How many tokens of a group's completions predict another: all but each last.

    Args:
        completion_mask: shape (G, T), bool.
    """
    return int(completion_mask[:, 1:].sum())


@dataclass(frozen=True, slots=True)
class Columns:
    """Which tokens of the completions stand behind the prompt in a packed row.

    The last token of a completion predicts nothing, so it has no column.

    Attributes:
        place: shape (B, C), int64, where a column's token lies among the G T of its
            group; 0 in a column that pads.
        present: shape (B, C), bool, false where a column pads.
        tokens: T.
    """

    place: Tensor
    present: Tensor
    tokens: int

    @staticmethod
    def of(completion_mask: Tensor, width: int) -> "Columns":
        """The columns of groups, each group's own first and padding behind.

        Args:
            completion_mask: shape (B, G, T), bool.
            width: C, at least `packed_columns` of each group.
        """
        predicts = torch.zeros_like(completion_mask)
        predicts[:, :, :-1] = completion_mask[:, :, 1:]
        flat = pad(predicts.flatten(1).long(), (0, width))
        place = flat.argsort(dim=-1, descending=True, stable=True)[:, :width]
        present = flat.gather(1, place).bool()
        tokens = completion_mask.shape[2]
        return Columns(place.masked_fill(~present, 0), present, tokens)


def packed_inputs(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    columns: Columns,
    dtype: torch.dtype,
) -> ModelInputs:
    """The forward pass over whole groups in the packed layout, without a cache.

    Args:
        prompt_ids: shape (B, P), int64.
        prompt_mask: shape (B, P), bool.
        completion_ids: shape (B, G, T), int64.
        columns: C of each group's G T tokens.
        dtype: The dtype of the mask.

    Returns:
        Inputs of B rows of P + C tokens.
    """
    group = columns.place.div(columns.tokens, rounding_mode="floor")
    step = columns.place - group * columns.tokens
    after = prompt_mask.sum(-1, keepdim=True) + step
    ids = torch.cat([prompt_ids, completion_ids.flatten(1).gather(1, columns.place)], 1)
    positions = torch.cat([prompt_positions(prompt_mask), after], 1)
    slots, width, length = *prompt_ids.shape, ids.shape[1]
    allowed = torch.zeros(
        (slots, length, length), dtype=torch.bool, device=prompt_ids.device
    )
    allowed[:, :width, :width] = _prompt_block(prompt_mask)
    allowed[:, width:, :width] = prompt_mask[:, None]
    allowed[:, width:, width:] = (
        (group[:, :, None] == group[:, None])
        & (step[:, :, None] >= step[:, None])
        & columns.present[:, None]
    )
    return ModelInputs(ids, additive(allowed, dtype), positions)


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
