"""What is fuzzed: every parser, and every state that takes bytes from the other side.

A target takes bytes and either returns or raises one of the kernel's own errors. A
parser among them also writes what it read again and compares: the bytes that came in
are the only ones that may come out. Nothing here needs a fuzzer; the first byte of an
input says which target gets the rest.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

from audits import verify_ledger as second
from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.site_policy import Facts, RewardFile, check, parse_policy
from privacy.crypto import VerifyKey, check_agreement_public, sha256
from privacy.errors import MalformedMessageError, PrivacyError
from privacy.ledger.checkpoint import parse_note
from privacy.ledger.envelope import GENESIS, PAYLOAD_TYPE, line_hash, open_line
from privacy.ledger.fields import to_object
from privacy.ledger.keyfiles import key_file_bytes, parse_key_file
from privacy.ledger.log_update import LogUpdate
from privacy.ledger.payload import decode_record, encode_record
from privacy.ledger.remembered import parse_head
from privacy.ledger.terms import read_terms
from privacy.ledger.verify import examine
from privacy.ledger.witness import View, Witness
from privacy.packing import pack, unpack
from privacy.plan import SERVER, Plan
from privacy.secagg import client as client_side
from privacy.secagg import messages
from privacy.secagg import server as server_side
from privacy.secagg.envelope import PROTOCOL_VERSION, Signed, StoredState
from privacy.secagg.key_shares import Direction, SealedShare, SharePair
from privacy.secagg.messages import (
    Label,
    Offer,
    read_aborted,
    words_from_bytes,
    words_to_bytes,
)
from privacy.secagg.shamir import ELEMENT_BYTES, check_element
from privacy.secagg.transcript import Entry
from privacy.wire import (
    Bytes64,
    Reader,
    Writer,
    canonical_json,
    decode,
    encode,
    parse_canonical_json,
    parse_rational,
    rational,
)
from tests.privacy.ledger.synthetic import RUN
from tests.privacy.ledger.watched import Watched
from tests.privacy.secagg.harness import (
    PHASES,
    Counter,
    identity,
    join,
    ledger_head,
    make_terms,
    play_until,
)

Target = Callable[[bytes], None]

TERMS = make_terms(3, vector_length=2)
# Three words of 20 bits, after which half a byte is left.
PACKED_TERMS = make_terms(3, vector_length=3, modulus_bits=20)
NAME = "client-001"
OFFER_DIGEST = play_until("shares", TERMS).server.desk.offer_digest
SIGNED = [kind for kind in vars(messages).values() if hasattr(kind, "LABEL")]
WIRE = [
    *SIGNED,
    Signed,
    StoredState,
    messages.KeyShares,
    messages.Delivery,
    messages.MaskedInput,
    SealedShare,
    SharePair,
    Direction,
    Entry,
]


def same(left: bytes, right: bytes) -> None:
    """The invariant of a parser: it accepts one form, the one that is written."""
    if left != right:
        msg = "bytes were accepted that are not written again"
        raise AssertionError(msg)


def record_target(kind: type) -> Target:
    return lambda data: same(encode(decode(kind, data)), data)


def reader(data: bytes) -> None:
    """Every method of `Reader`, in an order that the input chooses."""
    plan, rest = data[:8], data[8:]
    source, writer = Reader(rest), Writer()
    for step in plan:
        if step % 5 == 0:
            writer.integer(source.integer())
        elif step % 5 == 1:
            writer.field(source.field())
        elif step % 5 == 2:
            writer.text(source.text())
        elif step % 5 == 3:
            writer.fixed(source.fixed(step), step)
        else:
            writer.integer(source.count())
    source.finish()
    same(writer.finish(), rest)


def words(data: bytes) -> None:
    same(words_to_bytes(words_from_bytes(data)), data)


def packed_words(data: bytes) -> None:
    """The first byte says how many bits a word has, the second how many words."""
    bits, length = 1 + next(iter(data), 0) % 32, next(iter(data[1:]), 0)
    same(pack(unpack(data[2:], length, bits), bits), data[2:])


def elements(data: bytes) -> None:
    same(check_element(data).to_bytes(ELEMENT_BYTES, "big"), data)


def public_keys(data: bytes) -> None:
    """Both kinds: bytes that are no identity may still be a key of a round."""
    with suppress(PrivacyError):
        same(VerifyKey(data).raw, data)
    check_agreement_public(data)


def key_files(data: bytes) -> None:
    same(key_file_bytes(parse_key_file(data)), data)


def json_values(data: bytes) -> None:
    same(canonical_json(parse_canonical_json(data)), data)


def rationals(data: bytes) -> None:
    text = data.decode("latin-1")
    same(rational(parse_rational(text)).encode("latin-1"), data)


def ledger_lines(data: bytes) -> None:
    envelope = open_line(data)
    same(ledger_line(envelope.payload, envelope.keyid, envelope.signature), data)


def ledger_line(payload: bytes, keyid: str, signature: bytes) -> bytes:
    def text(raw: bytes) -> str:
        return base64.b64encode(raw).decode()

    return canonical_json(
        {
            "payload": text(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": keyid, "sig": text(signature)}],
        }
    )


def ledger_records(data: bytes) -> None:
    header, record = decode_record(parse_canonical_json(data))
    same(encode_record(header, record), data)


def ledger_files(data: bytes) -> None:
    """A ledger of these payloads, one a line, with numbers and links made whole."""
    key = identity("server").verify_key
    lines, prev = [], GENESIS
    for seq, payload in enumerate(data.split(b"\n")):
        try:
            value = json.loads(payload)
            linked = canonical_json(value | {"seq": seq, "prev": prev.hex()})
        except (ValueError, TypeError, RecursionError):
            linked = payload
        line = ledger_line(linked, key.fingerprint, bytes(64))
        prev = line_hash(line)
        lines.append(line + b"\n")
    for closed in (False, True):
        examine(b"".join(lines), "fuzzed", None, None, closed=closed)


def raw_ledger_files(data: bytes) -> None:
    examine(data, "fuzzed", None, None, closed=True)


def notes(data: bytes) -> None:
    same(parse_note(data).to_bytes(), data)


FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-log-")


def watched_run() -> Watched:
    """A run of a few lines, in which alpha has not been told how round 1 ended."""
    one = Watched(Path(FOLDER.name) / "run")
    one.show()
    one.round(1)
    one.show(["beta"])
    return one


LOG = watched_run()


def log_update(data: bytes, view: View | None = None) -> None:
    """Whatever a hostile server signs as an update, before a client that writes it
    down nowhere: the ledger would grow with every input.
    """
    ledger = LOG.clients["alpha"].ledger
    still = SimpleNamespace(
        history=ledger.history,
        entries=ledger.entries,
        path=ledger.path,
        append=lambda record: None,
    )
    signature = LOG.keys[SERVER].sign(Label.LOG_UPDATE, RUN, b"alpha", data)
    sealed = Writer().field(data).finish() + signature
    witness = Witness(still, LOG.keys["alpha"])
    witness._view = view
    witness.check(sealed)


def position(data: bytes) -> None:
    """Whatever a hostile client answers to a server that asks how far it is."""
    LOG.log.meet({"alpha": data})


def followed_update(data: bytes) -> None:
    """The same before a client whose process lived, and knows what the log had."""
    log_update(data, LOG.witnesses["alpha"]._view)


def position_of_nobody(data: bytes) -> None:
    """Nobody but the clients of the run has a say in how far the log was seen."""
    if LOG.log.take({"nobody": data, "beta": b""}) != ("beta", "nobody"):
        msg = "an answer of nobody was kept"
        raise AssertionError(msg)


def remembered_heads(data: bytes) -> None:
    same(canonical_json(to_object(parse_head(data))) + b"\n", data)


def agree(ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """The two verifiers read a thing alike, or both refuse it."""
    read = []
    for act, refusal in ((ours, PrivacyError), (theirs, second.BrokenError)):
        try:
            act()
        except refusal:
            read.append(False)
        else:
            read.append(True)
    if read[0] != read[1]:
        msg = f"the first verifier reads it: {read[0]}, the second: {read[1]}"
        raise AssertionError(msg)


def notes_of_both(data: bytes) -> None:
    agree(lambda: parse_note(data), lambda: second.parse_note(data))


def json_of_both(data: bytes) -> None:
    agree(lambda: parse_canonical_json(data), lambda: second.parse_canonical(data))


def records_of_both(data: bytes) -> None:
    """What fits together in an outcome is a rule of its own in the second."""

    def ours() -> None:
        decode_record(parse_canonical_json(data))

    def theirs() -> None:
        value = second.parse_canonical(data)
        second.require(isinstance(value, dict), 1, "no object")
        role = value.get("role")
        second.require(role in ("client", "server"), 1, "no role")
        second.check_form(value, role)

    if b'"kind":"outcome"' in data:
        ours()
        theirs()
    else:
        agree(ours, theirs)


def plans_of_both(data: bytes) -> None:
    value = parse_canonical_json(data)
    if isinstance(value, dict):
        agree(lambda: read_terms(value), lambda: second.check_plan(value))


FACTS = Facts(
    data_set="north",
    unit="prompt",
    trust="distributed",
    epsilon=Decimal(2),
    delta=Decimal("0.00001"),
    cap_epsilon=Decimal(4),
    cap_delta=Decimal("0.00001"),
    kept=True,
    clients=4,
    min_survivors=3,
    colluders=1,
    base_model="aa" * 32,
    rewards=(RewardFile("rewards.py:exact", "bb" * 32),),
    approved=False,
)


def policy_files(data: bytes) -> None:
    """Whatever a file says that somebody made an operator take for a policy."""
    try:
        policy = parse_policy(data.decode("utf-8"), "policy.toml")
    except (UnicodeDecodeError, ConfigurationError):
        return
    for refusal in check(policy, FACTS):
        if not (refusal.what and refusal.fix):
            msg = "a refusal that says nothing"
            raise AssertionError(msg)


def plans(data: bytes) -> None:
    plan = Plan.from_json(parse_canonical_json(data))
    same(canonical_json(plan.to_json()), data)
    read_terms(plan.to_json())


def plan_terms(data: bytes) -> None:
    value = parse_canonical_json(data)
    if isinstance(value, dict):
        read_terms(value)


def stored_client(data: bytes) -> None:
    same(client_side.restore_client(data, identity(NAME)).to_bytes(), data)


def stored_server(data: bytes) -> None:
    same(server_side.restore_server(data, identity("server")).to_bytes(), data)


def enveloped(label: Label, sender: str, digest: bytes, body: bytes) -> bytes:
    """These bytes as the body of a message that its sender signed."""
    version = PROTOCOL_VERSION.to_bytes(8, "big")
    parts = (version, sender.encode(), digest, body)
    signature: Bytes64 = identity(sender).sign(label, *parts)
    return encode(Signed(PROTOCOL_VERSION, label, sender, digest, body, signature))


def offered(data: bytes) -> None:
    """A client that joins on whatever offer a hostile server has signed."""
    digest = sha256(Label.OFFER_DIGEST, data)
    join(NAME, enveloped(Offer.LABEL, SERVER, digest, data), TERMS)


def aborted(data: bytes) -> None:
    message = enveloped(Label.ABORTED, SERVER, OFFER_DIGEST, data)
    read_aborted(message, TERMS, OFFER_DIGEST)


def fresh(state):
    """The state as if it had not answered yet."""
    return replace(state, _once=client_side._Once())


def client_target(phase: str) -> Target:
    """A client's state that is given a signed message with this body."""
    waiting = play_until(phase, TERMS).clients[NAME]
    label, act = {
        "shares": (
            Label.ROSTER,
            lambda state, data: state.share_keys(data, Counter("deal " + NAME)),
        ),
        "masked": (
            Label.KEY_SHARE_INBOX,
            lambda state, data: state.open_inbox(data),
        ),
        "consistency": (Label.SURVIVORS, lambda state, data: state.confirm(data)),
        "reveal": (
            Label.QUORUM,
            lambda state, data: state.reveal(data, ledger_head(NAME)),
        ),
    }[phase]

    def target(data: bytes) -> None:
        act(fresh(waiting), enveloped(label, SERVER, OFFER_DIGEST, data))

    return target


def conclusion_target() -> Target:
    waiting = play_until("reveal", TERMS).clients[NAME]

    def target(data: bytes) -> None:
        message = enveloped(Label.PUBLISHED, SERVER, OFFER_DIGEST, data)
        fresh(waiting).conclude(message)

    return target


def server_target(phase: str) -> Target:
    """The server's state, where one client signs these bytes and two are honest."""
    play = play_until(phase, TERMS)
    play.answer(phase)
    state, honest = play.server, dict(play.replies)
    label = {
        "advert": Label.ADVERT,
        "shares": Label.KEY_SHARES,
        "masked": Label.MASKED_INPUT,
        "consistency": Label.CONSISTENCY,
        "reveal": Label.REVEAL,
    }[phase]

    def target(data: bytes) -> None:
        try:
            head = Reader(data).field()
            rest = data[8 + len(head) :]
        except MalformedMessageError:
            head, rest = data, b""
        signed = enveloped(label, NAME, OFFER_DIGEST, head)
        if phase in ("shares", "masked"):
            signed = Writer().field(signed).finish() + rest
        state.collect({**honest, NAME: signed})

    return target


def unsigned_server_target(phase: str) -> Target:
    """The server's state, where one client sends these bytes as they are."""
    play = play_until(phase, TERMS)
    play.answer(phase)
    state, honest = play.server, dict(play.replies)

    def target(data: bytes) -> None:
        state.collect({**honest, NAME: data})

    return target


def server_words() -> Target:
    """The server, to which a client sends these very words of 20 bits, signed."""
    play = play_until("masked", PACKED_TERMS)
    play.answer("masked")
    signed = decode(Signed, decode(messages.MaskedInput, play.replies[NAME]).header)
    header = decode(messages.MaskedHeader, signed.body)

    def target(data: bytes) -> None:
        told = encode(replace(header, vector_hash=messages.vector_hash(data)))
        head = enveloped(Label.MASKED_INPUT, NAME, signed.offer_digest, told)
        after = play.server.add(NAME, encode(messages.MaskedInput(head, data)))
        if NAME not in after.wrong:
            # Of one vector the sum is the vector.
            same(pack(words_from_bytes(after.total), PACKED_TERMS.modulus_bits), data)

    return target


# The order is part of every stored input: add at the end.
PARSERS: dict[str, Target] = {
    **{f"wire {kind.__name__}": record_target(kind) for kind in WIRE},
    "reader": reader,
    "words": words,
    "elements": elements,
    "public keys": public_keys,
    "json": json_values,
    "rationals": rationals,
    "ledger line": ledger_lines,
    "ledger record": ledger_records,
    "plan": plans,
    "plan terms": plan_terms,
    "key file": key_files,
    "packed words": packed_words,
    "note": notes,
    "wire LogUpdate": record_target(LogUpdate),
    "remembered head": remembered_heads,
}
STATES: dict[str, Target] = {
    "ledger file": raw_ledger_files,
    "ledger payloads": ledger_files,
    "client state": stored_client,
    "server state": stored_server,
    "offer": offered,
    "aborted": aborted,
    "published": conclusion_target(),
    **{f"client {phase}": client_target(phase) for phase in PHASES[1:]},
    **{f"server {phase}": server_target(phase) for phase in PHASES},
    **{f"server bytes {phase}": unsigned_server_target(phase) for phase in PHASES},
    "server words": server_words(),
    "log update": log_update,
    "position": position,
    "log update followed": followed_update,
    "position of nobody": position_of_nobody,
}
# What packed words and rotations are read by, to be fuzzed by themselves.
TRAVEL: dict[str, Target] = {
    "packed words": packed_words,
    "plan": plans,
    "plan terms": plan_terms,
    "server words": STATES["server words"],
}
# What the server's log is read by, and what both verifiers and a site read.
LOGS: dict[str, Target] = {
    "note": notes,
    "wire LogUpdate": PARSERS["wire LogUpdate"],
    "log update": log_update,
    "log update followed": followed_update,
    "position": position,
    "position of nobody": position_of_nobody,
    "remembered head": remembered_heads,
    "note of both": notes_of_both,
    "json of both": json_of_both,
    "record of both": records_of_both,
    "plan of both": plans_of_both,
    "policy file": policy_files,
}
GROUPS = {"parsers": PARSERS, "states": STATES, "travel": TRAVEL, "logs": LOGS}


def run_input(group: dict[str, Target], data: bytes) -> None:
    """Give an input to the target of a group that its first byte names.

    An error of the kernel is an answer like any other.
    """
    targets = list(group.values())
    target = targets[data[0] % len(targets)] if data else targets[0]
    with suppress(PrivacyError):
        target(data[1:])
