"""Vectors of what the server must refuse from a client, which it then blames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from privacy.errors import (
    BadSignatureError,
    FaultyClientError,
    MalformedMessageError,
)
from privacy.secagg.messages import (
    Advert,
    Consistency,
    KeyShares,
    KeySharesHead,
    MaskedHeader,
    MaskedInput,
    Reveal,
    vector_hash,
)
from privacy.secagg.shamir import PRIME
from privacy.wire import decode, encode
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


def adverts() -> Lies:
    """In place of an advert."""
    play = until("advert", answered=True)
    late = until("advert", round_number=8, answered=True)
    message = play.replies[NAME]
    honest = body(play, Advert, message)

    def advert(**changes: object) -> bytes:
        return signed(play, replace(honest, **changes), NAME)

    return {
        **envelope_lies(message, BadSignatureError, late.replies[NAME]),
        "with a byte too many": (MalformedMessageError, resigned(play, message, NAME)),
        "with a key of low order": (MalformedMessageError, advert(mask_key=LOW_ORDER)),
        "with a key that is not canonical": (
            MalformedMessageError,
            advert(encryption_key=NOT_CANONICAL),
        ),
    }


def dealings() -> Lies:
    """In place of key shares."""
    play = until("shares", answered=True)
    late = until("shares", round_number=8, answered=True)
    data = play.replies[NAME]
    message = decode(KeyShares, data)
    head = body(play, KeySharesHead, message.head)

    def headed(**changes: object) -> bytes:
        new = signed(play, replace(head, **changes), NAME)
        return encode(replace(message, head=new))

    inner = envelope_lies(
        message.head,
        BadSignatureError,
        decode(KeyShares, late.replies[NAME]).head,
    )
    return {
        **{
            f"with a head {name}": (error, encode(replace(message, head=altered)))
            for name, (error, altered) in inner.items()
        },
        "cut": (MalformedMessageError, data[:-1]),
        "extended": (MalformedMessageError, data + b"\0"),
        "over another roster": (FaultyClientError, headed(roster_hash=ANOTHER)),
        "under another root": (FaultyClientError, headed(root=ANOTHER)),
        "for too few": (
            FaultyClientError,
            encode(replace(message, sealed=message.sealed[:-1])),
        ),
        "for too many": (
            FaultyClientError,
            encode(replace(message, sealed=message.sealed + message.sealed[:1])),
        ),
        "in another order": (
            FaultyClientError,
            encode(replace(message, sealed=message.sealed[::-1])),
        ),
    }


def vectors() -> Lies:
    """In place of a masked input."""
    play = until("masked", answered=True)
    late = until("masked", round_number=8, answered=True)
    data = play.replies[NAME]
    message = decode(MaskedInput, data)
    sent = bytes(message.words)
    header = body(play, MaskedHeader, message.header)

    def masked(words: bytes = sent, **changes: object) -> bytes:
        plain = replace(header, vector_hash=vector_hash(words))
        return encode(MaskedInput(signed(play, replace(plain, **changes), NAME), words))

    unused = 8 * len(sent) - TERMS.modulus_bits * TERMS.vector_length
    longer = sent[:-1] + bytes([sent[-1] | 1 << (8 - unused)])
    flipped = bytes([sent[0] ^ 1]) + sent[1:]
    client = {
        "for another adapter": masked(adapter_digest=ANOTHER),
        "for another roster": masked(roster_hash=ANOTHER),
        "for other sharers": masked(sharers_hash=ANOTHER),
        "of other words than signed": encode(replace(message, words=flipped)),
        "of no words": masked(b""),
        "of too few words": masked(sent[:-1]),
        "of too many words": masked(sent + bytes(1)),
        "of words without packing": masked(bytes(4 * TERMS.vector_length)),
    }
    words = {"with bits after its last word": masked(longer)}
    inner = envelope_lies(
        message.header,
        BadSignatureError,
        decode(MaskedInput, late.replies[NAME]).header,
    )
    return {
        **{
            f"with a header {name}": (error, encode(replace(message, header=altered)))
            for name, (error, altered) in inner.items()
        },
        "cut": (MalformedMessageError, data[:-1]),
        "extended": (MalformedMessageError, data + b"\0"),
        **{name: (FaultyClientError, lie) for name, lie in client.items()},
        **{name: (MalformedMessageError, lie) for name, lie in words.items()},
    }


def confirmations() -> Lies:
    """In place of a confirmation."""
    play = until("consistency", answered=True)
    late = until("consistency", round_number=8, answered=True)
    message = play.replies[NAME]
    seen = body(play, Consistency, message)
    lies = envelope_lies(message, BadSignatureError, late.replies[NAME])
    for item in ("roster_hash", "sharers_hash", "survivors_hash"):
        other = signed(play, replace(seen, **{item: ANOTHER}), NAME)
        lies[f"over another {item}"] = (FaultyClientError, other)
    return lies


def reveals() -> Lies:
    """In place of a reveal."""
    play = until("reveal", answered=True)
    late = until("reveal", round_number=8, answered=True)
    message = play.replies[NAME]
    honest = body(play, Reveal, message)
    held = until("consistency").clients[NAME].key_shares
    shares = honest.shares

    def reveal(**changes: object) -> bytes:
        return signed(play, replace(honest, **changes), NAME)

    prime = PRIME.to_bytes(32, "big")
    client = {
        "for other survivors": reveal(survivors_hash=ANOTHER),
        "of too few shares": reveal(shares=shares[:-1]),
        "of too many shares": reveal(shares=(*shares, shares[0])),
        "of another share": reveal(shares=(ANOTHER, *shares[1:])),
        "in another order": reveal(shares=shares[::-1]),
        "of the other share of a survivor": reveal(
            shares=(held[PEER].mask_key, *shares[1:])
        ),
        "of the other share of a dropout": reveal(
            shares=(*shares[:-1], held[DROPOUT].self_mask)
        ),
    }
    return {
        **envelope_lies(message, BadSignatureError, late.replies[NAME]),
        "of a share of the prime": (
            MalformedMessageError,
            reveal(shares=(prime, *shares[1:])),
        ),
        **{name: (FaultyClientError, data) for name, data in client.items()},
    }


# By kind of message, the honest one in round.json, and what is refused instead.
LIES: Mapping[str, tuple[str, Callable[[], Lies]]] = {
    "advert": (f"advert of {NAME}", adverts),
    "key-shares": (f"shares of {NAME}", dealings),
    "masked-input": (f"masked of {NAME}", vectors),
    "consistency": (f"consistency of {NAME}", confirmations),
    "reveal": (f"reveal of {NAME}", reveals),
}


def files() -> dict[str, File]:
    """By file name, without its suffix."""
    about = (
        f"Sent by {NAME} in the round of round.json in place of the message that is "
        "named `honest`: that message with `edits` [offset, bytes removed, bytes put "
        "in their place]. The server goes on without the client and blames it."
    )
    return {"refused_by_server": refusals(about, LIES)}
