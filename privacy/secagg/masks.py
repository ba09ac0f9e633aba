"""Mask keys, and their expansion into words that are added in place.

A pairwise mask is added by the lower of two clients and subtracted by the higher, so
that it leaves the sum; a self mask is removed by the server, from shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from privacy.crypto import AgreementKey, Keystream, Label, hkdf_sha256
from privacy.vectors import MAX_MODULUS_BITS, ResidueVector
from privacy.wire import Bytes32, encode

# Chunk and keystream buffer stay in the second-level cache: longer ones wait for
# memory, shorter ones for the calls.
CHUNK_WORDS = 48 * 1024
# A thread is worth its start from so many words of keystream on. More than two wait
# for the interpreter's lock and for memory.
THREAD_WORDS = 2**25
MAX_THREADS = 2
# Threads meet after so many chunks.
_STRETCH_CHUNKS = 8
_WORD_BYTES = 4
# Additions across the borders of cache lines take longer.
_LINE_BYTES = 64


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

    Where there is much to do, threads share the keys: the library releases the
    interpreter's lock while it encrypts.

    Args:
        residues: shape (length,), uint32, C-contiguous and writable.
        added: 32-byte keys whose masks are added.
        subtracted: 32-byte keys whose masks are subtracted.
        modulus_bits: the result is reduced modulo 2**modulus_bits.

    Guarantee:
        Adding and subtracting the same keys gives the vector back. The words do not
        depend on the number of threads.
    """
    masks = [
        *((key, np.add) for key in added),
        *((key, np.subtract) for key in subtracted),
    ]
    threads = _threads(len(residues), len(masks))
    most = min(len(residues), CHUNK_WORDS)
    own, *others = [
        _Masks(masks[k::threads], modulus_bits, most) for k in range(threads)
    ]
    if not others:
        own.add_to(residues)
        return
    with ThreadPoolExecutor(len(others)) as pool:
        stretch = _STRETCH_CHUNKS * CHUNK_WORDS
        for start in range(0, len(residues), stretch):
            part = residues[start : start + stretch]
            running = [pool.submit(group.sum, len(part)) for group in others]
            own.add_to(part)
            for future in running:
                np.add(part, future.result(), part)
            part &= own.modulus_mask


def _threads(length: int, masks: int) -> int:
    return max(1, min(MAX_THREADS, masks, length * masks // THREAD_WORDS))


class _Masks:
    """The masks of some keys, read piece by piece from their start.

    Args:
        masks: each key, and whether its mask is added or subtracted.
        modulus_bits: sums are reduced modulo 2**modulus_bits.
        most: words of the longest chunk.
    """

    __slots__ = ("_streams", "_target", "_words", "_wraps", "_zeros", "modulus_mask")

    def __init__(
        self, masks: Sequence[tuple[bytes, np.ufunc]], modulus_bits: int, most: int
    ) -> None:
        self._streams = [(Keystream(key).read_into, combine) for key, combine in masks]
        self._zeros = memoryview(bytes(_WORD_BYTES * most))
        self._target, self._words = _buffer(most)
        # uint32 wraps modulo 2**32, of which 2**modulus_bits is a divisor.
        self._wraps = modulus_bits == MAX_MODULUS_BITS
        self.modulus_mask = np.uint32(2**modulus_bits - 1)

    def add_to(self, residues: ResidueVector) -> None:
        """Add the next words of every mask, in place.

        The outer loop is over chunks of the vector and the inner one over keys, so that
        a chunk is read from memory once however many masks it takes.
        """
        # The first chunk ends where a cache line does, so that all others begin there.
        first = CHUNK_WORDS - residues.ctypes.data % _LINE_BYTES // _WORD_BYTES
        edges = [0, *range(max(first, 1), len(residues), CHUNK_WORDS), len(residues)]
        for left, right in pairwise(edges):
            chunk = residues[left:right]
            zeros, mask = self._zeros[: chunk.nbytes], self._words[: len(chunk)]
            for read_into, combine in self._streams:
                read_into(zeros, self._target)
                combine(chunk, mask, chunk)
            if not self._wraps:
                chunk &= self.modulus_mask

    def sum(self, length: int) -> ResidueVector:
        """The sum of the next words of every mask.

        Args:
            length: how many words.

        Returns:
            Shape (length,), uint32.
        """
        total = np.zeros(length, np.uint32)
        self.add_to(total)
        return total


def _buffer(length: int) -> tuple[memoryview, ResidueVector]:
    """Memory for so many words of a keystream, from the start of a cache line.

    Returns:
        What the keystream is written to, and its words.
    """
    size = _WORD_BYTES * length + Keystream.OVERHANG
    room = np.zeros(size + _LINE_BYTES, np.uint8)
    offset = -room.ctypes.data % _LINE_BYTES
    # Little-endian on every machine: both ends of a pair must read the same words.
    words = room[offset : offset + _WORD_BYTES * length].view("<u4")
    return room[offset : offset + size].data, words
