"""A second implementation of an honest round, written from docs/protocol.md.

It shares no code with `privacy`. It reads the secrets of a round from the vectors and
makes every message of every party, for a test to compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.privacy.secagg import oracle
from tests.privacy.secagg.oracle import prefixed, sha256

raw = bytes.fromhex


def label(name: str) -> str:
    return f"fgrpo-secure/1/{name}"


def integer(value: int) -> bytes:
    return value.to_bytes(8, "big")


def text(value: str) -> bytes:
    return prefixed(value.encode())


def listed(items: list[bytes]) -> bytes:
    return integer(len(items)) + b"".join(items)


def mapped(items: Mapping[str, bytes]) -> bytes:
    pairs = [text(name) + value for name, value in sorted(items.items())]
    return listed(pairs)


def hashed(name: str, *parts: bytes) -> bytes:
    return sha256(label(name), *parts)


def set_hash(name: str, base: tuple[bytes, ...], items: Mapping[str, bytes]) -> bytes:
    parts = [part for key in sorted(items) for part in (key.encode(), items[key])]
    return hashed(name, *base, *parts)


class Second:
    """All parties of the round that the vectors describe."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.terms = given["terms"]
        self.names = sorted(self.terms["cohort"])
        self.secrets = {
            name: given[f"secrets of {name}"] for name in (*self.names, "server")
        }
        self.survivors = given["sum"]["survivors"]
        self.last = given
        self.digest = b""
        self.chain = bytes(32)
        self.made: dict[str, bytes] = {}

    def signed(self, kind: str, sender: str, body: bytes) -> bytes:
        parts = (integer(1), sender.encode(), self.digest, body)
        key = Ed25519PrivateKey.from_private_bytes(
            raw(self.secrets[sender]["identity_seed"])
        )
        signature = key.sign(oracle.framed(label(kind), *parts))
        head = integer(1) + text(label(kind)) + text(sender) + self.digest
        return head + prefixed(body) + signature

    def note(self, phase: str, party: str, evidence: bytes, how: str = "sent") -> None:
        """One line of the transcript."""
        entry = text(label(phase)) + text(party) + text(how) + prefixed(evidence)
        self.chain = hashed("transcript", self.chain, entry)

    def play(self) -> dict[str, bytes]:
        self.offer()
        self.advertise()
        self.share_keys()
        self.mask()
        self.confirm()
        self.reveal()
        self.publish()
        return self.made

    def offer(self) -> None:
        terms = self.terms
        fingerprints = {
            name: text(hashed("identity-fingerprint", raw(key)).hex())
            for name, key in terms["cohort"].items()
        }
        numbers = ("min_survivors", "colluders", "modulus_bits", "vector_length")
        body = (
            text(terms["federation"])
            + integer(terms["round_number"])
            + integer(1)
            + raw(self.secrets["server"]["nonce"])
            + raw(terms["plan_digest"])
            + raw(terms["adapter_digest"])
            + mapped(fingerprints)
            + b"".join(integer(terms[name]) for name in numbers)
            + listed([integer(value) for value in terms["deadlines"]])
        )
        self.digest = hashed("offer-digest", body)
        message = self.signed("offer", "server", body)
        self.note("offer", "server", message)
        self.made["to answer with advert"] = message

    def advertise(self) -> None:
        self.seeds, self.publics, adverts = {}, {}, {}
        for name in self.names:
            encryption, mask, b = map(raw, self.secrets[name]["drawn_for_keys"])
            self.seeds[name] = encryption, mask, b
            self.publics[name] = [
                X25519PrivateKey.from_private_bytes(seed).public_key()
                for seed in (encryption, mask)
            ]
            commitment = hashed("self-mask-commitment", self.digest, name.encode(), b)
            keys = b"".join(key.public_bytes_raw() for key in self.publics[name])
            adverts[name] = self.signed("advert", name, keys + commitment)
            self.made[f"advert of {name}"] = adverts[name]
            self.note("advert", name, adverts[name])
        plan = raw(self.terms["plan_digest"])
        self.roster_hash = set_hash("roster-hash", (self.digest, plan), adverts)
        self.note("roster", "server", self.roster_hash)
        roster = mapped({name: prefixed(data) for name, data in adverts.items()})
        self.made["to answer with shares"] = self.signed("roster", "server", roster)

    def share_keys(self) -> None:
        heads, roots, packages, trees = {}, {}, {}, {}
        self.shares = {}
        for dealer in self.names:
            drawn = self.secrets[dealer]["drawn_for_shares"]
            half = len(drawn) // 2
            _, mask, b = self.seeds[dealer]
            packages[dealer], trees[dealer] = [], []
            for place, holder in enumerate(self.names, start=1):
                pair = (
                    oracle.share(b, drawn[:half], place),
                    oracle.share(mask, drawn[half:], place),
                )
                self.shares[dealer, holder] = pair
                package, leaf = self.sealed(dealer, holder, pair)
                packages[dealer].append(package)
                trees[dealer].append(leaf)
            roots[dealer] = oracle.tree(trees[dealer])
            body = self.roster_hash + roots[dealer]
            heads[dealer] = self.signed("key-shares", dealer, body)
            self.made[f"shares of {dealer}"] = prefixed(heads[dealer]) + listed(
                packages[dealer]
            )
            self.note("key-shares", dealer, heads[dealer])
        self.sharers_hash = set_hash("sharers-hash", (self.roster_hash,), roots)
        self.note("sharers-hash", "server", self.sharers_hash)
        for place, holder in enumerate(self.names):
            inbox = {
                dealer: prefixed(heads[dealer])
                + packages[dealer][place]
                + listed(oracle.path(trees[dealer], place))
                for dealer in self.names
            }
            self.made[f"to {holder}, to answer with masked"] = self.signed(
                "key-share-inbox", "server", mapped(inbox)
            )

    def sealed(
        self, dealer: str, holder: str, pair: tuple[bytes, bytes]
    ) -> tuple[bytes, bytes]:
        """What one client deals to another, and its leaf."""
        direction = self.roster_hash + text(dealer) + text(holder)
        commitments = b"".join(
            hashed("key-share-commitment", direction, secret.encode(), share)
            for secret, share in zip(("self-mask", "mask-key"), pair, strict=True)
        )
        own = X25519PrivateKey.from_private_bytes(self.seeds[dealer][0])
        secret = own.exchange(self.publics[holder][0])
        info = oracle.framed(label("key-share-encryption"), direction)
        key = oracle.hkdf(secret, self.roster_hash, info)
        ciphertext = AESGCM(key).encrypt(bytes(12), b"".join(pair), direction)
        package = commitments + prefixed(ciphertext)
        return package, hashed("key-share-leaf", direction, package)

    def mask(self) -> None:
        terms = self.terms
        context = (
            self.roster_hash,
            self.sharers_hash,
            raw(terms["adapter_digest"]),
            raw(terms["plan_digest"]),
        )
        headers = {}
        for name in self.names:
            words = self.masked(name, context)
            body = self.roster_hash + self.sharers_hash + context[2]
            body += hashed("masked-vector", words)
            header = self.signed("masked-input", name, body)
            if name in self.survivors:
                headers[name] = hashed("masked-header", header)
                self.made[f"masked of {name}"] = prefixed(header) + prefixed(words)
                self.note("masked-input", name, header)
            else:
                self.note("masked-input", name, b"", "missing")
        base = (self.sharers_hash,)
        self.survivors_hash = set_hash("survivors-hash", base, headers)
        self.note("survivors", "server", self.survivors_hash)
        self.made["to answer with consistency"] = self.signed(
            "survivors", "server", mapped(headers)
        )

    def masked(self, name: str, context: tuple[bytes, bytes, bytes, bytes]) -> bytes:
        _, mask, b = self.seeds[name]
        own = (name, self.publics[name][1].public_bytes_raw())
        total = list(self.secrets[name]["vector"])
        streams = [(1, oracle.self_key(b, name, context))]
        for peer in self.names:
            if peer != name:
                public: X25519PublicKey = self.publics[peer][1]
                end = (peer, public.public_bytes_raw())
                key = oracle.pairwise_key(mask, [own, end], end[1], context)
                streams.append((1 if name < peer else -1, key))
        for sign, key in streams:
            for place, word in enumerate(oracle.words(key, len(total))):
                total[place] += sign * word
        return oracle.packed(total, self.terms["modulus_bits"])

    def confirm(self) -> None:
        body = self.roster_hash + self.sharers_hash + self.survivors_hash
        given = {
            name: self.signed("consistency", name, body) for name in self.survivors
        }
        for name, message in given.items():
            self.made[f"consistency of {name}"] = message
            self.note("consistency", name, message)
        quorum = mapped({name: prefixed(data) for name, data in given.items()})
        self.made["to answer with reveal"] = self.signed("quorum", "server", quorum)

    def reveal(self) -> None:
        for name in self.survivors:
            shares = [
                self.shares[dealer, name][0 if dealer in self.survivors else 1]
                for dealer in self.names
            ]
            head = raw(self.secrets[name]["ledger_head"])
            body = self.survivors_hash + listed(shares) + head
            message = self.signed("reveal", name, body)
            self.made[f"reveal of {name}"] = message
            self.note("reveal", name, hashed("reveal", message))

    def publish(self) -> None:
        modulus = 2 ** self.terms["modulus_bits"]
        vectors = [self.secrets[name]["vector"] for name in self.survivors]
        total = [sum(words) % modulus for words in zip(*vectors, strict=True)]
        if total != self.last["sum"]["words"]:
            msg = "the sum in the vectors is not the sum of the survivors' vectors"
            raise AssertionError(msg)
        digest = hashed("sum", oracle.packed(total, self.terms["modulus_bits"]))
        self.note("sum", "server", digest)
        head = raw(self.secrets["server"]["ledger_head"])
        body = listed([text(name) for name in self.survivors]) + digest
        body += raw(self.last["published"]["next_adapter_digest"]) + self.chain + head
        self.made["published"] = self.signed("published", "server", body)
        reason = self.last["aborted"]["reason"]
        self.made["aborted"] = self.signed("aborted", "server", text(reason) + head)
