"""A round of secure aggregation with as many clients as a federation may have.

    python benchmarks/scale.py                                 # the whole table
    python benchmarks/scale.py --clients 1000 --cohorts 10 --dimension 100000 \
        --dropouts 0.1 --json

Every client and the server do their whole work, in one process, by the product's own
code; the sum is held against the plain one, bit for bit. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from machine import processor

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = Path(__file__).resolve().parent / "results"
_MIB = 2**20

# Clients, parameters, cohorts. The first is there to compare the memory with.
_TABLE = (
    (10, 10**6, 1),
    (100, 10**6, 1),
    (200, 10**5, 1),
    (1000, 10**5, 10),
)
_DROPOUTS = 0.1

Cell = tuple[int, int, int, float]


def measure(clients: int, dimension: int, cohorts: int, dropouts: float) -> Any:  # noqa: ANN401
    """Run one round in a process of its own, so that its peak of memory is its own.

    Raises:
        CalledProcessError: there is no sum, or it is not that of the survivors; what
            the process had to say it has said.
    """
    size = {
        "clients": clients,
        "dimension": dimension,
        "cohorts": cohorts,
        "dropouts": dropouts,
    }
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "benchmarks.scale_run", json.dumps(size)],
        cwd=_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def report(result: Mapping[str, Any]) -> str:
    """All cells that were ever measured, as Markdown."""
    machine, cells = result["machine"], result["cells"]
    lines = [
        "# Secure aggregation with many clients in one process",
        "",
        f"{machine['processor']}, {machine['cores']} cores, Python "
        f"{machine['python']}, numpy {machine['numpy']}, cryptography "
        f"{machine['cryptography']}. One round: every client's whole work one after "
        "another, and the server's. Each sum was the survivors' plain integer sum, bit "
        "for bit, the noise included. Memory is the process's peak, and that above "
        "what it held before the round; beside it what the masked vectors of all "
        "clients would take. Bytes are those of one client, all phases together. Wall "
        "time is also that of other programs on the machine, where there are any.",
        "",
        "| clients | cohorts | d | vectors lost | wall, s | CPU, s | peak, MiB "
        "| of the round, MiB | all vectors, MiB | sent, bytes | received, bytes |",
        "|---:" * 11 + "|",
    ]
    for cell in cells:
        words = [
            f"{cell['clients']:,}",
            f"{cell['cohorts']}",
            f"{cell['dimension']:,}",
            f"{cell['clients'] - cell['survivors']}",
            f"{cell['wall']:.1f}",
            f"{cell['cpu']:.1f}",
            f"{cell['peak_bytes'] / _MIB:.0f}",
            f"{(cell['peak_bytes'] - cell['start_bytes']) / _MIB:.0f}",
            f"{cell['all_vectors_bytes'] / _MIB:.0f}",
            f"{cell['bytes_up']:,.0f}",
            f"{cell['bytes_down']:,.0f}",
        ]
        lines.append("| " + " | ".join(words) + " |")
    sizes = [f"{c['clients']:,} x {c['dimension']:,}" for c in cells]
    lines += [
        "",
        "Where the CPU seconds go, of all parties together:",
        "",
        "| step | " + " | ".join(sizes) + " |",
        "|---" + "|---:" * len(cells) + "|",
    ]
    for step in cells[0]["steps"]:
        taken = [f"{cell['steps'][step]['cpu']:.2f}" for cell in cells]
        lines.append(f"| {step} | " + " | ".join(taken) + " |")
    return "\n".join(lines) + "\n"


def _key(cell: Mapping[str, Any]) -> Cell:
    return cell["clients"], cell["dimension"], cell["cohorts"], cell["dropouts"]


def _write(folder: Path, fresh: Sequence[Mapping[str, Any]]) -> str:
    """Put new cells in the place of old ones, and report all of them."""
    place = folder / "scale"
    stored = place.with_suffix(".json")
    machine = _machine()
    table: dict[Cell, Mapping[str, Any]] = {}
    if stored.exists():
        earlier = json.loads(stored.read_text("utf-8"))
        # Cells of another machine or other versions do not go into one table.
        if earlier["machine"] == machine:
            table = {_key(cell): cell for cell in earlier["cells"]}
    table |= {_key(cell): cell for cell in fresh}
    result = {"machine": machine, "cells": [table[key] for key in sorted(table)]}
    text = report(result)
    folder.mkdir(parents=True, exist_ok=True)
    stored.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    place.with_suffix(".md").write_text(text, "utf-8")
    return text


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "numpy": metadata.version("numpy"),
        "cryptography": metadata.version("cryptography"),
    }


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A round of secure aggregation with many clients, in one process.",
        epilog="Without --clients all of the table is measured, in a few minutes.",
    )
    add = parser.add_argument
    add("--clients", type=int, help="of all cohorts")
    add("--dimension", type=int, default=10**5, help="parameters (100000)")
    add("--cohorts", type=int, default=1, help="each a whole protocol (1)")
    add("--dropouts", type=float, default=_DROPOUTS, help="share of vectors lost (0.1)")
    add("--json", action="store_true", help="end with one line of JSON")
    add("--output", type=Path, default=_RESULTS, help="folder of the results")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, show and write."""
    arguments = _arguments(given)
    sizes = _TABLE
    if arguments.clients:
        sizes = ((arguments.clients, arguments.dimension, arguments.cohorts),)
    try:
        fresh = [measure(*size, arguments.dropouts) for size in sizes]
    except subprocess.CalledProcessError as error:
        return error.returncode
    print(_write(arguments.output, fresh), end="")
    if arguments.json:
        shown = {key: value for key, value in fresh[-1].items() if key != "steps"}
        print(json.dumps(shown, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
