"""What a run costs: epsilon at a given delta, by two accountants.

The claim is the privacy loss distribution (PLD) of `dp-accounting`; beside it stands
our own Renyi accountant (RDP), which is looser and independent. A PLD figure that is
above the RDP figure, infinite or beyond what its arithmetic resolves is refused.

Objects of accounting libraries have no stable state, so none is kept: what is stored
is the list of events, and every figure is computed from that list again. PLD figures
hold for events that were registered before the run; what is decided along the way is
guarded by `filter_allows`.

Epsilon and delta are between data sets of one client that differ by one unit, present
or absent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from typing import Final, TypeAlias

import numpy as np
from dp_accounting.pld import (  # type: ignore[import-untyped]
    privacy_loss_distribution as pld,
)

from privacy.errors import UnsupportedEventError
from privacy.vectors import FloatVector

Real: TypeAlias = Fraction | float

# Integer orders alone: only there does the formula hold for the discrete noise.
ORDERS: Final = np.arange(2, 257)

# Randomised rounding of this width turns continuous noise into the discrete one.
ROUNDING_VARIANCE: Final = 4
# The price of that rounding over 10**4 rounds of 10**7 parameters is below 1e-22.
TRANSFER_SLACK: Final = 1e-12

# Connect-the-dots overshoots by about rounds * interval**2, so that this keeps the
# excess near 1e-5; an upper bound it is at any interval.
_GRID_EXCESS: Final = 1e-5
_COARSEST: Final = 5e-4
_FINEST: Final = 1e-5
# Events that cost hundreds would need grids of many gigabytes at those intervals.
_RELATIVE_GRID: Final = 2e-6

# Composition by Fourier transform errs by an amount in delta that grows with the
# rounds: 1.4e-17 a round where the exact answer is known. It is charged 70 times over.
_DELTA_SLACK_PER_ROUND: Final = 1e-15
_DELTA_SLACK: Final = 1e-14


@dataclass(frozen=True, slots=True)
class Event:
    """One draw and all that is released from it.

    Attributes:
        sampling_rate: 0 < q <= 1, the probability with which each unit is drawn.
        noise_multiplier: noise standard deviation over sensitivity, positive, of one
            release.
        inner_steps: how many such releases, each allowed to depend on those before,
            are made from the one draw. They are one event and not several: the same
            unit is in all of them or in none.
    """

    sampling_rate: Fraction
    noise_multiplier: float
    inner_steps: int = 1

    def __post_init__(self) -> None:
        """Refuse what has no price, with UnsupportedEventError."""
        if not isinstance(self.sampling_rate, (Fraction, int)):
            msg = "the sampling rate must be an exact rational"
            raise TypeError(msg)
        if not 0 < self.sampling_rate <= 1 or float(self.sampling_rate) == 0:
            msg = "the sampling rate is not in (0, 1]; give one that is"
            raise UnsupportedEventError(msg)
        if not 0 < self.noise_multiplier < math.inf:
            msg = "the noise multiplier is not positive and finite; add noise"
            raise UnsupportedEventError(msg)
        if self.inner_steps < 1:
            msg = "fewer than one inner step; give 1 or more"
            raise UnsupportedEventError(msg)

    @property
    def effective_multiplier(self) -> float:
        """That of the one Gaussian release which dominates all of the draw's.

        Guarantee:
            `inner_steps` releases on one draw cost as one at
            noise_multiplier / sqrt(inner_steps), never as that many draws.

        Source: Zhu, Dong and Wang, AISTATS 2022 (dominating pairs compose).
        """
        return self.noise_multiplier / math.sqrt(self.inner_steps)


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


def draw_event(
    *,
    sampling_rate: Fraction,
    variance: int,
    norm_bound: int,
    statistic_variance: int = 0,
    statistic_norm_bound: int = 0,
    inner_steps: int = 1,
) -> Event:
    """The one event that a draw of the integer mechanism costs.

    Args:
        sampling_rate: the plan's.
        variance: of the honest noise in the sum of the gradients, grid steps squared.
        norm_bound: of one unit's vector, grid steps.
        statistic_variance: of the noise on the mean reward; 0 without a statistic.
        statistic_norm_bound: of one unit's part in it; 0 without a statistic.
        inner_steps: gradient releases on one draw. The statistic is released once.

    Returns:
        An event of one step, whose multiplier holds everything released.
    """
    multiplier = transferred_multiplier(variance, norm_bound) / math.sqrt(inner_steps)
    if statistic_variance or statistic_norm_bound:
        multiplier = combined_multiplier(
            multiplier,
            transferred_multiplier(statistic_variance, statistic_norm_bound),
        )
    return Event(sampling_rate, multiplier)


def transferred_multiplier(variance: int, norm_bound: int) -> float:
    """The continuous noise multiplier by which discrete noise may be accounted.

    At the same standard deviation the discrete Gaussian can leak more than the
    continuous one. A continuous one of variance smaller by 4, rounded at random,
    becomes the discrete one up to a factor exp(1e-34) a coordinate.

    Args:
        variance: of the discrete noise, grid steps squared, above 4.
        norm_bound: the sensitivity in grid steps, at least 1.

    Returns:
        sqrt(variance - 4) / norm_bound.

    Raises:
        UnsupportedEventError: so little noise that the transfer does not hold.

    Source: docs/privacy.md, Theorem 2.
    """
    if norm_bound < 1:
        msg = "a norm bound below one grid step: raise the scale"
        raise UnsupportedEventError(msg)
    if variance <= ROUNDING_VARIANCE:
        msg = (
            f"a noise variance of {variance} grid steps squared is too small to be "
            "accounted for: raise the scale"
        )
        raise UnsupportedEventError(msg)
    return math.sqrt(variance - ROUNDING_VARIANCE) / norm_bound


def combined_multiplier(first: float, second: float) -> float:
    """The multiplier of two Gaussian releases on one draw, either seeing the other."""
    return 1.0 / math.hypot(1.0 / first, 1.0 / second)


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
            above the Renyi figure.

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


def epsilon_rdp(event: Event, rounds: int, delta: Real) -> float:
    """The second opinion: epsilon after `rounds` equal draws, by Renyi divergence."""
    return _epsilon_from_curve(rounds * rdp_curve(event), _checked_delta(delta))


def price_events(
    events: Iterable[Event], delta: Real, *, registered_rounds: int | None = None
) -> Price:
    """Replay a stored list of events. Equal events are grouped; order is immaterial.

    Args:
        events: in any order; none costs 0.
        delta: in (0, 1).
        registered_rounds: as for `epsilon_pld`. Default: how many events there are.
    """
    counts = Counter(events)
    total = sum(counts.values())
    claim = _checked_pld(counts, delta, max(total, registered_rounds or 0))
    curve = _summed_curve(counts)
    return Price(claim, _epsilon_from_curve(curve, _checked_delta(delta)))


@lru_cache(maxsize=64)
def rdp_curve(event: Event) -> FloatVector:
    """Renyi divergence of one draw at the integer orders 2 to 256.

    Returns:
        Shape (255,), float64, one value for each of `ORDERS`; read-only.

    Guarantee:
        At every integer order it is no less than the divergence of the
        Poisson-sampled discrete Gaussian, and equal to it in one direction.

    Source: Mironov, Talwar and Zhang, arXiv 1908.10530, section 3.3; for the discrete
        Gaussian docs/privacy.md, Theorem 1.
    """
    rate = float(event.sampling_rate)
    orders = ORDERS[:, np.newaxis].astype(np.float64)
    terms = ORDERS[np.newaxis, :].astype(np.float64)
    exponent = (terms**2 - terms) / (2.0 * event.effective_multiplier**2)
    rest = np.maximum(orders - terms, 0.0)
    log_absent = np.zeros_like(rest)
    log_absent[rest > 0] = -math.inf if rate == 1.0 else math.log1p(-rate)
    with np.errstate(invalid="ignore"):
        log_absent = np.where(rest > 0, rest * log_absent, 0.0)
    # The binomial weights sum to one, so that the sum minus one has only positive
    # terms, exp - 1, and nothing cancels where the divergence is tiny.
    log_excess = exponent + np.log(-np.expm1(-exponent))
    logs = _log_binomials() + terms * math.log(rate) + log_absent + log_excess
    peak = logs.max(axis=1, keepdims=True)
    log_sum = peak[:, 0] + np.log(np.exp(logs - peak).sum(axis=1))
    curve: FloatVector = np.logaddexp(0.0, log_sum) / (ORDERS - 1)
    curve.flags.writeable = False
    return curve


def filter_order(event: Event, rounds: int, delta: Real) -> int:
    """The order to register for `filter_allows`: that of the Renyi figure's minimum."""
    curve = rounds * rdp_curve(event)
    return int(ORDERS[np.argmin(_epsilons_at_orders(curve, _checked_delta(delta)))])


def filter_allows(
    spent: Iterable[Event], following: Event, *, order: int, epsilon: Real, delta: Real
) -> bool:
    """Whether one more event keeps the run within (epsilon, delta).

    Unlike a PLD figure this holds when events are chosen in the light of what was
    released before, as long as the order was fixed before the run.

    Args:
        spent: the events so far.
        following: the next one.
        order: the registered integer order, 2 to 256.
        epsilon: the budget; register the run's Renyi figure, which is above its PLD.
        delta: the budget.

    Source: Feldman and Zrnic, NeurIPS 2021 (the Renyi filter).
    """
    if order not in ORDERS:
        msg = f"order {order} is not among the integer orders 2 to 256"
        raise UnsupportedEventError(msg)
    index = order - int(ORDERS[0])
    total = math.fsum(rdp_curve(event)[index] for event in [*spent, following])
    conversion = math.log1p(-1 / order) - math.log(_checked_delta(delta) * order) / (
        order - 1
    )
    # The last of the registered rounds must not fail for the order of a sum.
    return total <= (float(epsilon) - conversion) * (1.0 + 1e-12)


def _checked_pld(counts: dict[Event, int], delta: Real, registered: int) -> float:
    checked = _checked_delta(delta)
    if any(rounds < 0 for rounds in counts.values()):
        msg = "a negative number of rounds: give 0 or more"
        raise UnsupportedEventError(msg)
    if not counts:
        return 0.0
    curve = _summed_curve(counts)
    reference = _epsilon_from_curve(curve, checked)
    charged = sum(counts.values())
    interval = _interval(curve * max(1.0, registered / charged), checked, registered)
    groups = tuple(sorted(counts.items(), key=_group_key))
    epsilon = _composed_epsilon(groups, checked, interval)
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
    return max(interval, _RELATIVE_GRID * _epsilon_from_curve(curve, delta))


def _group_key(group: tuple[Event, int]) -> tuple[Fraction, float, int]:
    event, rounds = group
    return event.sampling_rate, event.effective_multiplier, rounds


@lru_cache(maxsize=4096)
def _composed_epsilon(
    groups: tuple[tuple[Event, int], ...], delta: float, interval: float
) -> float:
    """Compose cached single-draw distributions; infinity where delta is too small."""
    total = sum(rounds for _, rounds in groups)
    slack = _DELTA_SLACK + total * _DELTA_SLACK_PER_ROUND
    if slack > delta / 2:
        return math.inf
    parts = (
        _single_pld(
            float(event.sampling_rate), event.effective_multiplier, interval
        ).self_compose(rounds)
        for event, rounds in groups
    )
    composed = reduce(lambda left, right: left.compose(right), parts)
    return float(composed.get_epsilon_for_delta(delta - slack)) + TRANSFER_SLACK


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


def _summed_curve(counts: dict[Event, int]) -> FloatVector:
    curve = np.zeros(ORDERS.size)
    for event, rounds in counts.items():
        curve += rounds * rdp_curve(event)
    return curve


def _epsilon_from_curve(curve: FloatVector, delta: float) -> float:
    if not curve.any():
        return 0.0
    return max(0.0, float(np.min(_epsilons_at_orders(curve, delta))))


def _epsilons_at_orders(curve: FloatVector, delta: float) -> FloatVector:
    """Source: Canonne, Kamath and Steinke, arXiv 2004.00010, proposition 12."""
    orders = ORDERS.astype(np.float64)
    return (
        curve
        + np.log1p(-1.0 / orders)
        - (math.log(delta) + np.log(orders)) / (orders - 1.0)
    )


def _checked_delta(delta: Real) -> float:
    if not 0 < delta < 1:
        msg = "delta is not in (0, 1); give one that is"
        raise UnsupportedEventError(msg)
    return float(delta)


@lru_cache(maxsize=1)
def _log_binomials() -> FloatVector:
    """Logarithms of C(a, k) for a, k in `ORDERS`; minus infinity where k > a."""
    rows = [
        [math.log(math.comb(a, k)) if k <= a else -math.inf for k in range(2, 257)]
        for a in range(2, 257)
    ]
    return np.array(rows)
