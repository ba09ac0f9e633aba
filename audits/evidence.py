"""Statistical tests with a stated rate of false alarms, and how findings are told.

A test that holds proves little by itself; each is shown, in the tests, to fail for a
planted fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from privacy.packing import pack
from privacy.vectors import FloatVector, IntVector, ResidueVector

# A right mechanism fails one test with this probability.
FALSE_ALARM = 1e-6

_BYTE_VALUES = 256
_WORD_BITS, _BYTE = 32, 8
_LAW_BINS = 200
# From here on the discrete law and the rounded continuous one differ by less than any
# feasible number of draws can show.
_LEAST_STD = 30.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One question and its answer.

    Attributes:
        name: the question, in words.
        value: what was measured.
        p_value: how often a right mechanism is at least as far off; 0 or 1 where no
            chance is in play.
    """

    name: str
    value: float
    p_value: float

    @property
    def holds(self) -> bool:
        """Whether the mechanism stands."""
        return self.p_value >= FALSE_ALARM


@dataclass(frozen=True, slots=True)
class Evidence:
    """All findings of one audit.

    Attributes:
        audit: its name.
        subject: what was attacked, as numbers and words.
        findings: in the order in which they were made.
    """

    audit: str
    subject: dict[str, int | str]
    findings: tuple[Finding, ...]

    @property
    def refuted(self) -> bool:
        """Whether any finding does not hold."""
        return not all(finding.holds for finding in self.findings)

    @property
    def false_alarm(self) -> float:
        """Most by which chance alone refutes a right mechanism: all tests together."""
        return FALSE_ALARM * len(self.findings)

    def to_json(self) -> dict[str, Any]:
        """For a program to read."""
        return {
            "audit": self.audit,
            "refuted": self.refuted,
            "false_alarm": self.false_alarm,
            "subject": self.subject,
            "findings": [
                {
                    "name": finding.name,
                    "value": finding.value,
                    "p_value": finding.p_value,
                    "holds": finding.holds,
                }
                for finding in self.findings
            ],
        }

    def to_markdown(self) -> str:
        """For people: a table, and what it is about."""
        about = "; ".join(f"{name} {value}" for name, value in self.subject.items())
        verdict = "Refuted." if self.refuted else "Nothing refuted."
        rows = "\n".join(
            f"| {finding.name} | {finding.value:.5g} | {finding.p_value:.3g} "
            f"| {'yes' if finding.holds else 'NO'} |"
            for finding in self.findings
        )
        return (
            f"# Audit: {self.audit}\n\n{about}.\n\n"
            f"{verdict} A right mechanism is refuted by chance with probability of at "
            f"most {self.false_alarm:.1e}.\n\n"
            f"| test | value | p | holds |\n|---|---|---|---|\n{rows}\n"
        )


def exact(name: str, *, wrong: int) -> Finding:
    """A finding without chance: how many are wrong, of which there may be none."""
    return Finding(name, float(wrong), 0.0 if wrong else 1.0)


def uniform_bytes(name: str, data: bytes, places: int = 1) -> Finding:
    """Chi-square of bytes against uniform ones, in each place of a word.

    Args:
        name: of the finding, whose value is the statistic per degree of freedom.
        data: whole words, 256 at least.
        places: bytes of a word.
    """
    by_place = np.frombuffer(data, np.uint8).reshape(-1, places)
    expected = len(by_place) / _BYTE_VALUES
    statistic = 0.0
    for place in range(places):
        counts = np.bincount(by_place[:, place], minlength=_BYTE_VALUES)
        statistic += float(((counts - expected) ** 2).sum() / expected)
    freedom = places * (_BYTE_VALUES - 1)
    return Finding(name, statistic / freedom, float(chi2.sf(statistic, freedom)))


def uniform_words(
    name: str, words: ResidueVector, modulus_bits: int = _WORD_BITS
) -> tuple[Finding, ...]:
    """Bytes as they travel, bits and neighbours of words, against uniform ones.

    Args:
        name: of what the words are.
        words: shape (m,), each below 2**modulus_bits.
        modulus_bits: of each.
    """
    # The fewest words that fill whole bytes fill so many; what is left over is no byte.
    group = modulus_bits // math.gcd(_BYTE, modulus_bits)
    packed = pack(words, modulus_bits)
    data = packed[: len(words) * modulus_bits // (_BYTE * group) * group]
    ones = np.array([int((words >> place & 1).sum()) for place in range(modulus_bits)])
    worst = float(np.abs(ones - words.size / 2).max() / math.sqrt(words.size / 4))
    return (
        uniform_bytes(f"{name}: chi-square of its bytes", data, places=group),
        Finding(
            f"{name}: deviations of its most unbalanced bit",
            worst,
            min(1.0, modulus_bits * _two_sided(worst)),
        ),
        correlation(f"{name}: each word with the next", words[:-1], words[1:]),
    )


def correlation(name: str, first: NDArray[Any], second: NDArray[Any]) -> Finding:
    """Pearson's correlation of two rows of numbers, which is 0 for unrelated ones."""
    left, right = (
        row - row.mean() for row in (first.astype(float), second.astype(float))
    )
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    # Equal constants have none; nothing that should be random is constant.
    value = float(left @ right) / scale if scale > 0 else 1.0
    return Finding(name, value, _two_sided(value * math.sqrt(first.size)))


def gaussian_noise(draws: IntVector, variance: int) -> tuple[Finding, ...]:
    """Moments and law of draws, against the discrete Gaussian of a variance.

    Args:
        draws: shape (m,), grid steps, independent.
        variance: grid steps squared; the standard deviation is 30 at least.

    Raises:
        ValueError: a variance so small that the law would need exact probabilities.
    """
    std = math.sqrt(variance)
    if std < _LEAST_STD:
        msg = f"a standard deviation of {std:.1f} grid steps, and {_LEAST_STD} is least"
        raise ValueError(msg)
    standard, count = draws / std, draws.size
    mean, second, fourth = (float(np.mean(standard**power)) for power in (1, 2, 4))
    return (
        Finding("mean, deviations of one draw", mean, _two_sided(mean * count**0.5)),
        Finding(
            "variance over the registered one",
            second,
            _two_sided((second - 1) * math.sqrt(count / 2)),
        ),
        Finding(
            "fourth moment over that of the registered law",
            fourth / 3,
            _two_sided((fourth - 3) * math.sqrt(count / 96)),
        ),
        _law(standard, std),
    )


def _law(standard: FloatVector, std: float) -> Finding:
    """Chi-square over bins of nearly equal probability, edges between grid steps."""
    quantiles = norm.ppf(np.linspace(0, 1, _LAW_BINS + 1)[1:-1])
    edges = np.unique(np.floor(quantiles * std) + 0.5) / std
    expected = np.diff(norm.cdf(edges), prepend=0.0, append=1.0) * standard.size
    counts = np.bincount(np.searchsorted(edges, standard), minlength=expected.size)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = expected.size - 1
    return Finding(
        f"chi-square of the law in {expected.size} bins, per degree of freedom",
        statistic / freedom,
        float(chi2.sf(statistic, freedom)),
    )


def _two_sided(deviations: float) -> float:
    return float(2 * norm.sf(abs(deviations)))
