import dataclasses

import numpy as np
import pytest
import torch

from fgrpo_secure.errors import ConfigurationError, ModelError
from fgrpo_secure.grpo.gradient import GradientSettings
from fgrpo_secure.grpo.locality import verify_locality
from fgrpo_secure.grpo.loss import LOSSES, LossSettings
from fgrpo_secure.grpo.packing import WIDTH_STEP
from fgrpo_secure.grpo.rollout import RolloutSettings, generate

KINDS = ["llama", "qwen2", "gpt2", "bloom"]
TEXTS = ["1+2=", "a", "12*34-5+7=", "h g f?", "99="]


def uniforms(count, size, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, size, tokens)
    return torch.rand(shape, generator=generator, dtype=torch.float64).numpy()


def nucleus(weights, top_p):
    """Weights of the least set of likeliest tokens that reaches the mass top_p."""
    kept, mass = {}, 0.0
    for index in sorted(range(len(weights)), key=lambda i: -weights[i]):
        if mass >= top_p:
            break
        kept[index] = weights[index]
        mass += weights[index]
    return kept


@torch.no_grad()
def slow_completion(policy, prompt, numbers, temperature, top_p):
    """One completion, token by token, from the whole unpadded text each time."""
    made = []
    for number in numbers:
        ids = torch.tensor([[*prompt, *made]])
        weights = (policy.network(ids).logits[0, -1].double() / temperature).softmax(-1)
        table = dict(enumerate(weights.tolist()))
        if top_p < 1:
            table = nucleus(weights.tolist(), top_p)
        goal, total = number * sum(table.values()), 0.0
        for token, weight in table.items():
            total += weight
            if total > goal:
                made.append(token)
                break
        if made[-1] in policy.eos_ids:
            break
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("temperature", "top_p", "slots"), [(1.0, 1.0, 3), (0.7, 0.8, 3), (1.0, 1.0, 1)]
)
def test_tokens_are_where_the_cumulated_distribution_passes_the_number(
    tiny_policy, kind, temperature, top_p, slots
):
    policy = tiny_policy(kind)
    prompts = policy.encode_all(TEXTS)
    settings = RolloutSettings(4, 6, temperature, top_p, 40, slots)
    numbers = uniforms(len(prompts), 4, 6)
    groups = generate(policy, prompts, numbers, settings)
    ended = 0
    for prompt, own, group in zip(prompts, numbers, groups, strict=True):
        for g in range(4):
            wanted = slow_completion(policy, prompt, own[g], temperature, top_p)
            length = int(group.completion_mask[g].sum())
            assert group.completion_ids[g, :length].tolist() == wanted
            assert not group.completion_mask[g, length:].any()
            text = "".join(policy.tokenizer.convert_ids_to_tokens(wanted))
            assert group.texts[g] == text.replace("$", "").replace("_", "")
            ended += wanted[-1] == 1 and len(wanted) < 6
    assert ended


def test_generation_follows_the_distribution(tiny_policy):
    policy = tiny_policy()
    prompt = policy.encode("1+2=")
    settings = RolloutSettings(400, 1, 1.0, 1.0, 8, 1)
    (group,) = generate(policy, [prompt], uniforms(1, 400, 1), settings)
    found = torch.bincount(group.completion_ids[:, 0], minlength=25) / 400
    with torch.no_grad():
        wanted = policy.network(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    assert (found - wanted).abs().max() < 4 * 0.5 / 20


def test_a_number_of_almost_one_takes_a_token_that_has_mass(tiny_policy):
    policy = tiny_policy()
    settings = RolloutSettings(2, 1, 0.05, 0.5, 8, 1)
    last = np.full((1, 2, 1), np.nextafter(1.0, 0.0))
    (group,) = generate(policy, [policy.encode("1")], last, settings)
    with torch.no_grad():
        logits = policy.network(torch.tensor([policy.encode("1")])).logits[0, -1]
    kept = nucleus((logits.double() / 0.05).softmax(-1).tolist(), 0.5)
    assert int(group.completion_ids[0, 0]) in kept


def test_a_long_prompt_keeps_its_last_tokens(tiny_policy):
    policy = tiny_policy()
    settings = RolloutSettings(2, 4, max_prompt_tokens=5)
    long, cut = policy.encode("99999123+4="), policy.encode("23+4=")
    numbers = uniforms(1, 2, 4)
    (one,), (two,) = (generate(policy, [p], numbers, settings) for p in (long, cut))
    assert torch.equal(one.completion_ids, two.completion_ids)
    assert one.prompt_ids.tolist() == list(cut)


@pytest.mark.parametrize(("packed", "slots"), [(True, 1), (True, 4), (False, 4)])
def test_a_units_completions_do_not_depend_on_other_units(
    tiny_policy, threads, packed, slots
):
    """Guarantee of `generate`: change, remove, add, lengthen or move the others."""
    policy = dataclasses.replace(tiny_policy(), takes_packed=packed)
    settings = RolloutSettings(4, 5, max_prompt_tokens=40, microbatch_units=slots)
    gradient = GradientSettings(LossSettings(5, LOSSES["dr_grpo"]), 1.0, slots)
    try:
        verify_locality(policy, settings, gradient)
    except ModelError:
        # Nothing is promised of mates then, and a unit goes alone.
        settings = dataclasses.replace(settings, microbatch_units=1)
    prompts = policy.encode_all(TEXTS)
    numbers = uniforms(len(prompts), 4, 5)

    def tokens(order, changed=prompts):
        groups = generate(policy, [changed[i] for i in order], numbers[order], settings)
        return {
            i: (g.completion_ids.tolist(), g.completion_mask.tolist(), g.texts)
            for i, g in zip(order, groups, strict=True)
        }

    base = tokens([0, 1, 2, 3, 4])
    others = {i: base[i] for i in (0, 2, 3, 4)}
    for order in ([0, 2, 3, 4], [4, 3, 2, 0], [1, 4, 1, 0, 1, 3, 2, 1], [2, 0, 3, 4]):
        made = tokens(order)
        assert {i: made[i] for i in others} == others
    for other in ("77", "b" * 39, ""):
        changed = [*prompts]
        changed[1] = policy.encode(other)
        made = tokens([0, 1, 2, 3, 4], changed)
        assert {i: made[i] for i in others} == others


def test_nothing_drawn_generates_nothing(tiny_policy):
    settings = RolloutSettings(2, 3)
    assert generate(tiny_policy(), [], np.empty((0, 2, 3)), settings) == []


def test_an_observer_sees_the_logits_of_every_token_and_of_prompts_only(tiny_policy):
    """Micro-batches hold two here, so that one prompt is left over."""
    policy, seen = tiny_policy(), []
    settings = RolloutSettings(2, 3, max_prompt_tokens=8, microbatch_units=2)
    prompts, numbers = policy.encode_all(["1+2=", "9-", "a"]), uniforms(3, 2, 3)

    def observer(chosen, logits):
        seen.append((list(chosen), logits))

    groups = generate(policy, prompts, numbers, settings, observer=observer)
    plain = generate(policy, prompts, numbers, settings)
    for one, two in zip(groups, plain, strict=True):
        assert torch.equal(one.completion_ids, two.completion_ids)
    starts = [logits for chosen, logits in seen if 2 in chosen]
    assert seen[0][0] == [0, 1]
    assert all(len(logits) == len(chosen) for chosen, logits in seen)
    with torch.no_grad():
        wanted = policy.network(torch.tensor([prompts[2]])).logits[0, -1]
    assert torch.allclose(starts[0], wanted.expand(1, 2, -1), atol=1e-4)
    assert len(starts) == int(groups[2].completion_mask.sum(-1).max())


def test_progress_counts_every_prompt(tiny_policy):
    seen = []
    settings = RolloutSettings(2, 2, max_prompt_tokens=12, microbatch_units=2)
    policy = tiny_policy()
    generate(policy, policy.encode_all(TEXTS), uniforms(5, 2, 2), settings, seen.append)
    assert sum(seen) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"group_size": 1},
        {"max_tokens": 0},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_prompt_tokens": 0},
        {"microbatch_units": 0},
    ],
)
def test_settings_that_mean_nothing_are_refused(changes):
    with pytest.raises(ConfigurationError):
        RolloutSettings(**({"group_size": 2, "max_tokens": 2} | changes))


@pytest.mark.parametrize("packed", [True, False])
def test_the_shape_of_every_pass_depends_on_the_units_own_length_alone(
    tiny_policy, monkeypatch, packed
):
    policy = dataclasses.replace(tiny_policy(), takes_packed=packed)
    settings = RolloutSettings(2, 3, max_prompt_tokens=40, microbatch_units=2)
    forward, shapes = type(policy).forward, []

    def recorded(self, inputs, *args, **kwargs):
        shapes.append((tuple(inputs.ids.shape), tuple(inputs.mask.shape)))
        return forward(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(policy), "forward", recorded)

    def passes(*lengths):
        shapes.clear()
        prompts = [(5,) * n for n in lengths]
        generate(policy, prompts, uniforms(len(prompts), 2, 3), settings)
        return shapes[0], len(set(shapes))

    assert passes(3) == passes(3, WIDTH_STEP) == passes(WIDTH_STEP - 1, 1)
    assert passes(33) == passes(40, 33)
    assert passes(3, 33)[1] == 2 * passes(3)[1]


def test_rows_that_fill_their_width_are_treated_like_padded_ones(tiny_policy):
    """A plain mask without padding would take another kernel for the whole batch."""
    policy = dataclasses.replace(tiny_policy(), takes_packed=False)
    settings = RolloutSettings(3, 5, max_prompt_tokens=40, microbatch_units=2)
    full, padded = policy.encode("1+" * 20), policy.encode("2-" * 17)
    numbers = uniforms(2, 3, 5)
    for mate in (full, padded):
        group, _ = generate(policy, [full, mate], numbers, settings)
        assert not group.prompt_mask.all()
        assert group.prompt_mask.sum() == 40


@pytest.mark.parametrize("slots", [1, 2])
def test_what_has_ended_takes_part_no_more_where_a_unit_is_alone(
    tiny_policy, monkeypatch, slots
):
    """With mates the shape stays as it is: theirs would change with this unit's."""
    policy = tiny_policy()
    settings = RolloutSettings(8, 20, max_prompt_tokens=40, microbatch_units=slots)
    forward, widths = type(policy).forward, []

    def recorded(self, inputs, *args, **kwargs):
        widths.append(inputs.ids.shape[1])
        return forward(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(policy), "forward", recorded)
    (group,) = generate(policy, [policy.encode("1+2=")], uniforms(1, 8, 20), settings)
    lengths = group.completion_mask.sum(-1)
    assert lengths.min() < lengths.max()
    going = [int((lengths > step).sum()) for step in range(1, int(lengths.max()))]
    assert widths[1:] == (going if slots == 1 else [8] * len(going))
