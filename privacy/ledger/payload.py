"""A record as the payload of a line: its header, its canonical bytes, its digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from privacy.crypto import Label, sha256
from privacy.ledger.codes import Role
from privacy.ledger.fields import (
    Count,
    Digest,
    Handle,
    Name,
    choice,
    from_object,
    refuse,
    to_object,
)
from privacy.ledger.records import (
    Aborted,
    ClientClosed,
    ClientOpened,
    Commit,
    Cosigned,
    Declined,
    Disputed,
    Intent,
    Joined,
    Moved,
    Outcome,
    Published,
    Record,
    Refused,
    Resumed,
    Roster,
    RoundOpened,
    ServerClosed,
    ServerOpened,
    Shown,
    Survivors,
)
from privacy.vectors import View
from privacy.wire import Json, canonical_json

FORMAT_VERSION = 1
COMMIT_SECRET_BYTES = 32

_CLIENT_KINDS: tuple[type[Record], ...] = (
    ClientOpened,
    Declined,
    Joined,
    Shown,
    Intent,
    Commit,
    Outcome,
    Refused,
    Cosigned,
    Disputed,
    Resumed,
    ClientClosed,
)
_SERVER_KINDS: tuple[type[Record], ...] = (
    ServerOpened,
    RoundOpened,
    Roster,
    Survivors,
    Published,
    Aborted,
    Moved,
    Resumed,
    ServerClosed,
)
KINDS: Mapping[Role, Mapping[str, type[Record]]] = {
    Role.CLIENT: {record.kind: record for record in _CLIENT_KINDS},
    Role.SERVER: {record.kind: record for record in _SERVER_KINDS},
}


@dataclass(frozen=True, slots=True)
class Header:
    """What every record carries beside its own fields.

    Attributes:
        seq: the record's place, from 0.
        prev: hash of the line before, 32 zero bytes at first.
        party: whose ledger it is.
        role: on which side.
        run: the run's handle.
    """

    seq: Count
    prev: Digest
    party: Name
    role: Annotated[Role, choice(Role)]
    run: Handle


def encode_record(header: Header, record: Record) -> bytes:
    """The canonical payload of a line."""
    payload = to_object(header) | to_object(record)
    payload |= {"v": FORMAT_VERSION, "kind": record.kind}
    return canonical_json(payload)


def decode_record(value: Json) -> tuple[Header, Record]:
    """Read a payload that has exactly the fields of its kind.

    Raises:
        MalformedMessageError: anything else.
    """
    if not isinstance(value, dict):
        msg = "a payload that is not an object"
        raise refuse(msg)
    body = dict(value)
    version = body.pop("v", None)
    if version != FORMAT_VERSION or isinstance(version, bool):
        msg = "a record of another format version"
        raise refuse(msg)
    kind = body.pop("kind", None)
    names = ("seq", "prev", "party", "role", "run")
    header = from_object(Header, {name: body.get(name) for name in names})
    known = KINDS[header.role]
    if not isinstance(kind, str) or kind not in known:
        msg = f"an unknown kind of record for a {header.role.value}"
        raise refuse(msg)
    record_type = known[kind]
    # Only these name their run; every other record inherits it from the header.
    shared = {"run"} if kind in {ClientOpened.kind, Declined.kind} else set()
    for name in names:
        if name not in shared:
            body.pop(name)
    return header, from_object(record_type, body)


def commitment(secret: bytes, vector: View) -> bytes:
    """Bind a vector before it is sent, without a hash that can be searched.

    Args:
        secret: 32 fresh bytes that the client keeps.
        vector: the noised vector, little-endian words.

    Returns:
        32 bytes.
    """
    if len(secret) != COMMIT_SECRET_BYTES:
        msg = f"a commitment needs {COMMIT_SECRET_BYTES} secret bytes"
        raise ValueError(msg)
    return sha256(Label.LEDGER_COMMIT, secret, vector)


def plan_digest(plan: Mapping[str, Json]) -> bytes:
    """The digest of a plan's JSON object, 32 bytes."""
    return sha256(Label.PLAN, canonical_json(dict(plan)))
