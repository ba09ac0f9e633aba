"""Every planted bug is caught, the sound mechanism is not, and the table says so."""

from pathlib import Path

import pytest

from audits.planted.checks import CHECKS, Reading
from audits.planted.faults import FAULTS, SOUND
from audits.planted.table import BEGIN, END, Row, table, write_table

README = Path(__file__).parents[2] / "audits" / "README.md"
# A third of the guesses that the table in the README is made with.
EFFORT = 0.3


@pytest.mark.parametrize("check", CHECKS)
def test_no_check_takes_the_sound_mechanism_for_a_broken_one(check):
    with SOUND.planted():
        assert not CHECKS[check].read(EFFORT).caught


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_refutes_the_claim(fault):
    with fault.planted():
        reading = CHECKS[fault.check].read(EFFORT)
    assert reading.caught, reading.text


def test_a_fault_is_gone_after_its_block():
    places = {
        (place, name): getattr(place, name)
        for fault in FAULTS
        for place, name, _ in fault.swaps()
    }
    assert len({place for place, _ in places}) >= 5
    for fault in FAULTS:
        with fault.planted():
            pass
    for (place, name), before in places.items():
        assert getattr(place, name) is before


def test_product_code_knows_no_switch():
    root = README.parents[1]
    for folder in ("privacy", "fgrpo_secure"):
        for path in (root / folder).rglob("*.py"):
            text = path.read_text("utf-8")
            assert not any(fault.name in text for fault in FAULTS), path.name


def test_the_table_has_a_row_for_every_switch_and_none_of_them_went_unseen():
    _, rest = README.read_text("utf-8").split(BEGIN)
    lines = rest.split(END)[0].strip().splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    sound = [row for row in rows if row[0] == "`sound`"]
    assert [row[2] for row in sound] == [check.words for check in CHECKS.values()]
    assert {row[4] for row in sound} == {"no"}
    planted = rows[len(sound) :]
    assert [row[:3] for row in planted] == [
        [f"`{fault.name}`", fault.bug, CHECKS[fault.check].words] for fault in FAULTS
    ]
    assert {row[4] for row in planted} == {"yes"}


def test_writing_the_table_replaces_what_is_between_the_markers_alone(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    rows = [Row(FAULTS[0], "sum", Reading(caught=True, text="much"))]
    write_table(path, rows)
    assert path.read_text("utf-8") == (
        f"before\n{BEGIN}\n\n{table(rows)}\n\n{END}\nafter\n"
    )
    write_table(path, rows)
    assert path.read_text("utf-8").count(FAULTS[0].name) == 1
    path.write_text("no markers\n", "utf-8")
    with pytest.raises(ValueError, match=r"README\.md must have"):
        write_table(path, rows)


def test_a_row_is_right_when_a_bug_is_caught_and_when_none_is_seen_where_none_is():
    caught, quiet = Reading(caught=True, text=""), Reading(caught=False, text="")
    assert Row(FAULTS[0], "sum", caught).right
    assert not Row(FAULTS[0], "sum", quiet).right
    assert Row(SOUND, "sum", quiet).right
    assert not Row(SOUND, "sum", caught).right
