"""The server's state after a round, on disk whole or not at all.

One safetensors file holds the adapter's bytes and the optimizer's arrays; it is named
by the adapter's digest, which the ledger's last published round names too. The file is
written before the ledger says so, and older ones are removed only after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fgrpo_secure.errors import StateError
from fgrpo_secure.secrets import write_atomically
from fgrpo_secure.server_optimizer import OptimizerState


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the server needs to go on after a round.

    Attributes:
        adapter: the adapter as bytes, as clients receive it.
        optimizer: its state.
    """

    adapter: bytes
    optimizer: OptimizerState


def write_checkpoint(folder: Path, digest: bytes | None, state: Checkpoint) -> None:
    """Write the state whose adapter has this digest; None: before round 1."""
    tensors = {
        "adapter": np.frombuffer(state.adapter, dtype=np.uint8),
        "steps": np.array([state.optimizer.steps], dtype=np.int64),
        "first": state.optimizer.first,
        "second": state.optimizer.second,
    }
    write_atomically(_path(folder, digest), save(tensors))


def keep_only(folder: Path, digest: bytes) -> None:
    """Remove the checkpoints that no ledger points to any more."""
    for path in folder.glob("*.safetensors"):
        if path != _path(folder, digest):
            path.unlink()


def read_checkpoint(folder: Path, digest: bytes | None) -> Checkpoint:
    """Read a state back.

    Raises:
        StateError: missing or damaged.
    """
    path = _path(folder, digest)
    try:
        tensors = load(path.read_bytes())
        optimizer = OptimizerState(
            int(tensors["steps"][0]), tensors["first"], tensors["second"]
        )
        return Checkpoint(tensors["adapter"].tobytes(), optimizer)
    except (OSError, SafetensorError, KeyError, IndexError):
        raise StateError(
            f"{path} is missing or damaged, so the run cannot go on.",
            "Restore it from a backup, or begin a new run in another folder.",
        ) from None


def _path(folder: Path, digest: bytes | None) -> Path:
    name = "initial" if digest is None else f"adapter-{digest.hex()}"
    return folder / f"{name}.safetensors"
