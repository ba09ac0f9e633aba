"""What the server shows a client of its log: new lines, a proof, and a checkpoint.

The server signs all of it, for one client of one run. So an update that contradicts an
earlier one was the server's doing and not that of somebody on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

from privacy.crypto import SIGNATURE_BYTES, Label, SigningKey, VerifyKey
from privacy.errors import BadSignatureError, FaultyServerError
from privacy.wire import Bytes32, Reader, Writer, decode, encode


@dataclass(frozen=True, slots=True)
class LogUpdate:
    """The log from one size on.

    Attributes:
        note: the checkpoint up to which it goes, signed by the server.
        start: size from which it goes: one that the client has checked, or 0.
        lines: of the server's ledger from there on, without newlines.
        proof: that the log at the checkpoint begins with the log at `start`; empty
            where one of them is empty or both are the same.
        cosigned: the last note that the server has from this client, or nothing. A
            client that does not remember it has lost a part of its ledger.
    """

    note: bytes
    start: int
    lines: tuple[bytes, ...]
    proof: tuple[Bytes32, ...]
    cosigned: bytes


def seal_update(update: LogUpdate, key: SigningKey, run: bytes, client: str) -> bytes:
    """Sign an update for one client of a run."""
    body = encode(update)
    signature = key.sign(Label.LOG_UPDATE, run, client.encode(), body)
    return Writer().field(body).fixed(signature, SIGNATURE_BYTES).finish()


def open_update(data: bytes, key: VerifyKey, run: bytes, client: str) -> LogUpdate:
    """Read an update, and believe it only if the server signed it for this client.

    Raises:
        FaultyServerError: it did not.
        MalformedMessageError: not an update.
    """
    reader = Reader(data)
    body, signature = reader.field(), reader.fixed(SIGNATURE_BYTES)
    reader.finish()
    try:
        key.verify(signature, Label.LOG_UPDATE, run, client.encode(), body)
    except BadSignatureError:
        msg = "a log that the server did not sign for this client of this run"
        raise FaultyServerError(msg) from None
    return decode(LogUpdate, body)
