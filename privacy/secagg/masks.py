"""Mask keys, and their expansion into words that are added in place.

A pairwise mask is added by the lower of two clients and subtracted by the higher, so
that it leaves the sum; a self mask is removed by the server, from shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from privacy.crypto import AgreementKey, Keystream, Label, hkdf_sha256
from privacy.vectors import ResidueVector
from privacy.wire import Bytes32, encode

# Chunk and keystream buffer stay in the second-level cache: longer ones wait for
# memory, shorter ones for the calls.
CHUNK_WORDS = 32 * 1024
_WORD_BYTES = 4


@dataclass(frozen=True, slots=True)
class MaskContext:
    """What every mask of a round is bound to.

    Two clients that were shown different rosters, sharers, adapters or plans derive
    different keys, their masks do not cancel, and the sum is noise instead of a way
    to tell them apart.

    Attributes:
        roster_hash: the roster, and through it the offer.
        sharers_hash: who dealt key shares, and which.
        adapter_digest: the adapter that this party really loaded.
        plan_digest: the plan that this party runs.

    Source: Pasquini, Francati and Ateniese, "Eluding secure aggregation in federated
    learning via model inconsistency", CCS 2022.
    """

    roster_hash: Bytes32
    sharers_hash: Bytes32
    adapter_digest: Bytes32
    plan_digest: Bytes32

    def pairwise_key(
        self, own: AgreementKey, end: tuple[str, bytes], peer: tuple[str, bytes]
    ) -> bytes:
        """The mask key that two clients share; both derive the same.

        Args:
            own: the private mask key of one of them.
            end: name and public mask key of the same one.
            peer: name and public mask key of the other one.

        Returns:
            32 bytes.

        Raises:
            MalformedMessageError: the peer's key is not canonical or of low order.
        """
        lower, higher = sorted([end, peer])
        return hkdf_sha256(
            own.agree(peer[1]),
            salt=self.roster_hash,
            label=Label.PAIRWISE_MASK,
            info=encode(_PairInfo(self, *lower, *higher)),
        )

    def self_key(self, seed: bytes, name: str) -> bytes:
        """The key of a client's self mask.

        Args:
            seed: the client's secret b, 32 bytes.
            name: the client.

        Returns:
            32 bytes.
        """
        return hkdf_sha256(
            seed,
            salt=self.roster_hash,
            label=Label.SELF_MASK,
            info=encode(_SelfInfo(self, name)),
        )


@dataclass(frozen=True, slots=True)
class _PairInfo:
    context: MaskContext
    lower: str
    lower_public: Bytes32
    higher: str
    higher_public: Bytes32


@dataclass(frozen=True, slots=True)
class _SelfInfo:
    context: MaskContext
    name: str


def apply_masks(
    residues: ResidueVector,
    *,
    added: Sequence[bytes],
    subtracted: Sequence[bytes],
    modulus_bits: int,
) -> None:
    """Add and subtract the masks of these keys, in place.

    The outer loop is over chunks of the vector and the inner one over keys, so that a
    chunk is read from memory once however many masks it takes.

    Args:
        residues: shape (length,), uint32, C-contiguous and writable.
        added: 32-byte keys whose masks are added.
        subtracted: 32-byte keys whose masks are subtracted.
        modulus_bits: the result is reduced modulo 2**modulus_bits.

    Guarantee:
        Adding and subtracting the same keys gives the vector back.
    """
    streams: list[tuple[Keystream, np.ufunc]] = [
        *((Keystream(key), np.add) for key in added),
        *((Keystream(key), np.subtract) for key in subtracted),
    ]
    length = min(len(residues), CHUNK_WORDS)
    zeros = memoryview(bytes(_WORD_BYTES * length))
    buffer = bytearray(_WORD_BYTES * length + Keystream.OVERHANG)
    target = memoryview(buffer)
    # Little-endian on every machine: both ends of a pair must read the same words.
    words = np.frombuffer(buffer, dtype="<u4", count=length)
    modulus_mask = np.uint32(2**modulus_bits - 1)
    for start in range(0, len(residues), CHUNK_WORDS):
        chunk = residues[start : start + CHUNK_WORDS]
        for stream, combine in streams:
            stream.read_into(zeros[: _WORD_BYTES * len(chunk)], target)
            # uint32 wraps modulo 2**32, of which 2**modulus_bits is a divisor.
            combine(chunk, words[: len(chunk)], out=chunk)
        chunk &= modulus_mask
