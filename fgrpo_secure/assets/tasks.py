"""The four task families of the embedded default: prompts, answers, careless rules.

Everything here is public and synthetic. Each family knows all its prompts, the right
answer of each, and a few *careless rules*: the systematic mistakes that the base model
has read beside the right answers, each with its public share. A base model that has
learnt a rule and its careless variants answers rightly some of the time, as real base
models do, and reinforcement has something to choose between.

No generator is needed to choose prompts: they are ordered by a hash of their text, so
every machine and every Python makes the same files.
"""

from __future__ import annotations

import hashlib
import itertools
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LETTERS = string.ascii_lowercase
MAX_ANSWER_CHARACTERS = 3
TRAIN_PROMPTS = 3000
HELD_OUT_PROMPTS = 500


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to answer, and how often the pre-training text follows it.

    Attributes:
        name: what the rule does, for people.
        share: fraction of the pre-training text that follows it, in (0, 1).
        answer: maps a prompt to the answer under this rule, at most
            `MAX_ANSWER_CHARACTERS` characters.
    """

    name: str
    share: float
    answer: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Family:
    """One task: all its prompts, and the rules, the right one first.

    Attributes:
        name: the client's name, and the stem of its data files.
        prompts: yields every prompt of the family, each once.
        rules: the right rule, then the careless ones; the shares sum to one, and no
            two rules agree on any prompt.
    """

    name: str
    prompts: Callable[[], Iterator[str]]
    rules: tuple[Rule, ...]

    def answer(self, prompt: str) -> str:
        """Return the right answer of one of this family's prompts."""
        return self.rules[0].answer(prompt)


def split(family: Family) -> tuple[list[str], list[str], list[str]]:
    """Split a family's prompts into held-out, training and the rest.

    Returns:
        `HELD_OUT_PROMPTS` prompts, `TRAIN_PROMPTS` prompts and all others. The three
        lists share nothing. Pre-training reads the last two, never the first.
    """
    ordered = sorted(family.prompts(), key=_order)
    end = HELD_OUT_PROMPTS + TRAIN_PROMPTS
    return ordered[:HELD_OUT_PROMPTS], ordered[HELD_OUT_PROMPTS:end], ordered[end:]


def _order(prompt: str) -> bytes:
    return hashlib.sha256(b"fgrpo-secure embedded data/" + prompt.encode()).digest()


def _sum_prompts() -> Iterator[str]:
    """Yield `add 47+38=`: two numbers of two digits whose ones carry."""
    for a, b in itertools.product(range(10, 100), repeat=2):
        if a % 10 + b % 10 >= 10:
            yield f"add {a}+{b}="


def _sum(prompt: str) -> str:
    return str(int(prompt[4:6]) + int(prompt[7:9]))


def _sum_without_carry(prompt: str) -> str:
    return str(int(_sum(prompt)) - 10)


def _sum_with_two_carries(prompt: str) -> str:
    return str(int(_sum(prompt)) + 10)


def _sort_prompts() -> Iterator[str]:
    """Yield `sort dbc=`: three letters, in neither alphabetical nor reverse order."""
    for letters in itertools.permutations(LETTERS, 3):
        if list(letters) not in (sorted(letters), sorted(letters, reverse=True)):
            yield f"sort {''.join(letters)}="


def _ascending(prompt: str) -> str:
    return "".join(sorted(prompt[5:8]))


def _descending(prompt: str) -> str:
    return _ascending(prompt)[::-1]


def _unchanged(prompt: str) -> str:
    return prompt[5:8]


def _count_prompts() -> Iterator[str]:
    """Yield `#a bacaba=`: how often does the letter stand in the word?"""
    for word in itertools.product("abcd", repeat=6):
        for letter in sorted(set(word)):
            yield f"#{letter} {''.join(word)}="


def _count(prompt: str) -> str:
    return str(prompt[3:9].count(prompt[1]))


def _count_one_less(prompt: str) -> str:
    return str(int(_count(prompt)) - 1)


def _count_one_more(prompt: str) -> str:
    return str(int(_count(prompt)) + 1)


def _next_prompts() -> Iterator[str]:
    """Yield `next dog=`: replace every letter by the one after it; z wraps to a."""
    for letters in itertools.product(LETTERS, repeat=3):
        yield f"next {''.join(letters)}="


def _shifted(prompt: str, steps: int) -> str:
    alphabet = len(LETTERS)
    return "".join(
        LETTERS[(LETTERS.index(letter) + steps) % alphabet] for letter in prompt[5:8]
    )


def _one_after(prompt: str) -> str:
    return _shifted(prompt, 1)


def _one_before(prompt: str) -> str:
    return _shifted(prompt, -1)


FAMILIES = (
    Family(
        "sums",
        _sum_prompts,
        (
            Rule("adds", 0.30, _sum),
            Rule("forgets the carry", 0.50, _sum_without_carry),
            Rule("carries twice", 0.20, _sum_with_two_carries),
        ),
    ),
    Family(
        "sort",
        _sort_prompts,
        (
            Rule("sorts", 0.40, _ascending),
            Rule("sorts backwards", 0.35, _descending),
            Rule("leaves the letters", 0.25, _unchanged),
        ),
    ),
    Family(
        "count",
        _count_prompts,
        (
            Rule("counts", 0.50, _count),
            Rule("counts one less", 0.25, _count_one_less),
            Rule("counts one more", 0.25, _count_one_more),
        ),
    ),
    Family(
        "shift",
        _next_prompts,
        (
            Rule("goes one letter on", 0.20, _one_after),
            Rule("goes one letter back", 0.40, _one_before),
            Rule("leaves the letters", 0.40, _unchanged),
        ),
    ),
)
