"""A slow oracle that shares no code with `privacy`: derivations, masks, key shares.

It writes the framing of labels and fields out by hand, derives keys by HMAC, adds
Python integers one by one and interpolates with fractions. Only AES and X25519 come
from the library, used directly. `second` plays a whole round with it.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from fractions import Fraction

from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def prefixed(data: bytes) -> bytes:
    return struct.pack(">Q", len(data)) + data


def framed(label: str, *parts: bytes) -> bytes:
    return b"".join(prefixed(part) for part in (label.encode(), *parts))


def sha256(label: str, *parts: bytes) -> bytes:
    return hashlib.sha256(framed(label, *parts)).digest()


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    key = hmac.digest(salt, secret, "sha256")
    return hmac.digest(key, info + b"\x01", "sha256")


def words(key: bytes, count: int) -> list[int]:
    """AES-256 of the counters 0, 1, 2 ..., block by block, as little-endian words."""
    blocks = b""
    encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305
    for counter in range(-(-4 * count // 16)):
        blocks += encryptor.update(counter.to_bytes(16, "big"))
    return list(struct.unpack(f"<{count}I", blocks[: 4 * count]))


def packed(values: list[int], bits: int) -> bytes:
    """Words modulo 2**bits, one after the other in one little-endian number."""
    whole = sum(value % 2**bits << place * bits for place, value in enumerate(values))
    return whole.to_bytes(-(-len(values) * bits // 8), "little")


def rotated(
    offer: bytes, vector: list[float]
) -> tuple[list[list[object]], list[float]]:
    """The blocks with their signs, and the vector after them, entry by entry."""
    size = 2 ** (len(vector).bit_length() - 1)
    key = sha256("fgrpo-secure/1/rotation", offer)
    stream = struct.pack(f"<{size + 8}I", *words(key, size + 8))
    blocks: list[list[object]] = []
    values, used = list(vector), 0
    for start in sorted({0, len(vector) - size}):
        signs = [-1 if stream[used + k // 8] >> k % 8 & 1 else 1 for k in range(size)]
        used += -(-size // 8)
        flipped = [values[start + k] * signs[k] for k in range(size)]
        values[start : start + size] = [
            sum((-1) ** (i & j).bit_count() * flipped[j] for j in range(size))
            / size**0.5
            for i in range(size)
        ]
        blocks.append([start, signs])
    return blocks, values


def pairwise_key(
    seed: bytes,
    ends: list[tuple[str, bytes]],
    peer_public: bytes,
    context: tuple[bytes, bytes, bytes, bytes],
) -> bytes:
    """context: roster hash, sharers hash, adapter digest, plan digest."""
    secret = X25519PrivateKey.from_private_bytes(seed).exchange(
        X25519PublicKey.from_public_bytes(peer_public)
    )
    info = b"".join(context)
    for name, public in sorted(ends):
        info += prefixed(name.encode()) + public
    label = b"fgrpo-secure/1/pairwise-mask"
    return hkdf(secret, context[0], prefixed(label) + prefixed(info))


def self_key(
    seed: bytes, name: str, context: tuple[bytes, bytes, bytes, bytes]
) -> bytes:
    info = b"".join(context) + prefixed(name.encode())
    label = b"fgrpo-secure/1/self-mask"
    return hkdf(seed, context[0], prefixed(label) + prefixed(info))


SHARE_PRIME = 2**256 - 189


def share(secret: bytes, drawn: list[str], x: int) -> bytes:
    """The polynomial's value, power by power; `drawn` has the highest first, in hex."""
    coefficients = [int.from_bytes(secret, "big"), *(int(c, 16) for c in drawn[::-1])]
    total = sum(c * x**power for power, c in enumerate(coefficients))
    return (total % SHARE_PRIME).to_bytes(32, "big")


def interpolated(shares: dict[int, bytes]) -> bytes:
    """The value at zero, by weights that are rationals before they are reduced."""
    total = 0
    for x, data in shares.items():
        weight = Fraction(1)
        for other in shares.keys() - {x}:
            weight *= Fraction(other, other - x)
        inverse = pow(weight.denominator, -1, SHARE_PRIME)
        total += weight.numerator * inverse * int.from_bytes(data, "big")
    return (total % SHARE_PRIME).to_bytes(32, "big")


def tree(leaves: list[bytes]) -> bytes:
    """The root: of the largest whole tree at the left and of what is left over."""
    if len(leaves) == 1:
        return leaves[0]
    whole = 1
    while 2 * whole < len(leaves):
        whole *= 2
    label = "fgrpo-secure/1/key-share-node"
    return sha256(label, tree(leaves[:whole]), tree(leaves[whole:]))


def path(leaves: list[bytes], place: int) -> list[bytes]:
    """The siblings of a leaf, from the bottom up."""
    if len(leaves) == 1:
        return []
    whole = 1
    while 2 * whole < len(leaves):
        whole *= 2
    left, right = leaves[:whole], leaves[whole:]
    if place < whole:
        return [*path(left, place), tree(right)]
    return [*path(right, place - whole), tree(left)]
