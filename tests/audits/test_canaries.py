"""The canaries: a sound mechanism passes in every trust model, and near its claim.

That broken ones do not pass is tested with the planted bugs, in `test_planted`.
"""

from fractions import Fraction

import pytest

from audits.canaries import (
    alternating,
    attack,
    attack_jointly,
    audit_plan,
    less_own_noise,
)
from audits.planted.faults import FAULTS
from privacy.errors import PlanMismatchError

TERMS = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "clip_norm": Fraction(1, 10),
    "norm_bound": 2**15,
    "min_survivors": 4,
    "colluders": 1,
}
LOCAL = {"trust": "local", "local_steps": 3, "inner_steps": 2}
ALONE = {"min_survivors": 3, "colluders": 2, "statistic": True, "canaries": 1}


# A bound passes the truth by chance in 3 of 1000 attacks, as `test_bounds` computes; by
# a tenth it does so in less than one of a hundred thousand.
HIGHEST = 1.1 * 8.0


def test_a_sound_mechanism_stays_within_its_claim_and_near_it():
    result = attack(audit_plan(**TERMS))
    assert result.scores == 10_000
    assert 0.7 * 8.0 < result.epsilon_lower_bound < HIGHEST
    assert result.epsilon_claimed == 8.0
    assert not result.weak


ROTATED = [{"rotation": True}, {"rotation": True, "modulus_bits": 20}]
BUGS = {fault.name: fault for fault in FAULTS}


@pytest.mark.parametrize("wire", [*ROTATED, {"modulus_bits": 20}])
def test_a_rotated_mechanism_stays_within_its_claim_and_near_it(wire):
    """Canaries are spread over all coordinates; the attacker undoes the rotation."""
    plan = audit_plan(**TERMS, **wire)
    assert (plan.rotation, plan.modulus_bits) == (
        wire.get("rotation", False),
        wire.get("modulus_bits", 32),
    )
    result = attack(plan)
    assert result.scores == 10_000
    assert 0.7 * 8.0 < result.epsilon_lower_bound < HIGHEST


@pytest.mark.parametrize("wire", ROTATED)
@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("clip-doubled", None),
        ("quarter-variance", None),
        ("shares-over-all-clients", None),
        ("noise-key-of-all-clients", less_own_noise),
    ],
)
def test_a_rotation_hides_no_planted_fault(wire, name, view):
    with BUGS[name].planted():
        result = attack(audit_plan(**TERMS, **wire, clients=6), 5, view=view)
    assert result.epsilon_lower_bound > HIGHEST


def test_a_grid_that_does_not_fit_the_modulus_is_made_coarser():
    fine, coarse = audit_plan(**TERMS), audit_plan(**TERMS, modulus_bits=20)
    assert coarse.norm_bound < fine.norm_bound == 2**15
    assert coarse.noise_multiplier == pytest.approx(fine.noise_multiplier, rel=1e-3)
    with pytest.raises(PlanMismatchError, match="noise share is narrower"):
        audit_plan(**TERMS, modulus_bits=8)


def test_a_large_cohort_can_be_audited_with_few_bits():
    plan = audit_plan(**TERMS, clients=200, modulus_bits=20, rotation=True)
    assert plan.norm_bound >= 2**9


@pytest.mark.parametrize("view", [None, alternating])
def test_every_release_of_local_trust_stays_within_the_claim_of_all(view):
    result = attack(audit_plan(**TERMS, **LOCAL), view=view)
    assert result.scores == 10_000
    assert 0.7 * 8.0 < result.epsilon_lower_bound < HIGHEST


@pytest.mark.parametrize("trust", [{}, LOCAL, {"rotation": True}])
def test_gradient_and_statistic_together_stay_within_the_claim(trust):
    result = attack_jointly(audit_plan(**(TERMS | ALONE | trust)), releases=1000)
    assert result.scores == 1000
    # A thousand scores bound less than ten thousand do.
    assert 0.5 * 8.0 < result.epsilon_lower_bound < HIGHEST


def test_the_noise_of_the_audit_is_made_for_all_releases_of_the_round():
    one = audit_plan(**TERMS)
    many = audit_plan(**TERMS, **LOCAL)
    assert one.epsilon == many.epsilon == "8"
    assert many.noise_variance == pytest.approx(6 * one.noise_variance, rel=1e-3)
    assert many.noise_share_variance == many.noise_variance
    assert many.registered_charges == 3


def test_wrong_noise_on_the_statistic_would_show_since_it_has_most_of_the_budget():
    plan = audit_plan(**(TERMS | ALONE))
    reward = plan.statistic_norm_bound**2 / plan.statistic_variance
    gradient = plan.norm_bound**2 / plan.noise_variance
    assert reward == pytest.approx(3 * gradient, rel=0.01)


def test_a_delta_of_a_small_data_set_can_be_audited():
    plan = audit_plan(**(TERMS | {"delta": 1e-3}))
    assert [client.units for client in plan.clients] == [100, 1, 1, 1]
