"""What a client holds a run to before it takes part: cap, plan, keys and ledger."""

from dataclasses import replace
from fractions import Fraction

import pytest

from fgrpo_secure import site as site_module
from fgrpo_secure.config import load_config
from fgrpo_secure.errors import ConfigurationError, ModelError
from fgrpo_secure.registration import recipe_digest
from fgrpo_secure.site import TenthsOfADraw, check_plan, open_site
from fgrpo_secure.task import load_run_policy, load_task
from privacy.errors import MalformedMessageError, PlanMismatchError
from privacy.ledger import HANDLE_BYTES
from privacy.plan import ClientTerms
from tests.app.sites import CLIENTS, FIRST, NAME, plan_of
from tests.end_to_end.program import NAMES, UNITS
from tests.plans import cohort

ZETA = ClientTerms("zeta", 40, Fraction(1, 10))

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
    "sampling rate": {"clients": cohort(*[40] * 4, names=NAMES, rate=Fraction(1, 7))},
    "trust": {"trust": "local"},
    "clip norm": {"clip_norm": Fraction(1, 11)},
    "survivors": {"min_survivors": 4},
    "colluders": {"colluders": 0},
    "a client more": {"clients": (*CLIENTS, ZETA)},
    "modulus_bits": {"modulus_bits": 31},
    "rotation": {"rotation": True},
    "another client": {"clients": (*CLIENTS[:3], ZETA)},
}


@pytest.mark.parametrize("changes", OTHER_TERMS.values(), ids=OTHER_TERMS.keys())
def test_a_plan_with_other_terms_than_the_configuration_is_refused(sites, changes):
    config = sites.config("federation.colluders=1", "federation.min_survivors=3")
    plan = matching(config)
    check_plan(plan, config)
    other = replace(plan, **changes)
    with pytest.raises(PlanMismatchError, match="other terms"):
        check_plan(other, config)


def test_a_plan_of_a_cohort_is_accepted_if_the_configuration_makes_that_cohort(sites):
    settings = ("federation.colluders=1", "federation.min_survivors=3")
    config = sites.config(*settings, "federation.cohort_size=4")
    several = config.model_copy(
        update={
            "client": tuple(
                config.client[place % 4].model_copy(update={"name": f"c{place}"})
                for place in range(8)
            )
        }
    )

    def cohort_of(*places):
        rate, names = several.sampling_rate("c0"), [f"c{place}" for place in places]
        return replace(
            matching(config), clients=cohort(*[40] * len(names), names=names, rate=rate)
        )

    for own in (cohort_of(0, 1, 2, 3), cohort_of(4, 5, 6, 7)):
        check_plan(own, several)
    for other in (cohort_of(0, 1, 2, 4), cohort_of(0, 1, 2), cohort_of(*range(8))):
        with pytest.raises(PlanMismatchError, match="other terms"):
            check_plan(other, several)


@pytest.mark.parametrize("name", ["local_steps", "inner_steps"])
def test_a_plan_with_other_steps_than_the_configuration_is_refused(sites, name):
    config = sites.config(
        "federation.colluders=1", "federation.min_survivors=3", "privacy.trust=local"
    )
    plan = replace(matching(config), trust="local")
    check_plan(plan, config)
    with pytest.raises(PlanMismatchError, match="other terms"):
        check_plan(replace(plan, **{name: 2}), config)


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


def test_a_site_notes_the_units_of_its_data_before_its_first_round(sites):
    config = sites.config("machine.microbatch=1")
    plan = replace(matching(config), recipe=recipe_digest(config))
    clients = tuple(replace(client, units=UNITS) for client in plan.clients)
    opening(sites, config, replace(plan, clients=clients))
    noted = sites.ledger_path.with_suffix(".units").read_bytes()
    assert len(noted) == HANDLE_BYTES + 8 + 16 * UNITS


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


@pytest.mark.parametrize("name", ["nobody", "../outside", "", "server"])
@pytest.mark.parametrize("phase", ["offer", "evaluate", "close"])
def test_a_message_for_nobody_of_this_site_leaves_nothing_on_the_disk(
    sites, name, phase
):
    config = sites.config("machine.microbatch=1")
    plan = replace(matching(config), recipe=recipe_digest(config))
    clients = tuple(replace(client, units=UNITS) for client in plan.clients)
    site = opening(sites, config, replace(plan, clients=clients))
    before = {path: path.stat().st_mtime_ns for path in sites.folder.rglob("*")}
    with pytest.raises(MalformedMessageError):
        site.handle(phase, name, b"")
    assert {p: p.stat().st_mtime_ns for p in sites.folder.rglob("*")} == before
