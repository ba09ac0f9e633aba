import numpy as np
import pytest
import safetensors.torch
import torch
from peft import PeftModel
from transformers import MixtralConfig, MixtralForCausalLM

from fgrpo_secure.errors import ModelError
from fgrpo_secure.grpo.adapter import (
    LoraSettings,
    adapter_off,
    attach,
    from_bytes,
    read_vector,
    save_pretrained,
    to_bytes,
    trainable_names,
    write_vector,
)
from fgrpo_secure.terms import adapter_digest

IDS = torch.tensor([[2, 9, 5, 17, 3]])
TARGETS = {
    "llama": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
}


@pytest.fixture
def adapted(tiny_model):
    def make(kind="llama", **changes):
        settings = {"rank": 3, "alpha": 12.0, "target_modules": TARGETS[kind]}
        return attach(tiny_model(kind), LoraSettings(**(settings | changes)))

    return make


def filled(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(len(read_vector(model)), generator=generator)
    write_vector(model, vector.numpy())
    return model


@pytest.mark.parametrize("kind", list(TARGETS))
def test_a_fresh_adapter_changes_nothing_and_trains_b_alone(adapted, tiny_model, kind):
    model = adapted(kind)
    assert trainable_names(model) == tuple(sorted(trainable_names(model)))
    assert all("lora_B" in name for name in trainable_names(model))
    assert not read_vector(model).any()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, tiny_model(kind).eval()(IDS).logits)


def test_a_has_orthonormal_rows_made_from_the_seed(adapted):
    first, again = to_bytes(adapted()), to_bytes(adapted())
    assert first == again
    assert first != to_bytes(adapted(seed=1))
    factors = [
        t for name, t in safetensors.torch.load(first).items() if "lora_A" in name
    ]
    assert len(factors) == 4
    for a in factors:
        assert torch.allclose(a @ a.T, torch.eye(3), atol=1e-6)
    assert not torch.equal(factors[0], factors[1])


def test_a_vector_comes_back_as_it_was_written(adapted):
    model = filled(adapted())
    vector = read_vector(model)
    assert vector.dtype == np.float32
    other = adapted()
    write_vector(other, vector)
    assert read_vector(other).tobytes() == vector.tobytes()
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    with pytest.raises(ModelError):
        write_vector(other, vector[:-1])


def test_bytes_carry_the_whole_adapter(adapted):
    model = filled(adapted())
    data = to_bytes(model)
    other = adapted(seed=5)
    from_bytes(other, data)
    assert to_bytes(other) == data
    assert torch.equal(other(IDS).logits, model(IDS).logits)
    assert len(adapter_digest(data)) == 32
    assert adapter_digest(data) != adapter_digest(data + b"\0")


def test_bytes_that_do_not_fit_are_refused_and_change_nothing(adapted):
    model = adapted()
    before = to_bytes(model)
    poisoned = filled(adapted())
    vector = read_vector(poisoned)
    vector[3] = np.nan
    write_vector(poisoned, vector)
    for bad in (
        b"",
        before[:-1],
        to_bytes(adapted(rank=2)),
        to_bytes(adapted(layers=(0,))),
        to_bytes(poisoned),
    ):
        with pytest.raises(ModelError):
            from_bytes(model, bad)
    assert to_bytes(model) == before


@pytest.mark.parametrize("kind", list(TARGETS))
def test_a_saved_directory_loads_with_peft_and_gives_the_same_logits(
    adapted, tiny_model, tmp_path, kind
):
    model = filled(adapted(kind))
    target = tmp_path / "run" / "adapter"
    save_pretrained(model, target)
    loaded = PeftModel.from_pretrained(tiny_model(kind), str(target)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    save_pretrained(filled(model, 1), target)
    loaded = PeftModel.from_pretrained(tiny_model(kind), str(target)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert [path.name for path in target.parent.iterdir()] == ["adapter"]


def test_layers_can_be_chosen(adapted):
    names = trainable_names(adapted(layers=(1,)))
    assert len(names) == 2
    assert all(".layers.1." in name for name in names)
    assert len(trainable_names(adapted(layers=(0,)))) == 2


def test_the_adapter_is_off_within_and_only_b_is_trained_after(adapted, tiny_model):
    model = filled(adapted())
    names, on = trainable_names(model), model(IDS).logits
    with adapter_off(model), torch.no_grad():
        assert torch.equal(model(IDS).logits, tiny_model("llama").eval()(IDS).logits)
    assert trainable_names(model) == names
    assert torch.equal(model(IDS).logits, on)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_modules": ("q_project",)}, "No layer of LlamaForCausalLM"),
        ({"target_modules": ("embed_tokens",)}, "Embedding"),
        ({"target_modules": ("input_layernorm",)}, "LlamaRMSNorm"),
        ({"rank": 999}, "lora_rank 999"),
        ({"layers": (7,)}, r"layers \[7\]"),
    ],
)
def test_targets_that_cannot_be_adapted_are_named(adapted, changes, words):
    with pytest.raises(ModelError, match=words):
        adapted(**changes)


def test_a_mixture_of_experts_is_refused():
    config = MixtralConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    with pytest.raises(ModelError, match="mixture of experts"):
        attach(MixtralForCausalLM(config), LoraSettings(2, 2.0, ("q_proj",)))
