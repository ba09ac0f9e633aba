"""Plots of what nobody signed: weights, scores, bytes and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from fgrpo_secure.report.drawing import FIRST, SECOND, Plot, bars, svg
from fgrpo_secure.report.facts import RoundFacts, RunFacts
from fgrpo_secure.report.figures import counted
from privacy.plan import WEIGHT_ONE

# More clients than this are in the table alone.
MOST_CLIENTS_DRAWN = 40

# What a phase of a round is for, in the order in which they come.
PHASES: Mapping[str, str] = {
    "offer": "offer, adapter, keys",
    "roster": "key shares",
    "shares": "learning, masked vectors",
    "survivors": "agreeing on survivors",
    "quorum": "opening the sum",
    "published": "outcome",
    "aborted": "abort",
    "other": "other",
}
_OTHER = "other"

# With fewer rounds a share of the time would be that of a single one.
LEAST_TIMED = 2


def weights_plot(facts: RunFacts) -> Plot | None:
    """The weights' sum, where the coordinator noted it."""
    noted = [one for one in facts.rounds if one.note and one.note.weights]
    if not noted:
        return None
    sums = [one.note.weights for one in noted if one.note]
    plan = facts.plan
    most = [
        sum(plan.batch_share(name) for name in one.survivors) / WEIGHT_ONE
        for one in noted
    ]

    def draw(axes: Axes) -> None:
        bars(axes, noted, sums)
        axes.plot([one.number for one in noted], most, "_", color=SECOND, markersize=9)
        axes.set(xlabel="round", ylabel="sum of weights")
        axes.set_ylim(0, 1.1 * max([*most, *sums]))

    return Plot(
        "Sum of the weights",
        "What the sum is divided by, as the coordinator noted it; nobody signed it. "
        "The marks are the most that the clients in the sum could have.",
        svg("weights", draw, "Sum of the clients' weights in each round"),
    )


def reward_plot(facts: RunFacts) -> Plot | None:
    """Held-out reward before and after, where it was published."""
    shown = [
        (client.name, client.reward_before, client.reward_after)
        for client in facts.clients
        if client.reward_before is not None and client.reward_after is not None
    ][:MOST_CLIENTS_DRAWN]
    if not shown:
        return None
    places = np.arange(len(shown))[::-1]
    first = ""
    if len(facts.clients) > MOST_CLIENTS_DRAWN:
        first = f" Of at most {MOST_CLIENTS_DRAWN} clients; the table has all."

    def draw(axes: Axes) -> None:
        for place, (_, before, after) in zip(places, shown, strict=True):
            axes.plot([before, after], [place, place], color=FIRST, linewidth=2)
        before = [row[1] for row in shown]
        after = [row[2] for row in shown]
        axes.plot(before, places, "o", color=SECOND, markersize=7, label="before")
        axes.plot(after, places, "o", color=FIRST, markersize=7, label="after")
        axes.set_yticks(places, [_short(row[0]) for row in shown])
        axes.set(xlabel="mean held-out reward, rescaled to 0 to 1", xlim=(0, 1))
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            frameon=False,
            borderaxespad=0,
            handletextpad=0.2,
        )

    return Plot(
        "Held-out reward",
        "Before and after, by client, on sets that their owners declared public."
        f"{first}",
        svg("reward", draw, "Held-out reward", 110 + 26 * len(shown)),
    )


def bytes_plot(facts: RunFacts) -> Plot | None:
    """Bytes by phase, where the coordinator noted them."""
    down, up = _totals(facts.rounds, "down"), _totals(facts.rounds, "up")
    phases = [phase for phase in PHASES if down[phase] or up[phase]]
    if not phases:
        return None
    places = np.arange(len(phases))[::-1]

    def draw(axes: Axes) -> None:
        million = 1e6
        axes.barh(
            places + 0.19,
            [down[phase] / million for phase in phases],
            0.34,
            color=SECOND,
            label="to the clients",
        )
        axes.barh(
            places - 0.19,
            [up[phase] / million for phase in phases],
            0.34,
            color=FIRST,
            label="from the clients",
        )
        axes.grid(visible=False, axis="y")
        axes.set_yticks(places, [PHASES[phase] for phase in phases])
        axes.set(xlabel="million bytes")
        _legend_above(axes)

    return Plot(
        "Where the bytes went",
        f"All messages of {_of_rounds(facts)}, by what they were for, as the "
        "coordinator counted them.",
        svg("bytes", draw, "Bytes by phase", 120 + 30 * len(phases)),
    )


def seconds_plot(facts: RunFacts) -> Plot | None:
    """The share of time by phase, of all noted rounds together.

    Guarantee:
        Of one round alone it shows nothing: its time depends on what was drawn.
    """
    timed = timed_rounds(facts)
    seconds = _totals(timed, "seconds")
    total = sum(seconds.values())
    phases = [phase for phase in PHASES if seconds[phase] > 0]
    if len(timed) < LEAST_TIMED or not phases:
        return None
    places = np.arange(len(phases))[::-1]
    shares = [round(100 * seconds[phase] / total) for phase in phases]

    def draw(axes: Axes) -> None:
        drawn = axes.barh(places, shares, 0.6, color=FIRST)
        axes.bar_label(drawn, [f"{share}%" for share in shares], padding=3)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(places, [PHASES[phase] for phase in phases])
        axes.set(xlabel="share of the rounds' time", xlim=(0, 112))
        axes.set_xticks([0, 25, 50, 75, 100], ["0%", "25%", "50%", "75%", "100%"])

    return Plot(
        "Where the time went",
        f"Of {_of_rounds(facts, timed)}, not of loading and scoring. Time depends on "
        "what was drawn and is outside the guarantee; whole percent of all of it are "
        "shown.",
        svg("seconds", draw, "Time by phase", 90 + 30 * len(phases)),
    )


def timed_rounds(facts: RunFacts) -> list[RoundFacts]:
    """The rounds whose time was noted."""
    return [one for one in facts.noted if one.note and any(one.note.seconds.values())]


def _of_rounds(facts: RunFacts, shown: Sequence[RoundFacts] | None = None) -> str:
    """Of how many rounds something is, and of how many that were begun."""
    those = facts.noted if shown is None else shown
    begun = len(facts.rounds)
    if len(those) == begun:
        return "the one round" if begun == 1 else f"all {begun:,} rounds"
    return f"{len(those):,} of {counted(begun, 'round')}, of which there is a note"


def _totals(rounds: Sequence[RoundFacts], name: str) -> Counter[str]:
    """What was noted of all rounds together, by phase; all unknown ones are one."""
    total: Counter[str] = Counter()
    for one in rounds:
        if one.note is not None:
            for phase, value in getattr(one.note, name).items():
                total[phase if phase in PHASES else _OTHER] += value
    return total


def _legend_above(axes: Axes) -> None:
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        frameon=False,
        borderaxespad=0,
        handlelength=1,
        columnspacing=1,
    )


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"
