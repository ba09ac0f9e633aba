"""The embedded data: distinct, disjoint, and right by an independent computation."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from fgrpo_secure.assets import make, tasks

DATA = Path(str(resources.files("fgrpo_secure.assets"))) / "data"
NAMES = [family.name for family in tasks.FAMILIES]


def rows(name):
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def independent_answer(name, prompt):
    """Work an answer out from the prompt's text alone, another way than `tasks`."""
    if name == "sums":
        terms = re.fullmatch(r"add (\d\d)\+(\d\d)=", prompt)
        total = sum(map(int, terms.groups()))
        assert total // 10 != int(terms[1][0]) + int(terms[2][0]), "does not carry"
        return f"{total}"
    if name == "sort":
        word = re.fullmatch(r"sort ([a-z]{3})=", prompt)[1]
        return min(word) + max(min(word[:2]), min(max(word[:2]), word[2])) + max(word)
    if name == "count":
        letter, word = re.fullmatch(r"#([a-d]) ([a-d]{6})=", prompt).groups()
        return f"{len(re.findall(letter, word))}"
    word = re.fullmatch(r"next ([a-z]{3})=", prompt)[1]
    return "".join("a" if c == "z" else chr(ord(c) + 1) for c in word)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_distinct_prompts(name):
    training, held_out = rows(name), rows(f"{name}-heldout")

    assert len(training) == tasks.TRAIN_PROMPTS >= 2000
    assert len(held_out) == tasks.HELD_OUT_PROMPTS >= 250
    together = {row["prompt"] for row in training + held_out}
    assert len(together) == len(training) + len(held_out)


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_agrees_with_an_independent_computation(name):
    for row in rows(name) + rows(f"{name}-heldout"):
        assert row["answer"] == independent_answer(name, row["prompt"])
        assert 1 <= len(row["answer"]) <= tasks.MAX_ANSWER_CHARACTERS
        assert row.keys() == {"prompt", "answer"}


@pytest.mark.parametrize("family", tasks.FAMILIES, ids=NAMES)
def test_no_careless_rule_is_ever_right_and_no_two_rules_agree(family):
    for prompt in family.prompts():
        answers = [rule.answer(prompt) for rule in family.rules]
        assert len(set(answers)) == len(answers), prompt


@pytest.mark.parametrize("family", tasks.FAMILIES, ids=NAMES)
def test_the_shares_of_the_rules_sum_to_one(family):
    assert sum(rule.share for rule in family.rules) == pytest.approx(1)
    assert all(0 < rule.share < 1 for rule in family.rules)


@pytest.mark.parametrize("family", tasks.FAMILIES, ids=NAMES)
def test_held_out_prompts_are_in_no_pre_training_text(family):
    held_out, training, rest = tasks.split(family)

    assert not set(held_out) & set(training + rest)
    assert {row["prompt"] for row in rows(f"{family.name}-heldout")} == set(held_out)
    assert len(held_out + training + rest) == len(set(family.prompts()))


def test_the_files_are_what_the_script_makes(tmp_path):
    make.write_data(tmp_path)

    made = sorted(tmp_path.iterdir())
    assert [path.name for path in made] == sorted(path.name for path in DATA.iterdir())
    for path in made:
        assert path.read_bytes() == (DATA / path.name).read_bytes(), path.name
