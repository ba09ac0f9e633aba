"""The client's side: units apart from each other, failures hidden, messages checked."""

import json
import stat

import numpy as np
import pytest
import torch

from fgrpo_secure import client as client_module
from fgrpo_secure import draws as draws_module
from fgrpo_secure import learner as learner_module
from fgrpo_secure.errors import ModelError, StateError
from fgrpo_secure.grpo.gradient import UnitGradients
from fgrpo_secure.grpo.units import unit_id
from privacy import contribution as door
from privacy.contribution import Contribution
from privacy.errors import MalformedMessageError, PrivacyError, ReplayError
from privacy.ledger import verify_ledger
from privacy.wire import Reader, Writer
from tests.app.federation import PHASES, Federation
from tests.plans import Counter

NAME = "sums"
# Three clients are quicker than four where none of them drops out.
TRIO = ("count", "shift", NAME)


class Spy:
    """What the clients hand to `Contribution.add`: (client, unit) -> bytes."""

    def __init__(self, monkeypatch):
        self.vectors, self.weights = {}, {}
        add, weigh = Contribution.add, Contribution.weigh

        def spied_add(contribution, unit, vector):
            copied = None if vector is None else vector.copy()
            self.vectors[contribution._name, unit] = copied
            add(contribution, unit, vector)

        def spied_weigh(contribution, weight):
            self.weights[contribution._name] = weight
            weigh(contribution, weight)

        monkeypatch.setattr(Contribution, "add", spied_add)
        monkeypatch.setattr(Contribution, "weigh", spied_weigh)

    def of(self, name=NAME):
        """A client's vectors, in the order in which they were added."""
        return {unit: v for (who, unit), v in self.vectors.items() if who == name}


@pytest.fixture
def spy(monkeypatch):
    return Spy(monkeypatch)


@pytest.fixture
def counted(monkeypatch):
    """The clients' entropy is a counter that starts anew."""
    entropy = Counter("clients")
    monkeypatch.setattr(client_module, "system_entropy", entropy)
    monkeypatch.setattr(learner_module, "system_entropy", entropy)


def rows(one, name=NAME):
    path = one.root.parent / f"given/data/{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def unit_of(row):
    return unit_id(row["prompt"])


def equal(one, other):
    return one.keys() == other.keys() and all(
        same(vector, other[unit]) for unit, vector in one.items()
    )


def same(one, other):
    if one is None or other is None:
        return one is other
    return one.tobytes() == other.tobytes()


# One unit more or less changes no other unit's vector.

STRANGER = {"prompt": "add 11+11=", "answer": "22", "note": "x"}
NEIGHBOURS = {
    "added at the end": lambda data: [*data, STRANGER],
    "added in front": lambda data: [STRANGER, *data],
    "removed at the end": lambda data: data[:-1],
    "removed in front": lambda data: data[1:],
    "all others removed": lambda data: data[2:3],
    "put in another order": lambda data: data[::-1],
    "made longer": lambda data: [{**data[0], "prompt": "add 1111+11111="}, *data[1:]],
    "answered otherwise": lambda data: [{**data[0], "answer": "other"}, *data[1:]],
    "said twice": lambda data: [*data, data[2]],
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The vectors of every unit, by KL coefficient, where nothing is changed."""
    found = {}
    for kl in (0.0, 0.1):
        with pytest.MonkeyPatch.context() as patch:
            spied = Spy(patch)
            entropy = Counter("clients")
            patch.setattr(client_module, "system_entropy", entropy)
            patch.setattr(learner_module, "system_entropy", entropy)
            folder = tmp_path_factory.mktemp("undisturbed")
            one = Federation(folder, names=TRIO, grpo={"kl_coefficient": kl})
            try:
                assert one.round(1).published
            finally:
                one.close()
            found[kl] = spied.vectors
    # The tests mean something: with a KL term no vector is zero, without one some.
    assert all(vector.any() for vector in found[0.1].values())
    assert any(vector.any() for vector in found[0.0].values())
    return found


@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("change", NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
def test_a_change_of_one_unit_leaves_every_other_vector_as_it_is(
    federation, counted, spy, undisturbed, change, kl
):
    one = federation(names=TRIO, edits={NAME: change}, grpo={"kl_coefficient": kl})
    assert one.round(1).published
    before = {unit: v for (who, unit), v in undisturbed[kl].items() if who == NAME}
    after = spy.of()
    first = next(iter(before))
    changed = first if change is NEIGHBOURS["answered otherwise"] else None
    shared = (before.keys() & after.keys()) - {changed}
    assert shared
    for unit in shared:
        assert same(before[unit], after[unit])


def test_what_one_client_has_does_not_change_another_clients_vectors(
    federation, counted, spy, undisturbed
):
    federation(names=TRIO, edits={NAME: lambda data: data[:1]}).round(1)
    others = {key: v for key, v in spy.vectors.items() if key[0] != NAME}
    assert len(others) == 12
    for key, vector in others.items():
        assert same(vector, undisturbed[0.0][key])


# Whatever fails after the draw makes zeros, and the round goes on.


def rewarding(one, monkeypatch, function):
    """Put another reward function in the place of a client's."""
    task = one.tasks[NAME]
    (reward,) = task.rewards.rewards
    monkeypatch.setattr(type(reward), "__slots__", ())
    object.__setattr__(reward, "function", function)


def published_with_everybody(one, number=1):
    outcome = one.round(number)
    assert outcome.published
    assert one.last("server", "published")["survivors"] == one.names


def raising(error):
    def reward(prompts, completions, answer, **columns):
        if any(completions):
            raise error
        return [0.0] * len(completions)

    return reward


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), SystemExit(1), MemoryError(), RecursionError(), StopIteration()],
    ids=lambda error: type(error).__name__,
)
def test_a_reward_that_raises_after_the_draw_counts_as_zeros(
    federation, monkeypatch, spy, error
):
    one = federation(names=TRIO)
    rewarding(one, monkeypatch, raising(error))
    published_with_everybody(one)
    assert len(spy.of()) == 6
    assert not any(vector.any() for vector in spy.of().values())
    assert "x" not in one.kinds(NAME)


def test_a_reward_that_fails_for_one_unit_leaves_the_others_as_they_are(
    federation, counted, monkeypatch, spy, undisturbed
):
    one = federation(names=TRIO)
    bad = rows(one)[2]
    (reward,) = one.tasks[NAME].rewards.rewards
    honest = reward.function

    def picky(prompts, completions, answer, **columns):
        if prompts[0] == bad["prompt"]:
            raise ValueError
        return honest(prompts, completions, answer, **columns)

    rewarding(one, monkeypatch, picky)
    published_with_everybody(one)
    found = spy.of()
    assert not found.pop(unit_of(bad)).any()
    for unit, vector in found.items():
        assert same(vector, undisturbed[0.0][NAME, unit])


@pytest.mark.parametrize("value", [0.0, None, float("nan"), float("inf"), 1e308])
def test_rewards_that_are_all_alike_count_as_zeros(federation, monkeypatch, spy, value):
    one = federation(names=TRIO)
    rewarding(one, monkeypatch, lambda prompts, completions, **_: [value] * 4)
    published_with_everybody(one)
    assert not any(vector.any() for vector in spy.of().values())


@pytest.mark.parametrize(
    "error", [RuntimeError("cuda"), torch.OutOfMemoryError("full"), MemoryError()]
)
def test_a_unit_that_cannot_be_generated_counts_as_zeros_and_hurts_no_other(
    federation, counted, monkeypatch, spy, undisturbed, error
):
    one = federation(names=TRIO)
    bad = rows(one)[3]
    marked = list(one.tasks[NAME].prompts[unit_of(bad)][0])
    generate = draws_module.generate

    def failing(policy, prompts, *rest):
        if any(list(prompt) == marked for prompt in prompts):
            raise error
        return generate(policy, prompts, *rest)

    monkeypatch.setattr(draws_module, "generate", failing)
    published_with_everybody(one)
    found = spy.of()
    failed = found.pop(unit_of(bad))
    assert failed is None or not failed.any()
    for unit, vector in found.items():
        assert same(vector, undisturbed[0.0][NAME, unit])


@pytest.mark.parametrize("error", [RuntimeError("cuda"), MemoryError()])
def test_a_unit_that_cannot_be_differentiated_counts_as_zeros_and_hurts_no_other(
    federation, counted, monkeypatch, spy, undisturbed, error
):
    one = federation(names=TRIO)
    learning = [
        unit
        for (who, unit), vector in undisturbed[0.0].items()
        if who == NAME and vector.any()
    ]
    bad = learning[0]
    marked = one.tasks[NAME].prompts[bad][0]
    gradients = UnitGradients._gradients

    def failing(computing, items, tokens):
        for item in items:
            ids = item.group.prompt_ids[item.group.prompt_mask].tolist()
            if tuple(ids) == tuple(marked):
                raise error
        return gradients(computing, items, tokens)

    monkeypatch.setattr(UnitGradients, "_gradients", failing)
    published_with_everybody(one)
    found = spy.of()
    assert found.pop(bad) is None
    for unit, vector in found.items():
        assert same(vector, undisturbed[0.0][NAME, unit])


def test_a_gradient_that_is_not_a_number_stays_with_its_unit(
    federation, counted, monkeypatch, undisturbed
):
    one = federation(names=TRIO)
    bad = next(
        unit for (who, unit), v in undisturbed[0.0].items() if who == NAME and v.any()
    )
    add = Contribution.add
    seen = {}

    def spoiling(contribution, unit, vector):
        if (contribution._name, unit) == (NAME, bad):
            vector = np.full_like(vector, np.nan)
        add(contribution, unit, vector)
        seen[contribution._name, unit] = contribution._total.copy()

    monkeypatch.setattr(Contribution, "add", spoiling)
    published_with_everybody(one)
    assert all(np.abs(total).max() < 2**40 for total in seen.values())


def test_failures_are_noted_without_what_failed(federation, monkeypatch):
    one = federation(names=TRIO)

    def failing(*arguments):
        raise RuntimeError("planted secret")

    monkeypatch.setattr(draws_module, "generate", failing)
    published_with_everybody(one)
    text = (one.client_folder(NAME) / "metrics.jsonl").read_text("utf-8")
    assert "RuntimeError" in text
    assert "planted" not in text


def test_an_empty_draw_takes_part_as_any_other(federation, monkeypatch, spy):
    one = federation(names=TRIO)
    monkeypatch.setattr(door, "poisson_draw", lambda units, rate, stream: [])
    published_with_everybody(one)
    assert spy.vectors == {}
    for name in one.names:
        ended = ["intent", "commit", "outcome", "cosigned"]
        assert one.kinds(name)[-4:] == ended


def test_a_layer_that_gets_no_gradient_is_an_error_and_not_a_silence(
    federation, monkeypatch
):
    """Training on would spend epsilon on a tensor that never changes."""
    one = federation(names=TRIO)

    def without(name, tensor):
        raise ModelError("got no gradient", "leave it out")

    monkeypatch.setattr("fgrpo_secure.grpo.gradient._grad_sample", without)
    one.round(1)
    for name in one.names:
        assert isinstance(one.exchange.errors["shares", name], ModelError)


# What stays on the client's own disk.


def test_what_a_client_keeps_is_readable_by_its_owner_alone(federation):
    one = federation()
    one.round(1)
    for name in one.names:
        kept = [p for p in one.folder.private(name).rglob("*") if p.is_file()]
        assert {p.name for p in kept} >= {
            "identity.key",
            "baseline.json",
            "metrics.jsonl",
            "opening-00001.key",
        }
        assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in kept)


def test_the_baseline_is_kept_over_a_restart(federation):
    one = federation()
    one.round(1)
    kept = json.loads((one.client_folder(NAME) / "baseline.json").read_text("utf-8"))
    one.restart_client(NAME)
    baseline = one.exchange.clients[NAME]._learner._baseline
    assert (baseline.mean, baseline.variance) == (kept["mean"], kept["variance"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"wrong": 1}'])
def test_a_damaged_baseline_is_an_error_that_says_what_to_do(federation, text):
    one = federation()
    (one.client_folder(NAME) / "baseline.json").write_text(text)
    with pytest.raises(StateError, match="remove it"):
        one.restart_client(NAME)


def test_the_first_round_has_a_neutral_weight_and_later_ones_follow_the_gain(
    federation, monkeypatch, spy
):
    quiet = {"statistic_multiplier": 0.5, "epsilon": 200}
    one = federation(privacy={"sampling_rate": 1, "rounds": 3, **quiet})
    one.round(1)
    (neutral,) = set(spy.weights.values())
    rewarding(one, monkeypatch, lambda prompts, completions, **_: [1.0] * 4)
    one.round(2)
    # Whatever it had, the client with the best of all rewards gains most.
    assert spy.weights[NAME] == max(spy.weights.values()) > neutral


# Messages that an honest server does not send.
# Whoever can send such a message could otherwise fill the ledger with it.


def test_a_phase_that_is_unknown_is_refused_and_changes_nothing(federation):
    one = federation()
    before = one.kinds(NAME)
    with pytest.raises(MalformedMessageError):
        one.exchange.clients[NAME].handle("confess", b"")
    assert one.kinds(NAME) == before


@pytest.mark.parametrize(
    "phase", ["roster", "shares", "survivors", "quorum", "published"]
)
def test_a_message_that_nobody_waits_for_is_refused_and_changes_nothing(
    federation, phase
):
    one = federation(names=TRIO)
    before = one.kinds(NAME)
    with pytest.raises(ReplayError):
        one.exchange.clients[NAME].handle(phase, b"anything")
    assert one.kinds(NAME) == before


def test_an_abort_of_no_round_changes_nothing(federation):
    one = federation(names=TRIO)
    before = one.kinds(NAME)
    one.exchange.clients[NAME].handle("aborted", b"anything")
    assert one.kinds(NAME) == before


def test_an_abort_that_the_server_did_not_sign_is_no_abort(federation):
    one = federation()
    one.exchange.lost = {("shares", "sort"), ("shares", "count")}
    one.exchange.altered["aborted", NAME] = lambda data: (
        data[:200] + bytes([data[200] ^ 1]) + data[201:]
    )
    assert not one.round(1).published
    assert isinstance(one.exchange.errors["aborted", NAME], PrivacyError)
    assert one.kinds(NAME)[-1] == "commit"
    del one.exchange.altered["aborted", NAME]
    one.round(2)
    ended = {
        name: next(r for r in one.records(name) if r["kind"] == "outcome")["status"]
        for name in one.names
    }
    # Its own ledger says only what it can vouch for: that it heard of no end.
    assert ended.pop(NAME) == "missed"
    assert set(ended.values()) == {"aborted"}


def test_a_message_out_of_turn_does_not_end_the_round_in_progress(federation):
    one = federation(names=TRIO)

    def interrupted(data):
        for phase in ("survivors", "confess", "published"):
            with pytest.raises(PrivacyError):
                one.exchange.clients[NAME].handle(phase, b"anything")
        return data

    one.exchange.altered["shares", NAME] = interrupted
    published_with_everybody(one)


ALTERATIONS = [
    lambda data: b"",
    lambda data: data[:-1],
    lambda data: data + b"\0",
    lambda data: bytes([data[0] ^ 1]) + data[1:],
    lambda data: data[:-1] + bytes([data[-1] ^ 1]),
]


@pytest.mark.parametrize("phase", PHASES)
def test_a_message_that_was_altered_takes_only_its_receiver_out(federation, phase):
    one = federation(privacy={"sampling_rate": 1, "epsilon": 50, "rounds": 6})
    for number, change in enumerate(ALTERATIONS, 1):
        one.exchange.altered[phase, NAME] = change
        one.exchange.errors.clear()
        assert one.round(number).published
        assert isinstance(one.exchange.errors[phase, NAME], PrivacyError | ModelError)
        # Its charge, if there was one, stays; nothing is open in its ledger.
        assert not one.ledgers[NAME].history.unfinished
        for name in one.names:
            assert one.kinds(name).count("intent") <= number
    del one.exchange.altered[phase, NAME]
    published_with_everybody(one, len(ALTERATIONS) + 1)


def test_a_round_is_not_joined_twice(federation):
    one = federation()
    one.round(1)
    (offer,) = one.exchange.payloads("offer", NAME)
    before = one.kinds(NAME)
    with pytest.raises(ReplayError):
        one.exchange.clients[NAME].handle("offer", offer)
    assert one.kinds(NAME) == [*before, "refused"]


def test_shares_are_not_answered_twice(federation):
    """A second answer would be a second vector, masked alike."""
    one = federation()
    caught = []

    def twice(data):
        client = one.exchange.clients[NAME]
        client.handle("shares", data)
        with pytest.raises(ReplayError) as error:
            client.handle("shares", data)
        caught.append(error.value)
        return data

    one.exchange.altered["shares", NAME] = twice
    one.round(1)
    assert caught
    assert one.kinds(NAME).count("intent") == 1
    assert one.kinds(NAME).count("commit") == 1


def test_the_end_of_a_round_is_not_told_twice(federation):
    one = federation()
    one.round(1)
    (told,) = one.exchange.payloads("published", NAME)
    with pytest.raises(ReplayError):
        one.exchange.clients[NAME].handle("published", told)
    assert one.kinds(NAME).count("outcome") == 1


def test_a_round_that_came_to_nothing_is_missed_when_the_next_one_is_joined(
    federation,
):
    one = federation()
    one.exchange.lost = {(phase, name) for phase in ("shares",) for name in one.names}
    one.exchange.unreached = {("aborted", name) for name in one.names}
    assert not one.round(1).published
    assert one.kinds(NAME)[-1] == "commit"
    one.exchange.lost = set()
    published_with_everybody(one, 2)
    outcomes = [r for r in one.records(NAME) if r["kind"] == "outcome"]
    assert [(r["status"], r["reason"]) for r in outcomes] == [
        ("missed", "interrupted"),
        ("published", None),
    ]


def test_a_client_that_was_shown_another_adapter_does_not_join(federation):
    one = federation()

    def swapped(data):
        reader = Reader(data)
        number, offer, adapter = reader.integer(), reader.field(), reader.field()
        spoilt = adapter[:-4] + bytes(4)
        assert spoilt != adapter
        message = Writer().integer(number).field(offer).field(spoilt)
        return message.field(reader.field()).finish()

    one.exchange.altered["offer", NAME] = swapped
    assert one.round(1).published
    assert ("offer", NAME) in one.exchange.errors
    assert "joined" not in one.kinds(NAME)
    assert NAME not in one.last("server", "published")["survivors"]


def test_a_client_of_another_plan_does_not_take_part(federation, monkeypatch):
    one = federation()
    from dataclasses import replace

    client = one.exchange.clients[NAME]
    monkeypatch.setattr(client, "_plan", replace(one.plan, recipe="cd" * 32))
    assert one.round(1).published
    assert ("offer", NAME) in one.exchange.errors
    assert "joined" not in one.kinds(NAME)


def test_a_client_that_was_restarted_misses_the_round_in_flight(federation):
    one = federation()

    def restarting(data):
        one.restart_client(NAME)
        return data

    one.exchange.altered["survivors", NAME] = restarting
    one.round(1)
    # The new process does not know the round; the old one's charge stays.
    assert one.kinds(NAME).count("intent") == 1
    del one.exchange.altered["survivors", NAME]
    published_with_everybody(one, 2)
    outcomes = [r["status"] for r in one.records(NAME) if r["kind"] == "outcome"]
    assert outcomes == ["missed", "published"]


def test_a_client_closes_its_run_once_with_its_totals(federation):
    one = federation()
    one.round(1)
    client = one.exchange.clients[NAME]
    client.close()
    client.close()
    assert one.kinds(NAME).count("closed") == 1
    closed = one.last(NAME, "closed")
    assert (closed["published"], closed["aborted"], closed["missed"]) == (1, 0, 0)
    path, key = one.folder.ledger(NAME), one.keys[NAME].verify_key
    assert verify_ledger(path, key=key, closed=True).history.published == 1


def test_a_client_that_closed_is_opened_again_as_it_is(federation):
    """A run may be interrupted between its last round and its summary."""
    one = federation()
    one.round(1)
    one.exchange.clients[NAME].close()
    before = one.kinds(NAME)
    one.restart_client(NAME)
    one.exchange.clients[NAME].close()
    assert one.kinds(NAME) == before


def test_a_client_that_closes_in_the_middle_of_a_round_records_it_as_missed(
    federation,
):
    one = federation()
    one.exchange.unreached = {("survivors", name) for name in one.names}
    one.exchange.unreached |= {("aborted", name) for name in one.names}
    assert not one.round(1).published
    one.exchange.clients[NAME].close()
    assert one.kinds(NAME)[-2:] == ["outcome", "closed"]
    assert one.last(NAME, "closed")["missed"] == 1
