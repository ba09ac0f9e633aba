"""A folder that does not verify: a red box on top, a status, and nothing claimed."""

import json

import pytest

from fgrpo_secure.cli import main
from fgrpo_secure.report import write, write_report
from tests.privacy.ledger.synthetic import make_key
from tests.report import runs
from tests.report.pages import parsed, words

ALPHA = "ledger/alpha.jsonl"


def flipped(folder):
    path = folder / ALPHA
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def without_a_line(folder):
    path = folder / "ledger/server.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))


def cut_short(folder):
    for path in (folder / "ledger").glob("*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1]))


def another_key(folder):
    raw = make_key("mallory").verify_key.raw
    (folder / "keys/beta.pub").write_text(raw.hex() + "\n")


def another_plan(folder):
    path = folder / "plan.json"
    path.write_text(path.read_text("utf-8").replace('"epsilon":"8"', '"epsilon":"1"'))


def no_plan(folder):
    (folder / "plan.json").unlink()


def smaller_epsilon(folder):
    path = folder / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(summary | {"epsilon": 0.01}))


def a_ledger_gone(folder):
    (folder / "ledger/gamma.jsonl").unlink()


def a_refuting_audit(folder):
    (folder / "audits").mkdir()
    finding = {"name": "variance", "value": 0.2, "p_value": 0.0, "holds": False}
    said = {"audit": "noise fit", "refuted": True, "false_alarm": 1e-6}
    said |= {"subject": {"draws": 9}, "findings": [finding]}
    (folder / "audits/noise_fit.json").write_text(json.dumps(said))


SPOILT = [
    flipped,
    without_a_line,
    cut_short,
    another_key,
    another_plan,
    no_plan,
    smaller_epsilon,
    a_ledger_gone,
    a_refuting_audit,
]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_tampered_folder_gets_a_red_box_a_status_and_no_claim(folder, spoil, capsys):
    spoil(folder)
    assert main(["report", str(folder)]) == 1
    told = capsys.readouterr()
    assert "nothing is claimed" in told.err
    assert told.out
    boxes = list(parsed(folder).iter("section"))
    assert [box.get("class") for box in boxes] == ["box bad"]
    assert boxes[0].get("role") == "alert"
    said = words(folder)
    assert said.strip().startswith("Nothing is claimed about this run")
    # No figure of the run, no plot, no table: nothing to quote.
    page = parsed(folder)
    problems = next(page.iter("ul"))
    problems.clear()
    left = " ".join(page.find("body").itertext())
    for claim in ("epsilon", "at most", "delta", "onlooker", "ledgers verify"):
        assert claim not in left
    assert not list(parsed(folder).iter("svg"))
    assert not list(parsed(folder).iter("table"))
    claim = json.loads((folder / "claim.json").read_bytes())
    assert claim["verified"] is False
    assert claim["claim"] is None
    assert claim["problems"]
    assert claim.keys() == {"format", "verified", "problems", "claim"}


def test_a_report_from_before_the_tampering_does_not_stay(folder):
    write_report(folder, None, unfinished=False)
    assert "onlooker" in words(folder)
    flipped(folder)
    write_report(folder, None, unfinished=False)
    assert "onlooker" not in words(folder)
    assert json.loads((folder / "claim.json").read_bytes())["claim"] is None


@pytest.mark.parametrize("where", ["gather", "report_page", "claim_json"])
def test_no_earlier_report_outlives_one_that_fails(folder, monkeypatch, where):
    """Not even half of it: a claim beside another page would be believed."""
    write_report(folder, None, unfinished=False)
    monkeypatch.setattr(write, where, lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(folder, None, unfinished=False)
    assert not (folder / "claim.json").exists()
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("name", ["report.html", "claim.json"])
def test_a_report_that_cannot_be_written_is_an_error_and_leaves_none(
    folder, name, capsys
):
    write_report(folder, None, unfinished=False)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert main(["report", str(folder)]) == 5
    assert name in capsys.readouterr().err
    claim = folder / "claim.json"
    assert not claim.is_file() or not json.loads(claim.read_bytes())["verified"]


def test_a_report_is_written_over_a_link_and_not_through_it(folder, tmp_path):
    target = tmp_path / "elsewhere"
    target.write_text("kept")
    (folder / "report.html").unlink()
    (folder / "report.html").symlink_to(target)
    write_report(folder, None, unfinished=False)
    assert target.read_text() == "kept"
    assert not (folder / "report.html").is_symlink()


def test_asking_for_an_unfinished_run_excuses_no_tampering(tmp_path):
    folder = runs.unfinished(tmp_path / "run")
    flipped(folder)
    assert main(["report", str(folder), "--unfinished"]) == 1
    assert "Nothing is claimed" in words(folder)
    assert "--unfinished" not in words(folder)


def test_many_problems_are_counted_and_not_all_listed(folder):
    for number in range(200):
        (folder / f"ledger/extra-{number:03d}").write_text("")
    assert main(["report", str(folder)]) == 1
    said = words(folder)
    assert "extra-000" in said
    assert "extra-199" not in said
    assert "And 140 more." in said
    claim = json.loads((folder / "claim.json").read_bytes())
    assert len(claim["problems"]) == 200


@pytest.mark.parametrize("place", ["nowhere", "empty", "file"])
def test_where_there_is_no_run_nothing_is_written(tmp_path, place, capsys):
    target = tmp_path / place
    if place == "empty":
        target.mkdir()
    if place == "file":
        target.write_text("")
    assert main(["report", str(target)]) == 5
    assert "holds no run" in capsys.readouterr().err
    assert not list(tmp_path.rglob("report.html"))
