"""Does it learn, and what do privacy and federation cost? Tables, curves and a plot.

python benchmarks/learning.py                  the main table, 5 runs of each arm
python benchmarks/learning.py --part same      four clients that share one task
python benchmarks/learning.py --part weights   where FGRPO's weights might help
python benchmarks/learning.py --part small     one tenth of the prompts
python benchmarks/learning.py --part trust     noise shares, or all of it at each client
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

# Every process has one thread; two of them keep two cores busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from arms import Arm, Curve, run_arm
from rich.console import Console
from rich.progress import Progress

RESULTS = Path(__file__).parent / "results"
CONFIG = "tiny"

# Two-sided 95% quantiles of Student's t, by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
_T95 |= {8: 2.306, 9: 2.262, 14: 2.145, 19: 2.093}

_NOISELESS = "privacy.epsilon=inf"
_UNIFORM = "aggregation.rule=uniform"
_GAINS: Mapping[str, tuple[str, ...]] = {
    "uniform": (_UNIFORM,),
    "FGRPO, relative": ("aggregation.gain=relative",),
    "FGRPO, z-score": ("aggregation.gain=zscore",),
    "FGRPO, logit": ("aggregation.gain=logit",),
    "FGRPO, fair": ("aggregation.temperature=-0.5",),
}


@dataclass(frozen=True, slots=True)
class Table:
    """Arms that are compared with one another.

    Attributes:
        title: as it is shown.
        arms: its rows.
        central: name of the arm whose gain the rounds are counted against.
        noiseless: name of the arm whose gain is what privacy keeps a share of.
        plotted: names of the arms in the plot, a few; no plot if empty.
    """

    title: str
    arms: tuple[Arm, ...]
    central: str | None = None
    noiseless: str | None = None
    plotted: tuple[str, ...] = ()


def tables(part: str) -> list[Table]:
    """What a part of the benchmark compares."""
    if part == "main":
        return [_main()]
    if part == "weights":
        return _weights()
    return [{"same": _same, "small": _small, "trust": _trust}[part]()]


def _main() -> Table:
    noiseless = [
        Arm(f"federated, {name}", "federated", (_NOISELESS, *overrides))
        for name, overrides in _GAINS.items()
    ]
    by_size = Arm(
        "federated, by size", "federated", (_NOISELESS, "aggregation.rule=size")
    )
    private = [
        Arm(
            f"epsilon {epsilon}, {name}",
            "federated",
            (f"privacy.epsilon={epsilon}", *_GAINS[name]),
        )
        for epsilon in (8, 4, 1)
        for name in ("uniform", "FGRPO, relative")
    ]
    alone = [
        Arm(f"epsilon {epsilon}, each alone", "alone", (f"privacy.epsilon={epsilon}",))
        for epsilon in (8, 4, 1)
    ]
    return Table(
        "The embedded default: 3,000 prompts a client",
        (
            Arm("base", "base"),
            Arm("each alone", "alone", (_NOISELESS,)),
            Arm("central", "central", (_NOISELESS,)),
            noiseless[0],
            by_size,
            *noiseless[1:],
            *(
                arm
                for three in zip(private[::2], private[1::2], alone, strict=True)
                for arm in three
            ),
        ),
        central="central",
        noiseless="federated, uniform",
        plotted=(
            "each alone",
            "central",
            "federated, uniform",
            "epsilon 8, uniform",
            "epsilon 4, uniform",
            "epsilon 1, uniform",
            "epsilon 1, each alone",
        ),
    )


def _weights() -> list[Table]:
    rewards = Path(__file__).parent / "rewards.py"
    settings: Mapping[str, tuple[tuple[str, ...], int]] = {
        "Few rounds: 3 instead of 12": (("privacy.rounds=3",), 0),
        "Partial participation: one client misses each round": ((), 1),
        "Raw rewards: advantages not divided by the group's deviation": (
            ("grpo.scale_rewards=none",),
            0,
        ),
        "One client's reward squeezed and shifted": (
            (f"client.sums.reward={rewards}:squeezed_sums",),
            0,
        ),
        "One client's reward is a coin toss": (
            (f"client.shift.reward={rewards}:coin",),
            0,
        ),
    }
    return [
        Table(
            title,
            tuple(
                Arm(name, "federated", (_NOISELESS, *overrides, *own), absent)
                for name, own in _GAINS.items()
            ),
        )
        for title, (overrides, absent) in settings.items()
    ]


def _small() -> Table:
    share = ("privacy.sampling_rate=0.6", _UNIFORM)
    variants: Mapping[str, tuple[str, ...]] = {
        "": (),
        ", 7 rounds of all prompts": (
            "privacy.rounds=7",
            "privacy.sampling_rate=1",
        ),
        ", 24 rounds of half the draw": (
            "privacy.rounds=24",
            "privacy.sampling_rate=0.3",
        ),
        ", groups of 2 in 14 rounds of all prompts": (
            "privacy.rounds=14",
            "privacy.sampling_rate=1",
            "grpo.group_size=2",
        ),
        ", clip norm 0.03": ("privacy.clip_norm=0.03",),
        ", Adam's memory 0.9": ("server.betas=[0.9, 0.99]",),
        ", SGD": (
            "server.optimizer=sgd",
            "server.learning_rate=20",
            "server.momentum=0.5",
        ),
    }
    private = [
        Arm(
            f"epsilon {epsilon}{name}",
            "federated",
            (*share, f"privacy.epsilon={epsilon}", *overrides),
            rows=300,
        )
        for epsilon, chosen in ((8, [""]), (4, variants), (1, variants))
        for name, overrides in variants.items()
        if name in chosen
    ]
    return Table(
        "One tenth of the data: 300 prompts a client, the same number of draws",
        (
            Arm("base", "base"),
            Arm("federated", "federated", (_NOISELESS, *share), rows=300),
            *private,
        ),
        noiseless="federated",
        plotted=("federated", "epsilon 8", "epsilon 4", "epsilon 1"),
    )


def _same() -> Table:
    share = ("privacy.sampling_rate=0.6", _UNIFORM)
    ways = {"each alone": "alone", "federated": "federated"}
    return Table(
        "One task at all clients: 300 prompts of sums at each",
        (
            Arm("base", "base", rows=300, task="sums"),
            *(
                Arm(
                    way if epsilon == "inf" else f"epsilon {epsilon}, {way}",
                    kind,
                    (*share, f"privacy.epsilon={epsilon}"),
                    rows=300,
                    task="sums",
                )
                for epsilon in ("inf", "8", "4", "1")
                for way, kind in ways.items()
            ),
        ),
        noiseless="federated",
        plotted=(
            *ways,
            *(f"epsilon {e}, {way}" for e in (8, 1) for way in ways),
        ),
    )


def _trust() -> Table:
    local = ("privacy.trust=local", "grpo.local_learning_rate=20", _UNIFORM)
    ways: Mapping[str, tuple[str, ...]] = {
        "distributed, 12 rounds": (_UNIFORM,),
        "local, 12 rounds of 1 step": local,
        "local, 4 rounds of 3 steps": (
            *local,
            "privacy.rounds=4",
            "privacy.local_steps=3",
        ),
        "local, 4 rounds of 3 draws with 2 steps each": (
            *local,
            "privacy.rounds=4",
            "privacy.local_steps=3",
            "privacy.inner_steps=2",
        ),
    }
    return Table(
        "Whom the noise trusts: 12 draws of each client in all",
        (
            Arm("base", "base"),
            Arm("no noise, distributed", "federated", (_NOISELESS, _UNIFORM)),
            *(
                Arm(
                    f"epsilon {epsilon}, {way}",
                    "federated",
                    (f"privacy.epsilon={epsilon}", *overrides),
                )
                for epsilon in (8, 1)
                for way, overrides in ways.items()
            ),
        ),
        noiseless="no noise, distributed",
        plotted=tuple(f"epsilon {e}, {way}" for e in (8, 1) for way in list(ways)[:3]),
    )


def main() -> int:
    """Run a part of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part",
        choices=("main", "weights", "small", "same", "trust"),
        default="main",
        help="which comparison (default: main)",
    )
    parser.add_argument(
        "--seeds", type=int, default=5, help="runs of each arm, at least 2 (default: 5)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="runs at a time (default: 2)"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON on stdout"
    )
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2: one run has no interval")
    found = tables(options.part)
    began = time.monotonic()
    curves = run_all(found, options.seeds, options.workers)
    report = {
        "config": CONFIG,
        "seeds": list(range(options.seeds)),
        "seconds": round(time.monotonic() - began),
        "tables": [summary(table, curves) for table in found],
        "runs": [
            {"table": title, "arm": name, "runs": [asdict(c) for c in own]}
            for (title, name), own in curves.items()
        ],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / f"learning-{options.part}"
    text = json.dumps(_finite(report), allow_nan=False) + "\n"
    stem.with_suffix(".json").write_text(text, "utf-8")
    markdown = "\n\n".join(as_markdown(table) for table in report["tables"]) + "\n"
    stem.with_suffix(".md").write_text(markdown, "utf-8")
    for table in found:
        if table.plotted:
            plot(table, curves, stem.with_suffix(".svg"))
    print(text if options.json else markdown, end="")
    return 0


def run_all(
    found: Sequence[Table], seeds: int, workers: int
) -> dict[tuple[str, str], list[Curve]]:
    """Run every arm `seeds` times, with progress on standard error.

    Returns:
        The curves of each (table, arm), in the order of the tables and of the seeds.

    Raises:
        RuntimeError: a run failed; its arm is named.
    """
    curves: dict[tuple[str, str], dict[int, Curve]] = {
        (table.title, arm.name): {} for table in found for arm in table.arms
    }
    console = Console(stderr=True, highlight=False)
    # Spawned processes: a fork would share what torch has begun.
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        Progress(console=console) as bars,
    ):
        waiting = {
            pool.submit(run_arm, CONFIG, arm, seed): (table.title, arm.name, seed)
            for seed in range(seeds)
            for table in found
            for arm in table.arms
        }
        task = bars.add_task("runs", total=len(waiting))
        for done in as_completed(waiting):
            title, name, seed = waiting[done]
            try:
                curves[title, name][seed] = done.result()
            except Exception as error:
                pool.shutdown(cancel_futures=True)
                raise RuntimeError(f"{name} of {title} failed") from error
            bars.advance(task)
            if not console.is_terminal:
                whole = bars.tasks[task]
                console.print(f"{whole.completed:.0f} of {whole.total:.0f} runs")
    return {key: [own[seed] for seed in range(seeds)] for key, own in curves.items()}


def summary(
    table: Table, curves: Mapping[tuple[str, str], Sequence[Curve]]
) -> dict[str, object]:
    """The figures of a table: each a mean and the half width of its 95% interval."""
    means: dict[str, list[float]] = {}
    rows: list[dict[str, object]] = []
    start = statistics.fmean(
        _mean(curve.rounds[0])
        for arm in table.arms
        for curve in curves[table.title, arm.name]
    )
    for arm in table.arms:
        own = curves[table.title, arm.name]
        means[arm.name] = [_mean(curve.final) for curve in own]
        rows.append(
            {
                "arm": arm.name,
                "epsilon": own[0].epsilon,
                "mean": interval(means[arm.name]),
                "worst": interval([min(curve.final.values()) for curve in own]),
            }
        )
    if table.central is not None:
        gain = statistics.fmean(
            _mean(curve.rounds[-1]) for curve in curves[table.title, table.central]
        )
        goal = start + 0.9 * (gain - start)
        for row in rows:
            row["rounds to 90%"] = _reached(curves[table.title, str(row["arm"])], goal)
    if table.noiseless is not None and "base" in means:
        gains = {
            name: [mean - base for mean, base in zip(own, means["base"], strict=True)]
            for name, own in means.items()
        }
        for row in rows:
            row["kept"] = share(gains[str(row["arm"])], gains[table.noiseless])
    return {"title": table.title, "rows": rows}


def share(part: Sequence[float], whole: Sequence[float]) -> tuple[float, float]:
    """The quotient of two means, and half the width of its 95% interval.

    Args:
        part: one value a seed.
        whole: likewise; a seed's two values come from one set of random numbers.
    """
    quotient = statistics.fmean(part) / statistics.fmean(whole)
    # The delta method: how the quotient's error depends on both means.
    errors = [a - quotient * b for a, b in zip(part, whole, strict=True)]
    return quotient, interval(errors)[1] / statistics.fmean(whole)


def _reached(curves: Sequence[Curve], goal: float) -> list[int | None]:
    """The first of two rounds with a mean reward of at least `goal`, for each run.

    One round alone would often be a lucky one.
    """
    found: list[int | None] = []
    for curve in curves:
        there = [_mean(scores) >= goal for scores in curve.rounds]
        pairs = itertools.pairwise(there)
        found.append(next((n for n, pair in enumerate(pairs) if all(pair)), None))
    return sorted(found, key=lambda number: (number is None, number))


def _mean(scores: Mapping[str, float]) -> float:
    return statistics.fmean(scores.values())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval by Student's t."""
    spread = statistics.stdev(values) / math.sqrt(len(values))
    # Between the listed degrees of freedom the next smaller one is on the safe side.
    freedom = max(known for known in _T95 if known <= len(values) - 1)
    return statistics.fmean(values), _T95[freedom] * spread


def as_markdown(table: Mapping[str, object]) -> str:
    """A table for people."""
    rows = table["rows"]
    columns = ["mean", "worst", "kept", "rounds to 90%"]
    shown = [column for column in columns if any(column in row for row in rows)]
    titles = {"mean": "mean reward", "worst": "worst client", "kept": "gain kept"}
    lines = [
        f"**{table['title']}**",
        "",
        "| arm | " + " | ".join(titles.get(name, name) for name in shown) + " |",
        "|---|" + "---:|" * len(shown),
    ]
    lines += [
        f"| {row['arm']} | "
        + " | ".join(_cell(name, row[name]) for name in shown)
        + " |"
        for row in rows
    ]
    return "\n".join(lines)


def _cell(column: str, value: object) -> str:
    if column == "rounds to 90%":
        middle = value[len(value) // 2]
        return "never" if middle is None else str(middle)
    mean, half = value
    if column == "kept":
        return f"{mean:.0%} ± {half:.0%}"
    return f"{mean:.3f} ± {half:.3f}"


def plot(
    table: Table, curves: Mapping[tuple[str, str], Sequence[Curve]], path: Path
) -> None:
    """Mean held-out reward by round, the mean of all runs, as SVG."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fgrpo-secure"
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for arm in table.arms:
        if arm.name not in table.plotted:
            continue
        own = curves[table.title, arm.name]
        rounds = list(zip(*(map(_mean, curve.rounds) for curve in own), strict=True))
        middle = [statistics.fmean(values) for values in rounds]
        style = "-" if arm.kind == "federated" else "--"
        axes.plot(range(len(middle)), middle, style, label=arm.name, linewidth=1.4)
        axes.fill_between(
            range(len(middle)),
            list(map(min, rounds)),
            list(map(max, rounds)),
            alpha=0.06,
        )
    axes.set(xlabel="round", ylabel="mean held-out reward", title=table.title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _finite(value: object) -> object:
    """JSON knows no infinite numbers; an epsilon without noise is "infinity"."""
    if isinstance(value, float):
        return "infinity" if math.isinf(value) else round(value, 5)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


if __name__ == "__main__":
    sys.exit(main())
