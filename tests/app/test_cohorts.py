"""Several cohorts in one run: one step with their sums, and what if one has none."""

import argparse
import json
import shutil

import numpy as np
import pytest

from audits import verify_ledger
from fgrpo_secure import commands
from fgrpo_secure import server as server_module
from fgrpo_secure.cohort import Cohort
from fgrpo_secure.errors import ConfigurationError, ModelError, StateError
from fgrpo_secure.preparation import make_plans
from fgrpo_secure.registration import cohort_names
from fgrpo_secure.terms import adapter_digest
from privacy import contribution as door
from privacy.contribution import Contribution
from privacy.errors import DisagreementError, PlanMismatchError
from privacy.ledger import Moved, verify_federation
from privacy.plan import WEIGHT_ONE
from tests.app.cohorts import FIRST, NAMES, SECOND, CohortRun
from tests.app.federation import Crash


@pytest.fixture
def cohorts(tmp_path):
    made = []

    def make(**settings):
        made.append(CohortRun(tmp_path / str(len(made)), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def aborting(one, phase="shares"):
    """The second cohort loses the answers of two of its three clients."""
    one.exchange.lost = {(phase, "sort"), (phase, "sums")}


# The sums.


@pytest.mark.parametrize("rule", ["fgrpo", "uniform", "size"])
def test_without_noise_both_cohorts_give_the_direct_weighted_mean(
    cohorts, monkeypatch, rule
):
    """The plain vectors of all six, added by hand, are what the one step is taken with.

    The cohorts' largest and smallest clients differ, and all clients count alike.
    """
    one = cohorts(
        units={"count": 3, "count-2": 6, "sort": 2}, aggregation={"rule": rule}
    )
    vectors, weights, gradients = {}, {}, []
    add, step = Contribution.add, server_module.step

    def spied_add(contribution, unit, vector):
        name = contribution._name
        weights[name] = contribution._weight / WEIGHT_ONE
        vectors.setdefault(name, []).append(vector)
        add(contribution, unit, vector)

    def spied_step(settings, state, parameters, gradient):
        gradients.append(gradient)
        return step(settings, state, parameters, gradient)

    monkeypatch.setattr(Contribution, "add", spied_add)
    monkeypatch.setattr(server_module, "step", spied_step)
    monkeypatch.setattr(
        door, "discrete_gaussian", lambda stream, variance, count: np.zeros(count, int)
    )
    assert one.round(1).published
    if rule == "uniform":
        # What each plan compares with its own smallest client, the run compares with
        # the smallest of all.
        weights = {name: 2 / len(vectors[name]) for name in NAMES}
    clip = float(one.plans[0].clip_norm)
    summed, weighed = np.zeros(one.plans[0].dimension), 0.0
    for name in NAMES:
        for vector in vectors[name]:
            if vector is None:
                continue
            shrink = min(1.0, clip / max(np.linalg.norm(vector), 1e-30))
            summed += weights[name] * shrink * vector
        weighed += weights[name] * len(vectors[name])
    wanted = summed / weighed
    assert np.abs(wanted).max() > 0
    (found,) = gradients
    bound = 1e-3 * np.abs(wanted).max() + 30 / float(one.plans[0].scale) / weighed
    assert np.abs(found - wanted).max() < bound


def test_each_cohort_has_a_plan_a_handle_and_ledgers_of_its_own(cohorts):
    one = cohorts()
    assert one.round(1).words == "6 of 6 clients in the sum"
    assert [tuple(c.name for c in plan.clients) for plan in one.plans] == [
        FIRST,
        SECOND,
    ]
    first, second = (one.last(place, "published") for place in (0, 1))
    assert first["run"] != second["run"]
    assert one.plans[0].digest != one.plans[1].digest
    assert (first["survivors"], second["survivors"]) == (list(FIRST), list(SECOND))
    for key in ("adapter_before", "adapter_after"):
        assert first[key] == second[key]
    assert first["sum_digest"] != second["sum_digest"]
    assert adapter_digest(one.server.adapter).hex() == first["adapter_after"]
    for plan in one.plans:
        # Nobody counts on the noise of the other cohort.
        assert plan.honest_shares * plan.noise_share_variance >= plan.noise_variance
        assert plan.min_survivors == 2
    assert one.problems() == []


def test_an_offer_of_another_cohort_is_refused_and_charges_nothing(cohorts):
    one = cohorts()
    one.exchange.altered = {
        ("offer", "sums"): lambda _: next(
            data for phase, _, data in one.exchange.sent if phase == "offer"
        )
    }
    assert one.round(1).published
    assert isinstance(one.exchange.errors["offer", "sums"], PlanMismatchError)
    assert one.kinds(1, "sums") == ["opened", "refused"]
    # Two are too few for a round, so that nobody else of them is charged either.
    assert one.last(1, "aborted")["dropouts"] == ["sums"]
    assert "intent" not in one.kinds(1, "sort") + one.kinds(1, "shift-2")


# A cohort without a sum.


def test_the_step_is_taken_with_the_cohorts_that_have_a_sum(cohorts):
    one = cohorts()
    start = adapter_digest(one.server.adapter).hex()
    aborting(one)
    outcome = one.round(1)
    assert outcome.published
    assert outcome.words.startswith("3 of 6 clients in the sum; cohort 2 aborted: ")
    published, moved = one.last(0, "published"), one.last(1, "moved")
    assert one.kinds(1)[-2:] == ["aborted", "moved"]
    assert published["adapter_before"] == moved["adapter_before"] == start
    assert published["adapter_after"] == moved["adapter_after"] != start
    # Charged all the same, and told that there is no sum.
    for name in SECOND:
        assert one.kinds(1, name).count("intent") == 1
        assert one.last(1, "outcome", name)["status"] == "aborted"
    one.exchange.lost = set()
    assert one.round(2).published
    assert one.last(1, "round_opened")["adapter_digest"] == moved["adapter_after"]
    assert one.last(1, "published")["survivors"] == list(SECOND)
    assert one.problems() == []
    assert verify_ledger.main([str(one.root)]) == 0
    # By itself the second cohort does not explain what moved its adapter.
    first, second = (str(folder.root) for folder in one.folders)
    assert verify_ledger.main([first]) == 0
    assert verify_ledger.main([second]) == 1


def test_a_round_in_which_no_cohort_has_a_sum_moves_nothing(cohorts):
    one = cohorts()
    start = one.server.adapter
    one.exchange.lost = {("shares", name) for name in ("count", "shift", *SECOND[1:])}
    outcome = one.round(1)
    assert not outcome.published
    assert "cohort 1 aborted" in outcome.words
    assert "cohort 2 aborted" in outcome.words
    assert one.server.adapter == start
    assert "moved" not in one.kinds(0) + one.kinds(1)
    one.exchange.lost = set()
    assert one.round(2).published
    assert one.problems() == []


def test_a_step_that_stops_the_run_is_recorded_by_every_cohort(cohorts, monkeypatch):
    one = cohorts()
    aborting(one)
    monkeypatch.setattr(
        server_module,
        "step",
        lambda settings, state, parameters, gradient: (state, parameters),
    )
    with pytest.raises(ModelError, match="as it was"):
        one.round(1)
    assert one.last(0, "aborted")["reason"] == "stopped"
    assert one.last(1, "aborted")["reason"] == "below_threshold"
    assert "moved" not in one.kinds(1)
    with pytest.raises(ModelError, match="as it was"):
        one.restart_server()


# A server that dies.


@pytest.mark.parametrize("phase", ["offer", "shares", "quorum"])
def test_a_server_that_dies_before_the_step_aborts_the_round_of_all(cohorts, phase):
    """The first cohort's sum is open when the process dies in the second's turn."""
    one = cohorts()
    start, exchange = one.server.adapter, one.exchange.exchange

    def dies(name, messages, deadline):
        if name == phase and "sums" in messages:
            raise Crash
        return exchange(name, messages, deadline)

    one.exchange.exchange = dies
    with pytest.raises(Crash):
        one.round(1)
    one.exchange.exchange = exchange
    one.restart_server()
    assert one.server.adapter == start
    for place in (0, 1):
        assert one.last(place, "aborted")["reason"] == "interrupted"
        assert "published" not in one.kinds(place)
    assert one.round(2).published
    assert one.problems() == []


@pytest.mark.parametrize("written", [0, 1])
@pytest.mark.parametrize("complete", [True, False])
def test_no_ledger_says_other_than_the_rest_after_a_crash_between_them(
    cohorts, monkeypatch, written, complete
):
    one = cohorts()
    one.round(1)
    before, record = one.server.adapter, Cohort.record
    calls = []

    def dies(cohort, what):
        if len(calls) == written:
            raise Crash
        calls.append(what)
        record(cohort, what)

    monkeypatch.setattr(Cohort, "record", dies)
    if not complete:
        aborting(one)
    with pytest.raises(Crash):
        one.round(2)
    monkeypatch.undo()
    one.exchange.lost = set()
    one.restart_server()
    assert one.server.adapter != before
    after = adapter_digest(one.server.adapter).hex()
    assert one.last(0, "published")["adapter_after"] == after
    kind = "published" if complete else "moved"
    assert one.last(1, kind)["adapter_after"] == after
    assert one.kinds(1)[-1] == kind
    # A process that finds everything written writes nothing twice.
    one.restart_server()
    kinds = one.kinds(0) + one.kinds(1)
    assert (kinds.count("published"), kinds.count("moved")) == (
        3 + complete,
        1 - complete,
    )
    assert one.round(3).published
    assert one.problems() == []


def test_a_damaged_note_of_a_step_is_an_error_that_says_what_to_do(cohorts):
    one = cohorts()
    one.round(1)
    for damage in (b"", b"[]", b'[{"kind": "published"}]', b"[1, 2]"):
        (one.private / "step.json").write_bytes(damage)
        with pytest.raises(StateError, match="Restore it"):
            one.restart_server()


def test_ledgers_from_different_moments_are_refused(cohorts, monkeypatch):
    one = cohorts()
    aborting(one)
    # As if the second cohort's ledger had been put back from before it was told.
    monkeypatch.setattr(
        Cohort, "movement", lambda *_: Moved(99, 1, bytes(32), bytes(32))
    )
    one.round(1)
    with pytest.raises(StateError, match="from one moment"):
        one.restart_server()


# A server that lies to its cohorts, each of which verifies.


def test_a_cohort_that_is_not_told_that_the_adapter_moved_is_found(
    cohorts, monkeypatch
):
    one, record = cohorts(), Cohort.record

    def silent(cohort, what):
        if not isinstance(what, Moved):
            record(cohort, what)

    monkeypatch.setattr(Cohort, "record", silent)
    one.round(1)
    aborting(one)
    one.round(2)
    (problem,) = one.problems()
    assert problem.startswith("cohort-0002/ledger/server.jsonl:")
    assert "round 2: it does not say how other cohorts left the adapter" in problem
    # While a run goes on its last round may not be told everywhere yet.
    _, between = verify_federation(one.root, unfinished=True)
    assert between == ()


def test_a_server_that_skips_a_move_cannot_begin_that_cohorts_next_round(
    cohorts, monkeypatch
):
    one, record = cohorts(), Cohort.record
    one.round(1)
    aborting(one)
    monkeypatch.setattr(
        Cohort,
        "record",
        lambda self, what: None if isinstance(what, Moved) else record(self, what),
    )
    one.round(2)
    with pytest.raises(DisagreementError, match="start from the published adapter"):
        one.round(3)


def test_two_cohorts_that_are_told_of_different_adapters_are_found(
    cohorts, monkeypatch
):
    one, publication, tell = cohorts(), Cohort.publication, Cohort.tell

    def told(cohort, after):
        return bytes([7]) * 32 if "sums" in cohort.names else after

    monkeypatch.setattr(
        Cohort,
        "publication",
        lambda self, unmasked, before, after: publication(
            self, unmasked, before, told(self, after)
        ),
    )
    monkeypatch.setattr(
        Cohort,
        "tell",
        lambda self, exchange, unmasked, after: tell(
            self, exchange, unmasked, told(self, after)
        ),
    )
    one.round(1)
    (problem,) = one.problems()
    assert "cohort-0002/ledger/server.jsonl" in problem
    assert "round 1: it leaves the adapter otherwise than other cohorts" in problem
    # Nor does an honest process go on from there.
    with pytest.raises(StateError, match="different adapters"):
        one.restart_server()


def test_two_cohorts_that_start_from_different_adapters_are_found(cohorts, monkeypatch):
    moved = cohorts()
    moved.round(1)
    one, gather = cohorts(), Cohort.gather

    def shown(cohort, exchange, number, adapter):
        other = moved.server.adapter if "sums" in cohort.names else adapter
        return gather(cohort, exchange, number, other)

    monkeypatch.setattr(Cohort, "gather", shown)
    one.exchange.lost = {("quorum", name) for name in NAMES}
    assert not one.round(1).published
    (problem,) = one.problems()
    assert "round 1: it starts from another adapter than in other cohorts" in problem


@pytest.mark.parametrize("name", ["cohort-0003", "cohort-1", "cohort-0002"])
def test_a_cohort_that_is_missing_or_misnamed_is_found(cohorts, name):
    one = cohorts()
    one.round(1)
    assert one.problems() == []
    second = one.root / "cohort-0002"
    if second.name == name:
        shutil.rmtree(second)
    else:
        second.rename(one.root / name)
    _, between = verify_federation(one.root)
    assert [problem.what for problem in between] == ["not at least two, from 0001 on"]


def test_cohorts_of_two_runs_that_are_put_together_are_found(cohorts):
    one, other = cohorts(), cohorts(privacy={"clip_norm": 0.2})
    for run in (one, other):
        run.round(1)
        assert run.problems() == []
    shutil.rmtree(one.root / "cohort-0002")
    shutil.copytree(other.root / "cohort-0002", one.root / "cohort-0002")
    _, between = verify_federation(one.root)
    assert "it has other terms than the first" in between[0].what


# The configuration.


def test_more_than_200_clients_without_cohorts_are_refused_with_the_reason(cohorts):
    one = cohorts()
    client = one.config.client[0]
    many = tuple(
        client.model_copy(update={"name": f"c{number:04d}"}) for number in range(201)
    )
    federation = one.config.federation.model_copy(update={"cohort_size": None})
    config = one.config.model_copy(update={"client": many, "federation": federation})
    with pytest.raises(ConfigurationError) as caught:
        cohort_names(config)
    assert "opens their sum alone" in caught.value.what
    assert "cohort_size" in caught.value.fix
    sized = federation.model_copy(update={"cohort_size": 200})
    config = config.model_copy(update={"federation": sized})
    assert [len(names) for names in cohort_names(config)] == [101, 100]


def test_cohorts_that_would_be_too_small_for_the_noise_are_refused(cohorts):
    one = cohorts()
    federation = one.config.federation.model_copy(
        update={"cohort_size": 4, "min_survivors": 4}
    )
    config = one.config.model_copy(update={"federation": federation})
    with pytest.raises(PlanMismatchError, match="leave one with 3, where 4 are needed"):
        make_plans(config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, which no test changes but for its summary."""
    run = CohortRun(tmp_path_factory.mktemp("cohorts"))
    run.round(1)
    assert run.problems() == []
    run.close()
    return run.root


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s | {"epsilon": 0.5}, "'epsilon' is not what the ledgers"),
        (lambda s: s | {"clients": s["clients"][1:]}, "does not list exactly"),
        (lambda s: s | {"clients": s["clients"] * 2}, "does not list exactly"),
        (
            lambda s: s | {"clients": [{"name": "sums", "epsilon": True}]},
            "the epsilon of 'sums' is not its ledger's",
        ),
        (lambda s: s | {"clients": 3}, "does not list exactly"),
        (lambda s: [], "not a JSON object"),
    ],
)
def test_a_summary_that_is_not_what_the_cohorts_ledgers_say_is_found(
    finished, change, what
):
    path = finished / "summary.json"
    honest = path.read_text()
    path.write_text(json.dumps(change(json.loads(honest))))
    _, between = verify_federation(finished)
    path.write_text(honest)
    assert any(what in problem.what for problem in between)
    assert verify_federation(finished)[1] == ()


def test_the_commands_check_and_show_every_cohort(finished, capsys):
    options = argparse.Namespace(paths=[finished], unfinished=False)
    assert commands.verify_ledgers(options) == 0
    said = capsys.readouterr().out
    assert said.count("verifies: plan") == 2
    assert said.endswith(": verifies: 2 cohorts of one run\n")
    assert all(f"  {name}: epsilon" in said for name in NAMES)
    assert commands.show_ledgers(options) == 0
    shown = capsys.readouterr().out.splitlines()
    files = [line for line in shown if line.endswith(".jsonl")]
    assert len(files) == len(NAMES) + 2
    (finished / "summary.json").rename(finished / "kept")
    assert commands.verify_ledgers(options) == 1
    (finished / "kept").rename(finished / "summary.json")
    assert "summary.json: summary.json: missing" in capsys.readouterr().out
