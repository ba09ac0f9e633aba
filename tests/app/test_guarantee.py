"""What `fgrpo plan` tells somebody who has never heard of epsilon."""

import math
from dataclasses import replace
from fractions import Fraction
from statistics import NormalDist

import pytest

from fgrpo_secure.cli import main
from fgrpo_secure.commands import plan_facts, run_facts
from fgrpo_secure.guarantee import (
    FALSE_ALARMS,
    Attack,
    attack_bound,
    attack_on,
    explain,
)
from privacy.contribution import registered_spend
from tests.plans import cohort, make_plan

NORMAL = NormalDist()


def words(plan):
    return " ".join(explain(plan, plan_facts(plan)).split())


# The bounds on an attacker.


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.1])
def test_a_bound_is_what_randomised_response_with_leaks_reaches(epsilon, delta):
    """The mechanism that is as bad as (epsilon, delta) allows, worked out by hand.

    With probability delta it tells the truth outright; else it tells it with the odds
    e^epsilon to 1. The best guess believes it.
    """
    truth = delta + (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon))
    found = attack_bound([(epsilon, delta)])
    assert found.accuracy == pytest.approx(truth)
    # To be wrong of one absent unit in a hundred, the guess is bolder than that only
    # now and then: it says "there" to a part of what looks there, and of nothing else.
    lie = (1 - delta) / (1 + math.exp(epsilon))
    if lie >= FALSE_ALARMS:
        bold = delta + FALSE_ALARMS / lie * (truth - delta)
        assert found.found == pytest.approx(bold)
    else:
        assert found.found >= truth


@pytest.mark.parametrize("mean", [0.1, 0.5, 1.0, 2.0])
def test_the_bound_of_a_gaussian_is_above_its_best_test_and_close_to_it(mean):
    """The exact trade-off of two Gaussians a distance apart, and their profile.

    Source: Balle and Wang, ICML 2018, theorem 8; Dong, Roth and Su, 2022, section 2.
    """

    def delta(epsilon):
        first = NORMAL.cdf(mean / 2 - epsilon / mean)
        return first - math.exp(epsilon) * NORMAL.cdf(-mean / 2 - epsilon / mean)

    points = [(step / 50, delta(step / 50)) for step in range(500)]
    found = attack_bound(points)
    accuracy = NORMAL.cdf(mean / 2)
    power = NORMAL.cdf(NORMAL.inv_cdf(FALSE_ALARMS) + mean)
    assert accuracy <= found.accuracy < accuracy + 1e-6
    assert power <= found.found < power + 1e-3


def test_no_promise_leaves_an_attacker_everything():
    assert attack_bound([]) == Attack(1.0, 1.0)
    assert attack_bound([(1e6, 1e-5)]) == Attack(1.0, 1.0)


def test_more_promises_never_help_an_attacker():
    one, two = (1.0, 1e-5), (0.5, 1e-3)
    both = attack_bound([one, two])
    for alone in (attack_bound([one]), attack_bound([two])):
        assert both.accuracy <= alone.accuracy
        assert both.found <= alone.found


def test_the_bound_of_a_plan_is_tighter_than_its_one_epsilon_and_never_too_tight():
    plan = make_plan()
    claim = registered_spend(plan, plan.most_exposed).epsilon_pld
    stated = attack_bound([(float(claim), float(plan.delta))])
    found = attack_on(plan)
    assert found.accuracy < stated.accuracy
    # Every unit drawn in one round: the exact test of one Gaussian is known.
    whole = make_plan(sampling_rate=Fraction(1), rounds=1)
    multiplier = whole.noise_multiplier
    statistic = whole.statistic_variance**0.5 / whole.statistic_norm_bound
    mean = math.hypot(1 / multiplier, 1 / statistic)
    exact = NORMAL.cdf(NORMAL.inv_cdf(FALSE_ALARMS) + mean)
    found = attack_on(whole)
    assert NORMAL.cdf(mean / 2) <= found.accuracy
    assert exact <= found.found


# The words.


def test_a_plan_says_what_is_protected_from_whom_how_far_and_what_is_not():
    shown = words(make_plan())
    for text in (
        "Protected",
        "Each distinct prompt at a client",
        "From whom",
        "The coordinator, also one that lies",
        "whoever gets the adapter",
        "How far",
        "right, where both are as likely",
        "found, at 1 false alarm in 100",
        "Not protected",
        "the client's own site",
        "how large the data sets are",
        "what is true of many units",
        "somebody behind several prompts: two of them are covered by twice epsilon",
        "poisons its own update",
        "what the base model has memorised",
    ):
        assert text in shown


def test_the_words_are_about_the_column_where_the_unit_is_one():
    plan = make_plan(unit="patient_id", max_prompts_per_unit=4)
    shown = words(plan)
    assert "Each value of patient_id at a client, with all its rows together" in shown
    assert "at most 4 prompts of one value count" in shown
    assert "somebody behind several values of patient_id" in shown
    assert "several prompts" not in shown


@pytest.mark.parametrize(
    ("colluders", "text"),
    [
        (0, "each of the other clients, as long as it works alone"),
        (1, "any one other client, also where it works with the coordinator"),
        (2, "any 2 other clients, also where they work together"),
    ],
)
def test_who_may_work_together_is_said(colluders, text):
    assert text in words(make_plan(colluders=colluders))


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [("0.5", "is strong"), ("3", "is moderate"), ("8", "is weak by itself")],
)
def test_how_much_an_epsilon_is_worth_is_said(epsilon, text):
    assert f"This epsilon {text}" in words(make_plan(epsilon=epsilon))


def test_the_bounds_are_printed_and_rounded_up(capsys):
    assert main(["plan", "tiny"]) == 0
    shown = capsys.readouterr().out
    right = next(x for x in shown.splitlines() if "right, where both" in x)
    # (e^8 + 1e-5) / (1 + e^8) = 0.99966...
    assert "at most 99.97%" in right
    assert "50%" in right


def test_a_plan_that_promises_nothing_shouts(capsys):
    assert main(["plan", "tiny", "--set", "privacy.epsilon=inf"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("NO GUARANTEE") == 2
    assert shown.count("NO PRIVACY: epsilon is infinity") == 2
    assert "Protected" not in shown
    assert "nearly the same chance" not in shown
    assert "protects" not in shown


def test_every_line_fits_a_terminal():
    for plan in (make_plan(), make_plan(unit="patient_id", max_prompts_per_unit=4)):
        shown = explain(plan, plan_facts(plan))
        assert max(map(len, shown.splitlines())) <= 79


def test_what_is_claimed_is_what_the_most_exposed_client_has():
    """Its rate decides, wherever it stands among the clients."""
    slow = Fraction(1, 40)
    clients = tuple(
        replace(client, sampling_rate=client.sampling_rate if place == 2 else slow)
        for place, client in enumerate(make_plan().clients)
    )
    mixed, fast = make_plan(clients=clients), make_plan()
    assert mixed.most_exposed == fast.clients[2].name
    assert attack_on(mixed) == attack_on(fast)
    facts = plan_facts(mixed)
    assert facts["epsilon_pld"] == plan_facts(fast)["epsilon_pld"]
    own = facts["epsilon_by_client"]
    assert own[mixed.most_exposed] == facts["epsilon_pld"]
    assert max(v for k, v in own.items() if k != mixed.most_exposed) < min(
        facts["epsilon_pld"], 3
    )


def test_a_run_of_several_cohorts_states_all_plans_and_every_clients_epsilon():
    slow = tuple(
        replace(client, sampling_rate=Fraction(1, 200))
        for client in cohort(40, 40, 40, names=("delta", "kappa", "zeta"))
    )
    plans = [make_plan(), make_plan(clients=slow)]
    plan, facts = run_facts(plans)
    # What is said of the run is said of the client that spends most.
    assert plan is plans[0]
    assert facts["epsilon_pld"] == plan_facts(plans[0])["epsilon_pld"]
    assert facts["clients"] == 7
    assert [one["digest"] for one in facts["cohorts"]] == [p.digest for p in plans]
    assert facts["epsilon_by_client"].keys() == {
        client.name for one in plans for client in one.clients
    }
    shown = " ".join(explain(plan, facts).split())
    assert f"plan {plans[0].digest}, {plans[1].digest}" in shown
    parted = "7 in 2 cohorts of 3-4, each with a sum and all of the noise by itself"
    assert parted in shown
    alone, facts = run_facts(plans[:1])
    assert facts["cohorts"] == []
    assert "cohorts of" not in explain(alone, facts)
