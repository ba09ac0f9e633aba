"""What is charged, how a figure is rounded, and what the filter counts.

A ledger that holds one run has all of its charges registered in advance, and the
privacy loss distribution prices them. From the second run on a plan may have been
chosen in the light of what earlier runs showed. Then only the filter's figure counts,
at the one Renyi order which the ledger's first record registers.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

from privacy import events, renyi
from privacy.errors import UnsupportedEventError
from privacy.ledger.records import Event
from privacy.plan import EPSILON_DECIMALS

Charges = tuple[tuple[Event, int], ...]
"""Events with how often each is charged, in the order of their first charge."""

INFINITE = Decimal("Infinity")

# A number of a ledger has at most 18 digits before its point.
_LEAST_INFINITE = 1e18

# Registered where no order would be better than another: there is no cap to keep, or
# the event has no price.
_ANY_ORDER = 2


def charge_count(charges: Charges) -> int:
    """How many events are charged in all."""
    return sum(count for _, count in charges)


def charged(charges: Charges, event: Event, count: int) -> Charges:
    """The charges with `count` more of one event."""
    if any(known == event for known, _ in charges):
        return tuple(
            (known, have + count if known == event else have) for known, have in charges
        )
    return (*charges, (event, count))


def priced(event: Event) -> events.Event:
    """A recorded event as the accountants take it.

    Raises:
        UnsupportedEventError: it has no price, as where nothing is noised.
    """
    return events.draw_event(
        sampling_rate=event.sampling_rate,
        variance=event.noise_variance,
        norm_bound=event.norm_bound,
        statistic_variance=event.statistic_variance,
        statistic_norm_bound=event.statistic_norm_bound,
        inner_steps=event.inner_steps,
    )


def rounded_up(epsilon: float) -> Decimal:
    """A figure as ledgers record it: six decimals, or infinite.

    Six are enough for people, and so few that the last bits of a machine's floating
    point do not show: a verifier elsewhere must get the same digits. What the form of
    a number has no digits for is infinite.
    """
    if not epsilon < _LEAST_INFINITE:
        return INFINITE
    step = Decimal(1).scaleb(-EPSILON_DECIMALS)
    return Decimal(epsilon).quantize(step, rounding=ROUND_CEILING)


def filter_epsilon(charges: Charges, delta: Decimal, order: int) -> Decimal:
    """What the filter counts of these charges, rounded up; infinite without a price.

    Args:
        charges: of all runs; none cost 0.
        delta: the cap's.
        order: the one that the ledger registered.
    """
    if not charges:
        return Decimal(0)
    try:
        counts = [(priced(event), count) for event, count in charges]
        return rounded_up(renyi.epsilon_at_order(counts, order, _finite(delta)))
    except UnsupportedEventError:
        return INFINITE


def cap_order(event: Event, cap_epsilon: Decimal, cap_delta: Decimal) -> int:
    """The order that a ledger registers: it admits most of its first run's events.

    Any fixed order would do for the proof. This one follows from the first record, so
    that nobody chooses it later.

    Args:
        event: what the first run charges for one draw.
        cap_epsilon: most that the ledger may spend.
        cap_delta: at which.
    """
    if cap_epsilon.is_infinite():
        return _ANY_ORDER
    try:
        return renyi.filter_order(priced(event), float(cap_epsilon), _finite(cap_delta))
    except UnsupportedEventError:
        return _ANY_ORDER


def _finite(delta: Decimal) -> float:
    """Above 1 the accountants refuse it, which they cannot say of infinity."""
    return min(float(delta), 1.0)
