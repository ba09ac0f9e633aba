"""The embedded rewards: exact, in range, four different ranges."""

from __future__ import annotations

import pytest

from fgrpo_secure.assets import rewards

RANGES = {
    "sums": (0.0, 10.0),
    "sort": (0.0, 1.0),
    "count": (-1.0, 1.0),
    "shift": (-5.0, 0.0),
}


@pytest.mark.parametrize(("name", "expected"), RANGES.items())
def test_only_the_exact_answer_earns_the_top_of_the_range(name, expected):
    reward = getattr(rewards, name)
    bottom, top = expected
    completions = ["85", " 85\n", "8", "855", "85 5", "", "-85", "85="]

    values = reward(
        ["add 47+38="] * len(completions),
        completions,
        answer=["85"] * len(completions),
        other=["ignored"] * len(completions),
    )

    assert values == [top, top, *[bottom] * 6]
    assert all(type(value) is float for value in values)


def test_each_completion_is_held_against_its_own_answer():
    values = rewards.sort(["x", "y"], ["abc", "abc"], answer=["abc", "abd"])

    assert values == [1.0, 0.0]


def test_too_few_answers_are_an_error_and_not_a_shorter_list():
    with pytest.raises(ValueError, match="shorter"):
        rewards.count(["x", "y"], ["1", "2"], answer=["1"])


def test_the_four_ranges_differ_and_are_the_stated_ones():
    stated = {name: getattr(rewards, f"{name.upper()}_RANGE") for name in RANGES}

    assert stated == RANGES
    assert len(set(stated.values())) == 4
