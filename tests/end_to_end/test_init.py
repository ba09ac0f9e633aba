"""From nothing to a verified ledger, with what `fgrpo init` wrote."""

import json

from fgrpo_secure.cli import main
from tests.end_to_end.program import Program


def test_a_new_project_runs_as_it_stands_and_its_ledgers_verify(tmp_path, capsys):
    folder, output = tmp_path / "mine", tmp_path / "out"
    assert main(["init", str(folder), "--unit", "patient_id", "--rounds", "2"]) == 0
    # But for the public scores of two clients, which take most of the time.
    quicker = [f"client.{name}.eval_public=false" for name in ("south", "west")]
    words = [word for override in quicker for word in ("--set", override)]
    program = Program(
        tmp_path, "run", folder / "run.toml", "--output", output, "--json", *words
    )
    assert program.wait() == 0, program.stderr
    summary = json.loads(program.stdout)
    assert summary["rounds_completed"] == 2
    assert summary["target_epsilon"] == 8
    assert [client["name"] for client in summary["clients"]] == [
        *("north", "south", "west")
    ]
    assert 0 < summary["clients"][0]["reward_before"] < 1
    assert main(["ledger", "verify", str(output)]) == 0
