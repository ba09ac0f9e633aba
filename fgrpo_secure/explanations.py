"""What is wrong with a configuration, in two lines for whoever wrote it.

And with the names in it that the data do not have, without those that they have.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fgrpo_secure.errors import ConfigurationError

# What an error says in the place of a file's columns; a check puts the list there.
COLUMNS_LISTED = "`fgrpo check` lists the columns for their owner."


@dataclass(frozen=True, slots=True)
class Guide:
    """Where whoever wrote a file finds what it may say.

    Attributes:
        document: that says what its keys mean.
        command: that writes a file to start from.
        tables: the sections that may be there several times.
    """

    document: str
    command: str
    tables: frozenset[str]


_CONFIGURATION = Guide("docs/configuration.md", "fgrpo init DIR", frozenset({"client"}))
POLICY_GUIDE = Guide(
    "docs/policy.md", "fgrpo policy init", frozenset({"data_set", "reward", "task"})
)


def explain(
    source: str,
    tree: Mapping[str, Any],
    error: ValidationError,
    known: Mapping[str, Sequence[str]],
    guide: Guide = _CONFIGURATION,
) -> ConfigurationError:
    """All that is wrong in one line, and what to do about each in another.

    Args:
        source: what the file is called.
        tree: what it holds.
        error: what is wrong with it. A validator's own text says what to do after its
            first semicolon.
        known: the keys that there are, by section.
        guide: to the kind of file that it is.
    """
    wrong, mend = [], []
    for problem in error.errors():
        what, fix = _problem(tree, problem, known, guide)
        wrong.append(what)
        if fix not in mend:
            mend.append(fix)
    return ConfigurationError(f"{source}: {'; '.join(wrong)}.", " ".join(mend))


def _problem(
    tree: Mapping[str, Any],
    problem: Mapping[str, Any],
    known: Mapping[str, Sequence[str]],
    guide: Guide,
) -> tuple[str, str]:
    """One of pydantic's findings: what is wrong, and what to do."""
    takes = f"{guide.document} says which values it takes."
    steps = _steps(tree, problem["loc"])
    where = ".".join(steps)
    kind = problem["type"]
    # Within a list the last steps are places; the key is before them.
    key = next((step for step in reversed(steps) if not step.isdigit()), "it")
    if kind == "extra_forbidden":
        return f"{where} is not a known key", _advice(steps, known, guide)
    if kind == "missing" and len(steps) == 1:
        repeated = where in guide.tables
        written = f"[[{where}]] tables" if repeated else f"section [{where}]"
        return (
            f"{where} is missing, and has no default",
            f"Add the {written}: `{guide.command}` writes a file that has all of them.",
        )
    if kind == "missing":
        return (
            f"{where} is missing, and has no default",
            f"Add it; {guide.document} says what {key} means.",
        )
    if kind == "tuple_type":
        written = f"[[{where}]], in double brackets"
        written = written if where in guide.tables else f'{key} = ["...", "..."]'
        return f"{where} is no list", f"Write {written}."
    if kind == "value_error":
        reason = problem["msg"].removeprefix("Value error, ")
        what, _, fix = reason.partition("; ")
        found = f"{where}: {what}" if where else what
        fix = f"{fix[:1].upper()}{fix[1:]}." if fix else f"Correct it; {takes}"
        return found, fix
    reason = problem["msg"].removeprefix("Input ")
    return f"{where} {reason}", f"Correct {key}; {takes}"


def _steps(tree: Mapping[str, Any], loc: Sequence[str | int]) -> list[str]:
    """The way to a value as `--set` writes it: a client goes by its name."""
    steps = [str(step) for step in loc]
    if len(loc) > 1 and isinstance(loc[1], int):
        table = tree[str(loc[0])][loc[1]]
        name = table.get("name") if isinstance(table, dict) else None
        steps[1] = name if isinstance(name, str) else f"(number {loc[1] + 1})"
    return steps


def _advice(
    steps: Sequence[str], known: Mapping[str, Sequence[str]], guide: Guide
) -> str:
    """What an unknown key was probably meant to be."""
    key = steps[-1]
    whole = len(steps) == 1
    homes = [name for name, keys in known.items() if key in keys]
    if homes and not whole:
        return f"{key} belongs in [{homes[0]}]."
    close = difflib.get_close_matches(key, known if whole else known[steps[0]], n=1)
    if close:
        return f"Did you mean {f'[{close[0]}]' if whole else close[0]}?"
    if homes:
        return f"{key} belongs in [{homes[0]}]."
    return f"Remove {key}, or see {guide.document} for what there is."


def column_advice(wanted: str, there: Iterable[str], name: str = "") -> str:
    """What to do about a column that is missing.

    Args:
        wanted: The column's name.
        there: The names that there are.
        name: What errors call the data set, where it may be at fault.

    Guarantee:
        Of the names that there are it holds none, but for one that is the wanted name
        in another spelling: other case, other punctuation, or an s at its end.
    """
    close = [shown(other) for other in there if _spelt(other) == _spelt(wanted)]
    words = [f"'{min(close)}' comes close."] if close and _spelt(wanted) else []
    if name.endswith(".csv") and not close:
        words.append("Its first line may not name its columns.")
    return " ".join([*words, COLUMNS_LISTED])


def shown(name: str) -> str:
    """A name as one line of a terminal can hold it."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _spelt(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold())).removesuffix("s")
