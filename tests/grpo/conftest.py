"""Tiny random models with a character tokenizer, shared by the learning tests."""

import os
from contextlib import contextmanager

# A thread that waits for its turn must not burn the core that the other one needs: with
# more threads than free cores that makes a test of two threads a hundred times slower.
# The library reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fgrpo_secure.grpo.adapter import LoraSettings, trainable_tensors
from fgrpo_secure.grpo.policy import make_policy

SPECIAL = {"eos_token": "$", "pad_token": "_"}
CHARACTERS = "_$0123456789+-*=abcdefgh ?"
SHARED = {
    "vocab_size": len(CHARACTERS),
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 0,
}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + '=' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}a={% endif %}"
)


def make_tokenizer(template=None):
    words = {character: number for number, character in enumerate(CHARACTERS)}
    inner = Tokenizer(models.WordLevel(words, "?"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, chat_template=template, **SPECIAL
    )


def make_model(kind, **changes):
    torch.manual_seed(7)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**(SHARED | SMALL | changes)))
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**(SHARED | SMALL | changes)))
    if kind == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        return GPT2LMHeadModel(GPT2Config(**(SHARED | shape | changes)))
    if kind == "bloom":
        shape = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
        return BloomForCausalLM(BloomConfig(**(SHARED | shape | changes)))
    raise ValueError(kind)


TARGETS = {
    "llama": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "gpt2": ("c_attn",),
    "bloom": ("query_key_value",),
}


def make_tiny_policy(kind="llama", *, zero=False, template=None, **changes):
    """A policy whose adapter is not zero, so that it takes part in what is tested."""
    model = make_model(kind, **changes)
    # Random embeddings are so small that all tokens would be about equally likely.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    policy = make_policy(
        model, make_tokenizer(template), LoraSettings(3, 6.0, TARGETS[kind])
    )
    if not zero:
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for tensor in trainable_tensors(policy.model):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return policy


@pytest.fixture
def tiny_policy():
    return make_tiny_policy


@pytest.fixture
def tiny_model():
    return make_model


@pytest.fixture
def tiny_tokenizer():
    return make_tokenizer


@contextmanager
def torch_threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request):
    with torch_threads(request.param):
        yield request.param


@pytest.fixture
def one_thread():
    with torch_threads(1):
        yield
