import base64
import json
from pathlib import Path

import pytest

from privacy.crypto import SigningKey
from privacy.errors import BadSignatureError, MalformedMessageError
from privacy.ledger import Joined, Reason, Role
from privacy.ledger.checkpoint import (
    Checkpoint,
    Note,
    log_origin,
    sign_checkpoint,
)
from privacy.ledger.envelope import (
    PAYLOAD_TYPE,
    authenticated_bytes,
    line_hash,
    open_line,
    seal_line,
)
from privacy.ledger.fields import codecs
from privacy.ledger.merkle import Tree, leaf_hash
from privacy.ledger.payload import KINDS, Header, encode_record
from privacy.wire import canonical_json
from tests.privacy.ledger.synthetic import make_key

KEY = make_key("alpha")
# 4 bytes and 64 bytes: both texts end in unused bits that a lax decoder ignores.
PAYLOAD = b'{"a"'


def test_the_authenticated_bytes_are_those_of_the_dsse_specification():
    expected = b"DSSEv1 43 application/vnd.fgrpo-secure.ledger.v1+json 4 " + PAYLOAD
    assert authenticated_bytes(PAYLOAD) == expected
    assert len(PAYLOAD_TYPE) == 43


def test_a_sealed_line_opens_to_its_payload_under_its_key():
    envelope = open_line(seal_line(PAYLOAD, KEY))
    envelope.check(KEY.verify_key)
    assert envelope.payload == PAYLOAD
    assert envelope.keyid == KEY.verify_key.fingerprint


def test_a_line_of_another_key_is_found_even_if_it_borrows_the_keyid():
    other = make_key("mallory")
    line = json.loads(seal_line(PAYLOAD, other))
    with pytest.raises(BadSignatureError, match="another key"):
        open_line(canonical_json(line)).check(KEY.verify_key)
    line["signatures"][0]["keyid"] = KEY.verify_key.fingerprint
    with pytest.raises(BadSignatureError):
        open_line(canonical_json(line)).check(KEY.verify_key)


@pytest.mark.parametrize("field", ["payload", "sig"])
def test_base64_with_other_unused_bits_is_refused(field):
    line = json.loads(seal_line(PAYLOAD, KEY))
    owner = line if field == "payload" else line["signatures"][0]
    text = owner[field]
    body, padding = text.rstrip("="), text[len(text.rstrip("=")) :]
    assert padding
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    changed = body[:-1] + alphabet[alphabet.index(body[-1]) ^ 1] + padding
    assert base64.b64decode(changed) == base64.b64decode(text)
    owner[field] = changed
    with pytest.raises(MalformedMessageError):
        open_line(canonical_json(line))


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line | {"extra": 1},
        lambda line: {k: v for k, v in line.items() if k != "payloadType"},
        lambda line: line | {"payloadType": "application/json"},
        lambda line: line | {"signatures": []},
        lambda line: line | {"signatures": line["signatures"] * 2},
        lambda line: line | {"signatures": [1]},
        lambda line: line | {"signatures": [line["signatures"][0] | {"x": 1}]},
        lambda line: line | {"signatures": [line["signatures"][0] | {"keyid": 5}]},
        lambda line: line | {"signatures": [line["signatures"][0] | {"sig": "AAAA"}]},
        lambda line: line | {"payload": None},
        lambda line: line | {"payload": "AA A="},
        lambda line: line | {"payload": "ÄÄÄÄ"},
        lambda _: [],
    ],
)
def test_an_envelope_of_another_shape_is_refused(change):
    line = json.loads(seal_line(PAYLOAD, KEY))
    with pytest.raises(MalformedMessageError):
        open_line(canonical_json(change(line)))


def test_a_line_with_space_in_it_is_refused():
    line = seal_line(PAYLOAD, KEY)
    for changed in (line + b" ", b" " + line, line.replace(b":", b": ", 1)):
        with pytest.raises(MalformedMessageError):
            open_line(changed)


def test_the_hash_covers_every_byte_of_the_line():
    line = seal_line(PAYLOAD, KEY)
    changed = {
        line_hash(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :])
        for place in range(len(line))
    }
    assert len(changed) == len(line)
    assert line_hash(line) not in changed


def test_the_example_in_the_documentation_is_what_is_written():
    text = (Path(__file__).parents[3] / "docs" / "ledger.md").read_text()
    example = text.split("### An example")[1].split("```")[1].split()
    key = SigningKey(bytes(range(32)))
    header = Header(1, b"\x11" * 32, "alpha", Role.CLIENT, bytes(range(16)))
    record = Joined(1, 1, b"\x22" * 32, b"\x33" * 32)
    line = seal_line(encode_record(header, record), key)
    assert example == [
        key.verify_key.raw.hex(),
        key.verify_key.fingerprint,
        encode_record(header, record).decode(),
        line.decode(),
        line_hash(line).hex(),
    ]


def test_the_note_in_the_documentation_is_what_is_written():
    text = (Path(__file__).parents[3] / "docs" / "ledger.md").read_text("utf-8")
    line = text.split("### An example")[1].split("```")[1].split()[3].encode()
    example = text.split("an empty\nline, and the note.")[1].split("```")[1]
    root, _, note = example.strip("\n").partition("\n\n")
    server, alpha = (SigningKey(bytes(range(n, n + 32))) for n in (0, 32))
    origin = log_origin(bytes(range(16)))
    head = Checkpoint(origin, 1, Tree([line]).root())
    signed = (
        sign_checkpoint(head, origin, server),
        sign_checkpoint(head, "alpha", alpha),
    )
    assert root == leaf_hash(line).hex() == head.root.hex()
    assert note + "\n" == Note(head, signed).to_bytes().decode()


def test_every_reason_and_kind_is_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "ledger.md").read_text()
    words = {reason.value for reason in Reason}
    words |= {kind for kinds in KINDS.values() for kind in kinds}
    for kinds in KINDS.values():
        for kind in kinds.values():
            words |= set(codecs(kind))
    assert [word for word in sorted(words) if f"`{word}`" not in text] == []
