"""GRPO's advantages and loss, as functions of one prompt's group.

Nothing here sees a batch. A normaliser that spans prompts would let one changed unit
move the gradients of all others, and clipping each would bound nothing; settings that
ask for one are refused with the reason.

Source: Shao et al., DeepSeekMath, 2024, section 4.1 (GRPO); Liu et al., Understanding
R1-Zero-like training, 2025 (Dr. GRPO).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fgrpo_secure.errors import ConfigurationError

Average = Callable[[Tensor, Tensor, int], Tensor]
"""What makes one number of a group's token losses: (losses, mask, max_tokens)."""

_STD_FLOOR = 1e-4
"""Added to the standard deviation of a group's rewards, as in TRL."""

_COUPLED = "so one changed prompt would move the gradients of all others"
_REFUSED_LOSSES = {
    "dapo": f"dapo divides by the tokens of the whole batch, {_COUPLED}",
    "cispo": f"cispo divides by the tokens of the whole batch, {_COUPLED}",
    "vespo": f"vespo divides by the tokens of the whole batch, {_COUPLED}",
    "bnpo": f"bnpo divides by the tokens of several prompts, {_COUPLED}",
}
_REFUSED_SCALES = {
    "batch": f"it divides by a deviation over the whole batch, {_COUPLED}",
}
_REFUSED_SWITCHES = {
    "dynamic_sampling": "it draws further prompts depending on the rewards of others",
    "oversampling": "it draws further prompts until a group has a gradient, which "
    "depends on the data",
    "normalize_then_sum": f"it normalises each reward over the batch, {_COUPLED}",
    "normalise_then_sum": f"it normalises each reward over the batch, {_COUPLED}",
    "top_entropy_quantile": f"its threshold is a quantile over the batch, {_COUPLED}",
    "router_aux_loss_coef": f"a router's loss balances the whole batch, {_COUPLED}",
}
_SAFE = 'Use loss "dr_grpo" or "grpo" and scale_rewards "group" or "none".'


def check_settings(settings: Mapping[str, object]) -> None:
    """Refuse settings whose meaning would couple the units of a batch.

    Args:
        settings: The [grpo] table, by the names that TRL and this project use.

    Raises:
        ConfigurationError: A setting couples units, or is unknown; the reason is in it.
    """
    loss = settings.get("loss", settings.get("loss_type", "dr_grpo"))
    if loss not in LOSSES:
        why = _REFUSED_LOSSES.get(str(loss), "there is no such loss here")
        raise ConfigurationError(f'[grpo] loss "{loss}" is refused: {why}.', _SAFE)
    scale = settings.get("scale_rewards", "group")
    if scale not in ("group", "none"):
        why = _REFUSED_SCALES.get(str(scale), "there is no such scale here")
        raise ConfigurationError(
            f'[grpo] scale_rewards "{scale}" is refused: {why}.', _SAFE
        )
    for name, why in _REFUSED_SWITCHES.items():
        neutral = (
            (None, False, 0, 1) if name == "top_entropy_quantile" else (None, False, 0)
        )
        if settings.get(name) not in neutral:
            raise ConfigurationError(
                f"[grpo] {name} is refused: {why}.", f"Remove {name}."
            )


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What determines the loss of a group. All are constants of the plan.

    Attributes:
        max_tokens: Tokens of a completion at most; dr_grpo divides by it.
        average: How token losses become one number, see `LOSSES`.
        ratio_clip: How far the probability ratio counts below 1.
        ratio_clip_high: How far it counts above 1; None means the same.
        kl_coefficient: Weight of the divergence from the reference.
    """

    max_tokens: int
    average: Average
    ratio_clip: float = 0.2
    ratio_clip_high: float | None = None
    kl_coefficient: float = 0.0


def group_advantages(rewards: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    """Advantages of one group's completions, relative to their own mean.

    A missing reward (NaN) does not enter the mean, and its completion has no advantage.

    Args:
        rewards: shape (G,), float64.
        scale: "group" divides by the group's standard deviation, "none" does not.

    Returns:
        Shape (G,), float64, finite.

    Guarantee:
        Equal rewards give advantages of exactly zero, so that the group can be skipped.
    """
    present = np.isfinite(rewards)
    known = rewards[present]
    advantages = np.zeros(rewards.shape)
    if known.size < 2 or known.min() == known.max():
        return advantages
    centred = known - known.mean()
    if scale == "group":
        centred = centred / (known.std(ddof=1) + _STD_FLOOR)
    advantages[present] = centred
    return advantages


def group_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    mask: Tensor,
    advantages: Tensor,
    reference_logps: Tensor | None = None,
    *,
    settings: LossSettings,
) -> Tensor:
    """Clipped policy-gradient loss of one prompt's group.

    It takes one group and never a batch: every quantity below comes from a single
    prompt, so its gradient is what per-unit clipping bounds.

    Args:
        logps: shape (G, T), of the policy that learns.
        behaviour_logps: shape (G, T), of the policy that generated, without gradient.
        mask: shape (G, T), bool, true for a completion's tokens.
        advantages: shape (G,).
        reference_logps: shape (G, T), of the base model; needed for a KL term.
        settings: Clip, KL weight and average.

    Returns:
        A scalar.
    """
    low, high = settings.ratio_clip, settings.ratio_clip_high
    # Padded places may hold anything; a difference of zero keeps them finite.
    ratio = (logps - behaviour_logps).masked_fill(~mask, 0).exp()
    clipped = ratio.clamp(1 - low, 1 + (low if high is None else high))
    gains = advantages[:, None]
    losses = -(ratio * gains).minimum(clipped * gains)
    if reference_logps is not None and settings.kl_coefficient > 0:
        losses = losses + settings.kl_coefficient * kl_estimate(
            logps, reference_logps, mask
        )
    return settings.average(losses, mask, settings.max_tokens)


def kl_estimate(logps: Tensor, reference_logps: Tensor, mask: Tensor) -> Tensor:
    """The estimator k3 of the divergence from the reference, for each token.

    Source: Schulman, Approximating KL divergence, 2020.
    """
    gap = (reference_logps - logps).masked_fill(~mask, 0)
    return gap.exp() - gap - 1


def dr_grpo(losses: Tensor, mask: Tensor, max_tokens: int) -> Tensor:
    """Sum over a group's tokens, divided by a constant: G times `max_tokens`."""
    return losses.masked_fill(~mask, 0).sum() / (losses.shape[0] * max_tokens)


def grpo(losses: Tensor, mask: Tensor, max_tokens: int) -> Tensor:  # noqa: ARG001
    """Mean over each completion's own tokens, then over the group's completions."""
    sums = losses.masked_fill(~mask, 0).sum(-1)
    return (sums / mask.sum(-1).clamp(min=1)).mean()


LOSSES: Mapping[str, Average] = {"dr_grpo": dr_grpo, "grpo": grpo}
"""The losses that a configuration may name."""
