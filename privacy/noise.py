"""Exact discrete Gaussian noise.

The sampler is that of Canonne, Kamath and Steinke (NeurIPS 2020), their algorithms 1
to 3, vectorised. Floats only pre-sort its coin flips: a flip that lies within 2**-48
of its threshold, far more than the arithmetic can err, is decided again with integers
and as many further bits as that takes. For uniform bits the law is the discrete
Gaussian, not one near it.

Running time depends on the values drawn. A caller must not let others observe it:
messages leave at the times that the plan fixes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.plan import MAX_NOISE_VARIANCE
from privacy.randomness import RandomStream
from privacy.vectors import FloatVector, IntVector

_WORD_BITS: Final = 64
_COIN_BITS: Final = 53
# The errors of the exponent and of exp together stay below 2**-49: the exponent is
# exact to 6 * 2**-53 relative, which moves exp(-x) by at most 6 / e * 2**-53, and
# library exponentials err by a few units in the last place.
_MARGIN: Final = 2.0**-48

# Candidates are made in pieces that stay in the cache.
_CHUNK: Final = 2**15
# About 0.48 of the candidates are kept; a little less, so that one pass suffices.
_KEPT: Final = 0.45
_SPARE: Final = 32


def discrete_gaussian(stream: RandomStream, variance: int, count: int) -> IntVector:
    """Draw from N_Z(0, variance): P(y) proportional to exp(-y**2 / (2 * variance)).

    Args:
        stream: fresh, secret randomness that dies with the round.
        variance: sigma**2 in grid steps squared, 1 to 2**52.
        count: how many.

    Returns:
        Shape (count,), int64, grid steps, independent.

    Raises:
        ValueError: the variance or the count is out of range.

    Guarantee:
        For uniform bits the statistical distance to the discrete Gaussian is zero,
        up to an event of probability below 2**-2900 (an int64 overflow).

    Source: Canonne, Kamath and Steinke, arXiv 2004.00010, algorithms 1 to 3.
    """
    if not 1 <= variance <= MAX_NOISE_VARIANCE:
        msg = f"a noise variance is 1 to 2**52, got {variance}"
        raise ValueError(msg)
    if count < 0:
        msg = f"cannot draw {count} values"
        raise ValueError(msg)
    # The bits that decide close calls come from a stream of their own, so that the
    # vectorised path reads the same words whether or not there are any.
    tie_breaker = RandomStream(stream.bytes)
    result = np.empty(count, np.int64)
    filled = 0
    while filled < count:
        wanted = count - filled
        candidates = min(_CHUNK, math.ceil(wanted / _KEPT) + _SPARE)
        kept = _accepted(stream, tie_breaker, variance, candidates)[:wanted]
        result[filled : filled + kept.size] = kept
        filled += kept.size
    return result


def _accepted(
    stream: RandomStream, tie_breaker: RandomStream, variance: int, candidates: int
) -> IntVector:
    """Algorithm 3: discrete Laplace candidates, thinned to the discrete Gaussian."""
    scale = math.isqrt(variance) + 1
    uniform = _uniform_below(stream, scale, candidates)
    coins = stream.uint64(uniform.size)

    def uniform_exponent(index: int) -> tuple[int, int]:
        return int(uniform[index]), scale

    kept = _bernoulli_exp(coins, uniform / scale, uniform_exponent, tie_breaker)
    # The lowest bit of a coin takes no part in its comparison: it is a fair sign.
    negative = (coins[kept] & np.uint64(1)).astype(bool)
    magnitude = uniform[kept]
    magnitude += scale * _geometric(stream, tie_breaker, magnitude.size)
    # Zero has two signs and may count once.
    once = ~(negative & (magnitude == 0))
    negative, magnitude = negative[once], magnitude[once]
    # |X| * scale - variance, exact: below 2048 * 2**52 in absolute value.
    offset = magnitude * scale - variance
    denominator = 2 * variance * scale**2

    def gaussian_exponent(index: int) -> tuple[int, int]:
        return int(offset[index]) ** 2, denominator

    exponent = np.square(offset.astype(np.float64)) / float(denominator)
    coins = stream.uint64(magnitude.size)
    kept = _bernoulli_exp(coins, exponent, gaussian_exponent, tie_breaker)
    magnitude, negative = magnitude[kept], negative[kept]
    signed: IntVector = np.where(negative, -magnitude, magnitude)
    return signed


def _uniform_below(stream: RandomStream, limit: int, candidates: int) -> IntVector:
    """Uniform integers below `limit`; words that would favour some are dropped."""
    words = stream.uint64(candidates)
    last = 2**_WORD_BITS // limit * limit - 1
    words = words[words <= np.uint64(last)]
    quotient = words // np.uint64(limit)
    return (words - quotient * np.uint64(limit)).astype(np.int64)


def _bernoulli_exp(
    coins: NDArray[np.uint64],
    exponent: FloatVector,
    exact_exponent: Callable[[int], tuple[int, int]],
    tie_breaker: RandomStream,
) -> NDArray[np.bool_]:
    """Flip coins with probabilities exp(-exponent); use the top 53 bits of each.

    Args:
        coins: shape (m,), uniform words.
        exponent: shape (m,), the exponents in floating point.
        exact_exponent: index to exact numerator and denominator.
        tie_breaker: where further bits of a close call come from.

    Returns:
        Shape (m,), True with the probability asked for.
    """
    prefix = coins >> np.uint64(_WORD_BITS - _COIN_BITS)
    gap = np.exp(-exponent) - prefix.astype(np.float64) * 2.0**-_COIN_BITS
    heads = gap > 0
    for index in np.flatnonzero(np.abs(gap) < _MARGIN).tolist():
        numerator, denominator = exact_exponent(index)
        heads[index] = _is_below_exp(
            int(prefix[index]), _COIN_BITS, numerator, denominator, tie_breaker
        )
    return heads


def _is_below_exp(
    prefix: int, bits: int, numerator: int, denominator: int, more: RandomStream
) -> bool:
    """Whether a uniform real that starts with `prefix` is below exp(-n/d)."""
    while True:
        verdict = _compare_exp(prefix, bits, numerator, denominator)
        if verdict is not None:
            return verdict
        prefix, bits = _extend(prefix, bits, more)


def _compare_exp(
    prefix: int, bits: int, numerator: int, denominator: int
) -> bool | None:
    """Compare [prefix, prefix + 1) / 2**bits with exp(-n/d); None if it straddles."""
    if numerator == 0:
        return True
    # The exponent x is below 2**24 and x * exp(-x) below 1, so that with this many
    # digits the scaled exponential errs by less than 1e-9.
    context = Context(prec=bits * 302 // 1000 + 20, Emin=-(10**8), Emax=10**8)
    exponent = context.divide(Decimal(-numerator), Decimal(denominator))
    scaled = int(context.multiply(context.exp(exponent), Decimal(2**bits)))
    if prefix + 1 < scaled:
        return True
    if prefix > scaled + 1:
        return False
    return None


def _extend(prefix: int, bits: int, more: RandomStream) -> tuple[int, int]:
    """Append the next 64 bits to the binary expansion of a uniform real."""
    word = int.from_bytes(more.bytes(8), "big")
    return (prefix << _WORD_BITS) | word, bits + _WORD_BITS


def _geometric(
    stream: RandomStream, tie_breaker: RandomStream, count: int
) -> IntVector:
    """Draw V with P(V >= k) = exp(-k) by inversion of one uniform real each.

    V is how many of exp(-1), exp(-2), ... the real lies below. Its first 64 bits
    decide, unless they equal those of a threshold.
    """
    words = stream.uint64(count)
    below = np.searchsorted(_ASCENDING, words, side="right")
    values = (_ASCENDING.size - below).astype(np.int64)
    # The greatest threshold that is not above the word is the only one it may equal.
    for index in np.flatnonzero(_ASCENDING[below - 1] == words):
        prefix, bits, level = int(words[index]), _WORD_BITS, 1
        while True:
            verdict = _compare_exp(prefix, bits, level, 1)
            if verdict is None:
                prefix, bits = _extend(prefix, bits, tie_breaker)
            elif verdict:
                level += 1
            else:
                break
        values[index] = level - 1
    return values


def _geometric_thresholds() -> NDArray[np.uint64]:
    """First 64 bits of exp(-k), ascending, from the first that are zero to k = 1."""
    context = Context(prec=60)
    thresholds: list[int] = []
    level = 0
    while not thresholds or thresholds[-1] > 0:
        level += 1
        scaled = context.multiply(context.exp(Decimal(-level)), Decimal(2**_WORD_BITS))
        thresholds.append(int(scaled))
    return np.array(thresholds[::-1], dtype=np.uint64)


_ASCENDING: Final = _geometric_thresholds()
