"""A slow mask oracle that shares no code with `privacy.secagg.masks` or its callers.

It writes the framing of labels and fields out by hand, derives keys by HMAC, and adds
Python integers one by one. Only AES and X25519 come from the library, used directly.
"""

from __future__ import annotations

import hmac
import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def prefixed(data: bytes) -> bytes:
    return struct.pack(">Q", len(data)) + data


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
