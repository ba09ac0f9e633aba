"""Rewards of the four SmolLM2 tasks: the top of a public range, or its bottom.

A completion is right if it is the answer and nothing else, white space around it
aside. The scorer that comes with reasoning-gym is not used: it gives part of the
points to a text that merely contains the answer, which a policy soon exploits.
The ranges differ on purpose: clients of a federation rarely agree on a scale.
"""

from __future__ import annotations

from collections.abc import Sequence

Completion = str | Sequence[dict[str, str]]
"""Plain text, or in a conversation a list with the assistant's message."""

CHAIN_SUM_RANGE = (0.0, 1.0)
GCD_RANGE = (0.0, 10.0)
LETTER_COUNTING_RANGE = (-1.0, 1.0)
SYLLOGISM_RANGE = (-5.0, 0.0)


def chain_sum(
    completions: Sequence[Completion],
    *,
    answer: Sequence[str],
    **columns: object,  # noqa: ARG001
) -> list[float | None]:
    """Reward right sums with 1, others with 0."""
    return _exact(completions, answer, CHAIN_SUM_RANGE)


def gcd(
    completions: Sequence[Completion],
    *,
    answer: Sequence[str],
    **columns: object,  # noqa: ARG001
) -> list[float | None]:
    """Reward right divisors with 10, others with 0."""
    return _exact(completions, answer, GCD_RANGE)


def letter_counting(
    completions: Sequence[Completion],
    *,
    answer: Sequence[str],
    **columns: object,  # noqa: ARG001
) -> list[float | None]:
    """Reward right counts with 1, others with -1."""
    return _exact(completions, answer, LETTER_COUNTING_RANGE)


def syllogism(
    completions: Sequence[Completion],
    *,
    answer: Sequence[str],
    **columns: object,  # noqa: ARG001
) -> list[float | None]:
    """Reward right verdicts with 0, others with -5."""
    return _exact(completions, answer, SYLLOGISM_RANGE)


def _exact(
    completions: Sequence[Completion],
    answers: Sequence[str],
    reward_range: tuple[float, float],
) -> list[float | None]:
    """The top of the range for each exact answer and the bottom for others."""
    bottom, top = reward_range
    return [
        top if _text(completion).strip() == expected else bottom
        for completion, expected in zip(completions, answers, strict=True)
    ]


def _text(completion: Completion) -> str:
    if isinstance(completion, str):
        return completion
    return completion[-1]["content"]
