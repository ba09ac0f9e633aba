"""What may be said over an engine, and every lie that one could tell with it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgrpo_secure.runtime.envelope import (
    Gate,
    Hello,
    RefusedError,
    Request,
    payload_digest,
    read_answer,
    read_hello,
    round_of,
    write_answer,
    write_hello,
    write_refusal,
    write_request,
)
from privacy.crypto import SigningKey
from privacy.errors import (
    BadSignatureError,
    MalformedMessageError,
    PrivacyError,
    ReplayError,
)
from privacy.ledger import Reason

SERVER, SITE, OTHER, STRANGER = (SigningKey(bytes([n]) * 32) for n in range(1, 5))
COHORT = {"north": SITE.verify_key, "south": OTHER.verify_key}
NONCE, RUN = bytes(range(32)), bytes(range(16))
TERMS = b"the terms"


def request(phase="open", payload=TERMS, **changes):
    head = Request(
        nonce=NONCE,
        run=RUN,
        sequence=1,
        round=0,
        phase=phase,
        client="north",
        payload=payload_digest(payload),
    )
    return replace(head, **changes)


def sent(head, payload=TERMS, key=SERVER):
    return write_request(head, payload, key)


def gate():
    return Gate("north", NONCE, SERVER.verify_key)


def opened():
    """A gate behind which a run is open."""
    own = gate()
    own.admit(sent(request()))
    return own


def admit(own, sequence, phase, number=0, payload=b"what the phase needs", **changes):
    head = request(phase, payload, sequence=sequence, round=number, **changes)
    return own.admit(sent(head, payload))


def test_a_request_arrives_with_its_payload_and_the_answer_comes_back():
    own = gate()
    admitted = own.admit(sent(request()))
    assert admitted.payload == TERMS
    assert admitted.is_new
    answer = write_answer(admitted.request, b"done", SITE)
    assert read_answer(answer, request(), SITE.verify_key) == b"done"


def test_the_same_request_is_new_once_and_finds_the_same_answer():
    own = gate()
    first = own.admit(sent(request()))
    assert own.admit(sent(request())).kept is None
    answer = write_answer(first.request, b"done", SITE)
    assert own.keep(first.request, answer)
    again = own.admit(sent(request()))
    assert again.kept == answer
    assert not again.is_new


def test_an_answer_that_comes_after_the_next_request_is_not_kept():
    own = opened()
    late = admit(own, 2, "log").request
    now = admit(own, 3, "log").request
    assert not own.keep(late, b"late")
    assert own.keep(now, b"in time")


def test_a_whole_round_and_what_is_outside_of_rounds_passes():
    own = opened()
    phases = ["log", "offer", "roster", "shares", "survivors", "quorum", "published"]
    for sequence, phase in enumerate([*phases, "evaluate", "close", "ledger"], 2):
        assert admit(own, sequence, phase, round_of(phase, 1)).is_new


def test_a_round_may_end_early_and_the_next_one_begin():
    own = opened()
    story = [("offer", 1), ("roster", 1), ("aborted", 1), ("offer", 3), ("offer", 4)]
    for sequence, (phase, number) in enumerate(story, 2):
        assert admit(own, sequence, phase, number).is_new


OUT_OF_ORDER = {
    "a phase before any offer": ([], ("roster", 1)),
    "the end of a round that never began": ([], ("published", 0)),
    "the same round again": ([("offer", 2), ("published", 2)], ("offer", 2)),
    "an earlier round": ([("offer", 2)], ("offer", 1)),
    "a phase twice": ([("offer", 1), ("shares", 1)], ("shares", 1)),
    "an earlier phase": ([("offer", 1), ("survivors", 1)], ("shares", 1)),
    "a phase of another round": ([("offer", 1)], ("roster", 2)),
    "two ends of one round": ([("offer", 1), ("aborted", 1)], ("published", 1)),
}


@pytest.mark.parametrize("story", OUT_OF_ORDER.values(), ids=OUT_OF_ORDER)
def test_phases_out_of_their_order_are_refused(story):
    before, lie = story
    own = opened()
    for sequence, step in enumerate(before, 2):
        admit(own, sequence, *step)
    with pytest.raises(ReplayError):
        admit(own, 9, *lie)


LIES = {
    "of another run": (request("log", run=bytes(16)), SERVER, MalformedMessageError),
    "to another site": (request(client="south"), SERVER, MalformedMessageError),
    "to another life": (request(nonce=bytes(32)), SERVER, ReplayError),
    "in a round that log is not of": (
        request("log", round=1),
        SERVER,
        MalformedMessageError,
    ),
    "of an unknown phase": (request("gossip"), SERVER, MalformedMessageError),
    "by a stranger": (request(), STRANGER, BadSignatureError),
    "by another site": (request(), OTHER, BadSignatureError),
    "by the site itself": (request(), SITE, BadSignatureError),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_request_that_lies_is_refused_and_changes_nothing(lie):
    head, key, error = lie
    own = opened()
    false = replace(head, sequence=2)
    with pytest.raises(error):
        own.admit(sent(false, key=key))
    assert admit(own, 2, "log").is_new


def test_nothing_is_let_in_before_a_run_is_open():
    with pytest.raises(MalformedMessageError):
        admit(gate(), 1, "log")


def test_the_same_terms_may_be_opened_again():
    own = opened()
    assert own.admit(sent(request(sequence=2))).is_new


def test_where_another_run_is_opened_the_first_one_has_no_place_any_more():
    own = opened()
    admit(own, 2, "offer", 3)
    admit(own, 3, "open", run=bytes(16))
    with pytest.raises(MalformedMessageError):
        admit(own, 4, "roster", 3)
    assert admit(own, 4, "offer", 1, run=bytes(16)).is_new


def test_an_older_request_is_refused_though_it_was_genuine():
    own = opened()
    early = sent(request("log", sequence=2))
    own.admit(early)
    own.admit(sent(request("log", sequence=3)))
    with pytest.raises(ReplayError):
        own.admit(early)


def test_two_requests_of_one_number_are_refused():
    own = opened()
    own.admit(sent(request("log", sequence=2)))
    with pytest.raises(ReplayError):
        own.admit(sent(request("evaluate", sequence=2)))


def test_another_payload_under_a_genuine_head_is_refused():
    with pytest.raises(MalformedMessageError, match="another payload"):
        gate().admit(sent(request(), b"swapped"))


FALSE_ANSWERS = {
    "of another site": (write_answer(request(), b"a", OTHER), BadSignatureError),
    "of the server, for a site": (
        write_answer(request(), b"a", SERVER),
        BadSignatureError,
    ),
    "to another request": (
        write_answer(request(sequence=2), b"a", SITE),
        ReplayError,
    ),
    "to another round": (write_answer(request(round=1), b"a", SITE), ReplayError),
    "to another run": (write_answer(request(run=bytes(16)), b"a", SITE), ReplayError),
    "in another name": (
        write_answer(request(client="south"), b"a", SITE),
        ReplayError,
    ),
    "that is a request": (sent(request(), key=SITE), PrivacyError),
}


@pytest.mark.parametrize("lie", FALSE_ANSWERS.values(), ids=FALSE_ANSWERS)
def test_a_false_answer_is_found(lie):
    data, error = lie
    with pytest.raises(error):
        read_answer(data, request(), SITE.verify_key)


def test_swapped_answers_are_found():
    ours, theirs = request(), request(client="south", nonce=bytes(32))
    answer = write_answer(theirs, b"theirs", OTHER)
    with pytest.raises(BadSignatureError):
        read_answer(answer, ours, SITE.verify_key)


def test_a_refusal_says_its_code_and_nothing_else():
    data = write_refusal(request(), Reason.POLICY_MODEL, SITE)
    with pytest.raises(RefusedError) as caught:
        read_answer(data, request(), SITE.verify_key)
    assert caught.value.reason is Reason.POLICY_MODEL


def test_a_hello_is_of_a_pinned_site_for_this_job():
    hello = Hello("north", "job-1", NONCE)
    assert read_hello(write_hello(hello, SITE), COHORT, "job-1") == hello


FALSE_HELLOS = {
    "of a key that is not pinned": (
        write_hello(Hello("north", "job-1", NONCE), STRANGER),
        BadSignatureError,
    ),
    "of another site": (
        write_hello(Hello("north", "job-1", NONCE), OTHER),
        BadSignatureError,
    ),
    "of nobody known": (
        write_hello(Hello("west", "job-1", NONCE), STRANGER),
        MalformedMessageError,
    ),
    "of another job": (
        write_hello(Hello("north", "job-0", NONCE), SITE),
        MalformedMessageError,
    ),
}


@pytest.mark.parametrize("lie", FALSE_HELLOS.values(), ids=FALSE_HELLOS)
def test_a_false_hello_is_refused(lie):
    data, error = lie
    with pytest.raises(error):
        read_hello(data, COHORT, "job-1")


GENUINE = {
    "hello": write_hello(Hello("north", "job-1", NONCE), SITE),
    "request": sent(request()),
    "answer": write_answer(request(), b"done", SITE),
}


@given(data=st.data(), kind=st.sampled_from(sorted(GENUINE)))
def test_no_changed_byte_passes(data, kind):
    whole = GENUINE[kind]
    place = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(whole)
    changed[place] ^= 1 << bit
    readers = {
        "hello": lambda found: read_hello(found, COHORT, "job-1"),
        "request": lambda found: gate().admit(found),
        "answer": lambda found: read_answer(found, request(), SITE.verify_key),
    }
    with pytest.raises(PrivacyError):
        readers[kind](bytes(changed))


@given(junk=st.binary(max_size=200))
def test_junk_is_a_malformed_message(junk):
    with pytest.raises(PrivacyError):
        gate().admit(junk)
    with pytest.raises(PrivacyError):
        read_answer(junk, request(), SITE.verify_key)
    with pytest.raises(PrivacyError):
        read_hello(junk, COHORT, "job-1")


STEPS = st.tuples(
    st.integers(1, 6),
    st.sampled_from(["offer", "roster", "shares", "published", "aborted", "log"]),
    st.integers(0, 3),
)


@given(story=st.lists(STEPS, max_size=30))
def test_whatever_is_sent_rounds_rise_and_nothing_is_new_twice(story):
    """Quotes the guarantee of `Gate`."""
    own = opened()
    let_in = []
    for sequence, phase, number in story:
        try:
            admitted = admit(own, sequence + 1, phase, number)
        except PrivacyError:
            continue
        if admitted.is_new:
            let_in.append(admitted.request)
    assert len(set(let_in)) == len(let_in)
    sequences = [one.sequence for one in let_in]
    assert sequences == sorted(set(sequences))
    offers = [one.round for one in let_in if one.phase == "offer"]
    assert offers == sorted(set(offers))
