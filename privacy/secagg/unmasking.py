"""What the server does with revealed shares: verify, combine, take the masks off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from privacy.crypto import AgreementKey, equal
from privacy.errors import FaultyClientError
from privacy.secagg.key_shares import Direction, share_commitment
from privacy.secagg.masks import MaskContext, apply_masks
from privacy.secagg.messages import CheckedRoster, self_mask_commitment
from privacy.secagg.shamir import check_element, combine
from privacy.vectors import ResidueVector
from privacy.wire import Bytes32


@dataclass(frozen=True, slots=True)
class Deal:
    """What the key-share phase has fixed.

    Attributes:
        roster: U1.
        sharers_hash: binds U2 and what was dealt.
        commitments: by sharer, two for each place of the roster: to the share of b and
            to the share of the mask key. Its keys are U2.
    """

    roster: CheckedRoster
    sharers_hash: Bytes32
    commitments: Mapping[str, tuple[Bytes32, ...]]

    @property
    def sharers(self) -> tuple[str, ...]:
        """U2, in order."""
        return tuple(sorted(self.commitments))


def check_shares(
    deal: Deal, survivors: Sequence[str], client: str, shares: Sequence[bytes]
) -> None:
    """Hold what a client reveals against what was dealt to it.

    Args:
        deal: U1, U2 and the commitments.
        survivors: U3, which decides which of two shares is revealed.
        client: who reveals.
        shares: one for each sharer, in order.

    Raises:
        FaultyClientError: other shares than were dealt to this client.
        MalformedMessageError: a share that is not below the prime.
    """
    if len(shares) != len(deal.sharers):
        raise FaultyClientError(client, "revealed for more or fewer than dealt")
    place = deal.roster.names.index(client)
    kept = frozenset(survivors)
    for dealer, share in zip(deal.sharers, shares, strict=True):
        check_element(share)
        of_self_mask, of_mask_key = deal.commitments[dealer][2 * place : 2 * place + 2]
        direction = Direction(deal.roster.roster_hash, dealer, client)
        if dealer in kept:
            expected, found = (
                of_self_mask,
                share_commitment(direction, "self-mask", share),
            )
        else:
            expected, found = (
                of_mask_key,
                share_commitment(direction, "mask-key", share),
            )
        if not equal(expected, found):
            reason = f"revealed a share of {dealer!r} that was not dealt"
            raise FaultyClientError(client, reason)


def rebuild_secrets(
    deal: Deal,
    survivors: Sequence[str],
    offer_digest: bytes,
    reveals: Mapping[str, Sequence[bytes]],
) -> dict[str, bytes]:
    """The secrets that the survivors call for, each verified.

    Args:
        deal: U1, U2 and the commitments.
        survivors: U3.
        offer_digest: of the attempt.
        reveals: by client, shares that `check_shares` accepted; at least t clients.

    Returns:
        By sharer: b of a survivor, the mask key of a dropout; 32 bytes.

    Raises:
        FaultyClientError: a dealer whose shares do not combine to what its advert
            committed to.
    """
    points = {name: place + 1 for place, name in enumerate(deal.roster.names)}
    kept = frozenset(survivors)
    chosen = sorted(reveals)[: deal.roster.threshold]
    secrets = {}
    for place, dealer in enumerate(deal.sharers):
        secret = combine({points[client]: reveals[client][place] for client in chosen})
        advert = deal.roster.adverts[dealer]
        if dealer in kept:
            expected = advert.self_mask_commitment
            found = self_mask_commitment(offer_digest, dealer, secret)
        else:
            expected, found = advert.mask_key, AgreementKey(secret).public
        if not equal(expected, found):
            reason = "dealt shares that do not combine to what it committed to"
            raise FaultyClientError(dealer, reason)
        secrets[dealer] = secret
    return secrets


def remove_masks(
    residues: ResidueVector,
    *,
    context: MaskContext,
    deal: Deal,
    survivors: Sequence[str],
    secrets: Mapping[str, bytes],
    modulus_bits: int,
) -> None:
    """Take self masks, and what dropouts left behind, off a masked sum, in place.

    Args:
        residues: shape (d + 1,), uint32: the sum of the survivors' masked vectors.
        context: what the masks are bound to.
        deal: U1, U2 and the commitments.
        survivors: U3.
        secrets: as `rebuild_secrets` returns them.
        modulus_bits: residues are modulo two to this power.
    """
    subtracted = [context.self_key(secrets[name], name) for name in survivors]
    added: list[bytes] = []
    for dropout in sorted(set(deal.sharers) - set(survivors)):
        own = AgreementKey(secrets[dropout])
        end = (dropout, deal.roster.adverts[dropout].mask_key)
        for survivor in survivors:
            peer = (survivor, deal.roster.adverts[survivor].mask_key)
            key = context.pairwise_key(own, end, peer)
            # The lower of the two had added the mask, the higher subtracted it.
            (subtracted if survivor < dropout else added).append(key)
    apply_masks(residues, added=added, subtracted=subtracted, modulus_bits=modulus_bits)
