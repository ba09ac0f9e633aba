"""The server's side: what it publishes, how it aborts, and how it is taken up again."""

import numpy as np
import pytest

from fgrpo_secure import draws as draws_module
from fgrpo_secure import server as server_module
from fgrpo_secure.errors import ModelError, StateError
from fgrpo_secure.grpo import adapter
from fgrpo_secure.terms import adapter_digest
from privacy import contribution as door
from privacy.codec import encode, weight_coordinate
from privacy.cohorts import Cohorts, CohortSum
from privacy.contribution import Contribution
from privacy.ledger import verify_run
from privacy.plan import SERVER, WEIGHT_ONE
from privacy.wire import Reader
from tests.app.federation import ALL_DRAWN, PHASES, Crash
from tests.plans import NAMES as PLANNED
from tests.plans import cohort, make_plan

GONE = "sums"


def offered(one):
    """The adapter of every offer, in order."""
    found = []
    for data in one.exchange.payloads("offer"):
        reader = Reader(data)
        reader.integer()
        reader.field()
        found.append(reader.field())
    return found


def verified(one):
    """Close every ledger, and check the folder as an auditor would.

    Only the summary is missing, which the server does not write.
    """
    for name in one.names:
        one.exchange.clients[name].close()
    one.server.close()
    report = verify_run(one.root)
    assert {problem.file for problem in report.problems} == {"summary.json"}
    return report


# What is published.


def test_the_published_digest_is_what_clients_compute_in_the_next_round(federation):
    one = federation()
    one.round(1)
    one.round(2)
    first, second = (r for r in one.records(SERVER) if r["kind"] == "published")
    adapters = offered(one)
    assert len(set(adapters[:4])) == len(set(adapters[4:])) == 1
    assert adapter_digest(adapters[0]).hex() == first["adapter_before"]
    assert adapter_digest(adapters[4]).hex() == first["adapter_after"]
    assert first["adapter_after"] == second["adapter_before"] != first["adapter_before"]
    for name in one.names:
        outcome, joined = one.last(name, "outcome"), one.last(name, "joined")
        assert joined["adapter_digest"] == first["adapter_after"]
        assert outcome["adapter_digest"] == second["adapter_after"]


def test_the_server_names_the_ledger_head_that_each_client_had(federation):
    one = federation()
    one.round(1)
    heads = one.last(SERVER, "published")["heads"]
    assert heads.keys() == set(one.names)
    assert len(set(heads.values())) == len(one.names)
    verified(one)


def test_a_round_moves_the_adapter_and_leaves_its_frozen_half(federation):
    one = federation()
    before = adapter.read_vector(one.policy.model)
    start = one.server.adapter
    one.round(1)
    model = one.server.model_with_adapter()
    assert not np.array_equal(adapter.read_vector(model), before)
    frozen = [
        {n: t.clone() for n, t in model.named_parameters() if "lora_A" in n}
        for data in (start, one.server.adapter)
        if adapter.from_bytes(model, data) is None
    ]
    assert frozen[0].keys() == frozen[1].keys() != set()
    assert all(frozen[0][name].equal(frozen[1][name]) for name in frozen[0])


# The two sums.


def test_the_quotient_of_the_sums_is_the_weighted_mean_of_the_clipped_gradients():
    sizes = cohort(30, 40, 10, 20, names=PLANNED)
    plan = make_plan(clients=sizes, norm_bound=2**15, noise_variance=2**32)
    generator = np.random.Generator(np.random.PCG64(5))
    weights = dict(zip(PLANNED, (WEIGHT_ONE, 40_000, 30_000, 21_846), strict=True))
    total = np.zeros(plan.vector_length, dtype=np.int64)
    summed, weighed = np.zeros(plan.dimension), 0.0
    for name in PLANNED:
        for _ in range(5):
            gradient = generator.normal(size=plan.dimension)
            total[:-1] += encode(
                gradient,
                scale=plan.scale,
                norm_bound=plan.norm_bound,
                weight=weights[name],
            )
            clipped = gradient * float(plan.clip_norm) / np.linalg.norm(gradient)
            summed += weights[name] / WEIGHT_ONE * clipped
        total[-1] += weight_coordinate(weights[name], plan.batch_share(name))
        weighed += weights[name] / WEIGHT_ONE * float(plan.expected_batch(name))
    # Each of 20 roundings moves the sum by half a step; the clipping shrinks by 1e-4.
    wanted = summed / weighed
    bound = 20 / float(plan.scale) / weighed + 1e-4 * np.abs(wanted).max()
    joined = Cohorts((plan,)).add([CohortSum(0, total, bytes(32))])
    assert np.abs(joined.mean(plan.scale) - wanted).max() < bound


@pytest.mark.parametrize(
    ("rule", "bits", "rotation"),
    [
        ("fgrpo", 32, False),
        ("uniform", 32, False),
        ("size", 32, False),
        ("fgrpo", 20, True),
        ("size", 24, True),
        ("fgrpo", 20, False),
        # In four times fewer parts the weights are rounded, too.
        ("uniform", 18, True),
    ],
)
def test_without_noise_a_round_gives_the_direct_weighted_mean(
    federation, monkeypatch, rule, bits, rotation
):
    """The plain integers, added by hand, are what comes out of the masks."""
    edits = {"count": lambda rows: rows[:3], "sort": lambda rows: rows[:5]}
    privacy = ALL_DRAWN["privacy"] | {"modulus_bits": bits, "rotation": rotation}
    one = federation(edits=edits, aggregation={"rule": rule}, privacy=privacy)
    vectors, weights, gradients = {}, {}, []
    add, step = Contribution.add, server_module.step

    def spied_add(contribution, unit, vector):
        name = contribution._name
        weights[name] = contribution._weight
        vectors.setdefault(name, []).append(vector)
        add(contribution, unit, vector)

    def spied_step(settings, state, parameters, gradient):
        gradients.append(gradient)
        return step(settings, state, parameters, gradient)

    def silent(stream, variance, count):
        return np.zeros(count, dtype=np.int64)

    monkeypatch.setattr(Contribution, "add", spied_add)
    monkeypatch.setattr(server_module, "step", spied_step)
    monkeypatch.setattr(door, "discrete_gaussian", silent)
    one.round(1)
    assert one.round(2).published
    plan, clip = one.plan, float(one.plan.clip_norm)
    # The first round's vectors stand in front; units are 6, 3, 6 and 5 a round.
    summed, weighed = np.zeros(plan.dimension), 0.0
    for name in one.names:
        units = plan.client(name).units
        assert len(vectors[name]) == 2 * units
        for vector in vectors[name][units:]:
            shrink = min(1.0, clip / max(np.linalg.norm(vector), 1e-30))
            summed += weights[name] / WEIGHT_ONE * shrink * vector
        weighed += weights[name] / WEIGHT_ONE * float(plan.expected_batch(name))
    wanted = summed / weighed
    assert np.abs(wanted).max() > 0
    grid = 20 / float(plan.scale) / weighed
    assert np.abs(gradients[1] - wanted).max() < grid + 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize(("bits", "parts"), [(32, WEIGHT_ONE), (18, WEIGHT_ONE // 4)])
def test_a_weight_that_no_honest_client_sends_aborts_the_round(
    federation, monkeypatch, bits, parts
):
    privacy = ALL_DRAWN["privacy"] | {"modulus_bits": bits, "rotation": True}
    one = federation(privacy=privacy)
    assert one.plan.weight_steps == parts
    monkeypatch.setattr(door, "weight_coordinate", lambda *_: parts + 1)
    assert not one.round(1).published
    assert one.last(SERVER, "aborted")["reason"] == "faulty_client"
    monkeypatch.undo()
    assert one.round(2).published
    verified(one)


# Clients that are missing.


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("way", ["lost", "unreached"])
def test_a_round_goes_on_without_one_client(federation, phase, way):
    one = federation()
    setattr(one.exchange, way, {(phase, GONE)})
    outcome = one.round(1)
    assert outcome.published
    # Whoever has sent its vector is in the sum, even if it is not heard of again.
    inside = phase in {"survivors", "quorum", "published"}
    assert (GONE in one.last(SERVER, "published")["survivors"]) == inside
    one.exchange.lost, one.exchange.unreached = set(), set()
    assert one.round(2).published
    assert one.last(SERVER, "published")["survivors"] == one.names
    verified(one)


@pytest.mark.parametrize("phase", PHASES[:-1])
def test_too_few_clients_abort_the_round_and_the_next_one_works(federation, phase):
    one = federation()
    start = one.server.adapter
    one.exchange.lost = {(phase, "sums"), (phase, "sort")}
    outcome = one.round(1)
    assert not outcome.published
    aborted = one.last(SERVER, "aborted")
    assert aborted["reason"] == "below_threshold"
    assert aborted["dropouts"] == ["sort", "sums"]
    assert one.server.adapter == start
    # Whoever was charged stays charged, and knows how the round ended.
    charged = phase not in {"offer", "roster"}
    for name in one.names:
        assert one.kinds(name).count("intent") == charged
        assert one.kinds(name)[-2:] == ["outcome", "cosigned"]
    one.exchange.lost = set()
    assert one.round(2).published
    for name in one.names:
        assert one.kinds(name).count("intent") == charged + 1
        assert one.last(name, "intent")["spend"]["charges"] == charged + 1
    report = verified(one)
    assert (report.published, report.aborted) == (1, 1)


def test_a_round_that_nobody_answers_is_aborted(federation):
    one = federation()
    one.exchange.unreached = {
        (phase, name) for phase in (*PHASES, "aborted") for name in one.names
    }
    assert not one.round(1).published
    assert one.last(SERVER, "aborted")["dropouts"] == one.names
    one.exchange.unreached = set()
    assert one.round(2).published
    verified(one)


def test_an_aborted_round_is_never_opened(federation):
    """Nothing of a sum that was refused is recorded or kept."""
    one = federation()
    one.exchange.lost = {("shares", "sums"), ("shares", "sort")}
    one.round(1)
    assert "published" not in one.kinds(SERVER)
    assert "survivors" not in one.kinds(SERVER)
    phases = {phase for phase, _, _ in one.exchange.sent}
    assert "survivors" not in phases
    assert "quorum" not in phases


def test_what_the_server_says_of_an_abort_names_no_private_value(federation):
    one = federation()
    one.exchange.lost = {("shares", "sums"), ("shares", "sort")}
    words = one.round(1).words
    assert "aborted" in words
    for row in (one.root.parent / "given/data/sums.jsonl").read_text().splitlines():
        assert row not in words


# A server that dies.


@pytest.mark.parametrize("phase", PHASES)
def test_a_server_that_dies_in_a_round_aborts_it_and_goes_on(federation, phase):
    one = federation()
    one.round(1)
    before = one.server.adapter
    one.exchange.crash = phase
    with pytest.raises(Crash):
        one.round(2)
    one.restart_server()
    # By the last phase the new adapter is on disk and in the ledger.
    told = phase == "published"
    assert (one.server.adapter != before) == told
    if not told:
        aborted = one.last(SERVER, "aborted")
        assert (aborted["round"], aborted["reason"]) == (2, "interrupted")
    assert one.server.recover() == 2
    assert one.round(3).published
    for name in one.names:
        joined = [r["round"] for r in one.records(name) if r["kind"] == "joined"]
        assert joined == sorted(set(joined))
        # Every round whose noise was drawn is charged, the interrupted one included.
        charged = 3 if phase in {"survivors", "quorum", "published"} else 2
        assert one.kinds(name).count("intent") == charged
    report = verified(one)
    assert report.published == (3 if told else 2)


def test_a_server_that_dies_before_its_ledger_says_published_keeps_the_old_adapter(
    federation, monkeypatch
):
    one = federation()
    one.round(1)
    before, head = one.server.adapter, one.ledgers[SERVER].head
    write = server_module.write_checkpoint

    def dying(*arguments):
        write(*arguments)
        raise Crash

    monkeypatch.setattr(server_module, "write_checkpoint", dying)
    with pytest.raises(Crash):
        one.round(2)
    monkeypatch.undo()
    assert one.ledgers[SERVER].head != head
    one.restart_server()
    assert one.server.adapter == before
    assert one.kinds(SERVER).count("published") == 1
    assert one.round(3).published
    # The checkpoint that the ledger never vouched for is gone.
    assert len(list(one.private.glob("*.safetensors"))) == 1
    verified(one)


def test_the_optimizer_goes_on_where_it_was(federation):
    one = federation()
    one.round(1)
    one.round(2)
    kept = one.server._state.optimizer
    one.restart_server()
    again = one.server._state.optimizer
    assert again.steps == kept.steps == 2
    assert np.array_equal(again.first, kept.first)
    assert np.array_equal(again.second, kept.second)
    assert kept.first.any()


def test_a_missing_checkpoint_is_an_error_that_says_what_to_do(federation):
    one = federation()
    one.round(1)
    (path,) = one.private.glob("*.safetensors")
    path.unlink()
    with pytest.raises(StateError, match="Restore it"):
        one.restart_server()


def test_a_server_closes_its_run_once(federation):
    one = federation()
    one.round(1)
    one.server.close()
    one.server.close()
    assert one.kinds(SERVER).count("closed") == 1
    assert one.last(SERVER, "closed")["published"] == 1


# A step that does not move every trained tensor.


def stopped(one, number=1):
    """Run a round that ends the run, and hold the ledgers to what that means."""
    with pytest.raises(ModelError) as caught:
        one.round(number)
    assert caught.value.exit_code == 4
    assert "begin a new run in another folder" in caught.value.fix
    assert one.kinds(SERVER)[-1] == "aborted"
    assert one.last(SERVER, "aborted")["reason"] == "stopped"
    assert one.last(SERVER, "aborted")["dropouts"] == []
    for name in one.names:
        outcome = one.last(name, "outcome")
        # The sum was opened, so a client can only say that it has no adapter of it.
        assert (outcome["status"], outcome["reason"]) == ("missed", "server_aborted")
        assert one.kinds(name).count("intent") == number
    assert len(one.exchange.payloads("published")) == (number - 1) * len(one.names)
    return caught.value


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_rate_too_small_for_float32_stops_the_run_after_one_round(
    federation, optimizer
):
    one = federation(server={"optimizer": optimizer, "learning_rate": 1e-14})
    start = one.server.adapter
    error = stopped(one)
    assert "round 1 left the adapter of" in error.what
    assert "learning_rate" in error.fix
    assert one.server.adapter == start
    # Whoever goes on with the run is told the same, and nothing more is charged.
    for attempt in (lambda: one.round(2), one.restart_server, one.restart_server):
        with pytest.raises(ModelError) as again:
            attempt()
        assert str(again.value) == str(error)
    assert all(one.kinds(name).count("intent") == 1 for name in one.names)
    # The refused process had opened the ledger anew.
    one.server._cohorts[0]._ledger = one.ledgers[SERVER]
    verified(one)


def test_one_tensor_that_stays_as_it_was_stops_the_run_and_is_named(
    federation, monkeypatch
):
    one = federation()
    one.round(1)
    names = adapter.trainable_names(one.policy.model)
    (victim, *others) = names
    size = adapter.trainable_tensors(one.policy.model)[0].numel()

    def partly(settings, state, parameters, gradient):
        state, moved = step(settings, state, parameters, gradient)
        moved[:size] = parameters[:size]
        return state, moved

    step = server_module.step
    monkeypatch.setattr(server_module, "step", partly)
    error = stopped(one, 2)
    assert f"the adapter of {adapter.layers_of([victim])} as it was" in error.what
    assert not any(adapter.layers_of([name]) in error.what for name in others)
    assert one.kinds(SERVER).count("published") == 1
    verified(one)


def test_a_step_to_numbers_that_are_not_finite_stops_the_run(federation, monkeypatch):
    one = federation()

    def far(settings, state, parameters, gradient):
        state, moved = step(settings, state, parameters, gradient)
        moved[-1] = np.inf
        return state, moved

    step = server_module.step
    monkeypatch.setattr(server_module, "step", far)
    error = stopped(one)
    assert "not finite" in error.what
    assert "Lower [server] learning_rate" in error.fix
    verified(one)


def test_a_process_that_dies_while_it_stops_does_not_go_on_later(
    federation, monkeypatch
):
    one = federation(server={"learning_rate": 1e-14})

    def dies(*arguments):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(one.server._cohorts[0], "abandon", dies)
        with pytest.raises(Crash):
            one.round(1)
    with pytest.raises(ModelError, match="as it was"):
        one.restart_server()
    assert one.last(SERVER, "aborted")["reason"] == "interrupted"
    assert all(one.kinds(name).count("intent") == 1 for name in one.names)


def test_without_noise_a_round_of_equal_rewards_goes_on(federation, monkeypatch):
    """Its sum is zero, which says nothing of any tensor."""
    monkeypatch.setattr(
        draws_module,
        "group_advantages",
        lambda rewards, scale: np.zeros(rewards.shape),
    )
    one = federation(privacy={"epsilon": float("inf"), "rounds": 2})
    start = one.server.adapter
    assert one.round(1).published
    assert one.server.adapter == start
    verified(one)
    # With a gradient it is held to the rule: a rate that moves nothing stops it.
    monkeypatch.undo()
    two = federation(
        privacy={"epsilon": float("inf"), "rounds": 2}, server={"learning_rate": 1e-14}
    )
    assert "as it was" in stopped(two).what
