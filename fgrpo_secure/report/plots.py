"""Plots of what the ledgers prove."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fgrpo_secure.report.drawing import (
    BAD,
    FIRST,
    INK,
    SECOND,
    Plot,
    bars,
    rounds_axis,
    svg,
)
from fgrpo_secure.report.facts import PUBLISHED, RunFacts
from fgrpo_secure.report.figures import FALSE_ALARMS, counted
from privacy.attacker import Tradeoff


def attacker_plot(limits: Tradeoff) -> Plot:
    """Most that is found against false alarms."""
    rates = np.geomspace(1e-4, 1.0, 121)
    most = [limits.found(float(rate)) for rate in rates]

    def draw(axes: Axes) -> None:
        axes.loglog(rates, rates, color=INK, linestyle="--", linewidth=1)
        axes.loglog(rates, most, color=FIRST, linewidth=2)
        for rate in FALSE_ALARMS:
            axes.plot(rate, limits.found(rate), "o", color=FIRST, markersize=6)
        axes.fill_between(rates, rates, most, color=FIRST, alpha=0.12, linewidth=0)
        axes.set(
            xlabel="absent ones wrongly named",
            ylabel="present ones found",
            xlim=(1e-4, 1),
            ylim=(1e-4, 1.2),
        )
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))

    return Plot(
        "What an attacker could achieve",
        "The line is the most that any test finds, at each share of false alarms; "
        "dashed is blind guessing. The dots are the rows of the table.",
        svg("attacker", draw, "Bound on an attacker's success"),
    )


def epsilon_plot(facts: RunFacts) -> Plot | None:
    """Epsilon against rounds, with target and cap; None where it is infinite."""
    plan = facts.plan
    if not plan.promises_privacy or not facts.rounds:
        return None
    target = float(plan.epsilon)
    # Over several runs a cap is held against what all of them cost.
    alone = [c.data_set.budget for c in facts.clients if c.data_set.budget.runs == 1]
    caps = {budget.cap for budget in alone}
    numbers = [0, *(one.number for one in facts.rounds)]
    spent = [0.0, *(float(one.epsilon) for one in facts.rounds)]
    drawn = [cap for cap in caps if cap.is_finite() and cap != Decimal(plan.epsilon)]

    def draw(axes: Axes) -> None:
        axes.step(numbers, spent, where="post", color=FIRST, linewidth=2)
        axes.plot(numbers, spent, "o", color=FIRST, markersize=3)
        lines = [("target", target), *(("cap", float(cap)) for cap in sorted(drawn))]
        for name, value in lines:
            axes.axhline(value, color=SECOND, linestyle="--", linewidth=1.2)
            axes.annotate(
                f"{name} {value:g}",
                (0, value),
                xytext=(4, -4),
                textcoords="offset points",
                va="top",
                color=INK,
            )
        top = max([target, *(float(cap) for cap in drawn)])
        axes.set(xlabel="round", ylabel="epsilon spent", xlim=(0, plan.rounds))
        axes.set_ylim(0, 1.08 * top)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    if len(alone) < len(facts.clients):
        more = " A cap over several runs of a data set stands in the table."
    elif any(cap.is_infinite() for cap in caps):
        more = " A ledger has no cap."
    else:
        more = "" if drawn else " The cap of every ledger is that target."
    return Plot(
        "Epsilon against rounds",
        "The largest of any client after each round, as recomputed from the ledgers; "
        f"dashed is what may not be passed.{more}",
        svg("epsilon", draw, "Epsilon spent against rounds"),
    )


def survivors_plot(facts: RunFacts) -> Plot | None:
    """Clients in each sum."""
    if not facts.rounds:
        return None
    plan = facts.plan

    def draw(axes: Axes) -> None:
        bars(axes, facts.rounds, [len(one.survivors) for one in facts.rounds])
        least = plan.min_survivors
        axes.axhline(least, color=INK, linestyle="--", linewidth=1.2)
        lost = [one.number for one in facts.rounds if one.status != PUBLISHED]
        axes.plot(lost, [0.15] * len(lost), "x", color=BAD, markersize=6)
        axes.set(xlabel="round", ylabel="clients in the sum")
        axes.set_ylim(0, len(plan.clients) + 0.5)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    return Plot(
        "Clients in each sum",
        f"Of {len(plan.clients)}; dashed is the least, {plan.min_survivors}, below "
        "which no sum is opened. A cross is a round without a result.",
        svg("survivors", draw, "Clients in the sum of each round"),
    )


def noise_plot(facts: RunFacts) -> Plot | None:
    """Noise in each sum; None where each client's own noise is what protects."""
    plan = facts.plan
    published = [one for one in facts.rounds if one.survivors]
    if not plan.promises_privacy or plan.is_local or not published:
        return None
    numbers = [one.number for one in published]
    share = plan.noise_share_variance
    whole = [(len(one.survivors) * share) ** 0.5 / plan.norm_bound for one in published]

    def draw(axes: Axes) -> None:
        axes.plot(numbers, whole, "o", color=FIRST, markersize=5)
        axes.axhline(plan.noise_multiplier, color=SECOND, linestyle="--", linewidth=1.2)
        axes.set(xlabel="round", ylabel="noise / one unit's bound")
        axes.set_ylim(0, 1.15 * max([plan.noise_multiplier, *whole]))
        rounds_axis(axes, facts.rounds)

    return Plot(
        "Noise in each sum",
        "Standard deviation over the most that one unit can move: as recorded, if "
        "every client in the sum added its share (dots), and what epsilon counts on, "
        f"{counted(plan.honest_shares, 'honest share')} (dashed).",
        svg("noise", draw, "Noise in the sum of each round"),
    )


def _percent(value: float, _: object) -> str:
    return f"{100 * value:g}%"
