"""The one number that a client learns of a draw's rewards: their noised mean.

It never leaves the client. It is noised all the same, because the aggregation weight
that the others see is made from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

from privacy.noise import discrete_gaussian
from privacy.randomness import RandomStream


def noised_mean(
    values: Iterable[float | None],
    *,
    norm_bound: int,
    variance: int | None,
    expected_batch: Fraction,
    stream: RandomStream,
) -> float:
    """The mean reward of a draw with integer noise, over the public expected batch.

    The realised size of the draw takes no part: it is private. A value that is
    missing or not a number counts as 0 and does not raise, so that no record decides
    whether a round aborts.

    Args:
        values: one for each drawn unit, centred, in [-1, 1]; what lies outside is
            clipped, None and NaN are 0.
        norm_bound: grid steps that stand for 1.
        variance: of the noise, grid steps squared, 1 to 2**52; None in a plan that
            promises nothing, and nowhere else.
        expected_batch: sampling rate times the registered number of units, positive.
        stream: fresh, secret randomness.

    Returns:
        (sum of rint(value * norm_bound) + noise) / (norm_bound * expected_batch).

    Raises:
        ValueError: an argument other than the values is out of range.

    Guarantee:
        One unit more or less moves the sum by at most `norm_bound`, exactly.
    """
    if norm_bound < 1 or expected_batch <= 0:
        msg = "the norm bound and the expected batch must be positive"
        raise ValueError(msg)
    total = sum(_to_grid(value, norm_bound) for value in values)
    if variance is not None:
        total += int(discrete_gaussian(stream, variance, 1)[0])
    return float(Fraction(total) / (norm_bound * expected_batch))


def _to_grid(value: float | None, norm_bound: int) -> int:
    """Clip to [-1, 1] and round to the grid, ties to even."""
    if value is None or math.isnan(value):
        return 0
    # Clipped before the product: then |result| <= norm_bound in integers.
    return round(max(-1.0, min(1.0, value)) * norm_bound)
