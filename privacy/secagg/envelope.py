"""The signed envelope of every message, and the stored form of every waiting state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar

from privacy.crypto import Label, SigningKey, VerifyKey
from privacy.errors import (
    BadSignatureError,
    FaultyServerError,
    MalformedMessageError,
    ReplayError,
)
from privacy.plan import SERVER
from privacy.secagg.terms import RoundTerms
from privacy.wire import Bytes32, Bytes64, Reader, decode, encode

PROTOCOL_VERSION = 1


class Message(Protocol):
    """A dataclass that travels in an envelope, and the label of its signature."""

    LABEL: ClassVar[Label]


_Body = TypeVar("_Body", bound=Message)
_StateKind = TypeVar("_StateKind")


@dataclass(frozen=True, slots=True)
class Signed:
    """The envelope: who says what, in which round.

    Attributes:
        version: of the protocol; a format may change with it, so it comes first.
        label: what kind of message this is.
        sender: a client's name, or `SERVER`.
        offer_digest: the attempt of the round that it belongs to.
        body: the message.
        signature: Ed25519, over all of the above.
    """

    version: int
    label: str
    sender: str
    offer_digest: Bytes32
    body: bytes
    signature: Bytes64

    def verify(self, key: VerifyKey) -> None:
        """Check the signature.

        Raises:
            BadSignatureError: not of this key.
        """
        parts = _signed_parts(self.version, self.sender, self.offer_digest, self.body)
        key.verify(self.signature, Label(self.label), *parts)


def sign(message: Message, sender: str, offer_digest: bytes, key: SigningKey) -> bytes:
    """Encode and sign a message; returns the envelope's bytes."""
    label = message.LABEL
    body = encode(message)
    parts = _signed_parts(PROTOCOL_VERSION, sender, offer_digest, body)
    signature = key.sign(label, *parts)
    return encode(
        Signed(PROTOCOL_VERSION, label, sender, offer_digest, body, signature)
    )


def read_signed(
    data: bytes, label: Label, sender: str, offer_digest: bytes, key: VerifyKey
) -> Signed:
    """Parse an envelope and accept it only from this sender, for this attempt.

    Raises:
        MalformedMessageError: not an envelope of this kind and sender.
        ReplayError: of another round or attempt.
        BadSignatureError: not signed by this key.
    """
    signed = parse_envelope(data, label, sender)
    if signed.offer_digest != offer_digest:
        msg = "a message of another round or attempt: it was replayed or is late"
        raise ReplayError(msg)
    signed.verify(key)
    return signed


def read_server(
    data: bytes, kind: type[_Body], terms: RoundTerms, offer_digest: bytes
) -> _Body:
    """Parse a message of the server.

    Raises:
        MalformedMessageError: not such a message.
        ReplayError: of another round or attempt.
        FaultyServerError: not signed by the server's pinned key.
    """
    try:
        signed = read_signed(data, kind.LABEL, SERVER, offer_digest, terms.server)
    except BadSignatureError:
        msg = "a message that the server's pinned key did not sign: abandon the round"
        raise FaultyServerError(msg) from None
    return decode(kind, signed.body)


def read_client(
    data: bytes, kind: type[_Body], client: str, terms: RoundTerms, offer_digest: bytes
) -> _Body:
    """Parse a message of a client of the cohort.

    Raises:
        MalformedMessageError: not such a message.
        ReplayError: of another round or attempt.
        BadSignatureError: not signed by the client's pinned key.
    """
    key = terms.cohort[client]
    signed = read_signed(data, kind.LABEL, client, offer_digest, key)
    return decode(kind, signed.body)


def parse_envelope(data: bytes, label: Label, sender: str) -> Signed:
    """Parse an envelope of this kind and sender; its signature is not verified.

    Raises:
        MalformedMessageError: another version, kind or sender, or no envelope.
    """
    version = Reader(data).integer()
    if version != PROTOCOL_VERSION:
        msg = (
            f"a message of protocol version {version}, where this is version "
            f"{PROTOCOL_VERSION}: update the older side"
        )
        raise MalformedMessageError(msg)
    signed = decode(Signed, data)
    if signed.label != label:
        msg = f"a message of another kind than {label.value}"
        raise MalformedMessageError(msg)
    if signed.sender != sender:
        msg = "a message in the name of another sender"
        raise MalformedMessageError(msg)
    return signed


def _signed_parts(
    version: int, sender: str, offer_digest: bytes, body: bytes
) -> tuple[bytes, ...]:
    return (version.to_bytes(8, "big"), sender.encode(), offer_digest, body)


@dataclass(frozen=True, slots=True)
class StoredState:
    """A waiting state as bytes: which one, of which version, and its fields."""

    kind: str
    version: int
    body: bytes = field(repr=False)


def store_state(state: object) -> bytes:
    """The bytes that `load_state` restores a state from."""
    return encode(StoredState(type(state).__name__, PROTOCOL_VERSION, encode(state)))


def load_state(
    kinds: Sequence[type[_StateKind]], data: bytes, attached: Mapping[str, object]
) -> _StateKind:
    """Restore a state that is one of these kinds.

    Raises:
        MalformedMessageError: not a stored state of these kinds and this version.
    """
    stored = decode(StoredState, data)
    for kind in kinds:
        if kind.__name__ == stored.kind and stored.version == PROTOCOL_VERSION:
            return decode(kind, stored.body, attached)
    msg = f"not a stored state of protocol version {PROTOCOL_VERSION} awaited here"
    raise MalformedMessageError(msg)
