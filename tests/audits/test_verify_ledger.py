"""The second verifier: alone, beside the first, and on every lie among the vectors."""

import ast
import hashlib
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from fgrpo_secure.cli import main
from privacy.crypto import SigningKey
from privacy.errors import MalformedMessageError
from privacy.ledger import (
    cap_order,
    claimed_epsilon,
    filter_epsilon,
    price_charges,
    split_views,
    verify_federation,
    verify_run,
)
from privacy.ledger.merkle import Tree
from privacy.ledger.records import Event
from privacy.ledger.terms import read_terms
from tests.audits.ledger_folders import (
    ROOT,
    SCRIPT,
    VECTORS,
    altered_bytes,
    altered_records,
    read,
    second,
    verdicts,
    write,
)
from tests.privacy.ledger.synthetic import CLIENTS, make_plan
from tests.vectors import ledger_cases
from tests.vectors.ledger_story import Story, applied

CASES = json.loads((VECTORS / "cases.json").read_bytes())
VALID = [case["name"] for case in CASES["valid"]]
HONEST = {name: read(name) for name in VALID}


def run(*arguments, isolated="-I"):
    """The script as an auditor runs it."""
    command = [sys.executable, isolated, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False
    )


# --- The vectors ----------------------------------------------------------------------


def test_the_vectors_are_what_the_program_writes():
    made = ledger_cases.files()
    committed = [path for path in VECTORS.rglob("*") if path.is_file()]
    assert {path.relative_to(VECTORS).as_posix() for path in committed} == set(made)
    for name, data in made.items():
        assert (VECTORS / name).read_bytes() == data, (
            f"{name} is not what `python -m tests.vectors.make` writes"
        )


def test_there_are_lies_about_every_rule():
    assert {case["rule"] for case in CASES["bad"]} == set(range(1, 21))
    assert len(CASES["bad"]) > 210


@pytest.mark.parametrize("case", CASES["valid"], ids=VALID)
def test_both_verifiers_pass_an_honest_folder(case):
    folder = VECTORS / case["name"]
    assert verdicts(folder, unfinished=case["unfinished"]) == ([], [])


@pytest.mark.parametrize("case", CASES["bad"], ids=[c["name"] for c in CASES["bad"]])
def test_both_verifiers_find_a_lie_and_the_second_names_its_rule(case, tmp_path):
    folder = write(applied(HONEST[case["folder"]], case["edits"]), tmp_path / "run")
    first, again = verdicts(folder, unfinished=case["unfinished"], tolerance=1e-3)
    assert first
    assert case["rule"] in {finding.rule for finding in again}


def test_an_unfinished_run_verifies_only_where_that_is_allowed():
    first, again = verdicts(VECTORS / "unfinished", unfinished=False)
    assert first
    assert {finding.rule for finding in again} == {10, 13}


# --- Both verifiers on what nobody thought of -----------------------------------------


@pytest.mark.parametrize("alter", [altered_records, altered_bytes])
@pytest.mark.parametrize("name", VALID)
def test_both_verifiers_agree_on_folders_altered_at_random(alter, name, tmp_path):
    """Thousands of seeds were tried when the second verifier was written."""
    verdict = Counter()
    for seed in range(12):
        files = alter(HONEST[name], f"{name} {seed}")
        if files is None:
            continue
        folder = write(files, tmp_path / "run")
        first, again = verdicts(folder, unfinished=name.endswith("unfinished"))
        assert bool(first) == bool(again), (seed, first, again)
        verdict[bool(first)] += 1
    assert verdict[True] > 3


PLANS = {
    "format": ["fgrpo-secure/plan/2", None],
    "trust": ["distributed ", "both", None, 1],
    "unit": [None, 1],
    "rounds": [0, -1, True, "3", 2**53],
    "local_steps": [2, 0],
    "inner_steps": [2, "1"],
    "modulus_bits": [0, None],
    "min_survivors": [0, 2.0],
    "colluders": [-1, False],
    "epsilon": ["0", "8.0", "1e1", 8, "-1", "1" * 19, "Infinity", "nan"],
    "delta": ["0", "1", "infinity", "2", "0.50", ".5"],
    "norm_bound": [0, "1024"],
    "noise_variance": [4194304, "04", "-1", "9" * 40],
    "statistic_norm_bound": [-1, "16"],
    "statistic_variance": [4096, ""],
    "clients": [
        [],
        {},
        None,
        [1],
        [{"name": "alpha"}],
        [{"name": "server", "sampling_rate": "1/2"}],
        [{"name": "../alpha", "sampling_rate": "1/2"}],
        [
            {"name": "beta", "sampling_rate": "1/2"},
            {"name": "alpha", "sampling_rate": "1/2"},
        ],
        [{"name": "alpha", "sampling_rate": "1/2"}] * 2,
        [{"name": "alpha", "sampling_rate": "2/4"}],
        [{"name": "alpha", "sampling_rate": "3/2"}],
        [{"name": "alpha", "sampling_rate": 0.5}],
        [{"name": f"c{n:03d}", "sampling_rate": "1/2"} for n in range(201)],
    ],
}


@pytest.mark.parametrize("term", PLANS)
def test_both_verifiers_refuse_the_same_plans(term):
    plan = make_plan().to_json()
    second.check_plan(plan)
    read_terms(plan)
    for value in PLANS[term]:
        with pytest.raises(second.BrokenError):
            second.check_plan(plan | {term: value})
        with pytest.raises(MalformedMessageError):
            read_terms(plan | {term: value})


# --- An outsider who puts files into the folder ---------------------------------------


@pytest.mark.parametrize("place", ["keys", "ledger", "ledger/log"])
@pytest.mark.parametrize("name", [b"\x1b[2K\r\nrun: verified", b"\xff.note"])
def test_the_name_of_a_file_cannot_write_over_what_is_said_of_it(
    place, name, tmp_path, capsys
):
    folder = write(HONEST["cosigned"], tmp_path / "run")
    (folder / place / os.fsdecode(name)).write_bytes(b"")
    done = run(folder)
    assert done.returncode == main(["ledger", "verify", str(folder)]) == 1
    for shown in (done.stdout, capsys.readouterr().out):
        assert all(line.isprintable() for line in shown.split("\n"))
        assert not any(line.startswith("run: verified") for line in shown.split("\n"))


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("summary.json", 2**24),
        ("plan.json", 2**24),
        ("keys/alpha.pub", 2**24),
        ("ledger/log/9.note", 2**24),
        ("ledger/checkpoint", 2**24),
        ("ledger/alpha.jsonl", 2**30),
    ],
)
def test_a_file_that_is_too_large_is_named_and_not_read(
    name, most, tmp_path, monkeypatch
):
    folder = write(HONEST["cosigned"], tmp_path / "run")
    with (folder / name).open("ab") as handle:
        handle.truncate(most + 1)
    whole = Path.read_bytes

    def read_bytes(path):
        assert path.stat().st_size <= most
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    first, again = verdicts(folder)
    assert any(str(problem).startswith(f"{name}: missing, too") for problem in first)
    assert any("is larger than" in finding.text for finding in again)


# --- Several folders ------------------------------------------------------------------


@pytest.fixture
def split(tmp_path):
    """Two folders, each of one run as a server showed it; it showed two histories."""
    story = Story(HONEST["cosigned"])
    story.of("server", "roster")["roster_hash"] = "11" * 32
    folders = [VECTORS / "cosigned", write(story.written(), tmp_path / "other")]
    for folder in folders:
        assert verdicts(folder) == ([], [])
    return folders


def test_two_histories_that_each_verify_are_found_together(split):
    folders = [second.Folder(f, unfinished=False, tolerance=0.0) for f in split]
    for folder in folders:
        folder.check()
    second.find_split_views(folders)
    assert folders[0].findings == []
    assert {finding.rule for finding in folders[1].findings} == {15}
    both = [root for folder in split for root in verify_run(folder).roots]
    assert split_views(both)


def test_two_servers_ledgers_that_part_ways_are_found_though_nobody_vouched(tmp_path):
    """Each line is signed and says what all before it were, at any size."""
    story = Story(HONEST["three_rounds"])
    story.of("server", "roster")["roster_hash"] = "11" * 32
    paths = [VECTORS / "three_rounds", write(story.written(), tmp_path / "other")]
    folders = [second.Folder(p, unfinished=False, tolerance=0.0) for p in paths]
    for folder in folders:
        folder.check()
    second.find_split_views(folders)
    assert folders[0].findings == []
    (found,) = folders[1].findings
    assert (found.file, found.line, found.rule) == ("ledger/server.jsonl", 3, 15)
    (split,) = split_views([root for path in paths for root in verify_run(path).roots])
    assert "two histories of 3 lines" in split


def test_the_script_takes_several_folders(split):
    done = run(*split, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert [folder["verified"] for folder in told["folders"]] == [True, False]
    done = run(split[0], split[0])
    assert done.returncode == 0
    assert done.stdout.count("verified; compare the keys") == 2


def test_the_script_checks_each_cohort_and_what_joins_them(tmp_path):
    done = run(VECTORS / "cohorts")
    assert done.returncode == 0
    assert done.stdout.count("verified; compare the keys") == 4
    told = json.loads(run(VECTORS / "cohorts", "--json").stdout)
    assert [len(folder["parties"]) for folder in told["folders"]] == [4, 4, 4, 0]
    name = "bad_adapter_moved_by_a_sum_that_is_made_up"
    (case,) = (c for c in CASES["bad"] if c["name"] == name)
    folder = write(applied(HONEST["cohorts"], case["edits"]), tmp_path / "run")
    done = run(folder)
    assert done.returncode == 1
    assert done.stdout.count("verified; compare the keys") == 3
    assert done.stdout.endswith(f"{folder}: NOT VERIFIED: 1 finding\n")
    name = "bad_cohort_in_which_a_charge_is_left_out"
    (case,) = (c for c in CASES["bad"] if c["name"] == name)
    done = run(write(applied(HONEST["cohorts"], case["edits"]), folder))
    assert done.returncode == 1
    assert done.stdout.endswith(f"{folder}: NOT VERIFIED: see its cohorts\n")


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES["bad"]
        if case["rule"] in {18, 19, 20} and case["folder"].startswith("cohorts")
    ],
    ids=lambda case: case["name"],
)
def test_each_cohort_bears_the_lies_that_the_others_contradict(case, tmp_path):
    files = applied(HONEST[case["folder"]], case["edits"])
    folder = write(files, tmp_path / "run")
    may = case["unfinished"]
    reports, between = verify_federation(folder, unfinished=may)
    assert len(reports) > 1
    assert between
    assert all(report.ok for report in reports.values())


def test_a_cohort_alone_does_not_explain_how_others_moved_its_adapter():
    folders = [VECTORS / "cohorts" / f"cohort-{n:04d}" for n in (1, 2, 3)]
    for folder, ok in zip(folders, (False, False, True), strict=True):
        first, again = verdicts(folder)
        assert (not first) == ok
        assert {finding.rule for finding in again} == (set() if ok else {19})


# --- The log --------------------------------------------------------------------------


def test_its_tree_has_the_roots_of_ours_at_every_size():
    lines = [f"line {number}".encode() for number in range(70)]
    roots = second.roots_of(lines)
    assert roots[0] == hashlib.sha256(b"").hexdigest()
    assert roots == [Tree(lines[:size]).root().hex() for size in range(71)]


def test_the_note_of_the_page_is_read_as_it_says():
    page = (ROOT / "docs/ledger.md").read_text("utf-8")
    line_example = page.split("### An example")[1].split("```\n")[1]
    note_example = page.split("An example, with the signer")[1].split("```\n")[1]
    key, _, _, line, _ = line_example.splitlines()
    root, _, *text = note_example.splitlines(keepends=True)
    note = second.parse_note("".join(text).encode())
    assert second.roots_of([line.encode()])[1] == root.strip() == note.root
    assert note.text == second.checkpoint_text(note.origin, 1, note.root)
    alpha = SigningKey(bytes(range(32, 64))).verify_key.raw
    for raw, signature in zip(
        (bytes.fromhex(key), alpha), note.signatures, strict=True
    ):
        name, short, signed = signature
        assert short == second.key_id(name, raw)
        assert second.is_signed(raw, signed, note.text)
    handle = second.open_line(line.encode(), bytes.fromhex(key))["run"]
    assert second.origin_of(handle) == note.origin


# --- Its own accountant ---------------------------------------------------------------


def random_event(rng):
    """Events of all sizes, those without a price among them."""
    below = rng.choice([1, 2, 50, 10**4, 10**9, 10**30])
    rate = Fraction(rng.randint(1, below), below)
    statistic = rng.random() < 0.5
    return Event(
        sampling_rate=rate,
        inner_steps=rng.choice([1, 1, 2, 7]),
        norm_bound=rng.choice([1, 32, 1024, 2**40]),
        noise_variance=rng.choice([0, 4, 5, 1000, 2**22, 2**30, 2**90, 10**38]),
        statistic_norm_bound=rng.choice([0, 1, 16, 4096]) if statistic else 0,
        statistic_variance=rng.choice([0, 4, 9, 4096, 2**40]) if statistic else 0,
    )


def as_json(event):
    return {
        "sampling_rate": f"{event.sampling_rate.numerator}/"
        f"{event.sampling_rate.denominator}",
        "inner_steps": event.inner_steps,
        "norm_bound": event.norm_bound,
        "noise_variance": str(event.noise_variance),
        "statistic_norm_bound": event.statistic_norm_bound,
        "statistic_variance": str(event.statistic_variance),
    }


def test_its_renyi_accountant_and_ours_give_the_same_digits():
    rng = random.Random("figures")  # noqa: S311
    prices = Counter()
    for _ in range(60):
        event, count = random_event(rng), rng.choice([1, 3, 100, 10**6])
        delta = Decimal(rng.choice(["0.00001", "0.1", "0.000000000001"]))
        order, cap = rng.randint(2, 256), Decimal(rng.choice(["0.5", "8", "100"]))
        theirs = second.Event.of(as_json(event))
        figure = second.rdp_epsilon({theirs: count}, delta, [order])
        ours = filter_epsilon(((event, count),), delta, order)
        assert second.agrees(str(ours), figure)
        assert cap_order(event, cap, delta) == second.filter_order(theirs, cap, delta)
        prices[ours.is_finite()] += 1
    assert min(prices.values()) > 10


def test_its_figures_by_pld_have_the_digits_of_ours():
    rng = random.Random("losses")  # noqa: S311
    for _ in range(6):
        event = Event(
            sampling_rate=Fraction(1, rng.choice([1, 20, 1000])),
            inner_steps=1,
            norm_bound=1024,
            noise_variance=rng.choice([2**20, 2**22, 2**24]),
            statistic_norm_bound=16,
            statistic_variance=4096,
        )
        count, delta = rng.randint(1, 40), Decimal("0.00001")
        pld, rdp = price_charges(((event, count),), delta, 40)
        theirs = second.Event.of(as_json(event))
        assert second.agrees(str(pld), second.pld_epsilon(theirs, count, 40, delta))
        orders = second.ORDERS
        figure = second.rdp_epsilon({theirs: count}, delta, orders)
        assert second.agrees(str(rdp), figure)
        assert pld < rdp


@pytest.mark.parametrize(
    ("count", "registered", "delta"),
    [
        (1, 10**6 + 1, "0.00001"),
        (1, 1, "0.00000000000001"),
        (10**6, 10**6, "0.000000001"),
    ],
)
def test_both_accountants_have_no_figure_by_pld_in_the_same_cases(
    count, registered, delta
):
    event = Event(Fraction(1, 50), 1, 1024, 2**22, 0, 0)
    price, _ = price_charges(((event, count),), Decimal(delta), registered)
    theirs = second.Event.of(as_json(event))
    figure = second.pld_epsilon(theirs, count, registered, Decimal(delta))
    assert price.is_infinite() == (figure == math.inf)


def test_a_figure_a_millionth_off_is_not_the_same_figure():
    assert second.agrees("1.234568", 1.2345671)
    assert not second.agrees("1.234567", 1.2345671)
    assert not second.agrees("1.234569", 1.2345671)
    assert second.agrees("1.234", 1.2345671, tolerance=1e-3)
    assert not second.agrees("1.23", 1.2345671, tolerance=1e-3)
    assert second.agrees("infinity", math.inf)
    assert not second.agrees("1000000", math.inf)
    assert not second.agrees("infinity", 1.0)


# --- The page and the script ----------------------------------------------------------


def test_the_example_of_the_page_is_read_as_it_says():
    page = (ROOT / "docs/ledger.md").read_text("utf-8")
    example = page.split("### An example")[1].split("```")[1].strip().splitlines()
    key, name, payload, line, head = example
    assert second.fingerprint(bytes.fromhex(key)) == name
    assert second.open_line(line.encode(), bytes.fromhex(key)) == json.loads(payload)
    assert second.head_of(line.encode()) == head


def test_it_has_every_rule_of_the_page_and_no_other():
    page = (ROOT / "docs/ledger.md").read_text("utf-8")
    part = page.split("## What a verifier checks")[1].split("\n## ")[0]
    numbers = {
        int(line.split(".")[0])
        for line in part.splitlines()
        if line.split(".")[0].isdigit()
    }
    assert numbers == {case["rule"] for case in CASES["bad"]}


def test_it_can_be_read_from_the_top():
    """No part uses a name that only a later part defines."""
    text = SCRIPT.read_text("utf-8")
    tree = ast.parse(text)
    starts = [n for n, line in enumerate(text.splitlines(), 1) if line[:5] == "# ---"]
    assert len(starts) > 8

    def part(line):
        return sum(start < line for start in starts)

    defined = {}
    for node in tree.body:
        names = [getattr(node, "name", None)]
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        for target in filter(None, targets):
            names += [n.id for n in ast.walk(target) if isinstance(n, ast.Name)]
        for name in filter(None, names):
            defined.setdefault(name, part(node.lineno))
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    early = {n.id for n in used if part(n.lineno) < defined.get(n.id, 0)}
    assert early == set()


def test_it_imports_the_standard_library_and_one_package():
    """And `dp_accounting`, where that is installed, inside of one function."""
    tree = ast.parse(SCRIPT.read_bytes())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(
            "."
        )[0]
        for node in imports
    }
    assert roots - sys.stdlib_module_names == {"cryptography", "dp_accounting"}
    lazy = [n for n in imports if n not in tree.body]
    assert [node.module for node in lazy] == ["dp_accounting.pld"]


def test_it_runs_with_nothing_of_ours():
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['verify_ledger.py', {str(VECTORS / 'one_round')!r}]\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print('status', end.code)\n"
        "roots = {name.split('.')[0] for name in sys.modules}\n"
        "print('ours', sorted(roots & {'privacy', 'fgrpo_secure', 'audits'}))\n"
    )
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["status 0", "ours []"]


def test_without_dp_accounting_it_says_what_it_did_not_compute(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "dp_accounting.pld", None)
    second.pld_epsilon.cache_clear()
    folder = second.Folder(VECTORS / "three_rounds", unfinished=False, tolerance=0.0)
    folder.check()
    told = second.report(folder)
    assert told["verified"]
    assert "dp-accounting is not installed" in told["notes"][0]
    assert "note: epsilon_pld was not computed" in second.words(told)
    name = "bad_renyi_figure_understated_in_the_last_digit"
    (case,) = (c for c in CASES["bad"] if c["name"] == name)
    lying = write(applied(HONEST[case["folder"]], case["edits"]), tmp_path / "run")
    _, findings = verdicts(lying)
    second.pld_epsilon.cache_clear()
    assert {finding.rule for finding in findings} == {5}


def test_an_auditor_is_told_the_file_the_line_and_the_rule(tmp_path):
    (case,) = (c for c in CASES["bad"] if c["name"] == "bad_rate_lowered")
    folder = write(applied(HONEST[case["folder"]], case["edits"]), tmp_path / "run")
    done = run(folder)
    assert done.returncode == 1
    assert done.stdout == (
        "ledger/alpha.jsonl:10: rule 5: the event is not the plan's\n"
        f"{folder}: NOT VERIFIED: 1 finding\n"
    )
    told = json.loads(run(folder, "--json").stdout)
    assert not told["verified"]
    assert told["folders"][0]["findings"] == [
        {
            "file": "ledger/alpha.jsonl",
            "line": 10,
            "rule": 5,
            "text": "the event is not the plan's",
        }
    ]


def test_an_auditor_is_told_what_was_spent_and_whose_keys_these_are():
    done = run(VECTORS / "cosigned")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "verified; compare the keys with the parties" in lines[-1]
    told = json.loads(run(VECTORS / "cosigned", "--json").stdout)["folders"][0]
    folder = second.Folder(VECTORS / "cosigned", unfinished=False, tolerance=0.0)
    folder.check()
    assert told == second.report(folder)
    for name, key in folder.keys.items():
        party = told["parties"][name]
        assert party["key"] == second.fingerprint(key)
        assert f"{name}: {party['lines']} lines, key {party['key']}" in lines
    assert {told["parties"][name]["cosigned"] for name in CLIENTS} == {6}
    epsilon = told["parties"]["alpha"]["epsilon"]
    assert (
        f"    epsilon {epsilon} at delta 0.00001; saw 6 lines of the server's" in lines
    )


def test_there_must_be_something_to_verify(tmp_path):
    done = run(tmp_path / "nowhere")
    assert done.returncode == 2
    assert "is no folder" in done.stderr
    assert run(tmp_path).returncode == 1
    page = run("--help").stdout
    for words in ("Exit status: 0", "docs/ledger.md", "--unfinished", "--json"):
        assert words in page


def test_the_claimed_epsilons_are_those_of_the_first_verifier():
    for name in VALID:
        unfinished = name == "unfinished"
        report = verify_run(VECTORS / name, unfinished=unfinished)
        folder = second.Folder(VECTORS / name, unfinished=unfinished, tolerance=0.0)
        folder.check()
        assert folder.spends() == {
            party: claimed_epsilon(spend) for party, spend in report.spends.items()
        }
