"""What the parties of a pilot say to one another over an engine that nobody trusts.

A site says hello, once for each life of its process, with a nonce that nobody could
have known before. The server's requests name that nonce, the run, the round, the phase,
the client and a number that rises; a site's answer names the request that it is to. All
are signed by the parties' own keys, so that an engine, or whoever operates it, can lose
a message and nothing else. What is secret is encrypted within, by the kernel.

Nothing here sends, waits, or draws randomness.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from privacy.crypto import Label, SigningKey, VerifyKey, sha256
from privacy.errors import MalformedMessageError, PrivacyError, ReplayError
from privacy.ledger import HANDLE_BYTES, Reason
from privacy.wire import Bytes32, Reader, Writer, decode, encode

NONCE_BYTES = 32

# The phases of a round, in their order. The last two are its end, one or the other.
_ORDER: Mapping[str, int] = {
    "offer": 0,
    "roster": 1,
    "shares": 2,
    "survivors": 3,
    "quorum": 4,
    "published": 5,
    "aborted": 5,
}
# Where a run stands before its first round.
_BEFORE = (0, _ORDER["aborted"])
OPEN = "open"
LEDGER = "ledger"
_OUTSIDE = frozenset({OPEN, "log", "evaluate", "close", LEDGER})

Handle: TypeAlias = Annotated[bytes, HANDLE_BYTES]


@dataclass(frozen=True, slots=True)
class Hello:
    """A site's process is there.

    Attributes:
        site: who says so.
        job: what the engine calls the job that this is for.
        nonce: fresh, from the system's randomness.
    """

    site: str
    job: str
    nonce: Bytes32


@dataclass(frozen=True, slots=True)
class Request:
    """What the server asks of one client.

    Attributes:
        nonce: of the hello; a request to another life of the site's process is void.
        run: the run's handle.
        sequence: rises with every request to this life of the process.
        round: which round it is of; 0 for a phase that is of none.
        phase: what is asked.
        client: who is asked.
        payload: digest of the message for that phase.
    """

    nonce: Bytes32
    run: Handle
    sequence: int
    round: int
    phase: str
    client: str
    payload: Bytes32

    @property
    def digest(self) -> bytes:
        """What an answer calls this request by, 32 bytes."""
        return sha256(Label.ENGINE_REQUEST_DIGEST, encode(self))


@dataclass(frozen=True, slots=True)
class Opening:
    """What a site is asked to open: the payload of that phase.

    Attributes:
        name: of the run; folders go by it.
        agreement: what all parties share, as TOML.
        plan: what the server registered, as canonical JSON.
    """

    name: str
    agreement: bytes
    plan: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client says to one request.

    Attributes:
        request: digest of the request.
        client: who answers.
        refused: why not, as the code of a ledger; empty where the payload is an answer.
        payload: digest of the answer.
    """

    request: Bytes32
    client: str
    refused: str
    payload: Bytes32


def round_of(phase: str, number: int) -> int:
    """The round that a request of this phase states while round `number` is run."""
    return number if phase in _ORDER else 0


def write_hello(hello: Hello, key: SigningKey) -> bytes:
    """A signed hello."""
    return _seal(Label.ENGINE_HELLO, encode(hello), key, b"")


def read_hello(data: bytes, keys: Mapping[str, VerifyKey], job: str) -> Hello:
    """Read a hello.

    Args:
        data: the bytes.
        keys: of the pinned cohort, by name.
        job: what the engine calls this job.

    Raises:
        MalformedMessageError: not a hello, of nobody who is pinned, or for another job.
        BadSignatureError: not signed by that site.
    """
    sealed = _open(data)
    hello = decode(Hello, sealed.head)
    if hello.site not in keys:
        msg = "a hello of a site that is not in the cohort"
        raise MalformedMessageError(msg)
    keys[hello.site].verify(sealed.signature, Label.ENGINE_HELLO, sealed.head)
    if hello.job != job or sealed.payload:
        msg = "a hello for another job"
        raise MalformedMessageError(msg)
    return hello


def write_request(request: Request, payload: bytes, key: SigningKey) -> bytes:
    """A signed request with its payload."""
    return _seal(Label.ENGINE_REQUEST, encode(request), key, payload)


def payload_digest(payload: bytes) -> bytes:
    """What requests and answers call a payload by, 32 bytes."""
    return sha256(Label.ENGINE_PAYLOAD, payload)


def write_answer(request: Request, payload: bytes, key: SigningKey) -> bytes:
    """A signed answer to a request."""
    head = Answer(request.digest, request.client, "", payload_digest(payload))
    return _seal(Label.ENGINE_ANSWER, encode(head), key, payload)


def write_refusal(request: Request, reason: Reason, key: SigningKey) -> bytes:
    """A signed refusal of a request: a code, and no words that could say more."""
    head = Answer(request.digest, request.client, reason.value, payload_digest(b""))
    return _seal(Label.ENGINE_ANSWER, encode(head), key, b"")


class RefusedError(PrivacyError):
    """A client refused a request, and signed why.

    Attributes:
        reason: the code that it gave.
    """

    def __init__(self, client: str, reason: Reason) -> None:
        super().__init__(f"client {client!r} refused: {reason.value}")
        self.reason = reason


def read_answer(data: bytes, request: Request, key: VerifyKey) -> bytes:
    """Read the answer to a request.

    Args:
        data: the bytes.
        request: what was asked.
        key: of the client that was asked, as it is pinned.

    Returns:
        The answer's payload.

    Raises:
        RefusedError: the client refused.
        BadSignatureError: not signed by that client.
        ReplayError: to another request.
        MalformedMessageError: otherwise not an answer.
    """
    sealed = _open(data)
    answer = decode(Answer, sealed.head)
    key.verify(sealed.signature, Label.ENGINE_ANSWER, sealed.head)
    if (answer.request, answer.client) != (request.digest, request.client):
        msg = "an answer to another request"
        raise ReplayError(msg)
    if answer.payload != payload_digest(sealed.payload):
        msg = "an answer with another payload than was signed"
        raise MalformedMessageError(msg)
    if not answer.refused:
        return sealed.payload
    if answer.refused not in _CODES or sealed.payload:
        msg = "a refusal without a known reason"
        raise MalformedMessageError(msg)
    raise RefusedError(request.client, Reason(answer.refused))


_CODES: Collection[str] = frozenset(reason.value for reason in Reason)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that is genuine, and what it brings.

    Attributes:
        request: its head.
        payload: the message for the phase.
        kept: the answer, where this request was answered before.
        is_new: whether it was not let in before.
    """

    request: Request
    payload: bytes
    kept: bytes | None
    is_new: bool


class Gate:
    """What one life of a site's process lets in: the server's requests, in their order.

    The same request is let in again, and finds the answer that was kept, so that a
    message may be sent until it arrives. A request that was let in is never followed by
    an earlier one, nor by another with the same number.

    Args:
        site: whose process this is.
        nonce: of its hello.
        server: the server's key, as the site's operator pinned it.

    Guarantee:
        A request is new at most once. In a run the rounds of new offers rise, and
        within a round the phases follow their order.
    """

    def __init__(self, site: str, nonce: bytes, server: VerifyKey) -> None:
        self._site = site
        self._nonce = nonce
        self._server = server
        self._run = b""
        self._last: Request | None = None
        self._step = _BEFORE
        self._kept: bytes | None = None

    def admit(self, data: bytes) -> Admitted:
        """Let a request in.

        Raises:
            BadSignatureError: not of the pinned server.
            ReplayError: to another life of this process, or out of its order.
            MalformedMessageError: not a request to this site and the run that is open.
        """
        sealed = _open(data)
        request = decode(Request, sealed.head)
        self._server.verify(sealed.signature, Label.ENGINE_REQUEST, sealed.head)
        if request.payload != payload_digest(sealed.payload):
            msg = "a request with another payload than was signed"
            raise MalformedMessageError(msg)
        if request.client != self._site:
            msg = "a request to another site"
            raise MalformedMessageError(msg)
        if request.nonce != self._nonce:
            msg = "a request to another life of this site's process"
            raise ReplayError(msg)
        if request == self._last:
            return Admitted(request, sealed.payload, self._kept, is_new=False)
        self._check_order(request)
        self._last, self._kept = request, None
        return Admitted(request, sealed.payload, None, is_new=True)

    def keep(self, request: Request, answer: bytes) -> bool:
        """Keep the answer to the last request; returns whether it still is the last."""
        if request != self._last:
            return False
        self._kept = answer
        return True

    def _check_order(self, request: Request) -> None:
        if self._last is not None and request.sequence <= self._last.sequence:
            msg = "a request that comes after a later one"
            raise ReplayError(msg)
        if request.phase == OPEN and request.run != self._run:
            # Whether it may be opened is not for this gate to say.
            self._run, self._step = request.run, _BEFORE
        if request.run != self._run:
            msg = "a request of a run that is not open here"
            raise MalformedMessageError(msg)
        self._step = self._following(request)

    def _following(self, request: Request) -> tuple[int, int]:
        """Round and place in it after this request."""
        place = _ORDER.get(request.phase)
        if place is None:
            if request.phase not in _OUTSIDE or request.round:
                msg = "a phase that no site knows, or in a round that it is not of"
                raise MalformedMessageError(msg)
            return self._step
        number, before = self._step
        is_first = request.phase == "offer"
        follows = number < request.round if is_first else before < place
        if not follows or (not is_first and number != request.round):
            msg = "a phase that does not follow what came before it"
            raise ReplayError(msg)
        return request.round, place


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A message taken apart, its signature not yet looked at."""

    head: bytes
    signature: bytes
    payload: bytes


_MOST_HEAD_BYTES = 2**16
_SIGNATURE_BYTES = 64


def _seal(label: Label, head: bytes, key: SigningKey, payload: bytes) -> bytes:
    message = Writer().field(head).fixed(key.sign(label, head), _SIGNATURE_BYTES)
    return message.field(payload).finish()


def _open(data: bytes) -> _Sealed:
    reader = Reader(data)
    head = reader.field(_MOST_HEAD_BYTES)
    sealed = _Sealed(head, reader.fixed(_SIGNATURE_BYTES), reader.field())
    reader.finish()
    return sealed
