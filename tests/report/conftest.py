import shutil

import pytest

from fgrpo_secure.report import write_report
from tests.report import runs

KINDS = {
    "private": runs.finished,
    "local": lambda folder: runs.finished(folder, **runs.LOCAL),
    "without noise": lambda folder: runs.finished(
        folder, cap="Infinity", **runs.WITHOUT_NOISE
    ),
    "by a column": lambda folder: runs.finished(
        folder, unit="patient_id", max_prompts_per_unit=4
    ),
    "second of two": runs.second_of_two,
    "first of two": runs.first_of_two,
    "refusing": runs.refusing,
    "declining": runs.declining,
    "all aborted": runs.all_aborted,
    "colluding": runs.colluding,
    "resumed": runs.resumed,
}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Makes each kind of finished run once, with its report; copy before changing."""
    known = {}

    def make(kind):
        if kind not in known:
            folder = tmp_path_factory.mktemp("runs") / kind.replace(" ", "-")
            KINDS[kind](folder)
            write_report(folder, None, unfinished=False)
            known[kind] = folder
        return known[kind]

    return make


@pytest.fixture
def folder(made, tmp_path):
    """A finished run that a test may spoil."""
    return shutil.copytree(made("private"), tmp_path / "run")
