"""The vectors of RFCs and NIST through `privacy.crypto`.

Source: RFC 3686, 4231, 5869, 7748, 8032 and the CAVP files of NIST, as the package
`cryptography-vectors` distributes them.
"""

from importlib import resources

import pytest

from privacy import crypto
from privacy.crypto import (
    AgreementKey,
    Keystream,
    Label,
    SigningKey,
    VerifyKey,
    hkdf_sha256,
    hmac_sha256,
    seal,
    unseal,
)
from privacy.errors import BadSignatureError, MalformedMessageError

VECTORS = pytest.importorskip(
    "cryptography_vectors",
    reason="cryptography-vectors is not installed: it is in the extra 'dev'",
)
BLOCK = 16


def lines_of(file):
    return resources.files(VECTORS).joinpath(file).read_text("utf-8").splitlines()


def cases(file, first):
    """The vectors of a text file, each from its field `first` to the next of that name.

    A line in brackets holds for all that follow; "FAIL" is a field without a value.
    """
    found, common = [], {}
    for line in lines_of(file):
        name, _, value = (part.strip() for part in line.partition("="))
        if not name or name.startswith("#"):
            continue
        if name.startswith("["):
            common[name[1:]] = value.rstrip("]")
        elif name.upper() == first:
            found.append(dict(common))
            found[-1][first] = value
        else:
            found[-1][name.upper()] = value
    return found


def raw(case, name):
    return bytes.fromhex(case[name])


@pytest.fixture
def unlabelled(monkeypatch):
    """Without the label that the product binds to every input."""
    monkeypatch.setattr(crypto, "framed", lambda label, *parts: b"".join(parts))


def test_key_agreement_meets_rfc_7748():
    found = cases("asymmetric/X25519/rfc7748.txt", "COUNT")
    assert len(found) == 3
    for case in found:
        key, point = AgreementKey(raw(case, "INPUT_SCALAR")), raw(case, "INPUT_U")
        # The RFC ignores the highest bit of a point; here it makes a second encoding.
        if point[-1] >= 128:
            with pytest.raises(MalformedMessageError, match="canonical"):
                key.agree(point)
        plain = point[:-1] + bytes([point[-1] % 128])
        assert key.agree(plain) == raw(case, "OUTPUT_U")


def test_a_thousand_agreements_in_a_row_meet_rfc_7748():
    scalar = point = (9).to_bytes(32, "little")
    for _ in range(1000):
        scalar, point = AgreementKey(scalar).agree(point), scalar
    assert scalar.hex() == (
        "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"
    )


def test_signatures_meet_every_vector():
    lines = lines_of("asymmetric/Ed25519/sign.input")
    assert len(lines) == 1024
    for line in lines:
        seed, public, message, signed = (bytes.fromhex(x) for x in line.split(":")[:4])
        key, signature = SigningKey(seed[:32]), signed[:64]
        assert key.verify_key == VerifyKey(public)
        assert key.sign_raw(message) == signature
        VerifyKey(public).verify_raw(signature, message)
        with pytest.raises(BadSignatureError):
            VerifyKey(public).verify_raw(signature, message + b"\0")


@pytest.mark.parametrize(
    ("file", "count"),
    [("KDF/rfc-5869-HKDF-SHA256.txt", 3), ("KDF/hkdf-generated.txt", 1)],
)
def test_key_derivation_meets_every_vector(unlabelled, file, count):
    found = cases(file, "COUNT")
    assert len(found) == count
    for case in found:
        assert case["HASH"] == "SHA-256"
        key = hkdf_sha256(
            raw(case, "IKM"),
            salt=raw(case, "SALT"),
            label=Label.PLAN,
            info=raw(case, "INFO"),
        )
        assert key == raw(case, "OKM")[:32]


def test_authentication_codes_meet_rfc_4231(unlabelled):
    found = cases("HMAC/rfc-4231-sha256.txt", "LEN")
    assert len(found) == 6
    for case in found:
        code = hmac_sha256(raw(case, "KEY"), Label.PLAN, raw(case, "MSG"))
        assert code == raw(case, "MD")


def keystream(key, counter, count):
    """The product's stream from a counter that need not be zero."""
    return Keystream(key, BLOCK * int.from_bytes(counter, "big")).read(count)


def test_the_keystream_meets_rfc_3686():
    found = cases("ciphers/AES/CTR/aes-256-ctr.txt", "COUNT")
    assert len(found) == 3
    for case in found:
        plain, sealed = raw(case, "PLAINTEXT"), raw(case, "CIPHERTEXT")
        stream = keystream(raw(case, "KEY"), raw(case, "IV"), len(plain))
        mixed = bytes(a ^ b for a, b in zip(plain, stream, strict=True))
        assert mixed == sealed


@pytest.mark.parametrize(
    ("file", "count"),
    [("KeySbox", 16), ("VarKey", 256), ("GFSbox", 5), ("VarTxt", 128)],
)
def test_the_keystream_is_the_block_cipher_of_its_counters(file, count):
    found = cases(f"ciphers/AES/ECB/ECB{file}256.rsp", "COUNT")
    assert len(found) == 2 * count
    for case in found:
        key, block = raw(case, "KEY"), raw(case, "CIPHERTEXT")
        assert keystream(key, raw(case, "PLAINTEXT"), BLOCK) == block
        if not any(raw(case, "PLAINTEXT")):
            assert Keystream(key).read(BLOCK) == block


def test_sealing_meets_every_vector_of_the_suite():
    count = 0
    for case in cases("ciphers/AES/GCM/gcmEncryptExtIV256.rsp", "COUNT"):
        if (case["IVlen"], case["Taglen"]) == ("96", "128"):
            parts = (raw(case, name) for name in ("KEY", "IV", "PT", "AAD"))
            assert seal(*parts) == raw(case, "CT") + raw(case, "TAG")
            count += 1
    assert count == 375


def test_opening_meets_every_vector_and_refuses_short_tags():
    found = {"opened": 0, "altered": 0, "short tag": 0}
    for case in cases("ciphers/AES/GCM/gcmDecrypt256.rsp", "COUNT"):
        if case["IVlen"] != "96":
            continue
        parts = (raw(case, "KEY"), raw(case, "IV"), raw(case, "CT") + raw(case, "TAG"))
        if case["Taglen"] == "128" and "FAIL" not in case:
            assert unseal(*parts, raw(case, "AAD")) == raw(case, "PT")
            found["opened"] += 1
        else:
            with pytest.raises(MalformedMessageError):
                unseal(*parts, raw(case, "AAD"))
            found["altered" if case["Taglen"] == "128" else "short tag"] += 1
    assert found == {"opened": 184, "altered": 191, "short tag": 2250}
