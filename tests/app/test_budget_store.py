"""The store of ledgers: what was spent stays spent, whatever becomes of its files."""

import json
from dataclasses import replace

import pytest

from fgrpo_secure.budget import check_budgets
from fgrpo_secure.commands import budget_facts
from fgrpo_secure.errors import StateError
from fgrpo_secure.overlap import claim_units
from privacy.errors import BudgetExceededError
from privacy.ledger import Budget, Joined, Outcome, Reason, Status, verify_ledger
from privacy.ledger import verify as verify_module
from tests.app.sites import FIRST, NAME, SECOND, capped, filtered, plan_of
from tests.end_to_end.program import records
from tests.plans import UNIFORM

UNITS = [f"unit-{number}" for number in range(20)]
OTHER_NAME = f'client.{NAME}.data_set="renamed"'


def spent(sites, units=UNITS):
    """A whole run over these units, in the ledger of the store."""
    plan = plan_of()
    sites.complete(sites.open(plan, capped(200), units=units), plan)
    return plan


def left(sites, plan, *overrides):
    return budget_facts(sites.config(*overrides), plan)["clients"][NAME]


def again(sites, plan, *overrides, units=UNITS):
    """A second run over the same store."""
    overrides = (capped(200), *overrides)
    return sites.open(plan, *overrides, run=SECOND, folder="second", units=units)


# Files that are gone.


@pytest.mark.parametrize("suffixes", [("",), ("", ".head")])
def test_a_ledger_that_is_gone_is_not_begun_again_at_0(sites, suffixes):
    plan = spent(sites)
    for suffix in suffixes:
        path = sites.ledger_path
        path.with_name(path.name + suffix).unlink()
    found = left(sites, plan, capped(200))
    assert not found["may_run"]
    assert "gone" in found["why_not"]
    with pytest.raises(StateError, match="gone"):
        again(sites, plan)


def test_a_store_without_its_key_recognises_nothing_and_says_so(sites):
    """A copy that left out the hidden file is the usual way there."""
    plan = spent(sites)
    (sites.run_folder().store / ".units.key").unlink()
    with pytest.raises(StateError, match="hidden files"):
        again(sites, plan, OTHER_NAME)


def test_a_list_of_units_that_is_gone_is_missed(sites):
    plan = spent(sites)
    sites.ledger_path.with_suffix(".units").unlink()
    with pytest.raises(StateError, match="gone"):
        again(sites, plan, OTHER_NAME)


@pytest.mark.parametrize("kept", [0, 16, 24, 24 + 16, 24 + 17])
def test_a_list_of_units_that_was_cut_short_is_noticed(sites, kept):
    plan = spent(sites)
    path = sites.ledger_path.with_suffix(".units")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(StateError, match="damaged"):
        again(sites, plan, OTHER_NAME)


# Units that have a budget already.


def test_the_same_units_under_another_name_are_recognised(sites):
    plan = spent(sites)
    with pytest.raises(StateError, match="budget of its own") as caught:
        again(sites, plan, OTHER_NAME, units=UNITS[3:5])
    assert not any(unit in str(caught.value) for unit in UNITS)
    again(sites, plan, OTHER_NAME, units=["another"])


def test_an_owner_may_agree_that_two_data_sets_share_units(sites):
    """Two hospitals that both number their patients from 1, say."""
    plan = spent(sites)
    agreed = f'client.{NAME}.shares_units_with=["{NAME}/{NAME}"]'
    other = f'client.{NAME}.shares_units_with=["shift/{NAME}"]'
    with pytest.raises(StateError, match="shares_units_with"):
        again(sites, plan, OTHER_NAME, other)
    again(sites, plan, OTHER_NAME, agreed)
    folder = sites.run_folder()
    with pytest.raises(StateError, match="budget of its own"):
        claim_units(folder, "count", UNITS, bytes(16))
    names = (f"{NAME}/{NAME}", f"{NAME}/renamed")
    claim_units(folder, "count", UNITS, bytes(16), names)


def test_another_kind_of_unit_is_refused_with_the_reason(sites):
    plan = spent(sites)
    by_patient = replace(plan, unit="patient_id")
    for act in (
        lambda: again(sites, by_patient, units=["p1"]),
        lambda: check_budgets(
            sites.config(capped(200)), by_patient, sites.run_folder(), SECOND
        ),
    ):
        with pytest.raises(BudgetExceededError, match="counts what units by 'prompt'"):
            act()
    assert "second budget" in left(sites, by_patient, capped(200))["why_not"]


# Runs that do not come about.


def test_a_run_that_charged_nothing_keeps_no_later_one_out(sites):
    plan = plan_of()
    sites.open(plan, capped(200), units=UNITS).close()
    ledger = again(sites, plan)
    sites.complete(ledger, plan)
    assert len(sites.opened()) == 2
    # The one that was left cannot be taken up where its ledger has gone on.
    with pytest.raises(StateError, match="gone on with another run"):
        sites.open(plan, capped(200), run=FIRST, units=UNITS)


def test_what_one_client_refuses_no_other_has_opened(sites):
    """A run that some had opened could neither be finished nor left behind."""
    plan = spent(sites)
    folder = sites.run_folder("second")
    tight = sites.config(f"client.{NAME}.epsilon_cap=0.01")
    before = sorted(path.name for path in folder.store.rglob("*.jsonl"))
    with pytest.raises(BudgetExceededError, match=NAME):
        check_budgets(tight, plan, folder, SECOND)
    assert sorted(path.name for path in folder.store.rglob("*.jsonl")) == before
    check_budgets(sites.config(capped(200)), plan, folder, SECOND)
    # A client that has opened the run is not asked again.
    ledger = again(sites, plan)
    ledger.close()
    check_budgets(tight, plan, folder, SECOND)


def test_a_plan_is_priced_after_a_first_run_that_was_refused(sites):
    plan = plan_of()
    with pytest.raises(BudgetExceededError):
        sites.open(plan, capped("0.01"), units=UNITS)
    assert left(sites, plan, capped(200))["may_run"]


def test_what_is_left_can_be_read_while_a_run_writes(sites, monkeypatch):
    """The head is read before the lines, of which there are then more and not fewer."""
    plan = plan_of()
    ledger = sites.open(plan, capped(200), units=UNITS)
    honest = verify_module.read_file

    def overtaken(path, file):
        data = honest(path, file)
        ledger.append(Joined(1, 1, bytes(32), bytes(32)))
        missed = (Status.MISSED, Reason.INTERRUPTED, (), None, None, None)
        ledger.append(Outcome(1, 1, *missed))
        return data

    monkeypatch.setattr(verify_module, "read_file", overtaken)
    assert left(sites, plan, capped(200))["may_run"]


# What is said of the cap.


def test_a_cap_that_was_lowered_is_not_called_the_promise(sites):
    plan = spent(sites)
    low = filtered(sites, plan, 2 * plan.rounds)
    second = sites.open(plan, capped(low), run=SECOND, folder="second", units=UNITS)
    sites.complete(second, plan)
    words = Budget.of(verify_ledger(sites.ledger_path, key=None).runs).words()
    assert "lowered: the promise is 200" in words


def test_what_a_later_run_costs_is_the_difference_of_the_plans_two_figures(sites):
    plan = spent(sites)
    found = left(sites, plan, capped(200))
    once = filtered(sites, plan, plan.rounds)
    twice = filtered(sites, plan, 2 * plan.rounds)
    assert found["counted"] == float(once) > found["spent"]
    assert found["after"] == float(twice)


def test_over_several_runs_no_figure_is_recorded_that_nothing_proves(sites):
    plan = spent(sites)
    sites.complete(again(sites, plan), plan)
    lifetimes = [r["lifetime"] for r in records(sites.ledger_path) if "lifetime" in r]
    by_pld = [lifetime["epsilon_pld"] for lifetime in lifetimes]
    runs = len(by_pld) // 2
    assert "infinity" not in {value.lower() for value in by_pld[:runs]}
    assert {value.lower() for value in by_pld[runs:]} == {"infinity"}
    assert json.dumps(lifetimes).count('"claimed": "rdp"') == len(by_pld) - runs
    # Rules without a statistic are events of another kind, and count all the same.
    other = plan_of(weighting=UNIFORM, statistic_norm_bound=0, statistic_variance=0)
    found = left(sites, other, capped(200))
    assert found["after"] > found["counted"]
