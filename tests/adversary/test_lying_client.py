"""A malicious client: the server drops it, names it, and sums the others exactly."""

from dataclasses import replace

import numpy as np
import pytest

from privacy.errors import FaultyClientError
from privacy.secagg.envelope import read_client, sign
from privacy.secagg.key_shares import (
    merkle_paths,
    share_leaves,
)
from privacy.secagg.messages import (
    Advert,
    Consistency,
    KeyShares,
    KeySharesHead,
    MaskedHeader,
    MaskedInput,
    Reveal,
    read_advert,
    vector_hash,
)
from privacy.secagg.shamir import PRIME
from privacy.wire import decode, encode
from tests.privacy.secagg.harness import (
    PHASES,
    finish,
    identity,
    ledger_head,
    make_terms,
    plain_sum,
    play_until,
)

LIAR = "client-001"
HONEST = ("client-000", "client-002", "client-003")


def answered(phase, **changes):
    play = play_until(phase, make_terms(4, **changes))
    play.answer(phase)
    return play


def signed(play, message, name=LIAR):
    return sign(message, name, play.server.desk.offer_digest, identity(name))


def told(play, data, kind):
    digest = play.server.desk.offer_digest
    return read_client(data, kind, LIAR, play.terms, digest)


def check_dropped(play, phase, reason):
    """The round goes on without the liar, who is named, and its sum is exact."""
    play.collect()
    outcome = finish(play, PHASES[PHASES.index(phase) + 1])
    assert reason in outcome.unmasked.blamed[LIAR]
    assert outcome.unmasked.survivors == HONEST
    expected = plain_sum(play.terms, HONEST)
    assert np.array_equal(outcome.unmasked.residues, expected)


# Adverts.


@pytest.mark.parametrize(
    "public",
    [bytes(32), (2**255 - 18).to_bytes(32, "little"), b"\xff" * 32],
    ids=["low order", "p + 1", "all ones"],
)
@pytest.mark.parametrize("part", ["encryption_key", "mask_key"])
def test_a_low_order_or_non_canonical_key_drops_its_sender(part, public):
    play = answered("advert")
    advert = told(play, play.replies[LIAR], Advert)
    play.replies[LIAR] = signed(play, replace(advert, **{part: public}))
    check_dropped(play, "advert", "X25519")


def test_one_key_for_two_uses_drops_its_sender():
    play = answered("advert")
    advert = told(play, play.replies[LIAR], Advert)
    twice = replace(advert, mask_key=advert.encryption_key)
    play.replies[LIAR] = signed(play, twice)
    check_dropped(play, "advert", "occurs twice")


def test_a_copied_key_drops_the_copy_and_the_original():
    # Who copied whom cannot be told; clients would refuse a roster with either.
    play = play_until("advert", make_terms(5))
    play.answer("advert")
    digest = play.server.desk.offer_digest
    other = read_advert(play.replies["client-000"], "client-000", play.terms, digest)
    advert = told(play, play.replies[LIAR], Advert)
    play.replies[LIAR] = signed(play, replace(advert, mask_key=other.mask_key))
    play.collect()
    assert set(play.server.blamed) == {LIAR, "client-000"}
    assert set(play.messages) == {"client-002", "client-003", "client-004"}


# Key shares.


def test_shares_over_another_roster_drop_their_dealer():
    play = answered("shares")
    message = decode(KeyShares, play.replies[LIAR])
    head = told(play, message.head, KeySharesHead)
    other = signed(play, replace(head, roster_hash=b"\x01" * 32))
    play.replies[LIAR] = encode(replace(message, head=other))
    check_dropped(play, "shares", "another roster")


def test_a_root_of_other_shares_drops_its_dealer():
    play = answered("shares")
    message = decode(KeyShares, play.replies[LIAR])
    head = told(play, message.head, KeySharesHead)
    other = signed(play, replace(head, root=b"\x01" * 32))
    play.replies[LIAR] = encode(replace(message, head=other))
    check_dropped(play, "shares", "another root")


@pytest.mark.parametrize("count", [0, 3, 5])
def test_shares_for_more_or_fewer_than_the_roster_drop_their_dealer(count):
    play = answered("shares")
    message = decode(KeyShares, play.replies[LIAR])
    sealed = (*message.sealed, *message.sealed)[:count]
    play.replies[LIAR] = encode(replace(message, sealed=sealed))
    check_dropped(play, "shares", "more or fewer")


def redealt(play, change):
    """The liar's key shares with one package altered and everything signed anew."""
    message = decode(KeyShares, play.replies[LIAR])
    head = told(play, message.head, KeySharesHead)
    sealed = tuple(
        change(holder, package)
        for holder, package in zip(play.terms.cohort, message.sealed, strict=True)
    )
    leaves = share_leaves(head.roster_hash, LIAR, tuple(play.terms.cohort), sealed)
    new = replace(head, root=merkle_paths(leaves)[0])
    return encode(KeyShares(signed(play, new), sealed))


def test_a_share_that_does_not_open_names_its_dealer():
    play = answered("shares")

    def garble(holder, package):
        if holder != "client-000":
            return package
        return replace(package, ciphertext=bytes(80))

    play.replies[LIAR] = redealt(play, garble)
    play.collect()
    play.answer("masked")
    assert set(play.errors) == {"client-000"}
    error = play.errors["client-000"]
    assert isinstance(error, FaultyClientError)
    assert error.client == LIAR


def test_a_commitment_to_another_share_names_its_dealer():
    play = answered("shares")

    def swap(_, package):
        return replace(package, self_mask_commitment=bytes(32))

    play.replies[LIAR] = redealt(play, swap)
    play.collect()
    play.answer("masked")
    # The liar does not tell on itself only because it runs honest code, and does.
    assert all(error.client == LIAR for error in play.errors.values())
    assert set(HONEST) <= set(play.errors)


def test_shares_that_do_not_combine_end_the_round_and_name_their_dealer():
    # Each share opens and is committed to; together they are of another secret. It
    # shows only when they are combined, and the round is lost then.
    play = play_until("shares")
    state = play.clients[LIAR]
    play.clients[LIAR] = replace(state, self_mask=b"\x01" * 32)
    play.answer("shares")
    play.collect()
    play.answer("masked")
    play.collect()
    play.answer("consistency")
    play.collect()
    play.answer("reveal")
    assert play.errors == {}
    with pytest.raises(FaultyClientError, match="do not combine") as caught:
        play.collect()
    assert caught.value.client == LIAR


# Masked inputs.


def masked_input(play, words, **changes):
    message = decode(MaskedInput, play.replies[LIAR])
    header = told(play, message.header, MaskedHeader)
    header = replace(header, vector_hash=vector_hash(words), **changes)
    return encode(MaskedInput(signed(play, header), words))


@pytest.mark.parametrize("length", [0, 4 * 10, 4 * 12, 4 * 11 - 1, 4 * 11 + 1, 10_000])
def test_a_vector_that_is_too_short_or_too_long_is_left_out(length):
    play = answered("masked")
    play.replies[LIAR] = masked_input(play, bytes(length))
    check_dropped(play, "masked", "another length")


@pytest.mark.parametrize("length", [0, 27, 29, 4 * 11])
def test_a_packed_vector_that_is_too_short_or_too_long_is_left_out(length):
    play = answered("masked", modulus_bits=20)
    play.replies[LIAR] = masked_input(play, bytes(length))
    check_dropped(play, "masked", "another length")


@pytest.mark.parametrize("place", [4, 5, 6, 7])
def test_a_vector_with_bits_after_its_last_word_is_left_out(place):
    """A word above the modulus cannot be written; what is left over must be zero."""
    play = answered("masked", modulus_bits=20)
    words = bytearray(decode(MaskedInput, play.replies[LIAR]).words)
    assert 8 * len(words) - 20 * 11 == 4
    words[-1] |= 1 << place
    play.replies[LIAR] = masked_input(play, bytes(words))
    check_dropped(play, "masked", "bits after its last word")


def test_words_that_were_not_signed_are_left_out():
    play = answered("masked")
    message = decode(MaskedInput, play.replies[LIAR])
    words = bytes([message.words[0] ^ 1]) + message.words[1:]
    play.replies[LIAR] = encode(replace(message, words=words))
    check_dropped(play, "masked", "did not sign")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapter_digest": b"\x01" * 32}, "another adapter"),
        ({"roster_hash": b"\x01" * 32}, "another roster or sharers"),
        ({"sharers_hash": b"\x01" * 32}, "another roster or sharers"),
    ],
)
def test_a_vector_masked_for_something_else_is_left_out(changes, reason):
    play = answered("masked")
    words = decode(MaskedInput, play.replies[LIAR]).words
    play.replies[LIAR] = masked_input(play, words, **changes)
    check_dropped(play, "masked", reason)


# Reveals.


def revealing(change):
    """A round of four in which one dropped out and the liar alters its shares."""
    play = play_until("masked", make_terms(5))
    play.answer("masked")
    del play.replies["client-004"]
    play.collect()
    held = dict(play.clients[LIAR].key_shares)
    play.answer("consistency")
    play.collect()
    play.answer("reveal")
    reveal = told(play, play.replies[LIAR], Reveal)
    shares = list(reveal.shares)
    change(shares, held)
    play.replies[LIAR] = signed(play, replace(reveal, shares=tuple(shares)))
    play.collect()
    return play


def check_named(play, reason):
    assert reason in play.server.blamed[LIAR]
    survivors = (*HONEST, LIAR)
    assert np.array_equal(play.server.residues, plain_sum(play.terms, survivors))


def test_an_altered_share_names_who_revealed_it():
    def alter(shares, _):
        shares[0] = bytes(31) + b"\x01"

    check_named(revealing(alter), "'client-000' that was not dealt")


def test_the_other_share_of_a_dropout_names_who_revealed_it():
    def other(shares, held):
        shares[4] = held["client-004"].self_mask

    check_named(revealing(other), "'client-004' that was not dealt")


def test_a_share_above_the_prime_names_who_revealed_it():
    def over(shares, _):
        shares[2] = (PRIME + 1).to_bytes(32, "big")

    check_named(revealing(over), "below the prime")


def test_too_few_and_too_many_shares_name_who_revealed_them():
    check_named(revealing(lambda shares, _: shares.pop()), "more or fewer")
    check_named(revealing(lambda shares, _: shares.append(bytes(32))), "more or fewer")


def test_a_reveal_for_other_survivors_names_its_sender():
    play = answered("reveal")
    reveal = told(play, play.replies[LIAR], Reveal)
    play.replies[LIAR] = signed(play, replace(reveal, survivors_hash=bytes(32)))
    play.collect()
    check_named(play, "other survivors")


def test_a_ledger_head_that_was_altered_on_its_way_is_not_taken():
    play = answered("reveal")
    message = play.replies[LIAR]
    head = ledger_head(LIAR)
    assert message.count(head) == 1
    play.replies[LIAR] = message.replace(head, ledger_head("client-000"))
    play.collect()
    check_named(play, "not of key")
    assert play.server.heads == {name: ledger_head(name) for name in HONEST}


def test_the_head_of_one_clients_ledger_is_not_taken_for_anothers():
    play = answered("reveal")
    play.replies[LIAR] = play.replies["client-002"]
    play.collect()
    assert LIAR not in play.server.heads


def test_a_confirmation_of_other_sets_names_its_sender():
    play = answered("consistency")
    seen = told(play, play.replies[LIAR], Consistency)
    play.replies[LIAR] = signed(play, replace(seen, survivors_hash=bytes(32)))
    play.collect()
    assert play.server.blamed == {LIAR: "confirmed other sets than were announced"}
    assert LIAR not in play.messages


# Every message.


@pytest.mark.parametrize("phase", PHASES)
def test_a_message_of_an_earlier_round_is_a_dropout(phase):
    earlier = answered(phase, round_number=6)
    play = answered(phase)
    play.replies[LIAR] = earlier.replies[LIAR]
    play.collect()
    blamed = getattr(play.server, "wrong", {}) or play.server.blamed
    assert "another round or attempt" in blamed[LIAR]


@pytest.mark.parametrize("phase", PHASES)
def test_a_message_in_the_name_of_another_is_a_dropout(phase):
    play = answered(phase)
    play.replies[LIAR] = play.replies["client-000"]
    play.collect()
    blamed = getattr(play.server, "wrong", {}) or play.server.blamed
    assert "another sender" in blamed[LIAR]


@pytest.mark.parametrize("phase", PHASES)
def test_a_message_of_another_phase_is_a_dropout(phase):
    for other in PHASES:
        if other != phase:
            play = answered(phase)
            play.replies[LIAR] = answered(other).replies[LIAR]
            play.collect()
            blamed = getattr(play.server, "wrong", {}) or play.server.blamed
            assert set(blamed) == {LIAR}


@pytest.mark.parametrize("phase", PHASES)
def test_a_stale_protocol_version_is_a_dropout(phase):
    play = answered(phase)
    # The version is the first word of the envelope, which in key shares and masked
    # inputs stands behind its length.
    start = 8 if phase in ("shares", "masked") else 0
    message = play.replies[LIAR]
    assert message[start : start + 8] == (1).to_bytes(8, "big")
    play.replies[LIAR] = message[:start] + bytes(8) + message[start + 8 :]
    play.collect()
    blamed = getattr(play.server, "wrong", {}) or play.server.blamed
    assert "version 0" in blamed[LIAR]


@pytest.mark.parametrize("phase", PHASES)
def test_truncated_extended_and_flipped_messages_are_dropouts(phase):
    play = answered(phase)
    message = play.replies[LIAR]
    wrong = [message[:length] for length in range(0, len(message), 37)]
    for bit in range(0, 8 * len(message), 8 * len(message) // 60):
        data = bytearray(message)
        data[bit // 8] ^= 1 << (bit % 8)
        wrong.append(bytes(data))
    for data in (*wrong, message + b"\0", b"\xff" * 200):
        result = play.server.collect(play.replies | {LIAR: data})
        state = result[0] if isinstance(result, tuple) else result
        blamed = getattr(state, "wrong", {}) or state.blamed
        assert list(blamed) == [LIAR]
