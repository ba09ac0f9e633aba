"""A whole run with real processes: what it leaves, verifies and hides."""

import json
import os
import re
import stat

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fgrpo_secure.cli import main
from fgrpo_secure.config import load_config
from fgrpo_secure.terms import adapter_digest
from privacy.crypto import SigningKey, VerifyKey
from privacy.ledger import parse_note, read_key_file
from privacy.plan import Plan
from privacy.wire import parse_canonical_json
from tests.audits.ledger_folders import second
from tests.end_to_end.program import (
    ASSETS,
    NAMES,
    Program,
    kinds,
    records,
    write_config,
)

# What is made for others to see. The resolved configuration holds paths only.
PRIVATE = {"clients", "server"}
CLIENT_ROUND = ["joined", "shown", "intent", "commit", "outcome", "cosigned"]
SERVER_ROUND = ["round", "roster", "survivors", "published"]


def public_files(output):
    for path in sorted(output.rglob("*")):
        if path.is_file() and path.relative_to(output).parts[0] not in PRIVATE:
            yield path


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# A run that promises nothing.


def test_a_run_without_noise_says_so_everywhere_and_verifies(tmp_path, capsys):
    privacy = {"epsilon": float("inf"), "rounds": 1}
    config, output = write_config(tmp_path, privacy=privacy), tmp_path / "out"
    program = Program(tmp_path, "run", config, "--output", output, "--json")
    assert program.wait() == 0, program.stderr
    assert "NO PRIVACY" in program.stderr
    summary = json.loads(program.stdout.splitlines()[-1])
    stated = [summary["epsilon"], summary["target_epsilon"]]
    stated += [client["epsilon"] for client in summary["clients"]]
    assert set(stated) == {"infinity"}
    assert main(["ledger", "verify", str(output)]) == 0
    assert "infinity" in capsys.readouterr().out
    # A summary that claims a number for it does not verify.
    path = output / "summary.json"
    path.write_text(path.read_text("utf-8").replace('"infinity"', "8.0", 1))
    assert main(["ledger", "verify", str(output)]) == 1


# A run in which every client adds all of the noise.


def test_a_run_of_local_trust_verifies_and_says_what_it_spent(tmp_path, capsys):
    privacy = {"trust": "local", "rounds": 2, "local_steps": 2, "inner_steps": 2}
    grpo = {"local_learning_rate": 5.0}
    config = write_config(tmp_path, privacy=privacy, grpo=grpo)
    output = tmp_path / "out"
    program = Program(tmp_path, "run", config, "--output", output, "--json")
    assert program.wait() == 0, program.stderr
    summary = json.loads(program.stdout.splitlines()[-1])
    assert summary["rounds_completed"] == 2
    assert 7.9 < summary["epsilon"] <= 8
    assert {client["epsilon"] for client in summary["clients"]} == {summary["epsilon"]}
    # What was shown of the last round is what the ledgers say.
    shown = re.findall(r"epsilon ([0-9.]+) of 8", program.stderr)
    assert float(shown[-1]) == pytest.approx(summary["epsilon"], abs=0.01)
    first = [r for r in records(output / "ledger/sums.jsonl") if r["kind"] == "intent"]
    spent = float(first[0]["spend"]["epsilon_pld"])
    assert float(shown[0]) == pytest.approx(spent, abs=0.01)
    assert [r["spend"]["charges"] for r in first] == [2, 4]
    assert main(["ledger", "verify", str(output)]) == 0
    assert "4 charges" in capsys.readouterr().out


# The summary and what is printed.


def test_the_last_line_on_standard_output_is_the_summary(finished):
    assert json.loads(finished.stdout.splitlines()[-1]) == finished.summary


def test_the_summary_has_the_fields_that_other_programs_rely_on(finished):
    promised = {
        "epsilon",
        "delta",
        "target_epsilon",
        "rounds_completed",
        "rounds_aborted",
        "clients",
        "reward_before",
        "reward_after",
        "seconds",
    }
    assert finished.summary.keys() == promised | {"plan_digest", "survivors"}
    for client in finished.summary["clients"]:
        assert client.keys() == {"name", "reward_before", "reward_after", "epsilon"}


def test_the_summary_says_what_happened(finished):
    summary = finished.summary
    assert (summary["rounds_completed"], summary["rounds_aborted"]) == (2, 0)
    assert [client["name"] for client in summary["clients"]] == list(NAMES)
    assert summary["survivors"] == list(NAMES)
    assert summary["target_epsilon"] == 8.0
    assert summary["delta"] == 1e-5
    assert 7.9 < summary["epsilon"] <= 8.0
    assert summary["epsilon"] == max(c["epsilon"] for c in summary["clients"])
    for when in ("reward_before", "reward_after"):
        values = [client[when] for client in summary["clients"]]
        assert all(0 <= value <= 1 for value in values)
        assert summary[when] == pytest.approx(np.mean(values))


def test_without_a_terminal_the_output_is_plain_lines(finished):
    assert "\x1b" not in finished.stdout + finished.stderr
    assert "\r" not in finished.stderr
    lines = finished.stderr.splitlines()
    for number in (1, 2):
        (line,) = [text for text in lines if text.startswith(f"round {number}/2: ")]
        assert re.search(r"epsilon \d+\.\d+ of 8\b", line)
        assert "4 of 4 clients" in line
        assert " to go" in line


def test_the_end_names_the_adapter_the_ledgers_and_how_to_verify(finished):
    for word in ("adapter", "ledger", "summary.json"):
        assert f"{finished.output / word}" in finished.stderr
    assert f"fgrpo ledger verify {finished.output}" in finished.stderr


# The folder.


def test_the_folder_holds_what_is_promised_and_nothing_else(finished):
    names = {path.name for path in finished.output.iterdir()}
    # Where it was asked for, and could be made.
    assert names - {"tracking"} == {
        "adapter",
        "clients",
        "config.toml",
        "keys",
        "ledger",
        "plan.json",
        "server",
        "summary.json",
    }
    ledgers = {path.name for path in (finished.output / "ledger").glob("*.jsonl")}
    assert ledgers == {f"{name}.jsonl" for name in (*NAMES, "server")}
    keys = {path.name for path in (finished.output / "keys").iterdir()}
    assert keys == {f"{name}.pub" for name in (*NAMES, "server")}


def test_private_state_is_open_to_its_owner_alone(finished):
    for place in ("clients", "server"):
        top = finished.output / place
        assert mode(top) == 0o700
        for path in top.rglob("*"):
            wanted = 0o700 if path.is_dir() else 0o600
            if place == "clients" or path.suffix == ".key":
                assert mode(path) == wanted, path


def test_the_keys_folder_holds_the_public_halves_of_the_identities(finished):
    for name in (*NAMES, "server"):
        own = finished.output / ("server" if name == "server" else f"clients/{name}")
        seed = (own / "identity.key").read_bytes()
        pinned = read_key_file(finished.output / f"keys/{name}.pub")
        assert isinstance(pinned, VerifyKey)
        assert pinned == SigningKey(seed).verify_key


def test_the_resolved_configuration_loads_to_the_same_plan(finished):
    given, _ = load_config(str(finished.config))
    resolved, _ = load_config(str(finished.output / "config.toml"))
    assert resolved == given


def test_the_ledgers_record_every_round_in_order(finished):
    for name in NAMES:
        rounds = [*CLIENT_ROUND, *CLIENT_ROUND]
        wanted = ["opened", "cosigned", *rounds, "cosigned", "closed"]
        assert kinds(finished.output / f"ledger/{name}.jsonl") == wanted
    wanted = ["opened", *SERVER_ROUND, *SERVER_ROUND, "closed"]
    found = kinds(finished.output / "ledger/server.jsonl")
    assert len(found) == len(wanted)
    assert found.count("published") == 2


def test_every_client_has_cosigned_the_whole_log(finished):
    lines = (finished.output / "ledger/server.jsonl").read_bytes().splitlines()
    note = parse_note((finished.output / "ledger/checkpoint").read_bytes())
    assert note.checkpoint.size == len(lines)
    assert [one.name for one in note.signatures] == [note.checkpoint.origin, *NAMES]
    sizes = {int(path.stem) for path in (finished.output / "ledger/log").iterdir()}
    # The opening, the end of each round, and the end of the run.
    assert sizes == {1, 5, 9, 10}


def test_every_ledger_names_the_one_plan(finished):
    text = (finished.output / "plan.json").read_bytes()
    digest = Plan.from_json(parse_canonical_json(text)).digest
    assert digest == finished.summary["plan_digest"]
    for name in (*NAMES, "server"):
        opened = records(finished.output / f"ledger/{name}.jsonl")[0]
        assert opened["plan_digest"] == digest


# The ledgers verify, and nothing else does.


def test_the_second_verifier_passes_every_real_run_that_the_first_passes(
    finished, output
):
    folder = second.Folder(finished.output, unfinished=False, tolerance=0.0)
    folder.check()
    assert folder.findings == []
    spent = {c["name"]: c["epsilon"] for c in finished.summary["clients"]}
    assert {name: float(figure) for name, figure in folder.spends().items()} == spent
    (output / "ledger/server.jsonl").write_bytes(b"")
    again = second.Folder(output, unfinished=False, tolerance=0.0)
    again.check()
    assert {finding.rule for finding in again.findings} >= {1}


def test_the_ledgers_verify(finished, capsys):
    assert main(["ledger", "verify", str(finished.output)]) == 0
    shown = capsys.readouterr().out
    assert "verifies" in shown
    for name in NAMES:
        assert name in shown


def flipped(data):
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def lines(change):
    def changed(data):
        parts = data.splitlines(keepends=True)
        change(parts)
        return b"".join(parts)

    return changed


SPOILT = {
    "a flipped byte": flipped,
    "a line dropped": lines(lambda parts: parts.pop(3)),
    "two lines swapped": lines(lambda parts: parts.insert(3, parts.pop(4))),
    "a line doubled": lines(lambda parts: parts.insert(3, parts[3])),
    "the end cut": lines(lambda parts: parts.pop()),
    "all cut": lambda data: b"",
}


@pytest.mark.parametrize("party", ["count", "server"])
@pytest.mark.parametrize("change", SPOILT.values(), ids=SPOILT.keys())
def test_a_spoilt_ledger_does_not_verify(output, capsys, party, change):
    path = output / f"ledger/{party}.jsonl"
    path.write_bytes(change(path.read_bytes()))
    assert main(["ledger", "verify", str(output)]) == 1
    assert f"{party}.jsonl" in capsys.readouterr().out


def test_a_ledger_that_is_missing_does_not_verify(output, capsys):
    (output / "ledger/sort.jsonl").unlink()
    assert main(["ledger", "verify", str(output)]) == 1
    assert "sort" in capsys.readouterr().out


def test_a_summary_that_understates_epsilon_does_not_verify(output):
    path = output / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(summary | {"epsilon": 1.0}))
    assert main(["ledger", "verify", str(output)]) == 1


def test_a_single_ledger_file_verifies(finished, capsys):
    path = finished.output / "ledger" / "sums.jsonl"
    assert main(["ledger", "verify", str(path)]) == 0
    assert "sums" in capsys.readouterr().out


def test_the_ledgers_are_shown_in_words(finished, capsys):
    assert main(["ledger", "show", str(finished.output)]) == 0
    shown = capsys.readouterr().out
    for name in (*NAMES, "server"):
        assert f"{name}.jsonl" in shown
    assert "epsilon" in shown


# The adapter.


def test_peft_loads_the_adapter_and_it_changes_the_model(finished):
    base = AutoModelForCausalLM.from_pretrained(ASSETS / "tiny")
    ids = torch.arange(2, 10)[None]
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, finished.output / "adapter").eval()
        after = adapted(ids).logits
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_the_adapter_scores_again_what_the_summary_says(finished, capsys):
    adapter = str(finished.output / "adapter")
    arguments = ["eval", str(finished.config), "--adapter", adapter, "--json"]
    assert main(arguments) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    wanted = {c["name"]: c["reward_after"] for c in finished.summary["clients"]}
    assert scores["clients"] == pytest.approx(wanted)
    assert scores["reward"] == pytest.approx(finished.summary["reward_after"])


def test_the_last_published_digest_is_that_of_the_servers_checkpoint(finished):
    from fgrpo_secure.checkpoint import read_checkpoint

    published = [
        record
        for record in records(finished.output / "ledger/server.jsonl")
        if record["kind"] == "published"
    ]
    last = bytes.fromhex(published[-1]["adapter_after"])
    kept = read_checkpoint(finished.output / "server", last)
    assert adapter_digest(kept.adapter) == last
    # Each round starts from what the round before published.
    assert published[1]["adapter_before"] == published[0]["adapter_after"]


# What must not be seen; `test_leaks.py` looks for the rest.


def decoded(path):
    """A public file's bytes, and what its base64 hides."""
    data = path.read_bytes()
    yield data
    if path.suffix == ".jsonl":
        for record in records(path):
            yield json.dumps(record).encode()


def everything_public(finished):
    for path in public_files(finished.output):
        for data in decoded(path):
            yield path.name, data
    yield "standard output", finished.stdout.encode()
    yield "standard error", finished.stderr.encode()


def test_local_metrics_stay_in_the_clients_own_folder(finished):
    for name in NAMES:
        (path,) = (finished.output / "clients" / name).glob("run-*/metrics.jsonl")
        notes = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert [entry["round"] for entry in notes] == [1, 2]
        for entry in notes:
            mean = str(entry["mean_reward"]).encode()
            for part, data in everything_public(finished):
                assert len(mean) < 6 or mean not in data, part


# A folder that is finished stays as it is.


def test_a_finished_folder_is_refused(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.output.rglob("*")}
    code = main(["run", str(finished.config), "--output", str(finished.output)])
    shown = capsys.readouterr()
    assert code == 5
    assert "finished" in shown.err
    after = {p: p.stat().st_mtime_ns for p in finished.output.rglob("*")}
    assert after == before


def test_a_folder_with_other_files_is_refused_and_left_alone(
    finished, tmp_path, capsys
):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["run", str(finished.config), "--output", str(tmp_path)]) == 5
    assert "not a run" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.tex"]
