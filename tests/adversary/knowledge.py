"""What a hostile server and its colluders can compute from all that they saw.

Nothing is taken for granted: every t of the shares are combined and the result held
against the advert, every mask whose key follows is taken off every sum of vectors, and
what is left is compared with the plain sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np

from privacy.crypto import AgreementKey
from privacy.secagg import client
from privacy.secagg.envelope import Signed
from privacy.secagg.key_shares import Direction, open_share
from privacy.secagg.masks import MaskContext, apply_masks
from privacy.secagg.messages import (
    Advert,
    CheckedRoster,
    MaskedHeader,
    MaskedInput,
    Reveal,
    Roster,
    make_roster,
    self_mask_commitment,
    words_from_bytes,
)
from privacy.secagg.shamir import combine
from privacy.wire import decode
from tests.adversary.hostile import HostileServer, Part, Strategy, key_of
from tests.privacy.secagg.harness import plain_sum

# Share by holder, by dealer and kind.
Shares: TypeAlias = dict[tuple[str, str], dict[str, bytes]]
Secrets: TypeAlias = dict[tuple[str, str], bytes]


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a server and its colluders can compute from all that they saw.

    Attributes:
        violations: broken promises, in words.
        sums: sets of honest clients the sum of whose vectors it found.
    """

    violations: tuple[str, ...]
    sums: frozenset[frozenset[str]]


class Analyst:
    """Works out what follows from a strategy, and remembers it."""

    def __init__(self, hostile: HostileServer) -> None:
        self.hostile = hostile
        self._rosters: dict[object, CheckedRoster] = {}
        self._pairs: dict[object, bytes] = {}
        self._known: dict[object, Knowledge] = {}

    def learns(self, strategy: Strategy) -> Knowledge:
        """Everything that follows from a strategy's messages."""
        key = (
            tuple(part.sent[2] for part in strategy.senders),
            frozenset(part.sent[4] for part in strategy.reveals),
        )
        if key not in self._known:
            self._known[key] = self._combine(strategy)
        return self._known[key]

    def _combine(self, strategy: Strategy) -> Knowledge:
        """Combine all shares, strip every mask whose key follows, and compare."""
        shares, said_both = gather(self, strategy)
        secrets, both = rebuild(self, strategy, shares)
        sums = frozenset(
            frozenset(part.name for part in chosen)
            for count in range(1, len(strategy.senders) + 1)
            for chosen in combinations(strategy.senders, count)
            if strip(self, chosen, secrets)
        )
        wrong = (*said_both, *both, *too_much(self, strategy, sums))
        return Knowledge(wrong, sums)

    def roster_of(self, part: Part) -> CheckedRoster:
        """The public keys that a client verified."""
        key = (part.offer, part.heard[1])
        if key not in self._rosters:
            signed = decode(Roster, decode(Signed, part.heard[1]).body).adverts
            adverts = {
                name: decode(Advert, decode(Signed, data).body)
                for name, data in signed.items()
            }
            self._rosters[key] = make_roster(
                self.hostile.terms, self.hostile.digests[part.offer], signed, adverts
            )
        return self._rosters[key]

    def pairwise_key(
        self,
        context: MaskContext,
        own: AgreementKey,
        end: tuple[str, bytes],
        peer: tuple[str, bytes],
    ) -> bytes:
        """The mask key of two clients, from the private key of one."""
        if (context, end, peer) not in self._pairs:
            self._pairs[context, end, peer] = context.pairwise_key(own, end, peer)
        return self._pairs[context, end, peer]


def gather(analyst: Analyst, strategy: Strategy) -> tuple[Shares, list[str]]:
    """The shares that were revealed, and those that colluders hold."""
    shares: Shares = {}
    wrong = []
    for part in strategy.reveals:
        revealed = part.body(4, Reveal).shares
        for dealer, share in zip(sorted(part.names(2)), revealed, strict=True):
            kind = "self mask" if dealer in part.names(3) else "mask key"
            shares.setdefault((dealer, kind), {})[part.name] = share
            if dealer == part.name and kind == "mask key":
                wrong.append(f"{dealer} helped to call itself a dropout")
    for (dealer, kind), by_holder in shares.items():
        other = shares.get((dealer, "mask key"), {}) if kind == "self mask" else {}
        wrong += [
            f"{holder} revealed both shares of {dealer}"
            for holder in by_holder.keys() & other.keys()
        ]
    for dealer in strategy.senders:
        roster = analyst.roster_of(dealer)
        for name, variant in dealer.told[1]:
            if name not in analyst.hostile.colluding:
                continue
            shadow = analyst.hostile.shadows[name, variant, dealer.offer]
            own = client.restore_client(shadow.state, key_of(name)).encryption_key
            pair = open_share(
                analyst.hostile.delivery(dealer, name).sealed,
                Direction(roster.roster_hash, dealer.name, name),
                own,
                roster.adverts[dealer.name].encryption_key,
            )
            shares.setdefault((dealer.name, "self mask"), {})[name] = pair.self_mask
            shares.setdefault((dealer.name, "mask key"), {})[name] = pair.mask_key
    return shares, wrong


def rebuild(
    analyst: Analyst, strategy: Strategy, shares: Shares
) -> tuple[Secrets, list[str]]:
    """Every secret that any t of the shares combine to."""
    secrets: Secrets = {}
    wrong = []
    for dealer in strategy.senders:
        roster = analyst.roster_of(dealer)
        advert = roster.adverts[dealer.name]
        digest = analyst.hostile.digests[dealer.offer]
        for kind in ("self mask", "mask key"):
            held = {
                roster.names.index(holder) + 1: share
                for holder, share in shares.get((dealer.name, kind), {}).items()
                if holder in roster.names
            }
            for points in combinations(sorted(held), roster.threshold):
                secret = combine({x: held[x] for x in points})
                if kind == "self mask":
                    found = self_mask_commitment(digest, dealer.name, secret)
                    right = found == advert.self_mask_commitment
                else:
                    right = AgreementKey(secret).public == advert.mask_key
                if right:
                    secrets[dealer.name, kind] = secret
        if all((dealer.name, kind) in secrets for kind in ("self mask", "mask key")):
            wrong.append(f"both secrets of {dealer.name} are known")
    return secrets, wrong


def strip(analyst: Analyst, chosen: Sequence[Part], secrets: Secrets) -> bool:
    """Whether the sum of these clients' vectors is bare without the known masks."""
    terms = analyst.hostile.terms
    total = np.zeros(terms.vector_length, np.uint32)
    added, subtracted = [], []
    for part in chosen:
        total += words_from_bytes(decode(MaskedInput, part.sent[2]).words)
        header = part.body(2, MaskedHeader, MaskedInput)
        context = MaskContext(
            header.roster_hash,
            header.sharers_hash,
            terms.adapter_digest,
            terms.plan_digest,
        )
        if (part.name, "self mask") in secrets:
            seed = secrets[part.name, "self mask"]
            subtracted.append(context.self_key(seed, part.name))
        publics = analyst.roster_of(part).adverts
        for peer in set(part.names(2)) - {part.name}:
            ends = [(name, publics[name].mask_key) for name in (part.name, peer)]
            for end, other in (ends, ends[::-1]):
                own = mask_key_of(analyst, part, end[0], secrets)
                if own is not None:
                    key = analyst.pairwise_key(context, own, end, other)
                    (subtracted if part.name < peer else added).append(key)
                    break
    apply_masks(
        total, added=added, subtracted=subtracted, modulus_bits=terms.modulus_bits
    )
    return np.array_equal(total, plain_sum(terms, [part.name for part in chosen]))


def mask_key_of(
    analyst: Analyst, part: Part, name: str, secrets: Secrets
) -> AgreementKey | None:
    """A client's private mask key, if it was rebuilt or is a colluder's."""
    for peer, variant in part.told[1]:
        if peer == name and peer in analyst.hostile.colluding:
            shadow = analyst.hostile.shadows[peer, variant, part.offer]
            return client.restore_client(shadow.state, key_of(peer)).mask_key
    secret = secrets.get((name, "mask key"))
    return None if secret is None else AgreementKey(secret)


def too_much(
    analyst: Analyst, strategy: Strategy, sums: frozenset[frozenset[str]]
) -> list[str]:
    """Sums that are too small, or that share a vector and differ."""
    wrong = []
    parts = {part.name: part for part in strategy.senders}
    for names in sums:
        dealers = {peer for name in names for peer in parts[name].names(2)}
        vectors = names | (dealers & set(analyst.hostile.colluding))
        least = max(
            analyst.hostile.terms.least_clients(
                analyst.roster_of(parts[name]).threshold
            )
            for name in names
        )
        if len(vectors) < least:
            wrong.append(f"a sum of {len(vectors)} vectors, where {least} are promised")
    for one, two in combinations(sums, 2):
        # A sum and a disjoint one give their union too: what counts is a remainder.
        if (
            one & two
            and not (one < two and two - one in sums)
            and not (two < one and one - two in sums)
        ):
            wrong.append("one vector in two sums over different survivors")
    return wrong
