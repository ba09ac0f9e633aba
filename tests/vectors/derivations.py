"""Vectors of every derivation: labels, hashes, keys, shares, masks, residues."""

from __future__ import annotations

import hashlib

import numpy as np

from privacy.crypto import (
    AgreementKey,
    Keystream,
    Label,
    SigningKey,
    framed,
    hkdf_sha256,
    hmac_sha256,
    seal,
    sha256,
)
from privacy.errors import (
    BadSignatureError,
    FaultyClientError,
    MalformedMessageError,
)
from privacy.ledger.envelope import line_hash, seal_line
from privacy.ledger.payload import commitment
from privacy.secagg.key_shares import (
    Direction,
    SealedShare,
    SharePair,
    deal,
    merkle_paths,
    share_commitments,
    share_leaf,
)
from privacy.secagg.masks import MaskContext, apply_masks
from privacy.secagg.messages import (
    header_digest,
    self_mask_commitment,
    sharers_hash_of,
    sum_digest,
    survivors_hash_of,
    vector_hash,
    words_to_bytes,
)
from privacy.secagg.shamir import PRIME, combine, split
from privacy.secagg.transcript import BLAMED, MISSING, SENT, Entry, transcript_hash
from privacy.vectors import from_residues, to_residues
from privacy.wire import encode
from tests.vectors.form import Case, File, bad, good

P = 2**255 - 19
# Two public keys of X25519 that must not be used.
LOW_ORDER = bytes(32)
NOT_CANONICAL = (P + 1).to_bytes(32, "little")


def fixed(name: str, size: int = 32) -> bytes:
    """Bytes that a name stands for; they only have to be the same every time."""
    return hashlib.shake_256(name.encode()).digest(size)


def element(name: str) -> bytes:
    """A number below the prime of the shares."""
    return (int.from_bytes(fixed(name), "big") % PRIME).to_bytes(32, "big")


class Recorder:
    """Entropy that is the same every time and remembers what it gave."""

    def __init__(self, name: str) -> None:
        self.name, self.given = name, []

    def __call__(self, count: int) -> bytes:
        """The next bytes."""
        self.given.append(fixed(f"{self.name} {len(self.given)}", count))
        return self.given[-1]


def little(value: int) -> bytes:
    """A public key of Curve25519 as RFC 7748 and RFC 8032 encode it."""
    return value.to_bytes(32, "little")


def labels() -> File:
    """Every label, and what is made with one."""
    parts = (b"first", b"", b"third part")
    key, salt, info = fixed("key"), fixed("salt"), b"info"
    valid = [good(label.name, label=label.value) for label in Label]
    for name, given in (("no part", ()), ("an empty part", (b"",)), ("parts", parts)):
        valid.append(
            good(
                name,
                label=Label.OFFER.value,
                parts=given,
                framed=framed(Label.OFFER, *given),
                sha256=sha256(Label.OFFER, *given),
                key=key,
                hmac_sha256=hmac_sha256(key, Label.OFFER, *given),
            )
        )
    derived = hkdf_sha256(key, salt=salt, label=Label.SELF_MASK, info=info)
    valid.append(
        good(
            "key derivation",
            label=Label.SELF_MASK.value,
            secret=key,
            salt=salt,
            info=info,
            hkdf_sha256=derived,
        )
    )
    about = (
        "Domain-separation labels; framed = length of the label (8 bytes, big-endian), "
        "label, and for each part its length and itself. sha256 and hmac_sha256 are of "
        "framed; hkdf_sha256 has framed(label, info) for its info."
    )
    return File(about, tuple(valid))


def keys() -> File:
    """Identities, signatures, agreement; and keys that must not be used."""
    signer = SigningKey(fixed("identity"))
    left, right = AgreementKey(fixed("left")), AgreementKey(fixed("right"))
    message = b"signed"
    signature = signer.sign(Label.ADVERT, message)
    signed = {
        "public": signer.verify_key.raw,
        "label": Label.ADVERT.value,
        "parts": [message],
        "signature": signature,
    }
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    order = int.from_bytes(signature[32:], "little") + 2**252
    order += 27742317777372353535851937790883648493
    eight = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
    identities = {
        "the point of order 1": little(1),
        "the point of order 2": little(P - 1),
        "a point of order 4": little(0),
        "the other point of order 4": little(2**255),
        "a point of order 8": little(eight),
        "another point of order 8": little(P - eight + 2**255),
        "y = p + 1": little(P + 1),
        "31 bytes": bytes(31),
    }
    agreement = {
        "u = 0": little(0),
        "u = 1": little(1),
        "u = p - 1": little(P - 1),
        "a point of order 8": bytes.fromhex(
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
        ),
        "another point of order 8": bytes.fromhex(
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"
        ),
        "u = p": little(P),
        "u = p + 9": little(P + 9),
        "the highest bit set": little(9 + 2**255),
        "33 bytes": bytes(33),
    }
    return File(
        "Ed25519 identities and X25519 agreement. A fingerprint is sha256 under the "
        "label IDENTITY.",
        (
            good("signature", **signed, seed=signer.seed),
            good(
                "fingerprint",
                public=signer.verify_key.raw,
                fingerprint=signer.verify_key.fingerprint,
            ),
            good(
                "agreement",
                seed=left.seed,
                public=left.public,
                peer_seed=right.seed,
                peer_public=right.public,
                secret=left.agree(right.public),
            ),
        ),
        (
            bad(
                "signature_altered",
                BadSignatureError,
                **signed | {"signature": flipped},
            ),
            bad(
                "signature_with_s_above_the_order",
                BadSignatureError,
                **signed | {"signature": signature[:32] + little(order)},
            ),
            bad(
                "signature_under_another_label",
                BadSignatureError,
                **signed | {"label": Label.REVEAL.value},
            ),
            *(
                bad(f"identity: {name}", MalformedMessageError, identity=raw)
                for name, raw in identities.items()
            ),
            *(
                bad(f"agreement: {name}", MalformedMessageError, peer_public=raw)
                for name, raw in agreement.items()
            ),
        ),
    )


def shamir() -> File:
    """Splitting and combining."""
    valid: list[Case] = []
    for threshold, count in ((1, 3), (2, 3), (3, 5), (7, 10)):
        secret, entropy = element(f"secret {threshold}"), Recorder(f"poly {threshold}")
        shares = split(secret, threshold, count, entropy)
        chosen = dict(list(enumerate(shares, start=1))[-threshold:])
        valid.append(
            good(
                f"{threshold} of {count}",
                secret=secret,
                threshold=threshold,
                drawn=entropy.given,
                shares=shares,
                combined_from=sorted(chosen),
                combined=combine(chosen),
            )
        )
    small = (PRIME - 1).to_bytes(32, "big")
    valid.append(
        good(
            "the largest secret",
            secret=small,
            threshold=1,
            drawn=[],
            shares=[small],
            combined_from=[1],
            combined=small,
        )
    )
    too_large = PRIME.to_bytes(32, "big")
    return File(
        "Shamir over p = 2^256 - 189. `drawn` are the coefficients, the highest power "
        "first; the share at place k (from 1) is the polynomial's value at x = k.",
        tuple(valid),
        (
            bad("share_of_the_prime", MalformedMessageError, share=too_large),
            bad("share_of_all_ones", MalformedMessageError, share=b"\xff" * 32),
            bad("share_of_31_bytes", MalformedMessageError, share=bytes(31)),
            bad("share_of_33_bytes", MalformedMessageError, share=bytes(33)),
        ),
    )


CONTEXT = MaskContext(*(fixed(f"context {k}") for k in range(4)))


def masks() -> File:
    """Mask keys, their words, and a vector under them."""
    left, right = AgreementKey(element("left")), AgreementKey(element("right"))
    ends = [("client-a", left.public), ("client-b", right.public)]
    pairwise = CONTEXT.pairwise_key(left, *ends)
    own = CONTEXT.self_key(element("b"), "client-a")
    valid = [
        good(
            "pairwise key",
            context=CONTEXT,
            lower=ends[0][0],
            lower_seed=left.seed,
            lower_public=left.public,
            higher=ends[1][0],
            higher_seed=right.seed,
            higher_public=right.public,
            key=pairwise,
        ),
        good(
            "self key",
            context=CONTEXT,
            client="client-a",
            b=element("b"),
            key=own,
        ),
        good("keystream", key=pairwise, stream=Keystream(pairwise).read(72)),
    ]
    for bits in (1, 20, 24, 32):
        words = np.arange(9, dtype=np.uint32) * np.uint32(0x1D3AA7F1)
        words &= np.uint32(2**bits - 1)
        masked = words.copy()
        apply_masks(masked, added=[own, pairwise], subtracted=[], modulus_bits=bits)
        lower = masked.tolist()
        masked = words.copy()
        apply_masks(masked, added=[own], subtracted=[pairwise], modulus_bits=bits)
        valid.append(
            good(
                f"residues of {bits} bits",
                modulus_bits=bits,
                words=words.tolist(),
                self_key=own,
                pairwise_key=pairwise,
                masked_by_the_lower=lower,
                masked_by_the_higher=masked.tolist(),
            )
        )
    for bits, levels in ((8, [-128, -1, 0, 127]), (32, [-(2**31), -7, 2**31 - 1])):
        residues = to_residues(np.array(levels), bits)
        valid.append(
            good(
                f"levels of {bits} bits",
                modulus_bits=bits,
                levels=from_residues(residues, bits).tolist(),
                residues=residues.tolist(),
                bytes=words_to_bytes(residues),
            )
        )
    return File(
        "Mask keys by HKDF, mask words by AES-256-CTR from a zero counter as "
        "little-endian 32-bit words, added or subtracted modulo 2^modulus_bits.",
        tuple(valid),
        (
            bad(
                "peer_of_low_order",
                MalformedMessageError,
                own_seed=left.seed,
                peer_public=bytes(32),
            ),
        ),
    )


def key_shares() -> File:
    """Dealing to three holders: commitments, ciphertexts, hash tree."""
    holders = ("client-a", "client-b", "client-c")
    own = {name: AgreementKey(element(f"encryption {name}")) for name in holders}
    roster_hash, dealer = fixed("roster"), holders[0]
    secrets = SharePair(element("b"), element("mask key"))
    entropy = Recorder("polynomials")
    sealed = deal(
        secrets,
        threshold=2,
        roster_hash=roster_hash,
        dealer=dealer,
        own=own[dealer],
        publics={name: key.public for name, key in own.items()},
        entropy=entropy,
    )
    directions = [Direction(roster_hash, dealer, holder) for holder in holders]
    leaves = [share_leaf(*pair) for pair in zip(directions, sealed, strict=True)]
    root, paths = merkle_paths(leaves)
    valid = [
        good(
            f"dealt to {direction.holder}",
            direction=direction,
            associated_data=encode(direction),
            holder_seed=own[direction.holder].seed,
            dealer_public=own[dealer].public,
            sealed=package,
            bytes=encode(package),
            leaf=leaf,
            place=place,
            path=path,
            root=root,
        )
        for place, (direction, package, leaf, path) in enumerate(
            zip(directions, sealed, leaves, paths, strict=True)
        )
    ]
    valid.insert(
        0,
        good(
            "dealing",
            dealer_seed=own[dealer].seed,
            secrets=secrets,
            threshold=2,
            drawn=entropy.given,
        ),
    )
    for count in (1, 2, 3, 5, 8):
        row = [fixed(f"leaf {k}") for k in range(count)]
        top, ways = merkle_paths(row)
        valid.append(good(f"tree of {count}", leaves=row, root=top, paths=ways))
    base = {
        "direction": directions[1],
        "holder_seed": own["client-b"].seed,
        "dealer_public": own[dealer].public,
    }
    return File(
        "Key shares. The key is hkdf_sha256(X25519, salt = roster hash, label "
        "KEY_SHARE_ENCRYPTION, info = direction); AES-256-GCM under a zero nonce with "
        "the direction as associated data. A tree moves an odd node up as it is.",
        tuple(valid),
        (
            *_bad_shares(base, sealed[1], own, directions),
            bad(
                "path_too_short",
                MalformedMessageError,
                leaf=leaves[1],
                place=1,
                count=3,
                path=paths[1][:-1],
            ),
            bad(
                "path_too_long",
                MalformedMessageError,
                leaf=leaves[1],
                place=1,
                count=3,
                path=[*paths[1], bytes(32)],
            ),
        ),
    )


def _bad_shares(
    base: Case,
    honest: SealedShare,
    own: dict[str, AgreementKey],
    directions: list[Direction],
) -> tuple[Case, ...]:
    """What a dealer can sign and its holder must refuse, naming the dealer."""
    direction, cipher = directions[1], honest.ciphertext
    key = hkdf_sha256(
        own["client-a"].agree(own["client-b"].public),
        salt=direction.roster_hash,
        label=Label.KEY_SHARE_ENCRYPTION,
        info=encode(direction),
    )

    def resealed(content: bytes, over: Direction = direction) -> SealedShare:
        pair = SharePair(content[:32].ljust(32, b"\0"), content[32:64].ljust(32, b"\0"))
        return SealedShare(
            *share_commitments(direction, pair),
            seal(key, bytes(12), content, encode(over)),
        )

    whole, large = element("left") + element("right"), PRIME.to_bytes(32, "big")
    lies = {
        "altered": (cipher[:-1] + bytes([cipher[-1] ^ 1]), "ciphertext"),
        "cut": (cipher[:-1], "ciphertext"),
        "empty": (b"", "ciphertext"),
    }
    cases = [
        bad(
            f"ciphertext_{name}",
            FaultyClientError,
            **base,
            sealed=SealedShare(*honest.commitments, altered),
        )
        for name, (altered, _) in lies.items()
    ]
    others = {
        "bound_to_another_holder": resealed(whole, directions[2]),
        "with_one_share_only": resealed(whole[:32]),
        "with_a_byte_too_many": resealed(whole + b"\0"),
        "with_the_prime_for_b": resealed(large + whole[32:]),
        "with_the_prime_for_the_mask_key": resealed(whole[:32] + large),
        "with_commitments_swapped": SealedShare(
            honest.mask_key_commitment, honest.self_mask_commitment, cipher
        ),
        "with_another_commitment": SealedShare(
            bytes(32), honest.mask_key_commitment, cipher
        ),
    }
    cases += [
        bad(f"share_{name}", FaultyClientError, **base, sealed=sealed)
        for name, sealed in others.items()
    ]
    return tuple(cases)


def hashes() -> File:
    """The hashes that bind the sets of a round."""
    base, names = fixed("base"), ("client-a", "client-b", "client-c")
    sets = {name: fixed(f"of {name}") for name in names}
    entries = (
        Entry(Label.OFFER, "server", SENT, b"offer"),
        Entry(Label.ADVERT, "client-a", MISSING, b""),
        Entry(
            Label.MASKED_INPUT, "client-b", BLAMED, b"sent a vector of another length"
        ),
    )
    valid = [
        good(
            "self-mask commitment",
            offer_digest=base,
            client="client-a",
            b=element("b"),
            hash=self_mask_commitment(base, "client-a", element("b")),
        ),
        good("sharers", base=base, of=sets, hash=sharers_hash_of(base, sets)),
        good("survivors", base=base, of=sets, hash=survivors_hash_of(base, sets)),
        good("nobody", base=base, of={}, hash=survivors_hash_of(base, {})),
        good("vector", words=fixed("words", 12), hash=vector_hash(fixed("words", 12))),
        good("header", header=b"header", hash=header_digest(b"header")),
        good("sum", words=fixed("words", 12), hash=sum_digest(fixed("words", 12))),
    ]
    for count in range(len(entries) + 1):
        part = entries[:count]
        valid.append(
            good(
                f"transcript of {count}",
                entries=part,
                bytes=[encode(entry) for entry in part],
                hash=transcript_hash(part),
            )
        )
    payload = b'{"kind":"example"}'
    signer = SigningKey(fixed("identity"))
    line = seal_line(payload, signer)
    valid += [
        good(
            "ledger line",
            seed=signer.seed,
            payload=payload.decode(),
            line=line.decode(),
            hash=line_hash(line),
        ),
        good(
            "ledger commitment",
            secret=fixed("secret"),
            vector=fixed("words", 12),
            hash=commitment(fixed("secret"), fixed("words", 12)),
        ),
    ]
    return File(
        "Hashes that bind what a round fixed, and the ledger line whose hash a client "
        "signs with its reveal. Offer digest and roster hash are in round.json.",
        tuple(valid),
    )


def files() -> dict[str, File]:
    """By file name, without its suffix."""
    return {
        "labels": labels(),
        "keys": keys(),
        "shamir": shamir(),
        "masks": masks(),
        "key_shares": key_shares(),
        "hashes": hashes(),
    }
