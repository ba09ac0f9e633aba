"""`fgrpo pilot` and `fgrpo site`, as they are typed."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import tomli_w

from fgrpo_secure.cli import main
from fgrpo_secure.home import Home, HomeRole, make_home
from fgrpo_secure.pilot import commands, engine
from fgrpo_secure.pilot.invitation import PilotFile, fingerprint, is_fingerprint
from tests.app.test_agreement import tree

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs" / "pilot.md").read_text("utf-8")


@pytest.fixture
def make(tmp_path):
    def made(party, role):
        home = Home(tmp_path / party, party, role, "trial", "localhost", 8002, 8003)
        make_home(home)
        return home

    return made


@pytest.fixture
def agreement(tmp_path):
    path = tmp_path / "run.toml"
    proposed = tree()
    for client in proposed["client"]:
        client |= {"reward": "sums", "reward_range": [0.0, 10.0]}
    proposed["model"]["target_modules"] = ["o_proj"]
    proposed["grpo"] = {"max_tokens": 4, "max_prompt_tokens": 11}
    path.write_text(tomli_w.dumps(proposed))
    return path


def test_a_sites_status_is_told_before_anything_ran(make, capsys):
    home = make("north", HomeRole.SITE)
    assert main(["site", "status", str(home.root)]) == 0
    assert capsys.readouterr().out == "north: does not run\n"
    assert main(["site", "stop", str(home.root)]) == 0
    assert capsys.readouterr().out == "north: nothing ran\n"
    assert main(["site", "status", str(home.root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"party": "north", "state": "stopped", "data_sets": {}}


@pytest.mark.parametrize(
    ("words", "role", "expected"),
    [
        (["site", "start"], HomeRole.SERVER, "for the home of a site"),
        (["site", "status"], HomeRole.LEAD, "for the home of a site"),
        (["pilot", "serve"], HomeRole.SITE, "for the home of the server"),
        (["pilot", "status", "run", "--home"], HomeRole.SITE, "for the home of the l"),
        (["pilot", "collect", "run", "--home"], HomeRole.LEAD, "There is no run run"),
    ],
)
def test_a_command_at_the_wrong_home_is_told(make, capsys, words, role, expected):
    name = "north" if role is HomeRole.SITE else role.value
    home = make(name, role)
    assert main([*words, str(home.root)]) == 2
    assert expected in capsys.readouterr().err


def test_a_service_manager_starts_nothing_that_an_operator_stopped(make, capsys):
    home = make("north", HomeRole.SITE)
    assert main(["site", "stop", str(home.root)]) == 0
    assert main(["site", "start", str(home.root), "--unless-stopped"]) == 0
    assert "nothing is started" in capsys.readouterr().out
    assert home.stop_file.exists()


def test_a_folder_that_is_no_home_is_told(tmp_path, capsys):
    assert main(["site", "start", str(tmp_path)]) == 5
    assert "no home" in capsys.readouterr().err


def test_a_run_that_was_never_submitted_is_not_listed_as_one_that_is(make, capsys):
    home = make("lead", HomeRole.LEAD)
    (home.run("mine") / "job").mkdir(parents=True)
    assert main(["pilot", "status", "mine", "--home", str(home.root)]) == 2
    said = capsys.readouterr().err
    assert "There is no run mine that was submitted" in said
    assert "There are: none" in said


def test_a_missing_agreement_is_told(make, tmp_path, capsys):
    home = make("north", HomeRole.SITE)
    assert main(["site", "check", str(home.root), str(tmp_path / "x.toml")]) == 2
    assert "There is no agreement" in capsys.readouterr().err


def test_an_operator_drafts_a_policy_reads_the_plan_and_approves(
    make, agreement, capsys
):
    home = make("north", HomeRole.SITE)
    home.site_file.write_text(
        f'[client]\ndata = "{ROOT}/fgrpo_secure/assets/data/sums.jsonl"\n'
        'reward = "fgrpo_secure.assets.rewards:sums"\n'
    )
    proposed = [str(home.root), str(agreement)]
    assert main(["site", "approve", *proposed, "--digest", "0" * 64]) == 2
    assert "no policy" in capsys.readouterr().err
    assert main(["site", "policy", *proposed]) == 0
    policy = tomllib.loads(home.policy.read_text())
    assert policy["task"][0]["approval"] == "ask"
    assert main(["site", "policy", *proposed]) == 5
    capsys.readouterr()
    plan = ["pilot", "plan", str(agreement), "--home", str(home.root), "--json"]
    assert main(plan) == 0
    digest = json.loads(capsys.readouterr().out)["digest"]
    assert main(["site", "approve", *proposed, "--digest", digest]) == 0
    assert main(["site", "approve", *proposed, "--digest", digest]) == 0
    assert "nothing is left to approve" in capsys.readouterr().out


def test_the_lead_and_a_site_read_the_same_plan(make, agreement, capsys):
    lead = make("lead", HomeRole.LEAD)
    server = make("server", HomeRole.SERVER)
    digests = set()
    for home in (lead, server):
        words = ["pilot", "plan", str(agreement), "--home", str(home.root), "--json"]
        assert main(words) == 0
        digests.add(json.loads(capsys.readouterr().out)["digest"])
    assert len(digests) == 1


def test_the_runbooks_pilot_file_is_one():
    blocks = re.findall(r"```toml\n(.*?)```", RUNBOOK, re.DOTALL)
    pilot = next(block for block in blocks if "[pilot]" in block)
    assert len(PilotFile.model_validate(tomllib.loads(pilot)).site) == 3


def test_every_command_of_the_runbook_exists(capsys):
    named = set(re.findall(r"fgrpo (pilot|site) ([a-z]+)", RUNBOOK))
    assert len(named) >= 15
    for group, action in named:
        with pytest.raises(SystemExit) as ended:
            main([group, action, "--help"])
        assert ended.value.code == 0, (group, action)
    capsys.readouterr()


def test_a_pilot_without_the_engine_says_what_to_install(tmp_path, monkeypatch, capsys):
    from fgrpo_secure.pilot import engine
    from tests.pilot.enrolment import write_pilot

    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    path = str(write_pilot(tmp_path))
    assert main(["pilot", "init", path, "--output", str(tmp_path / "pilot")]) == 2
    assert "pip install 'fgrpo-secure[nvflare]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", [fingerprint(b"a cohort"), "SHA256:" + ":".join(["AB"] * 32)]
)
def test_a_fingerprint_fits_a_terminal_and_is_whole(text):
    shown = commands._columns("root certificate", text)
    assert max(map(len, shown.splitlines())) < 80
    assert is_fingerprint(shown.removeprefix("root certificate"), text)


def test_a_server_that_is_not_reached_is_told_in_words_of_the_pilot():
    answer = {
        "error_code": "CONNECTION_FAILED",
        "message": "Could not connect to the FLARE server.",
        "hint": "Check server status with 'nvflare system status'.",
    }
    error = engine._refused(("job", "submit"), answer)
    assert "fgrpo pilot serve" in error.fix
    assert "system status" not in error.fix
    other = engine._refused(("job", "submit"), answer | {"error_code": "OTHER"})
    assert "system status" in other.fix
