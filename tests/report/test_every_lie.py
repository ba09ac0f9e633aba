"""Every lie among the ledgers' vectors: no report claims anything of any of them."""

import json
import random

import pytest

from fgrpo_secure.cli import main
from fgrpo_secure.report import Refuted, write_report
from fgrpo_secure.report.facts import RunFacts
from privacy.ledger import cohort_folders
from tests.audits.ledger_folders import VECTORS, altered_bytes, read, write
from tests.report.pages import parsed, rows
from tests.vectors.ledger_story import applied

CASES = json.loads((VECTORS / "cases.json").read_bytes())
HONEST = {case["name"]: read(case["name"]) for case in CASES["valid"]}


def options(case):
    return ["--unfinished"] if case["unfinished"] else []


def claims_nothing(folder):
    said = json.loads((folder / "claim.json").read_bytes())
    assert said["verified"] is False
    assert said["claim"] is None
    assert said["problems"]
    assert not list(parsed(folder).iter("svg"))
    assert rows(folder, "Epsilon by client") is None
    return True


def reported(folder):
    """What gets a report: a run's folder, or that of each of its cohorts."""
    return cohort_folders(folder) or [folder]


@pytest.mark.parametrize("case", CASES["valid"], ids=lambda case: case["name"])
def test_every_honest_folder_gets_a_report(tmp_path, case):
    for folder in reported(write(HONEST[case["name"]], tmp_path / "run")):
        assert main(["report", str(folder), *options(case)]) == 0
        said = json.loads((folder / "claim.json").read_bytes())
        assert said["verified"] is True
        assert rows(folder, "Epsilon by client")


@pytest.mark.parametrize("case", CASES["bad"], ids=lambda case: case["name"])
def test_every_lie_gets_a_status_and_no_claim(tmp_path, case, capsys):
    files = applied(HONEST[case["folder"]], case["edits"])
    for folder in reported(write(files, tmp_path / "run")):
        assert main(["report", str(folder), *options(case)]) == 1
        assert "nothing is claimed" in capsys.readouterr().err
        assert claims_nothing(folder)


@pytest.mark.parametrize("seed", range(40))
def test_no_folder_that_was_altered_at_random_breaks_a_report(tmp_path, seed):
    name = random.Random(seed).choice(sorted(HONEST))  # noqa: S311
    files = altered_bytes(HONEST[name], seed)
    for folder in reported(write(files, tmp_path / "run")):
        found = write_report(folder, None, unfinished=seed % 2 == 0)
        if isinstance(found, Refuted):
            assert claims_nothing(folder)
            continue
        assert isinstance(found, RunFacts)
        # What nobody signed may be anything or gone; what the ledgers say may not.
        for file, data in HONEST[name].items():
            if file.endswith((".jsonl", ".pub", "plan.json")):
                assert files[file] == data
