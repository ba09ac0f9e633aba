"""Log-probabilities of completions, from the logits of either layout of `packing`."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

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
        Shape (B, G, T), float32.
    """
    ids = completion_ids.flatten(0, 1)
    rows = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    found: Tensor = ChosenLogps.apply(logits, rows, ids, temperature)
    return found.view_as(completion_ids)


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
        Shape (B, G, T), float32; zero where a completion has no token.
    """
    slots, size, tokens = completion_ids.shape
    flat = completion_ids.flatten(1)
    # A column predicts what follows it; padding's goes to a place that is cut off.
    behind = (columns.place + 1).masked_fill(~columns.present, size * tokens)
    following = flat.gather(1, behind.clamp(max=size * tokens - 1))
    # The prompt's last position predicts the first token of every completion.
    rows = torch.arange(1, logits.shape[1], device=flat.device)
    rows = torch.cat([rows.new_zeros(size), rows]).expand(slots, -1)
    chosen = torch.cat([completion_ids[:, :, 0], following], 1)
    starts = torch.arange(0, size * tokens, tokens, device=flat.device)
    places = torch.cat([starts.expand(slots, -1), behind], 1)
    table = torch.zeros(
        (slots, size * tokens + 1), dtype=torch.float32, device=flat.device
    )
    found = table.scatter(
        1, places, ChosenLogps.apply(logits, rows, chosen, temperature)
    )
    return found[:, :-1].unflatten(1, (size, tokens))


class ChosenLogps(torch.autograd.Function):
    """Log-probabilities of some tokens, without further tables as wide as the logits.

    A softmax over a large vocabulary is the widest table of a pass, and autograd would
    keep several. Here the backward pass makes its gradient, and nothing else of that
    size; what is in between is made for a few rows at a time.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: Tensor, rows: Tensor, ids: Tensor, temperature: float
    ) -> Tensor:
        """Look tokens up.

        Args:
            ctx: What the backward pass is told.
            logits: shape (B, L, V).
            rows: shape (B, K), int64, the row of the logits that predicts each token.
            ids: shape (B, K), int64, the tokens.
            temperature: What the logits are divided by.

        Returns:
            Shape (B, K), float32.
        """
        totals = torch.cat(
            [part.logsumexp(-1) for _, part in _scaled(logits, temperature)]
        ).view(logits.shape[:2])
        places = rows * logits.shape[2] + ids
        picked = logits.flatten(1).gather(1, places).float() / temperature
        ctx.save_for_backward(logits, rows, places)
        ctx.temperature = temperature
        return picked - totals.gather(1, rows)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient for the logits: each row's by itself."""
        logits, rows, places = ctx.saved_tensors
        gradient = gradient / ctx.temperature
        weights = gradient.new_zeros(logits.shape[:2]).scatter_add_(1, rows, gradient)
        weights = weights.view(-1, 1)
        made = torch.empty_like(logits, memory_format=torch.contiguous_format)
        flat = made.flatten(0, 1)
        for chosen, part in _scaled(logits, ctx.temperature):
            # A softmax goes row by row, whichever rows there are.
            flat[chosen] = part.softmax(-1).mul_(-weights[chosen])
        made.flatten(1).scatter_add_(1, places, gradient.to(made.dtype))
        return made, None, None, None


def _scaled(logits: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Float32 logits over the temperature, some rows at a time.

    Yields:
        Which of the B L rows, and their numbers, shape (rows, V).
    """
    flat = logits.flatten(0, -2)
    step = max(1, _TABLE // flat.shape[1])
    for start in range(0, len(flat), step):
        chosen = slice(start, start + step)
        part = flat[chosen].float()
        yield chosen, part if temperature == 1 else part / temperature
