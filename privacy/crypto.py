"""Every cryptographic primitive, and every domain-separation label, in one place.

The suite: SHA-256, HMAC-SHA-256, HKDF-SHA-256, X25519, Ed25519, AES-256-GCM (key
shares, sealed files) and AES-256-CTR (masks, noise). All of it is `cryptography`'s.
Nothing here draws randomness: private keys are made from 32 bytes that the caller
drew with `privacy.randomness`.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers import (
    Cipher,
    CipherContext,
    algorithms,
    modes,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.errors import BadSignatureError, MalformedMessageError
from privacy.vectors import View

KEY_BYTES = 32
DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
_CURVE25519_PRIME = 2**255 - 19
# Points of order 1, 4 (both), 2 and 8 (all four), by their y; the sign is another bit.
_ORDER_EIGHT = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_LOW_ORDER_IDENTITIES = frozenset(
    (
        0,
        1,
        _CURVE25519_PRIME - 1,
        _ORDER_EIGHT,
        _CURVE25519_PRIME - _ORDER_EIGHT,
    )
)
_GCM_NONCE_BYTES = 12
_AES_BLOCK_BYTES = 16
# A first read of so many bytes is worth the making of another mode.
_LONG_READ_BYTES = 2**16
# The block of a keystream that GCM begins with.
_GALOIS_START = 2
# Marks a field that is no part of a stored key, as `privacy.wire.ATTACHED` does.
_NOT_STORED = {"attached": True}


class Label(StrEnum):
    """What a digest, a derived key or a signature is for. No two uses share one."""

    PLAN = "fgrpo-secure/1/plan"
    ADAPTER = "fgrpo-secure/1/adapter"
    IDENTITY = "fgrpo-secure/1/identity-fingerprint"
    LEDGER_RECORD = "fgrpo-secure/1/ledger-record"
    LEDGER_COMMIT = "fgrpo-secure/1/ledger-commit"
    LOG_ORIGIN = "fgrpo-secure/1/log-origin"
    LOG_UPDATE = "fgrpo-secure/1/log-update"
    UNIT_STREAM = "fgrpo-secure/1/unit-stream"
    ROTATION = "fgrpo-secure/1/rotation"
    DATA_SET_UNIT = "fgrpo-secure/1/data-set-unit"
    OFFER = "fgrpo-secure/1/offer"
    OFFER_DIGEST = "fgrpo-secure/1/offer-digest"
    ADVERT = "fgrpo-secure/1/advert"
    ROSTER = "fgrpo-secure/1/roster"
    ROSTER_HASH = "fgrpo-secure/1/roster-hash"
    SELF_MASK_COMMITMENT = "fgrpo-secure/1/self-mask-commitment"
    KEY_SHARES = "fgrpo-secure/1/key-shares"
    KEY_SHARE_COMMITMENT = "fgrpo-secure/1/key-share-commitment"
    KEY_SHARE_LEAF = "fgrpo-secure/1/key-share-leaf"
    KEY_SHARE_NODE = "fgrpo-secure/1/key-share-node"
    KEY_SHARE_ENCRYPTION = "fgrpo-secure/1/key-share-encryption"
    KEY_SHARE_INBOX = "fgrpo-secure/1/key-share-inbox"
    SHARERS_HASH = "fgrpo-secure/1/sharers-hash"
    PAIRWISE_MASK = "fgrpo-secure/1/pairwise-mask"
    SELF_MASK = "fgrpo-secure/1/self-mask"
    MASKED_INPUT = "fgrpo-secure/1/masked-input"
    MASKED_VECTOR = "fgrpo-secure/1/masked-vector"
    MASKED_HEADER = "fgrpo-secure/1/masked-header"
    SURVIVORS = "fgrpo-secure/1/survivors"
    SURVIVORS_HASH = "fgrpo-secure/1/survivors-hash"
    CONSISTENCY = "fgrpo-secure/1/consistency"
    QUORUM = "fgrpo-secure/1/quorum"
    REVEAL = "fgrpo-secure/1/reveal"
    SUM = "fgrpo-secure/1/sum"
    PUBLISHED = "fgrpo-secure/1/published"
    ABORTED = "fgrpo-secure/1/aborted"
    TRANSCRIPT = "fgrpo-secure/1/transcript"
    ENGINE_HELLO = "fgrpo-secure/1/engine-hello"
    ENGINE_REQUEST = "fgrpo-secure/1/engine-request"
    ENGINE_REQUEST_DIGEST = "fgrpo-secure/1/engine-request-digest"
    ENGINE_ANSWER = "fgrpo-secure/1/engine-answer"
    ENGINE_PAYLOAD = "fgrpo-secure/1/engine-payload"


def sha256(label: Label, *parts: View) -> bytes:
    """SHA-256 of a label and length-prefixed parts, so that no two inputs collide.

    Returns:
        32 bytes.
    """
    state = _labelled(label).copy()
    # Piece by piece: a vector among the parts is not copied for its hash.
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


@cache
def _labelled(label: Label) -> hashlib._Hash:
    """SHA-256 after the label, which goes before the parts."""
    return hashlib.sha256(framed(label))


def bare_sha256(data: bytes) -> bytes:
    """SHA-256 without a label: for formats of others that separate their own uses.

    Source: RFC 6962 section 2.1 and c2sp.org/signed-note, which need it so.
    """
    return hashlib.sha256(data).digest()


def framed(label: Label, *parts: bytes) -> bytes:
    """The injective encoding of a label and parts that is hashed, keyed or signed."""
    encoded = label.value.encode()
    pieces = [len(encoded).to_bytes(8, "big"), encoded]
    for part in parts:
        pieces += (len(part).to_bytes(8, "big"), part)
    return b"".join(pieces)


def hmac_sha256(key: bytes, label: Label, *parts: bytes) -> bytes:
    """HMAC-SHA-256 of a label and length-prefixed parts, 32 bytes."""
    return hmac.digest(key, framed(label, *parts), "sha256")


def equal(left: bytes, right: bytes) -> bool:
    """Compare in time that depends on the lengths alone."""
    return hmac.compare_digest(left, right)


def hkdf_sha256(secret: bytes, *, salt: bytes, label: Label, info: bytes) -> bytes:
    """Derive a 32-byte key (RFC 5869); `info` is bound together with the label."""
    kdf = HKDF(hashes.SHA256(), KEY_BYTES, salt=salt, info=framed(label, info))
    return kdf.derive(secret)


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """An Ed25519 public key: a party's pinned identity.

    Attributes:
        raw: 32 bytes, RFC 8032.

    Raises:
        MalformedMessageError: another length, not canonical, or of low order.
    """

    raw: bytes

    def __post_init__(self) -> None:
        """Refuse another length, a second encoding of a key, and keys of low order.

        Under a key of low order one signature holds for many messages: its owner could
        disown whatever it signed.
        """
        if len(self.raw) != KEY_BYTES:
            msg = f"an Ed25519 public key has 32 bytes, got {len(self.raw)}"
            raise MalformedMessageError(msg)
        y = int.from_bytes(self.raw, "little") % 2**255
        if y >= _CURVE25519_PRIME:
            msg = "an Ed25519 public key that is not canonical"
            raise MalformedMessageError(msg)
        if y in _LOW_ORDER_IDENTITIES:
            msg = "an Ed25519 public key of low order"
            raise MalformedMessageError(msg)

    @property
    def fingerprint(self) -> str:
        """Hex digest by which people compare identities out of band."""
        return sha256(Label.IDENTITY, self.raw).hex()

    def verify_raw(self, signature: bytes, message: bytes) -> None:
        """Check a signature over exactly these bytes.

        Raises:
            BadSignatureError: the signature is not of this key over the message.
        """
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            msg = f"the signature is not of key {self.fingerprint[:16]}"
            raise BadSignatureError(msg) from None

    def verify(self, signature: bytes, label: Label, *parts: bytes) -> None:
        """Check a signature over a label and length-prefixed parts.

        Raises:
            BadSignatureError: as `verify_raw`.
        """
        self.verify_raw(signature, framed(label, *parts))


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 private key. Its bytes never show in a repr.

    Attributes:
        seed: the 32 secret bytes of RFC 8032.
    """

    seed: bytes = field(repr=False)
    # The library's form of it, which costs half as much to make as a signature.
    _private: Ed25519PrivateKey | None = field(
        default=None, init=False, repr=False, compare=False, metadata=_NOT_STORED
    )

    def _loaded(self) -> Ed25519PrivateKey:
        if self._private is None:
            loaded = Ed25519PrivateKey.from_private_bytes(self.seed)
            object.__setattr__(self, "_private", loaded)
            return loaded
        return self._private

    @property
    def verify_key(self) -> VerifyKey:
        """The public half."""
        return VerifyKey(self._loaded().public_key().public_bytes_raw())

    def sign_raw(self, message: bytes) -> bytes:
        """Sign exactly these bytes; 64 bytes."""
        return self._loaded().sign(message)

    def sign(self, label: Label, *parts: bytes) -> bytes:
        """Sign a label and length-prefixed parts; 64 bytes."""
        return self.sign_raw(framed(label, *parts))


@dataclass(frozen=True, slots=True)
class AgreementKey:
    """An X25519 private key, fresh for one round.

    Attributes:
        seed: 32 secret bytes.
    """

    seed: bytes = field(repr=False)
    # The library's form of it, which costs as much to make as an agreement.
    _private: X25519PrivateKey | None = field(
        default=None, init=False, repr=False, compare=False, metadata=_NOT_STORED
    )
    # By public key: two clients deal to each other under one secret.
    _agreed: dict[bytes, bytes] = field(
        default_factory=dict,
        init=False,
        repr=False,
        compare=False,
        metadata=_NOT_STORED,
    )

    def _loaded(self) -> X25519PrivateKey:
        if self._private is None:
            loaded = X25519PrivateKey.from_private_bytes(self.seed)
            object.__setattr__(self, "_private", loaded)
            return loaded
        return self._private

    @property
    def public(self) -> bytes:
        """The 32-byte public key of RFC 7748."""
        return self._loaded().public_key().public_bytes_raw()

    def agree(self, peer_public: bytes) -> bytes:
        """The 32-byte shared secret with a peer.

        Raises:
            MalformedMessageError: the peer's key is not canonical or of low order.
        """
        secret = self._agreed.get(peer_public)
        if secret is not None:
            return secret
        check_agreement_public(peer_public)
        private = self._loaded()
        try:
            secret = private.exchange(X25519PublicKey.from_public_bytes(peer_public))
        except ValueError:
            msg = "an X25519 public key of low order"
            raise MalformedMessageError(msg) from None
        self._agreed[peer_public] = secret
        return secret


# Public keys u of order dividing 8; RFC 7748 section 6.1 has the caller refuse them.
_LOW_ORDER_POINTS = frozenset(
    value.to_bytes(KEY_BYTES, "little")
    for value in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _CURVE25519_PRIME - 1,
    )
)


def check_agreement_public(public: bytes) -> None:
    """Accept only canonical X25519 public keys that are not of low order.

    RFC 7748 reduces a non-canonical u modulo p, which would let one point go under
    two encodings and so under two roster hashes.

    Raises:
        MalformedMessageError: wrong length, u >= p, or low order.
    """
    if len(public) != KEY_BYTES:
        msg = f"an X25519 public key has 32 bytes, got {len(public)}"
        raise MalformedMessageError(msg)
    if int.from_bytes(public, "little") >= _CURVE25519_PRIME:
        msg = "an X25519 public key that is not canonical"
        raise MalformedMessageError(msg)
    if public in _LOW_ORDER_POINTS:
        msg = "an X25519 public key of low order"
        raise MalformedMessageError(msg)


def seal(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """AES-256-GCM; returns ciphertext and tag.

    Args:
        key: 32 bytes.
        nonce: 12 bytes, never used twice under one key.
        plaintext: what to hide.
        associated: what to bind without hiding.
    """
    _check_nonce(nonce)
    return AESGCM(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, nonce: bytes, ciphertext: bytes, associated: bytes) -> bytes:
    """Open what `seal` made.

    Raises:
        MalformedMessageError: altered, or not made with this key and these bytes.
    """
    _check_nonce(nonce)
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, associated)
    except InvalidTag:
        msg = "a ciphertext that does not open"
        raise MalformedMessageError(msg) from None


def _check_nonce(nonce: bytes) -> None:
    if len(nonce) != _GCM_NONCE_BYTES:
        msg = f"an AES-GCM nonce has 12 bytes, got {len(nonce)}"
        raise ValueError(msg)


class Keystream:
    """The AES-256-CTR keystream of one key, from a zero counter.

    A key serves one stream and only one, which is what makes the zero counter safe.

    Args:
        key: 32 bytes.
        start: byte of the stream to begin at, a multiple of `BLOCK`.

    Guarantee:
        The bytes do not depend on how they are read.
    """

    BLOCK = _AES_BLOCK_BYTES

    # The library asks for one block more than it writes.
    OVERHANG = _AES_BLOCK_BYTES

    __slots__ = ("_encryptor", "_fresh_key")

    def __init__(self, key: bytes, start: int = 0) -> None:
        if len(key) != KEY_BYTES:
            msg = f"an AES-256 key has 32 bytes, got {len(key)}"
            raise ValueError(msg)
        block, within = divmod(start, _AES_BLOCK_BYTES)
        if within:
            msg = f"a keystream is entered at a block of 16 bytes, not at byte {start}"
            raise ValueError(msg)
        counter = modes.CTR(block.to_bytes(_AES_BLOCK_BYTES, "big"))
        self._encryptor: CipherContext
        self._encryptor = Cipher(algorithms.AES256(key), counter).encryptor()
        # Kept until the first read, which settles the mode.
        self._fresh_key = None if block else key

    def read(self, count: int) -> bytes:
        """The next `count` bytes."""
        self._fresh_key = None
        return self._encryptor.update(bytes(count))

    def read_into(self, zeros: memoryview, buffer: memoryview) -> int:
        """Write the next len(zeros) bytes to the start of `buffer`.

        Args:
            zeros: that many zero bytes.
            buffer: writable bytes, at least `OVERHANG` longer than `zeros`.

        Returns:
            How many bytes were written.
        """
        if self._fresh_key is not None:
            return self._begin(self._fresh_key, zeros, buffer)
        return self._encryptor.update_into(zeros, buffer)

    def _begin(self, key: bytes, zeros: memoryview, buffer: memoryview) -> int:
        """The first read: where it is a long one, all go on in GCM.

        GCM encrypts in counter mode and, under a nonce of 12 zero bytes, begins with
        block 2: from there on it is the same keystream, for 64 GiB. Its tag is never
        asked for. Libraries write their widest loops for it: with vector AES they take
        40% of the time of counter mode, and without not much more than all of it.

        Source: NIST SP 800-38D, sections 6.5 and 7.1.
        """
        self._fresh_key = None
        if len(zeros) < _LONG_READ_BYTES:
            return self._encryptor.update_into(zeros, buffer)
        skipped = _GALOIS_START * _AES_BLOCK_BYTES
        buffer[:skipped] = self._encryptor.update(bytes(skipped))
        galois = modes.GCM(bytes(_GCM_NONCE_BYTES))
        self._encryptor = Cipher(algorithms.AES256(key), galois).encryptor()
        return skipped + self._encryptor.update_into(zeros[skipped:], buffer[skipped:])
