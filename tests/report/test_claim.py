"""The claim: every field is there, and is what ledgers and plan say."""

import json
from decimal import Decimal
from fractions import Fraction

import pytest

from fgrpo_secure.report.claim import FORMAT
from privacy.accountant import epsilon_pld
from privacy.attacker import Tradeoff, filter_limit, tradeoff
from privacy.contribution import registered_event
from privacy.ledger import priced
from privacy.plan import Plan
from privacy.renyi import epsilon_from_curve
from privacy.vectors import FloatVector
from tests.privacy.ledger.synthetic import RUN, payloads
from tests.report.conftest import KINDS
from tests.report.pages import words

# What NIST SP 800-226 and the OpenDP deployment registry ask a deployment to state.
FIELDS = {
    "sentence",
    "promises_privacy",
    "cohorts",
    "finished",
    "privacy_unit",
    "trust_model",
    "mechanism",
    "sampling",
    "steps",
    "statistic",
    "weights",
    "rounds",
    "privacy_loss",
    "clients",
    "attacker",
    "not_protected",
    "unprotected_quantities",
    "other_releases",
    "tuning",
    "audits",
    "assumptions",
    "evidence",
    "plan",
}


def claim_of(folder):
    said = json.loads((folder / "claim.json").read_bytes())
    assert said["format"] == FORMAT
    assert said["verified"] is True
    assert said["problems"] == []
    return said["claim"]


def plan_of(folder):
    return Plan.from_json(json.loads((folder / "plan.json").read_bytes()))


def last_spends(folder):
    """By client, the spend of the run's last intent in its ledger."""
    return {
        path.stem: [
            record["spend"]
            for record in payloads(path)
            if (record["kind"], record["run"]) == ("intent", RUN.hex())
        ][-1]
        for path in (folder / "ledger").glob("*.jsonl")
        if path.stem != "server"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_there(made, kind):
    claim = claim_of(made(kind))
    assert claim.keys() == FIELDS
    for name in FIELDS - {"audits", "finished", "promises_privacy", "statistic"}:
        assert claim[name], name


@pytest.mark.parametrize("kind", KINDS)
def test_the_terms_are_those_of_the_plan(made, kind):
    claim, plan = claim_of(made(kind)), plan_of(made(kind))
    assert claim["plan"] == plan.to_json()
    assert claim["promises_privacy"] is plan.promises_privacy
    unit = claim["privacy_unit"]
    assert (unit["unit"], unit["max_prompts_per_unit"]) == (
        plan.unit,
        plan.max_prompts_per_unit,
    )
    trust = claim["trust_model"]
    assert trust["model"] == plan.trust
    assert trust["clients"] == len(plan.clients)
    for name in ("min_survivors", "colluders", "threshold"):
        assert trust[name] == getattr(plan, name)
    assert trust["honest_noise_shares"] == plan.honest_shares
    mechanism = claim["mechanism"]
    for name in (
        "dimension",
        "norm_bound",
        "modulus_bits",
        "noise_multiplier",
        "rotation",
    ):
        assert mechanism[name] == getattr(plan, name)
    assert Fraction(mechanism["clip_norm"]) == plan.clip_norm
    assert Fraction(mechanism["scale"]) == plan.scale
    assert int(mechanism["noise_variance"]) == plan.noise_variance
    assert int(mechanism["noise_share_variance"]) == plan.noise_share_variance
    rates = {c.name: c.sampling_rate for c in plan.clients}
    stated = {n: Fraction(r) for n, r in claim["sampling"]["rates"].items()}
    assert stated == rates
    for name, batch in claim["sampling"]["expected_batches"].items():
        assert Fraction(batch) == plan.expected_batch(name)
    assert claim["steps"] == {
        "local_steps": plan.local_steps,
        "inner_steps": plan.inner_steps,
    }
    assert int(claim["statistic"]["noise_variance"]) == plan.statistic_variance
    assert claim["statistic"]["norm_bound"] == plan.statistic_norm_bound
    assert claim["weights"]["rule"] == plan.weighting.rule
    assert Fraction(claim["weights"]["least"]) == 1 / plan.weighting.max_weight_ratio


@pytest.mark.parametrize("kind", KINDS)
def test_the_spend_is_that_of_the_ledgers(made, kind):
    folder = made(kind)
    claim, spends = claim_of(folder), last_spends(folder)
    assert {client["name"] for client in claim["clients"]} == spends.keys()
    largest = Decimal(0)
    for client in claim["clients"]:
        spend = spends[client["name"]]
        for name in ("charges", "delta", "epsilon_pld", "epsilon_rdp"):
            assert client[name] == spend[name]
        assert client["epsilon"] == spend["epsilon_pld"]
        largest = max(largest, Decimal(spend["epsilon_pld"]))
    loss = claim["privacy_loss"]
    assert Decimal(loss["epsilon_spent"]) == largest
    plan = plan_of(folder)
    assert (loss["epsilon_target"], loss["delta"]) == (plan.epsilon, plan.delta)


@pytest.mark.parametrize("kind", KINDS)
def test_the_claim_is_of_all_registered_rounds_and_never_below_the_spend(made, kind):
    """A run of one round of three: what was seen may have decided on its end."""
    claim, plan = claim_of(made(kind)), plan_of(made(kind))
    loss = claim["privacy_loss"]
    assert Decimal(loss["epsilon"]) >= Decimal(loss["epsilon_spent"])
    if plan.promises_privacy:
        event = priced(registered_event(plan, "alpha"))
        whole = epsilon_pld(event, plan.registered_charges, float(plan.delta))
        assert Decimal(loss["epsilon"]) >= Decimal(whole)
        limits = tradeoff({event: plan.registered_charges}, Decimal(plan.delta))
        assert claim["attacker"]["accuracy_at_even_odds"] == limits.accuracy
    for client in claim["clients"]:
        assert client["registered"]["charges"] == plan.registered_charges


def test_a_run_that_ended_early_says_that_all_its_rounds_count(made):
    claim = claim_of(made("refusing"))
    loss = claim["privacy_loss"]
    assert claim["clients"][0]["charges"] == 1
    assert Decimal(loss["epsilon_spent"]) < Decimal(loss["epsilon"])
    assert f"epsilon at most {loss['epsilon']}" in claim["sentence"]
    said = words(made("refusing"))
    assert "Fewer charges than that were made" in said
    assert "Fewer charges than that" not in words(made("private"))


def test_the_rounds_are_those_of_the_servers_ledger(made):
    folder = made("private")
    rounds = claim_of(folder)["rounds"]
    records = payloads(folder / "ledger/server.jsonl")
    published = [r for r in records if r["kind"] == "published"]
    aborted = [r for r in records if r["kind"] == "aborted"]
    assert rounds["registered"] == plan_of(folder).rounds
    assert (rounds["begun"], rounds["retried"], rounds["not_ended"]) == (3, 0, 0)
    assert rounds["published"] == len(published) == 2
    assert rounds["aborted"] == len(aborted) == 1
    sums = [one["survivors"] for one in rounds["each"] if one["status"] == "published"]
    assert sums == [record["survivors"] for record in published]
    (lost,) = [one for one in rounds["each"] if one["status"] == "aborted"]
    assert lost["reason"] == aborted[0]["reason"]
    spent = [Decimal(one["epsilon_after"]) for one in rounds["each"]]
    assert spent == sorted(spent)


def test_the_attackers_figures_are_those_of_the_charges(made):
    folder = made("private")
    claim, plan = claim_of(folder), plan_of(folder)
    event = priced(registered_event(plan, "alpha"))
    limits = tradeoff({event: 3}, Decimal(plan.delta))
    for said in (claim["attacker"], claim["clients"][0]["attacker"]):
        assert said["accuracy_at_even_odds"] == limits.accuracy
        assert said["true_positive_rate"] == {
            "at_false_positive_rate_0.01": limits.found(0.01),
            "at_false_positive_rate_0.001": limits.found(0.001),
        }
    assert 0.5 < limits.accuracy < 0.6


def test_the_renyi_curve_converts_to_the_second_opinion(made):
    loss = claim_of(made("private"))["privacy_loss"]
    curve: FloatVector = __import__("numpy").array(list(loss["renyi_curve"].values()))
    assert list(loss["renyi_curve"]) == [str(order) for order in range(2, 257)]
    found = epsilon_from_curve(curve, float(loss["delta"]))
    assert found == pytest.approx(float(loss["epsilon_rdp"]), abs=2e-6)


def test_a_run_without_noise_claims_infinity_and_nothing_else(made):
    claim = claim_of(made("without noise"))
    assert claim["promises_privacy"] is False
    assert "No differential privacy" in claim["sentence"]
    assert claim["privacy_loss"]["epsilon"] == "infinity"
    assert claim["privacy_loss"]["renyi_curve"] is None
    assert claim["attacker"]["accuracy_at_even_odds"] == 1
    for client in claim["clients"]:
        assert client["epsilon"] == client["data_set"]["epsilon"] == "infinity"
        assert client["data_set"]["attacker"]["accuracy_at_even_odds"] == 1


@pytest.mark.parametrize(
    ("kind", "runs", "cap"),
    [("second of two", (1, 0), "20"), ("first of two", (0, 1), "5")],
)
def test_other_runs_are_in_the_history_of_the_data_set(made, kind, runs, cap):
    claim, plan = claim_of(made(kind)), plan_of(made(kind))
    event = priced(registered_event(plan, "alpha"))
    for client in claim["clients"]:
        history = client["data_set"]
        assert (history["runs"], history["charges"]) == (2, 4)
        assert (history["earlier_runs"], history["later_runs"]) == runs
        assert history["counted_by"] == "rdp"
        assert history["promised_epsilon"] == history["cap_epsilon"] == cap
        # However the runs were chosen: what the filter lets through under the cap.
        order, delta = history["filter_order"], float(history["delta"])
        allowed = filter_limit(order, float(cap), delta)
        assert figures(history["attacker"]) == figures_of(allowed)
        pair = Tradeoff(((float(cap), delta),))
        assert history["attacker"]["accuracy_at_even_odds"] < pair.accuracy
        # Had both been fixed in advance: all that both register, composed.
        fixed = tradeoff({event: 6}, Decimal(history["delta"]))
        said = history["attacker_if_all_runs_were_fixed_in_advance"]
        assert figures(said) == figures_of(fixed)
        assert figures(said) > figures(client["attacker"])
        assert figures(history["attacker"]) > figures(said)
    others = claim["other_releases"]["other_runs_in_the_ledgers"]
    assert set(others.values()) == {1}


def test_of_one_run_the_data_sets_limits_are_that_runs(made):
    for client in claim_of(made("private"))["clients"]:
        assert client["data_set"]["attacker"] == client["attacker"]
        assert "one run" in client["data_set"]["attacker_rests_on"]


def figures(said):
    return [said["accuracy_at_even_odds"], *said["true_positive_rate"].values()]


def figures_of(limits):
    return [limits.accuracy, limits.found(0.01), limits.found(0.001)]


def test_a_refusal_is_in_the_claim_with_its_reason_in_words(made):
    clients = {c["name"]: c for c in claim_of(made("refusing"))["clients"]}
    assert clients["gamma"]["declined"] == [
        {
            "what": "the plan as a whole",
            "this_run": True,
            "record": "refused",
            "round": 0,
            "reason": "policy_cohort",
            "in_words": "the site's policy asks for more clients",
        }
    ]
    assert clients["alpha"]["declined"] == []


def test_a_plan_that_was_declined_is_in_the_claim_of_this_run_or_another(made):
    clients = {c["name"]: c for c in claim_of(made("declining"))["clients"]}
    said = [
        (one["this_run"], one["record"], one["reason"])
        for one in clients["gamma"]["declined"]
    ]
    assert said == [
        (False, "declined", "policy_epsilon"),
        (True, "declined", "not_approved"),
    ]


def test_the_evidence_is_that_of_the_folder(made):
    folder = made("private")
    evidence = claim_of(folder)["evidence"]
    assert evidence["plan_digest"] == plan_of(folder).digest
    opened = payloads(folder / "ledger/server.jsonl")[0]
    assert evidence["run"] == opened["run"]
    assert evidence["software_recorded"] == [opened["software"]]
    remembered = json.loads((folder / "ledger/server.jsonl.head").read_bytes())
    assert evidence["server_ledger"]["head"] == remembered["head"]
    assert evidence["server_ledger"]["records"] == remembered["records"]
    for client in claim_of(folder)["clients"]:
        name = client["name"]
        remembered = json.loads((folder / f"ledger/{name}.jsonl.head").read_bytes())
        assert client["ledger"]["head"] == remembered["head"]


def test_a_run_whose_log_nobody_cosigned_says_so(made):
    log = claim_of(made("private"))["evidence"]["shared_log"]
    assert log["root"] is None
    assert set(log["cosigned"].values()) == {0}
    assert "no checkpoint of the server's ledger" in words(made("private"))


def test_the_sentence_names_the_numbers_of_the_claim(made):
    folder = made("private")
    claim = claim_of(folder)
    loss = claim["privacy_loss"]
    assert f"epsilon at most {loss['epsilon']} and delta 0.00001" in claim["sentence"]
    event = priced(registered_event(plan_of(folder), "alpha"))
    assert Decimal(loss["epsilon"]) >= Decimal(epsilon_pld(event, 3, 1e-5))
    assert "the server and up to 0 of the other clients" in claim["sentence"]
    local = claim_of(made("local"))["sentence"]
    assert "everybody else together" in local
