import dataclasses
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import errors
from privacy.errors import MalformedMessageError
from privacy.ledger import (
    Claim,
    Declined,
    Event,
    Intent,
    Joined,
    Lifetime,
    Outcome,
    Reason,
    Refused,
    Role,
    Spend,
    Status,
    commitment,
    reason_of,
)
from privacy.ledger.fields import codecs, decimal_text
from privacy.ledger.payload import KINDS, Header, decode_record, encode_record
from privacy.wire import parse_canonical_json

HEADER = Header(seq=3, prev=bytes(32), party="alpha", role=Role.CLIENT, run=bytes(16))
EVENT = Event(Fraction(1, 50), 1, 1024, 2**22, 16, 4096)
SPEND = Spend(2, Decimal("0.00001"), Decimal("1.5"), Decimal("2.25"))
LIFETIME = Lifetime(5, Decimal("0.00001"), Decimal("3.5"), Decimal("4.75"), Claim.RDP)
INTENT = Intent(2, 1, EVENT, 1, SPEND, LIFETIME)


def payload(record, header=HEADER):
    return parse_canonical_json(encode_record(header, record))


def test_a_record_reads_back_as_it_was_written():
    assert decode_record(payload(INTENT)) == (HEADER, INTENT)


def test_the_payload_of_an_intent_is_these_bytes():
    assert encode_record(HEADER, INTENT) == (
        b'{"attempt":1,"event":{"inner_steps":1,"noise_variance":"4194304",'
        b'"norm_bound":1024,"sampling_rate":"1/50","statistic_norm_bound":16,'
        b'"statistic_variance":"4096"},"kind":"intent","lifetime":{"charges":5,'
        b'"claimed":"rdp","delta":"0.00001","epsilon_pld":"3.5","epsilon_rdp":"4.75"},'
        b'"party":"alpha","prev":"' + b"0" * 64 + b'","releases":1,"role":"client",'
        b'"round":2,"run":"' + b"0" * 32 + b'","seq":3,"spend":{"charges":2,'
        b'"delta":"0.00001","epsilon_pld":"1.5","epsilon_rdp":"2.25"},"v":1}'
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v", 2),
        ("v", True),
        ("v", "1"),
        ("kind", "charge"),
        ("kind", ["intent"]),
        ("kind", "published"),
        ("role", "auditor"),
        ("role", "server"),
        ("party", "../alpha"),
        ("party", ""),
        ("run", "00"),
        ("prev", "A" * 64),
        ("seq", -1),
        ("seq", True),
        ("seq", "3"),
        ("round", 0),
        ("round", None),
        ("releases", 0),
        ("event", {}),
        ("spend", None),
        ("extra", 1),
    ],
)
def test_a_payload_with_one_wrong_field_is_refused(name, value):
    with pytest.raises(MalformedMessageError):
        decode_record(payload(INTENT) | {name: value})


@pytest.mark.parametrize("name", ["v", "kind", "role", "seq", "run", "round", "event"])
def test_a_payload_that_lacks_a_field_is_refused(name):
    changed = payload(INTENT)
    del changed[name]
    with pytest.raises(MalformedMessageError):
        decode_record(changed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampling_rate", "2/100"),
        ("sampling_rate", "0/1"),
        ("sampling_rate", "3/2"),
        ("sampling_rate", "-1/2"),
        ("sampling_rate", 1),
        ("sampling_rate", "1/" + "1" * 100),
        ("noise_variance", 4096),
        ("noise_variance", "04"),
        ("noise_variance", "-4"),
        ("noise_variance", "1" * 5000),
        ("norm_bound", "1024"),
        ("norm_bound", 0),
        ("inner_steps", 0),
    ],
)
def test_an_event_with_one_wrong_field_is_refused(name, value):
    changed = payload(INTENT)
    changed["event"] = changed["event"] | {name: value}
    with pytest.raises(MalformedMessageError, match="event"):
        decode_record(changed)


@pytest.mark.parametrize(
    "text",
    ["1.50", "1e-5", "01", ".5", "1.", "-1", "+1", "NaN", "Infinity", "", " 1", "1\n"],
)
def test_a_decimal_has_one_text_only(text):
    changed = payload(INTENT)
    changed["spend"] = changed["spend"] | {"epsilon_pld": text}
    with pytest.raises(MalformedMessageError):
        decode_record(changed)


@given(st.decimals(min_value=0, max_value=10**12, places=9))
def test_every_decimal_survives_its_text(value):
    spend = dataclasses.replace(SPEND, epsilon_pld=value)
    record = dataclasses.replace(INTENT, spend=spend)
    assert decode_record(payload(record)) == (HEADER, record)
    assert decimal_text(value * Decimal("1.000")) == decimal_text(value)


def test_an_infinite_epsilon_can_be_said():
    spend = dataclasses.replace(SPEND, epsilon_pld=Decimal("Infinity"))
    record = dataclasses.replace(INTENT, spend=spend)
    assert payload(record)["spend"]["epsilon_pld"] == "infinity"
    assert decode_record(payload(record)) == (HEADER, record)


def test_names_must_be_sorted_and_distinct():
    told = (bytes(32), bytes(32), bytes(32))
    record = Outcome(1, 1, Status.PUBLISHED, None, ("alpha", "beta"), *told)
    changed = payload(record)
    for names in (["beta", "alpha"], ["alpha", "alpha"], "alpha", [1], ["a/b"]):
        with pytest.raises(MalformedMessageError):
            decode_record(changed | {"survivors": names})


@pytest.mark.parametrize(
    ("status", "reason", "survivors", "told"),
    [
        (Status.PUBLISHED, Reason.DEADLINE, ("alpha",), True),
        (Status.PUBLISHED, None, (), True),
        (Status.PUBLISHED, None, ("alpha",), False),
        (Status.MISSED, None, (), False),
        (Status.MISSED, Reason.DEADLINE, ("alpha",), False),
        (Status.MISSED, Reason.DEADLINE, (), True),
        (Status.ABORTED, None, (), False),
        (Status.ABORTED, Reason.DEADLINE, ("alpha",), False),
        (Status.ABORTED, Reason.DEADLINE, (), True),
    ],
)
def test_an_outcome_whose_fields_do_not_fit_its_status_cannot_be_made(
    status, reason, survivors, told
):
    digests = (bytes(32),) * 3 if told else (None,) * 3
    with pytest.raises(MalformedMessageError):
        Outcome(1, 1, status, reason, survivors, *digests)


def test_every_error_of_the_kernel_has_a_reason_code():
    arguments = {errors.FaultyClientError: 2, errors.FaultyPeerOrServerError: 2}
    found = set()
    kinds = [errors.PrivacyError]
    for kind in kinds:
        own = [
            one for one in kind.__subclasses__() if one.__module__ == errors.__name__
        ]
        kinds += own
        found.add(reason_of(kind(*["x"] * arguments.get(kind, 1))))
    assert reason_of(errors.BudgetExceededError("")) is Reason.BUDGET_EXCEEDED
    assert reason_of(errors.BrokenChainError("")) is Reason.LEDGER_UNRELIABLE
    assert len(found) == 14


def test_a_commitment_depends_on_the_secret_and_on_the_vector():
    base = commitment(bytes(32), b"vector")
    assert base != commitment(b"\1" * 32, b"vector")
    assert base != commitment(bytes(32), b"vectos")
    with pytest.raises(ValueError, match="32 secret bytes"):
        commitment(b"short", b"vector")


def test_no_kind_has_a_field_for_what_is_private():
    # The whole vocabulary, so that a new field is a decision and not an accident.
    fields = {
        name
        for kinds in KINDS.values()
        for kind in kinds.values()
        for name in codecs(kind)
    }
    assert fields == {
        "aborted", "adapter_after", "adapter_before", "adapter_digest", "attempt",
        "cap_delta", "cap_epsilon", "cap_order", "commitment", "data", "dropouts",
        "event", "heads", "last", "length", "lifetime", "members", "missed",
        "modulus_bits",
        "offer_digest", "plan", "plan_digest", "published", "reason", "records",
        "releases", "root", "roster", "roster_hash", "round", "run", "server_head",
        "sharers", "sharers_hash", "signature", "size", "software", "spend",
        "status", "sum_digest",
        "survivors", "survivors_hash", "torn_bytes", "transcript",
    }  # fmt: skip


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(max_size=8)
    | st.sampled_from(["1/50", "0" * 64, "0" * 32, "alpha", "intent", "client"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(payload(INTENT))), JSON)
def test_no_value_in_any_field_does_more_than_be_refused(name, value):
    try:
        header, record = decode_record(payload(INTENT) | {name: value})
    except MalformedMessageError:
        return
    assert payload(record, header) == payload(INTENT) | {name: value}


@given(JSON)
def test_no_payload_does_more_than_be_refused(value):
    with pytest.raises(MalformedMessageError):
        decode_record(value)


def test_records_that_name_no_survivors_read_back():
    for record in (
        Joined(1, 1, bytes(32), bytes(32)),
        Refused(0, 0, Reason.POLICY_UNIT, None),
        Declined(bytes(16), "x", {}, bytes(32), {}, Reason.POLICY_UNIT),
        Outcome(1, 1, Status.MISSED, Reason.INTERRUPTED, (), None, None, None),
        Outcome(1, 1, Status.ABORTED, Reason.DEADLINE, (), None, bytes(32), None),
    ):
        assert decode_record(payload(record)) == (HEADER, record)
