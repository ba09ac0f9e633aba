"""What is wrong with a configuration, in two lines for whoever wrote it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from fgrpo_secure.errors import ConfigurationError


def explain(
    source: str,
    tree: Mapping[str, Any],
    error: ValidationError,
    known: Mapping[str, Sequence[str]],
) -> ConfigurationError:
    """All that is wrong in one line, and what to do about each in another.

    Args:
        source: what the file is called.
        tree: what it holds.
        error: what is wrong with it. A validator's own text says what to do after its
            first semicolon.
        known: the keys that there are, by section.
    """
    wrong, mend = [], []
    for problem in error.errors():
        what, fix = _problem(tree, problem, known)
        wrong.append(what)
        if fix not in mend:
            mend.append(fix)
    return ConfigurationError(f"{source}: {'; '.join(wrong)}.", " ".join(mend))


def _problem(
    tree: Mapping[str, Any],
    problem: Mapping[str, Any],
    known: Mapping[str, Sequence[str]],
) -> tuple[str, str]:
    """One of pydantic's findings: what is wrong, and what to do."""
    steps = _steps(tree, problem["loc"])
    where = ".".join(steps)
    kind = problem["type"]
    # Within a list the last steps are places; the key is before them.
    key = next((step for step in reversed(steps) if not step.isdigit()), "it")
    if kind == "extra_forbidden":
        return f"{where} is not a known key", _advice(steps, known)
    if kind == "missing" and len(steps) == 1:
        written = "[[client]] tables" if steps == ["client"] else f"section [{where}]"
        return (
            f"{where} is missing, and has no default",
            f"Add the {written}: `fgrpo init DIR` writes a file that has all of them.",
        )
    if kind == "missing":
        return (
            f"{where} is missing, and has no default",
            f"Add it; docs/configuration.md says what {key} means.",
        )
    if kind == "value_error":
        reason = problem["msg"].removeprefix("Value error, ")
        what, _, fix = reason.partition("; ")
        found = f"{where}: {what}" if where else what
        return found, f"{fix[:1].upper()}{fix[1:]}." if fix else _SEE
    reason = problem["msg"].removeprefix("Input ")
    return f"{where} {reason}", f"Correct {key}; {_RANGES}"


_RANGES = "docs/configuration.md says which values it takes."
_SEE = f"Correct it; {_RANGES}"


def _steps(tree: Mapping[str, Any], loc: Sequence[str | int]) -> list[str]:
    """The way to a value as `--set` writes it: a client goes by its name."""
    steps = [str(step) for step in loc]
    if len(loc) > 1 and loc[0] == "client" and isinstance(loc[1], int):
        table = tree["client"][loc[1]]
        name = table.get("name")
        steps[1] = name if isinstance(name, str) else f"(number {loc[1] + 1})"
    return steps


def _advice(steps: Sequence[str], known: Mapping[str, Sequence[str]]) -> str:
    """What an unknown key was probably meant to be."""
    key = steps[-1]
    whole = len(steps) == 1
    close = difflib.get_close_matches(key, known if whole else known[steps[0]], n=1)
    if close:
        return f"Did you mean {f'[{close[0]}]' if whole else close[0]}?"
    homes = [name for name, keys in known.items() if key in keys]
    if homes:
        return f"{key} belongs in [{homes[0]}]."
    return f"Remove {key}, or see docs/configuration.md for what there is."
