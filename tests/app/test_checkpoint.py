"""The server's state on disk: whole, found by its digest, and never guessed."""

import numpy as np
import pytest

from fgrpo_secure.checkpoint import (
    Checkpoint,
    keep_only,
    read_checkpoint,
    write_checkpoint,
)
from fgrpo_secure.errors import StateError
from fgrpo_secure.server_optimizer import OptimizerState

DIGEST = bytes(range(32))
OTHER = bytes(range(1, 33))
STATE = Checkpoint(
    b"adapter bytes \x00\xff", OptimizerState(3, np.arange(4.0), np.ones(4))
)


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_a_checkpoint_reads_back_bit_for_bit(tmp_path, digest):
    write_checkpoint(tmp_path, digest, STATE)
    found = read_checkpoint(tmp_path, digest)
    assert found.adapter == STATE.adapter
    assert found.optimizer.steps == 3
    assert np.array_equal(found.optimizer.first, STATE.optimizer.first)
    assert np.array_equal(found.optimizer.second, STATE.optimizer.second)
    assert found.optimizer.first.dtype == np.float64


def test_a_checkpoint_is_found_by_its_own_digest_alone(tmp_path):
    write_checkpoint(tmp_path, DIGEST, STATE)
    with pytest.raises(StateError):
        read_checkpoint(tmp_path, OTHER)
    with pytest.raises(StateError):
        read_checkpoint(tmp_path, None)


def test_older_checkpoints_go_only_when_asked(tmp_path):
    for digest in (None, OTHER, DIGEST):
        write_checkpoint(tmp_path, digest, STATE)
    assert read_checkpoint(tmp_path, OTHER)
    (tmp_path / "identity.key").write_bytes(b"kept")
    keep_only(tmp_path, DIGEST)
    assert read_checkpoint(tmp_path, DIGEST)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert (tmp_path / "identity.key").exists()


@pytest.mark.parametrize(
    "damage", [lambda d: b"", lambda d: d[:-3], lambda d: d[:20], lambda d: b"x" + d]
)
def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(tmp_path, damage):
    write_checkpoint(tmp_path, DIGEST, STATE)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StateError, match="Restore it"):
        read_checkpoint(tmp_path, DIGEST)


def test_a_safetensors_file_of_something_else_is_an_error(tmp_path):
    from safetensors.numpy import save

    write_checkpoint(tmp_path, DIGEST, STATE)
    (path,) = tmp_path.iterdir()
    path.write_bytes(save({"weights": np.zeros(3)}))
    with pytest.raises(StateError):
        read_checkpoint(tmp_path, DIGEST)


def test_no_half_written_file_stays_beside_a_checkpoint(tmp_path):
    write_checkpoint(tmp_path, DIGEST, STATE)
    write_checkpoint(tmp_path, DIGEST, STATE)
    assert len(list(tmp_path.iterdir())) == 1
