"""Bytes, weights and time come of unsigned notes, and are shown as such."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from fgrpo_secure.report import write_report
from fgrpo_secure.report.facts import RunFacts
from fgrpo_secure.rounds import RoundNote, write_note
from tests.report import runs
from tests.report.pages import parsed, rows, words

TABLE = (
    "By the server's ledger, which the clients' ledgers bear out; weights and bytes as "
    "the coordinator noted them, unsigned"
)
FIRST = RoundNote(
    round=1,
    published=True,
    survivors=3,
    weights=1.5,
    down={"offer": 3000, "shares": 10},
    up={"offer": 300, "shares": 60000},
    seconds={"offer": 1.04, "shares": 2.96},
)


def of_round(number, **changes):
    """A note that the ledger of the run bears out."""
    survivors = {1: 3, 2: 0, 3: 2}[number]
    weights = 1.5 if survivors else 0.0
    values = {"round": number, "published": number != 2, "survivors": survivors}
    return replace(FIRST, **(values | {"weights": weights} | changes))


def drawn(folder):
    return {svg.get("aria-label") for svg in parsed(folder).iter("svg")}


def test_noted_rounds_stand_in_table_and_plots(folder):
    (folder / "server").mkdir()
    for number in (1, 2, 3):
        write_note(folder / "server", of_round(number))
    write_report(folder, None, unfinished=False)
    assert rows(folder, TABLE)[0][5:8] == ["1.500", "3,010", "60,300"]
    assert drawn(folder) >= {
        "Sum of the clients' weights in each round",
        "Bytes by phase",
        "Time by phase",
    }
    shown = [text.text for text in parsed(folder).iter("text")]
    assert "26%" in shown
    assert "74%" in shown
    # The time of single rounds, which depends on what was drawn, is nowhere.
    said = words(folder) + (folder / "claim.json").read_text("utf-8")
    assert "1.04" not in said
    assert "2.96" not in said


@pytest.mark.parametrize(
    "note",
    [
        of_round(2, published=True),
        of_round(2, weights=1.5),
        of_round(1, published=False),
        of_round(1, survivors=2),
        of_round(3, survivors=3),
        of_round(1, round=9),
    ],
)
def test_a_note_that_contradicts_the_ledger_is_not_shown(folder, note):
    (folder / "server").mkdir()
    write_note(folder / "server", note)
    write_report(folder, None, unfinished=False)
    assert "60,300" not in words(folder)


def noted(folder, *rounds, **changes):
    """The coordinator's notes of these rounds of a run, and the report with them."""
    (folder / "server").mkdir()
    for number in rounds:
        write_note(folder / "server", of_round(number, **changes))
    write_report(folder, None, unfinished=False)


def test_the_share_of_time_says_which_rounds_it_is_of(folder, made, tmp_path):
    noted(folder, 1, 2, 3)
    said = words(folder)
    assert "Where the time went. Of all 3 rounds, not of loading" in said
    assert "All messages of all 3 rounds" in said
    part = shutil.copytree(made("private"), tmp_path / "part")
    noted(part, 1, 3)
    said = words(part)
    assert "Of 2 of 3 rounds, of which there is a note, not of loading" in said
    assert "All messages of 2 of 3 rounds, of which there is a note" in said
    assert "No note of weights, bytes and times of round 2" in said


def test_the_time_of_one_round_alone_is_not_shown(made, tmp_path):
    """What a single round took by phase depends on what was drawn in it."""
    for kind in ("private", "all aborted"):
        run = shutil.copytree(made(kind), tmp_path / kind)
        (run / "server").mkdir()
        note = of_round(1) if kind == "private" else replace(of_round(2), round=1)
        write_note(run / "server", note)
        write_report(run, None, unfinished=False)
        assert "Bytes by phase" in drawn(run)
        assert "Time by phase" not in drawn(run)
        assert "74%" not in [text.text for text in parsed(run).iter("text")]
        assert "its share by phase is not shown" in words(run)


def test_rounds_that_took_no_time_do_not_hide_the_one_that_did(folder):
    (folder / "server").mkdir()
    write_note(folder / "server", FIRST)
    for number in (2, 3):
        still = {"offer": 0.0, "shares": 0.0}
        write_note(folder / "server", of_round(number, seconds=still))
    write_report(folder, None, unfinished=False)
    assert "Time by phase" not in drawn(folder)


def test_a_run_that_was_taken_up_again_does_not_pass_its_last_process_for_the_whole(
    made,
):
    assert "The run took 2 seconds" in words(made("private"))
    said = words(made("resumed"))
    assert "interrupted and taken up again once" in said
    assert "Its last process took 2 seconds" in said
    assert "The run took" not in said


def test_without_notes_the_page_says_that_they_are_not_there(made):
    said = words(made("private"))
    assert "notes of bytes and time are not in this folder" in said
    assert "Bytes by phase" not in drawn(made("private"))


# Folders that were collected from many machines may hold less.


def scores(folder, *names, **changes):
    path = folder / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    for client in summary["clients"]:
        if client["name"] in names:
            client |= {"reward_before": 0.25, "reward_after": 0.5}
    path.write_text(json.dumps(summary | changes))


def missing(folder):
    claim = json.loads((folder / "claim.json").read_bytes())
    return claim["claim"]["evidence"]["not_in_this_folder"]


def test_what_is_not_in_a_folder_is_listed_in_page_and_claim(made):
    listed = missing(made("private"))
    assert listed == [
        "The coordinator's notes of bytes and time are not in this folder: no round "
        "has weights, bytes and times (server/rounds.jsonl).",
        "No held-out score is in summary.json.",
        "No checkpoint of the server's ledger is in ledger/.",
        "No result of an audit is in audits/.",
    ]
    for sentence in listed:
        assert sentence in words(made("private"))


def test_scores_of_some_clients_are_shown_and_the_others_named(folder):
    scores(folder, "beta", seconds=None)
    write_report(folder, None, unfinished=False)
    table = rows(folder, "Mean held-out reward, rescaled to 0 to 1")
    assert [row[0] for row in table] == ["beta"]
    assert "It has none of alpha and gamma." in words(folder)
    assert "No held-out score of alpha, gamma is in summary.json." in missing(folder)
    assert "How long the run took is not in summary.json." in missing(folder)
    assert "The run took" not in words(folder)


def test_notes_without_times_give_bytes_and_say_so(folder):
    noted(folder, 1, 2, 3, seconds={})
    assert "Bytes by phase" in drawn(folder)
    assert "Time by phase" not in drawn(folder)
    assert "The coordinator's notes hold no times." in missing(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: (run / "server").write_text("no folder"),
        lambda run: (run / "server/rounds.jsonl").mkdir(parents=True),
        lambda run: (run / "audits").write_text("no folder"),
        lambda run: (run / "audits/x.json").mkdir(parents=True),
        lambda run: [(run / "audits").mkdir(), os.mkfifo(run / "audits/x.json")],
        lambda run: [(run / "server").mkdir(), os.mkfifo(run / "server/rounds.jsonl")],
        lambda run: (run / "adapter").write_text("no folder"),
    ],
)
def test_whatever_stands_where_an_optional_file_would_be_stops_no_report(folder, spoil):
    spoil(folder)
    assert isinstance(write_report(folder, None, unfinished=False), RunFacts)
    assert "Bytes by phase" not in drawn(folder)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"\xff\xfe",
        b"null\n[]\n1\n",
        b"{}\n" * 3,
        json.dumps({"round": 1}).encode(),
        b"[" * 100_000,
        b"\n\x00\x00",
    ],
)
def test_notes_in_no_form_count_as_none(folder, lines):
    (folder / "server").mkdir()
    (folder / "server/rounds.jsonl").write_bytes(lines)
    write_report(folder, None, unfinished=False)
    assert "no round has weights" in missing(folder)[0]


def test_a_run_that_has_not_ended_gives_a_report_without_any_optional_file(tmp_path):
    run = runs.unfinished(tmp_path / "run")
    assert not (run / "summary.json").exists()
    found = write_report(run, None, unfinished=True)
    assert isinstance(found, RunFacts)
    assert len(found.missing) == 5
