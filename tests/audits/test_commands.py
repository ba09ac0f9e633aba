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
ALTERNATING = "canaries of alternating sign"
JOINT = "gradient and statistic"


def audit(capsys, *words):
    status = main(["audit", *words])
    return status, capsys.readouterr().out


@pytest.fixture
def bounds():
    """What each attack below reads; a test may change it."""
    return {"what is released": 7.5, ALTERNATING: 7.5, JOINT: 7.5}


@pytest.fixture
def attacks(monkeypatch, bounds):
    """The plans that are attacked; the attacks themselves are tested elsewhere."""
    asked = []

    def read(name, plan, scores, progress):
        progress("releases", 1, 1)
        claim, delta = float(plan.epsilon), float(plan.delta)
        return AuditResult(claim, bounds[name], delta, scores)

    def attack(plan, releases, progress, view=None):
        asked.append((plan, view))
        name = "what is released" if view is None else ALTERNATING
        return read(name, plan, 1000 * releases, progress)

    def attack_jointly(plan, releases, progress):
        asked.append((plan, JOINT))
        return read(JOINT, plan, releases, progress)

    monkeypatch.setattr(commands, "attack", attack)
    monkeypatch.setattr(commands, "attack_jointly", attack_jointly)
    return asked


def test_canaries_print_the_bound_and_the_claim(capsys, attacks):
    status, out = audit(capsys, "canaries", "--json", *NO_STATISTIC)
    found = json.loads(out)
    assert status == 0
    assert (found["epsilon_lower_bound"], found["epsilon_claimed"]) == (7.5, 8.0)
    assert (found["trust"], found["refuted"]) == ("distributed", False)
    assert (found["weak"], found["scores"]) == (False, 10_000)
    ((plan, view),) = attacks
    assert (plan.sampling_rate, plan.registered_charges, view) == (1, 1, None)


def test_canaries_travel_as_the_configuration_says(capsys, attacks):
    wire = ["--set", "privacy.rotation=true", "--set", "privacy.modulus_bits=20"]
    audit(capsys, "canaries", *NO_STATISTIC, *wire)
    audit(capsys, "canaries", *NO_STATISTIC)
    assert [(plan.rotation, plan.modulus_bits) for plan, _ in attacks] == [
        (True, 20),
        (False, 32),
    ]


@pytest.mark.parametrize("broken", ["what is released", ALTERNATING, JOINT])
def test_one_attack_that_refutes_is_enough(capsys, attacks, bounds, broken):
    bounds[broken] = 8.1
    status, out = audit(capsys, "canaries", *STEPS)
    assert status == 1
    assert out.endswith("do not use this build on private data.\n")
    status, out = audit(capsys, "canaries", "--json", *STEPS)
    found = json.loads(out)
    assert status == 1
    assert found["refuted"] is True
    refuting = [name for name, one in found["attacks"].items() if one["refuted"]]
    assert refuting == [broken]


@pytest.mark.parametrize("blunt", ["what is released", ALTERNATING, JOINT])
def test_one_weak_attack_is_said_to_be_weak(capsys, attacks, bounds, blunt):
    bounds[blunt] = 5.5
    status, out = audit(capsys, "canaries", "--json", *STEPS)
    found = json.loads(out)
    assert status == 0
    assert found["weak"] is True
    weak = {name: one["weak_below"] for name, one in found["attacks"].items()}
    assert weak == dict.fromkeys(bounds, 0.7 * 8.0)
    assert [name for name, one in found["attacks"].items() if one["weak"]] == [blunt]
    _, out = audit(capsys, "canaries", *STEPS)
    (line,) = [line for line in out.splitlines() if "that is weak" in line]
    assert line.startswith(f"{blunt}: ")
    assert "less than 5.600 in 1 of 1000 attacks at most" in line


def test_scores_that_are_too_few_for_a_small_claim_are_not_called_weak(
    capsys, attacks, bounds
):
    bounds["what is released"] = bounds[JOINT] = 0.0
    _, out = audit(capsys, "canaries", "--set", "privacy.epsilon=0.5")
    assert [line.endswith("whether that is weak") for line in out.splitlines()] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("claim", "words", "said"),
    [
        ("60", NO_STATISTIC, "10000 scores of what is released"),
        ("inf", NO_STATISTIC, "10000 scores of what is released"),
        ("42", NO_STATISTIC, "10000 scores of what is released"),
        ("40", [], "2500 scores of gradient and statistic"),
        ("60", ["--releases", "11"], "2750 scores of gradient and statistic"),
    ],
)
def test_a_claim_that_no_lack_of_noise_could_refute_is_not_audited(
    capsys, attacks, claim, words, said
):
    status = main(["audit", "canaries", "--set", f"privacy.epsilon={claim}", *words])
    error = capsys.readouterr().err
    assert status == 2
    assert f"epsilon {claim} cannot be audited with {said}" in error
    assert "or raise --releases." in error
    assert attacks == []


def test_what_the_refusal_advises_is_what_can_be_audited(capsys, attacks):
    claim = ["canaries", "--set", "privacy.epsilon=42", *NO_STATISTIC]
    assert main(["audit", *claim]) == 2
    assert "--set privacy.epsilon=41.9 or less" in capsys.readouterr().err
    status, _ = audit(capsys, *claim, "--releases", "11")
    assert status == 0
    assert len(attacks) == 1


def test_more_releases_give_every_attack_more_scores(capsys, attacks):
    _, out = audit(capsys, "canaries", "--json", "--releases", "20", *STEPS)
    found = json.loads(out)["attacks"]
    assert {name: one["scores"] for name, one in found.items()} == {
        "what is released": 20_000,
        ALTERNATING: 20_000,
        JOINT: 5000,
    }


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
