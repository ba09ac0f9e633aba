"""Renyi divergence of draws at integer orders: the second opinion, and the filter.

A figure at the best of all orders (`epsilon_rdp`) is for events that were fixed before
the run. What is chosen in the light of earlier releases is priced at one order that was
registered before all of them (`epsilon_at_order`): the Renyi filter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np

from privacy.errors import UnsupportedEventError
from privacy.events import Event, Real
from privacy.vectors import FloatVector

# Integer orders alone: only there does the formula hold for the discrete noise.
ORDERS: Final = np.arange(2, 257)

Counts: TypeAlias = Iterable[tuple[Event, int]]
"""Events with how often each is charged, each event once."""

# How exactly orders are compared, so that machines whose floats differ in their last
# bits register the same one.
_ORDER_DIGITS = 6


@lru_cache(maxsize=512)
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


def summed_curve(counts: Counts) -> FloatVector:
    """Renyi divergence of all events together: shape (255,), one for each order."""
    curve = np.zeros(ORDERS.size)
    # In one order, since the last digits of a sum of floats depend on it.
    for event, count in sorted(counts, key=_place):
        curve += count * rdp_curve(event)
    return curve


def _place(charge: tuple[Event, int]) -> tuple[Fraction, float, int]:
    event, count = charge
    return event.sampling_rate, event.effective_multiplier, count


def epsilon_rdp(event: Event, rounds: int, delta: Real) -> float:
    """The second opinion: epsilon after `rounds` equal draws, by Renyi divergence."""
    return epsilon_from_curve(rounds * rdp_curve(event), checked_delta(delta))


def epsilon_from_curve(curve: FloatVector, delta: float) -> float:
    """The least epsilon that any order gives; 0 where nothing is charged."""
    if not curve.any():
        return 0.0
    return max(0.0, float(np.min(curve + _conversions(delta))))


def epsilon_at_order(counts: Counts, order: int, delta: Real) -> float:
    """What the filter counts: epsilon of all events at one order.

    Args:
        counts: every event charged so far, and the one that is asked about.
        order: registered before the first of them, 2 to 256.
        delta: in (0, 1).

    Returns:
        The sum of the divergences at the order, converted; at least 0, and 0 for none.

    Raises:
        UnsupportedEventError: an order or a delta out of range.

    Guarantee:
        Where every event is charged only if this is at most E with it, all events
        together are (E, delta)-differentially private, though each may be chosen in
        the light of all releases before it.

    Source: Feldman and Zrnic, NeurIPS 2021, theorem 3.1 (the Renyi filter).
    """
    checked, place = checked_delta(delta), _place_of(order)
    charges = [count * float(rdp_curve(event)[place]) for event, count in counts]
    if not any(charges):
        return 0.0
    return max(0.0, math.fsum([*charges, float(_conversions(checked)[place])]))


def divergence_allowed(order: int, epsilon: Real, delta: Real) -> float:
    """What the divergences may sum to at one order where the filter allows epsilon.

    Args:
        order: 2 to 256.
        epsilon: what `epsilon_at_order` gives at most, finite.
        delta: at which it does.

    Returns:
        The sum that converts to that epsilon; 0 where the conversion alone is above it.

    Raises:
        UnsupportedEventError: an order or a delta out of range.
    """
    conversion = _conversions(checked_delta(delta))[_place_of(order)]
    return max(0.0, float(epsilon) - float(conversion))


def filter_order(event: Event, epsilon: Real, delta: Real) -> int:
    """The order to register: it admits most events like this one under a cap.

    Args:
        event: that the first run registers.
        epsilon: the cap, positive and finite.
        delta: of the cap.

    Returns:
        2 to 256; the smallest of those that are equal to six digits.
    """
    budgets = float(epsilon) - _conversions(checked_delta(delta))
    admitted = budgets / rdp_curve(event)
    rounded = [float(f"{number:.{_ORDER_DIGITS - 1}e}") for number in admitted]
    return int(ORDERS[int(np.argmax(rounded))])


def _place_of(order: int) -> int:
    """Where an order's value stands in a curve.

    Raises:
        UnsupportedEventError: it is not among the orders.
    """
    if order not in ORDERS:
        msg = f"order {order} is not among the integer orders 2 to 256"
        raise UnsupportedEventError(msg)
    return order - int(ORDERS[0])


@lru_cache(maxsize=16)
def _conversions(delta: float) -> FloatVector:
    """What turns a divergence into an epsilon, for each order.

    Source: Canonne, Kamath and Steinke, arXiv 2004.00010, proposition 12.
    """
    orders = ORDERS.astype(np.float64)
    conversions: FloatVector = np.log1p(-1.0 / orders) - (
        math.log(delta) + np.log(orders)
    ) / (orders - 1.0)
    conversions.flags.writeable = False
    return conversions


def checked_delta(delta: Real) -> float:
    """A delta as a float.

    Raises:
        UnsupportedEventError: it is not in (0, 1).
    """
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
