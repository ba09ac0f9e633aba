#!/usr/bin/env python3
"""Check a run's folder by the rules of docs/ledger.md, with none of our code.

    python -I audits/verify_ledger.py DIR...

The second verifier of the ledgers, written from docs/ledger.md alone. It needs Python's
standard library and `cryptography`, for Ed25519 signatures. Where `dp-accounting` is
installed, the figures by PLD are computed again too; if it is not, the output says so.

Each finding names a file, a line, and the number of the rule that is broken, as counted
in docs/ledger.md under "What a verifier checks". The parts below stand in the order in
which an auditor would work: text, signatures, the log, records, prices, one ledger,
two accounts of one round, the folder, several cohorts, several folders. Each rests on
those above it, so that the file can be read from its first line to its last. Who would
rather begin with the whole begins with `Folder.check`.

Exit status: 0 it verifies, 1 it does not, 2 there is nothing that could be verified.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SERVER = "server"
INFINITY = Decimal("Infinity")
Record = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """What is wrong, and where. Line 0 is the file as a whole."""

    file: str
    line: int
    rule: int
    text: str


class BrokenError(Exception):
    """Something is wrong, and what follows it cannot be read."""

    def __init__(self, rule: int, text: str) -> None:
        super().__init__(text)
        self.rule = rule


def require(condition: object, rule: int, text: str) -> None:
    """Stop reading where a condition does not hold."""
    if not condition:
        raise BrokenError(rule, text)


# --- Text: RFC 8785, without floating-point numbers -----------------------------------

MOST_DEPTH = 32


def parse(
    text: bytes, rule: int = 1, number: Callable[[str], object] | None = None
) -> Any:  # noqa: ANN401 - JSON
    """Read JSON; refuse repeated keys, NaN, and floats unless `number` reads them."""

    def unique(pairs: list[tuple[str, Any]]) -> Record:
        require(len(dict(pairs)) == len(pairs), rule, "an object repeats a key")
        return dict(pairs)

    def refuse(found: str) -> None:
        raise BrokenError(rule, f"a number that is no integer: {found[:20]}")

    hooks = {"object_pairs_hook": unique, "parse_constant": refuse}
    try:
        return json.loads(text.decode("utf-8"), parse_float=number or refuse, **hooks)
    except (ArithmeticError, ValueError, RecursionError) as error:
        raise BrokenError(rule, "not JSON") from error


def canonical(value: object, rule: int = 1) -> bytes:
    """The one text of a value: no spaces, keys by UTF-16 code units."""

    def ordered(part: object, depth: int) -> object:
        require(depth <= MOST_DEPTH, rule, "nested too deep")
        if isinstance(part, int):
            require(abs(part) < 2**53, rule, "an integer above 2^53 - 1")
        if isinstance(part, dict):
            keys = sorted(part, key=lambda key: key.encode("utf-16-be"))
            return {key: ordered(part[key], depth + 1) for key in keys}
        if isinstance(part, list):
            return [ordered(item, depth + 1) for item in part]
        return part

    try:
        plain = ordered(value, 0)
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8")
    except ValueError as error:
        raise BrokenError(rule, "a text that is no Unicode") from error


def parse_canonical(text: bytes) -> Any:  # noqa: ANN401 - JSON
    """Read JSON that is the only text for what it says."""
    value = parse(text)
    require(canonical(value) == text, 1, "not in canonical form (RFC 8785)")
    return value


# --- Hashes and signatures ------------------------------------------------------------

PAYLOAD_TYPE = "application/vnd.fgrpo-secure.ledger.v1+json"
CURVE_PRIME = 2**255 - 19
# The y of the points of order 1, 2, 4 and 8: under such a key one signature holds for
# many messages.
_Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
LOW_ORDER = {0, 1, CURVE_PRIME - 1, _Y8, CURVE_PRIME - _Y8}


def digest(label: str, *parts: bytes) -> str:
    """H(label, part, ...): SHA-256 with the length of each before it."""
    hashed = hashlib.sha256()
    for part in (label.encode("ascii"), *parts):
        hashed.update(len(part).to_bytes(8, "big") + part)
    return hashed.hexdigest()


def head_of(line: bytes) -> str:
    """What the next line has as `prev`."""
    return digest("fgrpo-secure/1/ledger-record", line)


def plan_digest(plan: Record) -> str:
    """The name of a plan."""
    return digest("fgrpo-secure/1/plan", canonical(plan))


def fingerprint(key: bytes) -> str:
    """The name of a key."""
    return digest("fgrpo-secure/1/identity-fingerprint", key)


def usable_key(key: bytes) -> bool:
    """Whether Ed25519 signatures under this key mean anything."""
    y = int.from_bytes(key, "little") & (2**255 - 1)
    return len(key) == 32 and y < CURVE_PRIME and y not in LOW_ORDER


def unbase64(text: object, rule: int = 1) -> bytes:
    """Decode, and refuse every text but the one that encoding gives."""
    require(isinstance(text, str) and text.isascii(), rule, "base64 is no ASCII text")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BrokenError(rule, "not base64") from error
    require(base64.b64encode(data).decode() == text, rule, "base64 is not canonical")
    return data


def is_signed(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether this key signed the message, and may sign."""
    if not usable_key(key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return len(signature) == 64


def open_line(line: bytes, key: bytes) -> Record:
    """The payload of a DSSE envelope that this key signed."""
    envelope = parse_canonical(line)
    keys = {"payload", "payloadType", "signatures"}
    require(isinstance(envelope, dict) and set(envelope) == keys, 1, "not an envelope")
    require(envelope["payloadType"] == PAYLOAD_TYPE, 1, "another payload type")
    signatures = envelope["signatures"]
    require(
        isinstance(signatures, list)
        and len(signatures) == 1
        and isinstance(signatures[0], dict)
        and set(signatures[0]) == {"keyid", "sig"},
        1,
        "not exactly one signature",
    )
    signed_by = signatures[0]["keyid"]
    require(signed_by == fingerprint(key), 1, "another key than this party's is named")
    payload, signature = unbase64(envelope["payload"]), unbase64(signatures[0]["sig"])
    signed = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} ".encode()
    own = is_signed(key, signature, signed + payload)
    require(own, 1, "the signature is not of this party's key")
    return parse_canonical(payload)


# --- The log: a Merkle tree of the server's lines, and signed notes of it -------------

# Text, an empty line, signature lines: origin, size, root; name and signature.
NOTE = re.compile(
    rb"((fgrpo-secure/[0-9a-f]{32})\n([1-9][0-9]*)\n([A-Za-z0-9+/]{43}=)\n)\n"
    rb"((?:\xe2\x80\x94 [!-*,-~]{1,255} [A-Za-z0-9+/=]+\n){1,2048})"
)


class Note(NamedTuple):
    """A checkpoint, and who signed it: (name, key id, signature)."""

    text: bytes
    origin: str
    size: int
    root: str
    signatures: list[tuple[str, bytes, bytes]]


def parse_note(data: bytes) -> Note:
    """Rule 14: a note by its form; whose the signatures are is not checked here."""
    found = NOTE.fullmatch(data) if len(data) <= 2**20 else None
    require(found, 14, "not a note")
    text, origin, size, root, lines = found.groups()
    require(len(size) < 17 and int(size) < 2**53, 14, "a size beyond all ledgers")
    signatures = []
    for line in lines.decode().splitlines():
        _, name, signature = line.split(" ")
        raw = unbase64(signature, 14)
        require(4 < len(raw) <= 8192, 14, "a signature of no length")
        signatures.append((name, raw[:4], raw[4:]))
    signers = {(name, key_id) for name, key_id, _ in signatures}
    require(len(signers) == len(signatures), 14, "two signatures of one key")
    root = unbase64(root.decode(), 14).hex()
    return Note(text, origin.decode(), int(size), root, signatures)


def origin_of(run: str) -> str:
    """The name of a run's log."""
    hashed = digest("fgrpo-secure/1/log-origin", bytes.fromhex(run))
    return f"fgrpo-secure/{hashed[:32]}"


def checkpoint_text(origin: str, size: int, root: str) -> bytes:
    """What the server signs of its first lines."""
    encoded = base64.b64encode(bytes.fromhex(root)).decode()
    return f"{origin}\n{size}\n{encoded}\n".encode()


def key_id(name: str, key: bytes) -> bytes:
    """How a note names a key."""
    return hashlib.sha256(name.encode() + b"\n\x01" + key).digest()[:4]


def roots_of(lines: list[bytes]) -> list[str]:
    """The root of the first 0, 1, 2, ... lines (RFC 6962, section 2.1)."""
    roots = [hashlib.sha256(b"").hexdigest()]
    # Whole subtrees from left to right, each with its height; they fall in height.
    subtrees: list[tuple[int, bytes]] = []
    for line in lines:
        height, node = 0, hashlib.sha256(b"\0" + line).digest()
        while subtrees and subtrees[-1][0] == height:
            node = hashlib.sha256(b"\1" + subtrees.pop()[1] + node).digest()
            height += 1
        subtrees.append((height, node))
        for _, left in reversed(subtrees[:-1]):
            node = hashlib.sha256(b"\1" + left + node).digest()
        roots.append(node.hex())
    return roots


# --- Records: forms, kinds, what may follow what --------------------------------------

REASONS = """
    below_threshold malformed_message bad_signature faulty_server faulty_client
    faulty_peer_or_server server_aborted deadline left_out interrupted stopped refused
    replay plan_mismatch adapter_mismatch unknown_party budget_exceeded
    unsupported_event ledger_unreliable not_approved environment equivocation rollback
    policy_epsilon policy_delta policy_cohort policy_survivors policy_colluders
    policy_unit policy_trust policy_model policy_reward policy_code policy_task
    """.split()  # noqa: SIM905 - as the page lists them
MOST_NAMES = 1000


def _fields(text: str) -> dict[str, str]:
    """The form of each field, from "form name name; form name"."""
    groups = (group.split() for group in text.split(";"))
    return {name: form for form, *names in groups for name in names}


def _text(pattern: str) -> Callable[[object], bool]:
    """A form that is a string of a pattern."""
    return lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value))


def _integer(least: int, most: int = 2**53 - 1) -> Callable[[object], bool]:
    """A form that is an integer; in Python `True` is one, here it is not."""
    return lambda value: type(value) is int and least <= value <= most


def _is_rate(value: object) -> bool:
    if not _text("[1-9][0-9]*/[1-9][0-9]*")(value) or len(value) > 80:
        return False
    above, below = map(int, value.split("/"))
    return above <= below and math.gcd(above, below) == 1


def _is_names(value: object) -> bool:
    """Whether names are sorted and distinct; names sort as their bytes do."""
    return (
        isinstance(value, list)
        and len(value) <= MOST_NAMES
        and all(FORMS["name"](name) and name != SERVER for name in value)
        and value == sorted(set(value))
    )


def _is_digests(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MOST_NAMES
        and all(FORMS["name"](n) and FORMS["digest"](d) for n, d in value.items())
    )


def _object(fields: dict[str, str]) -> Callable[[object], bool]:
    """A form that is an object with exactly these fields."""
    return lambda value: (
        isinstance(value, dict)
        and set(value) == set(fields)
        and all(FORMS[form](value[name]) for name, form in fields.items())
    )


EVENT = _fields(
    "rate sampling_rate; positive inner_steps norm_bound; count statistic_norm_bound; "
    "big noise_variance statistic_variance"
)
SPEND = _fields("count charges; number delta epsilon_pld epsilon_rdp")
FORMS: dict[str, Callable[[Any], bool]] = {
    "count": _integer(0),
    "positive": _integer(1),
    "order": _integer(2, 256),
    "big": _text("0|[1-9][0-9]{0,38}"),
    "digest": _text("[0-9a-f]{64}"),
    "handle": _text("[0-9a-f]{32}"),
    "signature": _text("[0-9a-f]{128}"),
    "name": _text("[A-Za-z0-9][A-Za-z0-9._-]{0,62}"),
    "names": _is_names,
    "rate": _is_rate,
    "number": _text(r"(0|[1-9][0-9]{0,17})(\.[0-9]{0,99}[1-9])?|infinity"),
    "reason": _text("|".join(REASONS)),
    "status": _text("published|missed|aborted"),
    "digests": _is_digests,
    "software": _text("[A-Za-z0-9][A-Za-z0-9 .+_/-]{0,99}"),
    "text": lambda value: isinstance(value, str),
    "plan": lambda value: isinstance(value, dict),
    "event": _object(EVENT),
    "spend": _object(SPEND),
    "lifetime": _object(SPEND | {"claimed": "claim"}),
    "claim": _text("pld|rdp"),
}
FORMS["reason?"] = lambda value: value is None or FORMS["reason"](value)
FORMS["digest?"] = lambda value: value is None or FORMS["digest"](value)

HEADER = "count seq; digest prev; name party; text role; handle run; text kind; "
ATTEMPT = "positive round attempt; "
OPENED = "software software; plan plan; digest plan_digest; digests roster"
CHECKPOINT = "positive size; digest root; signature signature"
RESUMED = "text last; count round attempt torn_bytes"
KINDS: dict[str, dict[str, str]] = {
    "client": {
        "opened": f"{OPENED}; number cap_epsilon cap_delta; handle data; "
        "order cap_order",
        "joined": f"{ATTEMPT}digest offer_digest adapter_digest",
        "shown": f"{ATTEMPT}digest roster_hash sharers_hash",
        "intent": f"{ATTEMPT}event event; positive releases; spend spend; "
        "lifetime lifetime",
        "commit": f"{ATTEMPT}digest commitment; positive length modulus_bits",
        "outcome": f"{ATTEMPT}status status; reason? reason; names survivors; "
        "digest? adapter_digest server_head transcript",
        "declined": f"{OPENED}; reason reason",
        "refused": "count round attempt; reason reason; digest? offer_digest",
        "cosigned": CHECKPOINT,
        "disputed": CHECKPOINT,
        "resumed": RESUMED,
        "closed": "positive records; count published aborted missed; spend spend; "
        "lifetime lifetime",
    },
    "server": {
        "opened": OPENED,
        "round_opened": f"{ATTEMPT}digest offer_digest adapter_digest",
        "roster": f"{ATTEMPT}names members; digest roster_hash",
        "survivors": f"{ATTEMPT}names sharers survivors; "
        "digest sharers_hash survivors_hash",
        "published": f"{ATTEMPT}names survivors; digests heads; "
        "digest sum_digest adapter_before adapter_after transcript",
        "aborted": f"{ATTEMPT}reason reason; names dropouts",
        "moved": f"{ATTEMPT}digest adapter_before adapter_after",
        "resumed": RESUMED,
        "closed": "positive records; count published aborted",
    },
}
# What may follow in a phase, and the phase that it leads to.
STEPS = {
    "client": {
        "closed": "opened:idle",
        "idle": "joined:joined refused:idle disputed:idle cosigned:idle resumed:idle "
        "closed:closed opened:idle",
        "joined": "shown:joined intent:charged outcome:idle refused:joined "
        "disputed:joined resumed:joined opened:idle",
        "charged": "commit:committed outcome:idle refused:charged disputed:charged "
        "resumed:interrupted opened:idle",
        "interrupted": "intent:charged commit:committed outcome:idle "
        "refused:interrupted disputed:interrupted resumed:interrupted opened:idle",
        "committed": "outcome:idle refused:committed disputed:committed "
        "resumed:committed opened:idle",
    },
    "server": {
        "closed": "opened:idle",
        "idle": "round_opened:offered moved:idle resumed:idle closed:closed",
        "offered": "roster:rostered aborted:idle resumed:offered",
        "rostered": "survivors:counted aborted:idle resumed:rostered",
        "counted": "published:idle aborted:idle resumed:counted",
    },
}


def check_form(record: object, role: str) -> None:
    """Rule 1: the header, and exactly the fields of the kind."""
    require(isinstance(record, dict), 1, "the payload is no object")
    kind = record.get("kind")
    require(isinstance(kind, str) and kind in KINDS[role], 1, f"no kind of a {role}")
    fields = _fields(HEADER + KINDS[role][kind])
    require(set(record) == {"v", *fields}, 1, f"{kind} has other fields than it should")
    require(type(record["v"]) is int and record["v"] == 1, 1, "another format version")
    for name, form in fields.items():
        require(FORMS[form](record[name]), 1, f"{kind}: {name} is no {form}")


# --- Prices ---------------------------------------------------------------------------

ORDERS = range(2, 257)


class Event(NamedTuple):
    """What a charge costs follows from these two; z is 0 where it has no price."""

    rate: float
    z: float

    @classmethod
    def of(cls, fields: Record) -> Event:
        """From an event's JSON object, whose form is checked."""
        rate = float(Fraction(fields["sampling_rate"]))
        one = int(fields["noise_variance"]) - 4
        two = int(fields["statistic_variance"]) - 4
        bound, steps = fields["norm_bound"], fields["inner_steps"]
        statistic_bound = fields["statistic_norm_bound"]
        statistic = two > -4 or statistic_bound > 0
        if rate == 0 or one <= 0 or (statistic and (two <= 0 or not statistic_bound)):
            return cls(rate, 0.0)
        z = math.sqrt(one) / bound / math.sqrt(steps)
        if statistic:
            z = 1 / math.hypot(1 / z, statistic_bound / math.sqrt(two))
        return cls(rate, z if 1e-6 <= z <= 1e9 else 0.0)


Charges = Mapping[Event, int]


@functools.cache
def renyi(event: Event, order: int) -> float:
    """r(a): the Renyi divergence of one event.

    The weights C(a,k) (1-q)^(a-k) q^k sum to 1. So the sum is 1 plus the same sum with
    exp(x) - 1 for exp(x), which keeps its digits where the divergence is small.
    """
    if event.z == 0:
        return math.inf
    if event.rate == 1:
        return order / (2 * event.z**2)
    logs = []
    for k in range(2, order + 1):
        x = (k * k - k) / (2 * event.z**2)
        excess = x + math.log(-math.expm1(-x))
        weight = math.log(math.comb(order, k)) + k * math.log(event.rate)
        logs.append(excess + weight + (order - k) * math.log1p(-event.rate))
    top = max(logs)
    log_sum = top + math.log(math.fsum(math.exp(log - top) for log in logs))
    # ln(1 + exp(y)), without overflow.
    tail = math.log1p(math.exp(-abs(log_sum)))
    return (max(log_sum, 0.0) + tail) / (order - 1)


def conversion(order: int, delta: Decimal) -> float:
    """c(a): what makes a divergence an epsilon."""
    log_delta = float(delta.ln())
    return math.log1p(-1 / order) - (log_delta + math.log(order)) / (order - 1)


def rdp_epsilon(charges: Charges, delta: Decimal, orders: Iterable[int]) -> float:
    """Epsilon by Renyi divergences: the least over these orders."""
    totals = (
        math.fsum(count * renyi(event, order) for event, count in charges.items())
        + conversion(order, delta)
        for order in orders
    )
    return max(0.0, min(totals))


def filter_order(event: Event, cap_epsilon: Decimal, cap_delta: Decimal) -> int:
    """The order at which most such events fit under the cap."""
    if cap_epsilon == INFINITY or event.z == 0:
        return 2

    def fitting(order: int) -> float:
        room = float(cap_epsilon) - conversion(order, cap_delta)
        divergence = renyi(event, order)
        count = room / divergence if divergence else math.copysign(math.inf, room)
        return float(f"{count:.5e}")

    # `max` gives the first of those that are equal, which is the smallest order.
    return max(ORDERS, key=fitting)


@functools.cache
def pld_epsilon(
    event: Event, charges: int, registered: int, delta: Decimal
) -> float | None:
    """Epsilon by the privacy loss distribution; None without `dp-accounting`."""
    loss, registered = 1e-14 + 1e-15 * charges, max(charges, registered)
    renyi_epsilon = rdp_epsilon({event: charges}, delta, ORDERS)
    if registered > 10**6 or renyi_epsilon > 1e8 or loss > float(delta) / 2:
        return math.inf
    try:
        from dp_accounting.pld import (  # noqa: PLC0415 - it may be absent
            privacy_loss_distribution as pld,
        )
    except ImportError:
        return None
    whole = rdp_epsilon({event: registered}, delta, ORDERS)
    grid = min(5e-4, max(1e-5, math.sqrt(1e-5 / registered)))
    one = pld.from_gaussian_mechanism(
        standard_deviation=event.z,
        sampling_prob=event.rate,
        value_discretization_interval=max(grid, 2e-6 * whole),
        pessimistic_estimate=True,
        use_connect_dots=True,
        neighboring_relation=pld.NeighborRel.ADD_OR_REMOVE_ONE,
    )
    composed = one.self_compose(charges)
    epsilon = composed.get_epsilon_for_delta(float(delta) - loss) + 1e-12
    return epsilon if epsilon <= renyi_epsilon * 1.001 + 1e-3 else math.inf


def rounded_up(exact: float) -> Decimal:
    """Six decimals; what the form has no digits for is infinite."""
    if not exact < 1e18:
        return INFINITY
    six = Decimal("0.000001")
    return Decimal(exact).quantize(six, ROUND_CEILING, Context(prec=60))


def agrees(recorded: str, exact: float, tolerance: float = 0.0) -> bool:
    """Whether a figure is recorded as it comes out, but for the errors of doubles."""
    slack = 1e-10 + (1e-12 + tolerance) * exact if exact < math.inf else 0.0
    low, high = rounded_up(max(0.0, exact - slack)), rounded_up(exact + slack)
    return low <= Decimal(recorded) <= high


def claim_of(spend: Record) -> str:
    """Which of its two epsilons counts."""
    return "rdp" if spend["epsilon_pld"] == "infinity" else "pld"


def claimed(spend: Record) -> Decimal:
    """The epsilon that a spend or a lifetime claims."""
    return Decimal(spend[f"epsilon_{spend.get('claimed', claim_of(spend))}"])


def same_spend(first: Record, second: Record) -> bool:
    """Whether two say the same; a delta is compared as a number."""
    rest = {"delta": None}
    same_delta = Decimal(first["delta"]) == Decimal(second["delta"])
    return same_delta and first | rest == second | rest


# --- One ledger: rules 1 to 10 --------------------------------------------------------

# What must hold, the rule (or, beside another ledger, the line), and what is wrong.
Checks = Iterator[tuple[object, int, str]]
MOST_CLIENTS = 200
PLAN = {
    name: form for name, form in EVENT.items() if name != "sampling_rate"
} | _fields(
    "text unit trust; positive rounds local_steps modulus_bits min_survivors; "
    "count colluders; number epsilon delta"
)


def check_plan(plan: Record) -> None:
    """Rule 3, what concerns the plan alone; without it nothing else can be checked."""
    require(plan.get("format") == "fgrpo-secure/plan/1", 3, "another format of plan")
    for name, form in PLAN.items():
        require(FORMS[form](plan.get(name)), 3, f"the plan's {name} is no {form}")
    clients = plan.get("clients")
    require(isinstance(clients, list) and clients, 3, "the plan has no clients")
    require(len(clients) <= MOST_CLIENTS, 3, "the plan has too many clients")
    require(all(isinstance(c, dict) for c in clients), 3, "a client is no object")
    rates = [client.get("sampling_rate") for client in clients]
    require(all(map(FORMS["rate"], rates)), 3, "a client's sampling_rate is no rate")
    names = [client.get("name") for client in clients]
    require(FORMS["names"](names), 3, "the plan's clients are not sorted names")
    epsilon, delta = Decimal(plan["epsilon"]), Decimal(plan["delta"])
    require(epsilon > 0 and 0 < delta < 1, 3, "epsilon or delta is out of range")
    require(plan["trust"] in {"distributed", "local"}, 3, "a trust that is none")
    steps = (plan["local_steps"], plan["inner_steps"])
    require(plan["trust"] == "local" or steps == (1, 1), 3, "steps without local trust")


NOTHING: Record = {"charges": 0, "epsilon_pld": "0", "epsilon_rdp": "0"}


class Attempt(dict[int, Record]):
    """What one ledger says of one attempt: its records by their line."""

    def find(self, *kinds: str) -> tuple[int, Record]:
        """The last record of these kinds; without one, an empty one at the end."""
        found = [item for item in self.items() if item[1]["kind"] in kinds]
        return found[-1] if found else (max(self, default=0), {})

    def said(self, kind: str, name: str) -> Any:  # noqa: ANN401 - JSON
        """What the record of a kind has; None where there is no such record."""
        return self.find(kind)[1].get(name)


class Run:
    """What one ledger says of one run."""

    def __init__(self, opened: Record, party: str) -> None:
        self.opened, plan = opened, opened["plan"]
        self.plan: Record = plan
        self.handle: str = opened["run"]
        self.rates = {each["name"]: each["sampling_rate"] for each in plan["clients"]}
        terms = {name: plan[name] for name in EVENT if name != "sampling_rate"}
        self.charge = terms | {"sampling_rate": self.rates.get(party, "1/1")}
        self.event = Event.of(self.charge)
        self.delta = Decimal(plan["delta"])
        self.registered = plan["rounds"] * plan["local_steps"]
        self.attempts: dict[tuple[int, int], Attempt] = {}
        self.begun = (0, 0)
        # Of attempts without a sum after which other cohorts moved the adapter.
        self.moves: dict[tuple[int, int], tuple[int, Record]] = {}
        self.outcomes: Counter[str] = Counter()
        self.charges = 0
        self.spend: Record = NOTHING | {"delta": plan["delta"]}
        self.adapter: str | None = None
        self.cosigned: dict[int, tuple[int, str]] = {}
        self.disputed: list[int] = []
        self.last_line, self.closed = 0, False


class Ledger:
    """One party's ledger, read from its first line to its last."""

    def __init__(self, file: str, party: str, key: bytes, tolerance: float) -> None:
        self.file, self.party, self.key, self.tolerance = file, party, key, tolerance
        self.role = "server" if party == SERVER else "client"
        self.findings: list[Finding] = []
        self.heads: list[str] = []
        self.lines: list[bytes] = []
        self.runs: list[Run] = []
        self.phase, self.before = "closed", ""
        self.charged: Counter[Event] = Counter()
        self.lifetime: Record = {}
        self.distrusted: set[str] = set()
        # Checkpoints that a server's key signed: key, origin, size, root, own line.
        self.checkpoints: list[tuple[str, str, int, str, int]] = []
        self.whole = self.without_pld = False

    def read(self, data: bytes, *, unfinished: bool) -> None:
        """Check all lines. Stops at one that cannot be trusted as a line."""
        try:
            *lines, rest = data.split(b"\n")
            for line in lines:
                record = open_line(line, self.key)
                check_form(record, self.role)
                self._take(record)
                self.heads.append(head_of(line))
                self.lines.append(line)
            require(not rest, 1, "the last line has no newline")
            require(lines, 1, "the ledger is empty")
        except BrokenError as error:
            self._note(len(self.heads) + 1, error.rule, str(error))
            return
        self.whole = True
        if self.phase != "closed" and not unfinished:
            self._note(len(self.heads), 10, "the last line is not `closed`")

    @property
    def run(self) -> Run:
        """The run that was opened last."""
        return self.runs[-1]

    def _note(self, line: int, rule: int, text: str) -> None:
        self.findings.append(Finding(self.file, line, rule, text))

    def _take(self, record: Record) -> None:
        """Rules 1 and 2; then what the kind asks for, with the history before it."""
        line, kind = len(self.heads) + 1, record["kind"]
        require(record["seq"] == line - 1, 1, "`seq` does not count on")
        prev = self.heads[-1] if self.heads else "0" * 64
        require(record["prev"] == prev, 1, "`prev` is not the head of the line before")
        require(record["party"] == self.party, 2, "the line is another party's")
        require(record["role"] == self.role, 2, "the line is of another role")
        if kind == "declined":
            self._declined(record)
            return
        row = dict(step.split(":") for step in STEPS[self.role][self.phase].split())
        require(kind in row, 2, f"`{kind}` may not follow here ({self.phase})")
        if kind == "opened":
            require(self.role == "client" or not self.runs, 2, "the server opens once")
            known = {run.handle for run in self.runs}
            require(record["run"] not in known, 2, "the run was opened before")
        else:
            require(record["run"] == self.run.handle, 2, "the line is of another run")
        for holds, rule, text in getattr(self, f"_{kind}")(record):
            if not holds:
                self._note(line, rule, text)
        if kind != "opened" and self.phase != "idle":
            self.run.attempts[self.run.begun][line] = record
        self.run.last_line = line
        self.phase, self.before = row[kind], kind

    def _declined(self, record: Record) -> None:
        """Rule 9: a run that this ledger does not open, and that changes nothing."""
        line, self.before = len(self.heads) + 1, "declined"
        if plan_digest(record["plan"]) != record["plan_digest"]:
            self._note(line, 9, "another plan_digest than of the plan declined")
        if record["roster"].get(self.party) != self.key.hex():
            self._note(line, 9, "the roster has another key for this party")

    def _opened(self, record: Record) -> Checks:
        plan, roster = record["plan"], record["roster"]
        check_plan(plan)
        run = Run(record, self.party)
        self.runs.append(run)
        own = roster.get(self.party) == self.key.hex()
        yield plan_digest(plan) == record["plan_digest"], 3, "another plan_digest"
        yield set(roster) == {*run.rates, SERVER}, 3, "the roster is not the plan's"
        yield own, 3, "the roster has another key for this party"
        if self.role == "client":
            require(self.party in run.rates, 3, "the plan does not have this client")
            yield from self._caps(record)

    def _caps(self, record: Record) -> Checks:
        """Rule 3, what holds from run to run."""
        first, before = self.runs[0], self.runs[max(0, len(self.runs) - 2)].opened
        cap, delta = Decimal(record["cap_epsilon"]), Decimal(record["cap_delta"])
        require(0 < delta < 1, 3, "cap_delta is out of range")
        for name in ("data", "cap_delta", "cap_order"):
            yield record[name] == before[name], 3, f"{name} changed from run to run"
        same_unit = record["plan"]["unit"] == before["plan"]["unit"]
        yield same_unit, 3, "the plan's unit changed from run to run"
        finite = Decimal(before["cap_epsilon"]) < INFINITY
        yield cap < INFINITY or not finite, 3, "cap_epsilon became infinity"
        if len(self.runs) == 1:
            order = filter_order(first.event, cap, delta)
            yield record["cap_order"] == order, 3, f"cap_order comes out as {order}"
        else:
            registered = {first.event: first.registered}
            passes = rounded_up(rdp_epsilon(registered, delta, [record["cap_order"]]))
            yield passes <= cap, 3, "the first run as registered is above cap_epsilon"

    def _joined(self, record: Record) -> Checks:
        yield from self._trusted(record)
        yield from self._begin(record)

    def _begin(self, record: Record) -> Checks:
        number = (record["round"], record["attempt"])
        yield number > self.run.begun, 4, "the round and attempt do not rise"
        yield number[0] <= self.run.plan["rounds"], 4, "the plan has fewer rounds"
        self.run.begun = number
        self.run.attempts[number] = Attempt({len(self.heads) + 1: record})

    def _round_opened(self, record: Record) -> Checks:
        yield from self._begin(record)
        same = self.run.adapter in {None, record["adapter_digest"]}
        yield same, 4, "the adapter is not the one that was published last"

    def _place(self, record: Record) -> Checks:
        same = (record["round"], record["attempt"]) == self.run.begun
        yield same, 4, "the line is of another attempt than the one begun"

    def _shown(self, record: Record) -> Checks:
        yield from self._place(record)
        before = self.run.attempts[self.run.begun].find("shown")[1]
        yield not before, 6, "what was shown of an attempt is written twice"

    def _intent(self, record: Record) -> Checks:
        yield from self._place(record)
        run, releases = self.run, record["releases"]
        same = releases == run.plan["local_steps"]
        yield record["event"] == run.charge, 5, "the event is not the plan's"
        yield same, 5, "releases is not the plan's local_steps"
        run.charges += releases
        self.charged[run.event] += releases
        run.spend, self.lifetime = record["spend"], record["lifetime"]
        one, total = {run.event: run.charges}, sum(self.charged.values())
        rdp = rdp_epsilon(one, run.delta, ORDERS)
        pld = pld_epsilon(run.event, run.charges, run.registered, run.delta)
        yield from self._figures("spend", run.charges, run.delta, rdp, pld)
        delta, order = Decimal(run.opened["cap_delta"]), run.opened["cap_order"]
        rdp = rdp_epsilon(self.charged, delta, [order])
        pld = pld_epsilon(run.event, run.charges, run.registered, delta)
        if len(self.runs) > 1:
            pld = math.inf
        yield from self._figures("lifetime", total, delta, rdp, pld)
        claims = self.lifetime["claimed"] == claim_of(self.lifetime)
        most, cap = Decimal(run.plan["epsilon"]), Decimal(run.opened["cap_epsilon"])
        yield claims, 5, "lifetime claims the wrong one of its epsilons"
        yield run.charges <= run.registered, 5, "more than the plan registers"
        yield claimed(run.spend) <= most, 5, "the run's epsilon is above the plan's"
        yield claimed(self.lifetime) <= cap, 5, "the lifetime is above cap_epsilon"

    def _figures(
        self, name: str, charges: int, delta: Decimal, rdp: float, pld: float | None
    ) -> Checks:
        """Rule 5, the figures of a spend or a lifetime."""
        spend = self.run.spend if name == "spend" else self.lifetime
        yield spend["charges"] == charges, 5, f"{name}.charges is not what was charged"
        yield Decimal(spend["delta"]) == delta, 5, f"{name}.delta is another"
        same = agrees(spend["epsilon_rdp"], rdp)
        yield same, 5, f"{name}.epsilon_rdp comes out as {rounded_up(rdp)}"
        if pld is None:
            self.without_pld = True
        else:
            same = agrees(spend["epsilon_pld"], pld, self.tolerance)
            yield same, 5, f"{name}.epsilon_pld comes out as {rounded_up(pld)}"

    def _commit(self, record: Record) -> Checks:
        yield from self._place(record)
        same = record["modulus_bits"] == self.run.plan["modulus_bits"]
        yield same, 6, "modulus_bits is not the plan's"

    def _outcome(self, record: Record) -> Checks:
        yield from self._place(record)
        status, survivors = record["status"], record["survivors"]
        self.run.outcomes[status] += 1
        sums = [bool(survivors), record["adapter_digest"], record["transcript"]]
        told = [*sums, record["server_head"]]
        fits = {
            "published": all(told),
            "missed": all(told) or not any(told),
            "aborted": not any(sums),
        }
        reason = (record["reason"] is None) == (status == "published")
        known = self.run.rates.keys() >= set(survivors)
        enough = not survivors or len(survivors) >= self.run.plan["min_survivors"]
        sent = status != "published" or self.phase == "committed"
        named = (self.party in survivors) == (status == "published")
        yield fits[status], 7, f"`{status}` says too much or too little of the sum"
        yield reason, 7, f"`{status}` has a reason, or has none, wrongly"
        yield known, 7, "a survivor is no client of the plan"
        yield enough, 7, "fewer survivors than the plan's least"
        yield sent, 7, "published without a commit"
        yield named, 7, f"`{status}`, and survivors say otherwise of this client"

    def _roster(self, record: Record) -> Checks:
        yield from self._place(record)
        known = self.run.rates.keys() >= set(record["members"])
        yield known, 8, "a member is no client of the plan"

    def _survivors(self, record: Record) -> Checks:
        yield from self._place(record)
        members = set(self.run.attempts[self.run.begun].said("roster", "members"))
        survivors, sharers = set(record["survivors"]), set(record["sharers"])
        threshold = (len(members) + self.run.plan["colluders"]) // 2 + 1
        enough = len(survivors) >= max(threshold, self.run.plan["min_survivors"])
        yield survivors <= sharers, 8, "survivors are not within sharers"
        yield sharers <= members, 8, "sharers are not within members"
        yield enough, 8, "too few survivors"

    def _published(self, record: Record) -> Checks:
        yield from self._place(record)
        self.run.outcomes["published"] += 1
        self.run.adapter = record["adapter_after"]
        attempt = self.run.attempts[self.run.begun]
        survivors = attempt.said("survivors", "survivors")
        members = set(attempt.said("roster", "members"))
        before = attempt.said("round_opened", "adapter_digest")
        yield record["survivors"] == survivors, 8, "other survivors than were counted"
        yield set(record["heads"]) <= members, 8, "a head of a client outside roster"
        yield record["adapter_before"] == before, 8, "the round opened with another"

    def _aborted(self, record: Record) -> Checks:
        yield from self._place(record)
        self.run.outcomes["aborted"] += 1
        known = self.run.rates.keys() >= set(record["dropouts"])
        yield known, 8, "a dropout is no client of the plan"

    def _moved(self, record: Record) -> Checks:
        yield from self._place(record)
        begun = self.run.begun
        attempt = self.run.attempts.get(begun, Attempt({}))
        before = attempt.said("round_opened", "adapter_digest")
        same = self.run.adapter in {None, record["adapter_before"]}
        left_out = attempt.find("aborted")[1] and begun not in self.run.moves
        yield left_out, 8, "`moved`, and no attempt was just aborted"
        yield record["adapter_before"] == before, 8, "the round opened with another"
        yield same, 8, "the adapter was moved from another than the last"
        self.run.adapter = record["adapter_after"]
        self.run.moves[begun] = (len(self.heads) + 1, record)

    def _refused(self, record: Record) -> Checks:
        both = (record["round"] == 0) == (record["attempt"] == 0)
        yield both, 9, "only one of round and attempt is 0"
        if record["reason"] == "equivocation":
            self.distrusted.add(self.run.opened["roster"].get(SERVER, ""))

    def _trusted(self, record: Record) -> Checks:
        trusted = self.run.opened["roster"].get(SERVER) not in self.distrusted
        yield trusted, 8, f"`{record['kind']}` after the server signed two histories"

    def _checkpoint(self, record: Record) -> Checks:
        server, origin = (
            self.run.opened["roster"].get(SERVER, ""),
            origin_of(record["run"]),
        )
        text = checkpoint_text(origin, record["size"], record["root"])
        signature = bytes.fromhex(record["signature"])
        signed = is_signed(bytes.fromhex(server), signature, text)
        yield signed, 8, "the server did not sign this checkpoint"
        here = (server, origin, record["size"], record["root"], len(self.heads) + 1)
        self.checkpoints += [here] if signed else []

    def _cosigned(self, record: Record) -> Checks:
        yield from self._trusted(record)
        yield from self._checkpoint(record)
        rises = record["size"] > max(self.run.cosigned, default=0)
        yield rises, 8, "the size is not above the one cosigned before"
        self.run.cosigned[record["size"]] = (len(self.heads) + 1, record["root"])

    def _disputed(self, record: Record) -> Checks:
        yield from self._checkpoint(record)
        self.run.disputed.append(len(self.heads) + 1)

    def _resumed(self, record: Record) -> Checks:
        begun = (record["round"], record["attempt"]) == self.run.begun
        yield record["last"] == self.before, 9, "`last` is not the line before"
        yield begun, 9, "another attempt was begun last"

    def _closed(self, record: Record) -> Checks:
        run, outcomes = self.run, self.run.outcomes
        run.closed = True
        lines = len(self.heads) + 1
        yield record["records"] == lines, 9, "records is not the number of lines"
        for status in ("published", "aborted", "missed"):
            same = record.get(status, 0) == outcomes[status]
            yield same, 9, f"the number of {status} is not the true one"
        if self.role == "client":
            life = self.lifetime or NOTHING | {"delta": run.opened["cap_delta"]}
            if len(self.runs) > 1:
                life = life | {"epsilon_pld": "infinity"}
            life = life | {"claimed": claim_of(life)}
            same = same_spend(record["lifetime"], life)
            last = same_spend(record["spend"], run.spend)
            yield last, 9, "spend is not that of the run's last intent"
            yield same, 9, "lifetime is not that of the last intent"


# --- Two accounts of one round: rule 13 -----------------------------------------------


def compare(server: Ledger, client: Ledger, ours: Run, *, unfinished: bool) -> Checks:
    """Rule 13 for one client: what does not hold, by the client's line."""
    theirs = server.run
    for number, wrote in ours.attempts.items():
        known = number in theirs.attempts
        yield known, min(wrote), "the server's ledger does not have this attempt"
    for number, told in theirs.attempts.items():
        wrote = ours.attempts.get(number)
        survived = client.party in (told.said("survivors", "survivors") or [])
        if wrote is None:
            away = client.party not in (told.said("roster", "members") or [])
            yield away, 0, f"it never joined round {number[0]}, whose roster it is in"
            continue
        yield from compare_charge(client, told, wrote, survived=survived)
        line, outcome = wrote.find("outcome")
        yield outcome or unfinished, line, "an attempt without an outcome"
        if outcome:
            end_line, end = told.find("published", "aborted")
            heads = server.heads[end_line - 1 :] if end else []
            for holds, text in compare_outcome(outcome, end, heads):
                yield holds, line, text


def compare_charge(
    client: Ledger, told: Attempt, wrote: Attempt, *, survived: bool
) -> Checks:
    """Rule 13: what was joined, shown, charged and committed, beside the server's."""
    line, joined = wrote.find("joined")
    for name in ("offer_digest", "adapter_digest"):
        same = joined[name] == told.said("round_opened", name)
        yield same, line, f"{name} is not the server's"
    line, shown = wrote.find("shown")
    end = told.find("published", "aborted")[1]
    for kind, name in (("roster", "roster_hash"), ("survivors", "sharers_hash")):
        # The roster was written before it was shown, and the sharers after it.
        late = not told.find(kind)[1] and (kind == "survivors" or not end)
        same = not shown or late or told.said(kind, name) == shown[name]
        yield same, line, f"{name} is not the server's"
    line, sent = wrote.find("intent", "commit")
    for kind, name in (("roster", "members"), ("survivors", "sharers")):
        among = not told.find(kind)[1] or client.party in told.said(kind, name)
        yield among or not sent, line, f"charged, and not among the server's {name}"
    committed = wrote.find("commit")[1]
    yield committed or not survived, line, "counted by the server without a commit"
    head = (told.said("published", "heads") or {}).get(client.party)
    own = {client.heads[at - 1] for at in wrote if wrote[at]["kind"] != "outcome"}
    known = head is None or head in own
    yield known, min(wrote), "the head that the server received is of no line here"


def compare_outcome(
    outcome: Record, end: Record, heads: list[str]
) -> Iterator[tuple[object, str]]:
    """Rule 13: a client's outcome beside the record that ends the attempt."""
    published, status = end.get("kind") == "published", outcome["status"]
    if outcome["survivors"]:
        names = ("survivors", "adapter_digest", "transcript")
        wrote = [outcome[name] for name in names]
        told = [end.get(name) for name in ("survivors", "adapter_after", "transcript")]
        yield wrote == told, "survivors, adapter or transcript are not the server's"
    yield status != "aborted" or not published, "aborted, and the server published"
    head, reports = outcome["server_head"], heads[:1] if status == "aborted" else heads
    yield head is None or head in reports, "server_head is of no line that reports this"


# --- The folder: rules 11, 12, 14 and 16 ----------------------------------------------


def same_number(value: object, true: Decimal) -> bool:
    """Whether a JSON number is this decimal, or the double nearest to it."""
    if true == INFINITY:
        return value is None or value == "infinity"
    if type(value) not in {int, Decimal}:
        return False
    try:
        return value == true or float(value) == float(true)
    except OverflowError:
        return False


MOST_LEDGER_BYTES, MOST_FILE_BYTES = 2**30, 2**24


class Folder:
    """A run's folder, or that of one of its cohorts."""

    def __init__(
        self, path: Path, *, unfinished: bool, tolerance: float, cohort: bool = False
    ) -> None:
        self.path, self.unfinished, self.tolerance = path, unfinished, tolerance
        self.cohort = cohort
        self.findings: list[Finding] = []
        self.keys: dict[str, bytes] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.plan: Record = {}
        # Those of the ledgers and notes, each with its file and line.
        self.checkpoints: list[tuple[str, str, int, str, str, int]] = []

    def check(self) -> None:
        """Check everything that can be checked."""
        try:
            plan = parse(self._bytes("plan.json"), 11)
            require(isinstance(plan, dict), 11, "the plan is no object")
            canonical(plan, 11)
            check_plan(plan)
            self.plan = plan
        except BrokenError as error:
            self._note("plan.json", 0, error.rule, str(error))
            return
        clients = [client["name"] for client in self.plan["clients"]]
        self._list([SERVER, *clients])
        for party in (SERVER, *clients):
            try:
                self._read(party)
            except BrokenError as error:
                self._note(f"ledger/{party}.jsonl", 0, error.rule, str(error))
        if SERVER in self.ledgers and self.ledgers[SERVER].whole:
            for ledger in self.ledgers.values():
                if ledger.whole:
                    self._same_run(ledger)
            self._log(self.ledgers[SERVER])
            if not self.cohort:
                self._unexplained(self.ledgers[SERVER])
        summary = self.path / "summary.json"
        if not self.findings and (summary.exists() or not self.unfinished):
            for holds, text in self._summary():
                if not holds:
                    self._note("summary.json", 0, 16, text)

    def run_of(self, ledger: Ledger) -> Run | None:
        """The part of a ledger that is of the server's run."""
        server = self.ledgers.get(SERVER)
        handles = {run.handle for run in server.runs} if server else set()
        return next((run for run in ledger.runs if run.handle in handles), None)

    def _note(self, file: str, line: int, rule: int, text: str) -> None:
        self.findings.append(Finding(file, line, rule, text))

    def _bytes(self, name: str) -> bytes:
        path = self.path / name
        require(path.is_file(), 11, f"{name} is missing, or no file")
        most = MOST_LEDGER_BYTES if name.endswith(".jsonl") else MOST_FILE_BYTES
        require(path.stat().st_size <= most, 11, f"{name} is larger than {most} bytes")
        return path.read_bytes()

    def _list(self, parties: list[str]) -> None:
        """Rule 11: no file too many. One too few is found when it is read."""
        ledgers = {f"ledger/{party}.jsonl" for party in parties}
        expected = {f"keys/{party}.pub" for party in parties}
        expected |= ledgers | {f"{name}.head" for name in ledgers}
        expected |= {"ledger/log", "ledger/checkpoint"}
        for folder in ("keys", "ledger"):
            for name in sorted(path.name for path in (self.path / folder).glob("*")):
                if f"{folder}/{name}" not in expected:
                    self._note(f"{folder}/{name}", 0, 11, "a file of no party")

    def _read(self, party: str) -> None:
        """Rule 11: the key, the ledger and the remembered head of a party."""
        text = self._bytes(f"keys/{party}.pub")
        require(re.fullmatch(b"[0-9a-f]{64}\n", text), 11, "keys/: no 64 hex digits")
        key = bytes.fromhex(text.decode())
        require(usable_key(key), 11, "keys/: no Ed25519 key, or one of low order")
        self.keys[party] = key
        name = f"ledger/{party}.jsonl"
        ledger = Ledger(name, party, key, self.tolerance)
        ledger.read(self._bytes(name), unfinished=self.unfinished)
        self.ledgers[party] = ledger
        self.findings += ledger.findings
        self.checkpoints += [(*at[:4], name, at[4]) for at in ledger.checkpoints]
        if ledger.whole and (self.path / f"{name}.head").exists():
            remembered, heads = self._bytes(f"{name}.head"), ["0" * 64, *ledger.heads]
            ends = [
                canonical({"head": head, "records": count}) + b"\n"
                for count, head in list(enumerate(heads))[-2:]
            ]
            if remembered not in (ends if self.unfinished else ends[1:]):
                self._note(f"{name}.head", 0, 11, "it remembers another end")

    def _same_run(self, ledger: Ledger) -> None:
        """Rules 12 and 13."""
        run, server = self.run_of(ledger), self.ledgers[SERVER]
        if run is None:
            self._note(ledger.file, 0, 12, "the server's run is not in it")
            return
        if run.opened["plan_digest"] != plan_digest(self.plan):
            self._note(ledger.file, 0, 12, "another plan than plan.json")
        if run.opened["roster"] != {name: key.hex() for name, key in self.keys.items()}:
            self._note(ledger.file, 0, 12, "another roster than keys/")
        if not (run.closed or self.unfinished or run is ledger.run):
            self._note(ledger.file, run.last_line, 12, "the run is not closed")
        if ledger is not server:
            may = self.unfinished
            for holds, line, text in compare(server, ledger, run, unfinished=may):
                if not holds:
                    self._note(ledger.file, line, 13, text)

    def _unexplained(self, server: Ledger) -> None:
        """Rule 19, where no cohorts are checked beside this one."""
        for line, _ in server.run.moves.values():
            text = "moved by cohorts that are not here; check the whole run's folder"
            self._note(server.file, line, 19, text)

    def _log(self, server: Ledger) -> None:
        """Rule 14; for rule 15 the root at every size, since each line is signed."""
        roots, notes, log = roots_of(server.lines), {}, self.path / "ledger/log"
        origin, key = origin_of(server.run.handle), server.key.hex()
        for size, root in enumerate(roots[1:], start=1):
            self.checkpoints.append((key, origin, size, root, server.file, size))
        files = [f"ledger/log/{path.name}" for path in log.glob("*")]
        if self.unfinished:
            files = [file for file in files if not file.endswith(".tmp")]
        if log.exists() and not log.is_dir():
            self._note("ledger/log", 0, 14, "no folder")
        checkpoint = "ledger/checkpoint"
        there = (self.path / checkpoint).exists()
        for file in [*sorted(files), *([checkpoint] if there else [])]:
            try:
                note = parse_note(self._bytes(file))
                notes[file] = note
                named = file in {checkpoint, f"ledger/log/{note.size}.note"}
                require(named, 14, "its name is not its size")
                self._signatures(note, file)
                known = note.size < len(roots) and roots[note.size] == note.root
                require(known, 14, "not the root of the server's ledger")
            except BrokenError as error:
                self._note(file, 0, error.rule, str(error))
        largest = max((note.size for note in notes.values()), default=0)
        last = f"ledger/log/{largest}.note"
        if not self.unfinished and (largest or there):
            both = last in notes and checkpoint in notes
            if not both or self._bytes(last) != self._bytes(checkpoint):
                self._note(checkpoint, 0, 14, "not the note of the largest size")
        for client in self.ledgers.values():
            run = self.run_of(client) if client.whole else None
            for size, (line, root) in run.cosigned.items() if run else ():
                if size >= len(roots) or roots[size] != root:
                    self._note(
                        client.file, line, 14, "cosigned what the server has not"
                    )
                if size > largest:
                    self._note(client.file, line, 14, "cosigned beyond the last note")
            for line in run.disputed if run else ():
                self._note(
                    client.file, line, 14, "the client disputes the server's log"
                )

    def _signatures(self, note: Note, file: str) -> None:
        """Rule 14: whose signatures a note has."""
        origin = origin_of(self.ledgers[SERVER].run.handle)
        require(note.origin == origin, 14, "the note of another run")
        names = {n: key for n, key in self.keys.items() if n != SERVER}
        signed = set()
        for name, short, signature in note.signatures:
            party = SERVER if name == origin else name
            key = names.get(name) if party == name else self.keys[SERVER]
            if key is None or (party == SERVER and short != key_id(name, key)):
                continue
            own = short == key_id(name, key) and is_signed(key, signature, note.text)
            require(own, 14, f"a signature that is not {party}'s")
            signed.add(party)
            ledger = self.ledgers.get(party)
            run = self.run_of(ledger) if ledger and ledger.whole else None
            if party != SERVER and run:
                _, root = run.cosigned.get(note.size, (0, None))
                require(root == note.root, 14, f"{party}'s ledger did not cosign this")
        require(SERVER in signed, 14, "the server did not sign this note")
        server = self.keys[SERVER].hex()
        self.checkpoints.append((server, origin, note.size, note.root, file, 0))

    def spends(self) -> dict[str, Decimal]:
        """What each client claims to have spent in this run."""
        clients = {n: each for n, each in self.ledgers.items() if each.role == "client"}
        runs = {name: self.run_of(each) for name, each in clients.items()}
        return {name: claimed(run.spend) for name, run in runs.items() if run}

    def last_survivors(self) -> list[str]:
        """The clients in the last sum, none without one."""
        attempts = self.ledgers[SERVER].run.attempts.values()
        sums = [each.said("published", "survivors") for each in attempts]
        return next((names for names in reversed(sums) if names), [])

    def _summary(self) -> Iterator[tuple[object, str]]:
        """Rule 16."""
        outcomes = self.ledgers[SERVER].run.outcomes
        true = {
            "delta": Decimal(self.plan["delta"]),
            "target_epsilon": Decimal(self.plan["epsilon"]),
            "rounds_completed": Decimal(outcomes["published"]),
            "rounds_aborted": Decimal(outcomes["aborted"]),
        }
        repeated = {
            "plan_digest": plan_digest(self.plan),
            "survivors": self.last_survivors(),
        }
        try:
            yield from compare_summary(
                self._bytes("summary.json"), true, repeated, self.spends()
            )
        except BrokenError as error:
            yield False, str(error)


def compare_summary(
    data: bytes,
    true: Mapping[str, Decimal],
    repeated: Mapping[str, object],
    spends: Mapping[str, Decimal],
) -> Iterator[tuple[object, str]]:
    """Rules 16 and 20: what a summary must say, and what it need not repeat."""
    told = parse(data, 16, Decimal)
    require(isinstance(told, dict), 16, "no object")
    for name, value in {"epsilon": max(spends.values()), **true}.items():
        yield same_number(told.get(name), value), f"{name} is not {value}"
    clients = told.get("clients")
    entries = clients if isinstance(clients, list) else [{}]
    objects = [e for e in entries if isinstance(e, dict)]
    named = {e["name"]: e for e in objects if isinstance(e.get("name"), str)}
    once = set(named) == set(spends) and len(entries) == len(spends)
    yield once, "clients does not list each client once"
    for name, entry in named.items() if once else ():
        right = same_number(entry.get("epsilon"), spends[name])
        yield right, f"the epsilon of {name} is not {spends[name]}"
    for name, known in repeated.items():
        yield told.get(name, known) == known, f"{name} is another in the ledgers"


# --- The cohorts of one run: rules 17 to 20 -------------------------------------------

OWN_TERMS = {"clients", "min_survivors", "colluders"}
SERVERS = f"ledger/{SERVER}.jsonl"


def cohorts_in(path: Path) -> list[str]:
    """The names of the folders of a run's cohorts; none where there is only one."""
    return sorted(each.name for each in path.glob("cohort-*") if each.is_dir())


class Federation:
    """The folder of a run with several cohorts."""

    def __init__(self, path: Path, *, unfinished: bool, tolerance: float) -> None:
        self.path, self.unfinished = path, unfinished
        self.findings: list[Finding] = []
        self.cohorts = {
            name: Folder(
                path / name, unfinished=unfinished, tolerance=tolerance, cohort=True
            )
            for name in cohorts_in(path)
        }

    def check(self) -> None:
        """Check each cohort, and if all verify, what joins them."""
        for folder in self.cohorts.values():
            folder.check()
        names = [f"cohort-{place + 1:04d}" for place in range(len(self.cohorts))]
        if len(names) < 2 or names != list(self.cohorts):
            self._note("cohort-*", 0, 17, "not at least two, from 0001 on")
        for name in ("plan.json", "keys", "ledger"):
            if (self.path / name).exists():
                self._note(name, 0, 17, "beside the cohorts")
        if self.findings or any(each.findings for each in self.cohorts.values()):
            return
        self._terms()
        completed, begun = self._steps()
        if (self.path / "summary.json").exists() or not self.unfinished:
            for holds, text in self._summary(completed, begun):
                if not holds:
                    self._note("summary.json", 0, 20, text)

    def _note(self, file: str, line: int, rule: int, text: str) -> None:
        self.findings.append(Finding(file, line, rule, text))

    def _terms(self) -> None:
        """Rule 18."""
        folders = list(self.cohorts.values())
        terms = {
            canonical({n: v for n, v in each.plan.items() if n not in OWN_TERMS})
            for each in folders
        }
        clients = [(n, k) for each in folders for n, k in each.keys.items()]
        clients = [(name, key) for name, key in clients if name != SERVER]
        servers = {each.keys[SERVER] for each in folders}
        keys = {key for _, key in clients} | servers
        handles = {each.ledgers[SERVER].run.handle for each in folders}
        for holds, text in (
            (len(terms) == 1, "the cohorts' plans differ in more than who takes part"),
            (len({n for n, _ in clients}) == len(clients), "a client in two cohorts"),
            (len(servers) == 1, "the cohorts have different servers"),
            (len(keys) == len(clients) + len(servers), "two parties have one key"),
            (len(handles) == len(folders), "two cohorts have one handle"),
        ):
            if not holds:
                self._note("cohort-*", 0, 18, text)

    def _steps(self) -> tuple[int, int]:
        """Rule 19; returns the number of rounds with a step, and of all rounds."""
        starts: dict[int, list[tuple[str, int, str]]] = {}
        steps: dict[int, list[tuple[str, int, str, str]]] = {}
        for name, folder in self.cohorts.items():
            run = folder.ledgers[SERVER].run
            for place, attempt in run.attempts.items():
                line, opened = attempt.find("round_opened")
                told = (name, line, opened["adapter_digest"])
                starts.setdefault(place[0], []).append(told)
                for line, step in (
                    attempt.find("published"),
                    run.moves.get(place, (0, {})),
                ):
                    if step:
                        ended = (name, line, step["adapter_after"], step["kind"])
                        steps.setdefault(place[0], []).append(ended)
        last = max(starts, default=0)
        for number, opened_with in starts.items():
            for name, line, before in opened_with:
                if before != opened_with[0][2]:
                    self._step(name, line, number, "starts from two adapters")
            if number in steps:
                may = self.unfinished and number == last
                self._compare_steps(number, steps[number], unfinished=may)
        return len(steps), len(starts)

    def _compare_steps(
        self, number: int, steps: list[tuple[str, int, str, str]], *, unfinished: bool
    ) -> None:
        """Rule 19 for one round in which the adapter moved."""
        names = [name for name, *_ in steps]
        for name, line, after, _ in steps:
            if after != steps[0][2]:
                self._step(name, line, number, "leads to two adapters")
            if names.count(name) > 1:
                self._step(name, line, number, "moves the adapter twice")
        if unfinished:
            return
        for name in self.cohorts:
            if name not in names:
                self._step(name, 0, number, "moves the adapter, which is not told")
        if not any(kind == "published" for *_, kind in steps):
            self._step(names[0], 0, number, "moves the adapter by no cohort's sum")

    def _step(self, name: str, line: int, number: int, text: str) -> None:
        self._note(f"{name}/{SERVERS}", line, 19, f"round {number} {text}")

    def _summary(self, completed: int, begun: int) -> Iterator[tuple[object, str]]:
        """Rule 20."""
        plan = next(iter(self.cohorts.values())).plan
        true = {
            "delta": Decimal(plan["delta"]),
            "target_epsilon": Decimal(plan["epsilon"]),
            "rounds_completed": Decimal(completed),
            "rounds_aborted": Decimal(begun - completed),
        }
        repeated = {
            "cohorts": [
                {"folder": name, "plan_digest": plan_digest(each.plan)}
                for name, each in self.cohorts.items()
            ],
            "survivors": [
                name for each in self.cohorts.values() for name in each.last_survivors()
            ],
        }
        spends = {
            name: spent
            for each in self.cohorts.values()
            for name, spent in each.spends().items()
        }
        path = self.path / "summary.json"
        try:
            require(path.is_file(), 20, "missing, or no file")
            yield from compare_summary(path.read_bytes(), true, repeated, spends)
        except BrokenError as error:
            yield False, str(error)


# --- Several folders: rule 15 ---------------------------------------------------------


def find_split_views(folders: list[Folder]) -> None:
    """Rule 15: one server key signed one root for each size of a log.

    Of two files that part ways, and so differ at every larger size, one line is named.
    """
    roots: dict[tuple[str, str, int], tuple[str, str, str]] = {}
    named = set()
    for folder in folders:
        for key, origin, size, root, file, line in folder.checkpoints:
            path = f"{folder.path}/{file}"
            place = f"{path}:{line}" if line else path
            held = roots.setdefault((key, origin, size), (root, path, place))
            known, other, where = held
            if root != known and (path, other) not in named:
                named.add((path, other))
                text = f"the server signed another root for {size} lines in {where}"
                folder.findings.append(Finding(file, line, 15, text))


# --- The command ----------------------------------------------------------------------


def report_all(run: Federation) -> Record:
    """What an auditor reads of what joins cohorts, in the form of `report`."""
    return {
        "folder": str(run.path),
        "verified": not run.findings
        and not any(each.findings for each in run.cohorts.values()),
        "findings": [asdict(finding) for finding in run.findings],
        "notes": [f"a run of {len(run.cohorts)} cohorts"],
        "delta": None,
        "parties": {},
    }


def report(folder: Folder) -> Record:
    """What an auditor reads of one folder, as an object."""
    notes = []
    if any(ledger.without_pld for ledger in folder.ledgers.values()):
        notes.append(
            "epsilon_pld was not computed again, since dp-accounting is not installed; "
            "epsilon_rdp was"
        )
    if folder.unfinished:
        notes.append("the run was taken as unfinished: its ledgers may end early")
    parties = {}
    spends = folder.spends()
    for name, ledger in folder.ledgers.items():
        run = folder.run_of(ledger)
        parties[name] = {
            "key": fingerprint(folder.keys[name]),
            "lines": len(ledger.heads),
            "epsilon": str(spends[name]) if name in spends else None,
            "cosigned": max(run.cosigned, default=0) if run else 0,
        }
    return {
        "folder": str(folder.path),
        "verified": not folder.findings,
        "findings": [asdict(finding) for finding in folder.findings],
        "notes": notes,
        "delta": folder.plan.get("delta"),
        "parties": parties,
    }


def printable(line: str) -> str:
    """A line for a terminal, in which the name of a file can do nothing else."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def words(told: Record) -> str:
    """The same for people."""
    return "\n".join(map(printable, _lines(told)))


def _lines(told: Record) -> list[str]:
    lines = []
    for found in told["findings"]:
        place = f"{found['file']}:{found['line']}" if found["line"] else found["file"]
        lines.append(f"{place}: rule {found['rule']}: {found['text']}")
    lines += [f"note: {note}" for note in told["notes"]]
    if not told["verified"]:
        count = len(told["findings"])
        if not count:
            lines.append(f"{told['folder']}: NOT VERIFIED: see its cohorts")
            return lines
        ending = "" if count == 1 else "s"
        lines.append(f"{told['folder']}: NOT VERIFIED: {count} finding{ending}")
        return lines
    for name, party in told["parties"].items():
        lines.append(f"{name}: {party['lines']} lines, key {party['key']}")
        if name != SERVER:
            spent = f"epsilon {party['epsilon']} at delta {told['delta']}"
            lines.append(f"    {spent}; saw {party['cosigned']} lines of the server's")
    lines.append(
        f"{told['folder']}: verified; compare the keys with the parties over another "
        "channel"
    )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Verify folders and say what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="a run's folder, with plan.json, keys/ and ledger/, or with a folder "
        "for each cohort; of several, also "
        "whether a server showed them different histories",
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="a run may be unfinished: no `closed`, and no summary.json",
    )
    parser.add_argument(
        "--pld-tolerance",
        type=float,
        default=1e-3,
        metavar="SHARE",
        help="by how much epsilon_pld may differ, as another implementation of it may "
        "(default: %(default)s); 0 asks for equal digits",
    )
    chosen = parser.parse_args(arguments)
    folders: list[Folder] = []
    checked: list[Folder | Federation] = []
    terms = {"unfinished": chosen.unfinished, "tolerance": chosen.pld_tolerance}
    for path in chosen.folders:
        if not path.is_dir():
            parser.error(f"{path} is no folder; name one that a run has written")
        one = Federation(path, **terms) if cohorts_in(path) else Folder(path, **terms)
        try:
            one.check()
        except OSError as error:
            parser.error(f"{error.filename} cannot be read; get a copy that can be")
        parts = list(one.cohorts.values()) if isinstance(one, Federation) else [one]
        folders += parts
        checked += parts if one in parts else [*parts, one]
    find_split_views(folders)
    told = [
        report_all(one) if isinstance(one, Federation) else report(one)
        for one in checked
    ]
    verified = all(each["verified"] for each in told)
    if chosen.json:
        print(json.dumps({"verified": verified, "folders": told}, indent=2))
    else:
        print("\n".join(map(words, told)))
    return 0 if verified else 1


if __name__ == "__main__":
    sys.exit(main())
