"""Signed notes: the examples of their specifications, and what is refused."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.crypto import Label, SigningKey, VerifyKey, framed
from privacy.errors import BadSignatureError, MalformedMessageError
from privacy.ledger.checkpoint import (
    MAX_NOTE_BYTES,
    MAX_SIGNATURES,
    Checkpoint,
    Note,
    NoteSignature,
    key_id,
    log_origin,
    merged,
    parse_note,
    sign_checkpoint,
)
from privacy.ledger.envelope import authenticated_bytes

SERVER, ALPHA, BETA = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))
ORIGIN = log_origin(bytes(16))
HEAD = Checkpoint(ORIGIN, 12, bytes(range(32)))
NOTE = Note(
    HEAD,
    (
        sign_checkpoint(HEAD, ORIGIN, SERVER),
        sign_checkpoint(HEAD, "alpha", ALPHA),
    ),
)
BYTES = NOTE.to_bytes()


def test_key_id_and_signature_are_those_of_the_reference_implementation():
    """The note of golang.org/x/mod/sumdb/note's own tests."""
    verifier = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    name, identity, encoded = verifier.split("+", 2)
    kind, raw = base64.b64decode(encoded)[:1], base64.b64decode(encoded)[1:]
    key = VerifyKey(raw)
    assert kind == b"\x01"
    assert key_id(name, key).hex() == identity
    text = (
        b"If you think cryptography is the answer to your problem,\n"
        b"then you don't know what your problem is.\n"
    )
    line = (
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdng"
        "otpRZb6KE6RyyBwJnAM="
    )
    signature = base64.b64decode(line)
    assert signature[:4].hex() == identity
    key.verify_raw(signature[4:], text)


def test_a_note_is_these_bytes():
    root = base64.b64encode(bytes(range(32))).decode()
    raw = key_id("alpha", ALPHA.verify_key) + ALPHA.sign_raw(HEAD.text())
    text = f"{ORIGIN}\n12\n{root}\n"
    assert HEAD.text() == text.encode()
    lines = BYTES.decode().split("\n")
    assert BYTES.decode().startswith(text + "\n\u2014 " + ORIGIN + " ")
    assert lines[5] == f"\u2014 alpha {base64.b64encode(raw).decode()}"
    assert BYTES.endswith(b"\n")
    assert len(lines) == 7


def test_a_note_reads_back_and_names_who_signed():
    note = parse_note(BYTES)
    assert note == NOTE
    assert note.to_bytes() == BYTES
    assert note.require(ORIGIN, SERVER.verify_key) == SERVER.sign_raw(HEAD.text())
    assert note.signature_of("alpha", ALPHA.verify_key)
    # The name of one key with another key is nobody's signature.
    assert note.signature_of("alpha", BETA.verify_key) is None
    assert note.signature_of("beta", ALPHA.verify_key) is None
    with pytest.raises(BadSignatureError):
        note.require("beta", BETA.verify_key)


def test_the_origin_names_a_run_without_its_handle():
    runs = [bytes(16), bytes(15) + b"\1"]
    origins = {log_origin(run) for run in runs}
    assert len(origins) == 2
    assert not any(run.hex() in origin for run in runs for origin in origins)


def test_a_signature_under_another_text_does_not_verify():
    for other in (
        Checkpoint(log_origin(b"\1" * 16), 12, HEAD.root),
        Checkpoint(ORIGIN, 13, HEAD.root),
        Checkpoint(ORIGIN, 12, bytes(32)),
    ):
        moved = Note(other, NOTE.signatures)
        for name, key in ((ORIGIN, SERVER), ("alpha", ALPHA)):
            with pytest.raises(BadSignatureError):
                moved.require(name, key.verify_key)


def test_no_text_of_a_note_is_anything_else_that_the_keys_sign():
    """The first bytes tell a note, a ledger's line and a message apart."""
    assert HEAD.text().startswith(b"fgrpo-secure/")
    assert authenticated_bytes(b"fgrpo-secure/").startswith(b"DSSEv1 ")
    for label in Label:
        assert framed(label, b"").startswith(bytes(7))


def test_cosignatures_are_added_behind_the_servers_in_order():
    more = {
        "beta": sign_checkpoint(HEAD, "beta", BETA),
        "alpha": sign_checkpoint(HEAD, "alpha", ALPHA),
    }
    note = merged(merged(NOTE, more), more)
    assert [one.name for one in note.signatures] == [ORIGIN, "alpha", "beta"]
    assert parse_note(note.to_bytes()) == note


def test_signatures_of_strangers_are_carried_and_mean_nothing():
    stranger = NoteSignature("witness.example/w1", b"abcd", bytes(100))
    note = Note(HEAD, (*NOTE.signatures, stranger))
    assert parse_note(note.to_bytes()) == note
    assert note.require("alpha", ALPHA.verify_key)


def changed(old, new, count=1):
    assert old in BYTES
    return BYTES.replace(old, new, count)


def line_of(raw, name="alpha"):
    return f"\u2014 {name} {base64.b64encode(raw).decode()}\n".encode()


BAD = {
    "nothing": b"",
    "no signature": HEAD.text() + b"\n",
    "no blank line": changed(b"\n\n", b"\n"),
    "no last newline": BYTES[:-1],
    "more newlines": BYTES + b"\n",
    "carriage returns": BYTES.replace(b"\n", b"\r\n"),
    "a hyphen": changed("\u2014 alpha".encode(), b"- alpha"),
    "two spaces": changed(b" alpha ", b"  alpha "),
    "a tab": changed(b" alpha ", b"\talpha "),
    "no name": changed(b" alpha ", b" "),
    "a plus": changed(b" alpha ", b" al+pha "),
    "a name that is not ASCII": changed(b" alpha ", " \u00e4lpha ".encode()),
    "a name that is too long": changed(b" alpha ", b" " + b"a" * 256 + b" "),
    "not UTF-8": changed(b" alpha ", b" al\xffpha "),
    "a size with a zero in front": changed(b"\n12\n", b"\n012\n"),
    "a size of zero": changed(b"\n12\n", b"\n0\n"),
    "a negative size": changed(b"\n12\n", b"\n-1\n"),
    "a size with a sign": changed(b"\n12\n", b"\n+12\n"),
    "a size in other digits": changed(b"\n12\n", "\n\u0661\u0662\n".encode()),
    "a huge size": changed(b"\n12\n", b"\n" + b"9" * 16 + b"\n"),
    "a size beyond all integers": changed(b"\n12\n", b"\n" + b"9" * 5000 + b"\n"),
    "an extension line": changed(b"\n\n", b"\nextension\n\n"),
    "an empty line in the text": changed(b"\n12\n", b"\n\n12\n"),
    "another origin": changed(ORIGIN.encode() + b"\n", b"example.com/log\n"),
    "an origin in capitals": changed(ORIGIN.encode(), ORIGIN.upper().encode()),
    "a root of 31 bytes": changed(
        base64.b64encode(HEAD.root), base64.b64encode(HEAD.root[:31])
    ),
    "a root of 33 bytes": changed(
        base64.b64encode(HEAD.root), base64.b64encode(HEAD.root + b"!")
    ),
    "a root without padding": changed(b"=\n\n", b"\n\n"),
    "unused bits": changed(b"8=\n\n", b"9=\n\n"),
    "base64 for addresses": changed(
        base64.b64encode(HEAD.root), base64.urlsafe_b64encode(b"\xfb" * 32)
    ),
    "a key id alone": HEAD.text() + b"\n" + line_of(b"abcd"),
    "a signature of 10 kB": HEAD.text() + b"\n" + line_of(bytes(10_000)),
    "one key twice": BYTES + BYTES[BYTES.index("\u2014 alpha".encode()) :],
    "one key twice with two signatures": BYTES
    + line_of(key_id("alpha", ALPHA.verify_key) + bytes(64)),
    "too many signatures": BYTES
    + b"".join(line_of(bytes(5), f"w{n}") for n in range(MAX_SIGNATURES)),
    "a megabyte": BYTES + b"".join(line_of(bytes(8000), f"w{n}") for n in range(120)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_note_in_another_form_is_refused(name):
    assert BAD[name] != BYTES
    with pytest.raises(MalformedMessageError):
        parse_note(BAD[name])


def test_a_note_has_2048_signatures_and_a_mebibyte_at_most():
    """As the page says; 2 of the signatures are the server's and alpha's."""
    assert (MAX_SIGNATURES, MAX_NOTE_BYTES) == (2048, 2**20)
    lines = [line_of(bytes(5), f"w{n}") for n in range(2047)]
    assert len(parse_note(BYTES + b"".join(lines[:2046])).signatures) == 2048
    with pytest.raises(MalformedMessageError):
        parse_note(BYTES + b"".join(lines))
    large = BYTES
    while 2**20 - len(large) > 8192:
        large += line_of(bytes(5000), f"w{len(large)}")
    name = f"w{len(large)}"
    for size in range(5, 8192):
        whole = large + line_of(bytes(size), name)
        if len(whole) > 2**20:
            break
        largest = whole
    assert parse_note(largest).to_bytes() == largest
    with pytest.raises(MalformedMessageError):
        parse_note(whole)


def test_two_keys_of_one_name_may_both_sign():
    """Where a key is replaced, both sign for a while; each has an id of its own."""
    again = sign_checkpoint(HEAD, "alpha", BETA)
    note = parse_note(Note(HEAD, (*NOTE.signatures, again)).to_bytes())
    assert note.require("alpha", ALPHA.verify_key)
    assert note.require("alpha", BETA.verify_key)


def test_as_many_signatures_as_a_cohort_can_have_are_read():
    many = [line_of(bytes(68), f"client-{n:04}") for n in range(1000)]
    assert len(parse_note(BYTES + b"".join(many)).signatures) == 1002


@given(st.data())
def test_a_note_with_a_byte_changed_is_refused_or_another_note(data):
    spoilt = bytearray(BYTES)
    place = data.draw(st.integers(0, len(BYTES) - 1))
    spoilt[place] ^= data.draw(st.integers(1, 255))
    try:
        note = parse_note(bytes(spoilt))
    except MalformedMessageError:
        return
    assert note.to_bytes() == bytes(spoilt)
    signed = []
    for name, key in ((ORIGIN, SERVER), ("alpha", ALPHA)):
        try:
            signed.append(note.signature_of(name, key.verify_key))
        except BadSignatureError:
            signed.append(None)
    # Whatever was changed, somebody's signature is gone with it.
    assert None in signed
