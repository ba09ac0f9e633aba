"""The noise in real releases fits the registered law; planted faults do not."""

from fractions import Fraction

import numpy as np
import pytest

from audits.canaries import audit_plan
from audits.evidence import gaussian_noise
from audits.noise_fit import fit_noise
from audits.planted.faults import FAULTS
from privacy import contribution as door

TERMS = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip_norm": Fraction(1, 10),
    "norm_bound": 2**15,
    "min_survivors": 4,
    "colluders": 1,
    "canaries": 10_000,
    "units": 1,
}
LOCAL = {"trust": "local", "local_steps": 3, "inner_steps": 2}
BUGS = {fault.name: fault for fault in FAULTS}


@pytest.mark.parametrize("trust", [{}, LOCAL])
def test_the_noise_of_real_releases_has_the_registered_law(trust):
    told = []
    evidence = fit_noise(
        audit_plan(**TERMS, **trust), 6, lambda *said: told.append(said)
    )
    assert not evidence.refuted
    assert evidence.subject["draws"] == 60_000
    assert told[-1] == ("releases", 6, 6)


@pytest.mark.parametrize(
    ("switch", "trust", "seen_by"),
    [
        ("quarter-variance", {}, "variance over the registered one"),
        ("shares-over-all-clients", {}, "variance over the registered one"),
        ("noise-key-of-all-rounds", {}, "each release with the next"),
        ("noise-key-of-all-clients", {}, "variance over the registered one"),
        ("local-noise-at-the-end", LOCAL, "variance over the registered one"),
        ("local-one-noise", LOCAL, "each release with the next"),
    ],
)
def test_a_planted_bug_in_the_noise_is_seen(switch, trust, seen_by):
    plan = audit_plan(**TERMS, **trust, clients=6)
    with BUGS[switch].planted():
        evidence = fit_noise(plan, 6)
    assert evidence.refuted
    assert seen_by in {found.name for found in evidence.findings if not found.holds}


def test_noise_of_the_right_variance_and_another_law_is_seen(monkeypatch):
    def uniform(stream, variance, count):
        width = (12 * variance) ** 0.5
        return np.rint((stream.uint64(count) / 2.0**64 - 0.5) * width).astype(np.int64)

    monkeypatch.setattr(door, "discrete_gaussian", uniform)
    evidence = fit_noise(audit_plan(**TERMS, **LOCAL), 6)
    broken = {found.name for found in evidence.findings if not found.holds}
    assert "variance over the registered one" not in broken
    assert "fourth moment over that of the registered law" in broken
    assert "chi-square of the law in 200 bins, per degree of freedom" in broken


def test_a_coordinate_that_repeats_its_neighbour_is_seen(monkeypatch):
    real = door.discrete_gaussian
    monkeypatch.setattr(
        door,
        "discrete_gaussian",
        lambda stream, variance, count: np.repeat(
            real(stream, variance, count // 2), 2
        ),
    )
    evidence = fit_noise(audit_plan(**TERMS, **LOCAL), 6)
    broken = {found.name for found in evidence.findings if not found.holds}
    assert "each coordinate with the next" in broken


def test_a_law_of_few_grid_steps_is_not_judged_by_the_continuous_one():
    with pytest.raises(ValueError, match=r"30\.0 is least"):
        gaussian_noise(np.zeros(10, np.int64), 100)
