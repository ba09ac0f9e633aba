"""How a plot is drawn: SVG that stands in the page and takes its colours from it.

Text stays text, so that it can be searched, read aloud and set in the reader's font.
Colours are variables of the page's style sheet, so that one plot serves light, dark and
paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fgrpo_secure.report.facts import RoundFacts
from fgrpo_secure.report.markup import Html, element, trusted

# Colours that occur nowhere else; each becomes a variable of the style sheet.
INK, FAINT, FIRST, SECOND, BAD = (
    "#010101",
    "#010102",
    "#010103",
    "#010104",
    "#010105",
)
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    BAD: "var(--bad)",
}

# In the units of the drawing, which are pixels where the page is wide enough.
_WIDTH, _HEIGHT, _FONT = 400, 250, 13


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


def side_by_side(plots: Iterable[Plot | None]) -> Html:
    """Those plots that there are, several in a row where the page is wide enough."""
    drawn = [plot.figure() for plot in plots if plot is not None]
    return element("div", *drawn, class_="plots") if drawn else Html("")


def beside(content: Html, plot: Plot | None) -> Html:
    """Words or a table with a plot at their side, where the page is wide enough."""
    if plot is None:
        return content
    return element("div", element("div", content), plot.figure(), class_="plots")


def bars(axes: Axes, rounds: Sequence[RoundFacts], values: Sequence[float]) -> None:
    """A bar for each round."""
    axes.bar([one.number for one in rounds], values, 0.7, color=FIRST)
    axes.grid(visible=False, axis="x")
    rounds_axis(axes, rounds)


def rounds_axis(axes: Axes, rounds: Sequence[RoundFacts]) -> None:
    """The axis of all these rounds, in whole numbers."""
    axes.set_xlim(rounds[0].number - 0.6, rounds[-1].number + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def svg(
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
        "text.color": INK,
        "text.parse_math": False,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.facecolor": "none",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.8,
        "xtick.color": INK,
        "ytick.color": INK,
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
