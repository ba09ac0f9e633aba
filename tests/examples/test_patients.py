"""The walk-through with patients: its commands as its page has them, one by one."""

import csv
import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from fgrpo_secure.config import load_config
from fgrpo_secure.grpo.data import load_examples
from fgrpo_secure.grpo.units import subject_id
from fgrpo_secure.task import load_units
from tests.end_to_end.program import PATIENCE, ROOT, environment, records

EXAMPLE = ROOT / "examples" / "patients"
PAGE = (EXAMPLE / "README.md").read_text("utf-8")
HOSPITALS = ("east", "north", "south", "west")
PATIENTS = 1000
PROGRAMS = {
    "python": [sys.executable],
    "fgrpo": [sys.executable, "-m", "fgrpo_secure"],
}


def blocks(language):
    """The fenced blocks of the page in one language, in order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def commands():
    """Every line of the page that is typed into a shell, in order."""
    known = {"cd", *PROGRAMS}
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [line for line in lines if line.split(" ")[0] in known]


def shown(start):
    """The lines of the one block that begins so."""
    (block,) = [text for text in blocks("") if text.startswith(start)]
    return block.splitlines()


def words(text):
    return " ".join(text.split())


@dataclass(frozen=True)
class Walk:
    """What the commands of the page left.

    Attributes:
        folder: where they ran.
        results: by command, its exit status and what it printed on standard output
            and standard error.
    """

    folder: Path
    results: dict[str, tuple[int, str, str]]

    def printed(self, command):
        """Standard output of the one command that begins so."""
        (out,) = [r[1] for line, r in self.results.items() if line.startswith(command)]
        return out

    @property
    def summary(self):
        return json.loads((self.folder / "out/summary.json").read_text("utf-8"))


def walk(folder):
    """Run the commands of the page from a folder, each where the one before left it."""
    results = {}
    for line in commands():
        program, *arguments = shlex.split(line)
        if program == "cd":
            folder /= arguments[0]
            continue
        results[line] = run([*PROGRAMS[program], *arguments], folder)
    return Walk(folder, results)


def run(arguments, folder):
    done = subprocess.run(  # noqa: S603
        arguments,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="session")
def walked(tmp_path_factory):
    """The whole page, walked once for all tests and all test processes."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    root, kept = base / "walk", base / "walk.json"
    with (base / "walk.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            shutil.copytree(
                EXAMPLE,
                root / "examples" / "patients",
                ignore=shutil.ignore_patterns("data", "out", "__pycache__"),
            )
            found = walk(root)
            kept.write_text(json.dumps([str(found.folder), found.results]))
    folder, results = json.loads(kept.read_text())
    return Walk(Path(folder), {line: tuple(result) for line, result in results.items()})


def test_every_command_of_the_page_ends_well(walked):
    wanted = ["python make_data.py", "fgrpo plan", "fgrpo run"]
    wanted += ["fgrpo ledger verify", "fgrpo ledger show", "fgrpo eval"]
    assert len(walked.results) == len(wanted)
    for line, start in zip(walked.results, wanted, strict=True):
        status, _, errors = walked.results[line]
        assert line.startswith(start)
        assert status == 0, errors


def test_the_page_shows_what_the_commands_print(walked):
    printed = {
        "      unit": walked.printed("fgrpo plan"),
        "  east: epsilon": walked.printed("fgrpo ledger verify"),
        "patient_id,": (walked.folder / "data/east.csv").read_text("utf-8"),
    }
    for start, text in printed.items():
        for line in shown(start):
            # The width at which a line is broken is no part of what it says.
            assert words(line) in words(text)


def test_the_page_quotes_the_configuration():
    (quoted,) = blocks("toml")
    terms = tomllib.loads((EXAMPLE / "run.toml").read_text("utf-8"))["privacy"]
    assert terms.items() >= tomllib.loads(quoted).items()


def test_the_plan_and_the_ledger_say_that_the_patient_is_protected(walked):
    plan = json.loads((walked.folder / "out/plan.json").read_text("utf-8"))
    assert (plan["unit"], plan["max_prompts_per_unit"]) == ("patient_id", 4)
    assert {client["units"] for client in plan["clients"]} == {PATIENTS}
    opened = records(walked.folder / "out/ledger/server.jsonl")[0]
    assert opened["plan"] == plan
    assert float(plan["epsilon"]) <= 8
    assert float(plan["delta"]) <= 1 / (10 * PATIENTS)


def test_every_hospital_answers_better_than_before(walked):
    summary = walked.summary
    assert [client["name"] for client in summary["clients"]] == list(HOSPITALS)
    for client in summary["clients"]:
        assert client["reward_after"] > client["reward_before"]
    # Four runs gained between 0.281 and 0.297: less than half is a fault, not noise.
    assert summary["reward_after"] - summary["reward_before"] > 0.14
    assert summary["rounds_completed"] == 10


def test_the_evaluation_gives_the_summarys_scores(walked):
    table = dict(line.split() for line in walked.printed("fgrpo eval").splitlines())
    for client in walked.summary["clients"]:
        assert table[client["name"]] == f"{client['reward_after']:.3f}"


def test_a_patient_is_one_unit_with_four_prompts_at_most(walked):
    config, _ = load_config(str(walked.folder / "run.toml"))
    for client in config.client:
        with Path(client.data).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        prompts = {}
        for row in rows:
            prompts.setdefault(row["patient_id"], set()).add(row["prompt"])
        units = load_units(config, client)
        assert len(units) == len(prompts) == PATIENTS
        # The bound has something to do, and so has the sum over a patient's prompts.
        assert sum(len(own) > 4 for own in prompts.values()) > PATIENTS / 5
        for patient, own in prompts.items():
            unit = units[subject_id("patient_id", patient)]
            assert len(unit.examples) == min(4, len(own))
            assert {example.prompt for example in unit.examples} <= own


def test_the_held_out_prompts_are_no_patients(walked):
    for name in HOSPITALS:
        own = load_examples(str(walked.folder / f"data/{name}.csv"))
        others = load_examples(str(walked.folder / f"data/{name}-heldout.csv"))
        assert not {e.prompt for e in own} & {e.prompt for e in others}


def test_no_patient_is_named_in_what_is_published(walked):
    published = [text for result in walked.results.values() for text in result[1:]]
    out = walked.folder / "out"
    for path in (out / "ledger").glob("*.jsonl"):
        published += [json.dumps(record) for record in records(path)]
    published += [(out / name).read_text() for name in ("plan.json", "summary.json")]
    text = "\n".join(published)
    for initial in "ENSW":
        for number in range(PATIENTS):
            name = f"{initial}{number:04d}"
            assert name not in text
            assert subject_id("patient_id", name) not in text


def test_the_adapter_is_used_as_the_page_says(walked):
    (code,) = blocks("python")
    status, out, errors = run([sys.executable, "-c", code], walked.folder)
    assert status == 0, errors
    assert out.startswith("#a bcbaca=")
