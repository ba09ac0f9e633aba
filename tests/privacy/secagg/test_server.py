from dataclasses import replace
from typing import get_type_hints

import numpy as np
import pytest

from privacy.crypto import Label, sha256
from privacy.errors import (
    BelowThresholdError,
    MalformedMessageError,
    PlanMismatchError,
)
from privacy.secagg import server
from privacy.secagg.messages import (
    MAX_REASON_CHARACTERS,
    header_digest,
    read_aborted,
    sum_digest,
)
from privacy.secagg.server import TRANSITIONS, open_round, restore_server
from privacy.secagg.transcript import BLAMED, MISSING, SENT, transcript_hash
from tests.privacy.secagg.harness import (
    PHASES,
    Counter,
    finish,
    identity,
    ledger_head,
    make_terms,
    plain_sum,
    play_until,
    run_round,
)

NAME = "client-001"
OTHERS = ("client-000", "client-002", "client-003")
SERVER_KEY = identity("server")


def answered(phase, **changes):
    """A round in which the clients have answered this phase."""
    play = play_until(phase, make_terms(4, **changes))
    play.answer(phase)
    return play


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    "garbage", [b"", b"garbage", bytes(500)], ids=["empty", "short", "zeros"]
)
def test_a_client_that_sends_garbage_is_a_dropout_and_is_named(phase, garbage):
    play = answered(phase)
    play.replies[NAME] = garbage
    play.collect()
    if phase == PHASES[-1]:
        unmasked = play.server
    else:
        unmasked = finish(play, PHASES[PHASES.index(phase) + 1]).unmasked
    assert list(unmasked.blamed) == [NAME]
    survivors = OTHERS if phase in PHASES[:3] else (*OTHERS, NAME)
    assert set(unmasked.survivors) == set(survivors)
    assert np.array_equal(unmasked.residues, plain_sum(play.terms, survivors))


@pytest.mark.parametrize("phase", PHASES)
def test_two_clients_that_send_garbage_end_a_round_of_four(phase):
    play = answered(phase)
    play.replies[NAME] = play.replies["client-002"] = b"garbage"
    with pytest.raises(BelowThresholdError, match="needed"):
        play.collect()


def test_the_error_below_the_threshold_names_who_is_to_blame():
    play = answered("shares")
    play.replies[NAME] = play.replies["client-002"] = b"garbage"
    with pytest.raises(BelowThresholdError, match="client-001, client-002"):
        play.collect()


@pytest.mark.parametrize("phase", PHASES)
def test_somebody_who_was_not_asked_is_named_and_ignored(phase):
    play = answered(phase)
    play.replies["stranger"] = play.replies[NAME]
    play.collect()
    blamed = getattr(play.server, "wrong", {}) or play.server.blamed
    assert blamed == {"stranger": "was not asked for anything in this phase"}


@pytest.mark.parametrize("phase", PHASES)
def test_a_restored_state_collects_alike(phase):
    play = answered(phase)
    restored = restore_server(play.server.to_bytes(), SERVER_KEY)
    assert restored == play.server
    assert restored.collect(play.replies) == play.server.collect(play.replies)


def test_an_unmasked_sum_is_restored():
    unmasked = run_round(make_terms(3)).unmasked
    restored = restore_server(unmasked.to_bytes(), SERVER_KEY)
    assert restored == unmasked
    assert np.array_equal(restored.residues, unmasked.residues)


def test_a_state_is_restored_only_with_the_servers_identity():
    data = answered("advert").server.to_bytes()
    with pytest.raises(PlanMismatchError):
        restore_server(data, identity(NAME))
    with pytest.raises(PlanMismatchError):
        server.CollectingAdverts.from_bytes(data, identity(NAME))
    with pytest.raises(MalformedMessageError):
        server.Unmasked.from_bytes(data, SERVER_KEY)


@pytest.mark.parametrize("phase", PHASES)
def test_a_round_that_an_error_ended_is_aborted_for_everybody(phase):
    play = answered(phase)
    terms, digest = play.server.desk.terms, play.server.desk.offer_digest
    with pytest.raises(BelowThresholdError) as caught:
        play.server.collect({})
    message = server.abort_message(
        terms, digest, SERVER_KEY, str(caught.value), b"\x07" * 32
    )
    # A client reads it with what it has had since the offer.
    seat = play.clients[NAME].seat
    aborted = read_aborted(message, seat.terms, seat.offer_digest)
    assert aborted.reason == str(caught.value)
    assert aborted.ledger_head == b"\x07" * 32


def test_a_reason_of_any_length_is_read_back():
    terms = make_terms(3)
    for reason in ("", "x" * 5000, "\U0001f512" * 5000):
        message = server.abort_message(terms, bytes(32), SERVER_KEY, reason, bytes(32))
        aborted = read_aborted(message, terms, bytes(32))
        assert aborted.reason == reason[:MAX_REASON_CHARACTERS]


def test_only_the_pinned_key_aborts_a_round():
    with pytest.raises(PlanMismatchError, match="pinned"):
        server.abort_message(make_terms(3), bytes(32), identity(NAME), "x", bytes(32))


def test_the_sum_comes_with_the_ledger_heads_of_those_who_revealed():
    play = answered("reveal")
    del play.replies["client-003"]
    play.replies["client-002"] = b"garbage"
    with pytest.raises(BelowThresholdError):
        play.server.collect(play.replies)
    play = answered("reveal")
    del play.replies["client-003"]
    play.collect()
    names = ("client-000", "client-001", "client-002")
    assert play.server.heads == {name: ledger_head(name) for name in names}
    restored = restore_server(play.server.to_bytes(), SERVER_KEY)
    assert restored.heads == play.server.heads


def test_only_the_pinned_key_opens_a_round():
    with pytest.raises(PlanMismatchError, match="pinned"):
        open_round(make_terms(3), identity(NAME), Counter("server"), ())


def test_vectors_are_added_as_they_come_in_any_order():
    play = answered("masked", modulus_bits=20)
    batch, _ = play.server.collect(play.replies)
    state = play.server
    for name in reversed(play.replies):
        state = state.add(name, play.replies[name])
    assert state.close()[0] == batch


def test_a_state_that_was_gone_on_from_stays_as_it_was():
    play = answered("masked")
    one, other = sorted(play.replies)[:2]
    before = play.server.to_bytes()
    left = play.server.add(one, play.replies[one])
    kept = left.to_bytes()
    right = play.server.add(other, play.replies[other])
    again = left.add(other, play.replies[other])
    assert again.total == right.add(one, play.replies[one]).total
    assert again.total not in (left.total, right.total)
    assert (play.server.to_bytes(), left.to_bytes()) == (before, kept)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_neither_the_sum_nor_who_is_blamed(monkeypatch, threads):
    play = play_until("masked", make_terms(6))
    play.answer("masked")
    play.replies["client-001"] = play.replies["client-000"]
    play.replies["client-004"] = b""
    play.replies["nobody"] = play.replies["client-000"]
    state = play.server
    for name, reply in play.replies.items():
        state = state.add(name, reply)
    expected, messages = state.close()
    monkeypatch.setattr(server, "HASH_THREADS", threads)
    monkeypatch.setattr(server, "_THREAD_BYTES", 1)
    found, sent = play.server.collect(play.replies)
    assert (found.to_bytes(), sent) == (expected.to_bytes(), messages)
    assert sorted(found.blamed) == ["client-001", "client-004", "nobody"]
    assert len(found.survivors) == 4


def test_the_same_vector_twice_counts_once():
    play = answered("masked")
    state = play.server.add(NAME, play.replies[NAME])
    assert state.add(NAME, play.replies[NAME]) == state


def test_a_second_different_vector_is_left_out_and_its_sender_named():
    play = answered("masked")
    again = play_until("masked")
    again.vectors[NAME] = again.vectors["client-002"]
    again.answer("masked")
    assert again.replies[NAME] != play.replies[NAME]
    state = play.server.add(NAME, play.replies[NAME])
    after = state.add(NAME, again.replies[NAME])
    assert after.total == state.total
    assert after.wrong == {NAME: "sent a second, different vector"}


def test_nothing_that_the_server_keeps_grows_with_the_number_of_vectors():
    play = answered("masked", vector_length=5000)
    state = play.server
    sizes = []
    for name, reply in play.replies.items():
        state = state.add(name, reply)
        sizes.append(len(state.to_bytes()))
    assert max(sizes) - min(sizes) < 5000


def test_the_transcript_says_what_everybody_sent_and_who_is_missing():
    play = answered("masked")
    del play.replies["client-003"]
    play.collect()
    outcome = finish(play, "consistency")
    lines = [
        (entry.party, entry.outcome)
        for entry in outcome.unmasked.transcript
        if entry.phase == Label.MASKED_INPUT
    ]
    assert lines == [
        ("client-000", SENT),
        ("client-001", SENT),
        ("client-002", SENT),
        ("client-003", MISSING),
    ]


def test_the_transcript_keeps_no_share_and_no_vector():
    play = answered("reveal")
    reveals = dict(play.replies)
    play.collect()
    whole = play.server.to_bytes()
    for name, message in reveals.items():
        assert message not in whole
        kept = [
            entry.evidence
            for entry in play.server.transcript
            if entry.phase == Label.REVEAL and entry.party == name
        ]
        assert kept == [sha256(Label.REVEAL, message)]


def test_the_transcript_of_a_blamed_client_has_the_reason():
    play = answered("advert")
    play.replies[NAME] = b""
    play.collect()
    entries = [entry for entry in play.server.transcript if entry.party == NAME]
    assert [(entry.outcome, entry.evidence) for entry in entries] == [
        (BLAMED, b"sent a message that ends too early")
    ]


def test_the_published_hashes_are_those_of_sum_and_transcript():
    outcome = run_round(make_terms(3))
    unmasked = outcome.unmasked
    for published in outcome.published.values():
        assert published.transcript_hash == transcript_hash(unmasked.transcript)
        assert published.sum_digest == sum_digest(unmasked.total)


def test_survivors_are_bound_to_their_signed_headers():
    play = answered("masked")
    state, _ = play.server.collect(play.replies)
    other = play.server
    for name in play.replies:
        other = other.add(name, play.replies[name])
    altered = replace(other, headers=other.headers | {NAME: b"another header"})
    assert altered.close()[0].survivors_hash != state.survivors_hash
    assert header_digest(b"a") != header_digest(b"b")


def test_the_table_of_transitions_is_what_collect_does():
    for state, _, _, following in TRANSITIONS:
        result = get_type_hints(state.collect, vars(server))["return"]
        assert following in (result, *getattr(result, "__args__", ()))
    states = [row[0] for row in TRANSITIONS]
    assert [row[3] for row in TRANSITIONS[:-1]] == states[1:]
