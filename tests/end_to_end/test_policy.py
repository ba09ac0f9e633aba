"""A run that a site's policy declines, then allows, as the program does it."""

import tomllib

import tomli_w

from fgrpo_secure.cli import main
from tests.end_to_end.program import Program, kinds, write_config

NAME = "sums"
TRIO = ("count", "shift", NAME)


def run(folder, name, config, root):
    place = folder / name
    place.mkdir()
    made = Program(place, "run", config, "--output", root)
    return made.wait(), made


def test_a_declined_run_is_signed_and_goes_on_once_it_is_approved(tmp_path, capsys):
    config = write_config(
        tmp_path / "given",
        names=TRIO,
        machine={"state": "state", "workers": 1, "microbatch": 4},
        privacy={"rounds": 1},
        grpo={"group_size": 2, "max_tokens": 2},
    )
    policy, root = tmp_path / "given/site.toml", tmp_path / "run"
    assert main(["policy", "init", str(policy), str(config), "--client", NAME]) == 0
    tree = tomllib.loads(config.read_text())
    tree["client"][2]["policy"] = "site.toml"
    config.write_text(tomli_w.dumps(tree))
    ended, declined = run(tmp_path, "declined", config, root)
    assert ended == 6
    assert "has not approved" in declined.stderr
    own = tmp_path / f"given/state/{NAME}/ledger/{NAME}.jsonl"
    assert kinds(own) == ["declined"]
    assert main(["ledger", "verify", str(own)]) == 0
    # No other client has opened a run that could not have gone on.
    assert not list(tmp_path.glob("given/state/*/ledger/c*.jsonl"))
    digest = declined.stderr.partition("plan ")[2][:16]
    assert main(["policy", "approve", str(config), "--digest", digest]) == 0
    ended, finished = run(tmp_path, "approved", config, root)
    assert ended == 0, finished.stderr
    assert [kind for kind in kinds(own) if kind != "cosigned"] == [
        *(
            "declined",
            "opened",
            "joined",
            "shown",
            "intent",
            "commit",
            "outcome",
            "closed",
        )
    ]
    assert main(["ledger", "verify", str(root), str(own)]) == 0
    assert f"{root}: verifies" in capsys.readouterr().out
