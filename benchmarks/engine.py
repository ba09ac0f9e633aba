"""What a round spends in the engine, beside the same messages over local pipes.

    python benchmarks/engine.py [--sites N --dimension D] [--rounds N] [--json]

A server and its sites are enrolled and started as `fgrpo pilot` does it, and exchange
the messages of rounds over NVFlare with mutual TLS on this machine's loopback. Instead
of a learner there are stand-ins that answer with the right number of bytes at once. See
README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engine_parts
from engine_parts import KIND, ORDER, PHASES, STAND_IN
from machine import processor

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = Path(__file__).resolve().parent / "results"
_HOOK = Path(__file__).resolve().parent / "engine_hook"

_SITES = (3, 10)
_DIMENSIONS = (10**5, 10**7)
# Of each size, the first of which warms up.
_ROUNDS = {10**5: 11, 10**7: 4}
_LIMIT_SECONDS = 900.0
_POLL_SECONDS = 3.0
_RUN = "exchange"
_KINDS = ("engine", "job", "learner")
# Sites start all at once here, and each loads the engine.
_START_SECONDS = 60.0

_PILOT = """\
[pilot]
name = "exchange"

[server]
host = "localhost"
port = {port}
admin_port = {admin_port}

{sites}
[lead]
mail = "lead@exchange.example"
"""
# Nothing reads it but the check before a start: no run is opened by it.
_POLICY = """\
[plan]
units = ["prompt"]
trust = ["distributed"]
least_clients = 3
least_survivors = 3
least_colluders = 1
base_models = ["{zeros}"]

[[data_set]]
name = "{name}"
epsilon = 8
delta = 0.00001
epsilon_for_life = 8
delta_for_life = 0.00001

[[reward]]
name = "rewards:nothing"
sha256 = "{zeros}"

[[task]]
data_set = "{name}"
rewards = ["rewards:nothing"]
approval = "ask"
"""


@contextmanager
def environment(kind: str, order: Path) -> Iterator[None]:
    """Have every Python process that is started in the block do the benchmark's part.

    Args:
        kind: which part.
        order: says what to do.
    """
    paths = [str(_HOOK), str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {KIND: kind, ORDER: str(order), "PYTHONPATH": os.pathsep.join(paths)}
    given["OMP_NUM_THREADS"] = "1"
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure_engine(
    sites: int, rounds: Sequence[tuple[int, int]], folder: Path
) -> dict[str, Any]:
    """Rounds over NVFlare.

    Args:
        sites: how many.
        rounds: a dimension and a number of rounds each, in the order of the dimension:
            a process's peak of memory does not go down again.
        folder: new.

    Returns:
        What the server's process wrote down.
    """
    from fgrpo_secure.agreement import read_agreement  # noqa: PLC0415
    from fgrpo_secure.pilot import enrol, jobs, rehearsal  # noqa: PLC0415
    from privacy.plan import SERVER  # noqa: PLC0415

    names = [f"site-{number:02}" for number in range(1, sites + 1)]
    ports = rehearsal._free_ports()
    pilot_file = folder / "PILOT.toml"
    pilot_file.write_text(
        _PILOT.format(
            port=ports[0],
            admin_port=ports[1],
            sites="".join(f'[[site]]\nname = "{name}"\n\n' for name in names),
        ),
        "utf-8",
    )
    played = rehearsal.Rehearsal(folder, _say, lambda _party: ())
    pilot = enrol.init_pilot(pilot_file, folder / "pilot")
    rehearsal.provision_here(pilot, folder / "pilot" / "homes")
    for name in names:
        home = played.home(name)
        home.site_file.write_text('[client]\ndata = "nothing.jsonl"\n', "utf-8")
        home.policy.write_text(_POLICY.format(name=name, zeros="0" * 64), "utf-8")
        home.policy.chmod(0o600)
    result, order = folder / "result.json", folder / "order.json"
    order.write_text(json.dumps({"rounds": rounds, "result": str(result)}), "utf-8")
    clients = "".join(
        rehearsal._CLIENT.format(name=name, range="[0.0, 1.0]") for name in names
    )
    agreement = read_agreement(rehearsal._AGREEMENT.format(rounds=1, clients=clients))
    run = jobs.LeadRun(played.home("lead"), _RUN)
    terms: Any = SimpleNamespace(min_survivors=sites, digest="0" * 64)
    with environment(STAND_IN, order), rehearsal.running(played, [SERVER, *names]):
        jobs.submit(run, agreement, terms)
        end = time.monotonic() + _LIMIT_SECONDS
        while time.monotonic() < end:
            found = jobs.watch(run)
            if found.over:
                break
            time.sleep(_POLL_SECONDS)
        if not result.exists():
            msg = f"the engine's job brought nothing: {found.status}; see {folder}"
            raise RuntimeError(msg)
        written: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return written


def measure_local(
    sites: int, rounds: Sequence[tuple[int, int]], folder: Path
) -> dict[str, Any]:
    """The same rounds over pipes to processes of this machine, in a new process."""
    order = folder / "local.json"
    order.write_text(json.dumps({"sites": sites, "rounds": rounds}), "utf-8")
    with environment("", order):
        done = subprocess.run(  # noqa: S603
            [sys.executable, str(Path(__file__)), "--local", str(order)],
            stdout=subprocess.PIPE,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def play_locally(order: Mapping[str, Any]) -> dict[str, Any]:
    """What that process does."""
    from fgrpo_secure.runtime import local  # noqa: PLC0415

    class Pipes(local.LocalExchange):
        """Local pipes, which wait for nobody between rounds."""

        def gather(self, number: int, cohorts: Mapping[tuple[str, ...], int]) -> None:
            """Nothing to wait for."""

    before, local._work = local._work, engine_parts.work_here
    names = tuple(f"site-{number:02}" for number in range(1, order["sites"] + 1))
    result: dict[str, Any] = {}
    try:
        opened = Pipes(
            [local.WorkerOrder("", names, b"", "")],
            workers=len(names),
            on_progress=lambda *_: None,
            on_silence=lambda *_: None,
        )
    finally:
        local._work = before
    with opened as pipes:
        pipes.wait_ready()
        workers = [worker.process.pid for worker in pipes._workers]
        result["idle"] = _peaks(workers)
        for dimension, count in order["rounds"]:
            notes = engine_parts.play(pipes, names, dimension, range(1, count + 1))
            result[str(dimension)] = {"notes": notes, "peaks": _peaks(workers)}
    return result


def _peaks(workers: Sequence[int | None]) -> dict[str, int]:
    return {"server": _peak(os.getpid()), "site": max(map(_peak, workers))}


def _peak(process: int | None) -> int:
    text = Path(f"/proc/{process}/status").read_text("ascii")
    line = next(line for line in text.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def measure(
    sites: int, rounds: Sequence[tuple[int, int]], folder: Path
) -> list[dict[str, Any]]:
    """A cell for each dimension: pipes, the engine, and pipes once more."""
    load = [os.getloadavg()[0]]
    before = measure_local(sites, rounds, folder)
    load.append(os.getloadavg()[0])
    engine = measure_engine(sites, rounds, folder)
    load.append(os.getloadavg()[0])
    after = measure_local(sites, rounds, folder)
    load.append(os.getloadavg()[0])
    cells = []
    for dimension, count in rounds:
        own = engine["sizes"].get(str(dimension))
        if own is None:
            continue
        idle = {"engine": _by_role(engine["idle"]), "pipes": before["idle"]}
        pipes = [part[str(dimension)] for part in (before, after)]
        cells.append(_cell(sites, dimension, count, own, pipes, idle, load))
    return cells


def _cell(
    sites: int,
    dimension: int,
    count: int,
    own: Mapping[str, Any],
    pipes: Sequence[Mapping[str, Any]],
    idle: Mapping[str, Any],
    load: Sequence[float],
) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "sites": sites,
        "dimension": dimension,
        "rounds": count - 1,
        "load": [min(load), max(load)],
        "failed": own["failed"],
        "pipes": _times([note for part in pipes for note in part["notes"][1:]]),
        "memory": {
            "idle": idle,
            "engine": _by_role(own["peaks"]),
            "pipes": {
                role: max(part["peaks"][role] for part in pipes)
                for role in ("server", "site")
            },
        },
    }
    if own["failed"]:
        return cell
    notes = own["notes"]
    payload = {
        way: sum(sum(note[way].values()) for note in notes) / count
        for way in ("down", "up")
    }
    wire = dict(zip(("down", "up"), (n / count for n in own["wire"]), strict=True))
    cell["engine"] = _times(notes[1:])
    cell["ratio"] = cell["engine"]["round"] / cell["pipes"]["round"]
    cell["bytes"] = {
        way: {"payload": payload[way] / sites, "wire": wire[way] / sites}
        for way in payload
    }
    moved = payload["down"] + payload["up"]
    cell["megabytes_a_second"] = moved / 1e6 / cell["engine"]["round"]
    return cell


def _times(notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of a round and of its phases, medians."""
    whole = [sum(note["seconds"].values()) for note in notes]
    return {
        "round": statistics.median(whole),
        "range": [min(whole), max(whole)],
        "phases": {
            phase: statistics.median(note["seconds"][phase] for note in notes)
            for phase in PHASES
        },
    }


def _by_role(peaks: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The most of any process of a kind, at the server and at any site."""
    found: dict[str, dict[str, int]] = {"server": {}, "site": {}}
    for party, kinds in peaks.items():
        own = found["server" if party == "server" else "site"]
        for kind, peak in kinds.items():
            own[kind] = max(own.get(kind, 0), peak)
    return found


def report(result: Mapping[str, Any]) -> str:
    """All cells, as Markdown."""
    machine, cells = result["machine"], result["cells"]
    lines = [
        "# A round in the engine",
        "",
        f"{machine['processor']}, {machine['cores']} cores for all parties, Python "
        f"{machine['python']}, NVFlare {machine['nvflare']}. Seconds of all six phases "
        "of a round whose sites answer at once, medians after a round that warms up, "
        "over NVFlare with mutual TLS on loopback and over pipes to local processes. "
        "*Load* is the machine's, others' work and ours: where it is above the cores, "
        "seconds are too many, and the ratio says more.",
        "",
        "| sites | d | rounds | engine, s | least to most | pipes, s | ratio | MB/s "
        "| load |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in cells:
        own, pipes = cell.get("engine"), cell["pipes"]
        words = [str(cell["sites"]), f"{cell['dimension']:,}", str(cell["rounds"])]
        if own is None:
            words += ["failed", "", f"{pipes['round']:.3f}", "", ""]
        else:
            low, high = own["range"]
            words += [f"{own['round']:.3f}", f"{low:.3f} to {high:.3f}"]
            words += [f"{pipes['round']:.4f}", f"{cell['ratio']:.0f}"]
            words += [f"{cell['megabytes_a_second']:.0f}"]
        low, high = cell["load"]
        words.append(f"{low:.0f} to {high:.0f}")
        lines.append("| " + " | ".join(words) + " |")
    lines += [*_failures(cells), *_phases(cells), *_bytes(cells), *_memory(cells)]
    return "\n".join(lines) + "\n"


def _failures(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        line
        for cell in cells
        if cell["failed"]
        for line in (
            "",
            f"{cell['sites']} sites with {cell['dimension']:,} numbers came to no end "
            f"here: {cell['failed']}.",
        )
    ]


def _phases(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "",
        "## By phase",
        "",
        "Milliseconds. The adapter goes down with the offer, the vector up with "
        "the answer to the key shares.",
        "",
        "| sites | d | over | " + " | ".join(PHASES) + " |",
        "|---:|---:|---|" + "---:|" * len(PHASES),
    ]
    for cell in cells:
        for over in ("engine", "pipes"):
            if over in cell:
                times = cell[over]["phases"]
                row = " | ".join(f"{1000 * times[phase]:.1f}" for phase in PHASES)
                head = f"| {cell['sites']} | {cell['dimension']:,} | {over} | "
                lines.append(head + row + " |")
    return lines


def _bytes(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "",
        "## Bytes of a site and round",
        "",
        "Payloads of the phases, and what went over the connections to the server's "
        "port, TLS included and TCP's headers not.",
        "",
        "| sites | d | down | on the wire | more | up | on the wire | more |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in cells:
        if "bytes" in cell:
            words = [str(cell["sites"]), f"{cell['dimension']:,}"]
            for way in ("down", "up"):
                payload, wire = cell["bytes"][way].values()
                words += [f"{payload:,.0f}", f"{wire:,.0f}"]
                words += [f"{wire / payload - 1:.1%}"]
            lines.append("| " + " | ".join(words) + " |")
    return lines


def _memory(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "",
        "## Memory",
        "",
        "Most MiB that a process ever held (VmHWM): NVFlare's own, that of the job, "
        "and the stand-in for what learns; of sites the largest. *Before* is the start "
        "of the first round. A real learner holds a model besides. What waits at the "
        "pipes' ends has loaded the learning libraries, and the stand-in has not.",
        "",
        "| sites | d | server: engine | job | site: engine | job | stand-in "
        "| pipes: server | site |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    seen: set[int] = set()
    for cell in cells:
        if cell["sites"] not in seen:
            seen.add(cell["sites"])
            lines.append(_memory_row(cell["sites"], "before", cell["memory"]["idle"]))
        size = f"{cell['dimension']:,}"
        lines.append(_memory_row(cell["sites"], size, cell["memory"]))
    return lines


def _memory_row(sites: int, size: str, memory: Mapping[str, Any]) -> str:
    pipes = " | ".join(_mib(memory["pipes"][role]) for role in ("server", "site"))
    return f"| {sites} | {size} | {_roles(memory['engine'])} | {pipes} |"


def _roles(peaks: Mapping[str, Mapping[str, int]]) -> str:
    own = [peaks["server"].get(kind) for kind in _KINDS[:2]]
    own += [peaks["site"].get(kind) for kind in _KINDS]
    return " | ".join("" if peak is None else _mib(peak) for peak in own)


def _mib(value: int) -> str:
    return f"{value / 2**20:.0f}"


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "nvflare": metadata.version("nvflare"),
    }


def summary(cells: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Seconds and ratio of each cell, in one line."""
    found: dict[str, float | None] = {}
    for cell in cells:
        name = f"{cell['sites']}_sites_{cell['dimension']}"
        own = cell.get("engine")
        found[f"{name}_seconds"] = None if own is None else round(own["round"], 4)
        found[f"{name}_ratio"] = None if own is None else round(cell["ratio"], 1)
    return found


def _merged(
    path: Path, machine: Mapping[str, Any], cells: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """New cells in the place of earlier ones of the same machine and versions."""
    kept: dict[tuple[int, int], dict[str, Any]] = {}
    if path.exists():
        before = json.loads(path.read_text("utf-8"))
        if before["machine"] == machine:
            kept = {(c["sites"], c["dimension"]): c for c in before["cells"]}
    kept |= {(cell["sites"], cell["dimension"]): cell for cell in cells}
    return [kept[key] for key in sorted(kept)]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, action="append", metavar="N")
    parser.add_argument("--dimension", type=int, action="append", metavar="D")
    parser.add_argument("--rounds", type=int, help="of each size, after one to warm up")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="for its logs; new")
    parser.add_argument("--output", type=Path, default=_RESULTS, metavar="DIR")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--local", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, write the results and print them."""
    options = _parse(given)
    if options.local is not None:
        order = json.loads(options.local.read_text("utf-8"))
        print(json.dumps(play_locally(order)))
        return 0
    dimensions = sorted(options.dimension or _DIMENSIONS)
    rounds = [
        (d, options.rounds + 1 if options.rounds else _ROUNDS.get(d, 4))
        for d in dimensions
    ]
    cells = []
    for sites in options.sites or _SITES:
        _say(f"{sites} sites ...")
        if options.keep is None:
            with tempfile.TemporaryDirectory(prefix="fgrpo-engine-") as folder:
                cells += measure(sites, rounds, Path(folder))
        else:
            folder = options.keep / str(sites)
            folder.mkdir(parents=True)
            cells += measure(sites, rounds, folder.resolve())
    path = options.output / "engine.json"
    options.output.mkdir(parents=True, exist_ok=True)
    machine = _machine()
    result = {"machine": machine, "cells": _merged(path, machine, cells)}
    path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    text = report(result)
    (options.output / "engine.md").write_text(text, "utf-8")
    print(text)
    if options.json:
        print(json.dumps(summary(cells)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
