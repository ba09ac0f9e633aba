"""Per-sample gradients against one backward pass a unit, on three architectures.

LoRA is on every linear layer of attention and MLP, the embeddings are tied, and the
gradients come out of the path that a round takes. In float64 nothing but a bug can
differ by more than 1e-10; in float32 agreement is up to `FLOAT32`.
"""

import dataclasses

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from fgrpo_secure.errors import FgrpoError, ModelError
from fgrpo_secure.grpo import gradient as gradient_module
from fgrpo_secure.grpo.adapter import LoraSettings, trainable_names, trainable_tensors
from fgrpo_secure.grpo.gradient import UnitGradients
from fgrpo_secure.grpo.gradient_probe import verify_gradients
from fgrpo_secure.grpo.policy import make_policy
from tests.grpo.conftest import SHARED, SMALL, make_model, make_tokenizer
from tests.grpo.plain import plain_gradient, scored, settings

FLOAT32 = 2e-5
"""Of the largest coordinate of a unit's gradient."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {
    "llama": (*ATTENTION, "gate_proj", "up_proj", "down_proj"),
    "qwen2": (*ATTENTION, "gate_proj", "up_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}
# Two blocks of seven layers; of four where c_proj stands in attention and MLP.
TENSORS = {"llama": 14, "qwen2": 14, "gpt2": 8}
CASES = [
    ("dr_grpo", 0.0, 1.0),
    ("dr_grpo", 0.3, 0.8),
    ("grpo", 0.0, 0.8),
    ("grpo", 0.3, 1.0),
]


def full_policy(kind, *, double=False, packed=True, **changes):
    """A policy with an adapter that is not zero on all linear layers."""
    model = make_model(kind, tie_word_embeddings=True, **changes)
    return grown(model, TARGETS[kind], double=double, packed=packed)


def grown(model, targets, *, double=False, packed=True):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    policy = make_policy(model, make_tokenizer(), LoraSettings(3, 6.0, targets))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for tensor in trainable_tensors(policy.model):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    if double:
        to_double(policy)
    return dataclasses.replace(policy, takes_packed=packed and policy.takes_packed)


def to_double(policy):
    """Compute in float64 throughout.

    The norms of Llama and Qwen2 compute in float32 whatever their input is, so torch's
    own take their place: the formula is the same.
    """
    for parent in list(policy.network.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(len(child.weight), child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    policy.model.double()


def ragged_units(policy):
    """Units of one, two and three prompts, with completions of many lengths."""
    items = []
    for number, item in enumerate(
        scored(policy, ["1+2=", "a", "12*3-4=", "h f?", "9="])
    ):
        ends = torch.tensor([5, 3, 1, 4]).roll(number)[:, None]
        mask = item.group.completion_mask & (torch.arange(5) < ends)
        group = dataclasses.replace(item.group, completion_mask=mask)
        # Advantages enter a pass in float32.
        advantages = item.advantages.astype(np.float32).astype(np.float64)
        items.append(dataclasses.replace(item, group=group, advantages=advantages))
    return [[items[0]], items[1:3], [items[3], items[4], items[0]]]


def exact_gradients(policy, units, chosen, monkeypatch):
    """What a round computes, before the vectors are rounded to float32."""
    kept = []

    def recorded(name, tensor):
        made = original(name, tensor)
        kept.append(made.detach().clone())
        return made

    original = gradient_module._grad_sample
    monkeypatch.setattr(gradient_module, "_grad_sample", recorded)
    vectors = []
    for unit in units:
        kept.clear()
        (rounded,) = UnitGradients(policy, chosen).compute([unit])
        tensors = trainable_tensors(policy.model)
        total = np.concatenate(
            [
                sum(part.sum(0) for part in kept[i :: len(tensors)]).flatten().numpy()
                for i in range(len(tensors))
            ]
        )
        assert np.abs(rounded - total).max() < 1e-6 * np.abs(total).max()
        vectors.append(total)
    return vectors


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "kl", "temperature"), CASES)
def test_in_float64_per_sample_gradients_are_those_of_single_backward_passes(
    monkeypatch, kind, packed, name, kl, temperature
):
    policy = full_policy(kind, double=True, packed=packed)
    units = ragged_units(policy)
    chosen = settings(3, name, kl, temperature)
    made = exact_gradients(policy, units, chosen, monkeypatch)
    for unit, vector in zip(units, made, strict=True):
        wanted = plain_gradient(policy, unit, chosen)
        assert wanted.dtype == np.float64
        assert np.abs(wanted).max() > 1e-3
        assert np.abs(vector - wanted).max() < 1e-10


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_in_float32_they_agree_up_to_rounding(kind, packed, slots):
    policy = full_policy(kind, packed=packed)
    units = ragged_units(policy)
    for name, kl, temperature in CASES:
        chosen = settings(slots, name, kl, temperature)
        made = list(UnitGradients(policy, chosen).compute(units))
        for unit, vector in zip(units, made, strict=True):
            wanted = plain_gradient(policy, unit, chosen)
            gap = np.abs(vector - wanted).max()
            assert gap < FLOAT32 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("packed", [True, False])
def test_every_adapted_layer_gets_a_gradient_of_its_own(kind, packed):
    policy = full_policy(kind, packed=packed)
    assert len(trainable_names(policy.model)) == TENSORS[kind]
    assert policy.takes_packed == packed
    (unit, *_) = ragged_units(policy)
    (vector,) = UnitGradients(policy, settings()).compute([unit])
    sizes = [tensor.numel() for tensor in trainable_tensors(policy.model)]
    parts = np.split(vector, np.cumsum(sizes)[:-1])
    assert all(part.any() for part in parts)
    verify_gradients(policy, settings(), 16)


def test_the_base_layers_of_gpt2_hold_their_weights_transposed():
    """What this file says of GPT-2 would be empty with linear layers."""
    policy = full_policy("gpt2")
    kinds = {
        type(module.get_base_layer()).__name__
        for module in policy.network.modules()
        if hasattr(module, "get_base_layer")
    }
    assert kinds == {"Conv1D"}
    assert policy.model.peft_config["default"].fan_in_fan_out
    assert len(get_peft_model_state_dict(policy.model)) == 2 * TENSORS["gpt2"]


# Architectures that are refused.


def refused(build, words):
    with pytest.raises(FgrpoError) as caught:
        build()
    assert words in caught.value.what
    assert caught.value.fix
    assert caught.value.exit_code == 4
    return caught.value


@pytest.mark.parametrize(
    ("kind", "target"), [("llama", "embed_tokens"), ("gpt2", "wte")]
)
def test_an_embedding_is_refused(kind, target):
    model = make_model(kind)
    targets = (*TARGETS[kind], target)
    error = refused(lambda: grown(model, targets), "LoRA cannot adapt")
    assert "linear layers only" in error.fix


def test_a_mixture_of_experts_is_refused():
    model = MixtralForCausalLM(
        MixtralConfig(**(SHARED | SMALL | {"num_local_experts": 2}))
    )
    error = refused(lambda: grown(model, ATTENTION), "mixture of experts")
    assert "dense" in error.fix


class Spare(LlamaForCausalLM):
    """Has a layer that its forward pass does not use."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[1].self_attn.spare = nn.Linear(32, 32, bias=False)


class Fused(LlamaForCausalLM):
    """Reads a layer's weight without calling the layer, as fused kernels do."""

    def __init__(self, config):
        super().__init__(config)
        layer = self.model.layers[0].mlp

        def forward(x):
            gate = nn.functional.linear(x, layer.gate_proj.weight)
            return layer.down_proj(layer.act_fn(gate) * layer.up_proj(x))

        layer.forward = forward


class TimeFirst(LlamaForCausalLM):
    """Hands a layer its input with the axis of time before that of the batch."""

    def __init__(self, config):
        super().__init__(config)
        layer = self.model.layers[1].mlp
        plain = layer.forward
        layer.forward = lambda x: plain(x.transpose(0, 1)).transpose(0, 1)


class Discarded(LlamaForCausalLM):
    """Calls a layer twice, and uses what the first call gave only."""

    def __init__(self, config):
        super().__init__(config)
        layer = self.model.layers[1].mlp
        plain = layer.forward

        def forward(x):
            used = plain(x)
            plain(2 * x)
            return used

        layer.forward = forward


class Shared(LlamaForCausalLM):
    """Runs the same block twice, so that its trained tensors are used twice."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[1].mlp = self.model.layers[0].mlp


def odd(kind, targets, **changes):
    torch.manual_seed(7)
    return grown(kind(LlamaConfig(**(SHARED | SMALL | changes))), targets)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        (Spare, "spare", "model.layers.1.self_attn.spare gets no gradient"),
        (Fused, "gate_proj", "model.layers.0.mlp.gate_proj gets no gradient"),
        (TimeFirst, "up_proj", "model.layers.1.mlp.up_proj gets"),
        (Discarded, "up_proj", "model.layers.1.mlp.up_proj got no gradient"),
    ],
)
def test_a_layer_whose_gradient_would_be_missing_or_wrong_is_refused_by_name(
    kind, target, words, packed
):
    policy = dataclasses.replace(odd(kind, ("q_proj", target)), takes_packed=packed)
    error = refused(lambda: verify_gradients(policy, settings(), 16), words)
    assert isinstance(error, ModelError)
    assert "target_modules" in error.fix
    # Without that layer the same model passes.
    verify_gradients(odd(kind, ("q_proj", "v_proj")), settings(), 16)


def test_a_layer_that_is_used_twice_gets_the_sum_of_both_uses(monkeypatch):
    policy = odd(Shared, ("q_proj", "up_proj", "down_proj"))
    to_double(policy)
    assert len(trainable_names(policy.model)) == 4
    units = ragged_units(policy)
    made = exact_gradients(policy, units, settings(), monkeypatch)
    for unit, vector in zip(units, made, strict=True):
        wanted = plain_gradient(policy, unit, settings())
        assert np.abs(vector - wanted).max() < 1e-10
    verify_gradients(policy, settings(), 16)
