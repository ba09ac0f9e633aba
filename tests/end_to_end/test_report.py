"""The report of a real run: what the run published, and nothing that it did not."""

import base64
import json

from fgrpo_secure.cli import main
from fgrpo_secure.rounds import read_notes
from privacy.plan import Plan
from tests.end_to_end.program import NAMES, RIGHT, UNITS, WRONG, secret
from tests.report.pages import rows, words


def test_the_report_of_a_run_says_what_its_summary_says(finished, output, capsys):
    assert main(["report", str(output)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(output / "report.html"),
        str(output / "claim.json"),
    ]
    claim = json.loads((output / "claim.json").read_bytes())["claim"]
    summary = finished.summary
    assert float(claim["privacy_loss"]["epsilon"]) == summary["epsilon"]
    assert claim["evidence"]["plan_digest"] == summary["plan_digest"]
    assert claim["rounds"]["published"] == summary["rounds_completed"]
    shown = {
        row[0]: row[1:3]
        for row in rows(output, "Mean held-out reward, rescaled to 0 to 1")
    }
    assert shown == {
        client["name"]: [
            f"{client['reward_before']:.3f}",
            f"{client['reward_after']:.3f}",
        ]
        for client in summary["clients"]
    }
    # A report changes nothing that is verified.
    assert main(["ledger", "verify", str(output)]) == 0


def test_the_report_shows_the_logs_root_and_that_every_client_cosigned_it(output):
    assert main(["report", str(output)]) == 0
    evidence = json.loads((output / "claim.json").read_bytes())["claim"]["evidence"]
    log = evidence["shared_log"]
    size, root = (output / "ledger/checkpoint").read_text("utf-8").split("\n")[1:3]
    assert log["size"] == int(size) == evidence["server_ledger"]["records"]
    assert log["root"] == base64.b64decode(root).hex()
    assert log["cosigned"] == dict.fromkeys(NAMES, int(size))
    assert "4 of 4 clients cosigned it" in words(output)
    assert log["root"] in words(output)


def test_bytes_and_weights_of_every_round_were_noted(finished, output):
    notes = read_notes(finished.output / "server")
    assert sorted(notes) == [1, 2]
    plan = json.loads((finished.output / "plan.json").read_bytes())
    bytes_up = Plan.from_json(plan).bytes_up
    for noted in notes.values():
        assert (noted.published, noted.survivors) == (True, 4)
        assert 0 < noted.weights <= 4
        assert list(noted.down) == list(noted.up)
        assert noted.up["shares"] >= 4 * bytes_up
        assert noted.down["offer"] > noted.up["offer"] > 0
    assert main(["report", str(output)]) == 0
    assert "notes of bytes and time are not in this folder" not in words(output)


def test_nothing_private_is_in_the_report(output):
    assert main(["report", str(output)]) == 0
    for name in ("report.html", "claim.json"):
        text = (output / name).read_text("utf-8")
        for client in NAMES:
            seed = (output / f"clients/{client}/identity.key").read_bytes()
            assert seed.hex() not in text
            for number in range(UNITS):
                assert secret(client, number) not in text
        for raw in (RIGHT, WRONG):
            assert str(raw) not in text
