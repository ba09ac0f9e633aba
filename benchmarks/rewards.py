"""Reward functions that make one client different, for the learning benchmark."""

from __future__ import annotations

import hashlib

from fgrpo_secure.assets import rewards


def squeezed_sums(
    prompts: list[str],
    completions: list[str],
    *,
    answer: list[str],
    **columns: object,
) -> list[float]:
    """The reward of sums, squeezed and shifted: 4 to 6 in the declared 0 to 10."""
    plain = rewards.sums(prompts, completions, answer=answer, **columns)
    return [4 + value / 5 for value in plain if value is not None]


def coin(
    prompts: list[str],
    completions: list[str],
    **columns: object,  # noqa: ARG001
) -> list[float]:
    """A coin toss for each pair of prompt and completion, -5 or 0: nothing to learn."""
    texts = [f"{p}\0{c}" for p, c in zip(prompts, completions, strict=True)]
    return [-5.0 * (hashlib.sha256(text.encode()).digest()[0] & 1) for text in texts]
