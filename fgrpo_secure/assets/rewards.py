"""The four reward functions of the embedded default, each with its own public range.

They have TRL's signature: prompts and completions in, one float for each completion
out, further columns of the data by keyword. A completion earns the top of its range if,
spaces around it aside, it is exactly the `answer`, and the bottom otherwise. The ranges
differ on purpose: clients of a federation rarely agree on a scale of reward.
"""

from __future__ import annotations

SUMS_RANGE = (0.0, 10.0)
SORT_RANGE = (0.0, 1.0)
COUNT_RANGE = (-1.0, 1.0)
SHIFT_RANGE = (-5.0, 0.0)


def sums(
    prompts: list[str],  # noqa: ARG001
    completions: list[str],
    *,
    answer: list[str],
    **columns: object,  # noqa: ARG001
) -> list[float | None]:
    """Reward right sums with 10, others with 0."""
    return _exact(completions, answer, SUMS_RANGE)


def sort(
    prompts: list[str],  # noqa: ARG001
    completions: list[str],
    *,
    answer: list[str],
    **columns: object,  # noqa: ARG001
) -> list[float | None]:
    """Reward right orders with 1, others with 0."""
    return _exact(completions, answer, SORT_RANGE)


def count(
    prompts: list[str],  # noqa: ARG001
    completions: list[str],
    *,
    answer: list[str],
    **columns: object,  # noqa: ARG001
) -> list[float | None]:
    """Reward right counts with 1, others with -1."""
    return _exact(completions, answer, COUNT_RANGE)


def shift(
    prompts: list[str],  # noqa: ARG001
    completions: list[str],
    *,
    answer: list[str],
    **columns: object,  # noqa: ARG001
) -> list[float | None]:
    """Reward right letters with 0, others with -5."""
    return _exact(completions, answer, SHIFT_RANGE)


def _exact(
    completions: list[str], answers: list[str], reward_range: tuple[float, float]
) -> list[float | None]:
    """Return the top of the range for each exact answer and the bottom for others."""
    bottom, top = reward_range
    return [
        top if completion.strip() == answer else bottom
        for completion, answer in zip(completions, answers, strict=True)
    ]
