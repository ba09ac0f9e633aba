"""Clients that take noised steps of their own, in a whole round."""

from fractions import Fraction

import numpy as np
import pytest

from fgrpo_secure import client as client_module
from fgrpo_secure import learner as learner_module
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.gradient import UnitGradients
from fgrpo_secure.server import Server
from privacy.codec import encode
from privacy.contribution import Contribution
from privacy.plan import WEIGHT_ONE
from tests.app.federation import Federation
from tests.plans import Counter

NAME = "sums"
TRIO = ("count", "shift", NAME)
RATE = 3.0
LOCAL = {
    "names": TRIO,
    "privacy": {
        "trust": "local",
        "local_steps": 2,
        "inner_steps": 2,
        "sampling_rate": 1,
        "epsilon": 5000,
        "rounds": 3,
    },
    "grpo": {
        "group_size": 4,
        "max_tokens": 3,
        "max_prompt_tokens": 16,
        "local_learning_rate": RATE,
    },
}
NOISELESS = {**LOCAL, "privacy": LOCAL["privacy"] | {"epsilon": float("inf")}}


class Spy:
    """What one client does with the door, in order."""

    def __init__(self, monkeypatch, policy):
        self.log, self.weights = [], []
        draw, add, release = Contribution.draw, Contribution.add, Contribution.release
        weigh = Contribution.weigh

        def place():
            return adapter.read_vector(policy().model).copy()

        def spied_draw(contribution, units):
            drawn = draw(contribution, units)
            if contribution._name == NAME:
                self.log.append(("draw", place(), drawn))
            return drawn

        def spied_add(contribution, unit, vector):
            if contribution._name == NAME:
                copied = None if vector is None else vector.copy()
                self.log.append(("add", place(), (unit, copied)))
            add(contribution, unit, vector)

        def spied_release(contribution):
            released = release(contribution)
            if contribution._name == NAME:
                self.log.append(("release", place(), released.copy()))
            return released

        def spied_weigh(contribution, weight):
            if contribution._name == NAME:
                self.weights.append(weight)
            weigh(contribution, weight)

        monkeypatch.setattr(Contribution, "draw", spied_draw)
        monkeypatch.setattr(Contribution, "add", spied_add)
        monkeypatch.setattr(Contribution, "release", spied_release)
        monkeypatch.setattr(Contribution, "weigh", spied_weigh)

    def of(self, kind):
        return [(place, what) for told, place, what in self.log if told == kind]


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """A federation, spied on at one client; no random number depends on the day."""
    opened = []

    def make(settings=LOCAL, folder="one", **more):
        entropy = Counter("clients")
        monkeypatch.setattr(client_module, "system_entropy", entropy)
        monkeypatch.setattr(learner_module, "system_entropy", entropy)
        (tmp_path / folder).mkdir()
        opened.append(Federation(tmp_path / folder, **settings, **more))
        spy = Spy(monkeypatch, lambda: opened[-1].site_policy)
        return opened[-1], spy

    yield make
    for one in opened:
        one.close()


def test_each_step_moves_the_clients_own_model_by_the_noised_release_alone(begin):
    one, spy = begin()
    assert one.round(1).published
    start = one.tasks[NAME]
    assert start.local_learning_rate == RATE
    releases, places = spy.of("release"), []
    assert len(releases) == 4
    for place, released in releases:
        places.append(place - RATE * released)
    # What the next step finds is where the last one went, and nothing besides.
    draws, adds = spy.of("draw"), spy.of("add")
    assert len(draws) == 2
    assert np.allclose(draws[1][0], places[1], atol=1e-6)
    for number, (place, _) in enumerate(releases[1:]):
        assert np.allclose(place, places[number], atol=1e-6)
        assert not np.allclose(place, releases[number][0], atol=1e-6)
    each = len(adds) // 4
    for number in range(4):
        for place, _ in adds[number * each : (number + 1) * each]:
            assert np.array_equal(place, releases[number][0])


def test_every_client_starts_every_round_from_the_offered_adapter(begin):
    one, spy = begin()
    for number in (1, 2):
        model = one.policy.model
        adapter.from_bytes(model, one.server.adapter)
        offered = adapter.read_vector(model).copy()
        assert one.round(number).published
        assert np.array_equal(spy.of("add")[0][0], offered)
        spy.log.clear()


def test_every_draw_is_an_event_and_every_round_two(begin):
    one, _ = begin()
    for number in (1, 2):
        one.round(number)
        intent = one.last(NAME, "intent")
        assert intent["releases"] == 2
        assert intent["event"]["inner_steps"] == 2
        assert intent["spend"]["charges"] == 2 * number


@pytest.mark.parametrize(
    "bits", [{}, {"modulus_bits": 24}, {"modulus_bits": 20, "rotation": True}]
)
def test_the_server_steps_by_the_weighted_sum_of_all_steps(begin, bits):
    """Without noise: the sums of clipped gradients at the places that they led to."""
    settings = {**NOISELESS, "privacy": NOISELESS["privacy"] | bits}
    one, spy = begin({**settings, "aggregation": {"rule": "uniform"}})
    sums = {}
    add = Contribution.add

    def summed(contribution, unit, vector):
        add(contribution, unit, vector)
        if vector is not None:
            plan, name = contribution._plan, contribution._name
            sums[name] = sums.get(name, 0) + encode(
                vector,
                scale=plan.scale,
                norm_bound=plan.norm_bound,
                weight=WEIGHT_ONE,
            )

    decoded = []
    decode = Server._decode

    def spied(server, unmasked):
        decoded.append(decode(server, unmasked))
        return decoded[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "_decode", spied)
        patch.setattr(Contribution, "add", summed)
        assert one.round(1).published
    assert spy.weights == [WEIGHT_ONE]
    batch = sum(one.plan.expected_batch(name) for name in TRIO)
    # A client of a rotated sum rounds once more, to half a step of the grid at most.
    rounding = len(TRIO) / 2 * one.plan.dimension**0.5 * one.plan.rotation
    moved = decoded[0] * float(one.plan.scale) * float(batch)
    assert np.linalg.norm(moved - sum(sums.values())) <= rounding + 1e-3


def test_a_units_part_in_the_first_step_depends_on_no_other_unit(begin):
    one, spy = begin()
    one.round(1)
    first = first_step(spy)
    stranger = {"prompt": "add 11+11=", "answer": "22", "note": "x"}
    changed = {NAME: lambda rows: [{**rows[0], "answer": "other"}, *rows[1:], stranger]}
    two, other = begin(folder="two", edits=changed)
    two.round(1)
    found = first_step(other)
    shared = first.keys() & found.keys()
    assert len(shared) >= 5
    same = [first[unit].tobytes() == found[unit].tobytes() for unit in shared]
    # Only the unit whose answer was changed may differ.
    assert same.count(False) <= 1
    assert found.keys() - shared


def first_step(spy):
    """The vectors that were added before anything was released."""
    kinds = [kind for kind, _, _ in spy.log]
    before = spy.log[: kinds.index("release")]
    return {what[0]: what[1] for kind, _, what in before if kind == "add"}


def test_the_ratio_to_the_model_that_generated_counts_in_inner_steps(begin):
    """With a far step the clipped ratio takes the gradient away."""
    far = {**NOISELESS, "grpo": NOISELESS["grpo"] | {"local_learning_rate": 1e4}}
    one, spy = begin(far)
    one.round(1)
    norms = [
        float(np.linalg.norm([vector for _, (_, vector) in group]))
        for group in np.array_split(np.array(spy.of("add"), dtype=object), 4)
        if len(group)
    ]
    assert norms[0] > 0
    assert norms[1] < norms[0] / 2


def test_a_unit_whose_behaviour_cannot_be_told_counts_as_zeros(begin, monkeypatch):
    one, spy = begin()
    told = UnitGradients.behaviour_logps
    seen = []

    def failing(self, units):
        seen.append(len(units))
        # All of them together, and of those that are alone, every second one.
        if len(units) > 1 or len(seen) % 2:
            raise MemoryError
        return told(self, units)

    monkeypatch.setattr(UnitGradients, "behaviour_logps", failing)
    assert one.round(1).published
    added = [vector for _, (_, vector) in spy.of("add")]
    assert any(vector is None for vector in added)
    assert any(vector is not None for vector in added)


def test_a_clients_own_rate_is_what_it_draws_with_and_pays_for(begin):
    own = {f"client.{NAME}.sampling_rate": 0.5}
    overrides = [f"{key}={value}" for key, value in own.items()]
    one, spy = begin(
        {**LOCAL, "privacy": LOCAL["privacy"] | {"sampling_rate": 1}},
        overrides=overrides,
    )
    assert one.round(1).published
    assert one.plan.client(NAME).sampling_rate == Fraction(1, 2)
    intents = {name: one.last(name, "intent") for name in TRIO}
    assert intents[NAME]["event"]["sampling_rate"] == "1/2"
    assert intents["shift"]["event"]["sampling_rate"] == "1/1"
    spent = {n: float(i["spend"]["epsilon_pld"]) for n, i in intents.items()}
    assert spent[NAME] < spent["shift"] == spent["count"]
    drawn = [len(what) for _, what in spy.of("draw")]
    assert len(drawn) == 2
    assert min(drawn) < 6


@pytest.mark.parametrize(
    ("rate", "words"), [(1e-30, "as it was"), (1e45, "not finite")]
)
def test_a_local_step_that_moves_nothing_or_too_far_ends_the_clients_part(
    begin, rate, words
):
    grpo = LOCAL["grpo"] | {"local_learning_rate": rate}
    one, _ = begin({**LOCAL, "grpo": grpo})
    assert not one.round(1).published
    said = [str(error) for error in one.exchange.errors.values()]
    assert len(said) == len(TRIO)
    assert all(words in text and "local_learning_rate" in text for text in said)
    assert one.last(NAME, "intent")["releases"] == 2
    spent = one.last(NAME, "intent")["spend"]["charges"]
    assert not one.round(2).published
    assert one.last(NAME, "intent")["spend"]["charges"] == spent


def test_numbers_that_do_not_fit_into_memory_end_no_clients_part(begin, monkeypatch):
    one, spy = begin()
    victim = next(iter(one.tasks[NAME].units))
    made = Contribution.uniforms

    def failing(contribution, unit, count):
        if unit == victim:
            raise MemoryError
        return made(contribution, unit, count)

    monkeypatch.setattr(Contribution, "uniforms", failing)
    assert one.round(1).published
    added = [vector for _, (unit, vector) in spy.of("add") if unit == victim]
    assert added == [None] * 4


def test_a_rounds_weight_is_made_from_the_mean_of_all_its_statistics(begin):
    """And the noise that is known of the mean falls with their number."""
    one, _ = begin()
    measured, told = [], {}
    noised, updated = Contribution.noised_mean, learner_module.updated

    def spied(contribution, rewards):
        value = noised(contribution, rewards)
        if contribution._name == NAME:
            measured.append(value)
        return value

    def followed(weighting, before, mean, noise_std):
        told.setdefault(mean, noise_std)
        return updated(weighting, before, mean, noise_std)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contribution, "noised_mean", spied)
        patch.setattr(learner_module, "updated", followed)
        one.round(1)
    plan = one.plan
    assert len(measured) == 2
    alone = plan.statistic_variance**0.5 / plan.statistic_norm_bound
    alone /= float(plan.expected_batch(NAME))
    assert told[sum(measured) / 2] == pytest.approx(alone / 2**0.5)
