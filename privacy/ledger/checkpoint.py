"""Checkpoints of a log as signed notes: what is written, and what is accepted.

A checkpoint says that a log had so many entries and which root. The log signs it, and
whoever checked it adds a signature of its own under the same text. There is no time of
day in it. Other programs that read notes read these; of theirs, only checkpoints of our
logs are accepted, without extension lines and in one encoding.

A note's text begins with "fgrpo-secure/". What the same keys sign elsewhere begins with
a length or with "DSSEv1", so that no signature serves twice.

Source: c2sp.org/signed-note, c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

from privacy.crypto import (
    DIGEST_BYTES,
    Label,
    SigningKey,
    VerifyKey,
    bare_sha256,
    sha256,
)
from privacy.errors import BadSignatureError, MalformedMessageError
from privacy.wire import MAX_JSON_INTEGER

# A cohort has at most 1000 clients; the rest is for witnesses of other people.
MAX_SIGNATURES = 2048
MAX_NOTE_BYTES = 2**20

_ORIGIN_BYTES = 16
_ORIGIN = re.compile(r"fgrpo-secure/[0-9a-f]{32}")
_SIZE = re.compile(r"[1-9][0-9]{0,15}")
# Printable ASCII without the plus sign, which the format keeps out of names.
_KEY_NAME = re.compile(r"[!-*,-~]{1,255}")
_DASH = "\u2014"
_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_MAX_SIGNATURE_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log.

    Attributes:
        origin: which log; also the name under which the server signs.
        size: how many entries, at least 1.
        root: of the Merkle tree over them, 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    def text(self) -> bytes:
        """What is signed: three lines."""
        root = base64.b64encode(self.root).decode()
        return f"{self.origin}\n{self.size}\n{root}\n".encode()


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line.

    Attributes:
        name: of the key.
        key_id: 4 bytes; with the name it says which key.
        signature: 64 bytes where it is one of ours.
    """

    name: str
    key_id: bytes
    signature: bytes

    def line(self) -> str:
        """The line, without its newline."""
        raw = base64.b64encode(self.key_id + self.signature).decode()
        return f"{_DASH} {self.name} {raw}"


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint and who signed it. A signature counts once it is checked.

    Attributes:
        checkpoint: the text.
        signatures: in order, at least one; no key has two.
    """

    checkpoint: Checkpoint
    signatures: tuple[NoteSignature, ...]

    def to_bytes(self) -> bytes:
        """The note."""
        lines = "".join(f"{one.line()}\n" for one in self.signatures)
        return self.checkpoint.text() + b"\n" + lines.encode()

    def signature_of(self, name: str, key: VerifyKey) -> bytes | None:
        """The signature of this key under this name, checked; None if it has none.

        Raises:
            BadSignatureError: there is one, and it does not verify.
        """
        for one in self.signatures:
            if (one.name, one.key_id) == (name, key_id(name, key)):
                key.verify_raw(one.signature, self.checkpoint.text())
                return one.signature
        return None

    def require(self, name: str, key: VerifyKey) -> bytes:
        """The signature of this key under this name.

        Raises:
            BadSignatureError: it has none, or it does not verify.
        """
        found = self.signature_of(name, key)
        if found is None:
            msg = f"a checkpoint that {name!r} did not sign"
            raise BadSignatureError(msg)
        return found


def log_origin(run: bytes) -> str:
    """What the log of a run is called.

    A hash of the run's handle and not the handle itself, which stands in every line
    and so keeps the leaves from being guessed by whoever sees notes and proofs alone.
    """
    name = sha256(Label.LOG_ORIGIN, run)[:_ORIGIN_BYTES]
    return f"fgrpo-secure/{name.hex()}"


def key_id(name: str, key: VerifyKey) -> bytes:
    """What a signature line calls an Ed25519 key by, beside its name; 4 bytes."""
    return bare_sha256(name.encode() + b"\n" + _ED25519 + key.raw)[:_KEY_ID_BYTES]


def sign_checkpoint(
    checkpoint: Checkpoint, name: str, key: SigningKey
) -> NoteSignature:
    """Sign a checkpoint under a name."""
    signature = key.sign_raw(checkpoint.text())
    return NoteSignature(name, key_id(name, key.verify_key), signature)


def parse_note(data: bytes) -> Note:
    """Read a note; no signature is checked here.

    Guarantee:
        `parse_note(data).to_bytes() == data` whenever it returns.

    Raises:
        MalformedMessageError: not a note, or not of a checkpoint of ours.
    """
    if len(data) > MAX_NOTE_BYTES:
        raise _refused("a note that is too long")
    try:
        text, blank, rest = data.decode("utf-8").rpartition("\n\n")
    except UnicodeDecodeError:
        raise _refused("a note that is not UTF-8") from None
    lines = rest.split("\n")
    if not blank or lines.pop() or not 0 < len(lines) <= MAX_SIGNATURES:
        raise _refused("a note without a blank line and signatures behind it")
    signatures = tuple(_parse_line(line) for line in lines)
    if len({(one.name, one.key_id) for one in signatures}) != len(signatures):
        raise _refused("a note with two signatures of one key")
    return Note(_parse_text(text), signatures)


def merged(note: Note, more: Mapping[str, NoteSignature]) -> Note:
    """The note with further signatures, by name, behind its first one."""
    first, *others = note.signatures
    table = {one.name: one for one in others} | dict(more)
    return Note(note.checkpoint, (first, *(table[name] for name in sorted(table))))


def _parse_text(text: str) -> Checkpoint:
    parts = text.split("\n")
    if len(parts) != 3:
        raise _refused("a checkpoint that is not three lines")
    origin, size, root = parts
    if _ORIGIN.fullmatch(origin) is None:
        raise _refused("a checkpoint of another kind of log")
    if _SIZE.fullmatch(size) is None or int(size) > MAX_JSON_INTEGER:
        raise _refused("a checkpoint without a size in decimal")
    raw = _from_base64(root)
    if len(raw) != DIGEST_BYTES:
        raise _refused("a checkpoint whose root is not 32 bytes")
    return Checkpoint(origin, int(size), raw)


def _parse_line(line: str) -> NoteSignature:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != _DASH:
        raise _refused("not a signature line of a note")
    name, encoded = parts[1:]
    if _KEY_NAME.fullmatch(name) is None:
        raise _refused("a note signed under a name that keys cannot have")
    raw = _from_base64(encoded)
    if not _KEY_ID_BYTES < len(raw) <= _MAX_SIGNATURE_BYTES:
        raise _refused("a signature line without a signature")
    return NoteSignature(name, raw[:_KEY_ID_BYTES], raw[_KEY_ID_BYTES:])


def _from_base64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    # Unused bits that are not zero would give one note several texts.
    if not raw or base64.b64encode(raw).decode() != text:
        raise _refused("a note with base64 that is not canonical")
    return raw


def _refused(what: str) -> MalformedMessageError:
    return MalformedMessageError(what)
