"""Vectors of how a sum travels: packed words, and the rotation before them."""

from __future__ import annotations

import numpy as np

from privacy.errors import MalformedMessageError
from privacy.packing import pack
from privacy.rotation import Rotation
from tests.vectors.derivations import fixed
from tests.vectors.form import File, bad, good

_LENGTH = 11


def packing() -> File:
    """Words to bytes and back."""
    valid, refused = [], []
    for bits in (1, 7, 8, 13, 17, 20, 24, 31, 32):
        words = np.arange(1, _LENGTH + 1, dtype=np.uint64) * np.uint64(0x1D3AA7F1)
        kept = (words % 2**bits).astype(np.uint32)
        packed = bytes(pack(kept, bits))
        case = {"modulus_bits": bits, "words": kept.tolist(), "packed": packed}
        valid.append(good(f"words of {bits} bits", **case))
        lies = {
            "a byte too few": packed[:-1],
            "a byte too many": packed + bytes(1),
        }
        unused = 8 * len(packed) - bits * _LENGTH
        for place in range(8 - unused, 8):
            last = packed[-1] | 1 << place
            lies[f"bit {place} of the last byte"] = packed[:-1] + bytes([last])
        refused += [
            bad(
                f"words of {bits} bits: {name}",
                MalformedMessageError,
                modulus_bits=bits,
                length=_LENGTH,
                packed=lie,
            )
            for name, lie in lies.items()
        ]
    return File(
        "Residues as they are sent, hashed and committed to: bit i of word j is bit "
        "j * modulus_bits + i of the string, and bit k of the string is bit k % 8 of "
        "byte k // 8.",
        tuple(valid),
        tuple(refused),
    )


def rotation() -> File:
    """Small vectors, rotated under the digest of an offer."""
    valid = []
    offer = fixed("offer")
    for dimension in (1, 2, 3, 4, 5, 8, 11, 16, 23):
        before = (np.arange(dimension) ** 2 * 7 + 3) % 19 - 9
        turn = Rotation.of_round(offer, dimension)
        valid.append(
            good(
                f"{dimension} numbers",
                offer_digest=offer,
                vector=before.tolist(),
                signs=[[start, signs.tolist()] for start, signs in turn.signs],
                rotated=turn.forward(before).tolist(),
            )
        )
    return File(
        "The rotation of a round: for each block its first coordinate and its signs; "
        "the vector before and after. Other orders of the same sums differ in the last "
        "digits.",
        tuple(valid),
    )


def files() -> dict[str, File]:
    """By file name, without its suffix."""
    return {"packing": packing(), "rotation": rotation()}
