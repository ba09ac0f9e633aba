"""All parties of one round in one place, for tests: honest, dropping out, or lying.

`run_round` drives the server and every client through all phases. Each state passes
through its bytes at every step, unless told otherwise, so that every test is also a
test of restoring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from privacy.crypto import SigningKey
from privacy.secagg import client as client_side
from privacy.secagg import server as server_side
from privacy.secagg.messages import Published
from privacy.secagg.terms import RoundTerms
from privacy.vectors import NoisedVector, ResidueVector

PHASES = ("advert", "shares", "masked", "consistency", "reveal")

# Replaces the bytes that travel in a phase: (phase, client, bytes) -> bytes.
Tamper = Callable[[str, str, bytes], bytes]


class Counter:
    """Reproducible bytes in place of entropy: never the same twice, never random."""

    def __init__(self, seed: str) -> None:
        self.seed = seed.encode()
        self.calls = 0

    def __call__(self, count: int) -> bytes:
        self.calls += 1
        material = self.seed + self.calls.to_bytes(8, "big")
        return hashlib.shake_256(material).digest(count)


def identity(name: str) -> SigningKey:
    """A fixed identity for a name."""
    return SigningKey(hashlib.sha256(b"identity " + name.encode()).digest())


def client_names(count: int) -> tuple[str, ...]:
    return tuple(f"client-{index:03d}" for index in range(count))


def make_terms(count: int = 4, **changes: object) -> RoundTerms:
    """Terms of a cohort of this size; anything can be changed by name."""
    plain = RoundTerms(
        federation="test",
        plan_digest=hashlib.sha256(b"plan").digest(),
        adapter_digest=hashlib.sha256(b"adapter").digest(),
        round_number=7,
        cohort={name: identity(name).verify_key for name in client_names(count)},
        server=identity("server").verify_key,
        min_survivors=2,
        colluders=0,
        modulus_bits=32,
        vector_length=11,
    )
    return replace(plain, **changes)


def make_vector(terms: RoundTerms, name: str) -> NoisedVector:
    """Words of a client over the whole range of the modulus."""
    stream = Counter("vector " + name)(4 * terms.vector_length)
    words = np.frombuffer(stream, dtype="<u4").astype(np.uint32)
    mask = np.uint32(2**terms.modulus_bits - 1)
    return noised(terms, words & mask)


def noised(terms: RoundTerms, words: ResidueVector) -> NoisedVector:
    return NoisedVector(
        residues=words,
        modulus_bits=terms.modulus_bits,
        plan_digest=terms.plan_digest.hex(),
        round_number=terms.round_number,
    )


def plain_sum(terms: RoundTerms, names: Collection[str]) -> ResidueVector:
    """What the secure sum must equal: plain integers, added and reduced."""
    total = [0] * terms.vector_length
    for name in names:
        words = make_vector(terms, name).residues
        total = [a + int(b) for a, b in zip(total, words, strict=True)]
    return np.array([x % 2**terms.modulus_bits for x in total], dtype=np.uint32)


@dataclass
class Outcome:
    """What a driven round ended with."""

    unmasked: server_side.Unmasked
    published: dict[str, Published]
    errors: dict[str, Exception] = field(default_factory=dict)


def run_round(
    terms: RoundTerms,
    *,
    drops: Mapping[str, Collection[str]] | None = None,
    client_terms: Mapping[str, RoundTerms] | None = None,
    upstream: Tamper = lambda phase, name, data: data,
    downstream: Tamper = lambda phase, name, data: data,
    restoring: bool = True,
) -> Outcome:
    """Drive all parties through a round.

    Args:
        terms: the server's, and the clients' where `client_terms` says nothing else.
        drops: by phase, whose reply of that phase never arrives.
        client_terms: other terms that a client holds.
        upstream: alters what a client sends in a phase.
        downstream: alters what a client receives and answers in a phase.
        restoring: every state goes through its bytes.

    Returns:
        The result. A client's error ends its part and is kept under its name; the
        server's is raised.
    """
    drops = drops or {}
    own_terms = dict.fromkeys(terms.cohort, terms) | dict(client_terms or {})
    server_key = identity("server")
    errors: dict[str, Exception] = {}

    def again(state, key):
        return type(state).from_bytes(state.to_bytes(), key) if restoring else state

    def answers(phase, messages, states, step):
        replies, following = {}, {}
        for name, message in messages.items():
            if name not in states:
                continue
            try:
                received = downstream(phase, name, message)
                state, sent = step(name, states[name], received)
            except Exception as error:
                errors[name] = error
                continue
            following[name] = again(state, identity(name))
            if name not in drops.get(phase, ()):
                replies[name] = upstream(phase, name, sent)
        return replies, following

    server, offer = server_side.open_round(
        terms, server_key, Counter("server"), (1, 2, 3, 4, 5)
    )
    replies, states = answers(
        "advert",
        dict.fromkeys(terms.cohort, offer),
        dict.fromkeys(terms.cohort),
        lambda name, _, data: client_side.join(
            data,
            own_terms[name],
            identity(name),
            Counter("join " + name),
            terms.round_number - 1,
        ),
    )
    server, messages = again(server, server_key).collect(replies)
    replies, states = answers(
        "shares",
        messages,
        states,
        lambda name, state, data: state.share_keys(data, Counter("deal " + name)),
    )
    server, messages = again(server, server_key).collect(replies)
    replies, states = answers(
        "masked",
        messages,
        states,
        lambda name, state, data: state.mask(data, make_vector(own_terms[name], name)),
    )
    server, messages = again(server, server_key).collect(replies)
    replies, states = answers(
        "consistency", messages, states, lambda name, state, data: state.confirm(data)
    )
    server, messages = again(server, server_key).collect(replies)
    replies, states = answers(
        "reveal", messages, states, lambda name, state, data: state.reveal(data)
    )
    unmasked = again(again(server, server_key).collect(replies), server_key)
    message = unmasked.publish(bytes([1]) * 32, bytes([2]) * 32)
    published = {}
    for name, state in states.items():
        published[name] = state.conclude(message)
    return Outcome(unmasked, published, errors)
