"""Scored groups of tiny policies, and their gradients by autograd alone.

The reference: every completion is a text of its own, without Opacus, packing, padding
or batch mates, and every unit has its own backward pass.
"""

import torch

from fgrpo_secure.grpo.adapter import adapter_off, trainable_tensors
from fgrpo_secure.grpo.gradient import GradientSettings, ScoredGroup, UnitGradients
from fgrpo_secure.grpo.loss import LOSSES, LossSettings, group_loss
from fgrpo_secure.grpo.rollout import RolloutSettings, generate

TEXTS = ["1+2=", "a", "12*34-5+7=", "h g f?", "99="]
SIZE, TOKENS = 4, 5


def settings(slots=3, name="dr_grpo", kl=0.0, temperature=1.0):
    loss = LossSettings(TOKENS, LOSSES[name], kl_coefficient=kl)
    return GradientSettings(loss, temperature, slots)


def uniforms(count, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, SIZE, TOKENS)
    return torch.rand(shape, generator=generator, dtype=torch.float64).numpy()


def scored(policy, texts=TEXTS, seed=0):
    """Groups that the policy generated, with made-up advantages."""
    prompts = policy.encode_all(texts)
    numbers = uniforms(len(texts), seed)
    rollout = RolloutSettings(SIZE, TOKENS, max_prompt_tokens=40, microbatch_units=2)
    groups = generate(policy, prompts, numbers, rollout)
    advantages = 4 * uniforms(len(texts), seed + 100)[:, :, 0] - 2
    return [ScoredGroup(g, a) for g, a in zip(groups, advantages, strict=True)]


def gradients(policy, units, chosen):
    return list(UnitGradients(policy, chosen).compute(units))


def plain_logps(policy, group, temperature):
    """Log-probabilities of each completion from its own unpadded text."""
    prompt = group.prompt_ids[group.prompt_mask]
    rows = []
    for ids in group.completion_ids:
        logits = policy.network(torch.cat([prompt, ids])[None]).logits[0]
        table = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        rows.append(table.gather(-1, ids[:, None])[:, 0])
    return torch.stack(rows)


def plain_gradient(policy, unit, chosen):
    """Autograd on the unit's loss by itself."""
    total = 0
    for item in unit:
        reference = None
        if chosen.loss.kl_coefficient:
            with adapter_off(policy.model), torch.no_grad():
                reference = plain_logps(policy, item.group, chosen.temperature)
        logps = plain_logps(policy, item.group, chosen.temperature)
        total = total + group_loss(
            logps,
            logps.detach() if item.behaviour is None else item.behaviour,
            item.group.completion_mask,
            torch.tensor(item.advantages, dtype=logps.dtype),
            reference,
            settings=chosen.loss,
        )
    grads = torch.autograd.grad(total, trainable_tensors(policy.model))
    return torch.cat([g.reshape(-1) for g in grads]).numpy()
