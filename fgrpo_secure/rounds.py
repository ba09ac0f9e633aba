"""What the coordinator notes of each round: who was in it, and what it took.

The lines lie in the coordinator's own folder and are signed by nobody; the ledgers are
what counts. Survivors, bytes and the sum of the weights are public: the coordinator
sees them, and they are counts, constants of the plan, or made from noised statistics.
Seconds depend on what was drawn. The guarantee does not cover them, so they are shown
for a whole run only, and never sent anywhere.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fgrpo_secure.secrets import append_privately

if TYPE_CHECKING:
    from fgrpo_secure.runtime.exchange import Exchange

_FILE = "rounds.jsonl"

# JSON has integers that no float holds.
_GREATEST = 2**53


@dataclass(frozen=True, slots=True)
class RoundNote:
    """One round, as the coordinator saw it.

    Attributes:
        round: from 1.
        published: whether a sum was opened and the adapter moved.
        survivors: clients in the sum, 0 without one.
        weights: what the sum was divided by: each client's weight times its expected
            batch over the largest one; 0 without a sum.
        down: bytes sent, by phase.
        up: bytes received, by phase.
        seconds: from sending to the last answer, by phase; not public.
    """

    round: int
    published: bool
    survivors: int
    weights: float
    down: Mapping[str, int] = field(default_factory=dict)
    up: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class _Weighed(Mapping[str, bytes]):
    """Messages whose sizes are noted as they are fetched to be sent.

    A message may be made only then, since an adapter for each client at once would fill
    the memory; and what is not fetched was not sent.

    Args:
        messages: by client.
    """

    def __init__(self, messages: Mapping[str, bytes]) -> None:
        self._messages = messages
        self.sizes: dict[str, int] = {}

    def __getitem__(self, name: str) -> bytes:
        message = self._messages[name]
        self.sizes[name] = len(message)
        return message

    def __iter__(self) -> Iterator[str]:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)


class Meter:
    """An exchange that counts what passes through it.

    Args:
        exchange: what carries the messages.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._down: Counter[str] = Counter()
        self._up: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}

    def exchange(
        self, phase: str, messages: Mapping[str, bytes], deadline: float
    ) -> dict[str, bytes]:
        """Carry one phase and count it."""
        began = time.monotonic()
        weighed = _Weighed(messages)
        answers = self._exchange.exchange(phase, weighed, deadline)
        took = time.monotonic() - began
        self._down[phase] += sum(weighed.sizes.values())
        self._up[phase] += sum(map(len, answers.values()))
        self._seconds[phase] = self._seconds.get(phase, 0.0) + took
        return answers

    def noted(
        self, number: int, *, published: bool, survivors: int, weights: float
    ) -> RoundNote:
        """All that was counted, as the note of one round."""
        seconds = {phase: round(value, 4) for phase, value in self._seconds.items()}
        return RoundNote(
            round=number,
            published=published,
            survivors=survivors,
            weights=weights,
            down=dict(self._down),
            up=dict(self._up),
            seconds=seconds,
        )


def write_note(folder: Path, noted: RoundNote) -> None:
    """Add a line to the coordinator's notes in its private folder."""
    append_privately(folder / _FILE, json.dumps(asdict(noted)))


def read_notes(folder: Path) -> dict[int, RoundNote]:
    """The notes that can be read, by round; none where there is no file.

    Nothing vouches for them, so that a line which is not in its form is passed over.
    """
    path = folder / _FILE
    try:
        # A pipe in its place would be read for ever.
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    except (OSError, ValueError):
        return {}
    found: dict[int, RoundNote] = {}
    for line in lines:
        noted = _parse(line)
        if noted is not None:
            found[noted.round] = noted
    return found


def _parse(line: str) -> RoundNote | None:
    try:
        said = json.loads(line)
        numbers = [said[name] for name in ("round", "survivors")]
        (weights,) = _by_phase({"weights": said["weights"]}).values()
        tables = [_by_phase(said[name]) for name in ("down", "up", "seconds")]
        published = said["published"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(published, bool) or not _are_counts(numbers):
        return None
    return RoundNote(numbers[0], published, numbers[1], weights, *tables)


def _by_phase(table: Mapping[str, float]) -> dict[str, float]:
    """Numbers by phase.

    Raises:
        ValueError: a number that is none, or below zero.
    """
    for value in table.values():
        if isinstance(value, bool) or not 0 <= value < _GREATEST:
            msg = "not a number"
            raise ValueError(msg)
    return {str(phase): float(value) for phase, value in table.items()}


def _are_counts(values: Iterable[object]) -> bool:
    return all(
        isinstance(value, int)
        and not isinstance(value, bool)
        and 0 <= value < _GREATEST
        for value in values
    )
