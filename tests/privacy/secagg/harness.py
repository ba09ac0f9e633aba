"""All parties of one round in one place, for tests: honest, dropping out, or lying.

`run_round` drives the server and every client through all phases; `play_until` stops
before one, for a test to lie in. Each state passes through its bytes at every step,
unless told otherwise, so that every test is also a test of restoring.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from privacy.crypto import SigningKey
from privacy.errors import PrivacyError
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


def ledger_head(name: str) -> bytes:
    """The ledger head that a client signs with its reveal."""
    return hashlib.sha256(b"ledger " + name.encode()).digest()


def join(name: str, offer: bytes, terms: RoundTerms):
    """A client's answer to an offer, with reproducible keys."""
    return client_side.join(
        offer, terms, identity(name), Counter("join " + name), terms.round_number - 1
    )


class Play:
    """A round in progress: the server's state, the clients', what lies between them.

    Attributes:
        terms: the server's.
        server: its state.
        clients: state by client; `None` before it has joined.
        late: state by client that the server no longer writes to.
        messages: what the server last sent, by client.
        replies: what the clients last sent.
        errors: what ended a client's part.
        restoring: every state goes through its bytes.
    """

    def __init__(self, terms: RoundTerms, *, restoring: bool = True) -> None:
        self.terms = terms
        self.own_terms = dict.fromkeys(terms.cohort, terms)
        self.vectors = {name: make_vector(terms, name) for name in terms.cohort}
        self.server, offer = server_side.open_round(
            terms, identity("server"), Counter("server"), (1, 2, 3, 4, 5)
        )
        self.messages = dict.fromkeys(terms.cohort, offer)
        self.clients = dict.fromkeys(terms.cohort)
        self.late = {}
        self.replies: dict[str, bytes] = {}
        self.errors: dict[str, Exception] = {}
        self.restoring = restoring

    def step(self, phase: str, name: str, message: bytes):
        """One client's method for this phase: next state and bytes."""
        state, terms = self.clients[name], self.own_terms[name]
        if phase == "advert":
            return join(name, message, terms)
        if phase == "shares":
            return state.share_keys(message, Counter("deal " + name))
        if phase == "masked":
            opened = self.again(state.open_inbox(message), identity(name))
            return opened.mask(self.vectors[name])
        if phase == "consistency":
            return state.confirm(message)
        return state.reveal(message, ledger_head(name))

    def answer(self, phase: str) -> None:
        """Every client that got a message answers it; an error ends its part."""
        self.replies, states = {}, {}
        for name, message in self.messages.items():
            if name not in self.clients:
                continue
            try:
                state, sent = self.step(phase, name, message)
            except PrivacyError as error:
                self.errors[name] = error
                continue
            states[name] = self.again(state, identity(name))
            self.replies[name] = sent
        for name in self.clients.keys() - states.keys() - self.errors.keys():
            self.late[name] = self.clients[name]
        self.clients = states

    def collect(self) -> None:
        """The server takes the replies, and sends the next messages."""
        result = self.again(self.server, identity("server")).collect(self.replies)
        if isinstance(result, server_side.Unmasked):
            self.server, self.messages = result, {}
        else:
            self.server, self.messages = result

    def again(self, state, key):
        """The state after its bytes were stored and restored."""
        if not self.restoring:
            return state
        return type(state).from_bytes(state.to_bytes(), key)


def play_until(phase: str, terms: RoundTerms | None = None) -> Play:
    """An honest round up to where the clients have the messages of this phase."""
    play = Play(terms or make_terms(4))
    for earlier in PHASES[: PHASES.index(phase)]:
        play.answer(earlier)
        play.collect()
    return play


@dataclass
class Outcome:
    """What a driven round ended with."""

    unmasked: server_side.Unmasked
    published: dict[str, Published]
    errors: dict[str, Exception] = field(default_factory=dict)


def finish(
    play: Play,
    first: str = "advert",
    *,
    drops: Mapping[str, Collection[str]] | None = None,
    upstream: Tamper = lambda phase, name, data: data,
    downstream: Tamper = lambda phase, name, data: data,
) -> Outcome:
    """Drive a round to its end, from where the clients have this phase's messages.

    Args:
        play: the round.
        first: the phase to begin with.
        drops: by phase, whose reply of that phase never arrives.
        upstream: alters what a client sends in a phase.
        downstream: alters what a client receives and answers in a phase.

    Returns:
        The result. The server's error is raised.
    """
    for phase in PHASES[PHASES.index(first) :]:
        play.messages = {
            name: downstream(phase, name, data) for name, data in play.messages.items()
        }
        play.answer(phase)
        play.replies = {
            name: upstream(phase, name, data)
            for name, data in play.replies.items()
            if name not in (drops or {}).get(phase, ())
        }
        play.collect()
    unmasked = play.again(play.server, identity("server"))
    message = unmasked.publish(bytes([1]) * 32, bytes([2]) * 32)
    waiting = play.late | play.clients
    published = {
        name: play.again(waiting[name], identity(name)).conclude(message)
        for name in unmasked.survivors
        if name in waiting
    }
    return Outcome(unmasked, published, play.errors)


def run_round(terms: RoundTerms, *, restoring: bool = True, **changes) -> Outcome:
    """Drive all parties through a round; see `finish` for what can be changed."""
    return finish(Play(terms, restoring=restoring), **changes)
