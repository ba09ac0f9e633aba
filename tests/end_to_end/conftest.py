"""One finished run, made once for all tests, also where several processes test."""

import fcntl
import importlib.util
import json
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.app.federation import edit_rows
from tests.end_to_end.leaks import reference
from tests.end_to_end.program import NAMES, Program, write_config


def with_references(name, rows):
    """Rows with a column that a reward function is given, as an answer would be."""
    return [row | {"solution": reference(name, n)} for n, row in enumerate(rows)]


@dataclass(frozen=True)
class FinishedRun:
    """A run that ended well.

    Attributes:
        folder: where the configuration, the data and the output lie.
        config: the configuration.
        output: the run's folder.
        stdout: what the program printed for programs.
        stderr: what it printed for people.
    """

    folder: Path
    config: Path
    output: Path
    stdout: str
    stderr: str

    @property
    def summary(self):
        return json.loads((self.output / "summary.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of two rounds. Copy its output before changing it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, output = base / "finished", base / "finished" / "out"
    with (base / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            # Event files are searched for what is private, where they can be made.
            has = importlib.util.find_spec("tensorboard") is not None
            machine = {"tracking": ["tensorboard"] if has else []}
            config = write_config(folder, public=NAMES, machine=machine)
            for name in NAMES:
                edit_rows(folder / f"data/{name}.jsonl", partial(with_references, name))
            program = Program(folder, "run", config, "--output", output, "--json")
            (folder / "status").write_text(str(program.wait()))
    status = (folder / "status").read_text()
    stdout = (folder / "stdout").read_text("utf-8")
    stderr = (folder / "stderr").read_text("utf-8")
    assert status == "0", stderr
    return FinishedRun(folder, folder / "config.toml", output, stdout, stderr)


@pytest.fixture
def output(finished, tmp_path):
    """A copy of the finished run's folder that a test may spoil."""
    return Path(shutil.copytree(finished.output, tmp_path / "out"))
