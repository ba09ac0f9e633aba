"""What the server does with a round's mean gradient: free post-processing of the sum.

Both optimizers are functions of (state, gradient) and keep their state as plain arrays,
so that a checkpoint is a handful of tensors.

Source: Reddi et al., Adaptive Federated Optimization, ICLR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgrpo_secure.config import ServerSection

_EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """State after `steps` steps.

    Attributes:
        steps: how many steps were taken.
        first: shape (d,), float64, moving average of gradients.
        second: shape (d,), float64, moving average of squares (Adam only).
    """

    steps: int
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    @staticmethod
    def fresh(dimension: int) -> OptimizerState:
        """Before the first step."""
        return OptimizerState(0, np.zeros(dimension), np.zeros(dimension))


def step(
    settings: ServerSection,
    state: OptimizerState,
    parameters: NDArray[np.float32],
    gradient: NDArray[np.float64],
) -> tuple[OptimizerState, NDArray[np.float32]]:
    """Take one descent step.

    Args:
        settings: the `[server]` section.
        state: before.
        parameters: shape (d,), the adapter's trained numbers.
        gradient: shape (d,), the weighted mean of the clipped unit gradients, noised.

    Returns:
        The state after, and the new parameters.
    """
    steps = state.steps + 1
    if settings.optimizer == "sgd":
        first = settings.momentum * state.first + gradient
        moved = parameters - settings.learning_rate * first
        return OptimizerState(steps, first, state.second), moved.astype(np.float32)
    keep, keep_second = settings.betas
    first = keep * state.first + (1 - keep) * gradient
    second = keep_second * state.second + (1 - keep_second) * gradient**2
    unbiased = first / (1 - keep**steps)
    spread = np.sqrt(second / (1 - keep_second**steps))
    moved = parameters - settings.learning_rate * unbiased / (spread + _EPSILON)
    return OptimizerState(steps, first, second), moved.astype(np.float32)
