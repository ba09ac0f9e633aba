"""The accountants' figures of a charge, as a ledger records them and checks them."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

from privacy import accountant, events, renyi
from privacy.errors import DisagreementError, PrivacyError, UnsupportedEventError
from privacy.ledger.charges import (
    INFINITE,
    Charges,
    charge_count,
    charged,
    priced,
    rounded_up,
)
from privacy.ledger.history import History
from privacy.ledger.records import Event, Lifetime, Spend

Price: TypeAlias = Callable[[Charges, Decimal, int], tuple[Decimal, Decimal]]
"""(charges, delta, charges that the plan registers) -> (epsilon by PLD, by RDP).

It is never asked for no charges at all; those cost 0.
"""


def price_charges(
    charges: Charges, delta: Decimal, registered: int
) -> tuple[Decimal, Decimal]:
    """What charges cost by both accountants, as recorded.

    Args:
        charges: at least one.
        delta: in (0, 1).
        registered: charges that the plan registers; they set the accountant's grid.

    Returns:
        Epsilon by PLD and by RDP, rounded up to six decimals. A figure that an
        accountant refuses to give is infinite.
    """
    exact = Fraction(delta)
    try:
        counts: dict[events.Event, int] = {}
        for event, count in charges:
            counts[priced(event)] = counts.get(priced(event), 0) + count
        price = accountant.price_events(counts, exact, registered_rounds=registered)
    except UnsupportedEventError:
        return INFINITE, _renyi_alone(charges, exact)
    return rounded_up(price.epsilon_pld), rounded_up(price.epsilon_rdp)


def spend_of(
    charges: Charges, delta: Decimal, registered: int, price: Price = price_charges
) -> Spend:
    """The record of what charges of one run cost. No charges cost 0."""
    pld, rdp = (Decimal(0), Decimal(0))
    if charges:
        pld, rdp = price(charges, delta, registered)
    return Spend(charge_count(charges), delta, pld, rdp)


def spends_after(
    history: History, event: Event, releases: int, price: Price = price_charges
) -> tuple[Spend, Lifetime]:
    """What the run and the ledger will have spent with one more charge.

    Args:
        history: of a client's ledger in which a run is open.
        event: what is about to happen.
        releases: how often.
        price: the accountant.

    Returns:
        The two figures for `Intent`.

    Raises:
        BrokenChainError: no client's run is open.
    """
    registered = history.registered_charges
    spend = spend_of(
        charged(history.charges, event, releases),
        history.plan_delta,
        registered,
        price,
    )
    lifetime = charged(history.lifetime, event, releases)
    pld = INFINITE
    if len(history.runs) == 1:
        pld, _ = price(lifetime, history.cap_delta, registered)
    return spend, history.lifetime_of(lifetime, pld)


class Pricing:
    """Checks recorded prices; each combination is computed once.

    Args:
        price: the accountant.
    """

    __slots__ = ("_known", "_price")

    def __init__(self, price: Price) -> None:
        self._price = price
        self._known: dict[tuple[Charges, Decimal, int], tuple[Decimal, Decimal]] = {}

    def check(self, spend: Spend | Lifetime, charges: Charges, registered: int) -> None:
        """Compute an epsilon again.

        What the filter counts of a lifetime is checked with its record, by `History`.

        Raises:
            DisagreementError: it is not the recorded one, or has no price.
        """
        key = (charges, spend.delta, registered)
        if key not in self._known:
            try:
                self._known[key] = self._price(*key)
            except (PrivacyError, ArithmeticError, ValueError):
                msg = "the accountant has no price for what is charged"
                raise DisagreementError(msg) from None
        pld, rdp = self._known[key]
        other = rdp if isinstance(spend, Spend) else spend.epsilon_rdp
        if (pld, other) != (spend.epsilon_pld, spend.epsilon_rdp):
            msg = "the recorded epsilon is not what its charges cost"
            raise DisagreementError(msg)


def _renyi_alone(charges: Charges, delta: Fraction) -> Decimal:
    """The Renyi figure where the other is refused; for one kind of event only."""
    if len(charges) != 1:
        return INFINITE
    event, count = charges[0]
    try:
        return rounded_up(renyi.epsilon_rdp(priced(event), count, delta))
    except UnsupportedEventError:
        return INFINITE
