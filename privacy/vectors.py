"""Integer vectors: their types, exact norms, and residues modulo a power of two.

Residues are what is masked and summed: a vector modulo 2**modulus_bits, as uint32
words. How they travel is `privacy.packing`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatVector: TypeAlias = NDArray[np.float64]
IntVector: TypeAlias = NDArray[np.int64]
ResidueVector: TypeAlias = NDArray[np.uint32]
# Bytes that may be a vector's own memory: so large that they are not copied about.
View: TypeAlias = bytes | memoryview

# The sum of squares of a vector stays below this, so that int64 holds it exactly.
MAX_SQUARED_NORM = 2**62

# Residues are uint32 words; a smaller modulus is a mask on them.
MAX_MODULUS_BITS = 32


def squared_norm(vector: IntVector) -> int:
    """Exact sum of squares.

    Args:
        vector: shape (d,), int64; the caller has bounded every |entry| so that the
            sum stays below 2**62.

    Returns:
        The sum of squares as a Python integer.
    """
    return int(np.dot(vector, vector))


def to_residues(vector: IntVector, modulus_bits: int, *more: int) -> ResidueVector:
    """Reduce modulo 2**modulus_bits.

    Args:
        vector: shape (d,), int64, grid steps.
        modulus_bits: 1 to 32.
        more: what follows the vector, within int64.

    Returns:
        Shape (d + len(more),), uint32, each word below 2**modulus_bits.
    """
    check_modulus(modulus_bits)
    residues = np.empty(len(vector) + len(more), np.uint32)
    # The cast wraps modulo 2**32, of which 2**modulus_bits is a divisor.
    residues[: len(vector)] = vector
    residues[len(vector) :] = np.array(more, np.int64)
    residues &= np.uint32(2**modulus_bits - 1)
    return residues


def from_residues(residues: ResidueVector, modulus_bits: int) -> IntVector:
    """Lift residues to the integers of least absolute value.

    Args:
        residues: shape (d,), uint32, each word below 2**modulus_bits.
        modulus_bits: 1 to 32.

    Returns:
        Shape (d,), int64, in [-2**(modulus_bits-1), 2**(modulus_bits-1)).

    Guarantee:
        `from_residues(to_residues(v, b), b) == v` for every v in that range.
    """
    check_modulus(modulus_bits)
    # Shifted up, the highest bit of the residue is the sign of an int32, which the
    # shift down keeps.
    shift = MAX_MODULUS_BITS - modulus_bits
    lifted = np.left_shift(residues, np.uint32(shift)).view(np.int32)
    lifted >>= np.int32(shift)
    return lifted.astype(np.int64)


def check_modulus(modulus_bits: int) -> None:
    """Refuse a modulus that a word does not hold.

    Raises:
        ValueError: not 1 to 32 bits.
    """
    if not 1 <= modulus_bits <= MAX_MODULUS_BITS:
        msg = f"modulus_bits must be 1 to {MAX_MODULUS_BITS}, got {modulus_bits}"
        raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class NoisedVector:
    """One client's clipped, weighted, noised vector of one round, ready to mask.

    Only `privacy.contribution` makes one (a test reads the source tree to see that it
    stays so), and secure aggregation accepts nothing else: leaving the noise out is a
    type error, not a slip.

    Attributes:
        residues: shape (d + 1,), uint32: d noised coordinates and the exact weight
            coordinate, modulo 2**modulus_bits.
        modulus_bits: the modulus that the plan fixes.
        plan_digest: hex SHA-256 of the plan that this vector was made under.
        round_number: the round it was charged to.

    Guarantee:
        No repr shows the residues, so that no log opens one client's vector.
    """

    residues: ResidueVector = field(repr=False)
    modulus_bits: int
    plan_digest: str
    round_number: int
