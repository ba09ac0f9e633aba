import dataclasses

import pytest
import torch

from fgrpo_secure.errors import ConfigurationError, DataError, ModelError
from fgrpo_secure.grpo.adapter import LoraSettings
from fgrpo_secure.grpo.policy import load_policy, make_policy

LORA = LoraSettings(2, 4.0, ("q_proj",))
CHAT = ({"role": "user", "content": "1+1="},)
TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('SECRET') }}{% endif %}"
    "{% for m in messages %}{{ m['role'][0] + '=' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}a={% endif %}"
)


def test_a_saved_model_loads_from_its_directory(tmp_path, tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), LORA)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(policy.network(ids).logits, model.eval()(ids).logits)
    assert policy.encode("1+1=") == (3, 12, 3, 15)
    assert policy.eos_ids == (1,)
    assert not any(module.training for module in policy.network.modules())


def test_a_model_that_is_not_there_is_said_so(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="no model directory"):
        load_policy(str(tmp_path / "none"), LORA)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_policy(str(tmp_path), LORA)
    assert "download" in caught.value.fix


def test_a_conversation_goes_through_the_chat_template(tiny_policy):
    policy = tiny_policy(template=TEMPLATE)
    assert policy.encode(CHAT) == policy.encode("u=1+1=a=")
    assert policy.encode_all(["1", CHAT, "2"]) == [
        policy.encode("1"),
        policy.encode(CHAT),
        policy.encode("2"),
    ]


def test_a_conversation_without_a_template_is_an_error(tiny_policy):
    with pytest.raises(ModelError, match="no chat template"):
        tiny_policy().encode(CHAT)


def test_a_template_that_refuses_is_an_error_without_its_words(tiny_policy):
    policy = tiny_policy(template=TEMPLATE)
    bad = ({"role": "system", "content": "SECRET"},)
    with pytest.raises(DataError, match="conversation number 2") as caught:
        policy.encode_all([CHAT, bad])
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_empty_prompt_has_a_token(tiny_policy):
    assert tiny_policy().encode("") == (0,)


def test_texts_end_where_completions_end(tiny_policy):
    policy = tiny_policy()
    ids = torch.tensor([[3, 4, 1], [5, 5, 5], [1, 0, 0], [3, 4, 1]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    assert policy.decode(ids, mask) == ["12", "33", "", "12"]


@pytest.mark.parametrize(
    ("kind", "packed"),
    [("llama", True), ("qwen2", True), ("gpt2", True), ("bloom", False)],
)
def test_the_packed_layout_is_used_where_the_model_takes_it(tiny_policy, kind, packed):
    assert tiny_policy(kind).takes_packed is packed


def test_a_group_longer_than_a_sliding_window_goes_by_rows(tiny_policy):
    policy = tiny_policy("qwen2")
    config = policy.network.config
    config.sliding_window = 20
    assert policy.mask_dtype(20) is torch.float32
    assert policy.mask_dtype(21) is None
    assert dataclasses.replace(policy, takes_packed=False).mask_dtype(3) is None


def test_lengths_beyond_the_models_positions_are_refused(tiny_policy):
    policy = tiny_policy()
    policy.check_width(56, 8)
    with pytest.raises(ConfigurationError, match="64 positions"):
        policy.check_width(57, 8)


def test_a_model_without_an_end_token_is_refused(tiny_model, tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    model = tiny_model("llama", eos_token_id=None)
    model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="end token"):
        make_policy(model, tokenizer, LORA)
