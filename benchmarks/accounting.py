"""What accounting takes: the price of a plan, a round's filter check, the calibration.

    python benchmarks/accounting.py [--json]

Every figure is taken in a process of its own, in which nothing is cached yet, and each
beside accountants of others that answer the same question. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = Path(__file__).resolve().parent / "results"

# The plan that is priced, and the target that it is calibrated for.
_RATE = Fraction(1, 100)
_MULTIPLIER = 1.0
_DELTA = 1e-5
_EPSILON = 8.0
_NORM_BOUND = 2**15
# Of Opacus's estimate; it adds them to the figure that it returns.
_PRV_ERROR = 0.01
# How many kinds of events a run whose noise varied from round to round has charged.
_KINDS = 32
# The registered order, and how many checks at it are timed in one process.
_ORDER = 8
_CHECKS = 1000

# Goals: seconds for the price of the plan, and for one check of the filter.
_PRICE_GOAL, _FILTER_GOAL = 5.0, 0.005


def _price(rounds: int) -> Callable[[], float]:
    from privacy.accountant import price  # noqa: PLC0415

    return lambda: (
        price(
            sampling_rate=_RATE,
            noise_multiplier=_MULTIPLIER,
            rounds=rounds,
            inner_steps=1,
            delta=_DELTA,
        ).epsilon_pld
    )


def _price_dp_accounting(rounds: int) -> Callable[[], float]:
    """Both of its accountants, as our price holds both figures."""
    import dp_accounting  # noqa: PLC0415
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415

    event = dp_accounting.PoissonSampledDpEvent(
        float(_RATE), dp_accounting.GaussianDpEvent(_MULTIPLIER)
    )

    def work() -> float:
        loss, renyi = PLDAccountant(), RdpAccountant(list(range(2, 257)))
        for accountant in (loss, renyi):
            accountant.compose(event, rounds)
        renyi.get_epsilon(_DELTA)
        return float(loss.get_epsilon(_DELTA))

    return work


def _price_opacus(rounds: int) -> Callable[[], float]:
    from opacus.accountants import PRVAccountant, RDPAccountant  # noqa: PLC0415

    def work() -> float:
        prv, renyi = PRVAccountant(), RDPAccountant()
        prv.history = [(_MULTIPLIER, float(_RATE), rounds)]
        renyi.history = list(prv.history)
        renyi.get_epsilon(_DELTA, alphas=list(range(2, 257)))
        return float(prv.get_epsilon(_DELTA, eps_error=_PRV_ERROR))

    return work


def _calibrate(rounds: int) -> Callable[[], float]:
    from privacy.calibration import calibrate  # noqa: PLC0415

    return lambda: (
        calibrate(
            epsilon=_EPSILON,
            delta=_DELTA,
            sampling_rate=_RATE,
            rounds=rounds,
            norm_bound=_NORM_BOUND,
            statistic_multiplier=None,
        ).noise_multiplier
    )


def _calibrate_dp_accounting(rounds: int) -> Callable[[], float]:
    import dp_accounting  # noqa: PLC0415
    from dp_accounting.pld import PLDAccountant  # noqa: PLC0415

    def run_of(multiplier: float) -> dp_accounting.DpEvent:
        return dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(
                float(_RATE), dp_accounting.GaussianDpEvent(multiplier)
            ),
            rounds,
        )

    return lambda: float(
        dp_accounting.calibrate_dp_mechanism(
            PLDAccountant, run_of, _EPSILON, _DELTA, tol=1e-6
        )
    )


def _calibrate_opacus(rounds: int) -> Callable[[], float]:
    from opacus.accountants.utils import get_noise_multiplier  # noqa: PLC0415

    return lambda: float(
        get_noise_multiplier(
            target_epsilon=_EPSILON,
            target_delta=_DELTA,
            sample_rate=float(_RATE),
            steps=rounds,
            accountant="prv",
        )
    )


_TASKS: dict[str, dict[str, Callable[[int], Callable[[], float]]]] = {
    "price": {
        "ours": _price,
        "dp-accounting": _price_dp_accounting,
        "Opacus": _price_opacus,
    },
    "calibrate": {
        "ours": _calibrate,
        "dp-accounting": _calibrate_dp_accounting,
        "Opacus": _calibrate_opacus,
    },
}


def time_filter(rounds: int, kinds: int) -> dict[str, float]:
    """Check the last round of a run against its budget, in this process.

    Args:
        rounds: of the run; all but one of them are charged.
        kinds: of events, as often each.

    Returns:
        Seconds: of the first check, which computes the Renyi curves; the median and
        the worst of those after it, from events with their counts, as ledgers hold
        them; and of one from a list of single events.
    """
    from privacy.events import Event  # noqa: PLC0415
    from privacy.renyi import epsilon_at_order  # noqa: PLC0415

    several = [Event(_RATE, _MULTIPLIER + kind / 100) for kind in range(kinds)]
    stored = [several[place % kinds] for place in range(rounds)]
    counts = Counter(stored).items()
    started = time.perf_counter()
    budget = epsilon_at_order(counts, _ORDER, _DELTA)
    first = time.perf_counter() - started
    taken = []
    for _ in range(_CHECKS):
        started = time.perf_counter()
        spent = epsilon_at_order(counts, _ORDER, _DELTA)
        taken.append(time.perf_counter() - started)
        if spent > budget:
            raise RuntimeError(budget)
    again = [Event(event.sampling_rate, event.noise_multiplier) for event in stored]
    started = time.perf_counter()
    epsilon_at_order(Counter(again).items(), _ORDER, _DELTA)
    replay = time.perf_counter() - started
    return {
        "first": first,
        "median": statistics.median(taken),
        "worst": max(taken),
        "replay": replay,
    }


def time_task(task: str, who: str, rounds: int) -> dict[str, float]:
    """Load an accountant and do a task once, in this process.

    Returns:
        Seconds to load the program, seconds of the task, and the figure it gives.
    """
    started = time.perf_counter()
    work = _TASKS[task][who](rounds)
    loaded = time.perf_counter()
    figure = work()
    ended = time.perf_counter()
    return {"load": loaded - started, "seconds": ended - loaded, "figure": figure}


def _fresh(*words: object) -> dict[str, float]:
    """What this program gives for these words in a new process."""
    done = subprocess.run(  # noqa: S603
        [
            *(sys.executable, "-W", "ignore", "-m", "benchmarks.accounting", "--one"),
            *map(str, words),
        ],
        cwd=_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(rounds: int, repeats: int, *, peers: bool) -> dict[str, Any]:
    """Do every task in new processes, turn by turn.

    Args:
        rounds: of the plan.
        repeats: processes for each task and accountant.
        peers: whether the others are measured as well.
    """
    result: dict[str, Any] = {
        "rounds": rounds,
        "sampling_rate": str(_RATE),
        "delta": _DELTA,
        "repeats": repeats,
        "machine": _machine(),
    }
    for task, sides in _TASKS.items():
        names = list(sides) if peers else ["ours"]
        taken = [
            {who: _fresh(task, who, rounds) for who in names} for _ in range(repeats)
        ]
        result[task] = {
            who: {
                key: statistics.median(turn[who][key] for turn in taken)
                for key in ("load", "seconds", "figure")
            }
            for who in names
        }
        result[task]["ratio"] = {
            who: statistics.median(
                turn["ours"]["seconds"] / turn[who]["seconds"] for turn in taken
            )
            for who in names[1:]
        }
    result["filter"] = {
        kinds: _fresh("filter", str(kinds), rounds) for kinds in (1, _KINDS)
    }
    ours = result["price"]["ours"]
    result["goals"] = {
        "price": ours["load"] + ours["seconds"] < _PRICE_GOAL,
        "filter": all(
            row["median"] < _FILTER_GOAL for row in result["filter"].values()
        ),
    }
    return result


def _machine() -> dict[str, Any]:
    names = ("dp-accounting", "opacus", "numpy", "scipy")
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
    }


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rounds = result["rounds"]
    lines = [
        f"# Accounting for {rounds:,} rounds",
        "",
        f"Sampling rate {result['sampling_rate']}, delta {result['delta']:g}, one "
        f"thread; medians of {result['repeats']} new processes for each line.",
        "",
    ]
    for task, title, figure in [
        ("price", f"Price of a plan at noise multiplier {_MULTIPLIER:g}", "epsilon"),
        ("calibrate", f"Noise for epsilon {_EPSILON:g}", "noise multiplier"),
    ]:
        rows = result[task]
        lines += [
            f"## {title}",
            "",
            f"| accountant | load, s | work, s | ours takes | {figure} |",
            "|---|---:|---:|---:|---:|",
        ]
        for who, row in rows.items():
            if who == "ratio":
                continue
            ratio = rows["ratio"].get(who)
            times = "" if ratio is None else f"{ratio:.2f} times"
            lines.append(
                f"| {who} | {row['load']:.2f} | {row['seconds']:.3f} | {times} "
                f"| {row['figure']:.5f} |"
            )
        lines.append("")
    lines += [
        "## A round's filter check",
        "",
        "| kinds of events | first, ms | median, ms | worst, ms | from a list, ms |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {kinds} | {1000 * row['first']:.2f} | {1000 * row['median']:.4f} "
        f"| {1000 * row['worst']:.4f} | {1000 * row['replay']:.1f} |"
        for kinds, row in result["filter"].items()
    ]
    words = {True: "met", False: "MISSED"}
    goals = result["goals"]
    lines += [
        "",
        f"Goals: a plan priced under {_PRICE_GOAL:g} s with loading, "
        f"{words[goals['price']]}; a check under {1000 * _FILTER_GOAL:g} ms, "
        f"{words[goals['filter']]}.",
        "",
    ]
    return "\n".join(lines)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="What pricing, filter checks and calibration take."
    )
    add = parser.add_argument
    add("--json", action="store_true", help="end with the result as one line of JSON")
    add("--rounds", type=int, default=10_000, help="of the plan (10,000)")
    add("--repeats", type=int, default=3, help="new processes for each line (3)")
    add("--alone", action="store_true", help="leave the other accountants out")
    add("--output", type=Path, default=_RESULTS, help="folder of the results")
    add("--one", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, show and write."""
    arguments = _arguments(given)
    if arguments.one:
        task, who, rounds = arguments.one
        one = (
            time_filter(int(rounds), int(who))
            if task == "filter"
            else time_task(task, who, int(rounds))
        )
        print(json.dumps(one))
        return 0
    result = measure(arguments.rounds, arguments.repeats, peers=not arguments.alone)
    text = report(result)
    arguments.output.mkdir(parents=True, exist_ok=True)
    place = arguments.output / "accounting"
    place.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    place.with_suffix(".md").write_text(text, "utf-8")
    print(text)
    if arguments.json:
        print(json.dumps(result, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
