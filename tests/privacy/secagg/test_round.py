"""Whole rounds: with nothing wrong but dropouts, the secure sum is the plain sum."""

import random
from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import BelowThresholdError
from privacy.packing import packed_bytes, unpack
from privacy.plan import threshold
from privacy.secagg.messages import MaskedInput
from privacy.wire import decode
from tests.privacy.secagg.harness import (
    PHASES,
    client_names,
    finish,
    ledger_head,
    make_terms,
    noised,
    plain_sum,
    play_until,
    run_round,
)


def subsets(names):
    return chain.from_iterable(combinations(names, k) for k in range(len(names) + 1))


def expected_survivors(terms, drops):
    """Who must be in the sum, or None where the round must end below the threshold."""
    gone = {phase: set(drops.get(phase, ())) for phase in PHASES}
    roster = set(terms.cohort) - gone["advert"]
    t = threshold(len(roster), terms.colluders)
    least = max(t, terms.min_survivors)
    if len(roster) < max(3, least):
        return None
    sharers = roster - gone["shares"]
    survivors = sharers - gone["masked"]
    confirmed = survivors - gone["consistency"]
    revealed = confirmed - gone["reveal"]
    if min(len(sharers), len(survivors)) < least or min(
        len(confirmed), len(revealed)
    ) < max(t, 1):
        return None
    return survivors


def check_round(terms, drops):
    survivors = expected_survivors(terms, drops)
    if survivors is None:
        with pytest.raises(BelowThresholdError):
            run_round(terms, drops=drops)
        return
    outcome = run_round(terms, drops=drops)
    assert outcome.unmasked.survivors == tuple(sorted(survivors))
    assert np.array_equal(outcome.unmasked.residues, plain_sum(terms, survivors))
    assert outcome.errors == {}
    assert outcome.unmasked.blamed == {}
    gone = {*drops.get("consistency", ()), *drops.get("reveal", ())}
    assert outcome.unmasked.heads == {
        name: ledger_head(name) for name in survivors - gone
    }
    # Whoever is in the sum concludes, also where its last messages came too late.
    assert set(outcome.published) == survivors
    for published in outcome.published.values():
        assert published.survivors == outcome.unmasked.survivors
        assert published.transcript_hash == outcome.unmasked.transcript_hash


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(
    ("count", "colluders"),
    [(3, 0), (3, 1), (4, 0), (4, 1), (5, 0), (5, 1), (6, 0)],
)
def test_every_dropout_subset_sums_exactly_or_ends_below_the_threshold(
    count, colluders, phase
):
    terms = make_terms(count, colluders=colluders, min_survivors=max(2, colluders + 1))
    for gone in subsets(client_names(count)):
        check_round(terms, {phase: gone})


def test_every_way_in_which_three_leave_sums_exactly_or_ends_below_the_threshold():
    # Not one phase alone: each of three stays, or leaves in any of the five.
    terms = make_terms(3)
    for leaving in product((*PHASES, None), repeat=3):
        drops = {
            phase: [
                name
                for name, left in zip(client_names(3), leaving, strict=True)
                if left == phase
            ]
            for phase in PHASES
        }
        check_round(terms, drops)


@pytest.mark.parametrize("seed", range(5))
def test_fifty_of_which_a_fifth_leaves_sum_exactly(seed):
    # Ten of fifty, each in a phase at random; of two seeds all in one phase.
    draw = random.Random(seed)  # noqa: S311
    names = client_names(50)
    gone = draw.sample(names, 10)
    drops = {phase: [] for phase in PHASES}
    for name in gone:
        phase = draw.choice(PHASES) if seed < 3 else PHASES[seed - 1]
        drops[phase].append(name)
    terms = make_terms(
        50, colluders=draw.choice([0, 9]), min_survivors=30, vector_length=5
    )
    assert expected_survivors(terms, drops) is not None
    check_round(terms, drops)


def test_fifty_of_which_too_many_leave_end_below_the_threshold():
    names = client_names(50)
    # t is 30 with 9 colluders: the one who is too many leaves in the last phase.
    terms = make_terms(50, colluders=9, min_survivors=30, vector_length=5)
    drops = {"masked": names[:10], "consistency": names[10:20], "reveal": names[20:21]}
    check_round(terms, drops | {"reveal": ()})
    assert expected_survivors(terms, drops) is None
    check_round(terms, drops)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_dropouts_in_every_phase_at_once_sum_exactly_or_end_the_round(data):
    count = data.draw(st.integers(3, 6))
    colluders = data.draw(st.integers(0, 1))
    terms = make_terms(
        count,
        colluders=colluders,
        min_survivors=data.draw(st.integers(2, count)),
        modulus_bits=data.draw(st.sampled_from([1, 16, 20, 31, 32])),
        vector_length=data.draw(st.integers(1, 9)),
    )
    leaving = st.sets(st.sampled_from(client_names(count)), max_size=1)
    check_round(terms, {phase: data.draw(leaving) for phase in PHASES})


def test_min_survivors_above_the_threshold_is_kept():
    terms = make_terms(4, min_survivors=4)
    check_round(terms, {})
    check_round(terms, {"masked": ["client-000"]})
    # The sum is fixed by then: its noise is in it whoever goes.
    check_round(terms, {"consistency": ["client-000"]})


def test_states_that_were_never_stored_give_the_same_sum():
    terms = make_terms(4)
    drops = {"masked": ["client-001"]}
    stored = run_round(terms, drops=drops)
    unstored = run_round(terms, drops=drops, restoring=False)
    assert np.array_equal(stored.unmasked.residues, unstored.unmasked.residues)
    assert stored.unmasked.transcript == unstored.unmasked.transcript


@pytest.mark.parametrize("bits", range(8, 33))
def test_the_sum_is_exact_at_every_number_of_bits(bits):
    """Full-range words, so that the sum wraps, with a dropout whose masks stay."""
    terms = make_terms(4, modulus_bits=bits, vector_length=29)
    survivors = sorted(terms.cohort.keys() - {"client-001"})
    play = play_until("masked", terms)
    play.answer("masked")
    del play.replies["client-001"]
    for sent in play.replies.values():
        assert len(decode(MaskedInput, sent).words) == packed_bytes(29, bits)
    outcome = finish_collecting(play)
    assert np.array_equal(outcome.unmasked.residues, plain_sum(terms, survivors))


def test_a_masked_vector_of_zeros_looks_random():
    # Not a proof: it catches a mask that was left out or taken off again.
    terms = make_terms(3, vector_length=4000)
    play = play_until("masked", terms)
    play.vectors = dict.fromkeys(
        terms.cohort, noised(terms, np.zeros(4000, dtype=np.uint32))
    )
    play.answer("masked")
    for sent in play.replies.values():
        words = unpack(decode(MaskedInput, sent).words, 4000, 32)
        assert abs(np.unpackbits(words.view(np.uint8)).mean() - 0.5) < 0.01
        assert len(np.unique(words)) > 3990
    outcome = finish_collecting(play)
    assert not outcome.unmasked.residues.any()


def finish_collecting(play):
    play.collect()
    return finish(play, "consistency")


def test_a_cohort_of_thirty_with_dropouts_sums_exactly():
    terms = make_terms(30, colluders=9, min_survivors=20)
    names = client_names(30)
    check_round(
        terms,
        {
            "advert": names[:1],
            "shares": names[1:3],
            "masked": names[3:7],
            "consistency": names[7:9],
            "reveal": names[9:10],
        },
    )
