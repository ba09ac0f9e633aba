"""Log-probabilities of completions, from the logits of either layout of `packing`."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import pad

from fgrpo_secure.grpo.packing import Columns

_TABLE = 2**21
"""Numbers of logits that are worked on at a time."""


def row_logps(logits: Tensor, completion_ids: Tensor, temperature: float) -> Tensor:
    """Log-probabilities of the completions' tokens, in the row layout.

    Args:
        logits: The last T + 1 positions of `row_inputs`, shape (B G, T + 1, V).
        completion_ids: shape (B, G, T), int64.
        temperature: What the logits are divided by, as while generating.

    Returns:
        Shape (B, G, T), float32; float64 of logits in float64.
    """
    ids = completion_ids.flatten(0, 1)
    # The last position predicts a token that is not there; any will do.
    following = pad(ids[:, 1:], (0, 1))
    found: Tensor = ChosenLogps.apply(logits, ids[:, :1], following, temperature)
    return found[:, :-1].reshape(completion_ids.shape)


def packed_logps(
    logits: Tensor, completion_ids: Tensor, columns: Columns, temperature: float
) -> Tensor:
    """Log-probabilities of the completions' tokens, in the packed layout.

    Args:
        logits: The last C + 1 positions of `packed_inputs`, shape (B, C + 1, V).
        completion_ids: shape (B, G, T), int64.
        columns: As for `packed_inputs`.
        temperature: What the logits are divided by, as while generating.

    Returns:
        Shape (B, G, T), of the dtype of `row_logps`. Zero where a completion has no
        token, but for its first place, where what stands there is looked up also if it
        is padding.
    """
    slots, size, tokens = completion_ids.shape
    # A column predicts what follows it; padding's goes to a place that is cut off.
    behind = (columns.place + 1).masked_fill(~columns.present, size * tokens)
    following = completion_ids.flatten(1).gather(1, behind.clamp(max=size * tokens - 1))
    # The prompt's last position predicts the first token of every completion.
    found = ChosenLogps.apply(logits, completion_ids[:, :, 0], following, temperature)
    starts = torch.arange(0, size * tokens, tokens, device=behind.device)
    places = torch.cat([starts.expand(slots, -1), behind], 1)
    table = torch.zeros(
        (slots, size * tokens + 1), dtype=found.dtype, device=behind.device
    )
    return table.scatter(1, places, found)[:, :-1].unflatten(1, (size, tokens))


class ChosenLogps(torch.autograd.Function):
    """Log-probabilities of some tokens, without further tables as wide as the logits.

    A softmax over a large vocabulary is the widest table of a pass, and autograd would
    keep several. Here the backward pass makes its gradient, and nothing else of that
    size; what is in between is made for a few rows at a time, in float32 at least.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        logits: Tensor,
        first: Tensor,
        following: Tensor,
        temperature: float,
    ) -> Tensor:
        """Look tokens up.

        Args:
            ctx: What the backward pass is told.
            logits: shape (B, L, V).
            first: shape (B, N), int64, tokens that the first row predicts, N >= 1.
            following: shape (B, L - 1), int64, the token that each other row predicts.
            temperature: What the logits are divided by.

        Returns:
            Shape (B, N + L - 1), float32 (float64 of logits in float64), in the order
            of the tokens.
        """
        totals = torch.cat(
            [part.logsumexp(-1) for _, part in _scaled(logits, temperature)], 1
        )
        picked = torch.cat(
            [
                logits[:, 0].gather(1, first),
                logits[:, 1:].gather(2, following[:, :, None])[:, :, 0],
            ],
            1,
        )
        ctx.save_for_backward(logits, first, following)
        ctx.temperature = temperature
        rows = [totals[:, :1].expand_as(first), totals[:, 1:]]
        return _at_least_float32(picked) / temperature - torch.cat(rows, 1)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient for the logits: each row's by itself, and in a fixed order.

        No addition here meets two addends for one place at once: a GPU would add them
        in an order of its own each time.
        """
        logits, first, following = ctx.saved_tensors
        size = first.shape[1]
        heads, tails = (gradient / ctx.temperature).split([size, following.shape[1]], 1)
        weights = torch.cat([heads.sum(-1, keepdim=True), tails], 1)
        # One token of each row, and then what else the first row predicts.
        ids = torch.cat([first[:, :1], following], 1)[:, :, None]
        gains = torch.cat([heads[:, :1], tails], 1)[:, :, None]
        made = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for rows, part in _scaled(logits, ctx.temperature):
            # The difference is taken before it is rounded to the dtype of the logits:
            # for a likely token it is that of two numbers that are almost equal.
            slopes = part.softmax(-1).mul_(-weights[:, rows, None])
            slopes.scatter_add_(2, ids[:, rows], gains[:, rows])
            if rows.start == 0:
                for n in range(1, size):
                    slopes[:, 0].scatter_add_(1, first[:, n, None], heads[:, n, None])
            made[:, rows] = slopes
        return made, None, None, None


def _scaled(logits: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Logits over the temperature, some rows of every slot at a time.

    All slots are cut alike. Torch shares the work on one part among its threads by the
    part's shape, and would round a slot differently whose rows were a part by
    themselves.

    Yields:
        Which of the L rows, and their numbers, shape (B, rows, V), float32 at least.
    """
    slots, length, vocabulary = logits.shape
    step = max(1, _TABLE // (slots * vocabulary))
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        part = _at_least_float32(logits[:, rows])
        yield rows, part if temperature == 1 else part / temperature


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
