"""What no signature vouches for: scores, times, and files that need not be there.

It may be anything that somebody wrote there, or nothing. What is not in its form is
passed over, and what is not there is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgrpo_secure.report.facts import ClientFacts, RoundFacts

# JSON has integers that no float holds.
_GREATEST = 1e15

# More rounds than this are counted and not listed.
_MOST_LISTED = 12


@dataclass(frozen=True, slots=True)
class Summary:
    """What is taken from `summary.json`; the epsilons in it are verified elsewhere.

    Attributes:
        seconds: that the last process took, None where it does not say.
        scores: before and after, by client; None for each that is no score.
    """

    seconds: float | None
    scores: Mapping[str, tuple[float | None, float | None]]


def read_summary(folder: Path) -> Summary:
    """The summary of a run, which one that has not ended may lack."""
    path = folder / "summary.json"
    try:
        said = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        said = {}
    table = said if isinstance(said, dict) else {}
    clients = table.get("clients")
    scores = {}
    for client in clients if isinstance(clients, list) else []:
        name = client.get("name") if isinstance(client, dict) else None
        if isinstance(name, str):
            before, after = client.get("reward_before"), client.get("reward_after")
            scores.setdefault(name, (_share(before), _share(after)))
    return Summary(_number(table.get("seconds")), scores)


def missing(
    rounds: Sequence[RoundFacts],
    clients: Sequence[ClientFacts],
    summary: Summary,
    *,
    log_size: int,
    audited: bool,
) -> tuple[str, ...]:
    """What a run's folder may hold and this one does not, one sentence each."""
    lacking = [*_missing_notes(rounds), *_missing_scores(clients)]
    if summary.seconds is None:
        lacking.append("How long the run took is not in summary.json.")
    if not log_size:
        lacking.append("No checkpoint of the server's ledger is in ledger/.")
    if not audited:
        lacking.append("No result of an audit is in audits/.")
    return tuple(lacking)


def _missing_notes(rounds: Sequence[RoundFacts]) -> Iterator[str]:
    """Rounds without a note, and notes without a part of it."""
    noted = [one.note for one in rounds if one.note is not None]
    what = "weights, bytes and times"
    if rounds and not noted:
        yield (
            "The coordinator's notes of bytes and time are not in this folder: no "
            f"round has {what} (server/rounds.jsonl)."
        )
        return
    absent = [f"{one.number}" for one in rounds if one.note is None]
    if len(absent) > _MOST_LISTED:
        yield f"{len(absent):,} rounds have no note of {what} (server/rounds.jsonl)."
    elif absent:
        named = ", ".join(absent)
        yield f"No note of {what} of round {named} (server/rounds.jsonl)."
    if noted and not any(note.seconds for note in noted):
        yield "The coordinator's notes hold no times."


def _missing_scores(clients: Sequence[ClientFacts]) -> Iterator[str]:
    absent = [c.name for c in clients if None in {c.reward_before, c.reward_after}]
    if len(absent) == len(clients):
        yield "No held-out score is in summary.json."
    elif absent:
        yield f"No held-out score of {', '.join(absent)} is in summary.json."


def _share(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and number <= 1 else None


def _number(value: object) -> float | None:
    """A finite number from 0, or nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _GREATEST else None
