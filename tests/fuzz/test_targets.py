"""The fuzz targets over their seeds and over what hypothesis makes of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audits.verify_ledger import BrokenError
from privacy.errors import MalformedMessageError, PrivacyError
from tests.fuzz.seeds import main, seeds
from tests.fuzz.targets import GROUPS, LOGS, PARSERS, STATES, agree, run_input, same

TARGETS = PARSERS | STATES | LOGS
SEEDS = tuple(seeds())


def test_every_target_has_a_seed_that_it_accepts():
    assert {name for name, _ in SEEDS} == TARGETS.keys()
    for name, data in SEEDS:
        TARGETS[name](data)


def test_a_target_that_writes_other_bytes_is_seen():
    with pytest.raises(AssertionError):
        same(b"a", b"b")


def test_a_thing_that_one_verifier_reads_and_the_other_does_not_is_seen():
    def refuse():
        raise MalformedMessageError("no")

    def refuse_too():
        raise BrokenError(1, "no")

    agree(refuse, refuse_too)
    agree(bool, bool)
    for pair in ((refuse, bool), (bool, refuse_too)):
        with pytest.raises(AssertionError):
            agree(*pair)


def test_seeds_are_stored_under_the_number_of_their_target(tmp_path):
    for group in GROUPS:
        main(group, tmp_path / group)
        stored = [path.read_bytes() for path in (tmp_path / group).iterdir()]
        assert {data[0] for data in stored} == set(range(len(GROUPS[group])))
        for data in stored:
            run_input(GROUPS[group], data)


@st.composite
def near_seeds(draw):
    """A seed of some target, with a few bytes changed, cut out or put in."""
    name, seed = draw(st.sampled_from(SEEDS))
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        gone = draw(st.integers(0, 9))
        data[place : place + gone] = draw(st.binary(max_size=9))
    return name, bytes(data)


@settings(max_examples=600)
@given(near_seeds())
def test_what_is_nearly_right_is_read_or_refused(found):
    name, data = found
    try:
        TARGETS[name](data)
    except PrivacyError:
        return


@settings(max_examples=300)
@given(st.sampled_from(sorted(GROUPS)), st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(group, data):
    run_input(GROUPS[group], data)
