"""`fgrpo policy`: what an operator reads and types, and how each command ends."""

import io
import json

import pytest

from fgrpo_secure.approvals import load_policy
from fgrpo_secure.cli import main
from fgrpo_secure.commands import operator_asked
from fgrpo_secure.config import load_config
from fgrpo_secure.preparation import make_plan
from privacy.wire import canonical_json
from tests.end_to_end.program import write_config

NAME = "sums"


class Desk:
    """An operator's folder: a configuration and the policy that it names."""

    def __init__(self, folder):
        self.folder = folder
        self.config = write_config(folder / "given", machine={"state": "state"})
        self.policy = folder / "site.toml"
        self.overrides = ["--set", f"client.{NAME}.policy={self.policy}"]

    def init(self, *more):
        return main(["policy", "init", str(self.policy), *self.about(), *more])

    def about(self):
        return [str(self.config), "--client", NAME]

    def check(self, *more):
        return main(["policy", "check", str(self.policy), str(self.config), *more])

    def approve(self, *more):
        return main(["policy", "approve", str(self.config), *self.overrides, *more])

    def digest(self):
        config, _ = load_config(str(self.config))
        return make_plan(config)[0].digest

    def edit(self, old, new):
        text = self.policy.read_text()
        assert old in text
        self.policy.write_text(text.replace(old, new))


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


@pytest.fixture
def begun(desk, capsys):
    assert desk.init() == 0
    capsys.readouterr()
    return desk


def test_a_policy_to_start_from_allows_the_configuration_once_it_is_approved(
    desk, capsys
):
    assert desk.init() == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{desk.policy}\n")
    assert "[[client]]" in shown
    policy = load_policy(desk.policy)
    assert [task.approval for task in policy.task] == ["ask"]
    assert policy.plan.least_clients == 4
    assert desk.check("--client", NAME) == 6
    assert "not_approved" in capsys.readouterr().out
    desk.edit('approval = "ask"', 'approval = "auto"')
    assert desk.check("--client", NAME) == 0
    assert capsys.readouterr().out == f"{NAME}: allowed\n"


def test_a_policy_is_not_written_over(begun, capsys):
    before = begun.policy.read_bytes()
    assert begun.init() == 5
    assert "is there already" in capsys.readouterr().err
    assert begun.policy.read_bytes() == before


def test_no_policy_is_written_for_a_baseline_or_for_nobody(desk, capsys):
    assert desk.init("--set", "privacy.epsilon=inf") == 2
    assert "promises no privacy" in capsys.readouterr().err
    command = ["policy", "init", str(desk.policy), str(desk.config)]
    assert main([*command, "--client", "zeta"]) == 2
    assert not desk.policy.exists()


def test_a_check_says_each_reason_with_what_to_do(begun, capsys):
    begun.edit("least_colluders = 1", "least_colluders = 3")
    begun.edit('units = ["prompt"]', 'units = ["patient_id"]')
    assert begun.check("--client", NAME) == 6
    shown = capsys.readouterr().out
    assert shown.startswith(f"{NAME}: REFUSED\n")
    for said in ("policy_unit", "policy_colluders", "Take a plan with more colluders"):
        assert said in shown
    assert begun.check("--client", NAME, "--json") == 6
    found = json.loads(capsys.readouterr().out)[NAME]
    assert [one["reason"] for one in found] == [
        "policy_unit",
        "policy_colluders",
        "not_approved",
    ]
    assert not (begun.folder / "given/state").exists()


def test_a_check_is_about_the_clients_that_name_the_policy_or_else_all(begun, capsys):
    begun.check("--json")
    assert len(json.loads(capsys.readouterr().out)) == 4
    begun.check("--json", *begun.overrides)
    assert list(json.loads(capsys.readouterr().out)) == [NAME]
    assert begun.check("--client", "zeta") == 2


def test_a_plan_alone_can_be_checked(begun, capsys):
    plan, _ = make_plan(load_config(str(begun.config))[0])
    path = begun.folder / "plan.json"
    path.write_bytes(canonical_json(plan.to_json()))
    command = ["policy", "check", str(begun.policy), str(path)]
    assert main(command) == 0
    assert "does not say which base model" in capsys.readouterr().out
    begun.edit("\nepsilon = 8", "\nepsilon = 7")
    assert main(command) == 6
    assert "data set sums: REFUSED" in capsys.readouterr().out
    assert main(["policy", "check", str(begun.policy), "no/plan.json"]) == 2


def test_nobody_approves_without_a_terminal_or_the_digest(begun, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(begun.digest()))
    assert begun.approve() == 2
    assert "no terminal" in capsys.readouterr().err
    assert begun.approve("--digest", "0" * 8) == 2
    assert begun.approve("--digest", begun.digest()[:7]) == 2
    assert "nothing is approved" in capsys.readouterr().err
    assert not begun.policy.with_suffix(".approvals").exists()
    assert begun.approve("--digest", begun.digest()) == 0
    assert "approved for one run" in capsys.readouterr().out
    assert begun.check("--client", NAME) == 0
    assert begun.approve() == 0
    assert "nothing is left to approve" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_an_operator_at_a_terminal_sees_the_plan_in_words(begun, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal(f"{begun.digest()[:8]}\n"))
    assert begun.approve() == 0
    shown = capsys.readouterr().err
    policy = load_policy(begun.policy)
    for said in (
        "Protected",
        "From whom",
        "Not protected",
        policy.plan.base_models[0],
        policy.reward[0].sha256,
        begun.digest(),
    ):
        assert said in shown
    assert begun.check("--client", NAME) == 0


def test_an_operator_who_types_nothing_has_declined(begun, capsys, monkeypatch):
    for typed in ("", "\n", "yes\n"):
        monkeypatch.setattr("sys.stdin", Terminal(typed))
        assert begun.approve() == 2
    assert not begun.policy.with_suffix(".approvals").exists()
    monkeypatch.setattr("sys.stdin", Terminal(""))
    config, _ = load_config(str(begun.config))

    class Nothing:
        client = NAME

        def words(self):
            return []

    assert operator_asked(config)(make_plan(config)[0], Nothing()) == ""


def test_what_is_refused_anyway_cannot_be_approved(begun, capsys):
    begun.edit("least_clients = 4", "least_clients = 9")
    assert begun.approve("--digest", begun.digest()) == 6
    assert "policy_cohort" in capsys.readouterr().out
    assert not begun.policy.with_suffix(".approvals").exists()


def test_an_approval_needs_a_policy(desk, capsys):
    assert main(["policy", "approve", str(desk.config)]) == 2
    assert "names a policy" in capsys.readouterr().err
