"""Where the time of a round goes in a pilot: a timeline of a real rehearsal.

    python benchmarks/engine_timeline.py [--json]

A server and three sites train the embedded tiny model over NVFlare, as `make pilot`
does. Some of the product's functions note when they began and ended, on the clock that
all processes of a machine share. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import environment
from engine_parts import PHASES, TIMELINE
from machine import processor

_RESULTS = Path(__file__).resolve().parent / "results"
_SERVER = "server"
# What a site does in the phase of the vectors, and under which name it is drawn.
_PARTS = ("rollouts", "gradients")
# Until the key shares are at the sites nothing may be charged, and so nothing drawn.
_EARLY = ("offer", "roster")
_REST = ("survivors", "quorum", "published")
# The clients' whole share of a round of SmolLM2, from the benchmark of a round.
_LARGE = "round-smollm2.json"

Event = tuple[str, str, float, float]


def rehearse(folder: Path) -> list[Event]:
    """Play a pilot; returns party, name, begin and end of what was noted."""
    from fgrpo_secure.pilot import rehearsal  # noqa: PLC0415

    order, events = folder / "order.json", folder / "events.jsonl"
    order.write_text(json.dumps({"events": str(events)}), "utf-8")
    with environment(TIMELINE, order):
        rehearsal.rehearse(folder / "pilot", _say)
    lines = events.read_text("utf-8").splitlines()
    return [
        (str(p), str(w), float(b), float(e)) for p, w, b, e in map(json.loads, lines)
    ]


def rounds_of(events: Sequence[Event]) -> list[list[Event]]:
    """The events within each round, their times counted from its begin."""
    whole = sorted(e for e in events if e[1] == "round")
    found = []
    for _, _, began, ended in sorted(whole, key=lambda event: event[2]):
        own = [
            (party, what, start - began, end - began)
            for party, what, start, end in events
            if began <= start and end <= ended
        ]
        found.append(own)
    return found


def parts_of(events: Sequence[Event]) -> dict[str, float]:
    """Seconds of one round, by where they went.

    R0 to R2 are all that comes before a site may draw: the offer, the roster, and the
    way of the key shares to the site that has them last. What they cost beyond the work
    of server and sites is the engine's.
    """
    server = {what: (b, e) for party, what, b, e in events if party == _SERVER}
    whole = server["round"][1]
    sites: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for party, what, began, ended in events:
        if party != _SERVER:
            # A client may generate in several passes.
            first, _ = sites[party].get(what, (began, ended))
            sites[party][what] = first, ended
    shares = server["Meter.shares"]
    begun = max(own["Site.shares"][0] for own in sites.values())
    drawn = [_seconds(own["contribute"]) for own in sites.values()]
    found = {
        "round": whole,
        "r0 to r2": begun - server["round"][0],
        "after the adapter": begun
        - max(own["Site.offer"][0] for own in sites.values()),
        "learning": max(own["contribute"][1] for own in sites.values()) - begun,
        "longest site": max(drawn),
        "vectors back": shares[1]
        - max(own["Site.shares"][1] for own in sites.values()),
        "r4 to end": whole - shares[1],
    }
    engine = 0.0
    for phase in PHASES:
        began, ended = server[f"Meter.{phase}"]
        first = min(own[f"Site.{phase}"][0] for own in sites.values())
        last = max(own[f"Site.{phase}"][1] for own in sites.values())
        found[phase] = ended - began
        found[f"{phase}, on the way"] = max(0.0, first - began) + max(0.0, ended - last)
        engine += found[f"{phase}, on the way"]
    found["engine"] = engine
    found["early, on the way"] = sum(found[f"{p}, on the way"] for p in _EARLY) + max(
        0.0, begun - shares[0]
    )
    return found


def _seconds(span: tuple[float, float]) -> float:
    return span[1] - span[0]


def summed(rounds: Sequence[Sequence[Event]]) -> dict[str, float]:
    """Medians over the rounds."""
    parts = [parts_of(events) for events in rounds]
    return {name: statistics.median(one[name] for one in parts) for name in parts[0]}


def middle(rounds: Sequence[Sequence[Event]]) -> Sequence[Event]:
    """The round in the middle of them, by how long it took."""
    return sorted(rounds, key=lambda own: parts_of(own)["round"])[len(rounds) // 2]


# Drawing.

_WIDTH, _LEFT, _ROW, _TOP = 920, 84, 30, 46
_COLOURS = {
    "offer": "#4c78a8",
    "roster": "#72a0c8",
    "shares": "#d8d8d8",
    "survivors": "#72a0c8",
    "quorum": "#4c78a8",
    "published": "#72a0c8",
    "rollouts": "#f58518",
    "gradients": "#54a24b",
}


def draw(events: Sequence[Event]) -> str:
    """One round as SVG: a row for the server, one for each site."""
    parties = [_SERVER, *sorted({event[0] for event in events} - {_SERVER})]
    whole = next(end for _, what, _, end in events if what == "round")
    scale = (_WIDTH - _LEFT - 20) / whole
    height = _TOP + _ROW * len(parties) + 52
    shapes = []
    # What lasts long is drawn first, and what lies within it on top.
    for party, what, began, ended in sorted(events, key=lambda e: e[2] - e[3]):
        name = what.rpartition(".")[2]
        if name not in _COLOURS:
            continue
        y = _TOP + _ROW * parties.index(party)
        inner = name in _PARTS
        shapes.append(
            f'<rect x="{_LEFT + began * scale:.1f}" y="{y + (5 if inner else 2)}" '
            f'width="{max(1.0, (ended - began) * scale):.1f}" '
            f'height="{_ROW - (16 if inner else 10)}" fill="{_COLOURS[name]}">'
            f"<title>{party}: {name}, {1000 * (ended - began):.0f} ms</title></rect>"
        )
    names = [
        f'<text x="{_LEFT - 8}" y="{_TOP + _ROW * row + 17}" text-anchor="end">'
        f"{party}</text>"
        for row, party in enumerate(parties)
    ]
    bottom = _TOP + _ROW * len(parties)
    step = next(s for s in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if whole / s <= 12)
    ticks = [
        f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{bottom}" '
        f'stroke="#bbb" stroke-width="0.5"/><text x="{x:.1f}" y="{bottom + 14}" '
        f'text-anchor="middle">{number * step:g} s</text>'
        for number in range(int(whole / step) + 1)
        for x in [_LEFT + number * step * scale]
    ]
    legend, x = [], _LEFT
    for name, colour in _COLOURS.items():
        legend.append(
            f'<rect x="{x}" y="{bottom + 26}" width="12" height="12" fill="{colour}"/>'
            f'<text x="{x + 16}" y="{bottom + 36}">{name}</text>'
        )
        x += 30 + 7 * len(name)
    title = (
        f'<text x="{_LEFT}" y="18" font-size="13">A round of the tiny model over the '
        "engine: phases at the server (until the last answer), work at the sites"
        "</text>"
    )
    body = "\n".join([title, *ticks, *shapes, *names, *legend])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11">\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


def report(result: Mapping[str, Any]) -> str:
    """The figures, as Markdown."""
    parts, machine = result["parts"], result["machine"]
    whole = parts["round"]

    def row(label: str, name: str) -> str:
        return f"| {label} | {1000 * parts[name]:.0f} | {parts[name] / whole:.1%} |"

    lines = [
        "# Where the time of a round goes in a pilot",
        "",
        f"Three sites and a server train the embedded tiny model over NVFlare on one "
        f"machine: {machine['processor']}, {machine['cores']} cores for all, load "
        f"{result['load'][0]:.1f} to {result['load'][1]:.1f}. Medians of "
        f"{result['rounds']} rounds.",
        "",
        "![A timeline of one round](engine-timeline.svg)",
        "",
        "| part of a round | ms | share |",
        "|---|---:|---:|",
        row("whole", "round"),
        row("R0 to R2: until the last site has its key shares", "r0 to r2"),
        row("&nbsp; of it after the last site has the adapter", "after the adapter"),
        row("&nbsp; of it on the way, both directions", "early, on the way"),
        row("R3: from there until the last site has learnt", "learning"),
        row("R3: masks, and the vectors' way back", "vectors back"),
        row("R4, R5 and the publication", "r4 to end"),
        row("on the way in all phases", "engine"),
        "",
        "| phase | ms at the server | of it on the way |",
        "|---|---:|---:|",
    ]
    for phase in PHASES:
        way = parts[f"{phase}, on the way"]
        lines.append(f"| {phase} | {1000 * parts[phase]:.0f} | {1000 * way:.0f} |")
    lines += [
        "",
        "*On the way* is from the server's request to the first site that begins, and "
        "from the last site that ends to the server's going on: signatures, NVFlare, "
        "TLS and the supervisor's pipe.",
        "",
        *_hiding(result),
    ]
    return "\n".join(lines) + "\n"


def _hiding(result: Mapping[str, Any]) -> list[str]:
    lines = [
        "## What hiding R0 to R2 behind the rollouts could save at most",
        "",
        "No site can generate before it has the adapter, which comes with the offer. "
        "What could run beside rollouts is the rest of R0 to R2.",
        "",
        "| round | seconds | that rest, s | saved at most |",
        "|---|---:|---:|---:|",
    ]
    for label, whole, early in result["hiding"]:
        lines.append(f"| {label} | {whole:.3f} | {early:.3f} | {early / whole:.1%} |")
    return lines


def hiding(parts: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """What could be hidden of rounds that were measured here and elsewhere."""
    early = parts["after the adapter"]
    rows = [("the tiny model, as measured", parts["round"], early)]
    path = _RESULTS / _LARGE
    if path.exists():
        step = json.loads(path.read_text("utf-8"))["ours"]["seconds"]
        learning = parts["longest site"]
        rows.append(
            (
                "the same engine, with a client's round of SmolLM2-135M",
                parts["round"] - learning + step,
                early,
            )
        )
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(given: Iterable[str] | None = None) -> int:
    """Rehearse, write the results and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=_RESULTS, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    options = parser.parse_args(None if given is None else list(given))
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="fgrpo-timeline-") as folder:
        events = rehearse(Path(folder))
    load.append(os.getloadavg()[0])
    result = write(rounds_of(events), load, options.output)
    print(report(result))
    if options.json:
        shares = {label: round(early / s, 4) for label, s, early in result["hiding"]}
        print(json.dumps(shares))
    return 0


def write(
    rounds: Sequence[Sequence[Event]], load: Sequence[float], folder: Path
) -> dict[str, Any]:
    """Write the results; returns them."""
    rounds = [
        [(p, w, round(b, 4), round(e, 4)) for p, w, b, e in own] for own in rounds
    ]
    parts = summed(rounds)
    result = {
        "machine": {"cores": os.cpu_count(), "processor": processor()},
        "load": [min(load), max(load)],
        "rounds": len(rounds),
        "parts": {name: round(value, 4) for name, value in parts.items()},
        "hiding": hiding(parts),
        "events": rounds,
    }
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / "engine-timeline"
    stem.with_suffix(".json").write_text(json.dumps(result) + "\n", "utf-8")
    stem.with_suffix(".md").write_text(report(result), "utf-8")
    stem.with_suffix(".svg").write_text(draw(middle(rounds)), "utf-8")
    return result


if __name__ == "__main__":
    sys.exit(main())
