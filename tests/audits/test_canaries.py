"""The canaries: a sound mechanism passes, and every planted fault is seen."""

from fractions import Fraction

import numpy as np
import pytest

from audits import canaries
from audits.canaries import attack, audit_plan, epsilon_of_mu, lower_bound
from privacy import contribution as door
from privacy.plan import Plan

TERMS = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip_norm": Fraction(1, 10),
    "norm_bound": 2**15,
    "min_survivors": 4,
    "colluders": 1,
}


@pytest.fixture(scope="module")
def plan():
    return audit_plan(**TERMS)


def test_a_sound_mechanism_stays_within_its_claim_and_near_it(plan):
    result = attack(plan)
    assert result.scores == 10_000
    # The bound holds with 95% confidence, and exceeds the truth by chance more rarely
    # than that; by a tenth it does so in less than one run of a thousand million.
    assert 0.7 * 8.0 < result.epsilon_lower_bound < 1.1 * 8.0
    assert not result.weak


def test_gaussian_privacy_has_its_known_epsilon():
    # The analytic Gaussian mechanism at sigma = 3.73063 (Balle and Wang 2018).
    assert epsilon_of_mu(1 / 3.73063, 1e-5) == pytest.approx(1.0, abs=1e-4)
    assert epsilon_of_mu(1e-9, 1e-5) == 0.0


def test_guesses_no_better_than_chance_bound_nothing():
    there = np.tile([True, False], 5000)
    assert lower_bound(np.tile([1.0, 1.0, 0.0, 0.0], 2500), there, 1e-5) == 0.0


def test_perfect_guesses_bound_as_much_as_their_number_allows():
    there = np.tile([True, False], 5000)
    few = np.tile([True, False], 50)
    assert lower_bound(there.astype(float), there, 1e-5) > 20
    assert lower_bound(few.astype(float), few, 1e-5) < 20


def share_of(variance):
    return property(variance)


FAULTS = {
    "shares sized for all clients, not the honest ones": (
        Plan,
        "noise_share_variance",
        share_of(lambda plan: plan.noise_variance // len(plan.clients)),
    ),
    "a quarter of the variance": (
        Plan,
        "noise_share_variance",
        share_of(lambda plan: plan.noise_variance // (4 * plan.honest_shares)),
    ),
    "the deviation divided by the shares, not the variance": (
        Plan,
        "noise_share_variance",
        share_of(lambda plan: plan.noise_variance // plan.honest_shares**2),
    ),
    "units clipped to twice the norm": (
        door,
        "encode",
        lambda gradient, *, scale, norm_bound, weight: door_encode(
            gradient, scale=2 * scale, norm_bound=2 * norm_bound, weight=weight
        ),
    ),
    "a unit counted twice": (
        door,
        "encode",
        lambda gradient, **terms: 2 * door_encode(gradient, **terms),
    ),
}
door_encode = door.encode


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_refutes_the_claim(plan, monkeypatch, fault):
    place, name, broken = FAULTS[fault]
    monkeypatch.setattr(place, name, broken)
    assert attack(plan).refuted


def test_noise_that_is_used_twice_refutes_the_claim(plan, monkeypatch):
    # Two releases under one noise: the attacker subtracts one from the other.
    constant = np.arange(plan.dimension, dtype=np.int64)
    monkeypatch.setattr(door, "discrete_gaussian", lambda *_: constant)
    there, seen = canaries._release(plan)
    own = (plan.min_survivors - max(1, plan.colluders)) * constant
    assert lower_bound(seen - own / plan.norm_bound, there, 1e-5) > 8.0
