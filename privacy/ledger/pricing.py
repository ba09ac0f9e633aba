"""The accountant's figures in the form in which a ledger keeps them.

Figures are rounded up to six decimals: enough for people, and coarse enough that the
last bits of a machine's floating point do not show, since a verifier elsewhere must
get the same digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from itertools import repeat
from typing import TypeAlias

from privacy import accountant
from privacy.errors import DisagreementError, PrivacyError, UnsupportedEventError
from privacy.ledger.history import Charges, charge_count
from privacy.ledger.records import Event, Spend

Price: TypeAlias = Callable[[Charges, Decimal, int], tuple[Decimal, Decimal]]
"""(charges, delta, rounds of the plan) -> (epsilon by PLD, epsilon by RDP).

It is never asked for no charges at all; those cost 0.
"""

DECIMALS = 6
INFINITE = Decimal("Infinity")


def price_charges(
    charges: Charges, delta: Decimal, rounds: int
) -> tuple[Decimal, Decimal]:
    """What charges cost by both accountants, as recorded.

    Args:
        charges: at least one.
        delta: in (0, 1).
        rounds: that the plan registers; it sets the accountant's grid.

    Returns:
        Epsilon by PLD and by RDP, rounded up to six decimals. A figure that an
        accountant refuses to give is infinite.
    """
    exact = Fraction(delta)
    try:
        groups = [(_priced(event), count) for event, count in charges]
        events = [event for event, count in groups for event in repeat(event, count)]
        price = accountant.price_events(events, exact, registered_rounds=rounds)
    except UnsupportedEventError:
        return INFINITE, _renyi_alone(charges, exact)
    return _rounded(price.epsilon_pld), _rounded(price.epsilon_rdp)


def spend_of(charges: Charges, delta: Decimal, rounds: int) -> Spend:
    """The record of what charges cost. No charges cost 0."""
    pld, rdp = (Decimal(0), Decimal(0))
    if charges:
        pld, rdp = price_charges(charges, delta, rounds)
    return Spend(charge_count(charges), delta, pld, rdp)


class Pricing:
    """Checks recorded prices; each combination is computed once.

    Args:
        price: the accountant.
    """

    __slots__ = ("_known", "_price")

    def __init__(self, price: Price) -> None:
        self._price = price
        self._known: dict[tuple[Charges, Decimal, int], tuple[Decimal, Decimal]] = {}

    def check(self, spend: Spend, charges: Charges, rounds: int) -> None:
        """Compute an epsilon again.

        Raises:
            DisagreementError: it is not the recorded one, or has no price.
        """
        key = (charges, spend.delta, rounds)
        if key not in self._known:
            try:
                self._known[key] = self._price(*key)
            except (PrivacyError, ArithmeticError, ValueError):
                msg = "the accountant has no price for what is charged"
                raise DisagreementError(msg) from None
        if self._known[key] != (spend.epsilon_pld, spend.epsilon_rdp):
            msg = "the recorded epsilon is not what its charges cost"
            raise DisagreementError(msg)


def _priced(event: Event) -> accountant.Event:
    return accountant.draw_event(
        sampling_rate=event.sampling_rate,
        variance=event.noise_variance,
        norm_bound=event.norm_bound,
        statistic_variance=event.statistic_variance,
        statistic_norm_bound=event.statistic_norm_bound,
        inner_steps=event.inner_steps,
    )


def _renyi_alone(charges: Charges, delta: Fraction) -> Decimal:
    """The Renyi figure where the other is refused; for one kind of event only."""
    if len(charges) != 1:
        return INFINITE
    event, count = charges[0]
    try:
        return _rounded(accountant.epsilon_rdp(_priced(event), count, delta))
    except UnsupportedEventError:
        return INFINITE


def _rounded(epsilon: float) -> Decimal:
    if not math.isfinite(epsilon):
        return INFINITE
    step = Decimal(1).scaleb(-DECIMALS)
    return Decimal(epsilon).quantize(step, rounding=ROUND_CEILING)
