"""A whole run of two cohorts with real processes: interrupted, finished, verified."""

import json
import shutil
import tomllib

import tomli_w

from fgrpo_secure.cli import main
from tests.app.cohorts import NAMES
from tests.app.federation import SMALL
from tests.end_to_end.program import Gate, Program, kinds, records, write_config

COHORTS = {"min_survivors": 2, "colluders": 0, "cohort_size": 3}


def test_a_run_of_two_cohorts_is_interrupted_goes_on_and_verifies(tmp_path, capsys):
    """The process is killed while the second cohort works, its first sum open."""
    config = write_config(
        tmp_path,
        names=NAMES,
        public=("count",),
        gated="sums",
        federation=COHORTS,
        privacy={"rounds": 2, "sampling_rate": 0.2, "epsilon": 50},
        **SMALL,
    )
    output, gate = tmp_path / "out", Gate(tmp_path)
    command = ("run", config, "--output", output, "--json")
    first = Program(tmp_path, *command)
    gate.wait()
    first.kill_all()
    gate.lift()
    ledgers = [output / f"cohort-{n:04d}/ledger/server.jsonl" for n in (1, 2)]
    assert [kinds(path)[-1] for path in ledgers] == ["survivors", "roster"]
    assert main(["ledger", "verify", str(output)]) == 1
    capsys.readouterr()
    assert main(["ledger", "verify", "--unfinished", str(output)]) == 0
    again = Program(tmp_path, *command)
    assert again.wait() == 0, again.stderr
    for path in ledgers:
        assert kinds(path).count("aborted") == kinds(path).count("published") == 1
    summary = json.loads(again.stdout.splitlines()[-1])
    assert [client["name"] for client in summary["clients"]] == list(NAMES)
    assert summary["survivors"] == list(NAMES)
    assert (summary["rounds_completed"], summary["rounds_aborted"]) == (1, 1)
    assert [one["folder"] for one in summary["cohorts"]] == [
        "cohort-0001",
        "cohort-0002",
    ]
    assert (output / "adapter" / "adapter_model.safetensors").exists()
    capsys.readouterr()
    assert main(["ledger", "verify", str(output)]) == 0
    said = capsys.readouterr().out
    for one in summary["cohorts"]:
        assert f"{one['folder']}: verifies: plan {one['plan_digest'][:16]}" in said
    # A report is of one cohort, which is a run by itself.
    assert main(["report", str(output)]) == 5
    assert "several cohorts" in capsys.readouterr().err
    assert main(["report", str(output / "cohort-0001")]) == 0
    assert (output / "cohort-0001" / "report.html").exists()
    # It is finished, and not begun again with cohorts of another size.
    assert main(["run", str(config), "--output", str(output)]) == 5
    assert "holds a finished run" in capsys.readouterr().err
    (output / "summary.json").unlink()
    whole = ("--set", "federation.cohort_size=6")
    assert main(["run", str(config), "--output", str(output), *whole]) == 5
    assert "an unfinished run of another plan" in capsys.readouterr().err
    shutil.rmtree(output / "cohort-0002")
    assert main(["ledger", "verify", "--unfinished", str(output)]) == 1
    assert "not at least two" in capsys.readouterr().out


def test_a_sites_policy_is_held_to_the_plan_of_its_own_cohort(tmp_path, capsys):
    config = write_config(
        tmp_path,
        names=NAMES,
        federation=COHORTS,
        privacy={"epsilon": 50},
        machine=SMALL["machine"] | {"state": "state"},
        model=SMALL["model"],
        grpo=SMALL["grpo"],
    )
    policy = tmp_path / "policy.toml"
    about = [str(policy), str(config), "--client", "sums"]
    assert main(["policy", "init", *about]) == 0
    text = policy.read_text("utf-8")
    assert "least_clients = 3\n" in text
    policy.write_text(text.replace('approval = "ask"', 'approval = "auto"'))
    assert main(["policy", "check", *about]) == 0
    capsys.readouterr()
    policy.write_text(text.replace("least_clients = 3", "least_clients = 4"))
    assert main(["policy", "check", *about]) == 6
    said = capsys.readouterr().out
    assert "The plan has 3 clients, and the site asks for 4" in said
    # A run is declined in writing before any client of any cohort opens it.
    tree = tomllib.loads(config.read_text("utf-8"))
    next(one for one in tree["client"] if one["name"] == "sums")["policy"] = str(policy)
    config.write_text(tomli_w.dumps(tree))
    assert main(["run", str(config), "--output", str(tmp_path / "out")]) == 6
    assert "Wait for more clients, or lower least_clients" in capsys.readouterr().err
    (ledger,) = (tmp_path / "state").rglob("*.jsonl")
    written = [(r["party"], r["kind"], r["reason"]) for r in records(ledger)]
    assert ("sums", "declined", "policy_cohort") in written
    assert {kind for _, kind, _ in written} == {"declined"}
    for place in (1, 2):
        server = tmp_path / f"out/cohort-{place:04d}/ledger/server.jsonl"
        assert set(kinds(server)) == {"opened"}


def test_a_plan_of_two_cohorts_states_both(tmp_path, capsys):
    config = write_config(
        tmp_path, names=NAMES, federation=COHORTS, privacy={"epsilon": 50}, **SMALL
    )
    assert main(["plan", str(config), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [one["clients"] for one in facts["cohorts"]] == [3, 3]
    assert len({one["digest"] for one in facts["cohorts"]}) == 2
    assert facts["budget"]["clients"].keys() == set(NAMES)
    assert facts["epsilon_by_client"].keys() == set(NAMES)
