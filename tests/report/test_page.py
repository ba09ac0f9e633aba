"""The page: it stands alone, says what the ledgers say, and cannot be broken out of."""

import json
import math
import re
import shutil
from decimal import Decimal

import pytest

from fgrpo_secure.cli import main
from fgrpo_secure.report import Refuted, write_report
from fgrpo_secure.report.figures import at_most, epsilon_text, noise_text
from fgrpo_secure.report.reasons import in_words
from privacy.accountant import epsilon_pld
from privacy.attacker import Tradeoff
from privacy.contribution import registered_event
from privacy.ledger import Reason, priced
from privacy.plan import Plan
from privacy.wire import parse_canonical_json
from tests.privacy.ledger.synthetic import payloads
from tests.report import runs
from tests.report.conftest import KINDS
from tests.report.pages import parsed, rows, words

EVIL = "<script>alert(1)</script>"
CLIENTS = ["alpha", "beta", "gamma"]


def plan_of(folder):
    return Plan.from_json(parse_canonical_json((folder / "plan.json").read_bytes()))


# It stands alone.


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_is_well_formed_and_needs_nothing_else(made, kind):
    folder = made(kind)
    text = (folder / "report.html").read_text("utf-8")
    # Not even as the name of a format.
    assert "//" not in text
    assert not re.search(r"https?:|data:|javascript:", text)
    page = parsed(folder)
    tags = {element.tag for element in page.iter()}
    assert not tags & {"script", "link", "img", "iframe", "a", "object", "form", "base"}
    for element in page.iter():
        for name, value in element.attrib.items():
            assert not name.startswith("on"), name
            assert name not in {"src", "action"}
            if name == "href":
                assert value.startswith("#")
    for address in re.findall(r"url\(([^)]*)\)", text):
        assert address.startswith("#")
    assert "@import" not in text
    policies = [
        element.get("content")
        for element in page.iter("meta")
        if element.get("http-equiv") == "Content-Security-Policy"
    ]
    (policy,) = policies
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")


@pytest.mark.parametrize("kind", KINDS)
def test_every_id_of_the_page_is_there_once_and_every_reference_meets_one(made, kind):
    page = parsed(made(kind))
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    text = (made(kind) / "report.html").read_text("utf-8")
    named = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert set(named) <= set(ids)


def test_the_plots_text_is_text_and_their_colours_are_the_pages(made):
    page = parsed(made("private"))
    drawings = list(page.iter("svg"))
    assert len(drawings) >= 4
    for drawing in drawings:
        assert drawing.get("aria-label")
        assert list(drawing.iter("text"))
        colours = " ".join(element.get("style", "") for element in drawing.iter())
        assert not re.search(r"#[0-9a-f]{6}", colours)
        assert "var(--" in colours
        assert "font-family" not in colours


def test_equal_folders_give_equal_files(made, tmp_path):
    written = made("private")
    again = shutil.copytree(written, tmp_path / written.name)
    for name in ("report.html", "claim.json"):
        (again / name).unlink()
    write_report(again, None, unfinished=False)
    for name in ("report.html", "claim.json"):
        assert (again / name).read_bytes() == (written / name).read_bytes()


# It says what the ledgers say.


def test_the_first_paragraph_states_a_bound_that_other_figures_confirm(made):
    """The bound is computed anew, from epsilon at many deltas, and may be no larger."""
    folder = made("private")
    plan = plan_of(folder)
    event = priced(registered_event(plan, "alpha"))
    deltas = [10 ** (-k / 4) for k in range(4, 24)]
    pairs = [(epsilon_pld(event, 3, delta), delta) for delta in deltas]
    coarse = Tradeoff(tuple(pairs))
    first = next(parsed(folder).iter("p")).itertext()
    lead = words(folder)
    assert "right 50% of the time" in lead
    stated = float(re.search(r"is right at most ([0-9.]+)% of the time", lead)[1])
    total_variation = 100 * coarse.accuracy
    assert 50 < stated <= math.ceil(10 * total_variation) / 10
    assert "All its ledgers verify." in " ".join(first)
    for word in ("three data owners", "prompt", "coordinator"):
        assert word in lead.lower()


def test_epsilon_stands_in_the_page_as_in_the_ledgers(made):
    folder = made("private")
    for row in rows(folder, "Epsilon by client"):
        last = [
            record
            for record in payloads(folder / f"ledger/{row[0]}.jsonl")
            if record["kind"] == "intent"
        ][-1]
        # Charged, and promised: all that was registered was charged here.
        for cell in row[3:5]:
            assert float(cell) == pytest.approx(
                float(last["spend"]["epsilon_pld"]), abs=1e-4
            )
            # Rounded up, never down.
            assert Decimal(cell) >= Decimal(last["spend"]["epsilon_pld"])
        assert row[2] == f"{last['spend']['charges']} of 3"


def test_every_round_stands_in_the_table_with_who_was_missing(made):
    table = rows(
        made("private"), "By the server's ledger, which the clients' ledgers bear out"
    )
    assert [row[0] for row in table] == ["1", "2", "3"]
    assert [row[1] for row in table] == [
        "published",
        "aborted: too few clients for a sum",
        "published",
    ]
    assert [row[2] for row in table] == ["3 of 3", "0 of 3", "2 of 3"]
    assert table[2][-1] == "gamma"
    assert [row[3] for row in table] == ["3", "3", "3"]


def test_an_attackers_success_is_stated_at_both_rates_and_by_guessing(made):
    table = rows(made("private"), "An attacker who knows all the data but one unit")
    assert [row[1] for row in table] == ["50%", "1%", "0.1%"]
    for row in table:
        assert float(row[2].rstrip("%")) >= float(row[1].rstrip("%"))


def test_what_is_not_covered_stands_on_every_page(made):
    for kind in ("private", "local", "by a column"):
        said = words(made(kind))
        assert "on one machine, and whoever owns that machine can see all" in said
        # That they did run there is not known either.
        assert "no ledger says where a program ran" in said
        assert "They cannot show that a party's program did what it recorded" in said
        assert "is for you to compare with them" in said


def test_a_unit_by_a_column_is_named_and_trusted_to_be_right(made):
    said = words(made("by a column"))
    assert "single patient_id (all rows with one value of that column)" in said
    assert "the column patient_id says truly whose each row is" in said
    assert "several values of patient_id" in said
    assert "patient_id" not in words(made("private"))


def test_trust_decides_against_whom_it_holds(made):
    shared, local = words(made("private")), words(made("local"))
    assert "must have added their noise" in shared
    assert "In each sum 1 owner, the one whose data it is among them" in shared
    assert "Each owner's own noise is enough for its own data" in local
    assert "In each sum" not in local
    assert "all other clients together" in local


def test_a_run_without_noise_says_loudly_that_it_promises_nothing(made):
    folder = made("without noise")
    said = words(folder)
    assert "No privacy: epsilon is infinity" in said
    assert "promises nothing to anybody" in said
    boxes = [e.get("class") for e in parsed(folder).iter("section")]
    assert boxes[0] == "box bad"
    table = rows(folder, "An attacker who knows all the data but one unit")
    assert {row[2] for row in table} == {"100%"}
    for name in rows(folder, "Epsilon by client"):
        assert name[3:] == ["infinity", "infinity", "infinity", "100%"]
    for name in rows(folder, "Epsilon by data set"):
        assert name[4:] == ["infinity", "infinity", "its run's", "100%"]
    # No smaller number is anywhere called an epsilon.
    assert not re.search(r"epsilon (of )?[0-9]", said)


@pytest.mark.parametrize(
    ("kind", "place", "cap"),
    [("second of two", "1 before", "20"), ("first of two", "1 after", "5")],
)
def test_other_runs_of_the_same_data_are_counted_and_told(made, kind, place, cap):
    said = words(made(kind))
    assert "The same data are in other runs of these ledgers" in said
    assert f"alpha ({place}), beta ({place}) and gamma ({place})" in said
    assert f"promise epsilon {cap} at delta 0.0001" in said
    claim = json.loads((made(kind) / "claim.json").read_bytes())["claim"]
    limits = claim["clients"][0]["data_set"]["attacker"]
    found = re.search(
        r"right at most ([0-9.]+)% of the time, and finds at most ([0-9.]+)% where it "
        r"may be wrong about 1 in 100 and ([0-9.]+)% where .* 1 in 1,000",
        said,
    )
    exact = [limits["accuracy_at_even_odds"], *limits["true_positive_rate"].values()]
    for shown, share in zip(found.groups(), exact, strict=True):
        assert Decimal(shown) >= 100 * Decimal(repr(share))
        assert float(shown) <= 100 * share + 0.1
    of_run = {row[0]: row for row in rows(made(kind), "Epsilon by client")}
    for row in rows(made(kind), "Epsilon by data set"):
        assert row[1] == "2"
        assert float(row[4]) > float(of_run[row[0]][4])
        assert (row[3], row[6]) == ("0.0001", f"{Decimal(cap):.4f}")
    assert "in other runs" not in words(made("private"))


def test_a_refusal_stands_with_its_reason_in_words(made):
    caption = "What clients declined; nothing left them for it"
    assert rows(made("refusing"), caption) == [
        [
            "gamma",
            "the plan as a whole",
            "the site's policy asks for more clients",
            "policy_cohort",
        ]
    ]
    assert rows(made("private"), caption) is None


def test_a_plan_that_a_site_declined_stands_with_its_reason_in_words(made):
    table = rows(made("declining"), "What clients declined; nothing left them for it")
    assert table == [
        [
            "gamma",
            "the plan, before opening it, of another run",
            "the site's policy allows less epsilon",
            "policy_epsilon",
        ],
        [
            "gamma",
            "the plan, before opening it",
            "the site's operator has not approved it",
            "not_approved",
        ],
    ]


def test_a_run_that_came_to_nothing_because_a_site_declined_says_why(tmp_path):
    with runs.priced_run(tmp_path / "run") as run:
        runs.decline(run, "beta", Reason.POLICY_MODEL)
    found = write_report(tmp_path / "run", None, unfinished=False)
    assert isinstance(found, Refuted)
    ((client, what, reason, _),) = rows(
        tmp_path / "run", "What clients declined; nothing left them for it"
    )
    assert (client, what) == ("beta", "the plan, before opening it")
    assert reason == "the site's policy does not list this base model"
    said = words(tmp_path / "run")
    assert "Nothing is claimed about this run" in said
    assert "epsilon" not in said


def test_every_code_of_a_ledger_has_words():
    said = {in_words(reason) for reason in Reason}
    assert len(said) == len(Reason)
    for text in said:
        assert "_" not in text


def test_a_run_without_a_result_is_not_called_a_training(made):
    said = words(made("all aborted"))
    assert "set out to train one language model" in said
    assert "0 of 1 round gave a result, so that the model is as it was" in said
    assert "trained one language model" not in said
    # What was charged may be known to the coordinator all the same.
    assert "right at most 50.3% of the time" in said


def test_colluders_are_told_in_the_first_paragraphs(made):
    said = words(made("colluding"))
    assert "any one other client, also where it works with the coordinator" in said
    assert "In each sum 2 owners, the one whose data it is among them" in said
    assert "more owners working together than that" in said


def test_a_bound_is_rounded_up_and_what_protects_is_rounded_down():
    for share in (0.5030000001, 0.503, 0.01, 0.0011, 0.9900001, 0.99999, 0.1234):
        shown = at_most(share).rstrip("%")
        assert Decimal(shown) >= 100 * Decimal(repr(share))
        assert float(shown) < 100 * share + 0.11
    assert at_most(0.503) == "50.3%"
    assert at_most(0.5030000000000001) == "50.4%"
    assert at_most(1.0) == at_most(0.999999) == "100%"
    assert epsilon_text(Decimal("0.10000000001")) == "0.1001"
    assert epsilon_text(Decimal("Infinity")) == "infinity"
    assert noise_text(1.41499999) == "1.414"
    assert noise_text(12345.9) == "12340"
    assert noise_text(0.00123456) == "0.001234"


# A run that has not ended.


def test_a_run_that_has_not_ended_is_reported_only_on_request(tmp_path, capsys):
    folder = runs.unfinished(tmp_path / "run")
    assert main(["report", str(folder)]) == 1
    capsys.readouterr()
    said = words(folder)
    assert "Nothing is claimed" in said
    assert "--unfinished" in said
    assert main(["report", str(folder), "--unfinished"]) == 0
    said = words(folder)
    assert "This run has not ended" in said
    assert "Once every round that is registered has run" in said
    table = rows(folder, "By the server's ledger, which the clients' ledgers bear out")
    assert [row[1] for row in table] == ["published", "not ended"]
    # Two of three charges are recorded; what is promised is of all three.
    plan = plan_of(folder)
    event = priced(registered_event(plan, "alpha"))
    whole = Tradeoff(
        tuple((epsilon_pld(event, 3, d), d) for d in (0.001, 0.003, 0.01, 0.02))
    )
    stated = float(re.search(r"is right at most ([0-9.]+)% of the time", said)[1])
    assert stated <= 100 * whole.accuracy + 0.1
    few = Tradeoff(((epsilon_pld(event, 1, 1e-12 + 0.01), 0.01),))
    assert few.accuracy < whole.accuracy


# It cannot be broken out of, and believes nothing that nobody signed.


def test_a_hostile_name_of_the_folder_stays_text(made, tmp_path):
    folder = shutil.copytree(
        made("private"), tmp_path / f"{EVIL[:8]}&amp;\"'\x1b\u202e"
    )
    write_report(folder, None, unfinished=False)
    text = (folder / "report.html").read_text("utf-8")
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>&amp;\"'" in words(folder)


def test_a_hostile_unit_stays_text(tmp_path):
    folder = runs.finished(tmp_path / "run", unit=EVIL, max_prompts_per_unit=2)
    write_report(folder, None, unfinished=False)
    assert "<script" not in (folder / "report.html").read_text("utf-8")
    assert EVIL in words(folder)
    assert json.loads((folder / "claim.json").read_bytes())["verified"]


def test_a_hostile_file_in_the_folder_is_named_and_stays_text(folder):
    (folder / "ledger" / "<img src=x onerror=alert(1)>").write_text("")
    write_report(folder, None, unfinished=False)
    assert "<img" not in (folder / "report.html").read_text("utf-8")
    assert "<img src=x onerror=alert(1)>" in words(folder)


@pytest.mark.parametrize(
    "value", [EVIL, float("nan"), 1e308, -1, True, [EVIL], {EVIL: EVIL}, None, 2]
)
def test_a_score_that_is_none_is_not_shown(folder, value):
    path = folder / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    for client in summary["clients"]:
        client |= {"reward_before": value, "reward_after": value}
    text = json.dumps(summary | {"seconds": value})
    path.write_text(text.replace("NaN", "null"))
    write_report(folder, None, unfinished=False)
    said = words(folder)
    assert "No score is shown" in said
    assert "script" not in (folder / "report.html").read_text("utf-8")
    assert rows(folder, "Mean held-out reward, rescaled to 0 to 1") is None


def test_scores_of_public_sets_stand_before_and_after(folder):
    path = folder / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    for number, client in enumerate(summary["clients"]):
        client |= {"reward_before": 0.25, "reward_after": 0.5 + number / 10}
    path.write_text(json.dumps(summary))
    write_report(folder, None, unfinished=False)
    assert rows(folder, "Mean held-out reward, rescaled to 0 to 1") == [
        ["alpha", "0.250", "0.500", "+0.250"],
        ["beta", "0.250", "0.600", "+0.350"],
        ["gamma", "0.250", "0.700", "+0.450"],
    ]
    drawn = [svg.get("aria-label") for svg in parsed(folder).iter("svg")]
    assert "Held-out reward" in drawn
