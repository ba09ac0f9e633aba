"""Shamir's secret sharing over the prime 2**256 - 189.

A secret and a share are integers below the prime, as 32 bytes, big-endian. The share
of the client at place k of the roster is the polynomial's value at x = k + 1.

Python's integers do not take constant time. The secrets live for one round, on the
machine of the client that owns them; an attacker who can time that machine at this
resolution is outside the threat model.

Source: Shamir, "How to share a secret", CACM 1979.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeAlias

from privacy.errors import MalformedMessageError

Entropy: TypeAlias = Callable[[int], bytes]

PRIME = 2**256 - 189
ELEMENT_BYTES = 32


def draw_element(entropy: Entropy) -> bytes:
    """A uniform secret below the prime.

    By rejection, so that there is no bias; a key seed that was not below the prime
    could not be shared.

    Args:
        entropy: fresh bytes on demand.

    Returns:
        32 bytes.
    """
    while True:
        candidate = entropy(ELEMENT_BYTES)
        if int.from_bytes(candidate, "big") < PRIME:
            return candidate


def check_element(data: bytes) -> int:
    """The integer that 32 bytes stand for.

    Raises:
        MalformedMessageError: another length, or not below the prime. A second encoding
            of one element would let two different shares interpolate alike.
    """
    value = int.from_bytes(data, "big")
    if len(data) != ELEMENT_BYTES or value >= PRIME:
        msg = "a key share that is not below the prime"
        raise MalformedMessageError(msg)
    return value


def split(secret: bytes, threshold: int, count: int, entropy: Entropy) -> list[bytes]:
    """Share a secret so that any `threshold` shares give it back and fewer say nothing.

    Args:
        secret: 32 bytes, below the prime.
        threshold: 1 to `count`.
        count: how many shares.
        entropy: fresh bytes for the coefficients.

    Returns:
        `count` shares of 32 bytes, for x = 1 to `count`.

    Raises:
        ValueError: the threshold does not fit the count.

    Guarantee:
        Any `threshold` shares combine to the secret; for fewer, every secret is
        equally likely.
    """
    if not 1 <= threshold <= count:
        msg = f"cannot share among {count} with threshold {threshold}"
        raise ValueError(msg)
    drawn = [int.from_bytes(draw_element(entropy), "big") for _ in range(threshold - 1)]
    # Highest power first, as Horner's rule wants them.
    coefficients = [*drawn, check_element(secret)]
    shares = []
    for x in range(1, count + 1):
        value = 0
        for coefficient in coefficients:
            value = (value * x + coefficient) % PRIME
        shares.append(value.to_bytes(ELEMENT_BYTES, "big"))
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of which these are shares.

    Args:
        shares: share by its x; exactly as many as the threshold.

    Returns:
        32 bytes. With wrong shares it is some other element, which the caller detects
        by the commitment that came with the secret.

    Raises:
        MalformedMessageError: a share that is not below the prime.
    """
    points = tuple(sorted(shares))
    weights = lagrange_weights(points)
    total = sum(
        weight * check_element(shares[x])
        for x, weight in zip(points, weights, strict=True)
    )
    return (total % PRIME).to_bytes(ELEMENT_BYTES, "big")


@lru_cache(maxsize=8)
def lagrange_weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Weights by which values at these points sum to the value at zero.

    They depend on public roster places alone, and one survivor set serves every secret
    of a round: hence the cache.
    """
    weights = []
    for x in points:
        numerator = denominator = 1
        for other in points:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(weights)
