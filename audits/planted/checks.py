"""The attacks that planted bugs are held against; a sound mechanism passes them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from scipy.stats import binomtest

from audits.bounds import AuditResult
from audits.canaries import (
    alternating,
    attack,
    attack_jointly,
    audit_plan,
    less_another_round,
    less_own_noise,
)
from audits.planted.faults import INNER_STEPS, LOCAL_STEPS
from audits.rounds import Cohort, Data
from privacy.plan import Plan

_TERMS: Final[dict[str, Any]] = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip_norm": Fraction(1, 10),
    "norm_bound": 2**15,
    "min_survivors": 4,
    "colluders": 1,
    "clients": 6,
}
# A bound passes the truth by chance in 3 of 1000 attacks; by a tenth it does so in less
# than one of a hundred thousand.
_MARGIN = 1.1
_FALSE_ALARM = 1e-9

# With a statistic: one canary, and one honest noise share.
_ALONE: Final[dict[str, Any]] = {"min_survivors": 3, "colluders": 2, "clients": 3}

_RATE = Fraction(1, 20)
_UNITS = 5000


@dataclass(frozen=True, slots=True)
class Reading:
    """What a check read.

    Attributes:
        caught: whether the mechanism is refuted.
        text: the figures.
    """

    caught: bool
    text: str


def _bound(result: AuditResult) -> Reading:
    claimed, bound = result.epsilon_claimed, result.epsilon_lower_bound
    return Reading(
        bound > _MARGIN * claimed, f"epsilon at least {bound:.1f} of {claimed:.1f}"
    )


def _sum(effort: float) -> Reading:
    return _bound(attack(audit_plan(**_TERMS), _rounds(effort)))


def _two_rounds(effort: float) -> Reading:
    return _bound(
        attack(audit_plan(**_TERMS), _rounds(effort), view=less_another_round)
    )


def _own_noise(effort: float) -> Reading:
    return _bound(attack(audit_plan(**_TERMS), _rounds(effort), view=less_own_noise))


def _local_plan() -> Plan:
    return audit_plan(
        **_TERMS, trust="local", local_steps=LOCAL_STEPS, inner_steps=INNER_STEPS
    )


def _local(effort: float) -> Reading:
    return _bound(attack(_local_plan(), _rounds(effort)))


def _alternating(effort: float) -> Reading:
    return _bound(attack(_local_plan(), _rounds(effort), view=alternating))


def _joint(effort: float) -> Reading:
    plan = audit_plan(**(_TERMS | _ALONE), statistic=True, canaries=1)
    return _bound(attack_jointly(plan, max(1000, round(2500 * effort))))


def _draw(effort: float) -> Reading:
    """How many units are drawn, against the registered rate."""
    plan = audit_plan(**_TERMS, sampling_rate=_RATE, canaries=_UNITS)
    data = Data(tuple(map(str, range(_UNITS))), lambda _, __: None)
    rounds = _rounds(effort)
    drawn = sum(
        sum(Cohort.of(plan).contribute("client-000", data).drawn) for _ in range(rounds)
    )
    p_value = binomtest(drawn, rounds * _UNITS, float(_RATE)).pvalue
    expected = round(rounds * _UNITS * _RATE)
    found = f"{drawn} units drawn, {expected} expected"
    return Reading(bool(p_value < _FALSE_ALARM), found)


def _rounds(effort: float) -> int:
    return max(2, round(10 * effort))


@dataclass(frozen=True, slots=True)
class Check:
    """One attack.

    Attributes:
        words: what it is, for the table.
        read: runs it with an effort, of which 1 is that of the table.
    """

    words: str
    read: Callable[[float], Reading]


CHECKS: Mapping[str, Check] = {
    "sum": Check("canaries in the sum", _sum),
    "two rounds": Check("canaries, one round less another", _two_rounds),
    "own noise": Check("canaries, less one's own noise for all", _own_noise),
    "local": Check("canaries in every release, local trust", _local),
    "alternating": Check("canaries of alternating sign, local trust", _alternating),
    "joint": Check("canaries in gradient and statistic", _joint),
    "draw": Check("size of the draw", _draw),
}
