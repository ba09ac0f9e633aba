"""What a run costs: epsilon at a given delta, by two accountants.

The claim is the privacy loss distribution (PLD) of `dp-accounting`; beside it stands
our own Renyi accountant (RDP), which is looser and independent. A PLD figure that is
above the RDP figure, infinite or beyond what its arithmetic resolves is refused.

Objects of accounting libraries have no stable state, so none is kept: what is stored
is the list of events, and every figure is computed from that list again. PLD figures
hold for events that were registered before the run; what is decided along the way is
guarded by the filter of `privacy.renyi`.

Epsilon and delta are between data sets of one client that differ by one unit, present
or absent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from typing import Final, TypeAlias

import numpy as np
from dp_accounting.pld import (  # type: ignore[import-untyped]
    privacy_loss_distribution as pld,
)

from privacy.errors import UnsupportedEventError
from privacy.events import Event, Real
from privacy.renyi import (
    checked_delta,
    epsilon_from_curve,
    epsilon_rdp,
    summed_curve,
)
from privacy.vectors import FloatVector

# The price of randomised rounding over 10**4 rounds of 10**7 parameters is below 1e-22.
TRANSFER_SLACK: Final = 1e-12

# Connect-the-dots overshoots by about rounds * interval**2, so that this keeps the
# excess near 1e-5; an upper bound it is at any interval.
_GRID_EXCESS: Final = 1e-5
_COARSEST: Final = 5e-4
_FINEST: Final = 1e-5
# Events that cost hundreds would need grids of many gigabytes at those intervals.
_RELATIVE_GRID: Final = 2e-6

# Above it the grid would be so coarse that its arithmetic overflows.
_GREATEST_EPSILON: Final = 1e8

# Beyond these one figure takes minutes, and a ledger's line could state any number.
MOST_DRAWS: Final = 10**6

# Composition by Fourier transform errs by an amount in delta that grows with the
# rounds: 1.4e-17 a round where the exact answer is known. It is charged 70 times over.
_DELTA_SLACK_PER_ROUND: Final = 1e-15
_DELTA_SLACK: Final = 1e-14

# At small epsilons a delta is a sum over the whole grid, of a million floats at most,
# which errs by as much of itself; 1e-13 was seen.
_SUM_SLACK: Final = 1e-11

_Groups: TypeAlias = tuple[tuple[Event, int], ...]


@dataclass(frozen=True, slots=True)
class Price:
    """What the same events cost by each accountant, at one delta.

    Attributes:
        epsilon_pld: the claim.
        epsilon_rdp: the second opinion, never meant to be the smaller one.
    """

    epsilon_pld: float
    epsilon_rdp: float


def price(
    *,
    sampling_rate: Fraction,
    noise_multiplier: float,
    rounds: int,
    inner_steps: int,
    delta: Real,
) -> Price:
    """The cost of `rounds` equal draws, the multiplier taken as it is given.

    Raises:
        UnsupportedEventError: see `epsilon_pld`.
    """
    if rounds < 1:
        msg = "fewer than one round; give 1 or more"
        raise UnsupportedEventError(msg)
    event = Event(sampling_rate, noise_multiplier, inner_steps)
    return Price(epsilon_pld(event, rounds, delta), epsilon_rdp(event, rounds, delta))


def epsilon_pld(
    event: Event, rounds: int, delta: Real, *, registered_rounds: int | None = None
) -> float:
    """The claim: epsilon after `rounds` equal draws.

    Args:
        event: one draw.
        rounds: how many are charged; 0 costs 0.
        delta: in (0, 1).
        registered_rounds: how many the plan has, which sets the grid, so that the
            figures of a run's rounds lie on one grid and rise. Default: `rounds`.

    Returns:
        An upper bound on epsilon, transfer slack included.

    Raises:
        UnsupportedEventError: the figure is infinite, not resolved at this delta, or
            above the Renyi figure, or there are more than `MOST_DRAWS`.

    Source: Koskela et al., AISTATS 2020; Doroshenko et al., PETS 2022.
    """
    counts = {event: rounds} if rounds else {}
    return _checked_pld(counts, delta, max(rounds, registered_rounds or 0))


def epsilons_by_round(event: Event, rounds: int, delta: Real) -> list[float]:
    """The claim after 1, 2, ... `rounds` draws; the last is that of the whole run."""
    return [
        epsilon_pld(event, charged, delta, registered_rounds=rounds)
        for charged in range(1, rounds + 1)
    ]


def price_events(
    events: Iterable[Event] | Mapping[Event, int],
    delta: Real,
    *,
    registered_rounds: int | None = None,
) -> Price:
    """Replay a stored list of events. Equal events are grouped; order is immaterial.

    Args:
        events: in any order, or each with how often it is charged; none costs 0.
        delta: in (0, 1).
        registered_rounds: as for `epsilon_pld`. Default: how many events there are.
    """
    counts = Counter(events)
    total = sum(counts.values())
    claim = _checked_pld(counts, delta, max(total, registered_rounds or 0))
    curve = summed_curve(counts.items())
    return Price(claim, epsilon_from_curve(curve, checked_delta(delta)))


def delta_profile(
    events: Mapping[Event, int], epsilons: Sequence[float], delta: Real
) -> FloatVector:
    """Delta of the same events at many epsilons: all that they promise, not one pair.

    Args:
        events: each with how often it is charged; none lose nothing.
        epsilons: at least 0.
        delta: at which they are priced otherwise; it sets the grid.

    Returns:
        Shape (len(epsilons),), upper bounds on delta, slack included, at most 1.

    Raises:
        UnsupportedEventError: see `epsilon_pld`.
    """
    if not any(events.values()):
        return np.zeros(len(epsilons))
    # It raises where these events have no distribution that could be relied upon.
    total = sum(events.values())
    _checked_pld(dict(events), delta, total)
    interval = _interval(summed_curve(events.items()), checked_delta(delta), total)
    composed = _composed(_grouped(events), interval)
    # One by one: the library's sum for many at once subtracts nearly equal numbers.
    exact = [composed.get_delta_for_epsilon(at - TRANSFER_SLACK) for at in epsilons]
    upper = (1.0 + _SUM_SLACK) * np.array(exact) + delta_slack(total)
    profile: FloatVector = np.minimum(upper, 1.0)
    return profile


def delta_slack(draws: int) -> float:
    """What is charged to delta for the arithmetic of composing so many draws."""
    return _DELTA_SLACK + draws * _DELTA_SLACK_PER_ROUND


def _checked_pld(counts: dict[Event, int], delta: Real, registered: int) -> float:
    checked = checked_delta(delta)
    if any(rounds < 0 for rounds in counts.values()):
        msg = "a negative number of rounds: give 0 or more"
        raise UnsupportedEventError(msg)
    if not counts:
        return 0.0
    if registered > MOST_DRAWS:
        msg = (
            f"more than {MOST_DRAWS} draws have no privacy loss distribution that "
            "could be computed in reasonable time; register fewer rounds"
        )
        raise UnsupportedEventError(msg)
    curve = summed_curve(counts.items())
    reference = epsilon_from_curve(curve, checked)
    if reference > _GREATEST_EPSILON:
        msg = (
            "these events cost more than any grid resolves (Renyi bound "
            f"{reference:.6g}); add noise"
        )
        raise UnsupportedEventError(msg)
    charged = sum(counts.values())
    interval = _interval(curve * max(1.0, registered / charged), checked, registered)
    epsilon = _composed_epsilon(_grouped(counts), checked, interval)
    # Either is an upper bound; the slack is what the grids may add to the first.
    if not epsilon <= reference * 1.001 + 1e-3:
        msg = (
            "the privacy loss distribution does not resolve these events at this "
            f"delta (Renyi bound {reference:.6g}); choose a larger delta or more noise"
        )
        raise UnsupportedEventError(msg)
    return epsilon


def _interval(curve: FloatVector, delta: float, rounds: int) -> float:
    """The grid of a run, from what the whole of it costs: one grid for all rounds."""
    interval = min(_COARSEST, max(_FINEST, math.sqrt(_GRID_EXCESS / rounds)))
    return max(interval, _RELATIVE_GRID * epsilon_from_curve(curve, delta))


def _grouped(counts: Mapping[Event, int]) -> _Groups:
    return tuple(sorted(counts.items(), key=_group_key))


def _group_key(group: tuple[Event, int]) -> tuple[Fraction, float, int]:
    event, rounds = group
    return event.sampling_rate, event.effective_multiplier, rounds


@lru_cache(maxsize=4096)
def _composed_epsilon(groups: _Groups, delta: float, interval: float) -> float:
    """Epsilon of the composition; infinity where delta is too small to resolve."""
    slack = delta_slack(sum(rounds for _, rounds in groups))
    if slack > delta / 2:
        return math.inf
    composed = _composed(groups, interval)
    return float(composed.get_epsilon_for_delta(delta - slack)) + TRANSFER_SLACK


# Two, since one is asked for its epsilon and for its profile in a row.
@lru_cache(maxsize=2)
def _composed(groups: _Groups, interval: float) -> pld.PrivacyLossDistribution:
    """Compose cached single-draw distributions."""
    parts = (
        _single_pld(
            float(event.sampling_rate), event.effective_multiplier, interval
        ).self_compose(rounds)
        for event, rounds in groups
    )
    return reduce(lambda left, right: left.compose(right), parts)


@lru_cache(maxsize=16)
def _single_pld(
    rate: float, multiplier: float, interval: float
) -> pld.PrivacyLossDistribution:
    return pld.from_gaussian_mechanism(
        standard_deviation=multiplier,
        sensitivity=1.0,
        sampling_prob=rate,
        pessimistic_estimate=True,
        value_discretization_interval=interval,
        use_connect_dots=True,
        neighboring_relation=pld.NeighborRel.ADD_OR_REMOVE_ONE,
    )
