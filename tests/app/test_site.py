"""What a client holds a run to before it takes part: cap, plan, keys and ledger."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest

from fgrpo_secure import site as site_module
from fgrpo_secure.config import load_config
from fgrpo_secure.errors import ConfigurationError, ModelError, StateError
from fgrpo_secure.registration import recipe_digest
from fgrpo_secure.secrets import identity_key, private_directory
from fgrpo_secure.site import (
    RunFolder,
    TenthsOfADraw,
    check_plan,
    open_client_ledger,
    open_site,
)
from fgrpo_secure.task import load_run_policy, load_task
from privacy.contribution import charge, registered_event
from privacy.crypto import SigningKey
from privacy.errors import BudgetExceededError, PlanMismatchError
from privacy.ledger import (
    ClientClosed,
    Joined,
    Outcome,
    Reason,
    Status,
    claimed_epsilon,
    spend_of,
    write_key_file,
)
from privacy.plan import SERVER, ClientTerms, Plan
from privacy.wire import canonical_json, parse_canonical_json
from tests.end_to_end.program import NAMES, UNITS, records, write_config
from tests.plans import NO_PROMISE, Counter, make_plan

NAME = "sums"
FIRST, SECOND = bytes(range(16)), bytes(range(16, 32))
CLIENTS = tuple(ClientTerms(name, 40) for name in NAMES)


def cost(plan, rounds, delta=None):
    """The epsilon of this many rounds, as it would be claimed."""
    event = registered_event(plan)
    at = Decimal(delta or plan.delta)
    return claimed_epsilon(spend_of(((event, rounds),), at, rounds))


class Sites:
    """Runs of one client over the same private state."""

    def __init__(self, folder):
        self.path = write_config(folder / "given")
        self.folder = folder
        self.open_ledgers = []

    def config(self, *overrides):
        state = f'machine.state="{self.folder / "state"}"'
        return load_config(str(self.path), (state, *overrides))[0]

    def run_folder(self, name="run", plan=None):
        """A run's folder with everyone's key and the plan."""
        root = self.folder / name
        folder = RunFolder.of(root, self.config())
        if not root.exists():
            (root / "keys").mkdir(parents=True)
            (root / "ledger").mkdir()
            private_directory(folder.store)
            for number, party in enumerate([*NAMES, SERVER]):
                key = SigningKey(bytes([number + 1]) * 32)
                if party in NAMES:
                    key = identity_key(private_directory(folder.private(party)))
                write_key_file(folder.key(party), key.verify_key)
        if plan is not None:
            (root / "plan.json").write_bytes(canonical_json(plan.to_json()))
        return folder

    def open(self, plan, *overrides, run=FIRST, folder="run"):
        """Open the client's ledger for a run, as its process would."""
        place = self.run_folder(folder)
        key = identity_key(private_directory(place.private(NAME)))
        config = self.config(*overrides)
        ledger = open_client_ledger(config, plan, place, NAME, key, run)
        self.open_ledgers.append(ledger)
        return ledger

    @property
    def ledger_path(self):
        return self.run_folder().own_ledger(NAME)

    def opened(self):
        return [r for r in records(self.ledger_path) if r["kind"] == "opened"]

    def complete(self, ledger, plan):
        """Charge every round of a run and close it."""
        for number in range(1, plan.rounds + 1):
            ledger.append(Joined(number, 1, bytes(32), bytes(32)))
            charge(
                plan,
                NAME,
                round_number=number,
                attempt=1,
                ledger=ledger,
                entropy=Counter(str(number)),
            )
            ledger.append(
                Outcome(
                    number, 1, Status.MISSED, Reason.INTERRUPTED, (), None, None, None
                )
            )
        history = ledger.history
        spend, lifetime = history.totals()
        ledger.append(
            ClientClosed(
                records=history.records + 1,
                published=0,
                aborted=0,
                missed=plan.rounds,
                spend=spend,
                lifetime=lifetime,
            )
        )
        ledger.close()


@pytest.fixture
def sites(tmp_path):
    made = Sites(tmp_path)
    yield made
    for ledger in made.open_ledgers:
        ledger.close()


def plan_of(**changes):
    return make_plan(clients=CLIENTS, **changes)


def capped(epsilon):
    return f"client.{NAME}.epsilon_cap={epsilon}"


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
    enough = capped(cost(plan, 2 * plan.rounds))
    sites.open(plan, enough, run=SECOND, folder="second")
    assert len(sites.opened()) == 2


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
    sites.open(plan, capped(200)).close()
    with pytest.raises(StateError, match="another run"):
        sites.open(plan, capped(200), run=SECOND, folder="second")
    assert len(sites.opened()) == 1


# The plan against the configuration that the operator accepted.


def matching(config):
    return plan_of(
        epsilon=format(config.privacy.epsilon.normalize(), "f"),
        delta=format(config.privacy.delta.normalize(), "f"),
        rounds=config.privacy.rounds,
        sampling_rate=Fraction(config.privacy.sampling_rate),
        min_survivors=config.federation.min_survivors,
        colluders=config.federation.colluders,
    )


OTHER_TERMS = {
    "epsilon": {"epsilon": "7.9375"},
    "delta": {"delta": "0.0000123"},
    "rounds": {"rounds": 9},
    "sampling rate": {"sampling_rate": Fraction(1, 7)},
    "clip norm": {"clip_norm": Fraction(1, 11)},
    "survivors": {"min_survivors": 4},
    "colluders": {"colluders": 0},
    "a client more": {"clients": (*CLIENTS, ClientTerms("zeta", 40))},
    "another client": {"clients": (*CLIENTS[:3], ClientTerms("zeta", 40))},
}


@pytest.mark.parametrize("changes", OTHER_TERMS.values(), ids=OTHER_TERMS.keys())
def test_a_plan_with_other_terms_than_the_configuration_is_refused(sites, changes):
    config = sites.config("federation.colluders=1", "federation.min_survivors=3")
    plan = matching(config)
    check_plan(plan, config)
    other = replace(plan, **changes)
    with pytest.raises(PlanMismatchError, match="other terms"):
        check_plan(other, config)


def test_a_plan_with_another_number_of_units_than_declared_is_refused(sites):
    config = sites.config(f"client.{NAME}.units=40")
    check_plan(matching(config), config)
    larger = sites.config(f"client.{NAME}.units=41")
    with pytest.raises(PlanMismatchError, match="number of units"):
        check_plan(matching(larger), larger)


def opening(sites, config, plan):
    folder = sites.run_folder(plan=plan)
    return open_site(config, plan, folder, [NAME], FIRST, lambda *_: None)


def test_a_plan_of_another_recipe_is_refused(sites):
    config = sites.config("machine.microbatch=1")
    with pytest.raises(PlanMismatchError, match="recipe"):
        opening(sites, config, matching(config))


def test_a_plan_that_states_fewer_units_than_there_are_is_refused(sites):
    config = sites.config("machine.microbatch=1")
    plan = replace(matching(config), recipe=recipe_digest(config))
    clients = tuple(replace(client, units=UNITS) for client in plan.clients)
    assert opening(sites, config, replace(plan, clients=clients))
    few = tuple(replace(client, units=UNITS - 1) for client in plan.clients)
    with pytest.raises(PlanMismatchError, match="fewer units"):
        opening(sites, config, replace(plan, clients=few))


@pytest.mark.parametrize("microbatch", [1, 8])
@pytest.mark.parametrize("total", [0, 1, 2, 7, 9, 10, 11, 89, 180])
@pytest.mark.parametrize("failed", [False, True])
def test_progress_says_the_same_of_every_draw(microbatch, total, failed):
    told = []
    tenths = TenthsOfADraw(lambda *step: told.append(step), "rollouts")
    for _ in range(2):
        for done in range(microbatch, total, microbatch):
            tenths(done, total)
            if failed and done >= total / 3:
                break
        tenths(1, 1)
    assert told == [("rollouts", step, 10) for step in range(1, 11)] * 2


def test_a_site_looks_at_the_plan_before_anything_is_opened(sites, monkeypatch):
    config = sites.config()

    def reached(*arguments):
        raise AssertionError

    monkeypatch.setattr(site_module, "load_run_policy", reached)
    plan = replace(matching(config), epsilon="7.9375")
    folder = sites.run_folder(plan=plan)
    with pytest.raises(PlanMismatchError):
        open_site(config, plan, folder, [NAME], FIRST, lambda *_: None)
    assert not sites.ledger_path.exists()


# The data against the plan and the model.


@pytest.fixture(scope="module")
def policy():
    config, _ = load_config("tiny")
    return load_run_policy(config)


def test_fewer_declared_units_than_there_are_is_an_error(sites, policy):
    single = "machine.microbatch=1"
    exact = sites.config(single, f"client.{NAME}.units={UNITS}")
    load_task(exact, exact.client_named(NAME), policy)
    short = sites.config(single, f"client.{NAME}.units={UNITS - 1}")
    with pytest.raises(ConfigurationError, match="at least as many"):
        load_task(short, short.client_named(NAME), policy)


def test_a_token_that_the_model_has_no_embedding_for_is_an_error(
    sites, policy, monkeypatch
):
    config = sites.config("machine.microbatch=1")
    size = policy.network.get_input_embeddings().num_embeddings
    encode_all = type(policy).encode_all
    last = {"token": size - 1}

    def patched(self, prompts):
        rows = [list(row) for row in encode_all(self, prompts)]
        rows[-1][-1] = last["token"]
        return [tuple(row) for row in rows]

    monkeypatch.setattr(type(policy), "encode_all", patched)
    load_task(config, config.client_named(NAME), policy)
    last["token"] = size
    with pytest.raises(ModelError, match="embeddings"):
        load_task(config, config.client_named(NAME), policy)
