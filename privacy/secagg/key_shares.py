"""Dealing key shares: encrypted for each holder, committed to under one signed root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from privacy.crypto import (
    AgreementKey,
    Label,
    equal,
    hkdf_sha256,
    seal,
    sha256,
    unseal,
)
from privacy.errors import FaultyClientError, MalformedMessageError
from privacy.secagg.shamir import Entropy, check_element, split
from privacy.wire import Bytes32, decode, encode

# Each directional key encrypts one message, ever: it comes from agreement keys that are
# fresh in this round, and a dealer deals to a holder once. So the nonce may be fixed.
_SHARE_NONCE = bytes(12)


@dataclass(frozen=True, slots=True)
class SharePair:
    """What one client holds of another's two secrets.

    Attributes:
        self_mask: share of the secret b.
        mask_key: share of the secret mask key.
    """

    self_mask: Bytes32 = field(repr=False)
    mask_key: Bytes32 = field(repr=False)


@dataclass(frozen=True, slots=True)
class SealedShare:
    """One dealt pair of shares.

    Attributes:
        self_mask_commitment: hash of the share of b.
        mask_key_commitment: hash of the share of the mask key. Two hashes, since only
            one of the two shares is ever revealed.
        ciphertext: AES-256-GCM of the `SharePair`.
    """

    self_mask_commitment: Bytes32
    mask_key_commitment: Bytes32
    ciphertext: bytes

    @property
    def commitments(self) -> tuple[bytes, bytes]:
        """Of the share of b, then of the mask key's."""
        return (self.self_mask_commitment, self.mask_key_commitment)


@dataclass(frozen=True, slots=True)
class Direction:
    """From whom to whom, over which roster: what a share is bound to.

    Attributes:
        roster_hash: the roster.
        dealer: whose secrets were shared.
        holder: for whom.
    """

    roster_hash: Bytes32
    dealer: str
    holder: str


@lru_cache(maxsize=4)
def _bound(direction: Direction) -> bytes:
    """The bytes of a direction, which go into all that is made of one share."""
    return encode(direction)


def share_commitment(direction: Direction, secret: str, share: bytes) -> bytes:
    """The commitment to one share. A share is a random 256-bit number: no salt.

    Args:
        direction: from whom to whom.
        secret: "self-mask" or "mask-key".
        share: 32 bytes.
    """
    bound = _bound(direction)
    return sha256(Label.KEY_SHARE_COMMITMENT, bound, secret.encode(), share)


def share_commitments(direction: Direction, pair: SharePair) -> tuple[bytes, bytes]:
    """Commitments to both shares: of b, then of the mask key."""
    return (
        share_commitment(direction, "self-mask", pair.self_mask),
        share_commitment(direction, "mask-key", pair.mask_key),
    )


def share_leaf(direction: Direction, sealed: SealedShare) -> bytes:
    """The leaf of a dealt share in its dealer's hash tree.

    It covers the ciphertext too: a share that does not open is then the dealer's fault
    beyond doubt, not perhaps the server's.
    """
    return sha256(Label.KEY_SHARE_LEAF, _bound(direction), encode(sealed))


def deal(
    secrets: SharePair,
    *,
    threshold: int,
    roster_hash: bytes,
    dealer: str,
    own: AgreementKey,
    publics: Mapping[str, bytes],
    entropy: Entropy,
) -> tuple[SealedShare, ...]:
    """Share both secrets with everybody in the roster, oneself included.

    Args:
        secrets: b and the secret mask key.
        threshold: Shamir threshold t.
        roster_hash: the roster.
        dealer: who deals.
        own: the dealer's encryption key.
        publics: encryption key of every client, in roster order.
        entropy: fresh bytes, for the polynomials.

    Returns:
        One sealed pair for each holder, in roster order.
    """
    of_self_mask, of_mask_key = (
        split(secret, threshold, len(publics), entropy)
        for secret in (secrets.self_mask, secrets.mask_key)
    )
    sealed = []
    for place, (holder, public) in enumerate(publics.items()):
        pair = SharePair(of_self_mask[place], of_mask_key[place])
        direction = Direction(roster_hash, dealer, holder)
        key = _share_key(own.agree(public), direction)
        ciphertext = seal(key, _SHARE_NONCE, encode(pair), _bound(direction))
        sealed.append(SealedShare(*share_commitments(direction, pair), ciphertext))
    return tuple(sealed)


def open_share(
    sealed: SealedShare, direction: Direction, own: AgreementKey, public: bytes
) -> SharePair:
    """Decrypt a dealt pair, and hold it against its commitments.

    Args:
        sealed: as dealt; the caller has climbed from it to the dealer's signed root.
        direction: from whom to whom.
        own: the holder's encryption key.
        public: the dealer's encryption key.

    Raises:
        FaultyClientError: the dealer's share does not open, is not below the prime, or
            is not what it committed to.
    """
    key = _share_key(own.agree(public), direction)
    try:
        plaintext = unseal(key, _SHARE_NONCE, sealed.ciphertext, _bound(direction))
        pair = decode(SharePair, plaintext)
        check_element(pair.self_mask)
        check_element(pair.mask_key)
    except MalformedMessageError as error:
        raise FaultyClientError(direction.dealer, f"dealt {error}") from None
    found = share_commitments(direction, pair)
    same = [equal(*both) for both in zip(found, sealed.commitments, strict=True)]
    if not all(same):
        reason = "dealt a share that it did not commit to"
        raise FaultyClientError(direction.dealer, reason)
    return pair


def _share_key(secret: bytes, direction: Direction) -> bytes:
    """The key of one direction between two clients: it encrypts one message."""
    return hkdf_sha256(
        secret,
        salt=direction.roster_hash,
        label=Label.KEY_SHARE_ENCRYPTION,
        info=_bound(direction),
    )


def merkle_paths(leaves: Sequence[bytes]) -> tuple[bytes, list[tuple[bytes, ...]]]:
    """A binary hash tree, in which an odd node moves up as it is.

    One signature over the root lets every holder check its own leaf against log2(n)
    hashes, where a signed list would cost n**3 hashes on the wire of a round.

    Args:
        leaves: at least one hash of 32 bytes, made under a label of its own.

    Returns:
        The root, and for each leaf its sibling hashes from the bottom up.
    """
    paths: list[list[bytes]] = [[] for _ in leaves]
    row, depth = list(leaves), 0
    while len(row) > 1:
        for index, path in enumerate(paths):
            sibling = (index >> depth) ^ 1
            if sibling < len(row):
                path.append(row[sibling])
        row = [
            _node(row[k], row[k + 1]) if k + 1 < len(row) else row[k]
            for k in range(0, len(row), 2)
        ]
        depth += 1
    return row[0], [tuple(path) for path in paths]


def merkle_climb(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes:
    """The root that a leaf and its path lead to.

    Raises:
        MalformedMessageError: the path has not the length that a tree of `count` leaves
            gives this leaf.
    """
    node = leaf
    siblings = list(path)
    while count > 1:
        sibling = index ^ 1
        if sibling < count:
            if not siblings:
                msg = "a commitment path that is too short"
                raise MalformedMessageError(msg)
            other = siblings.pop(0)
            node = _node(node, other) if index < sibling else _node(other, node)
        index //= 2
        count = (count + 1) // 2
    if siblings:
        msg = "a commitment path that is too long"
        raise MalformedMessageError(msg)
    return node


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(Label.KEY_SHARE_NODE, left, right)


def share_leaves(
    roster_hash: bytes, dealer: str, names: Sequence[str], sealed: Sequence[SealedShare]
) -> list[bytes]:
    """The leaves of everything that a dealer dealt, in roster order."""
    return [
        share_leaf(Direction(roster_hash, dealer, holder), package)
        for holder, package in zip(names, sealed, strict=True)
    ]
