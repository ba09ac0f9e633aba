"""Vectors of what a client must refuse from the server, whose key signs it all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from privacy.errors import (
    BelowThresholdError,
    FaultyClientError,
    FaultyPeerOrServerError,
    FaultyServerError,
    MalformedMessageError,
    PlanMismatchError,
    RefusalError,
    ReplayError,
)
from privacy.plan import SERVER
from privacy.secagg.envelope import sign
from privacy.secagg.key_shares import merkle_paths, share_leaves
from privacy.secagg.messages import (
    Aborted,
    Advert,
    Consistency,
    Inbox,
    KeyShares,
    KeySharesHead,
    Offer,
    Published,
    Quorum,
    Roster,
    Survivors,
    make_offer,
    offer_digest_of,
)
from privacy.wire import decode
from tests.privacy.secagg.harness import identity, ledger_head
from tests.vectors.derivations import LOW_ORDER, NOT_CANONICAL
from tests.vectors.form import File
from tests.vectors.lies import (
    NAME,
    PEER,
    Lies,
    body,
    envelope_lies,
    refusals,
    resigned,
    signed,
)
from tests.vectors.rounds import ANOTHER, DROPOUT, TERMS, until


def offers() -> Lies:
    """In place of the offer."""
    play = until("advert")
    message = play.messages[NAME]
    honest = body(play, Offer, message)

    def offer(signer: str = SERVER, **changes: object) -> bytes:
        altered = replace(honest, **changes)
        return sign(altered, SERVER, offer_digest_of(altered), identity(signer))

    changes = {
        "of another federation": {"federation": "another"},
        "of a second attempt": {"attempt": 2},
        "of another plan": {"plan_digest": ANOTHER},
        "of another adapter": {"adapter_digest": ANOTHER},
        "of fewer clients": {"cohort": dict(list(honest.cohort.items())[:3])},
        "of another identity": {"cohort": honest.cohort | {PEER: "00" * 32}},
        "of fewer survivors": {"min_survivors": 1},
        "of more colluders": {"colluders": 1},
        "of another modulus": {"modulus_bits": 21},
        "of another length": {"vector_length": 4},
        "of a later round": {"round_number": 8},
    }
    lies = envelope_lies(message, FaultyServerError, None)
    # The digest of the body is in the envelope, and is not this body's any more.
    lies |= {name: (PlanMismatchError, offer(**new)) for name, new in changes.items()}
    early = make_offer(replace(TERMS, round_number=6), honest.nonce, honest.deadlines)
    lies["of a round that was joined"] = (
        ReplayError,
        sign(early, SERVER, offer_digest_of(early), identity(SERVER)),
    )
    lies["under another digest"] = (
        MalformedMessageError,
        sign(honest, SERVER, ANOTHER, identity(SERVER)),
    )
    lies["of a stranger"] = (FaultyServerError, offer("stranger"))
    return lies


def rosters() -> Lies:
    """In place of the roster."""
    play, late = until("shares"), until("shares", round_number=8)
    adverts = dict(body(play, Roster, play.messages[NAME]).adverts)
    honest = body(play, Advert, adverts[PEER])

    def roster(**changes: object) -> bytes:
        """With the advert of one client altered, and signed by that client."""
        altered = signed(play, replace(honest, **changes), PEER)
        return signed(play, Roster(adverts | {PEER: altered}))

    def without(*names: str) -> bytes:
        left = {name: data for name, data in adverts.items() if name not in names}
        return signed(play, Roster(left))

    own = body(play, Advert, adverts[NAME])
    renewed = signed(play, replace(own, mask_key=honest.mask_key), NAME)
    forged = signed(play, honest, PEER, key="stranger")
    earlier = body(late, Roster, late.messages[NAME]).adverts[PEER]
    server = {
        "with a key of low order": roster(mask_key=LOW_ORDER),
        "with a key that is not canonical": roster(encryption_key=NOT_CANONICAL),
        "with one key for two uses": roster(mask_key=honest.encryption_key),
        "with a copied key": roster(mask_key=own.mask_key),
        "with a forged advert": signed(play, Roster(adverts | {PEER: forged})),
        "with an advert of another round": signed(
            play, Roster(adverts | {PEER: earlier})
        ),
        "with an advert of another client": signed(
            play, Roster(adverts | {PEER: adverts[DROPOUT]})
        ),
        "with another advert of our own": signed(
            play, Roster(adverts | {NAME: renewed})
        ),
        "without ourselves": without(NAME),
        "with a stranger": signed(
            play, Roster(adverts | {"stranger": signed(play, honest, "stranger")})
        ),
    }
    return {
        **envelope_lies(
            play.messages[NAME], FaultyServerError, late.messages[NAME], short=True
        ),
        "with a byte too many": (
            MalformedMessageError,
            resigned(play, play.messages[NAME], SERVER),
        ),
        "of two clients": (BelowThresholdError, without("client-002", DROPOUT)),
        **{name: (FaultyServerError, data) for name, data in server.items()},
    }


def inboxes() -> Lies:
    """In place of the inbox."""
    play, late = until("masked"), until("masked", round_number=8)
    deliveries = dict(body(play, Inbox, play.messages[NAME]).deliveries)
    others = dict(body(play, Inbox, play.messages[PEER]).deliveries)
    honest = deliveries[PEER]

    def inbox(**changes: object) -> bytes:
        altered = replace(honest, **changes)
        return signed(play, Inbox(deliveries | {PEER: altered}))

    def without(*names: str) -> bytes:
        left = {name: item for name, item in deliveries.items() if name not in names}
        return signed(play, Inbox(left))

    def redealt(**changes: object) -> bytes:
        """Altered by the dealer itself, under a root that it signed."""
        dealing = until("shares", answered=True)
        message = decode(KeyShares, dealing.replies[PEER])
        head = body(play, KeySharesHead, message.head)
        names = tuple(TERMS.cohort)
        place = names.index(NAME)
        sealed = list(message.sealed)
        sealed[place] = replace(sealed[place], **changes)
        leaves = share_leaves(head.roster_hash, PEER, names, sealed)
        root, paths = merkle_paths(leaves)
        new = signed(play, replace(head, root=root), PEER)
        return inbox(head=new, sealed=sealed[place], path=paths[place])

    head = body(play, KeySharesHead, honest.head)
    cipher = honest.sealed.ciphertext
    altered = replace(honest.sealed, ciphertext=bytes([cipher[0] ^ 1]) + cipher[1:])
    stale = body(late, Inbox, late.messages[NAME]).deliveries[PEER].head
    server = {
        "without our own shares": without(NAME),
        "with an altered share": inbox(sealed=altered),
        "with a share for another": inbox(sealed=others[PEER].sealed),
        "with another commitment": inbox(
            sealed=replace(honest.sealed, mask_key_commitment=ANOTHER)
        ),
        "with an altered path": inbox(path=(ANOTHER, *honest.path[1:])),
        "with a head of another round": inbox(head=stale),
        "with a forged head": inbox(head=signed(play, head, PEER, key="stranger")),
        "with a head of another dealer": inbox(head=deliveries[DROPOUT].head),
        "with shares of a stranger": signed(
            play, Inbox(deliveries | {"stranger": honest})
        ),
    }
    return {
        **envelope_lies(
            play.messages[NAME], FaultyServerError, late.messages[NAME], short=True
        ),
        "of two dealers": (BelowThresholdError, without(PEER, DROPOUT)),
        "with a path too short": (MalformedMessageError, inbox(path=honest.path[1:])),
        "with a path too long": (
            MalformedMessageError,
            inbox(path=(*honest.path, ANOTHER)),
        ),
        "with a dealer of another roster": (
            FaultyPeerOrServerError,
            inbox(head=signed(play, replace(head, roster_hash=ANOTHER), PEER)),
        ),
        "with a share that does not open": (
            FaultyClientError,
            redealt(ciphertext=bytes(80)),
        ),
        "with a share that was not committed to": (
            FaultyClientError,
            redealt(self_mask_commitment=ANOTHER),
        ),
        **{name: (FaultyServerError, data) for name, data in server.items()},
    }


def survivors() -> Lies:
    """In place of the survivors."""
    play, late = until("consistency"), until("consistency", round_number=8)
    headers = dict(body(play, Survivors, play.messages[NAME]).headers)

    def announced(new: Mapping[str, bytes]) -> bytes:
        return signed(play, Survivors(new))

    without = {name: data for name, data in headers.items() if name != NAME}
    return {
        **envelope_lies(
            play.messages[NAME], FaultyServerError, late.messages[NAME], short=True
        ),
        "with a byte too many": (
            MalformedMessageError,
            resigned(play, play.messages[NAME], SERVER),
        ),
        "with a stranger": (
            FaultyServerError,
            announced(headers | {"stranger": ANOTHER}),
        ),
        "with another vector of ours": (
            FaultyServerError,
            announced(headers | {NAME: ANOTHER}),
        ),
        "of two clients": (
            BelowThresholdError,
            announced(dict(list(headers.items())[:2])),
        ),
        "without ourselves": (RefusalError, announced(without | {DROPOUT: ANOTHER})),
    }


def quorums() -> Lies:
    """In place of the quorum."""
    play, late = until("reveal"), until("reveal", round_number=8)
    given = dict(body(play, Quorum, play.messages[NAME]).confirmations)
    seen = body(play, Consistency, given[PEER])

    def quorum(confirmation: bytes, name: str = PEER) -> bytes:
        return signed(play, Quorum(given | {name: confirmation}))

    stale = body(late, Quorum, late.messages[NAME]).confirmations[PEER]
    server = {
        "with a forged confirmation": signed(play, seen, PEER, key="stranger"),
        "with a confirmation of another client": given["client-002"],
        "with a confirmation of another round": stale,
    }
    lies = envelope_lies(
        play.messages[NAME], FaultyServerError, late.messages[NAME], short=True
    )
    lies |= {name: (FaultyServerError, quorum(data)) for name, data in server.items()}
    lies["with a dropout"] = (
        FaultyServerError,
        quorum(signed(play, seen, DROPOUT), DROPOUT),
    )
    for item in ("roster_hash", "sharers_hash", "survivors_hash"):
        other = signed(play, replace(seen, **{item: ANOTHER}), PEER)
        lies[f"over another {item}"] = (FaultyPeerOrServerError, quorum(other))
    lies["of two clients"] = (
        BelowThresholdError,
        signed(play, Quorum(dict(list(given.items())[:2]))),
    )
    return lies


def outcomes() -> Lies:
    """In place of the published message, after the reveal."""
    play, late = until("reveal", answered=True), until("reveal", round_number=8)
    play.collect()
    message = play.server.publish(ANOTHER, ledger_head(SERVER))
    plain = body(play, Published, message)

    def published(**changes: object) -> bytes:
        return signed(play, replace(plain, **changes))

    return {
        **envelope_lies(message, FaultyServerError, signed(late, plain)),
        "over fewer survivors": (
            FaultyServerError,
            published(survivors=plain.survivors[:2]),
        ),
        "over all clients": (
            FaultyServerError,
            published(survivors=tuple(TERMS.cohort)),
        ),
        "over survivors in another order": (
            FaultyServerError,
            published(survivors=plain.survivors[::-1]),
        ),
    }


def aborts() -> Lies:
    """In place of an abort."""
    play, late = until("advert"), until("advert", round_number=8)
    plain = Aborted("too few clients", ledger_head(SERVER))
    return envelope_lies(signed(play, plain), FaultyServerError, signed(late, plain))


# By kind of message, the honest one in round.json, and what is refused instead.
LIES: Mapping[str, tuple[str, Callable[[], Lies]]] = {
    "offer": ("to answer with advert", offers),
    "roster": ("to answer with shares", rosters),
    "key-share-inbox": (f"to {NAME}, to answer with masked", inboxes),
    "survivors": ("to answer with consistency", survivors),
    "quorum": ("to answer with reveal", quorums),
    "published": ("published", outcomes),
    "aborted": ("aborted", aborts),
}


def files() -> dict[str, File]:
    """By file name, without its suffix."""
    about = (
        f"Given to {NAME} in the round of round.json in place of the message that is "
        "named `honest`: that message with `edits` [offset, bytes removed, bytes put "
        "in their place]. The last round that the client joined is 6."
    )
    return {"refused_by_client": refusals(about, LIES)}
