"""What a party must refuse in the round of `rounds`: what all messages have in common.

A refused message stands in its file as the honest one and what is altered in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from privacy.crypto import SIGNATURE_BYTES, Label
from privacy.errors import MalformedMessageError, PrivacyError, ReplayError
from privacy.plan import SERVER
from privacy.secagg.envelope import PROTOCOL_VERSION, Signed, sign
from privacy.wire import decode, encode
from tests.privacy.secagg.harness import Play, identity
from tests.vectors.form import File, bad
from tests.vectors.rounds import whole_round

# Who lies, and in whose name.
NAME = "client-001"
PEER = "client-000"

# What is wrong, the error that it must raise, and the message.
Lies = Mapping[str, tuple[type[PrivacyError], bytes]]


def signed(play: Play, message: object, sender: str = SERVER, key: str = "") -> bytes:
    """Any message for this round, under the sender's key unless another is named."""
    digest = play.server.desk.offer_digest
    return sign(message, sender, digest, identity(key or sender))


def body(play: Play, kind: type, data: bytes) -> object:
    """What an envelope of this round holds."""
    return decode(kind, decode(Signed, data).body)


def envelope_lies(
    message: bytes,
    unsigned: type[PrivacyError],
    late: bytes | None,
    *,
    short: bool = False,
) -> dict[str, tuple[type[PrivacyError], bytes]]:
    """What is wrong with an envelope, whatever is in it; of a long message, a few."""
    read = decode(Signed, message)
    flipped = bytes([read.signature[0] ^ 1]) + read.signature[1:]
    malformed = {
        "empty": b"",
        "cut": message[:-1],
        "extended": message + b"\0",
        "of version 0": encode(replace(read, version=0)),
        "of a later version": encode(replace(read, version=PROTOCOL_VERSION + 1)),
        "of another kind": encode(replace(read, label=Label.PLAN.value)),
        "of no kind": encode(replace(read, label="")),
        "in another name": encode(replace(read, sender="client-009")),
    }
    lies = {
        name: (MalformedMessageError, data)
        for name, data in malformed.items()
        if name in ("empty", "of a later version") or not short
    }
    lies["with an altered signature"] = (
        unsigned,
        encode(replace(read, signature=flipped)),
    )
    if not short:
        altered = read.body[:-1] + bytes([read.body[-1] ^ 1])
        lies["with an altered body"] = (unsigned, encode(replace(read, body=altered)))
    if late is not None:
        lies["of another round"] = (ReplayError, late)
    return lies


def resigned(play: Play, message: bytes, sender: str) -> bytes:
    """The same message with a byte too many in its body, signed."""
    read = decode(Signed, message)
    data = read.body + b"\0"
    parts = (
        read.version.to_bytes(8, "big"),
        sender.encode(),
        read.offer_digest,
        data,
    )
    signature = identity(sender).sign(Label(read.label), *parts)
    return encode(replace(read, body=data, signature=signature))


def edits(honest: bytes, altered: bytes) -> list[tuple[int, int, bytes]]:
    """Where a message was altered: offset in the honest one, bytes gone, bytes new.

    The signature is an edit of its own, so that what it signs stays readable.
    """
    end = SIGNATURE_BYTES
    if len(altered) <= end:
        return [_edit(honest, altered, 0)]
    first = _edit(honest[:-end], altered[:-end], 0)
    last = _edit(honest[-end:], altered[-end:], len(honest) - end)
    return [edit for edit in (first, last) if edit[1:] != (0, b"")]


def _edit(honest: bytes, altered: bytes, offset: int) -> tuple[int, int, bytes]:
    start, shorter = 0, min(len(honest), len(altered))
    while start < shorter and honest[start] == altered[start]:
        start += 1
    end = 0
    while end < shorter - start and honest[-1 - end] == altered[-1 - end]:
        end += 1
    new = altered[start : len(altered) - end]
    return (offset + start, len(honest) - end - start, new)


def edited(honest: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """The altered message again."""
    data = honest
    for at, gone, new in reversed(changes):
        data = data[:at] + new + data[at + gone :]
    return data


def refusals(about: str, table: Mapping[str, tuple[str, Callable[[], Lies]]]) -> File:
    """The file of these lies.

    Args:
        about: who refuses, and when.
        table: by kind of message, the name of the honest one in round.json, and lies.
    """
    honest = {case["name"]: case.get("message") for case in whole_round().valid}
    cases = []
    for kind, (name, make) in table.items():
        for what, (error, message) in make().items():
            changes = edits(honest[name], message)
            if edited(honest[name], changes) != message:
                msg = f"the edits do not give the message: {kind}, {what}"
                raise ValueError(msg)
            cases.append(bad(f"{kind}: {what}", error, honest=name, edits=changes))
    return File(about, (), tuple(cases))
