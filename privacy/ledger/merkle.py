"""The Merkle tree of RFC 6962: roots, proofs, and their verification.

A tree grows at its end alone. Its root binds every entry; a consistency proof shows
that a larger tree begins with a smaller one, an inclusion proof that it holds an entry.
Verification follows the algorithms of RFC 9162, which describe the same tree.

Source: RFC 6962 section 2.1; RFC 9162 sections 2.1.3.2 and 2.1.4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from privacy.crypto import bare_sha256, equal
from privacy.errors import BrokenChainError

EMPTY_ROOT = bare_sha256(b"")


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry, 32 bytes; no node has it, whatever the entry is."""
    return bare_sha256(b"\x00" + entry)


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees side by side, 32 bytes."""
    return bare_sha256(b"\x01" + left + right)


class Tree:
    """A growing tree that keeps the root of every full subtree.

    Args:
        entries: the first ones.
    """

    __slots__ = ("_levels",)

    def __init__(self, entries: Iterable[bytes] = ()) -> None:
        # _levels[k][i] is the root over the entries from i * 2**k on, 2**k of them.
        self._levels: list[list[bytes]] = [[]]
        for entry in entries:
            self.append(entry)

    @property
    def size(self) -> int:
        """How many entries it has."""
        return len(self._levels[0])

    def append(self, entry: bytes) -> None:
        """Add an entry at the end."""
        node, level = leaf_hash(entry), 0
        self._levels[0].append(node)
        while len(self._levels[level]) % 2 == 0:
            node = node_hash(*self._levels[level][-2:])
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(node)

    def root(self, size: int | None = None) -> bytes:
        """The root over the first `size` entries, or over all.

        Raises:
            ValueError: the tree is smaller.
        """
        size = self.size if size is None else size
        self._check(0, size)
        return self._subtree(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """The proof that the tree of `size` entries holds the one at `index`.

        Raises:
            ValueError: it has none at that place.
        """
        self._check(index + 1, size)
        start, end, path = 0, size, list[bytes]()
        while end - start > 1:
            middle = start + _half(end - start)
            if index < middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(start, middle))
                start = middle
        return tuple(reversed(path))

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """The proof that the tree of `new` entries begins with that of `old`.

        Raises:
            ValueError: not 0 < old <= new <= size.
        """
        self._check(old, new)
        if old == 0:
            msg = "every tree begins with the empty one, and nothing proves it"
            raise ValueError(msg)
        start, end, path = 0, new, list[bytes]()
        while old < end:
            middle = start + _half(end - start)
            if old <= middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(start, middle))
                start = middle
        # Whoever verifies knows the root of the old tree, where that is a full one.
        if start > 0:
            path.append(self._subtree(start, end))
        return tuple(reversed(path))

    def _check(self, low: int, size: int) -> None:
        if not 0 <= low <= size <= self.size:
            msg = f"a tree of {self.size} entries has no such part"
            raise ValueError(msg)

    def _subtree(self, start: int, end: int) -> bytes:
        count = end - start
        if count & (count - 1) == 0:
            return self._levels[count.bit_length() - 1][start // count]
        middle = start + _half(count)
        return node_hash(self._subtree(start, middle), self._subtree(middle, end))


@dataclass(frozen=True, slots=True)
class Peaks:
    """As much of a tree as is needed to append to it.

    Attributes:
        size: how many entries the tree has.
        roots: of the full subtrees that it falls into, the largest first.
    """

    size: int = 0
    roots: tuple[bytes, ...] = ()

    def extended(self, entry: bytes) -> Peaks:
        """The peaks with one more entry."""
        node, roots, rest = leaf_hash(entry), list(self.roots), self.size
        while rest % 2 == 1:
            node = node_hash(roots.pop(), node)
            rest //= 2
        return Peaks(self.size + 1, (*roots, node))

    def root(self) -> bytes:
        """The root of the tree, 32 bytes."""
        if not self.roots:
            return EMPTY_ROOT
        node, *larger = reversed(self.roots)
        for root in larger:
            node = node_hash(root, node)
        return node


def verify_inclusion(
    entry: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that the tree with this root holds an entry at a place.

    Raises:
        BrokenChainError: the proof does not show it.

    Source: RFC 9162 section 2.1.3.2.
    """
    if not 0 <= index < size:
        raise _refused("no tree of that size has an entry at that place")
    place, last, node = index, size - 1, leaf_hash(entry)
    for hashed in proof:
        if last == 0:
            raise _refused("the proof is too long")
        if place % 2 or place == last:
            node = node_hash(hashed, node)
            while place % 2 == 0 and place:
                place, last = place >> 1, last >> 1
        else:
            node = node_hash(node, hashed)
        place, last = place >> 1, last >> 1
    if last or not equal(node, root):
        raise _refused("the proof does not lead to the root")


def verify_consistency(
    old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> Peaks | None:
    """Check that the larger tree begins with the smaller one.

    Args:
        old: entries of the smaller tree, at least 1.
        new: entries of the larger one.
        old_root: 32 bytes.
        new_root: 32 bytes.
        proof: empty where the sizes are equal.

    Returns:
        The peaks of the smaller tree, which the proof holds: to them the entries
        between the two can be appended, to see that they are those of the larger tree.
        None where there are none between the two.

    Raises:
        BrokenChainError: the proof does not show it.

    Source: RFC 9162 section 2.1.4.2.
    """
    if not 0 < old <= new:
        raise _refused("not a smaller tree and a larger one")
    # A full tree stands for itself, so that its root is left out of the proof.
    nodes = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if old == new:
        if proof or not equal(old_root, new_root):
            raise _refused("one size with two roots, or a proof of nothing")
        return None
    if not nodes:
        raise _refused("the proof is empty")
    place, last = old - 1, new - 1
    while place % 2:
        place, last = place >> 1, last >> 1
    before = after = nodes[0]
    peaks = [nodes[0]]
    for hashed in nodes[1:]:
        if last == 0:
            raise _refused("the proof is too long")
        if place % 2 or place == last:
            before, after = node_hash(hashed, before), node_hash(hashed, after)
            peaks.append(hashed)
            while place % 2 == 0 and place:
                place, last = place >> 1, last >> 1
        else:
            after = node_hash(after, hashed)
        place, last = place >> 1, last >> 1
    if last or not equal(before, old_root) or not equal(after, new_root):
        raise _refused("the proof does not lead from the one root to the other")
    return Peaks(old, tuple(reversed(peaks)))


def _half(count: int) -> int:
    """The largest power of two below a count of at least 2."""
    return 1 << (count - 1).bit_length() - 1


def _refused(what: str) -> BrokenChainError:
    return BrokenChainError(what)
