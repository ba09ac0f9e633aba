from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

from privacy.crypto import Label
from privacy.errors import (
    FaultyServerError,
    MalformedMessageError,
    PlanMismatchError,
    RefusalError,
    ReplayError,
)
from privacy.packing import unpack
from privacy.plan import SERVER
from privacy.secagg import client, server
from privacy.secagg.client import (
    TRANSITIONS,
    AwaitingQuorum,
    AwaitingShares,
    Revealed,
    restore_client,
)
from privacy.secagg.envelope import load_state, sign
from privacy.secagg.messages import MaskedInput, Survivors
from privacy.wire import decode
from tests.privacy.secagg import oracle
from tests.privacy.secagg.harness import (
    PHASES,
    Counter,
    finish,
    identity,
    ledger_head,
    make_terms,
    make_vector,
    play_until,
)

NAME = "client-001"


# The steps of a client that has joined: "vector" takes no message, but its own vector.
STEPS = ("shares", "masked", "vector", "consistency", "reveal")


def answered(phase, **changes):
    """One client's state before this phase, and what it takes to answer."""
    reached = "masked" if phase == "vector" else phase
    play = play_until(reached, make_terms(4, **changes))
    state, message = play.clients[NAME], play.messages[NAME]
    if phase == "vector":
        return play, state.open_inbox(message), make_vector(play.terms, NAME)
    return play, state, message


def step(phase, state, message):
    if phase == "shares":
        return state.share_keys(message, Counter("deal " + NAME))
    if phase == "masked":
        return state.open_inbox(message), b""
    if phase == "vector":
        return state.mask(message)
    if phase == "consistency":
        return state.confirm(message)
    return state.reveal(message, ledger_head(NAME))


@pytest.mark.parametrize("phase", STEPS)
def test_a_state_answers_once(phase):
    _, state, message = answered(phase)
    step(phase, state, message)
    with pytest.raises(ReplayError, match="already given"):
        step(phase, state, message)


@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_state_that_met_an_error_answers_no_more(phase):
    _, state, message = answered(phase)
    with pytest.raises(MalformedMessageError):
        step(phase, state, message[:-1])
    with pytest.raises(ReplayError, match="already given"):
        step(phase, state, message)


def test_a_state_that_met_a_vector_of_another_round_masks_none():
    _, state, vector = answered("vector")
    with pytest.raises(PlanMismatchError):
        state.mask(replace(vector, round_number=6))
    with pytest.raises(ReplayError, match="already given"):
        state.mask(vector)


@pytest.mark.parametrize("phase", STEPS)
def test_a_restored_state_gives_the_same_answer(phase):
    _, state, message = answered(phase)
    restored = restore_client(state.to_bytes(), identity(NAME))
    assert restored == state
    assert restored is not state
    assert step(phase, restored, message) == step(phase, state, message)


@pytest.mark.parametrize("phase", STEPS)
def test_a_state_is_restored_only_with_its_own_identity(phase):
    _, state, _ = answered(phase)
    data = state.to_bytes()
    for restore in (restore_client, type(state).from_bytes):
        with pytest.raises(PlanMismatchError):
            restore(data, identity("client-002"))
        with pytest.raises(PlanMismatchError):
            restore(data, identity("stranger"))


def test_a_state_is_restored_only_as_what_it_is():
    _, state, _ = answered("masked")
    with pytest.raises(MalformedMessageError):
        AwaitingQuorum.from_bytes(state.to_bytes(), identity(NAME))


def test_the_identity_key_is_not_in_the_stored_bytes():
    for phase in STEPS:
        _, state, _ = answered(phase)
        assert identity(NAME).seed not in state.to_bytes()


def secrets_of(state):
    names = ("encryption_key", "mask_key", "self_mask", "key_shares")
    for name in ("shares", "added", "subtracted"):
        yield from getattr(state, name, ())
    for name in names:
        value = getattr(state, name, None)
        if name.endswith("_key") and value is not None:
            yield value.seed
        elif name == "self_mask" and value is not None:
            yield value
        elif value is not None:
            for pair in value.values():
                yield from (pair.self_mask, pair.mask_key)


@pytest.mark.parametrize("phase", STEPS)
def test_no_secret_shows_in_a_repr(phase):
    _, state, _ = answered(phase)
    secrets = [identity(NAME).seed, *secrets_of(state)]
    assert len(secrets) > 3
    for secret in secrets:
        assert repr(secret)[2:-1] not in repr(state)
        assert secret.hex() not in repr(state)


def test_secrets_are_dropped_as_soon_as_they_are_not_needed():
    _, state, message = answered("masked")
    own = list(secrets_of(state))
    opened, _ = step("masked", state, message)
    assert not any(secret in opened.to_bytes() for secret in own)
    mask_keys = (*opened.added, *opened.subtracted)
    assert len(mask_keys) == 4
    assert all(key in opened.to_bytes() for key in mask_keys)
    masked, _ = step("vector", opened, make_vector(state.seat.terms, NAME))
    assert not any(key in masked.to_bytes() for key in mask_keys)
    _, state, message = answered("consistency")
    both = state.key_shares
    confirmed, _ = step("consistency", state, message)
    data = confirmed.to_bytes()
    assert all(pair.self_mask in data for pair in both.values())
    assert not any(pair.mask_key in data for pair in both.values())
    _, state, message = answered("reveal")
    shares = state.shares
    revealed, _ = step("reveal", state, message)
    assert not any(share in revealed.to_bytes() for share in shares)


def test_after_the_survivors_only_one_share_of_each_peer_is_left():
    play = play_until("masked", make_terms(4))
    play.answer("masked")
    del play.replies["client-003"]
    play.collect()
    held = play.clients[NAME].key_shares
    state, _ = play.clients[NAME].confirm(play.messages[NAME])
    assert state.survivors == ("client-000", "client-001", "client-002")
    expected = [held[name].self_mask for name in state.survivors]
    assert list(state.shares) == [*expected, held["client-003"].mask_key]


def test_a_masked_input_meets_the_oracle():
    play, state, message = answered("masked", modulus_bits=20, vector_length=37)
    adverts = state.roster.adverts
    terms = play.terms
    following, sent = state.open_inbox(message).mask(make_vector(terms, NAME))
    context = (
        state.roster.roster_hash,
        following.sharers_hash,
        terms.adapter_digest,
        terms.plan_digest,
    )
    own = (NAME, adverts[NAME].mask_key)
    expected = [int(word) for word in make_vector(terms, NAME).residues]
    streams = [(1, oracle.self_key(state.self_mask, NAME, context))]
    for peer in sorted(adverts):
        if peer != NAME:
            ends = [own, (peer, adverts[peer].mask_key)]
            key = oracle.pairwise_key(state.mask_key.seed, ends, ends[1][1], context)
            streams.append((1 if peer > NAME else -1, key))
    for sign_of_mask, key in streams:
        mask = oracle.words(key, 37)
        expected = [
            word + sign_of_mask * extra
            for word, extra in zip(expected, mask, strict=True)
        ]
    words = unpack(decode(MaskedInput, sent).words, 37, 20)
    assert words.tolist() == [word % 2**20 for word in expected]


def test_masking_leaves_the_callers_vector_alone():
    _, state, vector = answered("vector")
    before = vector.residues.copy()
    state.mask(vector)
    assert np.array_equal(vector.residues, before)


@pytest.mark.parametrize(
    "changes",
    [
        {"plan_digest": "00" * 32},
        {"round_number": 6},
        {"modulus_bits": 31},
        {"residues": np.zeros(10, dtype=np.uint32)},
        {"residues": np.zeros(12, dtype=np.uint32)},
        {"residues": np.zeros((11, 1), dtype=np.uint32)},
        {"residues": np.zeros(11, dtype=np.int64)},
        {"residues": np.full(11, 2**20, dtype=np.uint32)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_vector_of_another_plan_round_length_or_modulus_is_refused(changes):
    _, state, vector = answered("vector", modulus_bits=20)
    with pytest.raises(PlanMismatchError):
        state.mask(replace(vector, **changes))


def test_a_client_whose_vector_came_too_late_stays_silent():
    play = play_until("masked", make_terms(4))
    play.answer("masked")
    del play.replies[NAME]
    play.collect()
    assert NAME not in play.messages
    with pytest.raises(RefusalError, match="too late"):
        play.clients[NAME].confirm(play.messages["client-000"])


def test_deadlines_of_the_offer_reach_the_runtime():
    _, state, _ = answered("shares")
    assert state.seat.deadlines == (1, 2, 3, 4, 5)


def test_the_outcome_is_what_the_server_published():
    outcome = finish(play_until("advert"))
    published = outcome.published[NAME]
    assert published.next_adapter_digest == bytes([1]) * 32
    assert published.ledger_head == bytes([2]) * 32
    assert published.survivors == outcome.unmasked.survivors


def test_a_round_is_concluded_once():
    play = play_until("reveal", make_terms(4))
    play.answer("reveal")
    play.collect()
    message = play.server.publish(bytes(32), bytes(32))
    play.clients[NAME].conclude(message)
    with pytest.raises(ReplayError, match="already given"):
        play.clients[NAME].conclude(message)


def test_an_outcome_over_other_survivors_blames_the_server():
    play, state, message = answered("reveal")
    revealed, _ = step("reveal", state, message)
    assert isinstance(revealed, Revealed)
    play.answer("reveal")
    play.collect()
    lying = replace(play.server, survivors=("client-000", "client-001"))
    with pytest.raises(FaultyServerError, match="other survivors"):
        revealed.conclude(lying.publish(bytes(32), bytes(32)))


def concluding(**changes):
    """What the server publishes at the end of an honest round, or a lie about it."""
    outcome = finish(play_until("advert"))
    unmasked = replace(outcome.unmasked, **changes)
    return unmasked.publish(bytes([1]) * 32, bytes([2]) * 32)


@pytest.mark.parametrize("phase", ["consistency", "reveal"])
def test_a_client_that_missed_the_last_messages_concludes(phase):
    _, state, message = answered(phase)
    restored = restore_client(state.to_bytes(), identity(NAME))
    published = restored.conclude(concluding())
    assert NAME in published.survivors
    assert published.ledger_head == bytes([2]) * 32
    # Having heard the end it neither confirms nor reveals.
    with pytest.raises(ReplayError, match="already given"):
        step(phase, restored, message)
    with pytest.raises(ReplayError, match="already given"):
        restored.conclude(concluding())


def test_a_client_that_confirmed_concludes_only_over_the_survivors_it_confirmed():
    three = ("client-000", "client-001", "client-002")
    _, state, _ = answered("reveal")
    with pytest.raises(FaultyServerError, match="other survivors"):
        state.conclude(concluding(survivors=three))
    # One that was never told who survived can tell only whether it is in the sum.
    _, state, _ = answered("consistency")
    assert state.conclude(concluding(survivors=three)).survivors == three


def test_a_sum_without_us_is_not_concluded():
    others = ("client-000", "client-002", "client-003")
    _, state, _ = answered("consistency")
    with pytest.raises(FaultyServerError, match="without us"):
        state.conclude(concluding(survivors=others))


@pytest.mark.parametrize("head", [b"", bytes(31), bytes(33)], ids=len)
def test_a_ledger_head_that_is_no_digest_is_not_revealed(head):
    _, state, message = answered("reveal")
    with pytest.raises(ValueError, match="32 bytes"):
        state.reveal(message, head)


def test_the_table_of_transitions_is_what_the_methods_do():
    for state, _, method, _, following in TRANSITIONS:
        result = get_type_hints(getattr(state, method), vars(client))["return"]
        assert following in (result, *getattr(result, "__args__", ()))
    onward = [row for row in TRANSITIONS if row[2] != "conclude"]
    states = [row[0] for row in onward]
    assert [row[4] for row in onward] == [*states[1:], Revealed]
    assert TRANSITIONS[-1][0] is Revealed


def test_a_state_has_one_way_on_and_none_back():
    for state in {row[0] for row in TRANSITIONS}:
        public = {
            name
            for name, value in vars(state).items()
            if callable(value) and not name.startswith("_")
        }
        assert public == {row[2] for row in TRANSITIONS if row[0] is state}
        assert len(public - {"conclude"}) == (state is not Revealed)


def test_a_survivor_set_of_another_round_is_a_replay():
    _, state, _ = answered("consistency")
    old = sign(Survivors({}), SERVER, b"\x09" * 32, identity("server"))
    with pytest.raises(ReplayError, match="another round"):
        state.confirm(old)


def test_stored_bytes_that_are_no_state_are_refused():
    _, state, _ = answered("masked")
    data = state.to_bytes()
    for wrong in (b"", data[:-1], data + b"\0", data.replace(b"Shares", b"Sheres")):
        with pytest.raises(MalformedMessageError):
            restore_client(wrong, identity(NAME))
    kinds = (AwaitingShares,)
    assert load_state(kinds, data, {"signing_key": identity(NAME)}) == state


def test_labels_of_the_table_are_those_of_the_messages():
    awaited = [row[1] for row in TRANSITIONS]
    assert awaited == [
        Label.ROSTER,
        Label.KEY_SHARE_INBOX,
        None,
        Label.SURVIVORS,
        Label.PUBLISHED,
        Label.QUORUM,
        Label.PUBLISHED,
        Label.PUBLISHED,
    ]


def test_the_document_has_the_same_table():
    page = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text("utf-8")
    for state, awaits, method, sends, following in TRANSITIONS:
        row = (
            f"| `{state.__name__}` | {short(awaits)} | `{method}` "
            f"| {short(sends)} | `{following.__name__}` |"
        )
        assert row in page
    for state, collects, sends, following in server.TRANSITIONS:
        row = (
            f"| `{state.__name__}` | {short(collects)} | {short(sends)} "
            f"| `{following.__name__}` |"
        )
        assert row in page


def short(label):
    return "nothing" if label is None else label.rsplit("/", 1)[1]
