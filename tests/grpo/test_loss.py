import math

import numpy as np
import pytest
import torch

from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.grpo.loss import (
    LOSSES,
    LossSettings,
    check_settings,
    group_advantages,
    group_loss,
)


def reference_loss(logps, old, mask, advantages, *, clip, high, kl, ref, name, longest):
    """The loss token by token, written from the papers' formulas."""
    sums, counts = [], []
    for g in range(len(logps)):
        terms = []
        for t in range(len(logps[g])):
            if not mask[g][t]:
                continue
            ratio = math.exp(logps[g][t] - old[g][t])
            clipped = min(max(ratio, 1 - clip), 1 + high)
            term = -min(ratio * advantages[g], clipped * advantages[g])
            gap = ref[g][t] - logps[g][t]
            terms.append(term + kl * (math.exp(gap) - gap - 1))
        sums.append(sum(terms))
        counts.append(len(terms))
    if name == "dr_grpo":
        return sum(sums) / (len(sums) * longest)
    return sum(s / max(c, 1) for s, c in zip(sums, counts, strict=True)) / len(sums)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(4, 5, generator=generator).double() * 0.4 for _ in range(3)]
    mask = torch.tensor([5, 3, 1, 0])[:, None] > torch.arange(5)
    return (*draws, mask, torch.tensor([1.5, -0.7, 0.2, -1.0]).double())


@pytest.mark.parametrize("name", ["dr_grpo", "grpo"])
@pytest.mark.parametrize(("high", "kl"), [(None, 0.0), (0.5, 0.0), (None, 0.3)])
def test_the_loss_equals_the_formula(tensors, name, high, kl):
    logps, old, ref, mask, advantages = tensors
    settings = LossSettings(9, LOSSES[name], 0.2, high, kl)
    value = group_loss(logps, old, mask, advantages, ref, settings=settings)
    wanted = reference_loss(
        *(t.tolist() for t in (logps, old, mask, advantages)),
        clip=0.2,
        high=0.2 if high is None else high,
        kl=kl,
        ref=ref.tolist(),
        name=name,
        longest=9,
    )
    assert value.item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", ["dr_grpo", "grpo"])
def test_padded_places_hold_anything_and_change_nothing(tensors, name):
    logps, old, ref, mask, advantages = tensors
    settings = LossSettings(5, LOSSES[name], kl_coefficient=0.1)
    plain = logps.clone().requires_grad_()
    group_loss(plain, old, mask, advantages, ref, settings=settings).backward()
    wild = logps.masked_fill(~mask, math.nan).requires_grad_()
    bad_ref = ref.masked_fill(~mask, math.inf)
    group_loss(wild, old, mask, advantages, bad_ref, settings=settings).backward()
    assert torch.equal(plain.grad, wild.grad)
    assert plain.grad[~mask].eq(0).all()


def test_dr_grpo_divides_by_a_constant_and_not_by_lengths(tensors):
    logps, old, _, mask, advantages = tensors
    settings = LossSettings(5, LOSSES["dr_grpo"])
    double = LossSettings(10, LOSSES["dr_grpo"])
    one = group_loss(logps, old, mask, advantages, settings=settings)
    two = group_loss(logps, old, mask, advantages, settings=double)
    assert one.item() == pytest.approx(2 * two.item())


def test_advantages_are_those_of_trl():
    rewards = np.array([1.0, 0.0, 0.5, 0.25])
    tensor = torch.tensor(rewards)
    scaled = (tensor - tensor.mean()) / (tensor.std() + 1e-4)
    assert np.allclose(group_advantages(rewards, "group"), scaled.numpy(), rtol=1e-12)
    plain = (tensor - tensor.mean()).numpy()
    assert np.allclose(group_advantages(rewards, "none"), plain, rtol=1e-12)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_equal_rewards_give_exact_zeros(scale):
    for value in (0.0, 0.1, 1 / 3, -7.7):
        rewards = np.full(7, value)
        assert not group_advantages(rewards, scale).any()
        rewards[2] = np.nan
        assert not group_advantages(rewards, scale).any()


def test_a_missing_reward_has_no_advantage_and_does_not_enter_the_mean():
    with_gap = group_advantages(np.array([1.0, np.nan, 0.0, 0.5]), "none")
    assert with_gap.tolist() == [0.5, 0.0, -0.5, 0.0]
    assert not group_advantages(np.full(4, np.nan), "group").any()
    assert not group_advantages(np.array([np.nan, 3.0]), "group").any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "dapo"}, "tokens of the whole batch"),
        ({"loss_type": "cispo"}, "tokens of the whole batch"),
        ({"loss": "vespo"}, "tokens of the whole batch"),
        ({"loss": "bnpo"}, "several prompts"),
        ({"loss": "ppo"}, "no such loss"),
        ({"scale_rewards": "batch"}, "over the whole batch"),
        ({"scale_rewards": "median"}, "no such scale"),
        ({"dynamic_sampling": True}, "depending on the rewards of others"),
        ({"oversampling": 2}, "until a group has a gradient"),
        ({"normalize_then_sum": True}, "each reward over the batch"),
        ({"top_entropy_quantile": 0.2}, "quantile over the batch"),
        ({"router_aux_loss_coef": 0.01}, "balances the whole batch"),
    ],
)
def test_a_setting_that_couples_units_is_refused_with_the_reason(settings, words):
    with pytest.raises(ConfigurationError) as caught:
        check_settings(settings)
    assert words in caught.value.what
    assert caught.value.exit_code == 2


def test_safe_settings_pass():
    for loss in ("dr_grpo", "grpo"):
        for scale in ("group", "none"):
            check_settings({"loss": loss, "scale_rewards": scale, "group_size": 8})
    check_settings({"dynamic_sampling": False, "top_entropy_quantile": 1.0})
