import base64
import json

import pytest

from privacy.errors import BadSignatureError, MalformedMessageError
from privacy.ledger.envelope import (
    PAYLOAD_TYPE,
    authenticated_bytes,
    line_hash,
    open_line,
    seal_line,
)
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
