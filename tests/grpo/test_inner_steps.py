"""Several gradients on one draw: the weights that generated are no longer the present.

The door that `learner` uses is `UnitGradients.behaviour_logps` before the first step.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fgrpo_secure.grpo.adapter import read_vector, write_vector
from fgrpo_secure.grpo.gradient import ScoredGroup, UnitGradients
from fgrpo_secure.grpo.policy import Policy
from tests.grpo.plain import (
    SIZE,
    TOKENS,
    gradients,
    plain_gradient,
    plain_logps,
    settings,
)
from tests.grpo.plain import scored as endless

FAR = 0.6
"""How far the adapter moves, for ratios on both sides of the clip."""


def scored(policy, *args, **kwargs):
    """Groups with completions of many lengths."""
    items = endless(policy, *args, **kwargs)
    shown = torch.arange(TOKENS) < torch.tensor([TOKENS, 3, 1, 4])[:, None]
    return [cut(item, shown.roll(i, 0)) for i, item in enumerate(items)]


def cut(item, shown):
    mask = item.group.completion_mask & shown
    group = dataclasses.replace(item.group, completion_mask=mask)
    return dataclasses.replace(item, group=group)


def by_rows(policy, packed):
    return dataclasses.replace(policy, takes_packed=packed)


def move(policy, size=FAR, seed=5):
    vector = read_vector(policy.model)
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(vector.size, generator=generator).numpy()
    write_vector(policy.model, vector + np.float32(size) * step)


def remembered(policy, units, chosen):
    """The units with what the present weights say of them."""
    known = UnitGradients(policy, chosen).behaviour_logps(units)
    return [
        [
            dataclasses.replace(item, behaviour=logps)
            for item, logps in zip(unit, own, strict=True)
        ]
        for unit, own in zip(units, known, strict=True)
    ]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_behaviours_numbers_are_those_of_each_text_alone(
    tiny_policy, packed, temperature
):
    policy = by_rows(tiny_policy(), packed)
    items = scored(policy)
    chosen = settings(temperature=temperature)
    ((first, second), *rest) = remembered(
        policy, [items[:2], *([i] for i in items[2:])], chosen
    )
    for item in (first, second, *(unit[0] for unit in rest)):
        wanted = plain_logps(policy, item.group, temperature)
        mask = item.group.completion_mask
        assert item.behaviour.dtype == torch.float32
        assert item.behaviour.shape == (SIZE, TOKENS)
        assert not item.behaviour.requires_grad
        assert torch.allclose(item.behaviour[mask], wanted[mask], atol=1e-5)
        assert not item.behaviour[~mask].any()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "bloom"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("slots", "kl"), [(1, 0.0), (3, 0.3)])
def test_weights_that_did_not_move_give_the_bits_of_a_first_step(
    tiny_policy, threads, kind, packed, slots, kl
):
    policy = by_rows(tiny_policy(kind), packed and kind != "bloom")
    units = [[item] for item in scored(policy)]
    units = [units[0] + units[1], *units[2:]]
    chosen = settings(slots, kl=kl)
    known = remembered(policy, units, chosen)
    for one, two in zip(
        gradients(policy, units, chosen),
        gradients(policy, known, chosen),
        strict=True,
    ):
        assert one.any()
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "kl"), [("dr_grpo", 0.0), ("grpo", 0.4)])
def test_after_a_move_the_clipped_gradient_is_that_of_the_units_loss_alone(
    tiny_policy, packed, name, kl
):
    policy = by_rows(tiny_policy(), packed)
    items = scored(policy)
    chosen = settings(2, name, kl, 0.8)
    units = remembered(
        policy, [[items[0]], [items[1], items[2]], [items[3]], [items[4]]], chosen
    )
    move(policy)
    clipped = 0
    for unit, vector in zip(units, gradients(policy, units, chosen), strict=True):
        wanted = plain_gradient(policy, unit, chosen)
        assert np.abs(wanted).max() > 1e-4
        assert np.allclose(vector, wanted, atol=3e-6, rtol=1e-4)
        fresh = [dataclasses.replace(item, behaviour=None) for item in unit]
        (unclipped,) = gradients(policy, [fresh], chosen)
        assert not np.allclose(vector, unclipped, atol=1e-4, rtol=1e-2)
        for item in unit:
            mask = item.group.completion_mask
            now = plain_logps(policy, item.group, 0.8).detach()
            ratio = (now - item.behaviour).exp()
            gains = torch.tensor(item.advantages)[:, None]
            over = ((ratio > 1.2) & (gains > 0)) | ((ratio < 0.8) & (gains < 0))
            clipped += int((over & mask).sum())
    # The clip acted, and not on everything.
    total = sum(int(i.group.completion_mask.sum()) for u in units for i in u)
    assert 0 < clipped < total


def test_a_token_beyond_the_clip_has_no_gradient(tiny_policy):
    policy = tiny_policy()
    (item, *_) = scored(policy)
    now = plain_logps(policy, item.group, 1.0).detach()
    up = np.ones(SIZE)

    def vector(ratio, advantages):
        given = ScoredGroup(item.group, advantages, now - math.log(ratio))
        return gradients(policy, [[given]], settings())[0]

    assert not vector(1.3, up).any()
    assert vector(1.1, up).any()
    assert not vector(0.7, -up).any()
    assert vector(0.7, up).any()
    # Inside the clip the ratio is a factor of the gradient.
    plain = gradients(policy, [[ScoredGroup(item.group, up)]], settings())[0]
    assert np.allclose(vector(1.1, up), 1.1 * plain, atol=1e-6, rtol=1e-4)


def test_padded_places_of_the_behaviour_count_for_nothing(tiny_policy):
    policy = tiny_policy()
    items = scored(policy)
    ((item,),) = remembered(policy, [[items[0]]], settings())
    mask = item.group.completion_mask
    assert not mask.all()
    wild = item.behaviour.masked_fill(~mask, math.nan)
    given = dataclasses.replace(item, behaviour=wild)
    one, two = (gradients(policy, [[i]], settings())[0] for i in (item, given))
    assert one.any()
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize(
    ("packed", "slots", "kl"), [(True, 1, 0.2), (True, 3, 0.0), (False, 3, 0.2)]
)
def test_later_steps_of_a_unit_do_not_depend_on_other_units(
    tiny_policy, threads, packed, slots, kl
):
    """Guarantees of `behaviour_logps` and `compute`: change others, even to NaN.

    The weights have moved, so the ratios are real; others may bring a behaviour or
    none.
    """
    policy = by_rows(tiny_policy(), packed)
    items = scored(policy)
    (longer,) = scored(policy, ["b" * 39], seed=9)
    chosen = settings(slots, kl=kl)
    start = read_vector(policy.model)

    def behaviours(units):
        write_vector(policy.model, start)
        made = UnitGradients(policy, chosen).behaviour_logps(units)
        return [[logps.numpy().tobytes() for logps in own] for own in made]

    def bits(units):
        write_vector(policy.model, start)
        move(policy)
        return [vector.tobytes() for vector in gradients(policy, units, chosen)]

    known = [unit[0] for unit in remembered(policy, [[i] for i in items], chosen)]
    ((far,),) = remembered(policy, [[longer]], chosen)
    said, base = behaviours([[i] for i in items]), bits([[i] for i in known])
    keep = [0, 2, 3, 4]

    def check_behaviour(victim):
        made = behaviours([victim if i == 1 else [items[i]] for i in range(5)])
        assert [made[i] for i in keep] == [said[i] for i in keep]

    def check(victim):
        made = bits([victim if i == 1 else [known[i]] for i in range(5)])
        assert [made[i] for i in keep] == [base[i] for i in keep]
        return np.frombuffer(made[1], np.float32)

    group, advantages = items[1].group, items[1].advantages
    other = torch.full_like(group.completion_ids, 24)
    for victim in (
        [ScoredGroup(group, np.full(SIZE, math.nan))],
        [ScoredGroup(dataclasses.replace(group, completion_ids=other), advantages)],
        [longer],
        [items[1], longer, items[1]],
        [],
    ):
        check_behaviour(victim)
    for order in ([0, 2, 3, 4], [4, 3, 2, 0], [1, 4, 1, 1, 3, 0, 2]):
        assert behaviours([[items[i]] for i in order]) == [said[i] for i in order]
        assert bits([[known[i]] for i in order]) == [base[i] for i in order]

    for bad in (math.nan, math.inf):
        spoiled = torch.full((SIZE, TOKENS), bad)
        victim = dataclasses.replace(known[1], behaviour=spoiled)
        check([victim])
    nan = torch.full((SIZE, TOKENS), math.nan)
    assert np.isnan(check([dataclasses.replace(known[1], behaviour=nan)])).all()
    assert np.isnan(check([ScoredGroup(group, np.full(SIZE, math.nan), nan)])).all()
    # A ratio that overflows.
    check([dataclasses.replace(known[1], behaviour=torch.full((SIZE, TOKENS), -1e30))])
    check([dataclasses.replace(known[1], behaviour=None)])
    check([ScoredGroup(group, np.zeros(SIZE), known[1].behaviour)])
    check([far])
    check([longer])
    check([known[1], far, items[1]])
    check([])


def test_a_group_without_advantages_needs_no_pass_in_any_step(tiny_policy, monkeypatch):
    policy = tiny_policy()
    items = scored(policy)
    zero = ScoredGroup(items[1].group, np.zeros(SIZE))
    units = [[items[0]], [zero], [zero, items[2]], []]
    passes = []
    forward = Policy.forward

    def counted(self, inputs, *args, **kwargs):
        passes.append(len(inputs.ids))
        return forward(self, inputs, *args, **kwargs)

    monkeypatch.setattr(Policy, "forward", counted)
    known = remembered(policy, units, settings(1))
    assert len(passes) == 2
    assert [[i.behaviour is None for i in unit] for unit in known] == [
        [False],
        [True],
        [True, False],
        [],
    ]
    move(policy)
    made = gradients(policy, known, settings(1))
    assert len(passes) == 4
    assert made[0].any()
    assert made[2].any()
    assert not made[1].any()
    assert not made[3].any()
    # The skip is right: with a behaviour of its own and a pass, it would be zeros.
    given = ScoredGroup(zero.group, zero.advantages, torch.zeros(SIZE, TOKENS))
    assert not plain_gradient(policy, [given], settings()).any()
    assert not UnitGradients(policy, settings()).needs_pass(given)
    # With a KL term every group needs its pass in every step.
    with_kl = remembered(policy, units, settings(1, kl=0.5))
    assert all(item.behaviour is not None for unit in with_kl for item in unit)


def test_looking_up_the_behaviour_leaves_nothing_on_the_model(tiny_policy):
    policy = tiny_policy()
    units = [[item] for item in scored(policy)]
    before = gradients(policy, units, settings())
    vector = read_vector(policy.model)
    remembered(policy, units, settings())
    assert read_vector(policy.model).tobytes() == vector.tobytes()
    assert not any(module.training for module in policy.network.modules())
    after = gradients(policy, units, settings())
    assert [v.tobytes() for v in before] == [v.tobytes() for v in after]
