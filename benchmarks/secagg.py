"""What secure aggregation costs a client and the server, beside Flower's SecAgg+.

    python benchmarks/secagg.py [--dimension D --neighbours K] [--dropouts N] [--json]

One client's whole work in a round and the server's are timed against the SecAgg+
functions of Flower 1.42 on the same vectors, turn by turn in one run, each side in a
process and an environment of its own. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

from machine import processor

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = Path(__file__).resolve().parent / "results"
_ENVIRONMENT = _ROOT / ".venv-bench"
_OURS, _PEER = "benchmarks.secagg_ours", "benchmarks.flower_peer"
_FLOWER = "flwr==1.42.0"
# What its SecAgg+ functions import, within the bounds that it declares. It is itself
# installed without its dependencies, of which one is ahead of the registry.
_IMPORTED = (
    "grpcio>=1.70,<2",
    "httpx<1",
    "iterators<0.0.3",
    "protobuf>=5.28,<7",
    "pycryptodome>=3.18,<4",
    "typer<0.21",
)
# Both sides have the same ones.
_SHARED = ("numpy", "cryptography")

_DIMENSIONS = (10**4, 10**6, 10**7)
_NEIGHBOURS = (10, 30)
_DROPOUTS = (0, 1)
# Where the goals hold: dimension, neighbours, dropouts.
_GOAL = (10**6, 30, 1)
_CLIENT_GOAL, _SERVER_GOAL, _KEYSTREAM_GOAL = 5.0, 50.0, 0.9
# A parameter takes as many bytes as the modulus has bits, and nothing beside.
_WHOLE_BITS, _BYTE = 32, 8
_MEMORY_GOAL = 3.0
_LEAST_REPEATS = 9

Cell = tuple[int, int, int]


def environment(folder: Path) -> Path:
    """The other side's environment, made where it is not there yet.

    Returns:
        Its Python.
    """
    python = folder / "bin" / "python"
    done = folder / ".made"
    packages = [f"{name}=={metadata.version(name)}" for name in _SHARED]
    wanted = "\n".join([_FLOWER, *packages, *_IMPORTED])
    if done.exists() and done.read_text("utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*install, *packages, *_IMPORTED],
        [*install, "--no-deps", _FLOWER],
    ):
        subprocess.run(command, stdout=sys.stderr, check=True)  # noqa: S603
    done.write_text(wanted, "utf-8")
    return python


class Worker:
    """One side, in a process of its own.

    Args:
        python: of its environment.
        module: what it runs.
    """

    def __init__(self, python: Path, module: str) -> None:
        self._module = module
        self._process = subprocess.Popen(  # noqa: S603
            [str(python), "-W", "ignore", "-m", module],
            cwd=_ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, do: str, **given: object) -> None:
        """Send a request; it is worked on while this process goes on."""
        if self._process.stdin is None:
            raise RuntimeError(self._module)
        self._process.stdin.write(json.dumps({"do": do, **given}) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The answer to the request that was sent first."""
        if self._process.stdout is None:
            raise RuntimeError(self._module)
        line = self._process.stdout.readline()
        if not line:
            msg = f"{self._module} has ended; what it said stands above this line"
            raise RuntimeError(msg)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **given: object) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        self.send(do, **given)
        return self.receive()

    def close(self) -> None:
        """End the process, which stops at the end of its input."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextmanager
def _working(sides: Mapping[str, tuple[Path, str]]) -> Iterator[dict[str, Worker]]:
    workers = {who: Worker(*side) for who, side in sides.items()}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def measure(
    dimension: int,
    neighbours: int,
    dropouts: Sequence[int],
    *,
    sides: Mapping[str, tuple[Path, str]],
    repeats: int,
    bits: int = _WHOLE_BITS,
    threads: int | None = None,
) -> dict[Cell, dict[str, Any]]:
    """Time both sides turn by turn on the messages of one round.

    Args:
        dimension: d.
        neighbours: of each client.
        dropouts: each with a result of its own.
        sides: Python and module of "ours", and of "flower" unless it is left out.
        repeats: turns.
        bits: of our modulus.
        threads: at most so many of ours expand masks or hash; None for the default.

    Returns:
        A result for each number of dropouts.
    """
    with _working(sides) as workers:
        size = {
            "dimension": dimension,
            "neighbours": neighbours,
            "dropouts": list(dropouts),
            "bits": bits,
            "threads": threads,
        }
        for worker in workers.values():
            worker.send("open", **size)
        for worker in workers.values():
            worker.receive()
        # Before anything else: memory that was let go would hide what is taken.
        memory = workers["ours"].ask("memory")
        load = [os.getloadavg()[0]]
        turns: list[dict[str, dict[str, Any]]] = []
        for _ in range(repeats + 1):
            turn = {}
            for who, worker in workers.items():
                turn[f"{who} client"] = worker.ask("client")
            for lost in dropouts:
                for who, worker in workers.items():
                    turn[f"{who} server {lost}"] = worker.ask("server", dropouts=lost)
            turns.append(turn)
            load.append(os.getloadavg()[0])
        # The first turn has warmed both sides up.
        del turns[0]
        ours = workers["ours"]
        expansion = ours.ask("expansion", repeats=repeats)
        floors = _medians(ours.ask("floors", repeats=repeats))
        scaling = {
            lost: _scaling(ours.ask("scaling", repeats=repeats, dropouts=lost))
            for lost in dropouts
        }
        packing = ours.ask("packing", repeats=repeats)
        sizes = {who: worker.ask("sizes") for who, worker in workers.items()}
    shared = {
        "repeats": repeats,
        "bits": bits,
        "threads": threads,
        "client": _party(turns, "client", list(workers)),
        "expansion": _expansion(expansion),
        "packing": _medians(packing),
        "load": [min(load), max(load)],
        "bytes_per_parameter": {
            who: size["message_bytes"] / dimension for who, size in sizes.items()
        },
        "memory_vectors": memory["vectors"],
    }
    cells = {}
    for lost in dropouts:
        server = _party(turns, f"server {lost}", list(workers))
        least = least_server(floors, shared["expansion"], neighbours, lost)
        if "flower" in server:
            least["ratio"] = server["flower"]["cpu"] / least["all"]
        cells[dimension, neighbours, lost] = shared | {
            "server": server | {"least": least},
            "scaling": scaling[lost],
        }
    return cells


def least_server(
    floors: Mapping[str, float],
    expansion: Mapping[str, float],
    neighbours: int,
    lost: int,
) -> dict[str, float]:
    """What no server is spared: CPU seconds of the three primitives on their own.

    Args:
        floors: of one vector's hash and one signature's verification.
        expansion: among it the keystream of one client's masks.
        neighbours: of each client.
        lost: vectors.
    """
    clients, survivors = neighbours + 1, neighbours + 1 - lost
    # Adverts and key shares; then vectors, confirmations and reveals.
    signatures = 2 * clients + 3 * survivors
    # The survivors' own, and those that each shares with each of the lost.
    masks = survivors * (1 + lost)
    least = {
        "hash": survivors * floors["hash"],
        "keystream": masks * expansion["keystream"] / clients,
        "signatures": signatures * floors["signature"],
    }
    return least | {"all": sum(least.values())}


def _party(
    turns: Sequence[dict[str, dict[str, Any]]], what: str, sides: Sequence[str]
) -> dict[str, Any]:
    """Medians of one party's work on both sides, and of the turns' ratios."""
    result: dict[str, Any] = {}
    for who in sides:
        taken = [turn[f"{who} {what}"] for turn in turns]
        result[who] = {
            key: statistics.median(one[key] for one in taken) for key in ("cpu", "wall")
        } | {
            "steps": {
                step: statistics.median(one["steps"][step] for one in taken)
                for step in taken[0]["steps"]
            }
        }
    if "flower" in sides:
        for key in ("cpu", "wall"):
            ratios = sorted(
                turn[f"flower {what}"][key] / turn[f"ours {what}"][key]
                for turn in turns
            )
            result[f"{key}_ratio"] = statistics.median(ratios)
            result[f"{key}_ratio_range"] = [ratios[0], ratios[-1]]
    return result


def _medians(taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {what: statistics.median(all_of_it) for what, all_of_it in taken.items()}


def _expansion(taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    fractions = {
        of: statistics.median(
            alone / whole
            for alone, whole in zip(taken[of], taken["masks"], strict=True)
        )
        for of in ("counter mode", "keystream")
    }
    return _medians(taken) | {
        "fraction": fractions["counter mode"],
        "fraction_as_read": fractions["keystream"],
    }


def _scaling(
    taken: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
) -> dict[str, Any]:
    return {
        what: {
            threads: {
                "cpu": statistics.median(pair[0] for pair in pairs),
                "wall": statistics.median(pair[1] for pair in pairs),
                "least_wall": min(pair[1] for pair in pairs),
            }
            for threads, pairs in by_threads.items()
        }
        for what, by_threads in taken.items()
    }


def summary(cell: Mapping[str, Any]) -> dict[str, float | None]:
    """The four figures that goals are set for; a ratio is theirs over ours."""
    return {
        "client_cpu_ratio": _rounded(cell["client"].get("cpu_ratio"), 2),
        "server_cpu_ratio": _rounded(cell["server"].get("cpu_ratio"), 2),
        "keystream_fraction": _rounded(cell["expansion"]["fraction"], 3),
        "bytes_per_parameter": _rounded(cell["bytes_per_parameter"]["ours"], 3),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _SHARED},
        "other": _FLOWER,
    }


def report(result: Mapping[str, Any]) -> str:
    """All cells that were ever measured, as Markdown."""
    cells = result["cells"]
    machine = result["machine"]
    lines = [
        "# Secure aggregation beside Flower's SecAgg+",
        "",
        f"{machine['processor']}, {machine['cores']} cores, Python "
        f"{machine['python']}, numpy {machine['versions']['numpy']}, cryptography "
        f"{machine['versions']['cryptography']} on both sides; {machine['other']}. "
        "CPU milliseconds of all threads, medians of "
        f"{min(cell['repeats'] for cell in cells)} turns or more. A ratio is theirs "
        "over ours, the median of the turns' ratios. The machine's load was "
        f"{min(cell['load'][0] for cell in cells):.1f} to "
        f"{max(cell['load'][1] for cell in cells):.1f}, of which one is ours.",
        "",
        "| d | neighbours | dropouts | client: ours | Flower | ratio | by the clock "
        "| server: ours | Flower | ratio | by the clock | bytes: ours | Flower |",
        "|---:|---:|---:" + "|---:" * 10 + "|",
    ]
    for cell in cells:
        words = [f"{cell['dimension']:,}", str(cell["neighbours"]), cell["dropouts"]]
        for party in ("client", "server"):
            row = cell[party]
            words += [_milliseconds(row.get(who)) for who in ("ours", "flower")]
            words += [_ratio(row.get(f"{key}_ratio")) for key in ("cpu", "wall")]
        words += [
            f"{value:.2f}" if (value := cell["bytes_per_parameter"].get(who)) else ""
            for who in ("ours", "flower")
        ]
        lines.append("| " + " | ".join(map(str, words)) + " |")
    lines += [*_details(cells), *_packing(cells)]
    goal = [cell for cell in cells if _key(cell) == _GOAL]
    if goal and "cpu_ratio" in goal[0]["client"]:
        lines += _goals(goal[0])
    return "\n".join(lines) + "\n"


def _details(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Masks by themselves, memory and cores."""
    lines = [
        "",
        "## Masks and memory",
        "",
        "The masks of one vector beside their keystream alone (CPU, one thread): in "
        "counter mode, and as masks read it, which is the same bytes by the library's "
        "widest loop. Then the most memory of masking in vectors, the client's own "
        "included, where a vector is long enough to be measured.",
        "",
        "| d | neighbours | counter mode, ms | as read, ms | masks, ms "
        "| of counter mode | of what is read | vectors held |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in {
        (cell["dimension"], cell["neighbours"]): cell for cell in cells
    }.values():
        masks, held = cell["expansion"], cell["memory_vectors"]
        lines.append(
            f"| {cell['dimension']:,} | {cell['neighbours']} "
            f"| {1000 * masks['counter mode']:.2f} | {1000 * masks['keystream']:.2f} "
            f"| {1000 * masks['masks']:.2f} | {masks['fraction']:.3f} "
            f"| {masks['fraction_as_read']:.3f} "
            f"| {f'{held:.2f}' if cell['dimension'] >= 10**7 else ''} |"
        )
    return [*lines, *_cores(cells)]


def _cores(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What more threads make of masks and of the server's round."""
    lines = [
        "",
        "## Cores",
        "",
        "What two threads or more make of the masks of one vector, and of the server's "
        "whole round, where threads hash the vectors: how many times faster by the "
        "clock (the best of each), and how many times the CPU time.",
        "",
        "| d | neighbours | dropouts | threads | masks: faster | CPU "
        "| server: faster | CPU |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in cells:
        words = [f"{cell['dimension']:,}", cell["neighbours"], cell["dropouts"]]
        most = max(cell["scaling"]["masks"], key=int)
        words.append(most)
        for by_threads in cell["scaling"].values():
            one, many = by_threads["1"], by_threads[most]
            words += [
                f"{one['least_wall'] / many['least_wall']:.2f}",
                f"{many['cpu'] / one['cpu']:.2f}",
            ]
        lines.append("| " + " | ".join(map(str, words)) + " |")
    return lines


def _packing(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What it costs that a vector's words have no gaps, once for each length."""
    # Cells of before it was measured have none.
    measured = {cell["dimension"]: cell for cell in cells if "packing" in cell}
    if not measured:
        return []
    return [
        "",
        "## Packing",
        "",
        "One vector to the bytes that travel, and back, CPU milliseconds; a client "
        "packs one, the server unpacks each. It is part of the figures above.",
        "",
        "| d | bits | bytes a parameter | packing | unpacking |",
        "|---:|---:|---:|---:|---:|",
        *(
            f"| {dimension:,} | {cell['bits']} "
            f"| {cell['bytes_per_parameter']['ours']:.3f} "
            f"| {1000 * cell['packing']['pack']:.2f} "
            f"| {1000 * cell['packing']['unpack']:.2f} |"
            for dimension, cell in measured.items()
        ),
    ]


def _goals(cell: Mapping[str, Any]) -> list[str]:
    dimension, neighbours, lost = _GOAL
    figures, bits = summary(cell), cell["bits"]
    rows = [
        ("client's CPU time", "client_cpu_ratio", f"at least {_CLIENT_GOAL:g} times"),
        ("server's CPU time", "server_cpu_ratio", f"at least {_SERVER_GOAL:g} times"),
        ("share of AES-CTR's speed", "keystream_fraction", f"{_KEYSTREAM_GOAL:g}"),
        ("bytes a parameter", "bytes_per_parameter", f"{bits / _BYTE:.1f}"),
    ]
    met = goals(figures, bits)
    lines = [
        "",
        f"## Goals at d = {dimension:,}, {neighbours} neighbours, {lost} dropout",
        "",
        "| figure | goal | measured | |",
        "|---|---:|---:|---|",
    ]
    lines += [
        f"| {title} | {goal} | {figures[key]} | {'met' if met[key] else 'MISSED'} |"
        for title, key, goal in rows
    ]
    for party in ("client", "server"):
        lines += [
            "",
            f"Where the {party}'s time goes there:",
            "",
            "| side | step | CPU ms |",
            "|---|---|---:|",
        ]
        lines += [
            f"| {who} | {step} | {1000 * seconds:.2f} |"
            for who in ("ours", "flower")
            for step, seconds in cell[party][who]["steps"].items()
        ]
    least = cell["server"]["least"]
    lines += [
        "",
        "No server is spared the hash of each vector "
        f"({1000 * least['hash']:.1f} ms), the keystream of the masks that are left "
        f"({1000 * least['keystream']:.1f} ms) and every signature's verification "
        f"({1000 * least['signatures']:.1f} ms): with nothing else its ratio would be "
        f"{least['ratio']:.1f}.",
    ]
    return lines


def goals(
    figures: Mapping[str, float | None], bits: int = _WHOLE_BITS
) -> dict[str, bool]:
    """Which goals these figures meet, with a modulus of so many bits."""
    return {
        "client_cpu_ratio": (figures["client_cpu_ratio"] or 0) >= _CLIENT_GOAL,
        "server_cpu_ratio": (figures["server_cpu_ratio"] or 0) >= _SERVER_GOAL,
        "keystream_fraction": (figures["keystream_fraction"] or 0) >= _KEYSTREAM_GOAL,
        "bytes_per_parameter": round(figures["bytes_per_parameter"] or 9, 1)
        <= round(bits / _BYTE, 1),
    }


def _milliseconds(row: Mapping[str, float] | None) -> str:
    return "" if row is None else f"{1000 * row['cpu']:.1f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _key(cell: Mapping[str, Any]) -> Cell:
    return cell["dimension"], cell["neighbours"], cell["dropouts"]


def _write(
    folder: Path, fresh: Mapping[Cell, dict[str, Any]], bits: int = _WHOLE_BITS
) -> str:
    """Put new cells in the place of old ones, and report all of them.

    Each number of bits has a table of its own.
    """
    place = folder / ("secagg" if bits == _WHOLE_BITS else f"secagg-{bits}-bits")
    table: dict[Cell, dict[str, Any]] = {}
    stored = place.with_suffix(".json")
    machine = _machine()
    if stored.exists():
        earlier = json.loads(stored.read_text("utf-8"))
        # Cells of another machine or other versions do not go into one table.
        if earlier["machine"] == machine:
            table = {_key(cell): cell for cell in earlier["cells"]}
    for key, cell in fresh.items():
        dimension, neighbours, lost = key
        size = {"dimension": dimension, "neighbours": neighbours, "dropouts": lost}
        table[key] = size | cell | size
    result = {"machine": machine, "cells": [table[key] for key in sorted(table)]}
    text = report(result)
    folder.mkdir(parents=True, exist_ok=True)
    stored.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    place.with_suffix(".md").write_text(text, "utf-8")
    return text


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="What secure aggregation costs, beside Flower's SecAgg+.",
        epilog="Without sizes all of the table is measured, which takes half an hour.",
    )
    add = parser.add_argument
    add("--dimension", type=int, help="parameters; 10**4, 10**6 and 10**7")
    add("--neighbours", type=int, help="of each client; 10 and 30")
    add("--dropouts", type=int, help="vectors lost; 0 and 1")
    add("--threads", type=int, help="for our masks and hashes at most (2)")
    add(
        "--bits",
        type=int,
        choices=range(8, _WHOLE_BITS + 1),
        metavar="BITS",
        default=_WHOLE_BITS,
        help="of our modulus, and so of each number that is sent (32)",
    )
    add("--repeats", type=int, default=_LEAST_REPEATS, help="turns of each side (9)")
    add("--alone", action="store_true", help="leave Flower out")
    add("--json", action="store_true", help="end with one line of JSON")
    add("--environment", type=Path, default=_ENVIRONMENT, help="of the other side")
    add("--output", type=Path, default=_RESULTS, help="folder of the results")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, show and write."""
    arguments = _arguments(given)
    sides = {"ours": (Path(sys.executable), _OURS)}
    if not arguments.alone:
        sides["flower"] = (environment(arguments.environment), _PEER)
    dimensions = [arguments.dimension] if arguments.dimension else _DIMENSIONS
    neighbours = [arguments.neighbours] if arguments.neighbours else _NEIGHBOURS
    dropouts = _DROPOUTS if arguments.dropouts is None else [arguments.dropouts]
    measured: dict[Cell, dict[str, Any]] = {}
    text = ""
    for dimension, count in product(dimensions, neighbours):
        fresh = measure(
            dimension,
            count,
            dropouts,
            sides=sides,
            repeats=arguments.repeats,
            bits=arguments.bits,
            threads=arguments.threads,
        )
        measured |= fresh
        text = _write(arguments.output, fresh, arguments.bits)
    print(text, end="")
    if arguments.json:
        # The cell with the goals where it was measured, the last one otherwise.
        shown = _GOAL if _GOAL in measured else max(measured)
        print(json.dumps(summary(measured[shown]), separators=(",", ":")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
