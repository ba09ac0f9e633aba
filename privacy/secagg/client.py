"""A client's side of one round, without input or output.

`join` answers the server's offer. Each state then has one method that goes on: it takes
the bytes of the next message, or the client's own vector, and returns the next state
and the bytes to send, if any. **Store the next state before the bytes are sent**, and
forget the one before: two answers of one state are what an attacker wants. A state
restored from its bytes goes on as if nothing had happened. Any error ends this client's
part in the round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, TypeAlias, TypeVar

import numpy as np

from privacy.crypto import AgreementKey, Label, SigningKey, equal
from privacy.errors import (
    BadSignatureError,
    FaultyPeerOrServerError,
    FaultyServerError,
    MalformedMessageError,
    PlanMismatchError,
    RefusalError,
    ReplayError,
)
from privacy.packing import pack_in_place, within_modulus
from privacy.secagg.envelope import (
    Message,
    load_state,
    read_client,
    read_server,
    sign,
    store_state,
)
from privacy.secagg.key_shares import (
    Direction,
    SharePair,
    deal,
    merkle_climb,
    merkle_paths,
    open_share,
    share_leaf,
    share_leaves,
)
from privacy.secagg.masks import MaskContext, apply_masks
from privacy.secagg.messages import (
    Advert,
    CheckedRoster,
    Consistency,
    Delivery,
    Inbox,
    KeyShares,
    KeySharesHead,
    MaskedHeader,
    MaskedInput,
    Published,
    Quorum,
    Reveal,
    Roster,
    Survivors,
    header_digest,
    make_roster,
    read_advert,
    read_offer,
    read_published,
    repeated_keys,
    self_mask_commitment,
    sharers_hash_of,
    survivors_hash_of,
    vector_hash,
)
from privacy.secagg.shamir import Entropy, draw_element
from privacy.secagg.terms import RoundTerms, require_clients
from privacy.vectors import NoisedVector
from privacy.wire import ATTACHED, Bytes32, encode

_Body = TypeVar("_Body", bound=Message)


class _Once:
    """Refuses a second use of a state in this process; the store does the rest."""

    __slots__ = ("_used",)

    def __init__(self) -> None:
        self._used = False

    def use(self) -> None:
        """Mark as used.

        Raises:
            ReplayError: it was used before.
        """
        if self._used:
            msg = "this answer was already given: go on from the state that it returned"
            raise ReplayError(msg)
        self._used = True


@dataclass(frozen=True, slots=True)
class Seat:
    """A client's place in one attempt of one round.

    Attributes:
        terms: the client's own.
        name: the client's.
        offer_digest: names the attempt.
        deadlines: the slots that the offer gave, for the runtime.
    """

    terms: RoundTerms
    name: str
    offer_digest: Bytes32
    deadlines: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What every state of a client holds.

    Attributes:
        seat: which client, in which round.
        signing_key: the client's identity. It outlives the round, so it is not part of
            the stored bytes and is given again when a state is restored.
    """

    seat: Seat
    signing_key: SigningKey = field(repr=False, metadata=ATTACHED)
    _once: _Once = field(
        default_factory=_Once, repr=False, compare=False, metadata=ATTACHED
    )

    def to_bytes(self) -> bytes:
        """The state as bytes, secrets included: keep them where keys are kept."""
        return store_state(self)

    @classmethod
    def from_bytes(cls, data: bytes, signing_key: SigningKey) -> Self:
        """Restore a state of this kind.

        Raises:
            MalformedMessageError: not the bytes of such a state.
            PlanMismatchError: the state belongs to another identity.
        """
        state = load_state((cls,), data, {"signing_key": signing_key})
        check_owner(state.seat, signing_key)
        return state

    def _read(self, data: bytes, kind: type[_Body]) -> _Body:
        return read_server(data, kind, self.seat.terms, self.seat.offer_digest)

    def _sign(self, message: Message) -> bytes:
        return sign(message, self.seat.name, self.seat.offer_digest, self.signing_key)


def check_owner(seat: Seat, signing_key: SigningKey) -> None:
    """Refuse to go on in the place of another client.

    Raises:
        PlanMismatchError: the key is not the seat's identity.
    """
    if seat.terms.name_of(signing_key.verify_key) != seat.name:
        msg = "this state belongs to another identity: restore it with its own key"
        raise PlanMismatchError(msg)


def join(
    offer: bytes,
    terms: RoundTerms,
    signing_key: SigningKey,
    entropy: Entropy,
    last_round: int,
) -> tuple[AwaitingRoster, bytes]:
    """Answer an offer with keys that are fresh for this round.

    Args:
        offer: the server's message.
        terms: the client's own, from its own plan and the adapter it has loaded.
        signing_key: the client's identity.
        entropy: fresh bytes.
        last_round: the highest round number that this client ever joined. The caller
            stores `terms.round_number` in its place together with the new state.

    Returns:
        The next state, and the advert to send.

    Raises:
        MalformedMessageError: not an offer.
        FaultyServerError: not signed by the pinned server.
        ReplayError: not a later round than the last.
        PlanMismatchError: the offer differs from the client's own terms.
    """
    name = terms.name_of(signing_key.verify_key)
    accepted, digest = read_offer(offer, terms, last_round)
    encryption_key = AgreementKey(draw_element(entropy))
    mask_key = AgreementKey(draw_element(entropy))
    self_mask = draw_element(entropy)
    advert = Advert(
        encryption_key=encryption_key.public,
        mask_key=mask_key.public,
        self_mask_commitment=self_mask_commitment(digest, name, self_mask),
    )
    message = sign(advert, name, digest, signing_key)
    state = AwaitingRoster(
        seat=Seat(terms, name, digest, accepted.deadlines),
        signing_key=signing_key,
        advert=message,
        encryption_key=encryption_key,
        mask_key=mask_key,
        self_mask=self_mask,
    )
    return state, message


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitingRoster(_State):
    """Own keys are advertised; those of the peers are awaited.

    Attributes:
        advert: the signed advert, as it was sent.
        encryption_key: for key shares.
        mask_key: for pairwise masks.
        self_mask: the secret b, 32 bytes.
    """

    advert: bytes
    encryption_key: AgreementKey = field(repr=False)
    mask_key: AgreementKey = field(repr=False)
    self_mask: Bytes32 = field(repr=False)

    def share_keys(
        self, roster: bytes, entropy: Entropy
    ) -> tuple[AwaitingShares, bytes]:
        """Verify the whole roster, and deal shares of both secrets over it.

        Args:
            roster: the server's message.
            entropy: fresh bytes, for the polynomials.

        Returns:
            The next state, and the key shares to send.

        Raises:
            MalformedMessageError: not a roster.
            ReplayError: of another attempt, or this state was already used.
            FaultyServerError: an advert that its client did not sign, a public key
                that must not be used or occurs twice, our own advert altered.
            BelowThresholdError: too few clients.
        """
        self._once.use()
        checked = self._check(self._read(roster, Roster))
        name = self.seat.name
        sealed = deal(
            SharePair(self.self_mask, self.mask_key.seed),
            threshold=checked.threshold,
            roster_hash=checked.roster_hash,
            dealer=name,
            own=self.encryption_key,
            publics={
                peer: checked.adverts[peer].encryption_key for peer in checked.names
            },
            entropy=entropy,
        )
        leaves = share_leaves(checked.roster_hash, name, checked.names, sealed)
        root, _ = merkle_paths(leaves)
        head = KeySharesHead(checked.roster_hash, root)
        state = AwaitingShares(
            seat=self.seat,
            signing_key=self.signing_key,
            roster=checked,
            encryption_key=self.encryption_key,
            mask_key=self.mask_key,
            self_mask=self.self_mask,
        )
        return state, encode(KeyShares(self._sign(head), sealed))

    def _check(self, roster: Roster) -> CheckedRoster:
        """Verify what an honest server has verified: every failure is the server's."""
        terms, digest = self.seat.terms, self.seat.offer_digest
        # Byte for byte: another advert in our name would mean that our identity key is
        # in other hands, and our shares would go out over keys that are not ours.
        if roster.adverts.get(self.seat.name) != self.advert:
            msg = "the roster does not hold our own advert as we sent it"
            raise FaultyServerError(msg)
        adverts = {}
        for name, signed in roster.adverts.items():
            if name not in terms.cohort:
                msg = f"the roster names {name!r}, who is not in the cohort"
                raise FaultyServerError(msg)
            try:
                adverts[name] = read_advert(signed, name, terms, digest)
            except (MalformedMessageError, ReplayError, BadSignatureError) as error:
                msg = f"the roster's advert of client {name!r} is wrong: {error}"
                raise FaultyServerError(msg) from None
        if repeated_keys(adverts):
            msg = "a public key occurs twice in the roster"
            raise FaultyServerError(msg)
        return make_roster(terms, digest, roster.adverts, adverts)


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitingShares(_State):
    """Own shares are dealt; those of the peers are awaited.

    Attributes:
        roster: everybody's verified public keys.
        encryption_key: for key shares.
        mask_key: for pairwise masks.
        self_mask: the secret b, 32 bytes.
    """

    roster: CheckedRoster
    encryption_key: AgreementKey = field(repr=False)
    mask_key: AgreementKey = field(repr=False)
    self_mask: Bytes32 = field(repr=False)

    def open_inbox(self, incoming: bytes) -> AwaitingVector:
        """Verify what everybody dealt to us, before there is a vector to lose.

        Nothing is sent. A client makes its noised vector, and so spends privacy
        budget, only once this has returned.

        Args:
            incoming: the server's message with everybody's shares for us.

        Returns:
            The next state. The private keys and b are not in it: they have become the
            keys of the masks, which only the shares can remove.

        Raises:
            MalformedMessageError: not such a message.
            ReplayError: of another attempt, or this state was already used.
            FaultyServerError: deliveries that an honest server does not forward.
            FaultyClientError: a dealer whose share does not open or is not what it
                committed to.
            FaultyPeerOrServerError: a dealer that signed another roster.
            BelowThresholdError: too few dealers.
        """
        self._once.use()
        terms, roster = self.seat.terms, self.roster
        inbox = self._read(incoming, Inbox)
        heads = self._check_dealers(inbox.deliveries)
        key_shares = {
            dealer: self._open(dealer, heads[dealer], delivery)
            for dealer, delivery in inbox.deliveries.items()
        }
        roots = {dealer: head.root for dealer, head in heads.items()}
        context = MaskContext(
            roster_hash=roster.roster_hash,
            sharers_hash=sharers_hash_of(roster.roster_hash, roots),
            adapter_digest=terms.adapter_digest,
            plan_digest=terms.plan_digest,
        )
        added, subtracted = self._mask_keys(context, tuple(heads))
        return AwaitingVector(
            seat=self.seat,
            signing_key=self.signing_key,
            roster_hash=roster.roster_hash,
            threshold=roster.threshold,
            sharers_hash=context.sharers_hash,
            key_shares=key_shares,
            added=added,
            subtracted=subtracted,
        )

    def _check_dealers(
        self, deliveries: Mapping[str, Delivery]
    ) -> dict[str, KeySharesHead]:
        """Everybody's signed head, over the roster that we know."""
        terms, digest = self.seat.terms, self.seat.offer_digest
        if self.seat.name not in deliveries:
            msg = "the server left our own key shares out"
            raise FaultyServerError(msg)
        least = terms.least_clients(self.roster.threshold)
        require_clients(len(deliveries), least, "dealt key shares")
        heads = {}
        for dealer, delivery in deliveries.items():
            if dealer not in self.roster.adverts:
                msg = f"key shares of {dealer!r}, who is not in the roster"
                raise FaultyServerError(msg)
            try:
                head = read_client(
                    delivery.head,
                    KeySharesHead,
                    dealer,
                    terms,
                    digest,
                )
            except (MalformedMessageError, ReplayError, BadSignatureError) as error:
                msg = f"the key shares of client {dealer!r} are wrong: {error}"
                raise FaultyServerError(msg) from None
            if head.roster_hash != self.roster.roster_hash:
                raise FaultyPeerOrServerError(dealer, "dealt over another roster")
            heads[dealer] = head
        return heads

    def _open(self, dealer: str, head: KeySharesHead, delivery: Delivery) -> SharePair:
        """Decrypt one dealer's shares and hold them against its commitments."""
        names, name, sealed = self.roster.names, self.seat.name, delivery.sealed
        direction = Direction(self.roster.roster_hash, dealer, name)
        leaf = share_leaf(direction, sealed)
        root = merkle_climb(leaf, names.index(name), len(names), delivery.path)
        if not equal(root, head.root):
            # The dealer signed the root, and an honest server has recomputed it.
            msg = f"a share of client {dealer!r} was altered on its way"
            raise FaultyServerError(msg)
        public = self.roster.adverts[dealer].encryption_key
        return open_share(sealed, direction, self.encryption_key, public)

    def _mask_keys(
        self, context: MaskContext, sharers: tuple[str, ...]
    ) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """Keys of the self mask and of a pairwise mask for every other sharer.

        Returns:
            The keys whose masks are added, and those whose masks are subtracted.
        """
        name, adverts = self.seat.name, self.roster.adverts
        own = (name, adverts[name].mask_key)
        added = [context.self_key(self.self_mask, name)]
        subtracted: list[bytes] = []
        for peer in sharers:
            if peer == name:
                continue
            other = (peer, adverts[peer].mask_key)
            key = context.pairwise_key(self.mask_key, own, other)
            (added if name < peer else subtracted).append(key)
        return tuple(added), tuple(subtracted)


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitingVector(_State):
    """Everybody's shares are verified; the client's own noised vector is awaited.

    `mask` consumes this state. Two inputs under one mask would reveal their difference,
    so the runtime forgets the state before it sends the bytes.

    Attributes:
        roster_hash: U1.
        threshold: Shamir threshold t.
        sharers_hash: U2.
        key_shares: both shares of every member of U2.
        added: keys of the masks that are added to the vector.
        subtracted: keys of the masks that are subtracted from it.
    """

    roster_hash: Bytes32
    threshold: int
    sharers_hash: Bytes32
    key_shares: Mapping[str, SharePair] = field(repr=False)
    added: tuple[Bytes32, ...] = field(repr=False)
    subtracted: tuple[Bytes32, ...] = field(repr=False)

    def mask(self, noised: NoisedVector) -> tuple[AwaitingSurvivors, bytes]:
        """Hide a noised vector under the round's masks.

        Args:
            noised: what this client contributes, made under the same plan and round.

        Returns:
            The next state, and the masked input to send. No mask key is in the next
            state: from here on only the shares can remove the masks.

        Raises:
            ReplayError: this state was already used.
            PlanMismatchError: the vector is of another plan, round, length or modulus.
        """
        self._once.use()
        terms = self.seat.terms
        _check_vector(noised, terms)
        residues = noised.residues.copy()
        apply_masks(
            residues,
            added=self.added,
            subtracted=self.subtracted,
            modulus_bits=terms.modulus_bits,
        )
        # In the memory of the residues. The message is a copy: with the caller's own
        # vector no more than three are held.
        words = pack_in_place(residues, terms.modulus_bits)
        header = self._sign(
            MaskedHeader(
                roster_hash=self.roster_hash,
                sharers_hash=self.sharers_hash,
                adapter_digest=terms.adapter_digest,
                vector_hash=vector_hash(words),
            ),
        )
        state = AwaitingSurvivors(
            seat=self.seat,
            signing_key=self.signing_key,
            roster_hash=self.roster_hash,
            threshold=self.threshold,
            sharers_hash=self.sharers_hash,
            key_shares=self.key_shares,
            header_digest=header_digest(header),
        )
        return state, encode(MaskedInput(header, words))


def _check_vector(noised: NoisedVector, terms: RoundTerms) -> None:
    """Refuse a vector that was charged to another plan or round, or does not fit.

    Raises:
        PlanMismatchError: it is not of these terms.
    """
    residues = noised.residues
    fits = (
        noised.plan_digest == terms.plan_digest.hex()
        and noised.round_number == terms.round_number
        and noised.modulus_bits == terms.modulus_bits
    )
    if not fits:
        msg = "the vector was made under another plan, round or modulus: do not send it"
        raise PlanMismatchError(msg)
    if residues.dtype != np.uint32 or residues.shape != (terms.vector_length,):
        msg = f"the vector must have {terms.vector_length} uint32 words"
        raise PlanMismatchError(msg)
    if not within_modulus(residues, terms.modulus_bits):
        msg = f"the vector has words of more than {terms.modulus_bits} bits"
        raise PlanMismatchError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitingSurvivors(_State):
    """The masked input is sent; who is in the sum is awaited.

    `confirm` consumes this state. A client that confirmed two survivor sets could be
    made to reveal both shares of a peer.

    Attributes:
        roster_hash: U1.
        threshold: Shamir threshold t.
        sharers_hash: U2.
        key_shares: both shares of every member of U2.
        header_digest: of the header that went with the masked input.
    """

    roster_hash: Bytes32
    threshold: int
    sharers_hash: Bytes32
    key_shares: Mapping[str, SharePair] = field(repr=False)
    header_digest: Bytes32

    def confirm(self, survivors: bytes) -> tuple[AwaitingQuorum, bytes]:
        """Check the survivors, and sign what this client has seen.

        Args:
            survivors: the server's message.

        Returns:
            The next state, and the signed confirmation to send. The next state holds
            one share of each peer, the one that these survivors call for; the other is
            gone, so that no later message can have both.

        Raises:
            MalformedMessageError: not such a message.
            ReplayError: of another attempt, or this state was already used.
            FaultyServerError: a survivor that dealt no shares, or another vector in
                our name.
            BelowThresholdError: too few survivors.
            RefusalError: we are not among them; we say nothing more.
        """
        self._once.use()
        headers = self._read(survivors, Survivors).headers
        if not set(headers) <= set(self.key_shares):
            msg = "the survivors include a client that dealt no key shares"
            raise FaultyServerError(msg)
        least = self.seat.terms.least_clients(self.threshold)
        require_clients(len(headers), least, "sent a vector")
        if self.seat.name not in headers:
            msg = "our vector came too late for this sum: wait for the next round"
            raise RefusalError(msg)
        if not equal(headers[self.seat.name], self.header_digest):
            msg = "the survivors list a vector in our name that is not ours"
            raise FaultyServerError(msg)
        seen = Consistency(
            roster_hash=self.roster_hash,
            sharers_hash=self.sharers_hash,
            survivors_hash=survivors_hash_of(self.sharers_hash, headers),
        )
        state = AwaitingQuorum(
            seat=self.seat,
            signing_key=self.signing_key,
            threshold=self.threshold,
            survivors=tuple(headers),
            seen=seen,
            shares=tuple(
                pair.self_mask if peer in headers else pair.mask_key
                for peer, pair in sorted(self.key_shares.items())
            ),
        )
        return state, self._sign(seen)

    def conclude(self, published: bytes) -> Published:
        """Check the server's last message, where the survivors never reached us.

        A client whose confirmation did not arrive is in the sum all the same.

        Raises:
            MalformedMessageError: not such a message.
            ReplayError: of another attempt, or this state was already used.
            FaultyServerError: not signed by the server, or over a sum without us.
        """
        self._once.use()
        seat = self.seat
        outcome = read_published(published, seat.terms, seat.offer_digest)
        if seat.name not in outcome.survivors:
            msg = "the server published to us a sum without us"
            raise FaultyServerError(msg)
        return outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitingQuorum(_State):
    """The survivors are confirmed; the confirmations of the others are awaited.

    Attributes:
        threshold: Shamir threshold t.
        survivors: U3.
        seen: what this client signed.
        shares: one of each member of U2, in order, chosen by U3 alone.
    """

    threshold: int
    survivors: tuple[str, ...]
    seen: Consistency
    shares: tuple[Bytes32, ...] = field(repr=False)

    def reveal(self, quorum: bytes, ledger_head: bytes) -> tuple[Revealed, bytes]:
        """Reveal the shares once t survivors have confirmed the same sets.

        Args:
            quorum: the server's message.
            ledger_head: of this client's ledger, 32 bytes, signed with the shares.

        Returns:
            The next state, which holds no share any more, and the shares to send.

        Raises:
            MalformedMessageError: not such a message.
            ReplayError: of another attempt, or this state was already used.
            FaultyServerError: a confirmation that is not of a survivor, not signed, or
                of other sets.
            BelowThresholdError: fewer than t confirmations.
        """
        self._once.use()
        message = self._read(quorum, Quorum)
        for peer, signed in message.confirmations.items():
            self._check(peer, signed)
        count = len(message.confirmations)
        require_clients(count, self.threshold, "confirmed the survivors")
        reveal = Reveal(self.seen.survivors_hash, self.shares, ledger_head)
        state = Revealed(
            seat=self.seat, signing_key=self.signing_key, survivors=self.survivors
        )
        return state, self._sign(reveal)

    def conclude(self, published: bytes) -> Published:
        """Check the server's last message, where the quorum never reached us.

        Raises:
            MalformedMessageError: not such a message.
            ReplayError: of another attempt, or this state was already used.
            FaultyServerError: not signed by the server, or over other survivors.
        """
        self._once.use()
        return _published_over(self.survivors, self.seat, published)

    def _check(self, peer: str, signed: bytes) -> None:
        # An honest client that is not in U3 stays silent, so nobody else counts.
        if peer not in self.survivors:
            msg = f"a confirmation of {peer!r}, who is not a survivor"
            raise FaultyServerError(msg)
        try:
            seen = read_client(
                signed,
                Consistency,
                peer,
                self.seat.terms,
                self.seat.offer_digest,
            )
        except (MalformedMessageError, ReplayError, BadSignatureError) as error:
            msg = f"the confirmation of client {peer!r} is wrong: {error}"
            raise FaultyServerError(msg) from None
        if seen != self.seen:
            raise FaultyPeerOrServerError(peer, "confirmed other sets than we saw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Revealed(_State):
    """The shares are revealed; what became of the sum is awaited.

    Attributes:
        survivors: U3.
    """

    survivors: tuple[str, ...]

    def conclude(self, published: bytes) -> Published:
        """Check the server's last message against what this client saw.

        Raises:
            MalformedMessageError: not such a message.
            ReplayError: of another attempt, or this state was already used.
            FaultyServerError: not signed by the server, or over other survivors.
        """
        self._once.use()
        return _published_over(self.survivors, self.seat, published)


def _published_over(
    confirmed: tuple[str, ...], seat: Seat, published: bytes
) -> Published:
    """Read the server's last message, of a sum over the clients that were confirmed.

    Raises:
        FaultyServerError: the sum is over others.
    """
    outcome = read_published(published, seat.terms, seat.offer_digest)
    if outcome.survivors != confirmed:
        msg = "the published sum is over other survivors than we confirmed"
        raise FaultyServerError(msg)
    return outcome


ClientState: TypeAlias = (
    AwaitingRoster
    | AwaitingShares
    | AwaitingVector
    | AwaitingSurvivors
    | AwaitingQuorum
    | Revealed
)

# The whole machine: state, the message it awaits, method, what it sends, next state.
# `AwaitingVector` awaits no message but the client's own vector. A client that missed
# a message of R4 or R5 concludes from where it is.
TRANSITIONS: tuple[tuple[type, Label | None, str, Label | None, type], ...] = (
    (AwaitingRoster, Label.ROSTER, "share_keys", Label.KEY_SHARES, AwaitingShares),
    (
        AwaitingShares,
        Label.KEY_SHARE_INBOX,
        "open_inbox",
        None,
        AwaitingVector,
    ),
    (AwaitingVector, None, "mask", Label.MASKED_INPUT, AwaitingSurvivors),
    (
        AwaitingSurvivors,
        Label.SURVIVORS,
        "confirm",
        Label.CONSISTENCY,
        AwaitingQuorum,
    ),
    (AwaitingSurvivors, Label.PUBLISHED, "conclude", None, Published),
    (AwaitingQuorum, Label.QUORUM, "reveal", Label.REVEAL, Revealed),
    (AwaitingQuorum, Label.PUBLISHED, "conclude", None, Published),
    (Revealed, Label.PUBLISHED, "conclude", None, Published),
)


def restore_client(data: bytes, signing_key: SigningKey) -> ClientState:
    """Restore whichever state these bytes are of.

    Raises:
        MalformedMessageError: not the bytes of a client's state.
        PlanMismatchError: the state belongs to another identity.
    """
    kinds: tuple[type[ClientState], ...] = (
        AwaitingRoster,
        AwaitingShares,
        AwaitingVector,
        AwaitingSurvivors,
        AwaitingQuorum,
        Revealed,
    )
    state = load_state(kinds, data, {"signing_key": signing_key})
    check_owner(state.seat, signing_key)
    return state
