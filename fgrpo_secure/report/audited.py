"""Results of audits, as `fgrpo audit` leaves them, put in one form.

They are signed by nobody. Those of the release were made on made-up data by this code;
those in a run's folder by whoever put them there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What the results that came with the program are called.
RELEASE = "release"

# JSON has integers that no float holds.
_GREATEST = 1e300


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an audit looked at.

    Attributes:
        name: what.
        value: what it read.
        holds: whether the claim stands.
    """

    name: str
    value: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Audited:
    """One audit's result.

    Attributes:
        name: of the audit.
        source: file that it was read from.
        subject: what was attacked.
        method: what a result says, in words.
        findings: all of them.
        refuted: whether the claim does not stand.
    """

    name: str
    source: str
    subject: str
    method: str
    findings: tuple[Finding, ...]
    refuted: bool

    @property
    def released(self) -> bool:
        """Whether it came with the program, and not with the folder."""
        return self.source.startswith(f"{RELEASE}/")

    @property
    def held(self) -> int:
        """Findings that hold."""
        return sum(finding.holds for finding in self.findings)


def read_audits(folders: Sequence[tuple[str, Path]]) -> tuple[Audited, ...]:
    """All results in these folders; a file in another form is named and not counted.

    Args:
        folders: how to call each, and where it is; one that is missing holds none.
    """
    found = []
    for called, folder in folders:
        for path in sorted(folder.glob("*.json")):
            # It is printed, and a terminal would obey what a page does not.
            name = path.name if path.name.isprintable() else ascii(path.name)
            source = f"{called}/{name}"
            try:
                if not path.is_file():
                    msg = "not a file"
                    raise TypeError(msg)
                said = json.loads(path.read_text("utf-8"))
                found.append(_read(said, path.stem, source))
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                unread = "in no form that is known, and not counted"
                found.append(Audited(path.stem, source, unread, "", (), refuted=False))
    return tuple(found)


def _read(said: Mapping[str, object], stem: str, source: str) -> Audited:
    """One result.

    Raises:
        KeyError, TypeError, ValueError: it is in no form that is known.
    """
    refuted = said["refuted"]
    if not isinstance(refuted, bool):
        msg = "no verdict"
        raise TypeError(msg)
    if "attacks" in said:
        audited = _attacks(said, source, refuted=refuted)
    elif "rows" in said:
        audited = _planted(said, source, refuted=refuted)
    else:
        audited = _evidence(said, stem, source, refuted=refuted)
    if not audited.findings:
        msg = "nothing was found"
        raise ValueError(msg)
    return audited


def _attacks(said: Mapping[str, object], source: str, *, refuted: bool) -> Audited:
    """What `fgrpo audit canaries --json` prints."""
    findings, deltas, levels, scores = [], [], [], []
    for name, attack in _table(said["attacks"]).items():
        one = _table(attack)
        least = _real(one["epsilon_lower_bound"])
        claimed = _real(one["epsilon_claimed"])
        weak = " (weak: the attack shows less than it should)" if one["weak"] else ""
        value = f"at least {least:.3f} lost, of {claimed:g} claimed{weak}"
        findings.append(Finding(str(name), value, least <= claimed))
        deltas.append(f"{_real(one['delta']):g}")
        levels.append(f"{_real(one['confidence']):.0%}")
        scores.append(f"{_real(one['scores']):.0f}")
    broken = refuted or not all(finding.holds for finding in findings)
    return Audited(
        "gradient canaries",
        source,
        f"trust {said['trust']}, one round without sampling, noise recalibrated to the "
        "claim",
        f"bound on epsilon from below at delta {'/'.join(sorted(set(deltas)))}, "
        f"confidence {'/'.join(sorted(set(levels)))}, {'/'.join(scores)} scores",
        tuple(findings),
        broken,
    )


def _planted(said: Mapping[str, object], source: str, *, refuted: bool) -> Audited:
    """What `fgrpo audit planted --json` prints: bugs that have to be caught.

    A row that was not caught is right where nothing was planted; the verdict knows.
    """
    rows = said["rows"]
    if not isinstance(rows, list):
        msg = "no rows"
        raise TypeError(msg)
    findings = [
        Finding(
            f"{row['bug']} ({row['check']})",
            f"{row['read']}: {'caught' if row['caught'] else 'not caught'}",
            not refuted,
        )
        for row in map(_table, rows)
    ]
    return Audited(
        "planted bugs",
        source,
        "test doubles of the mechanism with one bug each, and the mechanism itself",
        "every bug has to be caught, and the mechanism itself not",
        tuple(findings),
        refuted,
    )


def _evidence(
    said: Mapping[str, object], stem: str, source: str, *, refuted: bool
) -> Audited:
    """What `fgrpo audit noise-fit` and `transcript` leave."""
    found = said["findings"]
    if not isinstance(found, list):
        msg = "no findings"
        raise TypeError(msg)
    findings = tuple(
        Finding(
            str(one["name"]),
            f"{_real(one['value']):.5g}, p {_real(one['p_value']):.3g}",
            one["holds"] is True,
        )
        for one in map(_table, found)
    )
    about = _table(said["subject"])
    return Audited(
        str(said.get("audit", stem)),
        source,
        "; ".join(f"{name} {value}" for name, value in about.items()),
        "chance alone refutes a right mechanism with probability of at most "
        f"{_real(said['false_alarm']):.1e}",
        findings,
        refuted or not all(finding.holds for finding in findings),
    )


def _table(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        msg = "not an object"
        raise TypeError(msg)
    return value


def _real(value: object) -> float:
    """A number; anything else is no result.

    Raises:
        TypeError, ValueError: it is none, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = "not a number"
        raise TypeError(msg)
    if not abs(value) < _GREATEST:
        msg = "not a number that an audit gives"
        raise ValueError(msg)
    return float(value)
