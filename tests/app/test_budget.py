"""What a client's ledger lets a run spend, and which ledger that is."""

import hashlib
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest

from fgrpo_secure import budget
from fgrpo_secure.commands import budget_facts, plan_facts
from fgrpo_secure.config import load_config
from fgrpo_secure.errors import StateError
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.guarantee import explain
from fgrpo_secure.overlap import claim_units
from fgrpo_secure.secrets import private_directory
from privacy.contribution import Contribution, charge, registered_event
from privacy.crypto import SigningKey
from privacy.errors import BudgetExceededError
from privacy.ledger import Joined, cap_order, verify_ledger, write_key_file
from privacy.plan import SERVER, Plan
from privacy.wire import parse_canonical_json
from tests.app.sites import FIRST, NAME, SECOND, capped, cost, filtered, plan_of
from tests.end_to_end.program import records
from tests.plans import NO_PROMISE, NO_STATISTIC, UNIFORM, Counter, cohort

# The cap, before a run is opened.


def test_a_run_that_would_pass_the_cap_is_refused_before_it_is_opened(sites):
    plan = plan_of()
    between = (cost(plan, 1) + cost(plan, plan.rounds)) / 2
    assert cost(plan, 1) < between < cost(plan, plan.rounds)
    with pytest.raises(BudgetExceededError, match=NAME):
        sites.open(plan, capped(between))
    assert not sites.ledger_path.exists() or sites.opened() == []
    # The cap refused it and nothing else: it is opened under one that fits.
    sites.open(plan, capped(cost(plan, plan.rounds)))
    assert len(sites.opened()) == 1


def test_what_earlier_runs_spent_counts_against_the_cap_of_shared_state(sites):
    plan = plan_of()
    cap = capped((cost(plan, plan.rounds) + cost(plan, 2 * plan.rounds)) / 2)
    sites.complete(sites.open(plan, cap), plan)
    before = sites.ledger_path.read_bytes()
    with pytest.raises(BudgetExceededError):
        sites.open(plan, cap, run=SECOND, folder="second")
    assert sites.ledger_path.read_bytes() == before
    enough = filtered(sites, plan, 2 * plan.rounds)
    just_below = capped(enough - Decimal("0.000001"))
    with pytest.raises(BudgetExceededError, match=f"{NAME}.*to {enough} or more"):
        sites.open(plan, just_below, run=SECOND, folder="second")
    sites.open(plan, capped(enough), run=SECOND, folder="second")
    assert len(sites.opened()) == 2


def test_a_second_run_goes_on_with_the_spend_and_the_cap_of_the_first(sites):
    plan = plan_of()
    sites.complete(sites.open(plan, capped(200)), plan)
    # A cap is not raised by a run that merely states another target.
    ledger = sites.open(plan, "privacy.epsilon=500", run=SECOND, folder="second")
    sites.complete(ledger, plan)
    first, second = sites.opened()
    assert first["cap_epsilon"] == second["cap_epsilon"] == "200"
    assert first["cap_order"] == second["cap_order"]
    assert first["data"] == second["data"]
    lifetimes = [r["lifetime"] for r in records(sites.ledger_path) if "lifetime" in r]
    assert lifetimes[-1]["charges"] == 2 * plan.rounds
    assert [lifetimes[0]["claimed"], lifetimes[-1]["claimed"]] == ["pld", "rdp"]
    whole = filtered(sites, plan, 2 * plan.rounds)
    assert Decimal(lifetimes[-1]["epsilon_rdp"]) == whole
    verify_ledger(sites.ledger_path, key=None)


def test_no_second_run_is_opened_after_one_that_only_the_tight_accountant_allows(sites):
    plan = plan_of(rounds=40)
    first = capped(cost(plan, plan.rounds))
    sites.complete(sites.open(plan, first), plan, rounds=1)
    quiet = plan_of(noise_variance=2**36, rounds=1, weighting=UNIFORM, **NO_STATISTIC)
    with pytest.raises(BudgetExceededError, match=r"counts .* in full, above its cap"):
        sites.open(quiet, run=SECOND, folder="second")
    assert len(sites.opened()) == 1


def test_each_data_set_of_a_client_has_a_budget_of_its_own(sites):
    plan = plan_of()
    cap = capped(cost(plan, plan.rounds))
    sites.complete(sites.open(plan, cap), plan)
    other = f'client.{NAME}.data_set="spring-2026"'
    with pytest.raises(BudgetExceededError):
        sites.open(plan, cap, run=SECOND, folder="second")
    ledger = sites.open(plan, cap, other, run=SECOND, folder="second")
    assert ledger.history.lifetime_spend is None
    assert ledger.path.name == "spring-2026.jsonl"
    assert ledger.path.parent == sites.ledger_path.parent


def test_a_second_run_at_another_delta_keeps_the_delta_of_the_first(sites):
    plan = plan_of()
    sites.complete(sites.open(plan, capped(200)), plan)
    sites.open(plan_of(delta="0.001"), capped(200), run=SECOND, folder="second")
    deltas = [Decimal(record["cap_delta"]) for record in sites.opened()]
    assert deltas == [Decimal(plan.delta)] * 2


def test_a_second_run_at_another_delta_is_priced_at_the_delta_of_the_first(sites):
    plan, loose = plan_of(), plan_of(delta="0.00002")
    dear = cost(plan, 2 * plan.rounds)
    cheap = cost(plan, 2 * plan.rounds, loose.delta)
    between = (dear + cheap) / 2
    assert cost(plan, plan.rounds) < between < dear
    assert cheap < between
    sites.complete(sites.open(plan, capped(between)), plan)
    with pytest.raises(BudgetExceededError):
        sites.open(loose, capped(between), run=SECOND, folder="second")
    assert len(sites.opened()) == 1


def test_no_cap_of_a_client_allows_a_plan_that_promises_nothing(sites):
    plan = plan_of(**NO_PROMISE)
    with pytest.raises(BudgetExceededError):
        sites.open(plan, "privacy.epsilon=inf", capped(10**9))
    # Where its operator states an infinite epsilon and no cap, the ledger says so.
    sites.open(plan, "privacy.epsilon=inf")
    assert sites.opened()[0]["cap_epsilon"] == "infinity"


@pytest.mark.parametrize("given", [(), (capped(200),)], ids=["its target", "its own"])
def test_no_baseline_follows_in_a_ledger_that_has_a_cap(sites, given):
    plan = plan_of()
    sites.complete(sites.open(plan, *given), plan)
    before = sites.ledger_path.read_bytes()
    with pytest.raises(BudgetExceededError, match="baseline"):
        sites.open(
            plan_of(**NO_PROMISE), "privacy.epsilon=inf", run=SECOND, folder="second"
        )
    assert sites.ledger_path.read_bytes() == before


def test_nothing_is_promised_after_a_baseline_on_the_same_data(sites):
    baseline = plan_of(**NO_PROMISE)
    sites.complete(sites.open(baseline, "privacy.epsilon=inf"), baseline)
    with pytest.raises(BudgetExceededError, match="no epsilon is left"):
        sites.open(plan_of(), capped(10**9), run=SECOND, folder="second")
    assert len(sites.opened()) == 1


def test_without_a_cap_of_its_own_a_client_takes_the_epsilon_it_configured(sites):
    plan = plan_of()
    spends = cost(plan, plan.rounds)
    below, above = spends * Decimal("0.9"), spends * Decimal("1.1")
    assert above != Decimal(plan.epsilon)
    with pytest.raises(BudgetExceededError):
        sites.open(plan, f"privacy.epsilon={below}")
    sites.open(plan, f"privacy.epsilon={above}")
    (opened,) = sites.opened()
    assert Decimal(opened["cap_epsilon"]) == above


# What the ledger pinned, when a run goes on.


@pytest.mark.parametrize("peer", ["count", SERVER])
def test_a_run_does_not_go_on_with_another_key_of_a_peer(sites, peer):
    plan = plan_of(epsilon="200")
    sites.open(plan, capped(200)).close()
    stranger = SigningKey(bytes([77]) * 32).verify_key
    sites.run_folder().key(peer).unlink()
    write_key_file(sites.run_folder().key(peer), stranger)
    with pytest.raises(StateError, match="pinned"):
        sites.open(plan, capped(200))
    assert len(sites.opened()) == 1


def test_a_run_does_not_go_on_under_another_plan(sites):
    plan = plan_of()
    folder = sites.run_folder(plan=plan)
    sites.open(plan, capped(200)).close()
    path = folder.root / "plan.json"

    def read():
        return Plan.from_json(parse_canonical_json(path.read_bytes()))

    sites.open(read(), capped(200)).close()
    sites.run_folder(plan=replace(plan, recipe="cd" * 32))
    with pytest.raises(StateError, match="pinned"):
        sites.open(read(), capped(200))
    assert len(sites.opened()) == 1


def test_a_client_that_took_part_and_lost_its_ledger_does_not_start_anew(sites):
    plan = plan_of()
    sites.open(plan, capped(200)).close()
    private_directory(sites.run_folder().of_run(NAME, FIRST))
    sites.ledger_path.unlink()
    for head in sites.ledger_path.parent.glob("*.head"):
        head.unlink()
    for _ in range(2):
        with pytest.raises(StateError, match="ledger is gone"):
            sites.open(plan, capped(200))
    assert not sites.ledger_path.exists() or sites.opened() == []


def test_a_ledger_in_the_middle_of_another_run_is_not_used(sites):
    plan = plan_of()
    ledger = sites.open(plan, capped(200))
    ledger.append(Joined(1, 1, bytes(32), bytes(32)))
    charge(plan, NAME, round_number=1, attempt=1, ledger=ledger, entropy=Counter("one"))
    ledger.close()
    with pytest.raises(StateError, match="another run"):
        sites.open(plan, capped(200), run=SECOND, folder="second")
    assert len(sites.opened()) == 1


# What is left, before anything is opened.


def left(sites, plan, *overrides):
    """What `fgrpo plan` knows of the one client, with nothing written meanwhile."""
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(sites.folder.rglob("*"))
        if path.is_file()
    }
    found = budget_facts(sites.config(*overrides), plan)
    after = {path for path in sites.folder.rglob("*") if path.is_file()}
    assert after == before.keys()
    assert all(
        (path.stat().st_mtime_ns, path.read_bytes()) == seen
        for path, seen in before.items()
    )
    return found["clients"][NAME]


def told(plan, facts):
    text = explain(plan, plan_facts(plan) | {"budget": facts})
    return " ".join(text[text.index("\nBudget\n") :].split())


def test_what_is_left_is_what_the_ledger_says_and_what_the_run_would_find(sites):
    plan = plan_of()
    whole = cost(plan, plan.rounds)
    first = left(sites, plan, capped(200))
    assert (first["runs"], first["spent"], first["cap"]) == (0, 0.0, 200.0)
    assert first["after"] == float(whole)
    assert (first["may_run"], first["why_not"]) == (True, None)
    sites.complete(sites.open(plan, capped(200)), plan)
    second = left(sites, plan)
    assert (second["runs"], second["spent"]) == (1, float(whole))
    assert second["after"] == float(filtered(sites, plan, 2 * plan.rounds))
    assert second["cap"] == second["former_cap"] == 200.0
    assert second["may_run"]
    sites.complete(sites.open(plan, run=SECOND, folder="second"), plan)
    third = left(sites, plan)
    assert third["spent"] == second["after"]


def test_a_plan_says_why_a_client_may_not_run_as_the_run_itself_would(sites):
    plan = plan_of()
    sites.complete(sites.open(plan, capped(cost(plan, plan.rounds))), plan)
    facts = budget_facts(sites.config(), plan)
    refused = facts["clients"][NAME]
    assert not refused["may_run"]
    with pytest.raises(BudgetExceededError) as caught:
        sites.open(plan, run=SECOND, folder="second")
    assert str(caught.value) == refused["why_not"]
    shown = told(plan, facts)
    assert f"{NAME} MAY NOT RUN: client '{NAME}': this run would bring" in shown
    assert "count MAY NOT RUN" not in shown
    assert "the promise is the cap" in shown


def test_a_plan_says_that_a_cap_is_raised(sites):
    plan = plan_of()
    sites.complete(sites.open(plan, capped(5)), plan)
    facts = budget_facts(sites.config(capped(7)), plan)
    assert f"{NAME}: the cap of its ledger was 5.0000" in told(plan, facts)
    same = budget_facts(sites.config(capped(5)), plan)
    assert "the cap of its ledger was" not in told(plan, same)


def test_a_first_run_that_leaves_room_for_no_other_says_so(sites):
    plan = plan_of()
    spends = cost(plan, plan.rounds)
    alone = budget_facts(sites.config(capped(spends)), plan)
    least = alone["clients"][NAME]["least_cap"]
    assert f"{NAME}: no second run can follow this one under its cap" in told(
        plan, alone
    )
    assert float(spends) < least
    roomy = budget_facts(sites.config(capped(least)), plan)
    assert f"{NAME}: no second run" not in told(plan, roomy)
    # The figure is one under which a second run is opened, if ever so small.
    sites.complete(sites.open(plan, capped(least)), plan, rounds=1)
    quiet = plan_of(noise_variance=2**40, rounds=1, weighting=UNIFORM, **NO_STATISTIC)
    sites.open(quiet, run=SECOND, folder="second")


@pytest.mark.parametrize("spoil", ["cut", "flipped", "no head", "in a run"])
def test_what_is_left_of_a_ledger_that_is_not_whole_is_not_guessed(sites, spoil):
    plan = plan_of()
    ledger = sites.open(plan, capped(200))
    if spoil == "in a run":
        ledger.append(Joined(1, 1, bytes(32), bytes(32)))
        charge(
            plan, NAME, round_number=1, attempt=1, ledger=ledger, entropy=Counter("one")
        )
        ledger.close()
    else:
        sites.complete(ledger, plan)
    path = sites.ledger_path
    data = path.read_bytes()
    if spoil == "cut":
        path.write_bytes(b"".join(data.splitlines(keepends=True)[:-2]))
    elif spoil == "flipped":
        path.write_bytes(data.replace(b"e30", b"e31", 1)[:-9] + data[-8:])
    elif spoil == "no head":
        path.with_name(path.name + ".head").unlink()
    found = left(sites, plan)
    assert not found["may_run"]
    assert "spent" not in found
    assert found["why_not"]


def test_without_a_store_a_plan_says_that_nothing_adds_up(sites):
    plan = plan_of()
    config, _ = load_config(str(sites.path), (capped(200),))
    shown = told(plan, budget_facts(config, plan))
    assert "Each run's folder has ledgers of its own" in shown
    assert "this one begins at 0" in shown


def test_clients_with_other_rates_are_told_apart_and_the_largest_is_the_claim():
    slow = cohort(40, rate=Fraction(1, 20), names=[NAME])
    plan = plan_of()
    others = tuple(c for c in plan.clients if c.name != NAME)
    plan = replace(plan, clients=tuple(sorted((*others, *slow), key=lambda c: c.name)))
    facts = plan_facts(plan)
    assert facts["epsilon_by_client"][NAME] < facts["epsilon_pld"]
    assert max(facts["epsilon_by_client"].values()) == facts["epsilon_pld"]
    shown = " ".join(explain(plan, facts).split())
    assert "the largest is the claim" in shown
    assert "the largest is the claim" not in explain(plan_of(), plan_facts(plan_of()))


# One budget for one set of units, whatever it is called.

UNITS = [f"patient {number}" for number in range(20)]
RENAMED = f'client.{NAME}.data_set="renamed"'


def spent(sites, units=UNITS):
    """A first run over some units, of a client that has room for more."""
    plan = plan_of()
    sites.complete(sites.open(plan, capped(200), units=units), plan)
    return plan


def test_a_data_set_under_another_name_does_not_get_a_second_budget(sites):
    plan = spent(sites)
    before = sites.ledger_path.read_bytes()
    for units in (UNITS, UNITS[:1], [*UNITS[7:8], "somebody else"]):
        with pytest.raises(StateError, match=f"data set {NAME} of client {NAME}"):
            sites.open(
                plan, capped(200), RENAMED, run=SECOND, folder="second", units=units
            )
    assert sites.ledger_path.read_bytes() == before
    strangers = [f"other {unit}" for unit in UNITS]
    ledger = sites.open(
        plan, capped(200), RENAMED, run=SECOND, folder="second", units=strangers
    )
    assert ledger.history.lifetime == ()


def test_a_refused_name_leaves_nothing_that_binds_it(sites):
    plan = spent(sites)
    with pytest.raises(StateError):
        sites.open(plan, capped(200), RENAMED, run=SECOND, folder="second", units=UNITS)
    assert not list(sites.ledger_path.parent.glob("renamed.units"))
    with pytest.raises(BudgetExceededError):
        sites.open(plan, capped("0.01"), RENAMED, run=SECOND, units=["new"])
    assert not list(sites.ledger_path.parent.glob("renamed.units"))
    sites.open(plan, capped(200), run=SECOND, folder="second", units=UNITS)


def test_units_may_come_and_go_in_a_data_set_and_all_stay_its_own(sites):
    plan = spent(sites)
    grown = [*UNITS[10:], "appended"]
    again = sites.open(plan, run=SECOND, folder="second", units=grown)
    sites.complete(again, plan)
    for unit in (UNITS[0], "appended"):
        with pytest.raises(StateError, match="has a budget of its own"):
            sites.open(plan, RENAMED, run=bytes(16), folder="third", units=[unit])


def test_an_error_about_shared_units_names_none_of_them_and_not_how_many(sites):
    plan = spent(sites)
    with pytest.raises(StateError) as caught:
        sites.open(plan, RENAMED, run=SECOND, folder="second", units=UNITS[3:10])
    text = str(caught.value)
    assert 'data_set = "sums"' in text
    assert "patient" not in text
    assert not any(character.isdigit() for character in text)


def test_the_digests_of_units_are_keyed_and_open_to_their_owner_alone(sites):
    spent(sites)
    path = sites.ledger_path.with_suffix(".units")
    key = sites.run_folder().store / ".units.key"
    for private in (path, key):
        assert private.stat().st_mode & 0o777 == 0o600
    data = path.read_bytes()
    assert len(data) == 24 + 16 * len(UNITS)
    unkeyed = {hashlib.sha256(unit.encode()).digest()[:16] for unit in UNITS}
    assert not any(digest in data for digest in unkeyed)
    assert not any(unit.encode() in data for unit in UNITS)
    key.write_bytes(bytes(32))
    path.write_bytes(data[:-1])
    with pytest.raises(StateError, match="damaged"):
        sites.open(plan_of(), run=SECOND, folder="second", units=UNITS)


def test_clients_of_one_plan_may_share_units_and_not_swap_them_later(sites):
    """A unit at two clients is counted at both; moved to the other it is spent anew."""
    other = [*UNITS[15:], "only at count"]
    folder = sites.run_folder()
    spent(sites)
    claim_units(folder, "count", other, FIRST)
    claim_units(folder, "count", other, SECOND)
    with pytest.raises(StateError, match=f"data set {NAME} of client {NAME}"):
        claim_units(folder, "count", [*other, UNITS[0]], SECOND)
    # Which run a data set began with does not change when it goes on.
    claim_units(folder, NAME, UNITS, SECOND)
    claim_units(folder, "shift", ["unheard of"], SECOND)
    with pytest.raises(StateError):
        claim_units(folder, "sort", UNITS[:1], SECOND)


def test_without_a_shared_store_no_units_are_noted(sites, tmp_path):
    folder = RunFolder(tmp_path / "alone", tmp_path / "alone" / "clients")
    claim_units(folder, NAME, UNITS, FIRST)
    assert not list(tmp_path.rglob("*.units"))


# The round that would pass the cap.


def test_a_round_that_would_pass_the_cap_is_refused_in_writing_before_any_draw(
    federation, monkeypatch
):
    """The run was opened under a cap that has room for one round and a half."""
    honest = budget.standing

    def narrow(config, plan, name, history):
        found = honest(config, plan, name, history)
        if name != NAME or found.refusal is not None:
            return found
        cap = (cost(plan, 1) + cost(plan, 2)) / 2
        event = registered_event(plan, name)
        return replace(found, cap=cap, order=cap_order(event, cap, found.delta))

    monkeypatch.setattr(budget, "standing", narrow)
    drawn = []
    honest_draw = Contribution.draw

    def draw(self, unit_ids):
        drawn.append(self._name)
        return honest_draw(self, unit_ids)

    monkeypatch.setattr(Contribution, "draw", draw)
    one = federation(privacy={"rounds": 3, "epsilon": 50})
    assert one.round(1).published
    assert one.kinds(NAME)[-2:] == ["outcome", "cosigned"]
    drawn.clear()
    assert one.round(2).published
    assert NAME not in drawn
    assert set(drawn) == set(one.names) - {NAME}
    assert one.kinds(NAME)[-4:] == ["joined", "shown", "refused", "outcome"]
    refused, outcome = one.records(NAME)[-2:]
    assert (refused["round"], refused["reason"]) == (2, "budget_exceeded")
    assert (outcome["status"], outcome["reason"]) == ("missed", "budget_exceeded")
    assert one.kinds(NAME).count("intent") == 1
