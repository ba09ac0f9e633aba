import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import (
    BadSignatureError,
    FaultyServerError,
    MalformedMessageError,
    ReplayError,
)
from privacy.plan import SERVER
from privacy.secagg.envelope import (
    PROTOCOL_VERSION,
    Signed,
    load_state,
    read_client,
    read_server,
    sign,
    store_state,
)
from privacy.secagg.messages import Consistency, KeySharesHead, Survivors
from privacy.wire import decode, encode
from tests.privacy.secagg.harness import identity, make_terms

TERMS = make_terms(3)
OFFER = b"\x0f" * 32
BODY = KeySharesHead(b"\x01" * 32, b"\x02" * 32)
NAME = "client-001"
MESSAGE = sign(BODY, NAME, OFFER, identity(NAME))


def read(data, kind=KeySharesHead, name=NAME, offer=OFFER):
    return read_client(data, kind, name, TERMS, offer)


def test_a_signed_message_is_read_back():
    assert read(MESSAGE) == BODY


def test_a_message_of_another_attempt_is_a_replay():
    with pytest.raises(ReplayError):
        read(MESSAGE, offer=b"\x10" * 32)


def test_a_message_is_no_message_of_another_kind_or_sender():
    with pytest.raises(MalformedMessageError, match="kind"):
        read(MESSAGE, kind=Consistency)
    with pytest.raises(MalformedMessageError, match="sender"):
        read(MESSAGE, name="client-002")


def test_a_message_in_the_name_of_a_client_needs_its_signature():
    forged = sign(BODY, NAME, OFFER, identity("client-002"))
    with pytest.raises(BadSignatureError):
        read(forged)


def test_a_message_that_the_server_did_not_sign_blames_the_server():
    announced = Survivors({NAME: b"\x03" * 32})
    message = sign(announced, SERVER, OFFER, identity("server"))
    assert read_server(message, Survivors, TERMS, OFFER) == announced
    forged = sign(announced, SERVER, OFFER, identity(NAME))
    with pytest.raises(FaultyServerError):
        read_server(forged, Survivors, TERMS, OFFER)


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, 2**64 - 1])
def test_another_protocol_version_is_refused_before_anything_else(version):
    stale = version.to_bytes(8, "big") + b"in whatever format that had"
    with pytest.raises(MalformedMessageError, match=f"version {version}"):
        read(stale)


@pytest.mark.parametrize("field", ["sender", "offer_digest", "body", "label"])
def test_the_signature_covers_every_field(field):
    signed = decode(Signed, MESSAGE)
    values = {
        name: getattr(signed, name)
        for name in ("version", "label", "sender", "offer_digest", "body", "signature")
    }
    others = {
        "sender": "client-002",
        "offer_digest": b"\x10" * 32,
        "body": encode(KeySharesHead(b"\x01" * 32, b"\x03" * 32)),
        "label": Consistency.LABEL.value,
    }
    altered = Signed(**(values | {field: others[field]}))
    with pytest.raises(BadSignatureError):
        altered.verify(TERMS.cohort[NAME])


@settings(deadline=None)
@given(st.integers(0, 8 * len(MESSAGE) - 1))
def test_no_flipped_bit_passes(bit):
    data = bytearray(MESSAGE)
    data[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises((MalformedMessageError, ReplayError, BadSignatureError)):
        read(bytes(data))


@settings(deadline=None)
@given(st.integers(0, len(MESSAGE) - 1))
def test_no_truncated_message_passes(length):
    with pytest.raises(MalformedMessageError):
        read(MESSAGE[:length])


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=20))
def test_no_extended_message_passes(more):
    with pytest.raises(MalformedMessageError):
        read(MESSAGE + more)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_no_message(data):
    with pytest.raises(MalformedMessageError):
        read(data)


def test_a_stored_state_is_restored_as_what_it_was():
    data = store_state(BODY)
    assert load_state((Consistency, KeySharesHead), data, {}) == BODY
    with pytest.raises(MalformedMessageError, match="not a stored state"):
        load_state((Consistency,), data, {})
    with pytest.raises(MalformedMessageError):
        load_state((KeySharesHead,), data[:-1], {})
