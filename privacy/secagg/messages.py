"""What travels in a round: its messages, and the hashes that bind them.

Every message is a frozen dataclass whose annotations are its wire format, and all but
two travel in a `Signed` envelope: key shares and masked inputs carry a signed head that
binds the rest by a hash, so that a transcript can keep the head alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np

from privacy.crypto import Label, check_agreement_public, sha256
from privacy.errors import MalformedMessageError, PlanMismatchError, ReplayError
from privacy.plan import SERVER
from privacy.secagg.envelope import parse_envelope, read_client, read_server
from privacy.secagg.key_shares import SealedShare
from privacy.secagg.terms import RoundTerms
from privacy.vectors import ResidueVector, View
from privacy.wire import Bytes32, encode

# The only attempt of a round. A second one under the same noise would need a
# certificate that the first was abandoned, and no message carries one yet.
FIRST_ATTEMPT = 1

WORD_BYTES = 4

# The reason of an abort may name many clients; a text on the wire has a limit.
MAX_REASON_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Offer:
    """R0, server to all: the terms of a round.

    Attributes:
        federation: as in `RoundTerms`, and so all that bear the same names.
        round_number: of the round.
        attempt: `FIRST_ATTEMPT`.
        nonce: fresh; without it two offers of one round could be the same bytes.
        plan_digest: of the plan.
        adapter_digest: of the adapter.
        cohort: fingerprint of every client's identity.
        min_survivors: least number of vectors in a sum.
        colluders: clients that the server may control.
        modulus_bits: of the residues.
        vector_length: of the vectors.
        deadlines: a slot for each phase; their meaning is the runtime's.
    """

    LABEL: ClassVar[Label] = Label.OFFER

    federation: str
    round_number: int
    attempt: int
    nonce: Bytes32
    plan_digest: Bytes32
    adapter_digest: Bytes32
    cohort: Mapping[str, str]
    min_survivors: int
    colluders: int
    modulus_bits: int
    vector_length: int
    deadlines: tuple[int, ...]


def make_offer(terms: RoundTerms, nonce: bytes, deadlines: tuple[int, ...]) -> Offer:
    """The offer that follows from these terms."""
    return Offer(
        federation=terms.federation,
        round_number=terms.round_number,
        attempt=FIRST_ATTEMPT,
        nonce=nonce,
        plan_digest=terms.plan_digest,
        adapter_digest=terms.adapter_digest,
        cohort={name: key.fingerprint for name, key in terms.cohort.items()},
        min_survivors=terms.min_survivors,
        colluders=terms.colluders,
        modulus_bits=terms.modulus_bits,
        vector_length=terms.vector_length,
        deadlines=deadlines,
    )


def offer_digest_of(offer: Offer) -> bytes:
    """What names one attempt of one round everywhere else."""
    return sha256(Label.OFFER_DIGEST, encode(offer))


def read_offer(data: bytes, terms: RoundTerms, last_round: int) -> tuple[Offer, bytes]:
    """Parse an offer and compare it with a client's own terms.

    Args:
        data: the message.
        terms: the client's own.
        last_round: the highest round number that the client ever joined.

    Returns:
        The offer and its digest.

    Raises:
        MalformedMessageError: not an offer, or its digest is not its own.
        FaultyServerError: not signed by the pinned server.
        ReplayError: not a later round than the last.
        PlanMismatchError: any term is another than ours.
    """
    digest = parse_envelope(data, Label.OFFER, SERVER).offer_digest
    offer = read_server(data, Offer, terms, digest)
    if offer_digest_of(offer) != digest:
        msg = "an offer under the digest of another offer"
        raise MalformedMessageError(msg)
    if offer.round_number <= last_round:
        msg = (
            f"an offer of round {offer.round_number} after round {last_round} was "
            "joined: a round is joined once"
        )
        raise ReplayError(msg)
    expected = make_offer(terms, offer.nonce, offer.deadlines)
    for item in fields(Offer):
        if getattr(offer, item.name) != getattr(expected, item.name):
            msg = (
                f"the offer's {item.name} is not ours: compare the plans and "
                "adapters of both sides before joining again"
            )
            raise PlanMismatchError(msg)
    return offer, digest


@dataclass(frozen=True, slots=True)
class Advert:
    """R1, client to server: public keys of this round alone.

    Attributes:
        encryption_key: X25519, for key shares.
        mask_key: X25519, for pairwise masks; its secret is shared.
        self_mask_commitment: hash of the secret b, by which its reconstruction is
            checked.
    """

    LABEL: ClassVar[Label] = Label.ADVERT

    encryption_key: Bytes32
    mask_key: Bytes32
    self_mask_commitment: Bytes32


@dataclass(frozen=True, slots=True)
class Roster:
    """R1, server to all: every advert, signed as it came."""

    LABEL: ClassVar[Label] = Label.ROSTER

    adverts: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class CheckedRoster:
    """A roster whose every advert has been verified.

    Attributes:
        adverts: by client.
        roster_hash: binds every signed advert and the offer.
        threshold: Shamir threshold t of these clients.
    """

    adverts: Mapping[str, Advert]
    roster_hash: Bytes32
    threshold: int

    @property
    def names(self) -> tuple[str, ...]:
        """The clients in their order, which fixes everybody's x."""
        return tuple(sorted(self.adverts))


def self_mask_commitment(offer_digest: bytes, name: str, seed: bytes) -> bytes:
    """The commitment to a client's secret b."""
    return sha256(Label.SELF_MASK_COMMITMENT, offer_digest, name.encode(), seed)


def read_advert(
    data: bytes, name: str, terms: RoundTerms, offer_digest: bytes
) -> Advert:
    """Parse an advert and verify it against the client's pinned identity.

    Raises:
        MalformedMessageError: not an advert, or a key that must not be used.
        ReplayError: of another attempt.
        BadSignatureError: not signed by the pinned identity.
    """
    advert = read_client(data, Advert, name, terms, offer_digest)
    check_agreement_public(advert.encryption_key)
    check_agreement_public(advert.mask_key)
    return advert


def repeated_keys(adverts: Mapping[str, Advert]) -> set[str]:
    """The clients with a public key that occurs twice in a roster."""
    owners: dict[bytes, list[str]] = {}
    for name, advert in adverts.items():
        for key in (advert.encryption_key, advert.mask_key):
            owners.setdefault(key, []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def make_roster(
    terms: RoundTerms,
    offer_digest: bytes,
    signed: Mapping[str, bytes],
    adverts: Mapping[str, Advert],
) -> CheckedRoster:
    """The roster of these verified adverts.

    Raises:
        BelowThresholdError: too few of them.
    """
    parts = [part for name in sorted(signed) for part in (name.encode(), signed[name])]
    roster_hash = sha256(Label.ROSTER_HASH, offer_digest, terms.plan_digest, *parts)
    return CheckedRoster(
        adverts=adverts,
        roster_hash=roster_hash,
        threshold=terms.roster_threshold(len(adverts)),
    )


@dataclass(frozen=True, slots=True)
class KeySharesHead:
    """The signed part of `KeyShares`.

    Attributes:
        roster_hash: the roster that the shares were dealt over.
        root: hash tree over every dealt share, in roster order.
    """

    LABEL: ClassVar[Label] = Label.KEY_SHARES

    roster_hash: Bytes32
    root: Bytes32


@dataclass(frozen=True, slots=True)
class KeyShares:
    """R2, client to server: shares for everybody in the roster, oneself included.

    Attributes:
        head: signed `KeySharesHead`.
        sealed: in roster order.
    """

    head: bytes
    sealed: tuple[SealedShare, ...]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One dealer's shares for one holder, as the server forwards them.

    Attributes:
        head: the dealer's signed `KeySharesHead`.
        sealed: what was dealt to this holder.
        path: from its leaf to the signed root.
    """

    head: bytes
    sealed: SealedShare
    path: tuple[Bytes32, ...]


@dataclass(frozen=True, slots=True)
class Inbox:
    """R2, server to one sharer: what every sharer dealt to it. Its keys are U2."""

    LABEL: ClassVar[Label] = Label.KEY_SHARE_INBOX

    deliveries: Mapping[str, Delivery]


def sharers_hash_of(roster_hash: bytes, roots: Mapping[str, bytes]) -> bytes:
    """Binds U2: who dealt shares, and the root over what each dealt."""
    parts = [part for name in sorted(roots) for part in (name.encode(), roots[name])]
    return sha256(Label.SHARERS_HASH, roster_hash, *parts)


@dataclass(frozen=True, slots=True)
class MaskedHeader:
    """The signed part of `MaskedInput`.

    Attributes:
        roster_hash: as the client knows it.
        sharers_hash: as the client knows it.
        adapter_digest: of the adapter that the client has loaded.
        vector_hash: of the packed words.
    """

    LABEL: ClassVar[Label] = Label.MASKED_INPUT

    roster_hash: Bytes32
    sharers_hash: Bytes32
    adapter_digest: Bytes32
    vector_hash: Bytes32


@dataclass(frozen=True, slots=True)
class MaskedInput:
    """R3, client to server: the masked vector.

    Attributes:
        header: signed `MaskedHeader`.
        words: the residues, packed without gaps (`privacy.packing`).
    """

    header: bytes
    words: View


def words_to_bytes(residues: ResidueVector) -> memoryview:
    """Residues as a state keeps them: 4 bytes each, little-endian on every machine.

    Returns:
        A view of the residues, not a copy: they must not change any more.
    """
    return residues.astype("<u4", copy=False).view(np.uint8).data.toreadonly()


def words_from_bytes(words: View) -> ResidueVector:
    """What `words_to_bytes` wrote, read-only.

    Raises:
        MalformedMessageError: not a whole number of words.
    """
    if len(words) % WORD_BYTES:
        msg = "a vector that is not a whole number of words"
        raise MalformedMessageError(msg)
    return np.frombuffer(words, dtype="<u4").astype(np.uint32, copy=False)


def vector_hash(words: View) -> bytes:
    """Hash of a masked vector's packed words."""
    return sha256(Label.MASKED_VECTOR, words)


def header_digest(header: bytes) -> bytes:
    """Hash of a signed header, by which survivors are announced."""
    return sha256(Label.MASKED_HEADER, header)


@dataclass(frozen=True, slots=True)
class Survivors:
    """R4, server to all survivors: U3, each with the digest of its signed header."""

    LABEL: ClassVar[Label] = Label.SURVIVORS

    headers: Mapping[str, Bytes32]


def survivors_hash_of(sharers_hash: bytes, headers: Mapping[str, bytes]) -> bytes:
    """Binds U3, and with the headers the very vectors that are summed."""
    parts: Sequence[bytes] = [
        part for name in sorted(headers) for part in (name.encode(), headers[name])
    ]
    return sha256(Label.SURVIVORS_HASH, sharers_hash, *parts)


@dataclass(frozen=True, slots=True)
class Consistency:
    """R4, client to server: the sets that this client has seen.

    Attributes:
        roster_hash: U1.
        sharers_hash: U2.
        survivors_hash: U3.
    """

    LABEL: ClassVar[Label] = Label.CONSISTENCY

    roster_hash: Bytes32
    sharers_hash: Bytes32
    survivors_hash: Bytes32


@dataclass(frozen=True, slots=True)
class Quorum:
    """R5, server to all who confirmed: their signed `Consistency` messages."""

    LABEL: ClassVar[Label] = Label.QUORUM

    confirmations: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Reveal:
    """R5, client to server: for each sharer, in order, one share and never two.

    Attributes:
        survivors_hash: the U3 that decided which.
        shares: of b for a survivor, of the mask key for a dropout.
        ledger_head: of the client's ledger, so that the server can record what each
            client had recorded.
    """

    LABEL: ClassVar[Label] = Label.REVEAL

    survivors_hash: Bytes32
    shares: tuple[Bytes32, ...] = field(repr=False)
    ledger_head: Bytes32


@dataclass(frozen=True, slots=True)
class Published:
    """R6, server to all survivors: what became of the round.

    Attributes:
        survivors: the clients in the sum.
        sum_digest: of the sum's residues, packed.
        next_adapter_digest: of the adapter that the next round starts from.
        transcript_hash: of the server's transcript.
        ledger_head: of the server's ledger.
    """

    LABEL: ClassVar[Label] = Label.PUBLISHED

    survivors: tuple[str, ...]
    sum_digest: Bytes32
    next_adapter_digest: Bytes32
    transcript_hash: Bytes32
    ledger_head: Bytes32


def sum_digest(words: View) -> bytes:
    """Digest of a sum's residues, packed like a masked vector's."""
    return sha256(Label.SUM, words)


def read_published(data: bytes, terms: RoundTerms, offer_digest: bytes) -> Published:
    """Parse the server's last message; whether it fits a state is `conclude`'s.

    Raises:
        MalformedMessageError: not such a message.
        ReplayError: of another round or attempt.
        FaultyServerError: not signed by the pinned server.
    """
    return read_server(data, Published, terms, offer_digest)


@dataclass(frozen=True, slots=True)
class Aborted:
    """In place of any message of the server: the round ends without a sum.

    Attributes:
        reason: in words, at most `MAX_REASON_CHARACTERS`.
        ledger_head: of the server's ledger.
    """

    LABEL: ClassVar[Label] = Label.ABORTED

    reason: str
    ledger_head: Bytes32


def read_aborted(data: bytes, terms: RoundTerms, offer_digest: bytes) -> Aborted:
    """Parse the server's word that a round was abandoned, for whoever saw the offer.

    Raises:
        MalformedMessageError: not such a message.
        ReplayError: of another round or attempt.
        FaultyServerError: not signed by the pinned server.
    """
    return read_server(data, Aborted, terms, offer_digest)
