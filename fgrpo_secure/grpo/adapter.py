"""The LoRA adapter: how it is made, read, written, shipped and saved.

Only B is trained and sent. Noise on both factors would multiply into a product of
noises, while A with orthonormal rows keeps the update's norm equal to B's. A comes from
a public seed and is made once, by the server: QR differs in its last bits across
machines, so everybody else receives A as bytes.

Source: Sun et al., Improving LoRA in Privacy-preserving Federated Learning (FFA-LoRA),
ICLR 2024.
"""

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fgrpo_secure.errors import ModelError, StateError

_EXPERT_COUNTS = (
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_moe_experts",
)

_NAMED = 3
"""Layers that an error names."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What determines the adapter's shape and its frozen factor.

    Attributes:
        rank: Rows of A.
        alpha: The update is scaled by alpha / rank.
        target_modules: Names of the layers to adapt, as in peft.
        layers: Numbers of the blocks to adapt; None means all.
        seed: Public seed of A.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    layers: tuple[int, ...] | None = None
    seed: int = 0


def attach(model: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """Put a fresh adapter on a model: A orthonormal and frozen, B zero and trained.

    Args:
        model: A causal language model; its own weights are frozen.
        settings: The adapter's shape.

    Returns:
        The model with its adapter, in evaluation mode.

    Raises:
        ModelError: The model mixes experts, or a target cannot be adapted.
    """
    refuse_experts(model)
    targets = _targets(model, settings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(settings.target_modules),
        layers_to_transform=list(settings.layers) if settings.layers else None,
        fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks the model about a property that transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    if not isinstance(adapted, PeftModel):
        raise TypeError(type(adapted).__name__)
    generator = torch.Generator().manual_seed(settings.seed)
    for name, tensor in _tensors(adapted).items():
        tensor.data = tensor.data.float()
        if "lora_A" in name:
            gaussian = torch.randn(
                tensor.shape[1],
                tensor.shape[0],
                generator=generator,
                dtype=torch.float64,
            )
            tensor.data.copy_(torch.linalg.qr(gaussian).Q.T)
    _freeze_all_but_b(adapted)
    return adapted.eval()


def refuse_experts(model: PreTrainedModel) -> None:
    """Refuse a mixture of experts.

    Routers couple the tokens of a batch, through capacity limits and balancing losses,
    and then one unit would move the gradients of others.

    Raises:
        ModelError: The model routes tokens to experts.
    """
    config = model.config.get_text_config()
    counts = [getattr(config, name, None) for name in _EXPERT_COUNTS]
    if any(isinstance(count, int) and count > 1 for count in counts) or any(
        "moe" in type(module).__name__.lower() for module in model.modules()
    ):
        raise ModelError(
            "The base model is a mixture of experts, whose routing couples the units "
            "of a batch.",
            "Choose a dense model: per-unit clipping bounds nothing across a router.",
        )


def trainable_names(model: PeftModel) -> tuple[str, ...]:
    """Names of the trained tensors, sorted; vectors hold them in this order."""
    return tuple(
        sorted(name for name, p in model.named_parameters() if p.requires_grad)
    )


def trainable_tensors(model: PeftModel) -> tuple[nn.Parameter, ...]:
    """The trained tensors, in the order of `trainable_names`."""
    parameters = dict(model.named_parameters())
    return tuple(parameters[name] for name in trainable_names(model))


def read_vector(model: PeftModel) -> NDArray[np.float32]:
    """The trained numbers, flat, shape (d,), float32."""
    flat = torch.cat([p.detach().reshape(-1) for p in trainable_tensors(model)])
    return flat.float().cpu().numpy().copy()


def write_vector(model: PeftModel, vector: NDArray[np.float32]) -> None:
    """Set the trained numbers.

    Args:
        model: The model whose adapter is set.
        vector: shape (d,), float32, as `read_vector` gives it.

    Raises:
        ModelError: The vector has another length.
    """
    tensors = trainable_tensors(model)
    wanted = sum(p.numel() for p in tensors)
    if vector.shape != (wanted,):
        raise ModelError(
            f"The adapter has {wanted} trained numbers and the vector has the shape "
            f"{vector.shape}.",
            "Use the same model, rank and target modules on every side.",
        )
    parts = torch.from_numpy(np.array(vector, dtype=np.float32)).split(
        [p.numel() for p in tensors]
    )
    for parameter, part in zip(tensors, parts, strict=True):
        parameter.data.copy_(part.view_as(parameter))


def unchanged_tensors(
    model: PeftModel, before: NDArray[np.float32], after: NDArray[np.float32]
) -> tuple[str, ...]:
    """Names of the trained tensors of which no number differs between two vectors.

    Args:
        model: The model whose adapter the vectors are of.
        before: shape (d,), float32.
        after: shape (d,), float32.
    """
    ends = np.cumsum([p.numel() for p in trainable_tensors(model)])[:-1]
    parts = np.split(before != after, ends)
    return tuple(
        name
        for name, part in zip(trainable_names(model), parts, strict=True)
        if not part.any()
    )


def layers_of(names: Sequence[str]) -> str:
    """The layers that tensors adapt, as words of an error: the first few, and how many.

    Args:
        names: Of trained tensors, as `trainable_names` gives them; at least one.
    """
    layers = [
        name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names
    ]
    more = len(layers) - _NAMED
    return ", ".join(layers[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def to_bytes(model: PeftModel) -> bytes:
    """The whole adapter, A and B, as safetensors of float32 in a canonical order."""
    tensors = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in _tensors(model).items()
    }
    return safetensors.torch.save(tensors)


def from_bytes(model: PeftModel, data: bytes) -> None:
    """Load an adapter that `to_bytes` made on a model of the same shape.

    Raises:
        ModelError: The bytes are malformed, or hold other tensors than the model has.
    """
    try:
        received = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(
            "The adapter's bytes are not safetensors.",
            "Check that the file or message is complete.",
        ) from error
    own = _tensors(model)
    shapes = {name: tuple(t.shape) for name, t in own.items()}
    if {name: tuple(t.shape) for name, t in received.items()} != shapes or any(
        t.dtype != torch.float32 or not bool(t.isfinite().all())
        for t in received.values()
    ):
        raise ModelError(
            "The adapter does not fit the model: its tensors differ in name, shape or "
            "type, or hold numbers that are not finite.",
            "Use the same base model, rank and target modules on every side.",
        )
    for name, tensor in own.items():
        tensor.data.copy_(received[name])


def save_pretrained(model: PeftModel, directory: Path) -> None:
    """Write a PEFT directory that `PeftModel.from_pretrained` loads.

    The directory appears whole or not at all: it is written beside its place and then
    renamed.

    Raises:
        StateError, OSError: it cannot be written.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    # One name, so that what a process left that died here is taken over by the next.
    scratch = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    fresh, stale = scratch / "fresh", scratch / "stale"
    try:
        model.save_pretrained(str(fresh), save_embedding_layers=False)
    except SafetensorError:
        # What the system said stands in no field of it.
        raise StateError(
            f"{directory} cannot be written.",
            "See that its folder may be written to and has room.",
        ) from None
    fresh.chmod(0o755)
    for path in fresh.iterdir():
        # The result is to be published, whatever mode its writer prefers.
        path.chmod(0o644)
        _sync(path)
    _sync(fresh)
    if directory.exists():
        directory.rename(stale)
    fresh.rename(directory)
    _sync(directory.parent)
    shutil.rmtree(scratch)


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def adapter_off(model: PeftModel) -> Iterator[None]:
    """Run the base model alone, as the reference of the KL term.

    peft marks every adapter tensor as trained when it switches the adapter back on, so
    A is frozen again afterwards.
    """
    try:
        with model.disable_adapter():
            yield
    finally:
        _freeze_all_but_b(model)


def _freeze_all_but_b(model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)


def _tensors(model: PeftModel) -> dict[str, Tensor]:
    """All adapter tensors by name, sorted."""
    return {
        name: parameter
        for name, parameter in sorted(model.named_parameters())
        if "lora_A" in name or "lora_B" in name
    }


def _targets(model: PreTrainedModel, settings: LoraSettings) -> list[nn.Module]:
    """The layers that the settings select, each checked."""
    names = ", ".join(settings.target_modules)
    found: list[nn.Module] = []
    blocks: set[int] = set()
    for target in settings.target_modules:
        matches = {
            name: module
            for name, module in model.named_modules()
            if name == target or name.endswith(f".{target}")
        }
        if not matches:
            raise ModelError(
                f"No layer of {type(model).__name__} is named '{target}'.",
                "Set target_modules to names of its linear layers, such as: "
                f"{', '.join(_linear_names(model))}.",
            )
        for name, module in matches.items():
            if not isinstance(module, nn.Linear | Conv1D):
                raise ModelError(
                    f"The target '{target}' matches {name}, a "
                    f"{type(module).__name__}, which LoRA cannot adapt here.",
                    "Name linear layers only, such as: "
                    f"{', '.join(_linear_names(model))}.",
                )
            if settings.rank > min(module.weight.shape):
                raise ModelError(
                    f"lora_rank {settings.rank} is more than {name} has rows or "
                    "columns.",
                    f"Choose a rank of at most {min(module.weight.shape)}.",
                )
            found.append(module)
            blocks |= {int(part) for part in name.split(".") if part.isdigit()}
    if settings.layers is not None:
        missing = set(settings.layers) - blocks
        if missing or not settings.layers:
            raise ModelError(
                f"The layers {sorted(missing)} hold none of {names}.",
                f"Choose among the layers 0 to {max(blocks, default=0)}.",
            )
    return found


def _linear_names(model: PreTrainedModel) -> list[str]:
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and name != "lm_head"
        }
    )
