"""Where a round's time, bytes and memory go, beside TRL's GRPOTrainer without privacy.

    python benchmarks/round.py [--config tiny] [--json]

One client's whole part in a private round (charge, draw, rollout, reward, statistic,
gradient, encoding, noise, masks) is timed against one optimizer step of TRL on the same
prompts, turn by turn in one run, each side in a process of its own. See README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from machine import processor

from fgrpo_secure.config import ClientSection, RunConfig, load_config
from fgrpo_secure.errors import ConfigurationError, FgrpoError, StateError
from fgrpo_secure.task import public_size
from privacy.errors import PrivacyError

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = Path(__file__).resolve().parent / "results"
# Not a secret: it decides which prompts are measured, and both sides get the same.
_SEED = 20_261_122
# A step has at most so many tokens unless --units says otherwise.
_TOKENS = 10_800
# Likewise a pass of TRL: much less is slow for a small model, more only takes memory.
_PASS = 2_048
_CONFIDENCE = 0.95
_CLIENT_PHASES = (
    "charge",
    "draw",
    "rollout",
    "reward",
    "statistic",
    "gradient",
    "encode",
    "noise",
    "mask",
    "ledger",
    "rest",
)
# Where a step keeps the seconds of a party's phases, and their peaks of memory.
_CLIENT, _SERVER = ("phases", "peaks"), ("server", "server_peaks")
_SERVER_PHASES = ("messages", "sum", "unmask", "decode", "optimizer", "ledger")


class Worker:
    """One side, in a process of its own.

    Args:
        module: what it runs.
        threads: of its linear algebra.
    """

    def __init__(self, module: str, threads: int) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._module = module
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-W", "ignore", "-m", module],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            StateError: the worker has ended.
        """
        inward, outward = self._process.stdin, self._process.stdout
        if inward is None or outward is None:
            raise RuntimeError(self._module)
        try:
            inward.write(json.dumps(request) + "\n")
            inward.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = outward.readline()
        if not line:
            raise StateError(
                f"{self._module} has ended.", "What it said stands above this line."
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process, which stops at the end of its input."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextmanager
def working(module: str, threads: int) -> Iterator[Worker]:
    """A worker, ended at the end of the block."""
    worker = Worker(module, threads)
    try:
        yield worker
    finally:
        worker.close()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both sides turn by turn.

    Raises:
        FgrpoError, PrivacyError: what is wrong with the configuration.
    """
    if arguments.steps < 1:
        raise ConfigurationError(
            f"--steps is {arguments.steps}.", "Time at least one step."
        )
    rounds = arguments.steps + 2
    overrides = [*arguments.set]
    config, name = load_config(arguments.config, overrides)
    if config.privacy.unit != "prompt":
        raise ConfigurationError(
            f"[privacy] unit is '{config.privacy.unit}', and TRL knows prompts only.",
            "Measure with --set privacy.unit=prompt.",
        )
    client = _client(config, arguments.client)
    size = public_size(config, client)
    units = arguments.units or _default_units(config, size)
    if not 0 < units <= size:
        raise ConfigurationError(
            f"--units is {units} and {client.name} has {size} prompts.",
            f"Give 1 to {size}.",
        )
    overrides += [
        f"machine.threads={arguments.threads}",
        f"privacy.rounds={rounds}",
        f"privacy.sampling_rate={min(units / size, 1):.9f}",
        # Both sides stay where they start, so that completions stay as long.
        "server.learning_rate=1e-9",
    ]
    if arguments.microbatch is not None:
        overrides.append(f"machine.microbatch={arguments.microbatch}")
    chosen = torch.Generator().manual_seed(_SEED)
    rows = [
        torch.randperm(size, generator=chosen)[:units].tolist() for _ in range(rounds)
    ]
    completions = units * config.grpo.group_size
    fitting = arguments.trl_batch or _PASS // _row_tokens(config)
    batch = _batch(completions, config.grpo.group_size, fitting)
    setup = {
        "config": arguments.config,
        "overrides": overrides,
        "client": client.name,
        "rows": rows[:-1],
        "batch": batch,
    }
    ours, trl = [], []
    with ExitStack() as stack:
        _say(arguments, f"{name}: {units} prompts, {completions} completions a step")
        private = stack.enter_context(working("benchmarks.ours", arguments.threads))
        opened = private.ask(setup)
        peer, beside = None, None
        if not arguments.alone:
            peer = stack.enter_context(
                working("benchmarks.trl_peer", arguments.threads)
            )
            beside = _present(peer.ask(setup))
        for number, step in enumerate(rows[:-1]):
            ours.append(private.ask({"rows": step, "memory": False}))
            text = f"ours {ours[-1]['seconds']:.2f} s"
            if peer is not None:
                trl.append(peer.ask({}))
                text += f", TRL {trl[-1]['seconds']:.2f} s"
            what = f"step {number} of {arguments.steps}" if number else "warm-up"
            _say(arguments, f"{what}: {text}")
        traced = private.ask({"rows": rows[-1], "memory": True})
    result = {
        "config": name,
        "client": client.name,
        "units": units,
        "completions": completions,
        "max_tokens": config.grpo.max_tokens,
        "dimension": opened["dimension"],
        "clients": len(config.client),
        "threads": arguments.threads,
        "microbatch": opened["microbatch"],
        "steps": arguments.steps,
        "machine": _machine(),
        "ours": _ours(opened, ours, traced),
        "server": _phases(ours[1:], traced, _SERVER, _SERVER_PHASES),
        "bytes": traced["traffic"],
        "bytes_up_planned": opened["bytes_up"],
    }
    if beside is not None:
        result["trl"] = _side(beside, trl) | {"batch": batch}
        result["ratio"] = _ratios(ours, trl)
    return result


def _present(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer of TRL's side to its setup, if TRL is there."""
    if "missing" in answer:
        raise ConfigurationError(
            "TRL is not installed here.",
            "Run `pip install -c constraints.txt -e '.[bench]'`, or give --alone to "
            "measure the private side only.",
        )
    return answer


def _client(config: RunConfig, name: str | None) -> ClientSection:
    names = [client.name for client in config.client]
    if name is None:
        return config.client[0]
    if name not in names:
        raise ConfigurationError(
            f"There is no client {name}.", f"Choose one of: {', '.join(names)}."
        )
    return config.client_named(name)


def _default_units(config: RunConfig, size: int) -> int:
    """The expected batch of the configuration, as far as a step may be long."""
    each = config.grpo.group_size * _row_tokens(config)
    expected = round(float(config.privacy.sampling_rate) * size)
    return max(1, min(expected, _TOKENS // each))


def _row_tokens(config: RunConfig) -> int:
    """Tokens of the longest prompt with a completion."""
    return config.grpo.max_prompt_tokens + config.grpo.max_tokens


def _batch(completions: int, group: int, wanted: int) -> int:
    """TRL's rows in a pass: whole groups that divide the step, at most as wanted."""
    whole = range(group, completions + 1, group)
    fitting = [n for n in whole if completions % n == 0 and n <= max(wanted, group)]
    return max(fitting)


def _side(opened: dict[str, Any], steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    timed = steps[1:]
    return {
        "seconds": statistics.median(step["seconds"] for step in timed),
        "all_seconds": [round(step["seconds"], 4) for step in timed],
        "tokens": statistics.median(step["tokens"] for step in timed),
        "all_tokens": [step["tokens"] for step in timed],
        "peak_bytes": max(step["peak"] for step in steps),
        "held_before_bytes": opened["held"],
    }


def _ours(
    opened: dict[str, Any], steps: Sequence[dict[str, Any]], traced: dict[str, Any]
) -> dict[str, Any]:
    groups = sum(step["groups"] for step in steps[1:])
    return _side(opened, steps) | {
        "skipped_share": sum(step["skipped"] for step in steps[1:]) / max(groups, 1),
        "phases": _phases(steps[1:], traced, _CLIENT, _CLIENT_PHASES),
    }


def _phases(
    steps: Sequence[dict[str, Any]],
    traced: dict[str, Any],
    side: tuple[str, str],
    order: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Mean seconds of each phase, which add up, and its peak of memory."""
    seconds, peaks = side
    found = {phase for step in steps for phase in step[seconds]}
    return {
        phase: {
            "seconds": statistics.fmean(
                step[seconds].get(phase, 0.0) for step in steps
            ),
            "peak_bytes": traced[peaks].get(phase, 0),
        }
        for phase in order
        if phase in found
    }


def _ratios(
    ours: Sequence[dict[str, Any]], trl: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Ours over TRL's: time step by step, and the whole peak of memory."""
    times = [
        one["seconds"] / two["seconds"]
        for one, two in zip(ours[1:], trl[1:], strict=True)
    ]
    low, high, level = median_interval(times)
    peaks = [max(step["peak"] for step in side) for side in (ours, trl)]
    return {
        "time": statistics.median(times),
        "time_low": low,
        "time_high": high,
        "time_level": level,
        "memory": peaks[0] / peaks[1],
    }


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """An interval that holds the median, from the order of the values alone.

    Args:
        values: independent measurements.

    Returns:
        Its ends, and the chance that it holds the median of what is measured: at least
        0.95 where there are values enough, else what all of them give.
    """
    ordered, count = sorted(values), len(values)
    for left in range((count - 1) // 2, -1, -1):
        outside = 2 * sum(math.comb(count, i) for i in range(left + 1)) / 2**count
        if 1 - outside >= _CONFIDENCE or left == 0:
            return ordered[left], ordered[count - 1 - left], 1 - outside
    raise ValueError(count)


def _machine() -> dict[str, Any]:
    names = ("torch", "transformers", "peft", "opacus", "trl")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": versions,
    }


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    ours = result["ours"]
    whole = sum(row["seconds"] for row in ours["phases"].values())
    lines = [
        f"# A round of {result['config']}",
        "",
        f"{result['units']} prompts, {result['completions']} completions of at most "
        f"{result['max_tokens']} tokens, {result['dimension']:,} trained numbers, "
        f"{result['clients']} clients; {result['threads']} thread(s) on each side, "
        f"{result['machine']['processor']}, {result['steps']} steps: medians, and "
        "means of the phases.",
        "",
    ]
    if "trl" in result:
        lines += _comparison(result)
    lines += [
        "## The client's part",
        "",
        "| phase | ms | share | peak MiB |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {phase} | {1000 * row['seconds']:.1f} | {row['seconds'] / whole:.1%} "
        f"| {row['peak_bytes'] / 2**20:.0f} |"
        for phase, row in ours["phases"].items()
    ]
    lines += ["", "## The server's part", "", "| phase | ms |", "|---|---:|"]
    lines += [
        f"| {phase} | {1000 * row['seconds']:.1f} |"
        for phase, row in result["server"].items()
    ]
    lines += [
        "",
        "## Bytes of one client",
        "",
        "| phase | down | up |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {phase} | {row['down']:,} | {row['up']:,} |"
        for phase, row in result["bytes"].items()
    ]
    lines += ["", f"The plan's vector: {result['bytes_up_planned']:,} bytes up.", ""]
    return "\n".join(lines)


def _comparison(result: dict[str, Any]) -> list[str]:
    ours, trl, ratio = result["ours"], result["trl"], result["ratio"]
    rows = [
        ("seconds of a step", ours["seconds"], trl["seconds"], "{:.3f}"),
        ("tokens generated", ours["tokens"], trl["tokens"], "{:.0f}"),
        (
            "peak MiB",
            ours["peak_bytes"] / 2**20,
            trl["peak_bytes"] / 2**20,
            "{:.0f}",
        ),
        (
            "MiB held before",
            ours["held_before_bytes"] / 2**20,
            trl["held_before_bytes"] / 2**20,
            "{:.0f}",
        ),
    ]
    lines = [
        "## Beside TRL's GRPOTrainer, which protects nothing",
        "",
        "| | private | TRL | ratio |",
        "|---|---:|---:|---:|",
    ]
    for what, one, two, form in rows:
        lines.append(
            f"| {what} | {form.format(one)} | {form.format(two)} | {one / two:.2f} |"
        )
    return [
        *lines,
        f"| groups that needed no gradient | {ours['skipped_share']:.0%} | 0% | |",
        "",
        f"Time, step against step: {ratio['time']:.2f} times TRL's, "
        f"{ratio['time_level']:.0%} interval of the median {ratio['time_low']:.2f} to "
        f"{ratio['time_high']:.2f}. Memory: {ratio['memory']:.2f} times. "
        f"Goal: at most 1.1 of both. Of our groups {ours['skipped_share']:.0%} were "
        "not differentiated, since all their completions earned the same; TRL "
        "differentiates every group.",
        "",
    ]


def _say(arguments: argparse.Namespace, text: str) -> None:
    print(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Where a private round's time, bytes and memory go, beside TRL.",
        epilog="SmolLM2 needs `make smollm2` first; TRL needs the extra 'bench'.",
    )
    add = parser.add_argument
    add("--config", default="tiny", help="a TOML file, or 'tiny' (the default)")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    add("--json", action="store_true", help="print the result as JSON and nothing else")
    add("--client", help="whose prompts and reward; the first one's")
    add("--steps", type=int, default=6, help="timed steps of each side (6)")
    add("--units", type=int, help="prompts of a step; the configuration's if they fit")
    add("--threads", type=int, default=1, help="threads of each side (1)")
    add("--microbatch", type=int, help="our groups in a pass; the configuration's")
    add("--trl-batch", type=int, help="TRL's rows in a pass at most; 2,048 tokens")
    add("--alone", action="store_true", help="measure the private side only")
    add("--output", type=Path, default=_RESULTS, help="folder of the results")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, show and write."""
    arguments = _arguments(given)
    try:
        result = measure(arguments)
    except (FgrpoError, PrivacyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = report(result)
    data = json.dumps(result, indent=2) + "\n"
    arguments.output.mkdir(parents=True, exist_ok=True)
    place = arguments.output / f"round-{result['config']}"
    place.with_suffix(".json").write_text(data, "utf-8")
    place.with_suffix(".md").write_text(text, "utf-8")
    print(data if arguments.json else text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
