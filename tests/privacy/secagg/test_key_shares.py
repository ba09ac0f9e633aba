import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.crypto import AgreementKey, Label, sha256
from privacy.errors import FaultyClientError, MalformedMessageError
from privacy.secagg.key_shares import (
    Direction,
    SealedShare,
    SharePair,
    deal,
    merkle_climb,
    merkle_paths,
    open_share,
    share_commitments,
    share_leaf,
)
from privacy.secagg.shamir import PRIME, combine
from tests.privacy.secagg.harness import Counter

NAMES = ("ada", "bob", "eve")
KEYS = {name: AgreementKey(sha256(Label.PLAN, name.encode())) for name in NAMES}
PUBLICS = {name: key.public for name, key in KEYS.items()}
ROSTER = b"\x05" * 32
SECRETS = SharePair(b"\x01" * 32, b"\x02" * 32)


def dealt(**changes):
    settings = {
        "threshold": 2,
        "roster_hash": ROSTER,
        "dealer": "ada",
        "own": KEYS["ada"],
        "publics": PUBLICS,
        "entropy": Counter("deal"),
    }
    return deal(SECRETS, **(settings | changes))


def opened(sealed, reader="bob", *, dealer="ada", holder=None, roster_hash=ROSTER):
    direction = Direction(roster_hash, dealer, holder or reader)
    return open_share(sealed, direction, KEYS[reader], PUBLICS["ada"])


def test_two_holders_put_both_secrets_together():
    pairs = [
        opened(sealed, holder) for sealed, holder in zip(dealt(), NAMES, strict=True)
    ]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        both = {first + 1: pairs[first], second + 1: pairs[second]}
        of_b = combine({x: pair.self_mask for x, pair in both.items()})
        of_key = combine({x: pair.mask_key for x, pair in both.items()})
        assert (of_b, of_key) == (SECRETS.self_mask, SECRETS.mask_key)


def test_a_share_opens_only_for_its_holder_dealer_and_roster():
    sealed = dealt()[1]
    opened(sealed)
    for changes in (
        {"holder": "eve"},
        {"dealer": "eve"},
        {"roster_hash": b"\x06" * 32},
    ):
        with pytest.raises(FaultyClientError, match="does not open"):
            opened(sealed, **changes)


def test_a_share_that_was_not_committed_to_blames_its_dealer():
    first, second = dealt()[1], dealt(entropy=Counter("again"))[1]
    mixed = SealedShare(
        first.self_mask_commitment, second.mask_key_commitment, first.ciphertext
    )
    with pytest.raises(FaultyClientError, match="did not commit") as caught:
        opened(mixed)
    assert caught.value.client == "ada"


@pytest.mark.parametrize("place", [0, 1], ids=["self mask", "mask key"])
def test_a_share_above_the_prime_blames_its_dealer(monkeypatch, place):
    shares = [[bytes(32)] * 3, [bytes(32)] * 3]
    shares[place] = [PRIME.to_bytes(32, "big")] * 3
    monkeypatch.setattr("privacy.secagg.key_shares.split", lambda *_: shares.pop(0))
    with pytest.raises(FaultyClientError, match="below the prime"):
        opened(dealt()[1])


def test_the_two_directions_of_a_pair_use_different_keys():
    # With threshold 1 every share is the secret itself: one plaintext, both ways.
    there = dealt(threshold=1)[1]
    back = dealt(threshold=1, dealer="bob", own=KEYS["bob"])[0]
    assert there.ciphertext != back.ciphertext


def test_commitments_are_bound_to_dealer_holder_roster_and_secret():
    pair = SharePair(b"\x07" * 32, b"\x07" * 32)
    directions = [
        Direction(ROSTER, "ada", "bob"),
        Direction(ROSTER, "bob", "ada"),
        Direction(ROSTER, "ada", "eve"),
        Direction(b"\x06" * 32, "ada", "bob"),
    ]
    found = [part for item in directions for part in share_commitments(item, pair)]
    assert len(set(found)) == len(found)


def leaves_of(count):
    return [sha256(Label.KEY_SHARE_LEAF, bytes([k])) for k in range(count)]


@settings(deadline=None)
@given(st.integers(1, 70), st.data())
def test_every_leaf_climbs_to_the_root(count, data):
    index = data.draw(st.integers(0, count - 1))
    leaves = leaves_of(count)
    root, paths = merkle_paths(leaves)
    assert merkle_climb(leaves[index], index, count, paths[index]) == root


@settings(deadline=None)
@given(st.integers(2, 40), st.data())
def test_no_other_leaf_place_or_path_climbs_to_the_root(count, data):
    leaves = leaves_of(count)
    root, paths = merkle_paths(leaves)
    index = data.draw(st.integers(0, count - 1))
    other = data.draw(st.integers(0, count - 1).filter(lambda k: k != index))
    assert merkle_climb(leaves[other], index, count, paths[index]) != root
    for path in (paths[index][:-1], (*paths[index], leaves[0])):
        with pytest.raises(MalformedMessageError, match="path that is too"):
            merkle_climb(leaves[index], index, count, path)
    try:
        elsewhere = merkle_climb(leaves[index], other, count, paths[index])
    except MalformedMessageError:
        return
    assert elsewhere != root


def test_a_leaf_covers_the_ciphertext():
    sealed = dealt()[1]
    direction = Direction(ROSTER, "ada", "bob")
    altered = SealedShare(*sealed.commitments, sealed.ciphertext[:-1] + b"\0")
    assert share_leaf(direction, sealed) != share_leaf(direction, altered)


def test_no_share_shows_in_a_repr():
    assert "\\x07" not in repr(SharePair(b"\x07" * 32, b"\x07" * 32))
