import pytest
import torch

from fgrpo_secure.errors import ConfigurationError, ModelError
from fgrpo_secure.grpo.adapter import read_vector
from fgrpo_secure.grpo.gradient import GradientSettings
from fgrpo_secure.grpo.locality import verify_locality
from fgrpo_secure.grpo.logps import packed_logps
from fgrpo_secure.grpo.loss import LOSSES, LossSettings
from fgrpo_secure.grpo.packing import microbatches
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.grpo.rollout import RolloutSettings


def settings(slots, prompt=20):
    rollout = RolloutSettings(3, 4, max_prompt_tokens=prompt, microbatch_units=slots)
    loss = LossSettings(4, LOSSES["dr_grpo"])
    return rollout, GradientSettings(loss, microbatch_units=slots)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "bloom"])
@pytest.mark.parametrize("slots", [1, 4, 5])
def test_the_probe_passes_here_and_leaves_the_adapter_alone(
    tiny_policy, threads, kind, slots
):
    policy = tiny_policy(kind)
    before = read_vector(policy.model)
    verify_locality(policy, *settings(slots))
    assert read_vector(policy.model).tobytes() == before.tobytes()


def test_a_model_whose_mates_move_its_tokens_is_found(tiny_policy, monkeypatch):
    forward = Policy.forward

    def coupled(self, inputs, *args, **kwargs):
        logits, cache = forward(self, inputs, *args, **kwargs)
        return logits + 20 * logits.detach().roll(1, 0), cache

    monkeypatch.setattr(Policy, "forward", coupled)
    policy = tiny_policy()
    verify_locality(policy, *settings(1))
    with pytest.raises(ModelError, match="completions changed"):
        verify_locality(policy, *settings(4))


def test_a_gradient_that_moves_in_its_last_bits_is_found(tiny_policy, monkeypatch):
    def coupled(logits, *args, **kwargs):
        slots = torch.arange(len(logits))[:, None, None]
        return packed_logps(logits * (1 + 1e-6 * slots), *args, **kwargs)

    monkeypatch.setattr("fgrpo_secure.grpo.gradient.packed_logps", coupled)
    policy = tiny_policy()
    before = read_vector(policy.model)
    with pytest.raises(ModelError, match="gradient changed"):
        verify_locality(policy, *settings(4))
    assert read_vector(policy.model).tobytes() == before.tobytes()


def test_a_text_too_long_for_the_model_is_found_before_the_draw(tiny_policy):
    with pytest.raises(ConfigurationError):
        verify_locality(tiny_policy(), *settings(2, prompt=61))


@pytest.mark.parametrize("prompt", [1, 8, 9, 20, 32])
def test_every_pass_of_the_probe_is_over_a_full_micro_batch(
    tiny_policy, monkeypatch, prompt
):
    """A dummy that met no mates would prove nothing."""
    taken = []

    def recorded(keys, slots):
        for key, chosen in microbatches(keys, slots):
            taken.append(len(chosen))
            yield key, chosen

    for user in ("gradient", "rollout"):
        monkeypatch.setattr(f"fgrpo_secure.grpo.{user}.microbatches", recorded)
    verify_locality(tiny_policy(), *settings(4, prompt))
    assert taken == [4] * 6
