"""The server's side of one round, without input or output.

`open_round` makes the offer. Each state then has a method `collect`, which takes the
replies by client and returns the next state and what to send to whom. A client whose
reply is missing has dropped out; one whose reply is wrong is treated alike and named in
`blamed`. The round ends early only where too few clients are left.

Names: U1 are the clients in the roster, U2 those who dealt key shares, U3 the
survivors, whose vectors are summed. A dropout is in U2 and not in U3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Self, TypeAlias, TypeVar

import numpy as np

from privacy.crypto import Label, SigningKey, equal, sha256
from privacy.errors import (
    FaultyClientError,
    PlanMismatchError,
    PrivacyError,
)
from privacy.packing import check_packed, pack_in_place, packed_bytes, unpack
from privacy.plan import SERVER
from privacy.secagg.envelope import (
    Message,
    load_state,
    read_client,
    sign,
    store_state,
)
from privacy.secagg.key_shares import merkle_paths, share_leaves
from privacy.secagg.masks import MaskContext
from privacy.secagg.messages import (
    MAX_REASON_CHARACTERS,
    WORD_BYTES,
    Aborted,
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
    make_offer,
    make_roster,
    offer_digest_of,
    read_advert,
    repeated_keys,
    sharers_hash_of,
    sum_digest,
    survivors_hash_of,
    vector_hash,
    words_from_bytes,
    words_to_bytes,
)
from privacy.secagg.shamir import Entropy
from privacy.secagg.terms import RoundTerms, require_clients
from privacy.secagg.transcript import SENT, Entry, phase_entries, transcript_hash
from privacy.secagg.unmasking import (
    Deal,
    check_shares,
    rebuild_secrets,
    remove_masks,
)
from privacy.vectors import MAX_MODULUS_BITS, ResidueVector, View
from privacy.wire import ATTACHED, Bytes32, decode

Replies: TypeAlias = Mapping[str, bytes]

_NONCE_BYTES = 32
# Vectors that wait together are hashed by so many threads: the library releases the
# interpreter's lock. Shorter ones are not worth the start of a thread.
HASH_THREADS = 2
_THREAD_BYTES = 2**20

_Reply = TypeVar("_Reply")
_Body = TypeVar("_Body", bound=Message)


@dataclass(frozen=True, slots=True)
class Desk:
    """What the server knows of a round in every phase.

    Attributes:
        terms: the server's own.
        offer_digest: names the attempt.
        transcript: what has happened so far.
        blamed: the first wrong that each client did, in words.
    """

    terms: RoundTerms
    offer_digest: Bytes32
    transcript: tuple[Entry, ...]
    blamed: Mapping[str, str]

    def noting(
        self,
        phase: Label,
        expected: Iterable[str],
        evidence: Mapping[str, bytes],
        blamed: Mapping[str, str],
    ) -> Desk:
        """The desk after a phase."""
        lines = phase_entries(phase, expected, evidence, blamed)
        return replace(
            self,
            transcript=self.transcript + lines,
            blamed={**blamed, **self.blamed},
        )

    def concluding(self, phase: Label, digest: bytes) -> Desk:
        """The desk after the server fixed a set or a sum."""
        line = Entry(phase, SERVER, SENT, digest)
        return replace(self, transcript=(*self.transcript, line))

    def require(self, count: int, least: int, what: str) -> None:
        """Refuse to go on with too few clients, and say who is to blame.

        Raises:
            BelowThresholdError: fewer than the least number.
        """
        names = ", ".join(sorted(self.blamed))
        suffix = f" (to blame: {names})" if names else ""
        require_clients(count, least, what + suffix)


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What every state of the server holds.

    Attributes:
        desk: the round so far.
        signing_key: the server's identity, given again when a state is restored.
    """

    desk: Desk
    signing_key: SigningKey = field(repr=False, metadata=ATTACHED)

    @property
    def blamed(self) -> Mapping[str, str]:
        """What each faulty client did, in words."""
        return self.desk.blamed

    @property
    def transcript(self) -> tuple[Entry, ...]:
        """What has happened so far."""
        return self.desk.transcript

    def to_bytes(self) -> bytes:
        """The state as bytes; the server holds no secret of a client."""
        return store_state(self)

    @classmethod
    def from_bytes(cls, data: bytes, signing_key: SigningKey) -> Self:
        """Restore a state of this kind.

        Raises:
            MalformedMessageError: not the bytes of such a state.
            PlanMismatchError: not the server's key.
        """
        state = load_state((cls,), data, {"signing_key": signing_key})
        _check_identity(state.desk.terms, signing_key)
        return state

    def _sign(self, message: Message) -> bytes:
        return sign(message, SERVER, self.desk.offer_digest, self.signing_key)

    def _read(self, data: bytes, kind: type[_Body], client: str) -> _Body:
        return read_client(data, kind, client, self.desk.terms, self.desk.offer_digest)


def _check_identity(terms: RoundTerms, signing_key: SigningKey) -> None:
    if signing_key.verify_key != terms.server:
        msg = "this is not the key that clients have pinned for the server"
        raise PlanMismatchError(msg)


def _sift(
    replies: Replies, expected: Iterable[str], check: Callable[[str, bytes], _Reply]
) -> tuple[dict[str, _Reply], dict[str, str]]:
    """Part the replies that pass a check from those that do not.

    Returns:
        The checked replies, and the reason by each client whose reply is wrong.
    """
    accepted: dict[str, _Reply] = {}
    blamed: dict[str, str] = {}
    known = set(expected)

    def judge(name: str) -> None:
        if name not in known:
            blamed[name] = "was not asked for anything in this phase"
            return
        try:
            accepted[name] = check(name, replies[name])
        except FaultyClientError as error:
            blamed[name] = error.reason
        except PrivacyError as error:
            blamed[name] = f"sent {error}"

    threads = min(HASH_THREADS, sum(map(len, replies.values())) // _THREAD_BYTES)
    if len(replies) > 1 and threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            # The list raises what a thread raised.
            list(pool.map(judge, replies))
    else:
        for name in replies:
            judge(name)
    # In the order of the names, whoever was judged first.
    return dict(sorted(accepted.items())), dict(sorted(blamed.items()))


def open_round(
    terms: RoundTerms,
    signing_key: SigningKey,
    entropy: Entropy,
    deadlines: tuple[int, ...],
) -> tuple[CollectingAdverts, bytes]:
    """Offer a round to the cohort.

    Args:
        terms: the server's own, from its plan and the adapter it will send.
        signing_key: the server's identity.
        entropy: fresh bytes, for the nonce.
        deadlines: a slot for each phase; their meaning is the runtime's.

    Returns:
        The next state, and the offer to send to every client of the cohort.

    Raises:
        PlanMismatchError: not the key that clients have pinned.
    """
    _check_identity(terms, signing_key)
    offer = make_offer(terms, entropy(_NONCE_BYTES), deadlines)
    digest = offer_digest_of(offer)
    message = sign(offer, SERVER, digest, signing_key)
    desk = Desk(terms, digest, (Entry(Label.OFFER, SERVER, SENT, message),), {})
    return CollectingAdverts(desk=desk, signing_key=signing_key), message


def abort_message(
    terms: RoundTerms,
    offer_digest: bytes,
    signing_key: SigningKey,
    reason: str,
    ledger_head: bytes,
) -> bytes:
    """Tell everybody who saw the offer that the round ends without a sum.

    It needs no state, so that it can be sent from any of them, and also after an error
    in the middle of a phase.

    Args:
        terms: the server's own.
        offer_digest: names the attempt.
        signing_key: the server's identity.
        reason: in words; cut to `MAX_REASON_CHARACTERS`.
        ledger_head: of the server's ledger, 32 bytes.

    Returns:
        The message, the same for all.

    Raises:
        PlanMismatchError: not the key that clients have pinned.
    """
    _check_identity(terms, signing_key)
    aborted = Aborted(reason[:MAX_REASON_CHARACTERS], ledger_head)
    return sign(aborted, SERVER, offer_digest, signing_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectingAdverts(_State):
    """The offer is out; adverts are awaited from the whole cohort."""

    def collect(self, replies: Replies) -> tuple[CollectingShares, dict[str, bytes]]:
        """Make the roster U1.

        Args:
            replies: advert by client.

        Returns:
            The next state, and the roster for everybody in it.

        Raises:
            BelowThresholdError: too few clients for any threshold.
        """
        terms, digest = self.desk.terms, self.desk.offer_digest
        adverts, blamed = _sift(
            replies,
            terms.cohort,
            lambda name, data: read_advert(data, name, terms, digest),
        )
        # Who copied whom cannot be told, so both go: clients refuse such a roster.
        for name in repeated_keys(adverts):
            del adverts[name]
            blamed[name] = "sent a public key that occurs twice in the roster"
        signed = {name: replies[name] for name in adverts}
        desk = self.desk.noting(Label.ADVERT, terms.cohort, signed, blamed)
        roster = make_roster(terms, digest, signed, adverts)
        state = CollectingShares(
            desk=desk.concluding(Label.ROSTER, roster.roster_hash),
            signing_key=self.signing_key,
            roster=roster,
        )
        message = self._sign(Roster(signed))
        return state, dict.fromkeys(roster.names, message)


@dataclass(frozen=True, slots=True)
class _Dealt:
    """One dealer's key shares, checked."""

    message: KeyShares
    root: bytes
    paths: list[tuple[bytes, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectingShares(_State):
    """The roster is out; key shares are awaited from everybody in it.

    Attributes:
        roster: U1 and its public keys.
    """

    roster: CheckedRoster

    def collect(self, replies: Replies) -> tuple[CollectingMasked, dict[str, bytes]]:
        """Fix the sharers U2, and forward to each what the others dealt to it.

        Args:
            replies: key shares by client.

        Returns:
            The next state, and the inbox of every sharer.

        Raises:
            BelowThresholdError: too few sharers.
        """
        names = self.roster.names
        dealt, blamed = _sift(replies, names, self._check)
        heads = {name: entry.message.head for name, entry in dealt.items()}
        desk = self.desk.noting(Label.KEY_SHARES, names, heads, blamed)
        least = desk.terms.least_clients(self.roster.threshold)
        desk.require(len(dealt), least, "dealt key shares")
        roots = {name: entry.root for name, entry in dealt.items()}
        sharers_hash = sharers_hash_of(self.roster.roster_hash, roots)
        state = CollectingMasked(
            desk=desk.concluding(Label.SHARERS_HASH, sharers_hash),
            signing_key=self.signing_key,
            deal=Deal(
                roster=self.roster,
                sharers_hash=sharers_hash,
                commitments={
                    dealer: tuple(
                        part
                        for sealed in entry.message.sealed
                        for part in sealed.commitments
                    )
                    for dealer, entry in dealt.items()
                },
            ),
            headers={},
            wrong={},
            total=bytes(WORD_BYTES * desk.terms.vector_length),
        )
        inboxes = {}
        for place, holder in enumerate(names):
            if holder in dealt:
                deliveries = {
                    dealer: Delivery(
                        entry.message.head,
                        entry.message.sealed[place],
                        entry.paths[place],
                    )
                    for dealer, entry in dealt.items()
                }
                message = self._sign(Inbox(deliveries))
                inboxes[holder] = message
        return state, inboxes

    def _check(self, dealer: str, data: bytes) -> _Dealt:
        message = decode(KeyShares, data)
        head = self._read(message.head, KeySharesHead, dealer)
        if head.roster_hash != self.roster.roster_hash:
            raise FaultyClientError(dealer, "dealt over another roster")
        names = self.roster.names
        if len(message.sealed) != len(names):
            raise FaultyClientError(dealer, "dealt to more or fewer than the roster")
        leaves = share_leaves(head.roster_hash, dealer, names, message.sealed)
        root, paths = merkle_paths(leaves)
        if not equal(root, head.root):
            raise FaultyClientError(dealer, "signed another root than of its shares")
        return _Dealt(message, root, paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectingMasked(_State):
    """The key shares are dealt; masked inputs are awaited from the sharers.

    Vectors are added as they come and not kept: `add` takes one, `close` ends the
    phase, and `collect` does both for a batch.

    Attributes:
        deal: U1, U2 and the commitments.
        headers: signed header by client, of the vectors in the total.
        wrong: why another's vector is not in it.
        total: their sum, as residues of 4 bytes, little-endian.
    """

    deal: Deal
    headers: Mapping[str, bytes]
    wrong: Mapping[str, str]
    total: View = field(repr=False)

    def add(self, client: str, reply: bytes) -> CollectingMasked:
        """Add one client's vector; a wrong one is left out and its sender blamed.

        Args:
            client: who sent it.
            reply: the masked input. The same bytes again change nothing.

        Returns:
            The state with this vector in its total.
        """
        return self._with({client: reply})

    def _with(self, replies: Replies) -> CollectingMasked:
        """This state stays as it is: its total is copied, once for all replies."""
        checked, blamed = _sift(replies, self.deal.sharers, self._check)
        wrong = {**blamed, **self.wrong}
        fresh = {
            client: message
            for client, message in checked.items()
            if client not in self.headers
        }
        if not fresh:
            return replace(self, wrong=wrong)
        terms = self.desk.terms
        vectors = (
            unpack(message.words, terms.vector_length, terms.modulus_bits)
            for message in fresh.values()
        )
        total = words_from_bytes(self.total) + next(vectors)
        for words in vectors:
            total += words
        if terms.modulus_bits < MAX_MODULUS_BITS:
            # uint32 wraps modulo 2**32, of which the modulus is a divisor.
            total &= np.uint32(2**terms.modulus_bits - 1)
        headers = {client: message.header for client, message in fresh.items()}
        return replace(
            self,
            headers={**self.headers, **headers},
            wrong=wrong,
            total=words_to_bytes(total),
        )

    def _check(self, client: str, data: bytes) -> MaskedInput:
        terms = self.desk.terms
        message = decode(MaskedInput, data)
        header = self._read(message.header, MaskedHeader, client)
        if header.adapter_digest != terms.adapter_digest:
            raise FaultyClientError(client, "masked for another adapter")
        seen = (header.roster_hash, header.sharers_hash)
        if seen != (self.deal.roster.roster_hash, self.deal.sharers_hash):
            raise FaultyClientError(client, "masked for another roster or sharers")
        if header.vector_hash != vector_hash(message.words):
            raise FaultyClientError(client, "sent words that it did not sign")
        if len(message.words) != packed_bytes(terms.vector_length, terms.modulus_bits):
            raise FaultyClientError(client, "sent a vector of another length")
        check_packed(message.words, terms.vector_length, terms.modulus_bits)
        if self.headers.get(client, message.header) != message.header:
            raise FaultyClientError(client, "sent a second, different vector")
        return message

    def close(self) -> tuple[CollectingConsistency, dict[str, bytes]]:
        """Fix the survivors U3.

        Returns:
            The next state, and for every survivor the announcement.

        Raises:
            BelowThresholdError: too few of them.
        """
        desk = self.desk.noting(
            Label.MASKED_INPUT, self.deal.sharers, self.headers, self.wrong
        )
        least = desk.terms.least_clients(self.deal.roster.threshold)
        desk.require(len(self.headers), least, "sent a vector")
        digests = {name: header_digest(head) for name, head in self.headers.items()}
        survivors_hash = survivors_hash_of(self.deal.sharers_hash, digests)
        state = CollectingConsistency(
            desk=desk.concluding(Label.SURVIVORS, survivors_hash),
            signing_key=self.signing_key,
            deal=self.deal,
            survivors=tuple(sorted(digests)),
            survivors_hash=survivors_hash,
            total=self.total,
        )
        message = self._sign(Survivors(digests))
        return state, dict.fromkeys(state.survivors, message)

    def collect(
        self, replies: Replies
    ) -> tuple[CollectingConsistency, dict[str, bytes]]:
        """Add every reply, then `close`.

        Raises:
            BelowThresholdError: too few survivors.
        """
        return self._with(replies).close()


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectingConsistency(_State):
    """The survivors are announced; their confirmations are awaited.

    Attributes:
        deal: U1, U2 and the commitments.
        survivors: U3, in order.
        survivors_hash: binds U3 and its vectors.
        total: the masked sum.
    """

    deal: Deal
    survivors: tuple[str, ...]
    survivors_hash: Bytes32
    total: View = field(repr=False)

    def collect(self, replies: Replies) -> tuple[CollectingReveals, dict[str, bytes]]:
        """Gather the quorum.

        Args:
            replies: signed confirmation by client.

        Returns:
            The next state, and for everybody who confirmed the quorum.

        Raises:
            BelowThresholdError: fewer than t confirmations.
        """
        confirmed, blamed = _sift(replies, self.survivors, self._check)
        desk = self.desk.noting(Label.CONSISTENCY, self.survivors, confirmed, blamed)
        threshold = self.deal.roster.threshold
        desk.require(len(confirmed), threshold, "confirmed the survivors")
        state = CollectingReveals(
            desk=desk,
            signing_key=self.signing_key,
            deal=self.deal,
            survivors=self.survivors,
            survivors_hash=self.survivors_hash,
            asked=tuple(confirmed),
            total=self.total,
        )
        message = self._sign(Quorum(confirmed))
        return state, dict.fromkeys(confirmed, message)

    def _check(self, client: str, data: bytes) -> bytes:
        expected = Consistency(
            roster_hash=self.deal.roster.roster_hash,
            sharers_hash=self.deal.sharers_hash,
            survivors_hash=self.survivors_hash,
        )
        if self._read(data, Consistency, client) != expected:
            raise FaultyClientError(client, "confirmed other sets than were announced")
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectingReveals(_State):
    """The quorum is out; shares are awaited from everybody who confirmed.

    Attributes:
        deal: U1, U2 and the commitments.
        survivors: U3, in order.
        survivors_hash: binds U3 and its vectors.
        asked: who confirmed.
        total: the masked sum.
    """

    deal: Deal
    survivors: tuple[str, ...]
    survivors_hash: Bytes32
    asked: tuple[str, ...]
    total: View = field(repr=False)

    def collect(self, replies: Replies) -> Unmasked:
        """Rebuild the secrets that the survivors call for, and take the masks off.

        Args:
            replies: revealed shares by client.

        Returns:
            The sum over the survivors.

        Raises:
            BelowThresholdError: fewer than t clients revealed.
            FaultyClientError: a dealer whose shares do not combine to the secret that
                it committed to. Its mask cannot be removed, so the round is lost; who
                lost it is known.
        """
        reveals, blamed = _sift(replies, self.asked, self._check)
        # The transcript is public and a share is not: it keeps the hash.
        hashes = {name: sha256(Label.REVEAL, replies[name]) for name in reveals}
        desk = self.desk.noting(Label.REVEAL, self.asked, hashes, blamed)
        threshold = self.deal.roster.threshold
        desk.require(len(reveals), threshold, "revealed shares")
        shares = {name: reveal.shares for name, reveal in reveals.items()}
        secrets = rebuild_secrets(
            self.deal, self.survivors, self.desk.offer_digest, shares
        )
        residues = words_from_bytes(self.total).copy()
        remove_masks(
            residues,
            context=MaskContext(
                roster_hash=self.deal.roster.roster_hash,
                sharers_hash=self.deal.sharers_hash,
                adapter_digest=self.desk.terms.adapter_digest,
                plan_digest=self.desk.terms.plan_digest,
            ),
            deal=self.deal,
            survivors=self.survivors,
            secrets=secrets,
            modulus_bits=self.desk.terms.modulus_bits,
        )
        total = pack_in_place(residues, self.desk.terms.modulus_bits)
        return Unmasked(
            desk=desk.concluding(Label.SUM, sum_digest(total)),
            signing_key=self.signing_key,
            survivors=self.survivors,
            heads={name: reveal.ledger_head for name, reveal in reveals.items()},
            total=total,
        )

    def _check(self, client: str, data: bytes) -> Reveal:
        reveal = self._read(data, Reveal, client)
        if reveal.survivors_hash != self.survivors_hash:
            raise FaultyClientError(client, "revealed for other survivors")
        check_shares(self.deal, self.survivors, client, reveal.shares)
        return reveal


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmasked(_State):
    """The sum is open; what the server makes of it is to be published.

    Attributes:
        survivors: the clients in the sum, in order.
        heads: ledger head by client, of those who revealed, as each signed it.
        total: the sum's residues, packed like a masked vector's.
    """

    survivors: tuple[str, ...]
    heads: Mapping[str, Bytes32]
    total: View = field(repr=False)

    @property
    def residues(self) -> ResidueVector:
        """The sum, shape (d + 1,), uint32, modulo 2**modulus_bits."""
        terms = self.desk.terms
        return unpack(self.total, terms.vector_length, terms.modulus_bits).copy()

    @property
    def sum_digest(self) -> bytes:
        """The digest of the sum, as the transcript ends with it; 32 bytes."""
        return self.transcript[-1].evidence

    @property
    def transcript_hash(self) -> bytes:
        """The head of the transcript's hash chain, 32 bytes."""
        return transcript_hash(self.transcript)

    def publish(self, next_adapter_digest: bytes, ledger_head: bytes) -> bytes:
        """Tell the survivors what became of the round.

        To anybody else it is not sent: a client that waits to be in a sum takes one
        without itself for a lie.

        Args:
            next_adapter_digest: of the adapter that the next round starts from.
            ledger_head: of the server's ledger, this round's result included.

        Returns:
            The message, the same for all survivors.
        """
        published = Published(
            survivors=self.survivors,
            sum_digest=self.sum_digest,
            next_adapter_digest=next_adapter_digest,
            transcript_hash=self.transcript_hash,
            ledger_head=ledger_head,
        )
        return self._sign(published)


ServerState: TypeAlias = (
    CollectingAdverts
    | CollectingShares
    | CollectingMasked
    | CollectingConsistency
    | CollectingReveals
    | Unmasked
)

# The whole machine: state, the message it collects, what it sends, next state.
TRANSITIONS: tuple[tuple[type, Label, Label | None, type], ...] = (
    (CollectingAdverts, Label.ADVERT, Label.ROSTER, CollectingShares),
    (CollectingShares, Label.KEY_SHARES, Label.KEY_SHARE_INBOX, CollectingMasked),
    (CollectingMasked, Label.MASKED_INPUT, Label.SURVIVORS, CollectingConsistency),
    (CollectingConsistency, Label.CONSISTENCY, Label.QUORUM, CollectingReveals),
    (CollectingReveals, Label.REVEAL, None, Unmasked),
)


def restore_server(data: bytes, signing_key: SigningKey) -> ServerState:
    """Restore whichever state these bytes are of.

    Raises:
        MalformedMessageError: not the bytes of a server's state.
        PlanMismatchError: not the server's key.
    """
    kinds: tuple[type[ServerState], ...] = (
        CollectingAdverts,
        CollectingShares,
        CollectingMasked,
        CollectingConsistency,
        CollectingReveals,
        Unmasked,
    )
    state = load_state(kinds, data, {"signing_key": signing_key})
    _check_identity(state.desk.terms, signing_key)
    return state
