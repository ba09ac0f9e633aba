"""What a round leaves for its auditor: a hash chain of who sent what, in order.

It holds signed messages and hashes, from which signatures, inclusions and thresholds
can be checked again, and, given the masked vectors, the sum. It never holds a share, a
key or a seed: of a reveal it keeps the hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from privacy.crypto import DIGEST_BYTES, Label, sha256
from privacy.wire import encode

SENT = "sent"
MISSING = "missing"
BLAMED = "blamed"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the transcript.

    Attributes:
        phase: the label of the message that it is about.
        party: a client's name, or the server's.
        outcome: `SENT`, `MISSING` or `BLAMED`.
        evidence: what was sent (signed message or hash), or the reason in words.
    """

    phase: str
    party: str
    outcome: str
    evidence: bytes


def phase_entries(
    phase: Label,
    expected: Iterable[str],
    evidence: Mapping[str, bytes],
    blamed: Mapping[str, str],
) -> tuple[Entry, ...]:
    """The lines of one phase, by name: what came, what was wrong, who is missing."""
    lines = []
    for name in sorted({*expected, *blamed}):
        if name in evidence:
            lines.append(Entry(phase, name, SENT, evidence[name]))
        if name in blamed:
            lines.append(Entry(phase, name, BLAMED, blamed[name].encode()))
        if name not in evidence and name not in blamed:
            lines.append(Entry(phase, name, MISSING, b""))
    return tuple(lines)


def transcript_hash(entries: Iterable[Entry]) -> bytes:
    """The head of the hash chain over the entries, 32 bytes.

    Guarantee:
        A change, a missing, an added or a moved entry gives another hash.
    """
    head = bytes(DIGEST_BYTES)
    for entry in entries:
        head = sha256(Label.TRANSCRIPT, head, encode(entry))
    return head
