import pytest
import torch

from fgrpo_secure.errors import ConfigurationError, ModelError
from fgrpo_secure.grpo import rollout as rollout_module
from fgrpo_secure.grpo.adapter import read_vector
from fgrpo_secure.grpo.gradient import GradientSettings
from fgrpo_secure.grpo.locality import verify_locality
from fgrpo_secure.grpo.logps import packed_logps
from fgrpo_secure.grpo.loss import LOSSES, LossSettings
from fgrpo_secure.grpo.packing import microbatches
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.grpo.rollout import RolloutSettings, generate


def settings(slots, prompt=20, size=3):
    rollout = RolloutSettings(size, 4, max_prompt_tokens=prompt, microbatch_units=slots)
    loss = LossSettings(4, LOSSES["dr_grpo"])
    return rollout, GradientSettings(loss, microbatch_units=slots)


def refused(policy, *chosen):
    try:
        verify_locality(policy, *chosen)
    except ModelError:
        return True
    return False


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "bloom"])
@pytest.mark.parametrize(("slots", "size"), [(1, 3), (4, 3), (5, 3), (8, 4)])
def test_the_probe_passes_with_one_thread_and_leaves_the_adapter_alone(
    tiny_policy, one_thread, kind, slots, size
):
    policy = tiny_policy(kind)
    before = read_vector(policy.model)
    verify_locality(policy, *settings(slots, size=size))
    assert read_vector(policy.model).tobytes() == before.tobytes()


def test_a_unit_without_mates_passes_with_any_number_of_threads(tiny_policy, threads):
    verify_locality(tiny_policy(), *settings(1))


@pytest.mark.parametrize(("slots", "size"), [(3, 3), (5, 2), (8, 4)])
def test_the_probe_refuses_wherever_equal_units_get_other_logits(
    tiny_policy, threads, slots, size
):
    """With two threads some widths are shared out so that slots are rounded apart."""
    policy = tiny_policy()
    rollout, gradient = settings(slots, size=size)
    differ = []

    def observer(_, logits):
        differ.append(not torch.equal(logits, logits[:1].expand_as(logits)))

    numbers = torch.rand((1, size, 4), dtype=torch.float64).expand(slots, -1, -1)
    prompts = [tuple(range(2, 14))] * slots
    generate(policy, prompts, numbers.numpy(), rollout, observer=observer)
    if any(differ):
        assert refused(policy, rollout, gradient)
    elif threads == 1:
        assert not refused(policy, rollout, gradient)


@pytest.mark.parametrize("width", ["prompt", "one token of each", "narrowest"])
def test_logits_that_move_in_their_last_bit_are_found(tiny_policy, monkeypatch, width):
    """Far too little to move a token of a dummy."""
    rollout, gradient = settings(4)
    tokens = {"prompt": 20, "one token of each": 3, "narrowest": 8}[width]
    forward, moved = Policy.forward, []

    def coupled(self, inputs, *args, **kwargs):
        logits, cache = forward(self, inputs, *args, **kwargs)
        if kwargs.get("use_cache") and inputs.ids.shape[1] == tokens:
            moved.append(tokens)
            logits = logits.clone()
            logits[1] = logits[1].nextafter(torch.tensor(torch.inf))
        return logits, cache

    monkeypatch.setattr(Policy, "forward", coupled)
    with pytest.raises(ModelError, match="logits changed"):
        verify_locality(tiny_policy(), rollout, gradient)
    assert moved


def test_a_model_whose_mates_move_its_logits_is_found(tiny_policy, monkeypatch):
    forward = Policy.forward

    def coupled(self, inputs, *args, **kwargs):
        logits, cache = forward(self, inputs, *args, **kwargs)
        return logits + 20 * logits.detach().roll(1, 0), cache

    monkeypatch.setattr(Policy, "forward", coupled)
    policy = tiny_policy()
    verify_locality(policy, *settings(1))
    with pytest.raises(ModelError, match="logits changed"):
        verify_locality(policy, *settings(4))


def test_a_choice_of_tokens_that_moves_with_the_slot_is_found(tiny_policy, monkeypatch):
    choose = rollout_module._choose

    def coupled(logits, uniforms, chosen):
        slots = torch.arange(len(logits))[:, None]
        return choose(logits, uniforms / (1 + slots), chosen)

    monkeypatch.setattr(rollout_module, "_choose", coupled)
    # A token that moved would move the logits of the next.
    rollout = RolloutSettings(3, 1, max_prompt_tokens=20, microbatch_units=4)
    gradient = GradientSettings(LossSettings(1, LOSSES["dr_grpo"]), 1.0, 4)
    with pytest.raises(ModelError, match="completions changed"):
        verify_locality(tiny_policy(), rollout, gradient)


@pytest.mark.parametrize("what", ["gradient", "log-probabilities"])
def test_a_pass_that_moves_in_its_last_bits_is_found(tiny_policy, monkeypatch, what):
    def coupled(logits, *args, **kwargs):
        slots = torch.arange(len(logits))[:, None, None]
        if logits.requires_grad == (what == "gradient"):
            logits = logits * (1 + 1e-6 * slots)
        return packed_logps(logits, *args, **kwargs)

    monkeypatch.setattr("fgrpo_secure.grpo.gradient.packed_logps", coupled)
    policy = tiny_policy()
    before = read_vector(policy.model)
    with pytest.raises(ModelError, match=f"{what} changed"):
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
    # Two widths in three arrangements: generated, looked up and differentiated.
    assert taken == [4] * 18
