"""A hash chain over who sent what in a round, in order; its head is published.

The entries are signed messages and hashes, never a share, a key or a seed: of a reveal
they have the hash. They live as long as the server's state. Whoever stores them beyond
it can check signatures, inclusions and thresholds again, and, given the masked vectors,
the sum; the head alone only binds the server to one story.
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
