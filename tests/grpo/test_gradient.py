import dataclasses
import math

import numpy as np
import pytest
import torch

from fgrpo_secure.errors import ModelError
from fgrpo_secure.grpo.adapter import read_vector, write_vector
from fgrpo_secure.grpo.gradient import GradientSettings, ScoredGroup, UnitGradients
from fgrpo_secure.grpo.loss import LOSSES, LossSettings, group_loss
from fgrpo_secure.grpo.packing import Group
from fgrpo_secure.grpo.rollout import RolloutSettings, generate
from tests.grpo.plain import (
    SIZE,
    TEXTS,
    TOKENS,
    gradients,
    plain_gradient,
    plain_logps,
    scored,
    settings,
    uniforms,
)

KINDS = ["llama", "qwen2", "gpt2", "bloom"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "kl", "temperature"), [("dr_grpo", 0.0, 1.0), ("grpo", 0.4, 0.7)]
)
def test_a_units_gradient_is_that_of_its_loss_alone(
    tiny_policy, kind, name, kl, temperature
):
    policy = tiny_policy(kind)
    items = scored(policy)
    units = [[items[0]], [items[1], items[2]], [items[3]], [items[4]]]
    chosen = settings(2, name, kl, temperature)
    for unit, vector in zip(units, gradients(policy, units, chosen), strict=True):
        wanted = plain_gradient(policy, unit, chosen)
        assert vector.dtype == np.float32
        assert vector.shape == read_vector(policy.model).shape
        assert np.abs(wanted).max() > 1e-3
        assert np.allclose(vector, wanted, atol=3e-6, rtol=1e-4)


def test_a_step_against_the_vector_lowers_the_loss(tiny_policy):
    """The vector's order is that of `write_vector`, and its sign that of the loss."""
    policy = tiny_policy()
    (item, *_) = scored(policy)
    chosen = settings()
    (vector,) = gradients(policy, [[item]], chosen)
    before = plain_logps(policy, item.group, 1.0).detach()
    mask = item.group.completion_mask
    weights = torch.tensor(item.advantages, dtype=torch.float32)

    def loss():
        logps = plain_logps(policy, item.group, 1.0)
        return group_loss(logps, before, mask, weights, settings=chosen.loss).item()

    start, step = loss(), 1e-3
    write_vector(policy.model, read_vector(policy.model) - step * vector)
    assert loss() - start == pytest.approx(-step * float(vector @ vector), rel=0.05)


def test_both_layouts_give_the_same_gradients(tiny_policy):
    policy = tiny_policy()
    rows = dataclasses.replace(policy, takes_packed=False)
    units = [[item] for item in scored(policy)]
    row_units = [[item] for item in scored(rows)]
    made = gradients(policy, units, settings(kl=0.1))
    for one, two in zip(
        made, gradients(rows, row_units, settings(kl=0.1)), strict=True
    ):
        assert np.allclose(one, two, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("packed", "slots", "kl"), [(True, 1, 0.2), (True, 3, 0.0), (False, 3, 0.2)]
)
def test_a_units_gradient_does_not_depend_on_other_units(
    tiny_policy, threads, packed, slots, kl
):
    """Guarantee of `compute`: change (to NaN), remove, add, lengthen or move others."""
    policy = dataclasses.replace(tiny_policy(), takes_packed=packed)
    items = scored(policy)
    (longer,) = scored(policy, ["b" * 39], seed=9)
    chosen = settings(slots, kl=kl)

    def bits(units):
        return [vector.tobytes() for vector in gradients(policy, units, chosen)]

    base = bits([[item] for item in items])
    keep = [0, 2, 3, 4]

    def check(victim):
        made = bits([victim if i == 1 else [items[i]] for i in range(5)])
        assert [made[i] for i in keep] == [base[i] for i in keep]
        return made[1]

    bad = np.full(SIZE, math.nan)
    assert np.isnan(
        np.frombuffer(check([ScoredGroup(items[1].group, bad)]), np.float32)
    ).all()
    check([ScoredGroup(items[1].group, np.array([math.inf, 1.0, 0.0, -1.0]))])
    check([ScoredGroup(items[1].group, np.array([1e38, -1e38, 1e38, 0.0]))])
    check([ScoredGroup(items[1].group, np.zeros(SIZE))])
    check([longer])
    check([items[1], longer, items[1]])
    check([])
    for order in ([0, 2, 3, 4], [4, 3, 2, 0], [1, 4, 1, 1, 3, 0, 2]):
        made = bits([[items[i]] for i in order])
        assert made == [base[i] for i in order]


def test_a_group_without_advantages_is_skipped_and_nothing_changes(
    tiny_policy, monkeypatch
):
    policy = tiny_policy()
    items = scored(policy)
    zero = ScoredGroup(items[1].group, np.zeros(SIZE))
    units = [[items[0]], [zero], [zero, items[2]], [zero, zero], []]
    passes = []
    forward = type(policy).forward

    def counted(self, inputs, *args, **kwargs):
        passes.append(len(inputs.ids))
        return forward(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(policy), "forward", counted)
    made = gradients(policy, units, settings(1))
    assert len(passes) == 2
    full = gradients(policy, [[items[0]], [items[2]]], settings(1))
    assert made[0].tobytes() == full[0].tobytes()
    assert made[2].tobytes() == full[1].tobytes()
    for vector in (made[1], made[3], made[4]):
        assert not vector.any()
    # With a KL term the same group has a gradient, which must not be skipped.
    assert gradients(policy, units, settings(1, kl=0.5))[1].any()


def test_without_the_skip_such_a_group_has_a_gradient_of_exact_zeros(tiny_policy):
    policy = tiny_policy()
    (item, *_) = scored(policy)
    chosen = settings()
    zero = ScoredGroup(item.group, np.zeros(SIZE))
    assert not UnitGradients(policy, chosen).needs_pass(zero)
    assert not plain_gradient(policy, [zero], chosen).any()


def test_with_a_kl_term_a_group_of_equal_rewards_needs_its_pass(tiny_policy):
    policy = tiny_policy()
    (item, *_) = scored(policy)
    zero = ScoredGroup(item.group, np.zeros(SIZE))
    assert UnitGradients(policy, settings(kl=0.1)).needs_pass(zero)
    assert UnitGradients(policy, settings()).needs_pass(item)


def test_nothing_of_the_pass_stays_on_the_model(tiny_policy):
    policy = tiny_policy()
    items = scored(policy)
    prompts = policy.encode_all(TEXTS)
    numbers = uniforms(5, seed=5)
    rollout = RolloutSettings(SIZE, TOKENS, max_prompt_tokens=40, microbatch_units=2)
    before = generate(policy, prompts, numbers, rollout)
    stream = UnitGradients(policy, settings(1, kl=0.1)).compute([[i] for i in items])
    next(stream)
    # Also while the generator of gradients is half-way.
    after = generate(policy, prompts, numbers, rollout)
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one.completion_ids, two.completion_ids)
    list(stream)
    for module in policy.network.modules():
        assert not module.training
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not hasattr(module, "activations")
    for parameter in policy.network.parameters():
        assert parameter.grad is None
        assert not hasattr(parameter, "grad_sample")


def test_a_pass_that_breaks_off_does_not_spoil_the_next(tiny_policy, monkeypatch):
    policy = tiny_policy()
    items = scored(policy)
    good = gradients(policy, [[items[0]]], settings())

    def broken(*args, **kwargs):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("fgrpo_secure.grpo.gradient.group_loss", broken)
        with pytest.raises(RuntimeError):
            gradients(policy, [[items[1]]], settings())
    again = gradients(policy, [[items[0]]], settings())
    assert good[0].tobytes() == again[0].tobytes()


def test_a_trained_tensor_without_a_gradient_is_an_error(tiny_policy):
    policy = tiny_policy()
    policy.network.unused = torch.nn.Linear(2, 2)
    items = scored(policy)
    with pytest.raises(ModelError, match="got no gradient"):
        gradients(policy, [[items[0]]], settings())


@pytest.mark.parametrize("packed", [True, False])
def test_the_shape_of_every_pass_depends_on_the_units_own_lengths_alone(
    tiny_policy, monkeypatch, packed
):
    policy = dataclasses.replace(tiny_policy(), takes_packed=packed)
    loss = LossSettings(40, LOSSES["dr_grpo"])
    forward, shapes = type(policy).forward, []

    def recorded(self, inputs, *args, **kwargs):
        shapes.append((tuple(inputs.ids.shape), tuple(inputs.mask.shape)))
        return forward(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(policy), "forward", recorded)

    def item(*lengths):
        steps = torch.arange(40)
        return ScoredGroup(
            Group(
                prompt_ids=torch.full((20,), 5),
                prompt_mask=torch.arange(20) > 3,
                completion_ids=torch.full((2, 40), 6),
                completion_mask=torch.tensor(lengths)[:, None] > steps,
                texts=("", ""),
            ),
            np.array([1.0, -1.0]),
        )

    def passes(*items):
        shapes.clear()
        units = [[item] for item in items]
        list(UnitGradients(policy, GradientSettings(loss, 1.0, 2)).compute(units))
        return shapes.copy()

    # Packed, 20 tokens of the prompt and all but the last of each completion take 24
    # together; by rows, completions of up to 8 tokens take 8.
    short, other, long = item(2, 3), item(3, 3), item(4, 33)
    assert passes(short) == passes(short, other)
    ((first, _),) = passes(short)
    assert first == ((2, 24) if packed else (4, 28))
    ((second, _),) = passes(long)
    assert second == ((2, 56) if packed else (4, 60))
    assert passes(short, long) == passes(short) + passes(long)


def test_a_units_groups_are_added_in_its_own_order(tiny_policy):
    """Floats do not add up the same in another order, which mates could bring about."""
    policy = tiny_policy()
    texts = ["b" * 39, "1+2=", "99=", "12*34="]
    long, short, other, mate = scored(policy, texts)
    unit = [long, short, other]
    (alone,) = gradients(policy, [unit], settings(3))
    _, late = gradients(policy, [[mate], unit], settings(3))
    assert alone.tobytes() == late.tobytes()
    parts = [v for (v,) in (gradients(policy, [[i]], settings(3)) for i in unit)]
    assert alone.tobytes() == (parts[0] + parts[1] + parts[2]).tobytes()
    assert alone.tobytes() != (parts[1] + parts[2] + parts[0]).tobytes()


def test_no_unit_gives_no_gradient(tiny_policy):
    assert gradients(tiny_policy(), [], settings()) == []


def test_dropout_of_the_model_is_off(tiny_policy):
    policy = tiny_policy("llama", attention_dropout=0.5)
    item = scored(policy)[0]
    one, two = (gradients(policy, [[item]], settings())[0] for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert np.allclose(
        one, plain_gradient(policy, [item], settings()), atol=3e-6, rtol=1e-4
    )
