import hashlib
import hmac

import pytest

from privacy import crypto
from privacy.crypto import (
    AgreementKey,
    Keystream,
    Label,
    SigningKey,
    VerifyKey,
    check_agreement_public,
    equal,
    framed,
    hkdf_sha256,
    hmac_sha256,
    seal,
    sha256,
    unseal,
)
from privacy.errors import BadSignatureError, MalformedMessageError

P = 2**255 - 19

# Points of order 1, 2, 4 and 8 on the curve and on its twist, RFC 7748 section 7.
LOW_ORDER = (
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
)


def encoded(u):
    return u.to_bytes(32, "little")


def test_no_two_uses_share_a_label():
    values = [label.value for label in Label]
    assert len(values) == len(set(values))
    assert all(value.startswith("fgrpo-secure/1/") for value in values)


def test_framing_keeps_parts_apart():
    assert framed(Label.OFFER, b"ab", b"c") != framed(Label.OFFER, b"a", b"bc")
    assert framed(Label.OFFER, b"") != framed(Label.OFFER)
    assert framed(Label.OFFER, b"a") != framed(Label.ADVERT, b"a")


def test_the_labelled_hash_is_sha256_of_the_framed_input():
    expected = hashlib.sha256(framed(Label.PLAN, b"x", b"y")).digest()
    assert sha256(Label.PLAN, b"x", b"y") == expected


def test_the_labelled_hmac_is_hmac_sha256_of_the_framed_input():
    expected = hmac.new(b"k" * 32, framed(Label.UNIT_STREAM, b"x"), "sha256").digest()
    assert hmac_sha256(b"k" * 32, Label.UNIT_STREAM, b"x") == expected


def test_equal_compares_whole_values():
    assert equal(b"abc", b"abc")
    assert not equal(b"abc", b"abd")
    assert not equal(b"abc", b"abcd")


def rfc5869(secret, salt, info, length):
    key = hmac.new(salt, secret, "sha256").digest()
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.new(key, block + info + bytes([counter]), "sha256").digest()
        output, counter = output + block, counter + 1
    return output[:length]


def test_the_oracle_for_key_derivation_meets_rfc_5869():
    info = bytes(range(0xF0, 0xFA))
    assert rfc5869(b"\x0b" * 22, bytes(range(13)), info, 42) == bytes.fromhex(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        "34007208d5b887185865"
    )


def test_key_derivation_is_rfc_5869_over_label_and_info():
    key = hkdf_sha256(b"s" * 32, salt=b"t" * 32, label=Label.SELF_MASK, info=b"i")
    assert key == rfc5869(b"s" * 32, b"t" * 32, framed(Label.SELF_MASK, b"i"), 32)


@pytest.mark.parametrize(
    ("seed", "peer", "secret"),
    [
        # RFC 7748 section 5.2, first vector, then section 6.1 from both sides.
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
            "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
        ),
        (
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
            "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
        ),
    ],
)
def test_key_agreement_meets_rfc_7748(seed, peer, secret):
    key = AgreementKey(bytes.fromhex(seed))
    assert key.agree(bytes.fromhex(peer)) == bytes.fromhex(secret)


def test_public_agreement_keys_meet_rfc_7748():
    seed = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
    public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert AgreementKey(bytes.fromhex(seed)).public == bytes.fromhex(public)


@pytest.mark.parametrize("u", LOW_ORDER)
def test_low_order_agreement_keys_are_refused(u):
    with pytest.raises(MalformedMessageError, match="low order"):
        check_agreement_public(encoded(u))
    with pytest.raises(MalformedMessageError, match="low order"):
        AgreementKey(b"\x11" * 32).agree(encoded(u))


@pytest.mark.parametrize("u", [P, P + 1, P + 9, 2**255 - 1, 2**255 + 9, 2**256 - 1])
def test_agreement_keys_that_are_not_canonical_are_refused(u):
    with pytest.raises(MalformedMessageError, match="canonical"):
        check_agreement_public(encoded(u))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_agreement_keys_of_another_length_are_refused(length):
    with pytest.raises(MalformedMessageError, match="32 bytes"):
        check_agreement_public(bytes(length))


def test_the_base_point_and_the_largest_canonical_key_are_accepted():
    check_agreement_public(encoded(9))
    check_agreement_public(encoded(P - 2))


@pytest.mark.parametrize(
    ("seed", "public", "message", "signature"),
    [
        # RFC 8032 section 7.1, tests 1 and 2.
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
            "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da0"
            "85ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ],
)
def test_signatures_meet_rfc_8032(seed, public, message, signature):
    key = SigningKey(bytes.fromhex(seed))
    assert key.verify_key.raw == bytes.fromhex(public)
    assert key.sign_raw(bytes.fromhex(message)) == bytes.fromhex(signature)
    key.verify_key.verify_raw(bytes.fromhex(signature), bytes.fromhex(message))


def test_a_signature_holds_for_its_label_and_message_alone():
    key = SigningKey(b"\x07" * 32)
    signature = key.sign(Label.ADVERT, b"x")
    key.verify_key.verify(signature, Label.ADVERT, b"x")
    other = SigningKey(b"\x08" * 32).verify_key
    for verify_key, given, label, part in (
        (key.verify_key, signature, Label.REVEAL, b"x"),
        (key.verify_key, signature, Label.ADVERT, b"y"),
        (key.verify_key, signature[:-1], Label.ADVERT, b"x"),
        (key.verify_key, bytes(64), Label.ADVERT, b"x"),
        (other, signature, Label.ADVERT, b"x"),
    ):
        with pytest.raises(BadSignatureError):
            verify_key.verify(given, label, part)


def test_an_identity_has_32_bytes():
    with pytest.raises(MalformedMessageError):
        VerifyKey(bytes(31))


IDENTITY_OF_ORDER_EIGHT = (
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"
)


@pytest.mark.parametrize("sign", [0, 2**255])
@pytest.mark.parametrize(
    "y",
    [0, 1, P - 1, "eight", "minus eight"],
)
def test_an_identity_under_which_anybody_signs_is_refused(y, sign):
    eight = int.from_bytes(bytes.fromhex(IDENTITY_OF_ORDER_EIGHT), "little")
    value = {"eight": eight, "minus eight": P - eight}.get(y, y)
    with pytest.raises(MalformedMessageError, match="low order"):
        VerifyKey(encoded(value + sign))


@pytest.mark.parametrize("y", [P, P + 1, P + 18])
@pytest.mark.parametrize("sign", [0, 2**255])
def test_an_identity_has_one_encoding(y, sign):
    with pytest.raises(MalformedMessageError, match="canonical"):
        VerifyKey(encoded(y + sign))


def test_no_private_key_shows_in_a_repr():
    assert "7777" not in repr(SigningKey(b"\x77" * 32))
    assert "www" not in repr(SigningKey(b"w" * 32))
    assert "www" not in repr(AgreementKey(b"w" * 32))


def test_sealing_meets_the_gcm_specification():
    # McGrew and Viega, "The Galois/Counter Mode of Operation", test cases 13 and 14.
    key, nonce = bytes(32), bytes(12)
    empty = seal(key, nonce, b"", b"")
    assert empty == bytes.fromhex("530f8afbc74536b9a963b4f1c4cb738b")
    block = seal(key, nonce, bytes(16), b"")
    assert block == bytes.fromhex(
        "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
    )


def test_what_was_sealed_opens_only_unaltered():
    key, nonce = b"k" * 32, b"n" * 12
    ciphertext = seal(key, nonce, b"plain", b"bound")
    assert unseal(key, nonce, ciphertext, b"bound") == b"plain"
    flipped = bytes([ciphertext[0] ^ 1]) + ciphertext[1:]
    for parts in (
        (key, nonce, flipped, b"bound"),
        (key, nonce, ciphertext[:-1], b"bound"),
        (key, nonce, ciphertext[:3], b"bound"),
        (key, nonce, b"", b"bound"),
        (key, nonce, ciphertext, b"other"),
        (b"K" * 32, nonce, ciphertext, b"bound"),
        (key, b"N" * 12, ciphertext, b"bound"),
    ):
        with pytest.raises(MalformedMessageError):
            unseal(*parts)


def test_a_nonce_of_another_length_is_a_bug():
    with pytest.raises(ValueError, match="12 bytes"):
        seal(bytes(32), bytes(16), b"", b"")


@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("00" * 32, "dc95c078a2408989ad48a21492842087"),
        # AESAVS, KeySbox for 256-bit keys, first vector: the block of zeros encrypted.
        (
            "c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558",
            "46f2fb342d6f0ab477476fc501242c5f",
        ),
    ],
)
def test_the_keystream_starts_with_the_encrypted_zero_counter(key, block):
    assert Keystream(bytes.fromhex(key)).read(16) == bytes.fromhex(block)


def test_the_keystream_does_not_depend_on_how_it_is_read():
    whole = Keystream(b"k" * 32).read(1000)
    stream = Keystream(b"k" * 32)
    assert b"".join(stream.read(n) for n in (1, 15, 16, 17, 951)) == whole
    stream, buffer = Keystream(b"k" * 32), bytearray(600 + Keystream.OVERHANG)
    assert stream.read_into(memoryview(bytes(600)), memoryview(buffer)) == 600
    assert buffer[:600] == whole[:600]
    assert stream.read(400) == whole[600:]


def test_a_keystream_is_entered_at_any_of_its_blocks():
    whole = Keystream(b"k" * 32).read(1000)
    for start in (0, 16, 32, 496):
        assert Keystream(b"k" * 32, start).read(1000 - start) == whole[start:]
    with pytest.raises(ValueError, match="not at byte 17"):
        Keystream(b"k" * 32, 17)


@pytest.mark.parametrize(
    "pieces", [(20_000, 16), (4096, 5000, 17), (4097, 1, 9000), (16, 5000), (1, 4096)]
)
def test_the_keystream_is_the_same_in_either_mode(monkeypatch, pieces):
    monkeypatch.setattr(crypto, "_LONG_READ_BYTES", 4096)
    stream, result = Keystream(b"k" * 32), b""
    for count in pieces:
        buffer = bytearray(count + Keystream.OVERHANG)
        assert stream.read_into(memoryview(bytes(count)), memoryview(buffer)) == count
        result += buffer[:count]
    # Reads of another kind stay in counter mode.
    assert result + stream.read(33) == Keystream(b"k" * 32).read(sum(pieces) + 33)


@pytest.mark.parametrize("start", [16, 0])
def test_a_keystream_that_was_entered_or_read_from_goes_on_there(monkeypatch, start):
    monkeypatch.setattr(crypto, "_LONG_READ_BYTES", 4096)
    whole = Keystream(b"k" * 32).read(9000)
    stream = Keystream(b"k" * 32, start)
    if not start:
        assert stream.read(16) == whole[:16]
    buffer = bytearray(8000 + Keystream.OVERHANG)
    stream.read_into(memoryview(bytes(8000)), memoryview(buffer))
    assert buffer[:8000] == whole[16:8016]


def test_an_agreement_that_is_asked_for_again_is_the_same():
    left, right = AgreementKey(b"l" * 32), AgreementKey(b"r" * 32)
    secret = left.agree(right.public)
    assert left.agree(right.public) == secret == right.agree(left.public)
    assert left == AgreementKey(b"l" * 32)
    assert secret.hex() not in repr(left)


def test_a_keystream_key_has_32_bytes():
    with pytest.raises(ValueError, match="32 bytes"):
        Keystream(bytes(16))
