"""The embedded model and configuration: small, offline, with room to learn."""

from __future__ import annotations

import tomllib
from importlib import import_module, resources
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from fgrpo_secure.assets import make, rewards, tasks

ASSETS = Path(str(resources.files("fgrpo_secure.assets")))
NAMES = [family.name for family in tasks.FAMILIES]
CONFIG = tomllib.loads((ASSETS / "tiny.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(ASSETS / "tiny").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ASSETS / "tiny")


def test_the_model_is_a_llama_of_under_one_and_a_half_million_parameters(model):
    assert type(model) is LlamaForCausalLM
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_500_000
    size = sum(path.stat().st_size for path in (ASSETS / "tiny").iterdir())
    assert size < 6_000_000


def test_the_tokenizer_gives_back_every_prompt_and_answer(tokenizer):
    for family in tasks.FAMILIES:
        for prompt in tasks.split(family)[0][:50]:
            text = prompt + family.answer(prompt)
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text) + 1
            assert ids[0] == tokenizer.bos_token_id
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_shipped_tokenizer_is_the_one_that_the_script_builds(tokenizer):
    built = make.build_tokenizer()

    assert tokenizer.get_vocab() == built.get_vocab()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "padding_side"):
        assert getattr(tokenizer, name) == getattr(built, name)


@pytest.mark.parametrize("family", tasks.FAMILIES, ids=NAMES)
def test_the_base_model_is_right_only_some_of_the_time(model, tokenizer, family):
    right, *careless = make.followed(model, tokenizer, family)

    assert 0.1 < right < 0.6
    assert all(share > 0.1 for share in careless)


@pytest.mark.parametrize("family", tasks.FAMILIES, ids=NAMES)
def test_generated_answers_earn_both_ends_of_the_range(model, tokenizer, family):
    prompts = tasks.split(family)[0][:100]
    torch.manual_seed(0)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    output = model.generate(
        **inputs,
        do_sample=True,
        max_new_tokens=CONFIG["grpo"]["max_tokens"],
    )
    start = inputs["input_ids"].shape[1]
    completions = tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
    answers = [family.answer(prompt) for prompt in prompts]

    values = getattr(rewards, family.name)(prompts, completions, answer=answers)

    bottom, top = getattr(rewards, f"{family.name.upper()}_RANGE")
    assert set(values) == {bottom, top}
    assert 0.05 < values.count(top) / len(values) < 0.65


def test_the_configuration_names_files_rewards_and_ranges_that_exist():
    assert [client["name"] for client in CONFIG["client"]] == NAMES
    for client in CONFIG["client"]:
        assert (ASSETS / client["data"]).is_file()
        assert (ASSETS / client["eval_data"]).is_file()
        module, _, function = client["reward"].partition(":")
        assert callable(getattr(import_module(module), function))
        stated = getattr(rewards, f"{function.upper()}_RANGE")
        assert tuple(client["reward_range"]) == stated
    assert (ASSETS / CONFIG["model"]["base"]).is_dir()


def test_the_configuration_makes_the_promise_of_the_default_run():
    privacy = CONFIG["privacy"]

    assert (privacy["epsilon"], privacy["delta"]) == (8.0, 1e-5)
    assert privacy["delta"] <= 1 / (10 * tasks.TRAIN_PROMPTS)
    assert (privacy["unit"], privacy["trust"]) == ("prompt", "distributed")
    assert CONFIG["federation"] == {"min_survivors": 3, "colluders": 1}


def test_prompts_and_answers_fit_the_configured_lengths(tokenizer):
    for family in tasks.FAMILIES:
        for prompt in family.prompts():
            assert len(prompt) + 1 <= CONFIG["grpo"]["max_prompt_tokens"]
    assert CONFIG["grpo"]["max_tokens"] >= tasks.MAX_ANSWER_CHARACTERS + 1
