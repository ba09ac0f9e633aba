"""What the coordinator sees is uniform and the sum is exact; planted faults show."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from audits.canaries import audit_plan
from audits.fields import all_fields, compare_fields
from audits.rounds import NOTHING, Cohort
from audits.transcript import read_transcript
from privacy.crypto import Keystream
from privacy.secagg import client as client_side
from privacy.secagg import masks, unmasking


@pytest.fixture(scope="module")
def plan():
    return audit_plan(
        epsilon=8.0,
        delta=1e-5,
        clip_norm=Fraction(1, 10),
        norm_bound=2**15,
        min_survivors=4,
        colluders=1,
        canaries=10_000,
        units=1,
    )


def broken(evidence):
    return [finding.name for finding in evidence.findings if not finding.holds]


def test_a_real_transcript_looks_uniform_and_sums_exactly(plan):
    told = []
    evidence = read_transcript(plan, progress=lambda *said: told.append(said))
    assert broken(evidence) == []
    assert evidence.subject["bytes of one masked input"] == 40_004
    assert told[-1] == ("rounds", 8, 8)


@pytest.mark.parametrize(("bits", "size"), [(20, 25_003), (21, 26_253), (24, 30_003)])
def test_packed_words_look_uniform_too(plan, bits, size):
    evidence = read_transcript(replace(plan, modulus_bits=bits, rotation=True), 2)
    assert broken(evidence) == []
    assert evidence.subject["bytes of one masked input"] == size


def test_packed_words_without_masks_are_seen(plan, monkeypatch):
    masking(monkeypatch, lambda residues, **_: None)
    names = broken(read_transcript(replace(plan, modulus_bits=20), 2))
    assert "masked input of client-000: chi-square of its bytes" in names
    assert "masked input of client-000 with its vector" in names


def masking(monkeypatch, stand_in):
    """Put another masking in both places, so that sums stay right."""
    for place in (client_side, unmasking):
        monkeypatch.setattr(place, "apply_masks", stand_in)


def test_vectors_without_masks_are_seen(plan, monkeypatch):
    masking(monkeypatch, lambda residues, **_: None)
    names = broken(read_transcript(plan, 2))
    assert "masked input of client-000: chi-square of its bytes" in names
    assert "masked input of client-000 with its vector" in names
    assert "coordinates of the sums that are not the plain sum" not in names


def test_masks_of_half_the_bits_are_seen(plan, monkeypatch):
    def half(residues, *, added, subtracted, modulus_bits):
        for keys, sign in ((added, 1), (subtracted, -1)):
            for key in keys:
                mask = np.zeros_like(residues)
                masks.apply_masks(
                    mask, added=[key], subtracted=[], modulus_bits=modulus_bits
                )
                residues += np.uint32(sign % 2**32) * (mask & np.uint32(0xFFFF))

    masking(monkeypatch, half)
    names = broken(read_transcript(plan, 2))
    assert "mask of client-001: chi-square of its bytes" in names
    assert "coordinates of the sums that are not the plain sum" not in names


def test_masks_that_are_used_in_two_rounds_are_seen(plan, monkeypatch):
    real = Cohort.aggregate

    def repeated(cohort, vectors, number=1, entropy=None):
        return real(cohort, vectors, number, Keystream(bytes(32)).read)

    monkeypatch.setattr(Cohort, "aggregate", repeated)
    names = broken(read_transcript(plan, 2))
    wanted = "difference of one client's masked inputs in two rounds"
    assert f"{wanted}: chi-square of its bytes" in names
    assert "encrypted key shares that come twice" in names
    assert "masked input of client-000: chi-square of its bytes" not in names


def test_one_mask_for_all_clients_is_seen(plan, monkeypatch):
    def shared(residues, *, added, subtracted, modulus_bits):
        masks.apply_masks(
            residues, added=[bytes(32)], subtracted=[], modulus_bits=modulus_bits
        )

    monkeypatch.setattr(client_side, "apply_masks", shared)
    names = broken(read_transcript(plan, 2))
    wanted = "difference of two clients' masked inputs"
    assert f"{wanted}: chi-square of its bytes" in names


def test_a_mask_that_one_client_leaves_out_is_seen_in_the_sum(plan, monkeypatch):
    calls = 0

    def forgetting(residues, *, added, subtracted, modulus_bits):
        nonlocal calls
        calls += 1
        if calls % 4 == 2:
            added = added[:-1]
        masks.apply_masks(
            residues, added=added, subtracted=subtracted, modulus_bits=modulus_bits
        )

    monkeypatch.setattr(client_side, "apply_masks", forgetting)
    names = broken(read_transcript(plan, 2))
    assert "coordinates of the sums that are not the plain sum" in names
    # The other masks still hide the vector: only the sum can tell.
    assert "masked input of client-001: chi-square of its bytes" not in names


def test_a_field_whose_value_depends_on_data_is_seen(plan, monkeypatch):
    real = client_side.AwaitingQuorum.reveal

    def telling(state, quorum, _):
        return real(state, quorum, state.seen.survivors_hash)

    monkeypatch.setattr(client_side.AwaitingQuorum, "reveal", telling)
    names = broken(read_transcript(plan, 2))
    assert names == [
        "fields with another value for other data, but of the masked words"
    ]


def test_fields_are_compared_in_number_length_and_value():
    fields = {"a/masked-input.words": b"1234", "a/reveal.shares[0]": b"56"}
    other_words = fields | {"a/masked-input.words": b"4321"}
    longer = fields | {"a/masked-input.words": b"12345"}
    another = fields | {"a/reveal.shares[0]": b"65"}
    for changed, values in (
        (fields, [0, 0, 0]),
        (other_words, [0, 0, 0]),
        (longer, [0, 1, 0]),
        (another, [0, 0, 1]),
        (fields | {"a/reveal.more": b""}, [1, 0, 0]),
    ):
        found = compare_fields(fields, changed)
        assert [finding.value for finding in found] == values
        assert [finding.holds for finding in found] == [not value for value in values]


def test_every_phase_has_fields_and_masked_words_are_among_them(plan):
    cohort = Cohort.of(plan)
    vectors = {
        name: cohort.contribute(name, NOTHING).vector for name in cohort.survivors
    }
    fields = all_fields(cohort.aggregate(vectors))
    phases = {at.partition("/")[2].partition(".")[0] for at in fields}
    assert phases == {"advert", "key-shares", "masked-input", "consistency", "reveal"}
    assert len(fields["client-000/masked-input.words"]) == 4 * plan.vector_length
    assert len(fields["client-000/reveal.shares[3]"]) == 32
