"""The tree of RFC 6962: the vectors of Certificate Transparency, and an oracle."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import BrokenChainError
from privacy.ledger.merkle import (
    EMPTY_ROOT,
    Peaks,
    Tree,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

# The inputs, roots and proofs of the reference tests of Certificate Transparency
# (certificate-transparency, merkle_tree_test.cc; transparency-dev/merkle).
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
_A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
_B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
_C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
_D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
_E = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
_F = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
# (index, size): proof.
INCLUSION = {
    (0, 1): [],
    (0, 8): [_A, _B, _C],
    (5, 8): [_D, _E, ROOTS[3]],
    (2, 3): [ROOTS[1]],
    (1, 5): [ROOTS[0], _B, _D],
}
# (old, new): proof.
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [_A, _B, _C],
    (6, 8): [_F, _E, ROOTS[3]],
    (2, 5): [_B, _D],
}
SIZES = 40


def raw(texts):
    return [bytes.fromhex(text) for text in texts]


# The definitions of RFC 6962, section 2.1, as they stand there.


def oracle_root(entries):
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = 1
    while 2 * k < len(entries):
        k *= 2
    left, right = oracle_root(entries[:k]), oracle_root(entries[k:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def split(entries):
    k = 1
    while 2 * k < len(entries):
        k *= 2
    return k


def oracle_path(m, entries):
    if len(entries) == 1:
        return []
    k = split(entries)
    if m < k:
        return [*oracle_path(m, entries[:k]), oracle_root(entries[k:])]
    return [*oracle_path(m - k, entries[k:]), oracle_root(entries[:k])]


def oracle_proof(m, entries, known=True):
    if m == len(entries):
        return [] if known else [oracle_root(entries)]
    k = split(entries)
    if m <= k:
        return [*oracle_proof(m, entries[:k], known), oracle_root(entries[k:])]
    return [*oracle_proof(m - k, entries[k:], False), oracle_root(entries[:k])]


ENTRIES = [b"entry %d" % number for number in range(SIZES)]
TREE = Tree(ENTRIES)
KNOWN_ROOTS = [oracle_root(ENTRIES[:size]) for size in range(SIZES + 1)]


def test_the_roots_are_those_of_certificate_transparency():
    tree = Tree()
    assert tree.root() == EMPTY_ROOT == hashlib.sha256(b"").digest()
    for entry, root in zip(LEAVES, ROOTS, strict=True):
        tree.append(entry)
        assert tree.root().hex() == root
    assert [tree.root(size).hex() for size in range(1, 9)] == ROOTS


def test_the_proofs_are_those_of_certificate_transparency():
    tree = Tree(LEAVES)
    for (index, size), proof in INCLUSION.items():
        assert list(tree.inclusion(index, size)) == raw(proof)
        root = bytes.fromhex(ROOTS[size - 1])
        verify_inclusion(LEAVES[index], index, size, raw(proof), root)
    for (old, new), proof in CONSISTENCY.items():
        assert list(tree.consistency(old, new)) == raw(proof)
        roots = (bytes.fromhex(ROOTS[size - 1]) for size in (old, new))
        verify_consistency(old, new, *roots, raw(proof))


def test_the_example_of_the_rfc_is_what_it_draws():
    """RFC 6962, section 2.1.3: seven entries, the nodes a to l, and their proofs."""
    entries = [b"d%d" % number for number in range(7)]
    a, b, c, d, e, f, j = (leaf_hash(entry) for entry in entries)
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k = node_hash(g, h)
    right = node_hash(i, j)
    tree = Tree(entries)
    assert tree.root() == node_hash(k, right)
    # The RFC calls them a to f and j (leaves), g, h, i, k and l.
    assert tree.inclusion(0, 7) == (b, h, right)
    assert tree.inclusion(3, 7) == (c, g, right)
    assert tree.inclusion(4, 7) == (f, j, k)
    assert tree.inclusion(6, 7) == (i, k)
    assert tree.consistency(3, 7) == (c, d, g, right)
    assert tree.consistency(4, 7) == (right,)
    assert tree.consistency(6, 7) == (i, j, k)


def test_every_root_and_proof_is_that_of_the_definition():
    for size in range(1, SIZES + 1):
        entries, root = ENTRIES[:size], KNOWN_ROOTS[size]
        assert TREE.root(size) == root
        for index in range(size):
            proof = TREE.inclusion(index, size)
            assert list(proof) == oracle_path(index, entries)
            verify_inclusion(ENTRIES[index], index, size, proof, root)
        for old in range(1, size + 1):
            proof = TREE.consistency(old, size)
            assert list(proof) == oracle_proof(old, entries)
            verify_consistency(old, size, KNOWN_ROOTS[old], root, proof)


def test_a_consistency_proof_holds_what_is_needed_to_append():
    """The lines between the two sizes lead from the old tree to the new root."""
    for old in range(1, SIZES):
        for new in range(old + 1, SIZES + 1):
            proof = TREE.consistency(old, new)
            peaks = verify_consistency(
                old, new, KNOWN_ROOTS[old], KNOWN_ROOTS[new], proof
            )
            assert (peaks.size, peaks.root()) == (old, KNOWN_ROOTS[old])
            for entry in ENTRIES[old:new]:
                peaks = peaks.extended(entry)
            assert peaks.root() == KNOWN_ROOTS[new]


def test_peaks_grow_as_the_tree_does():
    peaks = Peaks()
    for size, entry in enumerate(ENTRIES, 1):
        assert peaks.root() == KNOWN_ROOTS[size - 1]
        peaks = peaks.extended(entry)
    assert peaks == Peaks(SIZES, peaks.roots)
    # Two full subtrees of 32 and 8 entries.
    assert len(peaks.roots) == 2


def refused(verify, *arguments):
    with pytest.raises(BrokenChainError):
        verify(*arguments)


def altered(proof, root):
    """Proofs that are almost this one."""
    nodes = list(proof)
    for place in range(len(nodes)):
        spoilt = bytes([nodes[place][0] ^ 1]) + nodes[place][1:]
        yield [*nodes[:place], spoilt, *nodes[place + 1 :]]
        yield nodes[:place] + nodes[place + 1 :]
        yield [*nodes[:place], nodes[place], *nodes[place:]]
        swapped = [*nodes[:place], *reversed(nodes[place : place + 2])]
        swapped += nodes[place + 2 :]
        if swapped != nodes:
            yield swapped
    yield [*nodes, root]
    yield [root, *nodes]
    yield [*nodes, b""]


def test_no_altered_inclusion_proof_verifies():
    for size in (1, 2, 3, 5, 7, 8, 21):
        root = KNOWN_ROOTS[size]
        for index in range(size):
            proof, entry = TREE.inclusion(index, size), ENTRIES[index]
            for other in altered(proof, root):
                refused(verify_inclusion, entry, index, size, other, root)
            for place in {index - 1, index + 1, index ^ 2} - {index}:
                refused(verify_inclusion, entry, place, size, proof, root)
            refused(verify_inclusion, b"other", index, size, proof, root)
            refused(verify_inclusion, entry, index, size, proof, EMPTY_ROOT)
            refused(verify_inclusion, entry, index, 2 * size + 1, proof, root)


def test_no_altered_consistency_proof_verifies():
    for new in (2, 3, 5, 7, 8, 21):
        for old in range(1, new):
            first, last = KNOWN_ROOTS[old], KNOWN_ROOTS[new]
            proof = TREE.consistency(old, new)
            for other in altered(proof, last):
                refused(verify_consistency, old, new, first, last, other)
            refused(verify_consistency, old, new, first, last, [])
            refused(verify_consistency, old, new, last, first, proof)
            refused(verify_consistency, old, new, EMPTY_ROOT, last, proof)
            refused(verify_consistency, old, new, first, EMPTY_ROOT, proof)
            for size in {old - 1, old + 1} - {new}:
                refused(verify_consistency, size, new, first, last, proof)
            refused(verify_consistency, new, old, last, first, proof)


def test_nothing_is_proved_of_the_empty_tree_or_of_one_size_with_two_roots():
    first, second = KNOWN_ROOTS[3], KNOWN_ROOTS[4]
    verify_consistency(3, 3, first, first, [])
    refused(verify_consistency, 3, 3, first, second, [])
    refused(verify_consistency, 3, 3, first, first, [first])
    refused(verify_consistency, 0, 3, EMPTY_ROOT, first, [])
    refused(verify_consistency, 0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    refused(verify_inclusion, b"", 0, 0, [], EMPTY_ROOT)


def test_a_smaller_size_is_not_proved_by_the_nodes_of_a_larger_tree():
    """Of one tree all would verify: only the sizes say that the proof is too long."""
    left, right = (leaf_hash(entry) for entry in ENTRIES[:2])
    refused(verify_inclusion, ENTRIES[1], 0, 1, [left], KNOWN_ROOTS[2])
    refused(verify_inclusion, ENTRIES[3], 1, 2, TREE.inclusion(3, 4), KNOWN_ROOTS[4])
    refused(verify_consistency, 1, 1, right, KNOWN_ROOTS[2], [left])
    refused(verify_consistency, 2, 1, KNOWN_ROOTS[2], KNOWN_ROOTS[2], [])
    refused(verify_consistency, 4, 3, KNOWN_ROOTS[4], KNOWN_ROOTS[4], [])


@pytest.mark.parametrize(
    "ask",
    [
        lambda: TREE.root(SIZES + 1),
        lambda: TREE.root(-1),
        lambda: TREE.inclusion(3, 3),
        lambda: TREE.inclusion(0, SIZES + 1),
        lambda: TREE.inclusion(-2, 3),
        lambda: TREE.consistency(0, 3),
        lambda: TREE.consistency(4, 3),
        lambda: TREE.consistency(3, SIZES + 1),
    ],
)
def test_a_tree_has_no_root_or_proof_of_what_it_does_not_hold(ask):
    with pytest.raises(ValueError, match=r"empty one|no such part"):
        ask()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=8), min_size=2, max_size=200), st.data())
def test_any_tree_proves_its_parts_and_no_other_tree(entries, data):
    tree = Tree(entries)
    new = data.draw(st.integers(2, len(entries)))
    old = data.draw(st.integers(1, new - 1))
    place = data.draw(st.integers(0, old - 1))
    root, proof = tree.root(new), tree.consistency(old, new)
    assert root == oracle_root(entries[:new])
    verify_consistency(old, new, tree.root(old), root, proof)
    verify_inclusion(entries[place], place, new, tree.inclusion(place, new), root)
    # The same log with one entry changed before the old size.
    forked = Tree([*entries[:place], entries[place] + b"!", *entries[place + 1 :]])
    for forged in (proof, forked.consistency(old, new)):
        refused(verify_consistency, old, new, tree.root(old), forked.root(new), forged)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-1, 70),
    st.integers(-1, 70),
    st.lists(st.sampled_from(KNOWN_ROOTS), max_size=8),
)
def test_no_proof_does_more_than_be_refused(first, second, proof):
    roots = KNOWN_ROOTS[first % SIZES], KNOWN_ROOTS[second % SIZES]
    for verify, arguments in (
        (verify_consistency, (first, second, *roots, proof)),
        (verify_inclusion, (b"entry 3", first, second, proof, roots[0])),
    ):
        try:
            verify(*arguments)
        except BrokenChainError:
            continue


def test_a_leaf_is_never_taken_for_a_node():
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert node_hash(left, right) != leaf_hash(left + right)
    assert Tree([b"a", b"b"]).root() != Tree([left + right]).root()
