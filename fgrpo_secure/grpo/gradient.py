"""One flat gradient per privacy unit, by Opacus's per-sample gradients.

The only module that knows of Opacus. Its hooks exist while a micro-batch is computed
and at no other time, so generation and saving never meet them.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn.functional import pad

from fgrpo_secure.errors import ModelError
from fgrpo_secure.grpo.adapter import (
    adapter_off,
    layers_of,
    trainable_names,
    trainable_tensors,
)
from fgrpo_secure.grpo.logps import packed_logps, row_logps
from fgrpo_secure.grpo.loss import LossSettings, group_loss
from fgrpo_secure.grpo.packing import (
    Columns,
    Group,
    left_padded,
    microbatches,
    packed_columns,
    packed_inputs,
    padded_width,
    row_inputs,
)
from fgrpo_secure.grpo.policy import Policy


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group and what its completions were worth.

    Attributes:
        group: The completions.
        advantages: shape (G,), float64, see `loss.group_advantages`.
        behaviour: shape (G, T), float32, on the CPU: the log-probabilities under the
            weights that generated, as `UnitGradients.behaviour_logps` gives them; what
            stands in padded places counts for nothing. None means that the present
            weights generated.
    """

    group: Group
    advantages: NDArray[np.float64]
    behaviour: Tensor | None = None


@dataclass(frozen=True, slots=True)
class GradientSettings:
    """How gradients are computed.

    Attributes:
        loss: The loss of one group.
        temperature: The one that generated.
        microbatch_units: Groups in a forward and backward pass.
    """

    loss: LossSettings
    temperature: float = 1.0
    microbatch_units: int = 1


class UnitGradients:
    """Computes the gradient of every unit's loss by itself."""

    def __init__(self, policy: Policy, settings: GradientSettings) -> None:
        """Keep what to differentiate.

        Args:
            policy: The policy that generated and learns.
            settings: Loss, temperature and micro-batch.
        """
        self._policy = policy
        self._settings = settings
        self._names = trainable_names(policy.model)
        self._tensors = trainable_tensors(policy.model)
        # Opacus looks through all of a module time and again. It is given the trained
        # layers only, under a parent of their own: a search of the whole network would
        # take as long as a small model's pass.
        self._layers = nn.ModuleList(
            module
            for module in policy.network.modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
        )
        self._dimension = sum(p.numel() for p in self._tensors)

    def compute(
        self, units: Sequence[Sequence[ScoredGroup]]
    ) -> Iterator[NDArray[np.float32]]:
        """One gradient for each unit, in order.

        A gradient may hold NaN or infinity: what is done about it is the caller's part,
        and raising would let one record decide whether the round goes on.

        Args:
            units: U units, each with the groups of its prompts.

        Yields:
            Shape (d,), float32, in the order of `adapter.trainable_names`: the sum of
            the gradients of the unit's groups.

        Guarantee:
            A unit's gradient is unchanged, bit for bit, when other units change (even
            to NaN), come, go or move, where `locality.verify_locality` passes. Nothing
            is clipped or summed below the unit: a unit's completions count as one.
        """
        places = self._places(units)
        items = [item for _, item in places]
        waiting = Counter(index for index, _ in places)
        parts: dict[int, dict[int, NDArray[np.float32]]] = defaultdict(dict)
        following = 0
        for chosen, width in self._microbatches(items):
            vectors = self._gradients([items[i] for i in chosen], width)
            for number, vector in zip(chosen, vectors, strict=True):
                index = places[number][0]
                parts[index][number] = vector
                waiting[index] -= 1
            while following < len(units) and waiting[following] == 0:
                yield self._sum(parts.pop(following, {}))
                following += 1
        for _ in range(following, len(units)):
            yield self._sum({})

    @torch.no_grad()
    def behaviour_logps(
        self, units: Sequence[Sequence[ScoredGroup]]
    ) -> list[list[Tensor | None]]:
        """What the present weights say of every token, to be kept before they move.

        Several steps on one draw differentiate completions that earlier weights
        generated: the ratio of probabilities, and its clip, then mean something.

        Args:
            units: U units, each with the groups of its prompts.

        Returns:
            For each unit and each of its groups the `ScoredGroup.behaviour` of later
            steps: shape (G, T), float32, on the CPU, zero in padded places. None where
            `needs_pass` is false: no step has a use for it.

        Guarantee:
            A unit's numbers are unchanged, bit for bit, when other units change (even
            to NaN), come, go or move, where `locality.verify_locality` passes.
            Differentiating with them before the weights move gives the bits that
            differentiating without them gives.
        """
        places = self._places(units)
        items = [item for _, item in places]
        found: dict[int, Tensor] = {}
        for chosen, width in self._microbatches(items):
            groups = [items[i] for i in chosen]
            batch = _stacked(groups, self._settings.microbatch_units, self._policy)
            logps = self._logps(batch, width)
            logps = pad(logps, (0, batch.mask.shape[2] - logps.shape[2]))
            logps = logps.masked_fill(~batch.mask, 0).cpu()
            found |= dict(zip(chosen, logps.unbind(), strict=False))
        made: Iterator[Tensor] = (found[number] for number in range(len(items)))
        return [
            [next(made) if self.needs_pass(item) else None for item in unit]
            for unit in units
        ]

    def needs_pass(self, item: ScoredGroup) -> bool:
        """Whether a group's gradient can be anything but exact zeros.

        Without a KL term every token's loss has an advantage as a factor, and where all
        rewards of a group are equal, its advantages are zero.
        """
        kl = self._settings.loss.kl_coefficient
        return kl != 0 or bool(item.advantages.any())

    def _sum(self, parts: Mapping[int, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Add a unit's groups in the unit's own order, not in that of their arrival."""
        total = np.zeros(self._dimension, dtype=np.float32)
        for number in sorted(parts):
            total += parts[number]
        return total

    def _places(
        self, units: Sequence[Sequence[ScoredGroup]]
    ) -> list[tuple[int, ScoredGroup]]:
        """The groups that need a pass, each with the number of its unit."""
        return [
            (index, item)
            for index, unit in enumerate(units)
            for item in unit
            if self.needs_pass(item)
        ]

    def _microbatches(
        self, items: Sequence[ScoredGroup]
    ) -> Iterator[tuple[list[int], int]]:
        """Numbers of groups that share a pass, and the width of that pass."""
        shapes = [self._shape(item.group) for item in items]
        for (_, _, width), chosen in microbatches(
            shapes, self._settings.microbatch_units
        ):
            yield chosen, width

    def _shape(self, group: Group) -> tuple[int, tuple[int, ...], int]:
        """What decides the shape of a group's pass: numbers of the group alone.

        Returns:
            Tokens of the prompt, the shape of the completions, and the width that they
            are padded to: tokens of all of them together if packed, else of each.
        """
        mask, prompt = group.completion_mask, group.prompt_ids.shape[0]
        size, tokens = mask.shape
        if self._dtype(prompt) is None:
            width = padded_width(int(mask.sum(-1).max()), tokens)
        else:
            width = padded_width(prompt + packed_columns(mask)) - prompt
        return prompt, (size, tokens), width

    def _dtype(self, prompt: int) -> torch.dtype | None:
        """The dtype of a packed mask behind prompts of a width; None if by rows."""
        return self._policy.mask_dtype(prompt + self._settings.loss.max_tokens)

    def _gradients(
        self, items: Sequence[ScoredGroup], width: int
    ) -> NDArray[np.float32]:
        """Gradients of at most one micro-batch of groups of one shape."""
        policy, settings = self._policy, self._settings
        batch = _stacked(items, settings.microbatch_units, policy)
        reference = None
        if settings.loss.kl_coefficient > 0:
            with adapter_off(policy.model), torch.no_grad():
                reference = self._logps(batch, width)
        with self._per_sample():
            logps = self._logps(batch, width)
            shown = logps.shape[2]
            # A group's own choice: that of a mate must not change what is computed.
            behaviour = logps.detach().where(batch.own, batch.behaviour[:, :, :shown])
            # `vmap` keeps the groups apart.
            losses = torch.vmap(
                partial(group_loss, settings=settings.loss),
                in_dims=(0, 0, 0, 0, None if reference is None else 0),
            )(
                logps,
                behaviour,
                batch.mask[:, :, :shown],
                batch.advantages,
                reference,
            )
            with warnings.catch_warnings():
                # Nothing below the lowest trained layer needs a gradient, which torch
                # points out to the hooks of that layer.
                warnings.filterwarnings("ignore", "Full backward hook is firing")
                losses.sum().backward()
            flat = [
                _grad_sample(name, tensor)
                .reshape(len(batch.mask), -1, tensor.numel())
                .sum(1)
                for name, tensor in zip(self._names, self._tensors, strict=True)
            ]
            return torch.cat(flat, 1)[: len(items)].float().cpu().numpy()

    @contextmanager
    def _per_sample(self) -> Iterator[None]:
        """Put Opacus's hooks on the trained layers for one forward and backward pass.

        The hooks act in training mode only, so the trained layers are switched to it by
        themselves; all others stay in evaluation mode, without dropout.
        """
        hooked = GradSampleModule(self._layers, strict=False, loss_reduction="sum")
        try:
            for layer in self._layers:
                layer.training = True
            yield
        finally:
            for layer in self._layers:
                layer.training = False
                # Activations of a pass that was cut short must not meet the next one.
                vars(layer).pop("activations", None)
                vars(layer).pop("max_batch_len", None)
            hooked.to_standard_module()
            for tensor in self._tensors:
                tensor.grad = None

    def _logps(self, batch: "_Batch", width: int) -> Tensor:
        """Log-probabilities, shape (B, G, T); by rows of the first `width` tokens."""
        policy, temperature = self._policy, self._settings.temperature
        dtype = self._dtype(batch.prompt_ids.shape[1])
        prompts = batch.prompt_ids, batch.prompt_mask
        if dtype is None:
            ids, mask = batch.ids[:, :, :width], batch.mask[:, :, :width]
            logits, _ = policy.forward(row_inputs(*prompts, ids, mask), width + 1)
            return row_logps(logits, ids, temperature)
        columns = Columns.of(batch.mask, width)
        inputs = packed_inputs(*prompts, batch.ids, columns, dtype)
        logits, _ = policy.forward(inputs, width + 1)
        return packed_logps(logits, batch.ids, columns, temperature)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Stacked groups; B slots, of which the last may be dummies.

    Attributes:
        prompt_ids: shape (B, P), int64.
        prompt_mask: shape (B, P), bool.
        ids: shape (B, G, T), int64.
        mask: shape (B, G, T), bool.
        advantages: shape (B, G), float32.
        behaviour: shape (B, G, T), float32.
        own: shape (B, 1, 1), bool, true where the present weights are the behaviour's.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    ids: Tensor
    mask: Tensor
    advantages: Tensor
    behaviour: Tensor
    own: Tensor


def _stacked(items: Sequence[ScoredGroup], slots: int, policy: Policy) -> _Batch:
    """Groups of one shape as tensors, with dummies in the slots that are left."""
    first = items[0].group
    width, (size, tokens) = first.prompt_ids.shape[0], first.completion_ids.shape
    empty = slots - len(items)
    prompt_ids, prompt_mask = left_padded([], width, empty, policy.pad_id)
    groups = [item.group for item in items]
    ids = torch.full((empty, size, tokens), policy.pad_id, dtype=torch.int64)
    advantages = np.zeros((slots, size), dtype=np.float32)
    advantages[: len(items)] = [item.advantages for item in items]
    nothing = torch.zeros((size, tokens))
    given = [item.behaviour for item in items] + [None] * empty
    return _Batch(
        *(
            tensor.to(policy.device)
            for tensor in (
                torch.cat([torch.stack([g.prompt_ids for g in groups]), prompt_ids]),
                torch.cat([torch.stack([g.prompt_mask for g in groups]), prompt_mask]),
                torch.cat([torch.stack([g.completion_ids for g in groups]), ids]),
                torch.cat(
                    [
                        torch.stack([g.completion_mask for g in groups]),
                        torch.zeros_like(ids, dtype=torch.bool),
                    ]
                ),
                torch.from_numpy(advantages),
                torch.stack([nothing if one is None else one for one in given]),
                torch.tensor([one is None for one in given])[:, None, None],
            )
        )
    )


def _grad_sample(name: str, tensor: nn.Parameter) -> Tensor:
    """What Opacus left for a tensor.

    Raises:
        ModelError: It left nothing. Training on would spend epsilon on a tensor that
            never changes.
    """
    found = getattr(tensor, "grad_sample", None)
    if not isinstance(found, Tensor):
        raise ModelError(
            f"The adapter of {layers_of([name])} got no gradient.",
            "Leave layers that the model's forward pass does not use out of "
            "target_modules.",
        )
    return found
