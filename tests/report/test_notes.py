"""Bytes, weights and time come of unsigned notes, and are shown as such."""

from dataclasses import replace

from fgrpo_secure.report import write_report
from fgrpo_secure.rounds import RoundNote, write_note
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


def drawn(folder):
    return {svg.get("aria-label") for svg in parsed(folder).iter("svg")}


def test_noted_rounds_stand_in_table_and_plots(folder):
    (folder / "server").mkdir()
    for number, published in ((1, True), (2, False), (3, True)):
        noted = replace(FIRST, round=number, published=published)
        write_note(folder / "server", noted)
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


def test_a_note_that_contradicts_the_ledger_is_not_shown(folder):
    (folder / "server").mkdir()
    write_note(folder / "server", replace(FIRST, round=2))
    write_note(folder / "server", replace(FIRST, round=9))
    write_report(folder, None, unfinished=False)
    assert "60,300" not in words(folder)


def test_without_notes_the_page_says_that_they_are_not_there(made):
    said = words(made("private"))
    assert "notes of bytes and time are not in this folder" in said
    assert "Bytes by phase" not in drawn(made("private"))
