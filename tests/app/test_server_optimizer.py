"""The server's optimizers against their textbook forms, and torch's."""

import numpy as np
import pytest
import torch

from fgrpo_secure.config import ServerSection
from fgrpo_secure.server_optimizer import OptimizerState, step

STEPS = 7
DIMENSION = 5


def walk(settings):
    generator = np.random.Generator(np.random.PCG64(1))
    gradients = generator.normal(size=(STEPS, DIMENSION))
    start = generator.normal(size=DIMENSION).astype(np.float32)
    state, parameters = OptimizerState.fresh(DIMENSION), start
    for gradient in gradients:
        state, parameters = step(settings, state, parameters, gradient)
    return start, gradients, state, parameters


def by_torch(optimizer, start, gradients):
    tensor = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    running = optimizer([tensor])
    for gradient in gradients:
        tensor.grad = torch.tensor(gradient)
        running.step()
    return tensor.detach().numpy()


def test_adam_takes_the_steps_of_torchs_adam():
    settings = ServerSection(optimizer="adam", learning_rate=0.03, betas=(0.8, 0.95))
    start, gradients, state, parameters = walk(settings)
    wanted = by_torch(
        lambda p: torch.optim.Adam(p, lr=0.03, betas=(0.8, 0.95), eps=1e-12),
        start,
        gradients,
    )
    assert np.allclose(parameters, wanted, atol=1e-6)
    assert state.steps == STEPS


def test_sgd_takes_the_steps_of_torchs_sgd_with_momentum():
    settings = ServerSection(optimizer="sgd", learning_rate=0.1, momentum=0.7)
    start, gradients, state, parameters = walk(settings)
    wanted = by_torch(
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.7), start, gradients
    )
    assert np.allclose(parameters, wanted, atol=1e-6)
    assert not state.second.any()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_step_goes_down_the_gradient(optimizer):
    settings = ServerSection(optimizer=optimizer, learning_rate=0.1)
    gradient = np.array([1.0, -1.0, 0.0, 2.0, -2.0])
    zero = np.zeros(DIMENSION, dtype=np.float32)
    _, moved = step(settings, OptimizerState.fresh(DIMENSION), zero, gradient)
    assert np.array_equal(np.sign(moved), -np.sign(gradient))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_what_went_before_is_left_as_it_is(optimizer):
    settings = ServerSection(optimizer=optimizer)
    state = OptimizerState.fresh(DIMENSION)
    parameters = np.ones(DIMENSION, dtype=np.float32)
    _, moved = step(settings, state, parameters, np.ones(DIMENSION))
    assert moved.dtype == np.float32
    assert not state.first.any()
    assert not state.second.any()
    assert np.array_equal(parameters, np.ones(DIMENSION))


def test_adams_first_step_has_the_learning_rate_whatever_the_gradients_size():
    settings = ServerSection(optimizer="adam", learning_rate=0.02)
    zero = np.zeros(DIMENSION, dtype=np.float32)
    for size in (1e-6, 1.0, 1e6):
        gradient = np.full(DIMENSION, size)
        _, moved = step(settings, OptimizerState.fresh(DIMENSION), zero, gradient)
        assert np.allclose(moved, -0.02, rtol=1e-4)


def test_a_gradient_of_zeros_moves_nothing_at_first():
    zero = np.zeros(DIMENSION)
    start = np.ones(DIMENSION, dtype=np.float32)
    for optimizer in ("adam", "sgd"):
        settings = ServerSection(optimizer=optimizer)
        _, moved = step(settings, OptimizerState.fresh(DIMENSION), start, zero)
        assert np.array_equal(moved, start)
