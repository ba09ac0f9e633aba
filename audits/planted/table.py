"""Runs every planted bug through its check, and writes the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audits.planted.checks import CHECKS, Reading
from audits.planted.faults import FAULTS, SOUND, Fault
from audits.rounds import Progress

BEGIN = "<!-- planted bugs: made by `fgrpo audit planted --write` -->"
END = "<!-- end of the planted bugs -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One planted bug and what its check read.

    Attributes:
        fault: what was planted.
        check: the name of the check.
        reading: what it read.
    """

    fault: Fault
    check: str
    reading: Reading

    @property
    def right(self) -> bool:
        """Whether the bug was caught; or, where there is none, none was seen."""
        return self.reading.caught == (self.fault is not SOUND)


def run_planted(effort: float = 1.0, progress: Progress | None = None) -> list[Row]:
    """Plant each bug and run its check; and every check on the sound mechanism.

    Args:
        effort: how many guesses the checks make, of those that the table has.
        progress: called with a label, what is done and what there is to do.
    """
    pairs = [(SOUND, check) for check in CHECKS]
    pairs += [(fault, fault.check) for fault in FAULTS]
    rows = []
    for number, (fault, check) in enumerate(pairs):
        with fault.planted():
            rows.append(Row(fault, check, CHECKS[check].read(effort)))
        if progress is not None:
            progress("planted bugs", number + 1, len(pairs))
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| switch | bug | check | what it read | caught |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row.fault.name}` | {row.fault.bug} | {CHECKS[row.check].words} "
        f"| {row.reading.text} | {'yes' if row.reading.caught else 'no'} |"
        for row in rows
    ]
    return "\n".join(lines)


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Replace what is between the two markers of a Markdown file.

    Raises:
        ValueError: the file does not have both markers, once each.
    """
    text = path.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        msg = f"{path.name} must have each of these lines once: {BEGIN} and {END}"
        raise ValueError(msg)
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}", "utf-8")
