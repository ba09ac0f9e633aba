"""A shared random rotation that spreads a gradient evenly over its coordinates.

With few bits a word the largest coordinate of a sum must stay small. A gradient may
have all of its norm in one place, and all units' gradients in the same one. After a
rotation that was drawn at random no direction is special: every coordinate is about the
norm over sqrt(d). The rotation is public. Privacy rests on nothing of it: the norm is
checked on the integers after it, and the noise is added after that.

It is the composition of two maps, each random signs and then a fast Walsh-Hadamard
transform: one of the first 2**m coordinates and one of the last 2**m, where 2**m is
the largest power of two up to d. They overlap and cover everything, so that nothing is
padded; where d is a power of two the first alone does.

Source: Suresh, Yu, Kumar and McMahan, "Distributed mean estimation with limited
communication", ICML 2017 (signs and Hadamard); Kairouz, Liu and Steinke, ICML 2021,
section 4 (before rounding and modular sums).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.crypto import Keystream, Label, sha256
from privacy.vectors import FloatVector


@dataclass(frozen=True, slots=True)
class Rotation:
    """An orthogonal map of vectors of one length, and its inverse.

    Attributes:
        dimension: d.
        signs: for each block its first coordinate, and 1 or -1 for each coordinate of
            it, int8.

    Guarantee:
        The result for one vector depends on that vector and the round's offer alone,
        in every bit: single additions, subtractions and multiplications in a fixed
        order, which IEEE 754 rounds alike everywhere. No library sums or multiplies
        matrices, in an order of its own.
    """

    dimension: int
    signs: tuple[tuple[int, NDArray[np.int8]], ...] = field(repr=False)

    @staticmethod
    def of_round(offer_digest: bytes, dimension: int) -> Rotation:
        """The rotation of one round, the same for all parties.

        Args:
            offer_digest: of the round's offer, 32 bytes. A fresh nonce is in it, so
                that nobody can choose data against a rotation that is not drawn yet.
            dimension: d, at least 1.
        """
        stream = Keystream(sha256(Label.ROTATION, offer_digest))
        block = block_size(dimension)
        starts = sorted({0, dimension - block})
        return Rotation(
            dimension, tuple((start, _signs(stream, block)) for start in starts)
        )

    def forward(self, vector: NDArray[np.floating[Any] | np.int64]) -> FloatVector:
        """Rotate a vector.

        An entry that is not finite, or sums that overflow, give entries that are not
        finite.

        Args:
            vector: shape (d,), any float type.

        Returns:
            Shape (d,), float64, of the same norm up to rounding.

        Raises:
            ValueError: a vector of another shape. A part of it would stay as it was.
        """
        self._check_shape(vector.shape)
        rotated = vector.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            for start, signs in self.signs:
                block = rotated[start : start + len(signs)]
                block *= signs
                _hadamard(block)
        return rotated

    def inverse(self, vector: NDArray[np.floating[Any] | np.int64]) -> FloatVector:
        """Undo `forward`.

        Args:
            vector: shape (d,), any float type.

        Returns:
            Shape (d,), float64.

        Raises:
            ValueError: as `forward`.
        """
        self._check_shape(vector.shape)
        restored = vector.astype(np.float64)
        for start, signs in reversed(self.signs):
            block = restored[start : start + len(signs)]
            _hadamard(block)
            block *= signs
        return restored

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if shape != (self.dimension,):
            msg = f"a rotation of {self.dimension} numbers was given the shape {shape}"
            raise ValueError(msg)


def block_size(dimension: int) -> int:
    """The largest power of two up to d: what one transform mixes.

    Args:
        dimension: d, at least 1.
    """
    return 1 << (dimension.bit_length() - 1)


def spread(dimension: int, tries: float, failure: float) -> float:
    """How large a coordinate a rotation leaves, for a norm of 1.

    A rotated coordinate is a sum of entries times one over sqrt(2**m), each with a sign
    of its own, so that by Hoeffding's inequality it passes t with probability at most
    2 exp(-t**2 2**m / 2). Entries that the second transform takes from the first have
    no larger norm together.

    Args:
        dimension: d.
        tries: how many coordinates, of all vectors together, must stay within it.
        failure: the probability that one of them does not.

    Returns:
        The bound, at most 1.
    """
    exponent = 2 * math.log(2 * tries / failure) / block_size(dimension)
    return min(1.0, math.sqrt(exponent))


def _signs(stream: Keystream, count: int) -> NDArray[np.int8]:
    """The next signs of the stream: bit 0 of each byte first, 1 for minus."""
    drawn = np.frombuffer(stream.read(-(-count // 8)), np.uint8)
    bits = np.unpackbits(drawn, count=count, bitorder="little")
    signs: NDArray[np.int8] = 1 - 2 * bits.astype(np.int8)
    return signs


def _hadamard(block: FloatVector) -> None:
    """The orthonormal Walsh-Hadamard transform in natural order, in place.

    It is its own inverse.

    Args:
        block: shape (2**m,), float64, contiguous.
    """
    half = 1
    while half < len(block):
        pairs = block.reshape(-1, 2, half)
        difference = pairs[:, 0] - pairs[:, 1]
        pairs[:, 0] += pairs[:, 1]
        pairs[:, 1] = difference
        half *= 2
    block /= math.sqrt(len(block))
