"""What the coordinator notes of a round, and how little a reader believes of it."""

import json
import stat

import pytest

from fgrpo_secure.rounds import Meter, RoundNote, read_notes, write_note

NOTE = RoundNote(
    round=2,
    published=True,
    survivors=3,
    weights=2.25,
    down={"offer": 900},
    up={"offer": 120, "shares": 4000},
    seconds={"offer": 0.25},
)


class Echo:
    def exchange(self, phase, messages, deadline):
        assert deadline == 7.0
        return {name: data * 2 for name, data in messages.items() if name != "gone"}


def test_a_meter_carries_everything_on_and_counts_bytes_by_phase():
    meter = Meter(Echo())
    messages = {"alpha": b"abc", "gone": b"de"}
    assert meter.exchange("offer", messages, 7.0) == {"alpha": b"abcabc"}
    meter.exchange("offer", {"alpha": b"x"}, 7.0)
    meter.exchange("shares", {}, 7.0)
    noted = meter.noted(1, published=False, survivors=0, weights=0)
    assert noted.down == {"offer": 6, "shares": 0}
    assert noted.up == {"offer": 8, "shares": 0}
    assert noted.seconds.keys() == {"offer", "shares"}
    assert (noted.round, noted.published) == (1, False)


def test_a_meter_has_each_message_made_once_and_only_where_it_is_sent():
    made = []

    class Made(dict):
        def __getitem__(self, name):
            made.append(name)
            return bytes(5)

    class One:
        def exchange(self, phase, messages, deadline):
            assert set(messages) == {"alpha", "gone"}
            return {"alpha": messages["alpha"]}

    meter = Meter(One())
    meter.exchange("offer", Made(alpha=None, gone=None), 7.0)
    assert made == ["alpha"]
    assert meter.noted(1, published=False, survivors=0, weights=0).down == {"offer": 5}


def test_a_note_is_read_as_it_was_written_and_by_its_owner_alone(tmp_path):
    write_note(tmp_path, NOTE)
    assert read_notes(tmp_path) == {2: NOTE}
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_where_nothing_was_noted_nothing_is_read(tmp_path):
    assert read_notes(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "{",
        "9",
        json.dumps({"round": 1}),
        *(
            json.dumps(
                {"round": 1, "published": True, "survivors": 1, "weights": 1}
                | {"down": {}, "up": {}, "seconds": {}}
                | change
            )
            for change in (
                {"round": -1},
                {"round": True},
                {"weights": "<b>"},
                {"weights": 10**400},
                {"down": {"offer": 10**400}},
                {"published": 1},
                {"down": []},
                {"up": {"offer": -1}},
                {"seconds": {"offer": "1e400"}},
                {"seconds": {"offer": None}},
            )
        ),
    ],
)
def test_a_line_in_another_form_is_passed_over(tmp_path, line):
    write_note(tmp_path, NOTE)
    (path,) = tmp_path.iterdir()
    path.write_text(line + "\n" + path.read_text("utf-8") + line)
    assert read_notes(tmp_path) == {2: NOTE}
