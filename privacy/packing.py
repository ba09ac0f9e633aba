"""Residues as they travel: words of any number of bits, packed without gaps.

The bits of all words are one string, the least significant bit of each word first, and
bit k of the string is bit k % 8 of byte k // 8. Words of 8, 16, 24 and 32 bits are
therefore plain little-endian integers, and two words of 20 bits fill 5 bytes. What is
left of the last byte is zero: a vector has one encoding.
"""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.typing import NDArray

from privacy.errors import MalformedMessageError
from privacy.vectors import MAX_MODULUS_BITS, ResidueVector, View, check_modulus

_BYTE = 8
# Words at a time, a multiple of 8: what is being shifted stays in the second-level
# cache, and no second vector is made beside the first.
_CHUNK_WORDS = 2**16


def packed_bytes(length: int, modulus_bits: int) -> int:
    """Bytes of so many words.

    Args:
        length: words.
        modulus_bits: of each, 1 to 32.
    """
    check_modulus(modulus_bits)
    return -(-length * modulus_bits // _BYTE)


def pack(residues: ResidueVector, modulus_bits: int) -> bytes:
    """Pack residues into the bytes that are sent, hashed and committed to.

    Args:
        residues: shape (length,), uint32, C-contiguous, each word below
            2**modulus_bits.
        modulus_bits: 1 to 32.

    Returns:
        `packed_bytes(length, modulus_bits)` bytes.

    Raises:
        ValueError: a word does not fit. Cutting it would change the vector unseen.
    """
    if modulus_bits == MAX_MODULUS_BITS:
        return residues.astype("<u4", copy=False).tobytes()
    room = np.empty(_room(len(residues), modulus_bits), np.uint8)
    return _pack_into(room, residues, modulus_bits).tobytes()


def pack_in_place(residues: ResidueVector, modulus_bits: int) -> memoryview:
    """As `pack`, in the memory of the residues, which are not needed any more.

    It spares the memory of another vector.

    Args:
        residues: as for `pack`; they are overwritten.
        modulus_bits: 1 to 32.

    Returns:
        The bytes that `pack` returns, as a view.

    Raises:
        ValueError: as `pack`.
    """
    if modulus_bits == MAX_MODULUS_BITS:
        words = residues.astype("<u4", copy=False)
        return words.view(np.uint8).data.toreadonly()
    room = _room(len(residues), modulus_bits)
    # A last group that is not full may need more room than the words had.
    packed = (
        residues.view(np.uint8) if room <= residues.nbytes else np.empty(room, np.uint8)
    )
    return _pack_into(packed, residues, modulus_bits).data.toreadonly()


def _room(length: int, modulus_bits: int) -> int:
    """Bytes of so many words and of what fills the last group."""
    words, group = _group(modulus_bits)
    return -(-length // words) * group


def _pack_into(
    packed: NDArray[np.uint8], residues: ResidueVector, modulus_bits: int
) -> NDArray[np.uint8]:
    """Pack words of fewer than 32 bits into memory that may be their own."""
    if not within_modulus(residues, modulus_bits):
        msg = f"a word of more than {modulus_bits} bits"
        raise ValueError(msg)
    words, group = _group(modulus_bits)
    # Packed words lie before the words that they are made of: in their own memory, too,
    # no chunk is overwritten before it is read.
    for start in range(0, len(residues), _CHUNK_WORDS):
        chunk = _whole(residues[start : start + _CHUNK_WORDS], words)
        left = start // words * group
        right = left + len(chunk) // words * group
        packed[left:right] = _packed_groups(chunk.reshape(-1, words), group)
    return packed[: packed_bytes(len(residues), modulus_bits)]


def unpack(packed: View, length: int, modulus_bits: int) -> ResidueVector:
    """Read what `pack` wrote, and nothing else.

    Args:
        packed: the bytes.
        length: how many words they must be.
        modulus_bits: 1 to 32.

    Returns:
        Shape (length,), uint32, each word below 2**modulus_bits; of 32 bits a read-only
        view of the bytes where the machine allows it.

    Raises:
        MalformedMessageError: another number of bytes, or bits after the last word
            that are not zero.

    Guarantee:
        No two byte strings are read as one vector: `pack(unpack(p, n, b), b) == p`.
    """
    check_packed(packed, length, modulus_bits)
    if modulus_bits == MAX_MODULUS_BITS:
        return np.frombuffer(packed, dtype="<u4").astype(np.uint32, copy=False)
    words, group = _group(modulus_bits)
    groups = -(-length // words)
    residues = np.empty((groups, words), np.uint32)
    step = _CHUNK_WORDS // words
    for start in range(0, groups, step):
        chunk = residues[start : start + step]
        piece = bytes(packed[start * group : (start + step) * group])
        _unpack_groups(piece, modulus_bits, chunk)
    return residues.ravel()[:length]


def check_packed(packed: View, length: int, modulus_bits: int) -> None:
    """Refuse bytes that `pack` would not have written.

    Args:
        packed: the bytes.
        length: how many words they must be.
        modulus_bits: 1 to 32.

    Raises:
        MalformedMessageError: as `unpack`, whose words need no other check: each is
            below the modulus by its place.
    """
    if len(packed) != packed_bytes(length, modulus_bits):
        msg = f"a vector that is not {length} words of {modulus_bits} bits"
        raise MalformedMessageError(msg)
    unused = len(packed) * _BYTE - length * modulus_bits
    last: int = packed[-1] if unused else 0
    if last >> (_BYTE - unused):
        msg = "a vector with bits after its last word that are not zero"
        raise MalformedMessageError(msg)


def within_modulus(residues: ResidueVector, modulus_bits: int) -> bool:
    """Whether every word is below the modulus."""
    if modulus_bits >= MAX_MODULUS_BITS or residues.size == 0:
        return True
    return bool(residues.max() < 2**modulus_bits)


def _group(modulus_bits: int) -> tuple[int, int]:
    """The fewest words that fill whole bytes, and how many bytes."""
    check_modulus(modulus_bits)
    words = _BYTE // gcd(_BYTE, modulus_bits)
    return words, words * modulus_bits // _BYTE


def _whole(values: NDArray[np.uint32], group: int) -> NDArray[np.uint32]:
    """The words, with zeros up to the end of the last group."""
    return np.pad(values, (0, -len(values) % group))


def _packed_groups(words: NDArray[np.uint32], group: int) -> NDArray[np.uint8]:
    """Shift each word of a group to its place, column by column, over all groups.

    Args:
        words: shape (groups, words of one).
        group: bytes of one.

    Returns:
        The packed bytes, flat.
    """
    packed = np.zeros((len(words), group), np.uint8)
    modulus_bits = group * _BYTE // words.shape[1]
    for number in range(words.shape[1]):
        byte, shift = divmod(number * modulus_bits, _BYTE)
        column = words[:, number]
        # The first byte may be shared with the word before.
        packed[:, byte] |= (column << np.uint32(shift)).astype(np.uint8)
        for offset in range(_BYTE - shift, modulus_bits, _BYTE):
            byte += 1
            packed[:, byte] |= (column >> np.uint32(offset)).astype(np.uint8)
    return packed.ravel()


def _unpack_groups(
    packed: bytes, modulus_bits: int, residues: NDArray[np.uint32]
) -> None:
    """The inverse of `_packed_groups`: each word is shifted out of the bytes around it.

    Args:
        packed: the groups, of which the last may be cut short.
        modulus_bits: of each word.
        residues: shape (groups, words of one), to write to.
    """
    groups, words = residues.shape
    group = words * modulus_bits // _BYTE
    # A word begins within a byte, at most so many bits after the byte does.
    most = modulus_bits + _BYTE - gcd(_BYTE, modulus_bits)
    window = np.dtype("<u4" if most <= MAX_MODULUS_BITS else "<u8")
    # The last windows reach beyond the last word.
    packed = packed.ljust(groups * group + window.itemsize, b"\0")
    modulus_mask = np.uint32(2**modulus_bits - 1)
    for number in range(words):
        byte, shift = divmod(number * modulus_bits, _BYTE)
        windows = np.ndarray(groups, window, packed, byte, (group,))
        shifted = windows >> window.type(shift)
        np.bitwise_and(
            shifted, modulus_mask, out=residues[:, number], casting="same_kind"
        )
