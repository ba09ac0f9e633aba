import math
import sys

import numpy as np
import pytest

from fgrpo_secure.errors import ConfigurationError, RewardError
from fgrpo_secure.grpo.rewards import RewardSpec, load_rewards

SOURCE = """
import asyncio

def length(prompts, completions, **columns):
    return [float(len(c)) for c in completions]

def right(completions, answer):
    return [1.0 if c == a else 0.0 for c, a in zip(completions, answer)]

async def slow(prompts, completions, **columns):
    await asyncio.sleep(0)
    return [2.0] * len(completions)

def short(prompts, completions, **columns):
    return [1.0]

def text(prompts, completions, **columns):
    return ["1.0"] * len(completions)

def number(prompts, completions, **columns):
    return 1.0

def raising(prompts, completions, **columns):
    raise ValueError("SECRET " + prompts[0])

def leaving(prompts, completions, **columns):
    raise SystemExit(3)

def stopped(prompts, completions, **columns):
    raise KeyboardInterrupt

def mixed(prompts, completions, **columns):
    return [None, float("nan"), float("inf"), "x", True, 0.5][:len(completions)]

def greedy(prompts, completions, **columns):
    prompts.clear()
    completions.clear()
    columns["answer"].clear()
    return [0.0, 0.0]

def shown(prompts, completions, **columns):
    assert prompts[0] == [{"role": "user", "content": "hi"}], prompts
    assert completions[0] == [{"role": "assistant", "content": "ab"}]
    return [1.0] * len(completions)

not_a_function = 3
"""


@pytest.fixture
def load(tmp_path):
    (tmp_path / "my_rewards.py").write_text(SOURCE)

    def make(*names, low=0.0, high=10.0, weight=1.0):
        specs = [RewardSpec(f"my_rewards.py:{n}", low, high, weight) for n in names]
        return load_rewards(specs, tmp_path)

    return make


ROWS = (["p", "p"], ["ab", "abcd"], {"answer": ["ab", "x"]})


def test_rewards_are_weighted_summed_and_clipped_each(tmp_path):
    (tmp_path / "my_rewards.py").write_text(SOURCE)
    rewards = load_rewards(
        [
            RewardSpec("my_rewards.py:length", 0, 3, 0.5),
            RewardSpec("my_rewards.py:right", 0, 1, -2.0),
        ],
        tmp_path,
    )
    assert rewards.score(*ROWS).tolist() == [0.5 * 2 - 2, 0.5 * 3]
    assert rewards.range == (-2.0, 1.5)
    assert rewards.centred(np.array([-2.0, 1.5, -0.25, math.nan, 9.0])).tolist() == [
        *(-1.0, 1.0, 0.0, 0.0, 1.0)
    ]


def test_an_async_reward_is_awaited(load):
    assert load("slow").score(*ROWS).tolist() == [2.0, 2.0]


def test_a_function_of_a_module_is_found(tmp_path, monkeypatch):
    (tmp_path / "installed_rewards.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    spec = RewardSpec("installed_rewards:right", 0, 1)
    assert load_rewards([spec], tmp_path).score(*ROWS).tolist() == [1.0, 0.0]
    sys.modules.pop("installed_rewards")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", "returned 1 values for 2 completions"),
        ("text", "returned a str among its values"),
        ("number", "returned float instead of a list"),
        ("raising", "raised ValueError"),
    ],
)
def test_a_broken_reward_is_named_at_start_up_without_prompt_text(load, name, words):
    rewards = load(name)
    with pytest.raises(RewardError) as caught:
        rewards.check(["SECRET", "SECRET"], ["a", "b"], {})
    assert f"my_rewards.py:{name}" in caught.value.what
    assert words in caught.value.what
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_reward_that_asks_for_a_column_which_is_not_there_is_told_so(load):
    with pytest.raises(RewardError, match="takes 'answer'") as caught:
        load("right").check(["p"], ["a"], {"SECRET": ["a"], "Answers": ["a"]})
    assert "'Answers' comes close" in caught.value.fix
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", ["raising", "leaving"])
def test_a_reward_that_fails_when_it_is_tried_shows_no_column(load, name):
    with pytest.raises(RewardError) as caught:
        load(name).check(["p"], ["a"], {"SECRET": ["a"]})
    assert "`fgrpo check` lists the columns" in caught.value.fix
    assert "SECRET" not in str(caught.value)


# What a module raises while it is imported, and what is said of it.
IMPORTS = [
    ("table = {}\nfound = table['SECRET']\n", "(KeyError in my.py, line 2)."),
    ("import json\n\njson.loads('SECRET')\n", "(JSONDecodeError in my.py, line 3)."),
    ("raise ValueError('SECRET')\n", "(ValueError in my.py, line 1)."),
    ("raise ImportError('SECRET')\n", "(ImportError in my.py, line 1)."),
    ("raise SystemExit('SECRET')\n", "(SystemExit in my.py, line 1)."),
    ("raise type('E', (Exception,), {})('SECRET')\n", "(E in my.py, line 1)."),
    ("eval('SECRET SECRET')\n", "(SyntaxError in my.py, line 1)."),
    ("x = 1\nimport no_such_thing\n", "(ModuleNotFoundError: no_such_thing)."),
    ("from json import no_such_thing\n", "(ImportError: json)."),
    (
        "x = 'SECRET'\ndef f(:\n",
        "(SyntaxError: invalid syntax in my.py, line 2).",
    ),
]


@pytest.mark.parametrize(("code", "words"), IMPORTS)
@pytest.mark.parametrize("place", ["my.py", "inner.my", "inner"])
def test_a_module_that_fails_is_told_the_line_and_nothing_that_it_says(
    tmp_path, monkeypatch, code, words, place
):
    (tmp_path / "inner").mkdir()
    name = "__init__" if place == "inner" else "my"
    for path in (f"{name}.py", f"inner/{name}.py"):
        (tmp_path / path).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RewardError) as caught:
        load_rewards([RewardSpec(f"{place}:f", 0, 1)], tmp_path)
    for found in ("inner", "inner.my"):
        sys.modules.pop(found, None)
    assert caught.value.what.endswith(words.replace("my.py", f"{name}.py"))
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_ctrl_c_during_an_import_is_not_swallowed(tmp_path):
    (tmp_path / "my.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_rewards([RewardSpec("my.py:f", 0, 1)], tmp_path)


def test_a_reward_that_fails_is_told_the_line_also_where_it_is_async(tmp_path):
    code = "async def late(prompts, completions):\n    return [1 / len(prompts[1:])]\n"
    (tmp_path / "late.py").write_text(code)
    rewards = load_rewards([RewardSpec("late.py:late", 0, 1)], tmp_path)
    with pytest.raises(RewardError, match=r"ZeroDivisionError in late.py, line 2,"):
        rewards.check(["p"], ["a"], {})


def test_what_is_missing_or_beyond_the_range_is_counted_and_nothing_raised(load):
    (length,) = load("length", high=3.0).tally(*ROWS)
    assert (length.values, length.missing, length.outside) == (2, 0, 1)
    for name in ("short", "text", "number", "raising", "leaving"):
        (found,) = load(name).tally(*ROWS)
        assert (found.target, found.missing) == (f"my_rewards.py:{name}", 2)
        assert found.outside == 0


@pytest.mark.parametrize("name", ["short", "text", "number", "raising", "leaving"])
def test_after_the_draw_a_broken_reward_is_a_missing_one(load, name):
    assert np.isnan(load(name).score(*ROWS)).all()
    assert np.isnan(load("length", name).score(*ROWS)).all()


def test_a_row_without_a_finite_number_is_missing_and_the_others_stay(load):
    columns = {"answer": [""] * 6}
    values = load("mixed").score(["p"] * 6, [""] * 6, columns)
    assert np.isnan(values[:4]).all()
    assert values[4:].tolist() == [1.0, 0.5]


def test_ctrl_c_is_not_swallowed(load):
    with pytest.raises(KeyboardInterrupt):
        load("stopped").score(*ROWS)


def test_a_reward_cannot_take_rows_from_the_next_one(load):
    rows = (["p", "p"], ["ab", "abcd"], {"answer": ["ab", "x"]})
    assert load("greedy", "length").score(*rows).tolist() == [2.0, 4.0]
    assert rows == ROWS


def test_a_conversation_is_shown_as_trl_shows_it(load):
    prompt = ({"role": "user", "content": "hi"},)
    assert load("shown").score([prompt], ["ab"], {}).tolist() == [1.0]


@pytest.mark.parametrize(
    "target",
    [
        "my_rewards.py:nothing",
        "my_rewards.py:not_a_function",
        "other.py:f",
        "no_such_module_here:f",
        "plain",
        ":f",
    ],
)
def test_a_reward_that_cannot_be_loaded_is_named(tmp_path, target):
    (tmp_path / "my_rewards.py").write_text(SOURCE)
    with pytest.raises(RewardError) as caught:
        load_rewards([RewardSpec(target, 0, 1)], tmp_path)
    assert target.split(":")[0] in caught.value.what


@pytest.mark.parametrize(
    ("low", "high", "weight"), [(1, 1, 1), (0, math.inf, 1), (0, 1, 0)]
)
def test_a_range_or_weight_that_means_nothing_is_refused(load, low, high, weight):
    with pytest.raises(ConfigurationError):
        load("length", low=low, high=high, weight=weight)
