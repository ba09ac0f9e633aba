"""One line of a ledger: a DSSE envelope in canonical JSON, and its hash.

Every byte of a line is bound: the payload by the signature, the signature by being
the only one that verifies, and the rest by having one canonical form. base64 is read
strictly, since a decoder that ignores unused bits would accept several texts.

Source: DSSE v1.0, github.com/secure-systems-lab/dsse, protocol.md and envelope.md.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from privacy.crypto import (
    SIGNATURE_BYTES,
    Label,
    SigningKey,
    VerifyKey,
    sha256,
)
from privacy.errors import BadSignatureError, MalformedMessageError
from privacy.wire import Json, canonical_json, parse_canonical_json

PAYLOAD_TYPE = "application/vnd.fgrpo-secure.ledger.v1+json"
GENESIS = bytes(32)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A line, parsed but not yet believed.

    Attributes:
        payload: canonical JSON of one record.
        keyid: fingerprint of the key that should have signed.
        signature: 64 bytes.
    """

    payload: bytes
    keyid: str
    signature: bytes

    def check(self, key: VerifyKey) -> None:
        """Believe the payload only if this key signed it.

        Raises:
            BadSignatureError: it did not.
        """
        if self.keyid != key.fingerprint:
            msg = f"signed under another key than {key.fingerprint[:16]}"
            raise BadSignatureError(msg)
        key.verify_raw(self.signature, authenticated_bytes(self.payload))


def authenticated_bytes(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding of a payload of our type."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def seal_line(payload: bytes, key: SigningKey) -> bytes:
    """Sign a payload; the line without its newline."""
    signature = key.sign_raw(authenticated_bytes(payload))
    envelope: Json = {
        "payload": _to_base64(payload),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": key.verify_key.fingerprint, "sig": _to_base64(signature)}
        ],
    }
    return canonical_json(envelope)


def open_line(line: bytes) -> Envelope:
    """Parse a line without its newline; the signature is not checked here.

    Raises:
        MalformedMessageError: not the one form that `seal_line` writes.
    """
    value = parse_canonical_json(line)
    if not isinstance(value, dict) or value.keys() != {
        "payload",
        "payloadType",
        "signatures",
    }:
        msg = "not a DSSE envelope"
        raise MalformedMessageError(msg)
    signatures = value["signatures"]
    if (
        value["payloadType"] != PAYLOAD_TYPE
        or not isinstance(signatures, list)
        or len(signatures) != 1
    ):
        msg = "an envelope of another type, or without exactly one signature"
        raise MalformedMessageError(msg)
    signature = signatures[0]
    if not isinstance(signature, dict) or signature.keys() != {"keyid", "sig"}:
        msg = "a signature without exactly keyid and sig"
        raise MalformedMessageError(msg)
    keyid = signature["keyid"]
    raw = _from_base64(signature["sig"])
    if not isinstance(keyid, str) or len(raw) != SIGNATURE_BYTES:
        msg = "a signature of the wrong form"
        raise MalformedMessageError(msg)
    return Envelope(_from_base64(value["payload"]), keyid, raw)


def line_hash(line: bytes) -> bytes:
    """The hash that the next record carries: of the whole line without its newline."""
    return sha256(Label.LEDGER_RECORD, line)


def _to_base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _from_base64(text: Json) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (ValueError, binascii.Error):
        raw = None
    if raw is None or _to_base64(raw) != text:
        msg = "not base64 in its canonical form"
        raise MalformedMessageError(msg)
    return raw
