"""The probe of gradients at start-up: what it passes, what it finds, what it leaves."""

import dataclasses

import pytest
import torch

from fgrpo_secure.errors import ModelError
from fgrpo_secure.grpo import gradient as gradient_module
from fgrpo_secure.grpo.adapter import read_vector, trainable_names
from fgrpo_secure.grpo.gradient import UnitGradients
from fgrpo_secure.grpo.gradient_probe import verify_gradients
from fgrpo_secure.grpo.policy import Policy
from tests.grpo.plain import settings

WIDEST = 16


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "bloom"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("slots", "name", "kl"), [(1, "grpo", 0.3), (8, "dr_grpo", 0)])
def test_a_sound_model_passes_and_is_left_as_it_was(
    tiny_policy, kind, packed, slots, name, kl
):
    for zero in (True, False):
        policy = tiny_policy(kind, zero=zero)
        policy = dataclasses.replace(policy, takes_packed=packed and kind != "bloom")
        before = read_vector(policy.model)
        verify_gradients(policy, settings(slots, name, kl, 0.7), WIDEST)
        assert read_vector(policy.model).tobytes() == before.tobytes()
        for module in policy.network.modules():
            assert not module.training
            assert not module._forward_hooks
            assert not module._backward_hooks
        for parameter in policy.network.parameters():
            assert parameter.grad is None
            assert not hasattr(parameter, "grad_sample")


def test_completions_of_one_token_pass(tiny_policy):
    chosen = settings(2)
    loss = dataclasses.replace(chosen.loss, max_tokens=1)
    verify_gradients(tiny_policy(), dataclasses.replace(chosen, loss=loss), WIDEST)


@pytest.mark.parametrize("factor", [0.0, 0.9, -1.0, 2.0])
def test_a_gradient_that_is_off_in_one_tensor_is_found_and_named(
    tiny_policy, monkeypatch, factor
):
    policy = tiny_policy()
    victim = trainable_names(policy.model)[1]
    original = gradient_module._grad_sample

    def spoiled(name, tensor):
        found = original(name, tensor)
        return found * factor if name == victim else found

    monkeypatch.setattr(gradient_module, "_grad_sample", spoiled)
    with pytest.raises(ModelError) as caught:
        verify_gradients(policy, settings(), WIDEST)
    words = "no gradient, or one of zeros" if factor == 0 else "another gradient"
    assert words in caught.value.what
    assert "model.layers.0.self_attn.v_proj gets" in caught.value.what
    assert "q_proj" not in caught.value.what
    assert "layers.1" not in caught.value.what
    assert "target_modules" in caught.value.fix


def test_gradients_that_are_those_of_a_mate_are_found(tiny_policy, monkeypatch):
    original = gradient_module._grad_sample
    monkeypatch.setattr(
        gradient_module, "_grad_sample", lambda *given: original(*given).roll(1, 0)
    )
    with pytest.raises(ModelError, match="and 1 more gets another gradient"):
        verify_gradients(tiny_policy(), settings(), WIDEST)
    # A unit that is alone has no mates.
    verify_gradients(tiny_policy(), settings(1), WIDEST)


def test_a_base_model_with_a_number_that_is_not_finite_is_found(tiny_policy):
    policy = tiny_policy()
    with torch.no_grad():
        policy.network.model.norm.weight[3] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        verify_gradients(policy, settings(), WIDEST)


def test_a_pass_that_fails_is_refused_and_not_left_to_the_rounds(
    tiny_policy, monkeypatch
):
    """In a round it would count as the failure of one unit after the other."""

    def broken(*args, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr("fgrpo_secure.grpo.gradient.packed_logps", broken)
    with pytest.raises(ModelError, match=r"cannot be computed .*NotImplementedError"):
        verify_gradients(tiny_policy(), settings(), WIDEST)


def test_a_tensor_that_no_pass_reaches_is_named_by_its_layer(tiny_policy):
    policy = tiny_policy()
    policy.network.unused = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match=r"unused\.bias, unused\.weight gets no"):
        verify_gradients(policy, settings(), WIDEST)


@pytest.mark.parametrize(("window", "layouts"), [(None, [4]), (14, [2, 4]), (8, [2])])
def test_each_layout_that_a_run_may_use_is_tried(
    tiny_policy, monkeypatch, window, layouts
):
    """Packed where prompt and completion fit in a sliding window, else by rows."""
    policy = tiny_policy(sliding_window=window)
    forward, taken = Policy.forward, set()

    def recorded(self, inputs, *args, **kwargs):
        taken.add(inputs.mask.ndim)
        return forward(self, inputs, *args, **kwargs)

    monkeypatch.setattr(Policy, "forward", recorded)
    verify_gradients(policy, settings(), WIDEST)
    assert sorted(taken) == layouts


def test_the_probe_takes_a_handful_of_short_passes(tiny_policy, monkeypatch):
    policy = tiny_policy()
    forward, shapes = type(policy.network).forward, []

    def counted(self, input_ids, **kwargs):
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(type(policy.network), "forward", counted)
    verify_gradients(policy, settings(8), 512)
    # Two groups of two completions by themselves, and one micro-batch of both.
    assert shapes == [(1, 10), (1, 9), (1, 8), (1, 6), (2, 16)]


def test_the_probe_sees_units_apart(tiny_policy, monkeypatch):
    """Both groups are differentiated in one micro-batch, or it would prove little."""
    taken = []
    compute = UnitGradients._gradients

    def recorded(self, items, width):
        taken.append(len(items))
        return compute(self, items, width)

    monkeypatch.setattr(UnitGradients, "_gradients", recorded)
    verify_gradients(tiny_policy(), settings(4), WIDEST)
    verify_gradients(tiny_policy(), settings(1), WIDEST)
    assert taken == [2, 1, 1]
