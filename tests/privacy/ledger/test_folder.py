import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.ledger import (
    Aborted,
    Ledger,
    Published,
    Reason,
    Role,
    Roster,
    RoundOpened,
    ServerClosed,
    Status,
    Survivors,
    plan_digest,
    show,
    verify_run,
    write_key_file,
)
from privacy.ledger.chain import read_chain
from privacy.ledger.envelope import line_hash
from privacy.plan import SERVER
from tests.privacy.ledger.synthetic import (
    CLIENTS,
    RUN,
    SyntheticClient,
    SyntheticRun,
    adapter_after,
    adapter_before,
    digest,
    forge,
    make_key,
    make_plan,
    payloads,
    price,
)


def check(directory, **options):
    return verify_run(directory, price=price, **options)


def found(directory, **options):
    """The problems as text, of which there must be one."""
    problems = [str(problem) for problem in check(directory, **options).problems]
    assert problems
    return "\n".join(problems)


def rewrite(directory, name, change, key=None):
    """A party changes its own records and signs its ledger again."""
    path = directory / f"ledger/{name}.jsonl"
    records = payloads(path)
    change(records)
    path.write_bytes(forge(records, key or make_key(name)))
    head = directory / f"ledger/{name}.jsonl.head"
    head.unlink(missing_ok=True)
    return path


def follow_server(directory):
    """Give the clients' records the hashes of a server's ledger that was rewritten."""
    lines = (directory / "ledger/server.jsonl").read_bytes().splitlines()
    heads = {}
    for line, record in zip(
        lines, payloads(directory / "ledger/server.jsonl"), strict=True
    ):
        if record["kind"] in {"published", "aborted"}:
            heads[record["round"]] = line_hash(line).hex()
    for name in CLIENTS:

        def change(records):
            for record in records:
                if record["kind"] == "outcome":
                    record["server_head"] = heads[record["round"]]

        rewrite(directory, name, change)


def test_an_honest_run_verifies_and_is_summed_up(run_folder):
    report = check(run_folder)
    assert report.problems == ()
    assert report.ok
    assert (report.published, report.aborted, report.run) == (2, 1, RUN)
    assert report.plan_digest == make_plan().digest_bytes
    assert {name: spend.charges for name, spend in report.spends.items()} == {
        "alpha": 3,
        "beta": 3,
        "gamma": 3,
    }


def test_a_run_with_the_servers_rewritten_hashes_still_verifies(run_folder):
    # So that the tests below find the lie itself and not the rewriting.
    rewrite(run_folder, SERVER, lambda records: None)
    follow_server(run_folder)
    assert check(run_folder).problems == ()


def test_a_byte_flipped_in_any_file_of_the_run_is_found(run_folder):
    files = [
        *run_folder.glob("ledger/*"),
        *run_folder.glob("keys/*"),
        run_folder / "plan.json",
    ]
    assert len(files) == 13
    for path in sorted(files):
        data = path.read_bytes()
        for place in range(0, len(data), max(1, len(data) // 15)):
            flipped = bytearray(data)
            flipped[place] ^= 1 << (place % 8)
            path.write_bytes(flipped)
            assert path.name.split(".")[0] in found(run_folder)
        path.write_bytes(data)
    assert check(run_folder).ok


def test_all_problems_are_collected_with_their_places(run_folder):
    for name, line in (("alpha", 3), ("beta", 7)):
        path = run_folder / f"ledger/{name}.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[line - 1] = lines[line - 1].replace(b'"sig":"', b'"sig":"A', 1)
        path.write_bytes(b"".join(lines))
    (run_folder / "keys/gamma.pub").unlink()
    (run_folder / "summary.json").unlink()
    text = found(run_folder)
    for place in (
        "ledger/alpha.jsonl:3: ",
        "ledger/alpha.jsonl:4: it does not link",
        "ledger/beta.jsonl:7: ",
        "keys/gamma.pub: missing",
    ):
        assert place in text


@pytest.mark.parametrize(
    "name",
    [
        "plan.json",
        "summary.json",
        "keys/alpha.pub",
        "keys/server.pub",
        "ledger/alpha.jsonl",
        "ledger/server.jsonl",
    ],
)
def test_a_missing_file_is_found(run_folder, name):
    (run_folder / name).unlink()
    assert f"{name}: missing" in found(run_folder)
    (run_folder / name).mkdir()
    assert f"{name}: missing" in found(run_folder)


@pytest.mark.parametrize("name", ["ledger", "keys"])
def test_a_missing_folder_is_found(run_folder, name):
    shutil.rmtree(run_folder / name)
    assert f"{name}: missing" in found(run_folder)


@pytest.mark.parametrize("name", ["ledger/delta.jsonl", "keys/delta.pub", "ledger/x"])
def test_a_file_of_no_party_is_found(run_folder, name):
    shutil.copy(run_folder / "ledger/alpha.jsonl", run_folder / name)
    assert "a file of no party" in found(run_folder)


def test_a_folder_that_does_not_exist_is_a_report_and_not_a_crash(tmp_path):
    assert "plan.json: missing" in found(tmp_path / "nowhere")


def test_a_ledger_signed_by_another_key_is_found(run_folder):
    rewrite(run_folder, "alpha", lambda records: None, make_key("mallory"))
    assert "ledger/alpha.jsonl:1: signed under another key" in found(run_folder)


def test_a_key_replaced_in_the_folder_and_in_one_ledger_is_found(run_folder):
    mallory = make_key("mallory")
    write_key_file(run_folder / "keys/alpha.pub", mallory.verify_key)

    def change(records):
        records[0]["roster"]["alpha"] = mallory.verify_key.raw.hex()

    rewrite(run_folder, "alpha", change, mallory)
    text = found(run_folder)
    assert "ledger/beta.jsonl:1: it pins other keys" in text
    assert "ledger/server.jsonl:1: it pins other keys" in text


def test_a_ledger_in_the_place_of_another_is_found(run_folder):
    shutil.copy(run_folder / "ledger/alpha.jsonl", run_folder / "ledger/beta.jsonl")
    assert "ledger/beta.jsonl:1: " in found(run_folder)


def test_another_plan_in_one_place_is_found(run_folder):
    plan = json.loads((run_folder / "plan.json").read_bytes())
    (run_folder / "plan.json").write_text(json.dumps(plan | {"recipe": "cd" * 32}))
    text = found(run_folder)
    for name in ("alpha", "beta", "gamma", "server"):
        assert f"ledger/{name}.jsonl:1: opened under another plan than plan" in text


def test_a_client_with_another_plan_than_the_servers_is_found(run_folder):
    (run_folder / "plan.json").unlink()

    def change(records):
        records[0]["plan"]["recipe"] = "cd" * 32
        records[0]["plan_digest"] = plan_digest(records[0]["plan"]).hex()

    rewrite(run_folder, "alpha", change)
    text = found(run_folder)
    assert "ledger/alpha.jsonl:1: opened under another plan than the server" in text


def test_a_clients_ledger_in_the_place_of_the_servers_is_found(run_folder):
    for folder, suffix in (("ledger", "jsonl"), ("keys", "pub")):
        source = run_folder / f"{folder}/alpha.{suffix}"
        shutil.copy(source, run_folder / f"{folder}/server.{suffix}")
    (run_folder / "ledger/server.jsonl.head").unlink()
    assert "ledger/server.jsonl:1: a record of another party" in found(run_folder)


def test_a_survivor_without_a_commitment_is_found_in_an_unfinished_run(run_folder):
    def change(records):
        place = records.index(server_record(records, "commit", 3))
        del records[place:]

    rewrite(run_folder, "alpha", change)
    text = found(run_folder, unfinished=True)
    assert "ledger/alpha.jsonl:9: round 3: in the published sum without a" in text


def test_a_round_without_an_outcome_is_found_once_the_run_has_ended(run_folder):
    def change(records):
        records.remove(server_record(records, "outcome", 3))
        again = records[0] | {"run": "22" * 16}
        spend = records[-1]["spend"] | {
            "charges": 0,
            "epsilon_pld": "0",
            "epsilon_rdp": "0",
        }
        records[-1] |= {"run": "22" * 16, "spend": spend, "published": 0}
        records[-1] |= {"aborted": 0, "records": len(records) + 1}
        records[-1]["lifetime"] |= {"claimed": "rdp", "epsilon_pld": "infinity"}
        records.insert(-1, again)

    rewrite(run_folder, "alpha", change)
    assert "ledger/alpha.jsonl:9: round 3: it has no outcome" in found(run_folder)


def test_a_plan_that_is_written_for_people_is_the_same_plan(run_folder):
    plan = json.loads((run_folder / "plan.json").read_bytes())
    (run_folder / "plan.json").write_text(json.dumps(plan, indent=2) + "\n")
    assert check(run_folder).ok


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"rounds":1.5}',
        '{"rounds":NaN}',
        '{"a":1,"a":1}',
        "[" * 100_000,
        '{"rounds":' + "9" * 6000 + "}",
        '"\\ud800"',
        '{"format":"\\ud800"}',
    ],
)
def test_a_plan_that_is_none_is_found(run_folder, text):
    (run_folder / "plan.json").write_text(text)
    assert "plan.json: " in found(run_folder)
    (run_folder / "summary.json").write_text(text)
    found(run_folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rounds", 0),
        ("rounds", "3"),
        ("rounds", True),
        ("epsilon", "NaN"),
        ("epsilon", 8),
        ("delta", "0"),
        ("delta", "1E-999999999"),
        ("clients", []),
        ("clients", [{"name": "server"}]),
        ("clients", [{"units": 3}]),
        ("clients", ["alpha"]),
        ("unit", None),
        ("colluders", -1),
        ("colluders", None),
        ("format", "fgrpo-secure/plan/2"),
        ("noise_variance", None),
    ],
)
def test_a_plan_without_a_term_is_found(run_folder, name, value):
    plan = json.loads((run_folder / "plan.json").read_bytes())
    (run_folder / "plan.json").write_text(json.dumps(plan | {name: value}))
    assert "plan.json: " in found(run_folder)


def server_record(records, kind, number):
    return next(r for r in records if r["kind"] == kind and r.get("round") == number)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("published", "adapter_after", "11" * 32),
        ("published", "transcript", "11" * 32),
        ("round_opened", "offer_digest", "11" * 32),
        ("published", "heads", {"alpha": "11" * 32}),
        ("published", "survivors", ["alpha", "gamma"]),
        ("published", "survivors", ["alpha", "beta", "gamma"]),
        ("published", "survivors", ["alpha"]),
        ("published", "adapter_before", "11" * 32),
        ("round_opened", "adapter_digest", "11" * 32),
    ],
)
def test_a_server_that_records_another_round_than_it_showed_is_found(
    run_folder, kind, field, value
):
    def change(records):
        server_record(records, kind, 3)[field] = value
        if field == "survivors":
            server_record(records, "survivors", 3)[field] = value

    rewrite(run_folder, SERVER, change)
    follow_server(run_folder)
    found(run_folder)


def test_a_server_that_claims_to_have_aborted_a_round_that_it_opened_is_found(
    run_folder,
):
    def change(records):
        place = records.index(server_record(records, "published", 3))
        records[place] = {
            name: records[place][name]
            for name in ("v", "seq", "prev", "party", "role", "run", "round", "attempt")
        } | {"kind": "aborted", "reason": "below_threshold", "dropouts": []}
        records[-1] |= {"published": 1, "aborted": 2}

    rewrite(run_folder, SERVER, change)
    follow_server(run_folder)
    text = found(run_folder)
    assert "ledger/alpha.jsonl:12: round 3: a sum that the server's" in text


def test_a_server_that_leaves_out_a_round_is_found(run_folder):
    def change(records):
        records[:] = [record for record in records if record.get("round") != 3]
        records[-1] |= {"published": 1, "records": len(records)}

    rewrite(run_folder, SERVER, change)
    text = found(run_folder)
    assert "ledger/alpha.jsonl:9: round 3: the server's ledger does not have" in text


def test_a_server_that_rewrites_its_ledger_afterwards_is_found(run_folder):
    def change(records):
        server_record(records, "roster", 1)["roster_hash"] = "11" * 32

    rewrite(run_folder, SERVER, change)
    assert "ledger/alpha.jsonl:5: round 1: the server's ledger hash" in found(
        run_folder
    )


def test_a_client_that_leaves_out_its_last_round_is_found(run_folder):
    def change(records):
        records[:] = [record for record in records if record.get("round") != 3]
        spent = records[-2 - 1]
        assert spent["kind"] == "intent"
        records[-1] |= {"published": 1, "records": len(records)}
        records[-1] |= {"spend": spent["spend"], "lifetime": spent["lifetime"]}

    rewrite(run_folder, "alpha", change)
    assert "ledger/server.jsonl:9: ledger/alpha.jsonl has no" in found(run_folder)


@pytest.mark.parametrize(
    ("kind", "field", "value", "what"),
    [
        ("joined", "offer_digest", "11" * 32, "joined another offer"),
        ("joined", "adapter_digest", "11" * 32, "joined with another adapter"),
        ("outcome", "transcript", "11" * 32, "transcript than the server's"),
        ("outcome", "adapter_digest", "11" * 32, "adapter or transcript"),
        ("outcome", "survivors", ["alpha", "beta", "gamma"], "other survivors"),
        ("outcome", "server_head", "11" * 32, "the server's ledger hash"),
        ("commit", "commitment", "11" * 32, "the ledger hash that the server"),
    ],
)
def test_a_client_that_records_another_round_than_the_server_is_found(
    run_folder, kind, field, value, what
):
    def change(records):
        server_record(records, kind, 3)[field] = value

    rewrite(run_folder, "alpha", change)
    text = found(run_folder)
    assert "ledger/alpha.jsonl:" in text
    assert what in text


def test_a_server_head_of_a_line_before_the_rounds_end_is_found(run_folder):
    # The hash of `survivors` of round 3: a real line, but it reports no sum yet.
    line = (run_folder / "ledger/server.jsonl").read_bytes().splitlines()[10]

    def change(records):
        server_record(records, "outcome", 3)["server_head"] = line_hash(line).hex()

    rewrite(run_folder, "alpha", change)
    assert "ledger/alpha.jsonl:12: round 3: the server's ledger" in found(run_folder)


@pytest.mark.parametrize(
    ("reason", "status", "committed"),
    [
        *((reason, "missed", True) for reason in Reason),
        ("interrupted", "missed", False),
        ("interrupted", "aborted", True),
        ("interrupted", "aborted", False),
    ],
)
def test_a_survivor_must_have_committed_and_may_only_have_missed_the_news(
    run_folder, reason, status, committed
):
    def change(records):
        outcome = server_record(records, "outcome", 3)
        outcome |= {"status": status, "reason": reason, "survivors": []}
        outcome |= dict.fromkeys(("adapter_digest", "server_head", "transcript"))
        records[-1]["published"] = 1
        records[-1][status] += 1
        if not committed:
            records.remove(server_record(records, "commit", 3))
            records[-1]["records"] = len(records)

    path = rewrite(run_folder, "alpha", change)
    lines = path.read_bytes().splitlines()

    def heads(records):
        server_record(records, "published", 1)["heads"] = {}
        server_record(records, "published", 3)["heads"] = {}

    rewrite(run_folder, SERVER, heads)
    hashes = {}
    server = (run_folder / "ledger/server.jsonl").read_bytes()
    for entry in read_chain(server, "", None).entries:
        hashes[getattr(entry.record, "round", 0), entry.record.kind] = entry.head

    def follow(records):
        for record in records:
            if record["kind"] == "outcome" and record["server_head"]:
                number = record["round"]
                kind = "aborted" if number == 2 else "published"
                record["server_head"] = hashes[number, kind].hex()

    for name in CLIENTS:
        rewrite(run_folder, name, follow)
    problems = [str(problem) for problem in check(run_folder).problems]
    assert len(lines) == (13 if committed else 12)
    expected = set()
    if not committed:
        expected |= {"in the published sum without a commitment"}
    if status == "aborted":
        expected |= {"recorded as aborted, but the server published a sum"}
    assert {problem.split(": ")[-1] for problem in problems} == expected


def test_a_remembered_head_that_does_not_fit_is_found(run_folder):
    head = run_folder / "ledger/alpha.jsonl.head"
    shutil.copy(run_folder / "ledger/beta.jsonl.head", head)
    assert "ledger/alpha.jsonl.head: it remembers another end" in found(run_folder)
    head.unlink()
    assert check(run_folder).ok


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 4.4},
        {"epsilon": "4.50001"},
        {"epsilon": None},
        {"epsilon": True},
        {"delta": 1e-6},
        {"target_epsilon": 9},
        {"rounds_completed": 3},
        {"rounds_aborted": 0},
        {"clients": []},
        {"clients": None},
        {"clients": [{"name": "alpha", "epsilon": 4.50001}] * 3},
        {"clients": [{"name": name, "epsilon": 1} for name in CLIENTS]},
        {"epsilon": 10**400},
        {"plan_digest": "00" * 32},
        {"plan_digest": None},
        {"survivors": ["alpha", "beta", "gamma"]},
        {"survivors": []},
        {"survivors": "alpha beta"},
    ],
)
def test_a_summary_that_says_something_else_is_found(run_folder, change):
    path = run_folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    text = found(run_folder)
    assert text.splitlines()[0].startswith("summary.json: ")


def test_a_summary_may_leave_out_what_stands_elsewhere(run_folder):
    path = run_folder / "summary.json"
    summary = json.loads(path.read_text())
    assert summary.pop("plan_digest") == make_plan().digest
    assert summary.pop("survivors") == ["alpha", "beta"]
    path.write_text(json.dumps(summary))
    assert check(run_folder).ok


def test_a_summary_without_a_published_round_has_no_survivors(tmp_path):
    run = SyntheticRun(tmp_path)
    run.open()
    run.gather(1)
    run.abort(1)
    run.finish()
    run.close_files()
    assert json.loads((tmp_path / "summary.json").read_text())["survivors"] == []
    assert check(tmp_path).ok


def begun_round(directory, plan=None):
    """A round that all three clients joined and that has no roster yet."""
    run = SyntheticRun(directory, plan)
    run.open()
    run.server.append(RoundOpened(1, 1, digest("offer", 1), adapter_before(1)))
    for name in CLIENTS:
        run.clients[name].join(1)
    return run


def ended(run):
    """Finish and verify: what is said of which file."""
    run.finish()
    run.close_files()
    return [str(problem) for problem in check(run.directory).problems]


def survivors_of(sharers, survivors):
    return Survivors(1, 1, sharers, survivors, digest("sharers"), digest("survivors"))


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("published", [True, False])
def test_a_charge_outside_the_recorded_roster_is_a_hidden_sum(
    tmp_path, published, committed
):
    run = begun_round(tmp_path)
    run.server.append(Roster(1, 1, ("alpha", "beta"), digest("roster", 1)))
    for client in run.clients.values():
        client.intent(1)
    if committed:
        run.clients["gamma"].commit(1)
    run.clients["gamma"].outcome(1, Status.MISSED, Reason.DEADLINE)
    if published:
        run.publish(1, ("alpha", "beta"), members=("alpha", "beta"))
    else:
        run.abort(1, members=("alpha", "beta"))
    (problem,) = ended(run)
    assert "ledger/gamma.jsonl:3: round 1: charged, but not in the roster" in problem


HALF = digest("of gamma's half")
ROSTER, SHARERS = "another roster than", "other sharers than"


@pytest.mark.parametrize(
    ("shown", "published", "found"),
    [
        ({}, True, ""),
        ({}, False, ""),
        ({"roster_hash": HALF}, True, ROSTER),
        ({"roster_hash": HALF}, False, ROSTER),
        ({"sharers_hash": HALF}, True, SHARERS),
        # The server came to no survivors, with whom it writes the sharers down.
        ({"sharers_hash": HALF}, False, ""),
    ],
)
def test_an_auditor_sees_a_hidden_half_behind_a_false_roster(
    tmp_path, shown, published, found
):
    """The server's roster has the names of both halves: no name contradicts it."""
    run = SyntheticRun(tmp_path)
    run.open()
    run.gather(1, shown={"alpha": {}, "gamma": shown})
    run.clients["gamma"].outcome(1, Status.MISSED, Reason.DEADLINE)
    if published:
        for name in ("alpha", "beta"):
            run.clients[name].commit(1)
        run.server.append(survivors_of_round(1))
    run.abort(1, members=("alpha", "beta"))
    problems = ended(run)
    assert len(problems) == bool(found)
    where = "ledger/gamma.jsonl:3: round 1: it was shown "
    assert all(problem.startswith(where + found) for problem in problems)


def survivors_of_round(number):
    """Two vectors came; what was hidden is with gamma."""
    sharers = digest("sharers", number)
    return Survivors(number, 1, CLIENTS, ("alpha", "beta"), sharers, digest("x"))


@pytest.mark.parametrize("ended_round", [False, True])
def test_a_roster_that_was_shown_is_in_the_servers_ledger_at_the_rounds_end(
    tmp_path, ended_round
):
    run = begun_round(tmp_path)
    run.clients["alpha"].shown(1)
    if ended_round:
        run.abort(1)
    run.close_files()
    found = check(tmp_path, unfinished=True).problems
    assert [problem.what for problem in found] == ended_round * [
        "round 1: it was shown another roster than the server recorded"
    ]


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("published", [True, False])
def test_a_charge_outside_the_recorded_sharers_is_a_hidden_sum(
    tmp_path, published, committed
):
    run = begun_round(tmp_path)
    run.server.append(Roster(1, 1, CLIENTS, digest("roster", 1)))
    for client in run.clients.values():
        client.intent(1)
    if committed:
        run.clients["gamma"].commit(1)
    run.clients["gamma"].outcome(1, Status.MISSED, Reason.DEADLINE)
    pair = ("alpha", "beta")
    if published:
        run.publish(1, pair, members=pair)
    else:
        for name in pair:
            run.clients[name].commit(1)
        run.server.append(survivors_of(pair, pair))
        run.abort(1, members=pair)
    (problem,) = ended(run)
    assert "ledger/gamma.jsonl:3: round 1: charged, but not among the sha" in problem


def test_a_client_that_joined_too_late_and_charged_nothing_verifies(tmp_path):
    run = begun_round(tmp_path)
    pair = ("alpha", "beta")
    run.server.append(Roster(1, 1, pair, digest("roster", 1)))
    for name in pair:
        run.clients[name].intent(1)
    run.clients["gamma"].outcome(1, Status.MISSED, Reason.DEADLINE)
    run.publish(1, pair, members=pair)
    assert ended(run) == []


def test_a_charge_in_an_attempt_that_ended_without_a_roster_stands(tmp_path):
    run = begun_round(tmp_path)
    run.clients["gamma"].intent(1)
    run.abort(1)
    assert ended(run) == []


def test_late_sharers_who_charged_and_sent_nothing_in_time_verify(tmp_path):
    run = begun_round(tmp_path)
    run.server.append(Roster(1, 1, CLIENTS, digest("roster", 1)))
    for client in run.clients.values():
        client.intent(1)
    run.clients["gamma"].commit(1)
    run.publish(1, ("alpha", "beta"))
    assert ended(run) == []


@pytest.mark.parametrize("hidden", ["commit", "intent", "nothing"])
def test_a_counted_client_cannot_hide_its_charge_behind_an_aborted_attempt(
    tmp_path, hidden
):
    run = begun_round(tmp_path)
    run.server.append(Roster(1, 1, CLIENTS, digest("roster", 1)))
    for name, client in run.clients.items():
        if name != "beta" or hidden != "intent":
            client.intent(1)
            if name != "beta" or hidden != "commit":
                client.commit(1)
    run.server.append(survivors_of(CLIENTS, CLIENTS))
    run.abort(1)
    problems = ended(run)
    if hidden == "nothing":
        assert problems == []
        return
    (problem,) = problems
    assert "ledger/beta.jsonl:" in problem
    assert problem.endswith("round 1: counted as a survivor without a commitment")


def test_a_client_outside_the_sum_cannot_say_that_the_attempt_was_aborted(tmp_path):
    run = begun_round(tmp_path)
    run.server.append(Roster(1, 1, CLIENTS, digest("roster", 1)))
    for client in run.clients.values():
        client.intent(1)
    run.clients["gamma"].outcome(1, Status.ABORTED, Reason.SERVER_ABORTED)
    pair = ("alpha", "beta")
    for name in pair:
        run.clients[name].commit(1)
    run.server.append(survivors_of(CLIENTS, pair))
    run.survivors = pair
    head = run.server.append(
        Published(
            round=1,
            attempt=1,
            survivors=pair,
            sum_digest=digest("sum"),
            adapter_before=adapter_before(1),
            adapter_after=adapter_after(1),
            transcript=digest("transcript"),
            heads={},
        )
    )
    for name in pair:
        run.clients[name].outcome(
            1,
            Status.PUBLISHED,
            survivors=pair,
            adapter_digest=adapter_after(1),
            server_head=head,
            transcript=digest("transcript"),
        )
    (problem,) = ended(run)
    assert "ledger/gamma.jsonl:4: round 1: recorded as aborted, but" in problem


@pytest.mark.parametrize("reported", ["roster", "aborted", "next", "closed", "none"])
def test_a_server_head_with_aborted_is_of_the_line_that_says_so(tmp_path, reported):
    run = begun_round(tmp_path)
    heads = {"none": None}
    heads["roster"] = run.server.append(Roster(1, 1, CLIENTS, digest("roster", 1)))
    heads["aborted"] = run.server.append(Aborted(1, 1, Reason.DEADLINE, ()))
    offer = digest("offer", 2), adapter_before(1)
    heads["next"] = run.server.append(RoundOpened(2, 1, *offer))
    run.server.append(Aborted(2, 1, Reason.DEADLINE, ()))
    history = run.server.history
    closed = ServerClosed(history.records + 1, history.published, history.aborted)
    heads["closed"] = run.server.append(closed)
    for client in run.clients.values():
        client.outcome(
            1, Status.ABORTED, Reason.SERVER_ABORTED, server_head=heads[reported]
        )
        client.close()
    run.write_summary()
    run.close_files()
    problems = [str(problem) for problem in check(tmp_path).problems]
    if reported in {"aborted", "none"}:
        assert problems == []
        return
    what = "round 1: the server's ledger hash is of no line that reports this round"
    assert problems == [f"ledger/{name}.jsonl:3: {what}" for name in CLIENTS]


def test_the_part_of_this_run_must_be_closed_and_not_only_the_last_record(tmp_path):
    run = SyntheticRun(tmp_path)
    run.open()
    run.rounds()
    run.clients["alpha"].open(run.roster, run=b"a later run.....")
    for client in run.clients.values():
        client.close()
    history = run.server.history
    run.server.append(ServerClosed(history.records + 1, history.published, 1))
    spent = run.clients["beta"].ledger.history.totals()[0].epsilon_pld
    each = [{"name": name, "epsilon": float(spent)} for name in CLIENTS]
    run.write_summary(epsilon=float(spent), clients=each)
    run.close_files()
    problems = [str(problem) for problem in check(tmp_path).problems]
    what = "its part of this run does not end in 'closed'"
    assert problems == [f"ledger/alpha.jsonl:12: {what}"]
    assert check(tmp_path, unfinished=True).ok


def test_a_sum_below_the_threshold_of_its_roster_is_found(run_folder):
    plan = json.loads((run_folder / "plan.json").read_bytes()) | {"colluders": 1}
    (run_folder / "plan.json").write_text(json.dumps(plan))

    def change(records):
        records[0] |= {"plan": plan, "plan_digest": plan_digest(plan).hex()}

    for name in (*CLIENTS, SERVER):
        rewrite(run_folder, name, change)
    text = found(run_folder)
    assert "ledger/server.jsonl:11: 2 survivors where a roster of 3 needs 3" in text


def test_an_unfinished_run_verifies_only_where_that_is_allowed(tmp_path):
    run = SyntheticRun(tmp_path)
    run.open()
    run.gather(1)
    run.publish(1, CLIENTS)
    run.gather(2)
    run.clients["alpha"].commit(2)
    assert check(tmp_path, unfinished=True).problems == ()
    text = found(tmp_path)
    assert "ledger/alpha.jsonl:8: the last record is not 'closed'" in text
    run.close_files()


def test_a_run_in_which_every_process_died_once_verifies(tmp_path):
    run = SyntheticRun(tmp_path)
    run.open()
    run.gather(1)
    run.close_files()
    resumed = {
        name: Ledger.open(
            tmp_path / f"ledger/{name}.jsonl",
            make_key(name),
            party=name,
            role=Role.SERVER if name == SERVER else Role.CLIENT,
        )
        for name in (*CLIENTS, SERVER)
    }
    run.server = resumed.pop(SERVER)
    run.clients = {
        name: SyntheticClient(ledger, run.plan) for name, ledger in resumed.items()
    }
    run.server.append(Aborted(1, 1, Reason.INTERRUPTED, ()))
    for client in run.clients.values():
        assert client.ledger.history.unfinished
        client.outcome(1, Status.MISSED, Reason.INTERRUPTED)
    run.finish()
    run.close_files()
    assert check(tmp_path).problems == ()


def test_a_client_with_an_earlier_run_in_its_ledger_verifies(tmp_path):
    run = SyntheticRun(tmp_path)
    for client in run.clients.values():
        client.open(run.roster, run=b"an earlier run..")
        client.join(1)
        client.intent(1)
        client.outcome(1, Status.MISSED, Reason.DEADLINE)
        client.close()
    run.open()
    run.rounds()
    run.finish()
    run.close_files()
    report = check(tmp_path)
    assert report.problems == ()
    assert report.spends["alpha"].charges == 3


def test_a_client_that_never_opened_the_run_is_found(tmp_path, run_folder):
    run = SyntheticRun(tmp_path)
    client = run.clients["alpha"]
    client.open(run.roster, run=b"an earlier run..")
    client.close()
    run.close_files()
    shutil.copy(tmp_path / "ledger/alpha.jsonl", run_folder / "ledger/alpha.jsonl")
    (run_folder / "ledger/alpha.jsonl.head").unlink()
    assert "ledger/alpha.jsonl: it has no record of the run" in found(run_folder)


def test_a_ledger_is_shown_in_one_line_a_record(run_folder):
    lines = show(run_folder / "ledger/alpha.jsonl")
    assert len(lines) == 14
    assert make_key("alpha").verify_key.fingerprint in lines[0]
    assert "intent 1.1: charge 1: epsilon 1.50001 (PLD)" in lines[3]
    assert "outcome 2.1: aborted (server_aborted)" in lines[8]
    assert "survivors 3.1: alpha beta" in "\n".join(
        show(run_folder / "ledger/server.jsonl")
    )


def test_a_damaged_ledger_is_shown_with_its_damage(run_folder):
    path = run_folder / "ledger/alpha.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b"rubbish \xff\x1b[2J\n"
    path.write_bytes(b"".join(lines) + b"torn")
    text = "\n".join(show(path))
    assert "    3  ! not JSON" in text
    assert "   14  ! the last line is cut short" in text
    assert "\x1b" not in text


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_bytes_in_any_file_crash_the_verifier(run_folder, data):
    files = sorted(path for path in run_folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=30)) + whole[end:])
    try:
        report = check(run_folder)
        check(run_folder, unfinished=True)
        if path.suffix == ".jsonl":
            show(path)
        changed = path.read_bytes() != whole
        assert report.ok is not changed or path.suffix == ".json"
    finally:
        path.write_bytes(whole)
