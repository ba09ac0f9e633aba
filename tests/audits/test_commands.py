"""`fgrpo audit`: what it prints, what it writes, and its exit status."""

import json

import pytest

from audits import commands
from audits.bounds import AuditResult
from audits.canaries import alternating
from audits.planted.checks import Reading
from audits.planted.faults import FAULTS, SOUND
from audits.planted.table import BEGIN, END, Row
from fgrpo_secure.cli import main

BUGS = {fault.name: fault for fault in FAULTS}
SMALL = ["--dimension", "2000", "--json"]
STEPS = ["--set", "privacy.trust=local", "--set", "privacy.local_steps=2"]
NO_STATISTIC = ["--set", "aggregation.rule=size"]


def audit(capsys, *words):
    status = main(["audit", *words])
    return status, capsys.readouterr().out


@pytest.fixture
def attacks(monkeypatch):
    """The plans that are attacked; the attacks themselves are tested elsewhere."""
    asked = []

    def attack(plan, progress, view=None):
        asked.append((plan, view))
        progress("releases", 1, 1)
        return AuditResult(float(plan.epsilon), 7.5, float(plan.delta), 10_000)

    monkeypatch.setattr(commands, "attack", attack)
    monkeypatch.setattr(commands, "attack_jointly", attack)
    return asked


def test_canaries_print_the_bound_and_the_claim(capsys, attacks):
    status, out = audit(capsys, "canaries", "--json", *NO_STATISTIC)
    found = json.loads(out)
    assert status == 0
    assert (found["epsilon_lower_bound"], found["epsilon_claimed"]) == (7.5, 8.0)
    assert (found["trust"], found["refuted"]) == ("distributed", False)
    ((plan, view),) = attacks
    assert (plan.sampling_rate, plan.registered_charges, view) == (1, 1, None)


def test_canaries_of_several_steps_are_attacked_in_two_ways(capsys, attacks):
    status, out = audit(capsys, "canaries", "--json", *NO_STATISTIC, *STEPS)
    found = json.loads(out)
    assert status == 0
    assert found["trust"] == "local"
    assert list(found["attacks"]) == [
        "what is released",
        "canaries of alternating sign",
    ]
    assert [(plan.local_steps, view) for plan, view in attacks] == [
        (2, None),
        (2, alternating),
    ]


def test_a_statistic_is_attacked_together_with_the_gradient(capsys, attacks):
    _, out = audit(capsys, "canaries", "--trust", "local")
    assert out.splitlines()[1].startswith("gradient and statistic: epsilon is at least")
    plan, _ = attacks[1]
    assert plan.is_local
    assert plan.weighting.needs_statistic
    assert plan.honest_shares == plan.dimension == 1


def test_a_broken_mechanism_ends_canaries_with_status_1(capsys):
    with BUGS["quarter-variance"].planted():
        status, out = audit(capsys, "canaries", *NO_STATISTIC)
    assert status == 1
    assert out.endswith("do not use this build on private data.\n")


@pytest.mark.parametrize("name", ["noise-fit", "transcript"])
@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_a_measurement_prints_and_writes_one_report(capsys, tmp_path, name, trust):
    where = ["--write", str(tmp_path / "results"), "--trust", trust]
    status, out = audit(capsys, name, *SMALL, *where)
    assert status == 0
    found = json.loads(out)
    assert found["refuted"] is False
    assert found["subject"]["trust"] == trust
    stem = name.replace("-", "_")
    assert json.loads((tmp_path / "results" / f"{stem}.json").read_text()) == found
    text = (tmp_path / "results" / f"{stem}.md").read_text("utf-8")
    assert all(finding["name"] in text for finding in found["findings"])


def test_a_broken_mechanism_ends_a_measurement_with_status_1(capsys):
    with BUGS["quarter-variance"].planted():
        status, out = audit(capsys, "noise-fit", *SMALL)
    assert status == 1
    assert json.loads(out)["refuted"] is True


@pytest.mark.parametrize("count", ["999", "1000001", "many"])
def test_a_dimension_in_which_nothing_would_show_is_refused(capsys, count):
    with pytest.raises(SystemExit) as ended:
        main(["audit", "transcript", "--dimension", count])
    assert ended.value.code == 2
    assert "is not a number from 1000 to 1000000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "caught", "status"),
    [(FAULTS[0], True, 0), (FAULTS[0], False, 1), (SOUND, False, 0), (SOUND, True, 1)],
)
def test_planted_bugs_that_go_unseen_end_with_status_1(
    capsys, monkeypatch, tmp_path, fault, caught, status
):
    rows = [Row(fault, "sum", Reading(caught, "what it read"))]
    monkeypatch.setattr(commands, "run_planted", lambda progress: rows)
    path = tmp_path / "README.md"
    path.write_text(f"{BEGIN}\n{END}\n", "utf-8")
    found, out = audit(capsys, "planted", "--json", "--write", str(path))
    assert found == status
    assert json.loads(out)["rows"][0]["caught"] is caught
    assert f"`{fault.name}`" in path.read_text("utf-8")
    found, out = audit(capsys, "planted")
    assert found == status
    assert ("an audit is broken" in out) is bool(status)


def test_a_table_without_a_place_is_an_error_that_says_so(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(commands, "run_planted", lambda progress: [])
    path = tmp_path / "README.md"
    path.write_text("nothing\n", "utf-8")
    assert main(["audit", "planted", "--write", str(path)]) == 5
    assert "Give a file with both markers." in capsys.readouterr().err
