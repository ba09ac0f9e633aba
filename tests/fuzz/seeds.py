"""Valid inputs for every target, made from an honest round and an honest ledger."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from privacy.ledger.envelope import open_line
from privacy.ledger.keyfiles import key_file_bytes
from privacy.secagg.envelope import Signed, StoredState
from privacy.secagg.messages import Inbox, KeyShares, MaskedInput
from privacy.secagg.server import abort_message
from privacy.secagg.terms import RoundTerms
from privacy.wire import Writer, canonical_json, decode, encode
from tests.fuzz.targets import GROUPS, LOG, OFFER_DIGEST, SIGNED, TERMS
from tests.plans import make_plan
from tests.privacy.ledger.synthetic import write_run
from tests.privacy.secagg.harness import (
    PHASES,
    identity,
    ledger_head,
    play_until,
)

POLICY = b"""\
[plan]
units = ["prompt"]
trust = ["distributed", "local"]
least_clients = 4
least_survivors = 3
least_colluders = 1
base_models = ["%(model)s"]
[[data_set]]
name = "north"
epsilon = 4
delta = 1e-5
epsilon_for_life = 8.0
delta_for_life = 1e-5
[[reward]]
name = "rewards.py:exact"
sha256 = "%(file)s"
[[task]]
data_set = "north"
rewards = ["rewards.py:exact"]
approval = "ask"
""" % {b"model": b"aa" * 32, b"file": b"bb" * 32}
KINDS = {kind.LABEL.value: kind for kind in SIGNED}
CLIENT = "client-001"


def seeds() -> Iterator[tuple[str, bytes]]:
    """Target and input, at least one for every target."""
    yield from _round_seeds(TERMS)
    yield from _ledger_seeds()
    yield from _log_seeds()
    plan = canonical_json(make_plan().to_json())
    for name in ("plan", "plan terms", "json", "plan of both", "json of both"):
        yield name, plan
    yield "words", bytes(range(16))
    few = {"modulus_bits": 20, "norm_bound": 16, "noise_variance": 2**12}
    rotated = make_plan(**few, rotation=True)
    for name in ("plan", "plan terms"):
        yield name, canonical_json(rotated.to_json())
    packed = bytes.fromhex("debc5a3412cbed0f")
    yield "packed words", bytes([19, 3]) + packed
    yield "server words", packed
    yield "elements", bytes(32)
    yield "public keys", identity(CLIENT).verify_key.raw
    yield "key file", key_file_bytes(identity(CLIENT).verify_key)
    yield "rationals", b"-3/20"
    # An integer, a field, a text, three fixed bytes, a count, another integer.
    steps = bytes([0, 1, 2, 3, 4, 0, 0, 0])
    fields = Writer().integer(7).field(b"field").text("text").fixed(b"abc", 3)
    yield "reader", steps + fields.integer(2).integer(1).integer(2).integer(3).finish()


def _round_seeds(terms: RoundTerms) -> Iterator[tuple[str, bytes]]:
    for phase in PHASES:
        play = play_until(phase, terms)
        yield "server state", play.server.to_bytes()
        if phase != "advert":
            yield "client state", play.clients[CLIENT].to_bytes()
            yield "wire StoredState", play.clients[CLIENT].to_bytes()
        yield from _envelope_seeds(_place(phase), play.messages[CLIENT])
        play.answer(phase)
        yield from _reply_seeds(phase, play.replies[CLIENT])
    play.collect()
    yield "server state", play.server.to_bytes()
    yield "client state", play.clients[CLIENT].to_bytes()
    published = play.server.publish(bytes(32), bytes(32))
    yield from _envelope_seeds("published", published)
    reason = "too few clients"
    key = identity("server")
    ended = abort_message(terms, OFFER_DIGEST, key, reason, ledger_head("server"))
    yield from _envelope_seeds("aborted", ended)
    for entry in play.server.transcript[:3]:
        yield "wire Entry", encode(entry)
    yield from _share_seeds(terms)


def _place(phase: str) -> str:
    """The target that a client's message of a phase goes to."""
    return "offer" if phase == "advert" else f"client {phase}"


def _envelope_seeds(place: str, message: bytes) -> Iterator[tuple[str, bytes]]:
    signed = decode(Signed, message)
    yield place, signed.body
    yield "wire Signed", message
    yield f"wire {KINDS[signed.label].__name__}", signed.body
    if KINDS[signed.label] is Inbox:
        for delivery in decode(Inbox, signed.body).deliveries.values():
            yield "wire Delivery", encode(delivery)


def _reply_seeds(phase: str, reply: bytes) -> Iterator[tuple[str, bytes]]:
    yield f"server bytes {phase}", reply
    head, rest = reply, b""
    if phase == "shares":
        head = decode(KeyShares, reply).head
        yield "wire KeyShares", reply
    elif phase == "masked":
        head = decode(MaskedInput, reply).header
        yield "wire MaskedInput", reply
    if head is not reply:
        rest = reply[8 + len(head) :]
    signed = decode(Signed, head)
    yield f"server {phase}", Writer().field(signed.body).finish() + rest
    yield f"wire {KINDS[signed.label].__name__}", signed.body
    yield "wire Signed", head


def _share_seeds(terms: RoundTerms) -> Iterator[tuple[str, bytes]]:
    play = play_until("masked", terms)
    for pair in play.server.deal.commitments.values():
        yield "wire SharePair", b"".join(pair[:2])
    yield "wire Direction", bytes(32) + Writer().text("a").text("b").finish()
    play = play_until("shares", terms)
    play.answer("shares")
    for sealed in decode(KeyShares, play.replies[CLIENT]).sealed:
        yield "wire SealedShare", encode(sealed)
    yield "wire StoredState", encode(StoredState("kind", 1, b"body"))


def _ledger_seeds() -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        write_run(folder)
        for name in ("server", "alpha", "gamma"):
            data = (Path(folder) / "ledger" / f"{name}.jsonl").read_bytes()
            lines = data.splitlines()
            payloads = [open_line(line).payload for line in lines]
            # A few lines reach as much as all of them, and a fuzzer is quicker.
            for end in (1, 2, 4, len(lines) if name == "gamma" else 6):
                yield "ledger payloads", b"\n".join(payloads[:end])
            yield "ledger file", b"".join(data.splitlines(keepends=True)[:2])
            for line, payload in zip(lines, payloads, strict=True):
                yield "ledger line", line
                yield "ledger record", payload


def _log_seeds() -> Iterator[tuple[str, bytes]]:
    for update in (LOG.shown_to("alpha"), LOG.update_of(LOG.lines())):
        yield "log update", encode(update)
        yield "wire LogUpdate", encode(update)
        yield "note", update.note
        yield "note of both", update.note
        yield "log update followed", encode(update)
    yield "remembered head", LOG.path("alpha").with_suffix(".jsonl.head").read_bytes()
    yield "policy file", POLICY
    for name in ("alpha", "beta"):
        for line in LOG.path(name).read_bytes().splitlines():
            yield "ledger line", line
            for target in ("ledger record", "record of both", "json of both"):
                yield target, open_line(line).payload
    for line in LOG.lines():
        yield "record of both", open_line(line).payload
    position = LOG.witnesses["alpha"].position()
    for name in ("position", "position of nobody", "note", "note of both"):
        yield name, position


def main(group: str, folder: Path) -> None:
    """Write the seeds of a group's targets, each as the fuzzer keeps its inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(GROUPS[group])
    for number, (name, data) in enumerate(seeds()):
        if name in names:
            content = bytes([names.index(name)]) + data
            (folder / f"seed-{number:03d}").write_bytes(content)
