"""From one unit's gradient to the integer grid, with a norm that is checked exactly.

Everything before the check may be as inexact as floating point is; the sensitivity
rests on the integers alone. There is no sqrt(d) term for rounding and no argument
about how a device sums, because the rounded vector itself is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.errors import RefusalError
from privacy.plan import WEIGHT_ONE
from privacy.vectors import MAX_SQUARED_NORM, FloatVector, IntVector, squared_norm

_MAX_TRIES = 50
# Rounding can lift the norm over the bound again, so each shrink goes a little further.
_SHRINK = 1.0 - 1e-6
_PIECE = 2**15


def encode(
    gradient: NDArray[np.floating[Any]],
    *,
    scale: Fraction,
    norm_bound: int,
    weight: int,
) -> IntVector:
    """Clip one unit's gradient, weight it, and round it to the grid.

    A gradient that holds a NaN or an infinity becomes zeros, and so does one that
    cannot be brought under the bound. Raising instead would let one record decide
    whether the round aborts.

    Args:
        gradient: shape (d,), any float type, gradient units.
        scale: grid steps per gradient unit.
        norm_bound: the plan's bound in grid steps, for weight 1.
        weight: k of the weight k / 2**16, 0 < k <= 2**16.

    Returns:
        Shape (d,), int64, grid steps.

    Raises:
        ValueError: an argument other than the gradient's values is out of range.
        RefusalError: as `check_dimension`.

    Guarantee:
        Whatever the input, `squared_norm(result) <= D**2`, exactly, for
        D = norm_bound * weight // 2**16.

    Source: the exact check after rounding replaces Kairouz, Liu and Steinke, ICML
        2021, section 4.1 (conditional stochastic rounding).
    """
    if gradient.ndim != 1:
        msg = f"a unit's gradient is one flat vector, got {gradient.ndim} axes"
        raise ValueError(msg)
    if scale <= 0:
        msg = "the scale must be positive"
        raise ValueError(msg)
    check_weight(weight)
    check_dimension(gradient.size, norm_bound)
    bound = norm_bound * weight // WEIGHT_ONE
    peak = _peak(gradient)
    if not math.isfinite(peak):
        return np.zeros(gradient.size, np.int64)
    factor = float(scale) * (weight / WEIGHT_ONE)
    if peak * factor > bound:
        # No coordinate may exceed the bound, or its square would not fit into int64.
        # Dividing by the peak, not by the product, which may have overflowed.
        factor = bound / peak
    for _ in range(_MAX_TRIES):
        vector = _rounded(gradient, factor, bound)
        if vector is None:
            break
        squared = squared_norm(vector)
        if squared <= bound * bound:
            return vector
        factor *= bound / math.sqrt(squared) * _SHRINK
    return np.zeros(gradient.size, np.int64)


def _pieces(size: int) -> Iterator[slice]:
    """Parts of a vector that stay in the second-level cache while they are worked on.

    The arithmetic is that of whole arrays, without their memory.
    """
    for start in range(0, size, _PIECE):
        yield slice(start, start + _PIECE)


def _peak(gradient: NDArray[np.floating[Any]]) -> float:
    """The largest magnitude in float64; NaN or infinity where one is in the vector."""
    peaks = [
        np.max(np.abs(gradient[piece].astype(np.float64)))
        for piece in _pieces(gradient.size)
    ]
    return float(np.max(peaks, initial=0.0))


def _rounded(
    gradient: NDArray[np.floating[Any]], factor: float, bound: int
) -> IntVector | None:
    """The vector times a factor, to the nearest integers; None beyond the bound."""
    vector = np.empty(gradient.size, np.int64)
    for piece in _pieces(gradient.size):
        rounded = np.rint(gradient[piece].astype(np.float64) * factor)
        if np.max(np.abs(rounded)) > bound:
            return None
        vector[piece] = rounded
    return vector


def check_dimension(dimension: int, norm_bound: int) -> None:
    """Refuse sizes at which a sum of squares would not fit into int64.

    Args:
        dimension: d, how many parameters are trained.
        norm_bound: grid steps.

    Raises:
        RefusalError: d * norm_bound**2 is not below 2**62.
    """
    if dimension < 1 or norm_bound < 1:
        msg = "the dimension and the norm bound must be 1 or more: check the plan"
        raise RefusalError(msg)
    if dimension * norm_bound**2 >= MAX_SQUARED_NORM:
        msg = (
            f"{dimension} parameters with a norm bound of {norm_bound} grid steps do "
            "not fit exact 64-bit sums: lower the scale or train fewer parameters"
        )
        raise RefusalError(msg)


def check_weight(weight: int) -> None:
    """Refuse a weight that is not k / 2**16 with 0 < k <= 2**16.

    Raises:
        ValueError: out of range. A weight above 1 would raise the sensitivity.
    """
    if not 0 < weight <= WEIGHT_ONE:
        msg = f"a weight is 1 to {WEIGHT_ONE} of {WEIGHT_ONE} parts"
        raise ValueError(msg)


def weight_coordinate(weight: int, batch_share: int, steps: int = WEIGHT_ONE) -> int:
    """The exact last coordinate of a client's vector, by whose sum the server divides.

    It is post-processing of the noised statistic and carries no noise.

    Args:
        weight: k of the weight k / 2**16, 0 < k <= 2**16.
        batch_share: the client's public expected batch relative to the largest one,
            in 1 / 2**16 parts, 0 < share <= 2**16.
        steps: the parts of 1 that the plan sends it in, `Plan.weight_steps`.

    Returns:
        The product of the two in these parts, to the nearest integer, at least 1 and at
        most `steps`, so that all clients' together do not wrap.
    """
    check_weight(weight)
    check_weight(batch_share)
    whole = WEIGHT_ONE**2
    return max(1, (weight * batch_share * steps + whole // 2) // whole)


def weighted(total: IntVector, weight: int) -> IntVector:
    """Multiply what is already released by a weight, in integers.

    It is post-processing of noised vectors, so that nothing is bounded here: the noise
    shrinks with the rest.

    Args:
        total: shape (d,), int64, grid steps, below 2**46.
        weight: k of the weight k / 2**16, 0 < k <= 2**16.

    Returns:
        Shape (d,), int64: total * k / 2**16, to the nearest integer, ties upwards.
    """
    check_weight(weight)
    product: IntVector = total * np.int64(weight) + np.int64(WEIGHT_ONE // 2)
    return product >> np.int64(WEIGHT_ONE.bit_length() - 1)


def decode(total: IntVector | FloatVector, scale: Fraction) -> FloatVector:
    """From grid steps back to gradient units.

    Args:
        total: shape (d,), grid steps, already noised: this is post-processing.
        scale: grid steps per gradient unit.

    Returns:
        Shape (d,), float64.
    """
    return total.astype(np.float64) / float(scale)
