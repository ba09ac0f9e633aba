"""Figures for people: bounds are rounded up, and what protects is rounded down."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from privacy.attacker import Limits

# Shares of absent units that an attacker takes for present, at which the report says
# how many of the present ones it finds.
FALSE_ALARMS = (0.01, 0.001)

# Beyond this a guess is right so often that a limit is none, and below the other a
# share in percent needs a digit more.
HARDLY_A_LIMIT = 0.99
_SMALL_SHARE = Decimal("0.0099")


def guesses(limits: Limits) -> list[tuple[str, str, str]]:
    """What an attacker achieves: the question, by guessing, and at most."""
    rows = [
        (
            "Right guesses, where present and absent are equally likely",
            "50%",
            at_most(limits.accuracy),
        )
    ]
    for rate in FALSE_ALARMS:
        rows.append(
            (
                f"Found, where {one_in(rate)} absent ones is wrongly named",
                f"{rate:.1%}".replace(".0%", "%"),
                at_most(limits.found(rate)),
            )
        )
    return rows


def one_in(rate: float) -> str:
    """A share as one in so many."""
    return f"1 in {round(1 / rate):,}"


def at_most(share: float) -> str:
    """A share in percent, rounded up, to as many digits as it takes to tell it.

    Guarantee:
        What it says is no less than the share as claim.json states it.
    """
    # The shortest text of a float is what claim.json has, and what is rounded.
    exact = Decimal(repr(share))
    fine = exact > Decimal(repr(HARDLY_A_LIMIT)) or exact < _SMALL_SHARE
    step = Decimal("0.01" if fine else "0.1")
    percent = (100 * exact).quantize(step, rounding=ROUND_CEILING)
    return f"{percent}%" if percent < 100 else "100%"


def epsilon_text(epsilon: Decimal) -> str:
    """An epsilon for tables: four decimals, rounded up."""
    if epsilon.is_infinite():
        return "infinity"
    return f"{epsilon.quantize(Decimal('0.0001'), rounding=ROUND_CEILING)}"


def noise_text(multiplier: float) -> str:
    """A noise multiplier: four significant digits, rounded down."""
    exact = Decimal(repr(multiplier))
    step = Decimal(1).scaleb(exact.adjusted() - 3) if exact else Decimal(1)
    return f"{exact.quantize(step, rounding=ROUND_FLOOR):f}"


def counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def listed(names: list[str]) -> str:
    """Names in a sentence."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
