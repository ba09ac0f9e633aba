"""The report's plots: SVG that stands in the page and takes its colours from it.

Text stays text, so that it can be searched, read aloud and set in the reader's font.
Colours are variables of the page's style sheet, so that one plot serves light, dark and
paper.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fgrpo_secure.report.facts import RoundFacts, RunFacts
from fgrpo_secure.report.markup import Html, element, trusted
from fgrpo_secure.report.words import FALSE_ALARMS
from privacy.attacker import Tradeoff
from privacy.plan import WEIGHT_ONE

# Colours that occur nowhere else; each becomes a variable of the style sheet.
_INK, _FAINT, _FIRST, _SECOND, _BAD = (
    "#010101",
    "#010102",
    "#010103",
    "#010104",
    "#010105",
)
_VARIABLES = {
    _INK: "var(--ink)",
    _FAINT: "var(--line)",
    _FIRST: "var(--first)",
    _SECOND: "var(--second)",
    _BAD: "var(--bad)",
}

# In the units of the drawing, which are pixels where the page is wide enough.
_WIDTH, _HEIGHT, _FONT = 400, 250, 13

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


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot and what it says.

    Attributes:
        title: short.
        caption: how to read it.
        svg: the drawing.
    """

    title: str
    caption: str
    svg: Html

    def figure(self) -> Html:
        """It, as an element of the page."""
        head = element("strong", f"{self.title}. ")
        return element(
            "figure", self.svg, element("figcaption", head, self.caption), class_="plot"
        )


def attacker_plot(limits: Tradeoff) -> Plot:
    """Most that is found against false alarms."""
    rates = np.geomspace(1e-4, 1.0, 121)
    most = [limits.found(float(rate)) for rate in rates]

    def draw(axes: Axes) -> None:
        axes.semilogx(rates, rates, color=_INK, linestyle="--", linewidth=1)
        axes.semilogx(rates, most, color=_FIRST, linewidth=2)
        for rate in FALSE_ALARMS:
            axes.plot(rate, limits.found(rate), "o", color=_FIRST, markersize=6)
        axes.fill_between(rates, rates, most, color=_FIRST, alpha=0.12, linewidth=0)
        axes.set(
            xlabel="absent ones wrongly named",
            ylabel="present ones found",
            xlim=(1e-4, 1),
            ylim=(0, 1.02),
        )
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))

    return Plot(
        "What an attacker could achieve",
        "The line is the most that any test finds, at each share of false alarms; "
        "dashed is blind guessing. The dots are the rows of the table.",
        _svg("attacker", draw, "Bound on an attacker's success"),
    )


def epsilon_plot(facts: RunFacts) -> Plot | None:
    """Epsilon against rounds, with target and cap; None where it is infinite."""
    plan = facts.plan
    if not plan.promises_privacy or not facts.rounds:
        return None
    target = float(plan.epsilon)
    caps = {client.budget.cap for client in facts.clients}
    numbers = [0, *(one.number for one in facts.rounds)]
    spent = [0.0, *(float(one.epsilon) for one in facts.rounds)]
    drawn = [cap for cap in caps if cap.is_finite() and cap != Decimal(plan.epsilon)]

    def draw(axes: Axes) -> None:
        axes.step(numbers, spent, where="post", color=_FIRST, linewidth=2)
        axes.plot(numbers, spent, "o", color=_FIRST, markersize=3)
        lines = [("target", target), *(("cap", float(cap)) for cap in sorted(drawn))]
        for name, value in lines:
            axes.axhline(value, color=_SECOND, linestyle="--", linewidth=1.2)
            axes.annotate(
                f"{name} {value:g}",
                (0, value),
                xytext=(4, -4),
                textcoords="offset points",
                va="top",
                color=_INK,
            )
        top = max([target, *(float(cap) for cap in drawn)])
        axes.set(xlabel="round", ylabel="epsilon spent", xlim=(0, plan.rounds))
        axes.set_ylim(0, 1.08 * top)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    same = "" if drawn else " The cap of every ledger is that target."
    infinite = any(cap.is_infinite() for cap in caps)
    none = " A ledger has no cap." if infinite else same
    return Plot(
        "Epsilon against rounds",
        "The largest of any client after each round, as recomputed from the ledgers; "
        f"dashed is what may not be passed.{none}",
        _svg("epsilon", draw, "Epsilon spent against rounds"),
    )


def survivors_plot(facts: RunFacts) -> Plot | None:
    """Clients in each sum."""
    if not facts.rounds:
        return None
    plan = facts.plan

    def draw(axes: Axes) -> None:
        _bars(axes, facts.rounds, [len(one.survivors) for one in facts.rounds])
        least = plan.min_survivors
        axes.axhline(least, color=_INK, linestyle="--", linewidth=1.2)
        lost = [one.number for one in facts.rounds if one.status != "published"]
        axes.plot(lost, [0.15] * len(lost), "x", color=_BAD, markersize=6)
        axes.set(xlabel="round", ylabel="clients in the sum")
        axes.set_ylim(0, len(plan.clients) + 0.5)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    return Plot(
        "Clients in each sum",
        f"Of {len(plan.clients)}; dashed is the least, {plan.min_survivors}, below "
        "which no sum is opened. A cross is a round without a result.",
        _svg("survivors", draw, "Clients in the sum of each round"),
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
        axes.plot(numbers, whole, "o", color=_FIRST, markersize=5)
        axes.axhline(
            plan.noise_multiplier, color=_SECOND, linestyle="--", linewidth=1.2
        )
        axes.set(xlabel="round", ylabel="noise / one unit's bound")
        axes.set_ylim(0, 1.15 * max([plan.noise_multiplier, *whole]))
        _rounds_axis(axes, facts.rounds)

    return Plot(
        "Noise in each sum",
        "Standard deviation over the most that one unit can move: as recorded, if "
        "every client in the sum added its share (dots), and what epsilon counts on, "
        f"{plan.honest_shares} honest shares (dashed).",
        _svg("noise", draw, "Noise in the sum of each round"),
    )


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
        _bars(axes, noted, sums)
        axes.plot([one.number for one in noted], most, "_", color=_SECOND, markersize=9)
        axes.set(xlabel="round", ylabel="sum of weights")
        axes.set_ylim(0, 1.1 * max([*most, *sums]))

    return Plot(
        "Sum of the weights",
        "What the sum is divided by, as the coordinator noted it; nobody signed it. "
        "The marks are the most that the clients in the sum could have.",
        _svg("weights", draw, "Sum of the clients' weights in each round"),
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
            axes.plot([before, after], [place, place], color=_FIRST, linewidth=2)
        before = [row[1] for row in shown]
        after = [row[2] for row in shown]
        axes.plot(before, places, "o", color=_SECOND, markersize=7, label="before")
        axes.plot(after, places, "o", color=_FIRST, markersize=7, label="after")
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
        _svg("reward", draw, "Held-out reward", 110 + 26 * len(shown)),
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
            color=_SECOND,
            label="to the clients",
        )
        axes.barh(
            places - 0.19,
            [up[phase] / million for phase in phases],
            0.34,
            color=_FIRST,
            label="from the clients",
        )
        axes.grid(visible=False, axis="y")
        axes.set_yticks(places, [PHASES[phase] for phase in phases])
        axes.set(xlabel="million bytes, whole run")
        _legend_above(axes)

    return Plot(
        "Where the bytes went",
        "All messages of all rounds, by what they were for, as the coordinator counted "
        "them.",
        _svg("bytes", draw, "Bytes by phase", 120 + 30 * len(phases)),
    )


def seconds_plot(facts: RunFacts) -> Plot | None:
    """The share of time by phase, of the whole run."""
    seconds = _totals(facts.rounds, "seconds")
    total = sum(seconds.values())
    phases = [phase for phase in PHASES if seconds[phase] > 0]
    if not phases or total <= 0:
        return None
    places = np.arange(len(phases))[::-1]
    shares = [round(100 * seconds[phase] / total) for phase in phases]

    def draw(axes: Axes) -> None:
        bars = axes.barh(places, shares, 0.6, color=_FIRST)
        axes.bar_label(bars, [f"{share}%" for share in shares], padding=3)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(places, [PHASES[phase] for phase in phases])
        axes.set(xlabel="share of the rounds' time", xlim=(0, 112))
        axes.set_xticks([0, 25, 50, 75, 100], ["0%", "25%", "50%", "75%", "100%"])

    return Plot(
        "Where the time went",
        "Of the rounds, not of loading and scoring. Time depends on what was drawn and "
        "is outside the guarantee; whole percent of the whole run are shown.",
        _svg("seconds", draw, "Time by phase", 90 + 30 * len(phases)),
    )


def _totals(rounds: Sequence[RoundFacts], name: str) -> Counter[str]:
    """What was noted of all rounds together, by phase; all unknown ones are one."""
    total: Counter[str] = Counter()
    for one in rounds:
        if one.note is not None:
            for phase, value in getattr(one.note, name).items():
                total[phase if phase in PHASES else _OTHER] += value
    return total


def _bars(axes: Axes, rounds: Sequence[RoundFacts], values: Sequence[float]) -> None:
    axes.bar([one.number for one in rounds], values, 0.7, color=_FIRST)
    axes.grid(visible=False, axis="x")
    _rounds_axis(axes, rounds)


def _rounds_axis(axes: Axes, rounds: Sequence[RoundFacts]) -> None:
    axes.set_xlim(rounds[0].number - 0.6, rounds[-1].number + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


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


def _percent(value: float, _: object) -> str:
    return f"{100 * value:g}%"


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def _svg(
    name: str, draw: Callable[[Axes], None], said: str, height: float = _HEIGHT
) -> Html:
    """Draw, and fit the drawing into a page: its ids, colours and fonts are the page's.

    Args:
        name: distinct in the page.
        draw: what to draw.
        said: what it shows, for whoever cannot see it.
        height: in the units of the drawing.
    """
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": _FONT,
        "text.color": _INK,
        "text.parse_math": False,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "axes.facecolor": "none",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": _FAINT,
        "grid.linewidth": 0.8,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "figure.facecolor": "none",
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return trusted(_fitted(buffer.getvalue(), name, said))


def _fitted(svg: str, name: str, said: str) -> str:
    """A drawing as part of a page; nothing in it names a place outside of it."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    # One page has several drawings, whose ids would otherwise meet.
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    body = re.sub(r"font: (?:\S+ )*?([0-9.]+)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    box = re.search(r'viewBox="[^"]*"', body)
    opened = f'<svg {box.group() if box else ""} role="img" aria-label="{said}">'
    return re.sub(r"<svg[^>]*>", opened, body, count=1, flags=re.DOTALL)
