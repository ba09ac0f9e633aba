"""A cohort's report: of its own clients, and only where the whole run verifies."""

import json
import shutil

import pytest

from fgrpo_secure.cli import main
from fgrpo_secure.errors import StateError
from fgrpo_secure.report import write_report
from tests.audits.ledger_folders import VECTORS, write
from tests.report.pages import rows, words
from tests.vectors.ledger_cohort_lies import (
    Stories,
    adapter_moved_by_a_sum_that_is_made_up,
)
from tests.vectors.ledger_cohorts import NAMES

EVERY_ROUND = "By the server's ledger, which the clients' ledgers bear out"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(VECTORS / "cohorts", tmp_path / "run")


def test_a_report_is_of_a_cohorts_clients_and_says_that_it_is_one_of_several(folder):
    first = folder / "cohort-0001"
    write_report(first, None, unfinished=False)
    said = words(first)
    assert "All its ledgers verify." in said
    assert "One of the 3 cohorts of a run" in said
    claim = json.loads((first / "claim.json").read_text("utf-8"))["claim"]
    assert claim["cohorts"] == 3
    assert [client["name"] for client in claim["clients"]] == list(NAMES[0])
    results = [row[1] for row in rows(first, EVERY_ROUND)]
    assert results == [
        "published",
        "aborted: too few clients for a sum; other cohorts' sums moved the adapter",
        "aborted: too few clients for a sum",
    ]


def test_a_report_of_all_cohorts_at_once_is_refused_with_what_to_do(folder):
    with pytest.raises(StateError, match="each with a report of its own") as caught:
        write_report(folder, None, unfinished=False)
    assert "cohort-0001, cohort-0002, cohort-0003 in it" in caught.value.fix
    assert not (folder / "report.html").exists()


def test_what_is_wrong_with_another_cohort_is_wrong_with_all(folder):
    first = folder / "cohort-0001"
    ledger = folder / "cohort-0003/ledger/kappa.jsonl"
    write_report(first, None, unfinished=False)
    ledger.write_bytes(ledger.read_bytes().replace(b"kappa", b"kappb"))
    (folder / "cohort-0003/keys/iota.pub").unlink()
    assert main(["report", str(first)]) == 1
    assert json.loads((first / "claim.json").read_text("utf-8"))["claim"] is None
    assert "../cohort-0003/keys/iota.pub" in words(first)


def test_a_step_that_no_sum_is_behind_leaves_no_cohort_a_claim(folder, tmp_path):
    told = Stories(
        {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
    )
    adapter_moved_by_a_sum_that_is_made_up(told)
    lying = write(told.written(), tmp_path / "lying")
    for place in (1, 2, 3):
        part = lying / f"cohort-{place:04d}"
        assert main(["report", str(part)]) == 1
        assert "the adapter moved, and no cohort has a sum" in words(part)


def test_a_cohorts_folder_alone_is_refused_where_others_moved_its_adapter(
    folder, tmp_path
):
    alone = shutil.copytree(folder / "cohort-0001", tmp_path / "cohort-0001")
    assert main(["report", str(alone)]) == 1
    assert "check the folder of the whole run" in words(alone)
