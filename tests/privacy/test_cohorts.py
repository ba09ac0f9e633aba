"""Cohorts: how clients are split, whose sums may be added, and that they are exact."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.cohorts import Cohorts, CohortSum, split_cohorts
from privacy.crypto import SigningKey
from privacy.errors import PlanMismatchError, ReplayError
from privacy.plan import MAX_CLIENTS, MIN_CLIENTS, SERVER, WEIGHT_ONE
from privacy.rotation import Rotation
from privacy.secagg.messages import read_offer
from privacy.secagg.server import open_round
from tests.plans import Counter, cohort, make_plan
from tests.privacy.secagg.harness import identity, make_terms

FIRST, SECOND = ("alpha", "beta", "gamma", "omega"), ("delta", "kappa", "zeta")


def two(**changes):
    """Two cohorts, of four and of three clients."""
    return Cohorts(
        (
            make_plan(clients=cohort(*[40] * 4, names=FIRST)),
            make_plan(**{"clients": cohort(*[40] * 3, names=SECOND)} | changes),
        )
    )


def total(*numbers, plan):
    """A decoded sum: these coordinates, zeros, and one whole weight."""
    found = np.zeros(plan.vector_length, dtype=np.int64)
    found[: len(numbers)] = numbers
    found[-1] = plan.weight_steps
    return found


def part(place, *numbers, plan, **changes):
    """What a cohort's round came to; its offer is one of its own."""
    return CohortSum(place, total(*numbers, plan=plan), bytes([place]) * 32, **changes)


# The split.


@given(
    count=st.integers(3, 2000),
    cohort_size=st.integers(3, 200),
    least=st.integers(3, 60),
)
def test_a_split_is_balanced_whole_and_within_its_bounds(count, cohort_size, least):
    names = [f"c{place}" for place in range(count)]
    try:
        found = split_cohorts(names, cohort_size=cohort_size, least=least)
    except PlanMismatchError:
        # As few cohorts as may be still have too few clients each.
        assert count // -(-count // cohort_size) < least
        return
    assert [name for own in found for name in own] == sorted(names)
    sizes = {len(own) for own in found}
    assert least <= min(sizes) <= max(sizes) <= cohort_size
    assert max(sizes) - min(sizes) <= 1


def test_every_party_comes_to_the_same_split_whatever_the_order_of_names():
    names = [f"c{place}" for place in range(11)]
    assert split_cohorts(names, cohort_size=4) == split_cohorts(
        names[::-1], cohort_size=4
    )


@pytest.mark.parametrize("cohort_size", [MIN_CLIENTS - 1, MAX_CLIENTS + 1])
def test_no_cohort_is_larger_or_smaller_than_a_protocol_may_be(cohort_size):
    with pytest.raises(PlanMismatchError, match="cohort_size"):
        split_cohorts([f"c{place}" for place in range(900)], cohort_size=cohort_size)


def test_no_cohort_is_left_with_too_few_clients():
    with pytest.raises(PlanMismatchError, match="leave one with 2, where 3"):
        split_cohorts(["a", "b", "c", "d", "e"], cohort_size=3)
    with pytest.raises(PlanMismatchError, match="leave one with 5, where 6"):
        split_cohorts([f"c{n}" for n in range(11)], cohort_size=7, least=6)
    with pytest.raises(PlanMismatchError, match="0 clients"):
        split_cohorts([], cohort_size=3)
    with pytest.raises(PlanMismatchError, match="one name"):
        split_cohorts(["a", "b", "c", "c"], cohort_size=4)


# Whose sums may be added.


@pytest.mark.parametrize(
    "changes",
    [
        {"dimension": 7},
        {"rotation": True},
        {"clip_norm": Fraction(1, 5)},
        {"norm_bound": 2048},
        {"noise_variance": 2**23},
        {"recipe": "cd" * 32},
        {"modulus_bits": 31},
        {"epsilon": "7"},
        {"rounds": 4},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_cohorts_that_differ_in_more_than_their_clients_are_refused(changes):
    with pytest.raises(PlanMismatchError, match=next(iter(changes))):
        two(**changes)


def test_cohorts_have_clients_survivors_and_colluders_of_their_own():
    found = two(min_survivors=2, colluders=0)
    assert len({plan.digest for plan in found.plans}) == 2
    assert found.places == dict.fromkeys(FIRST, 0) | dict.fromkeys(SECOND, 1)


def test_each_cohort_carries_the_whole_noise_by_itself():
    for plan in two(min_survivors=2, colluders=1).plans:
        shares = plan.honest_shares * plan.noise_share_variance
        assert shares >= plan.noise_variance == make_plan().noise_variance


def test_a_client_in_two_cohorts_is_refused():
    shared = ("alpha", "kappa", "zeta")
    with pytest.raises(PlanMismatchError, match="in two cohorts"):
        two(clients=cohort(40, 40, 40, names=shared))
    with pytest.raises(PlanMismatchError, match="no cohort"):
        Cohorts(())


def keys(names, number):
    own = {name: identity(name).verify_key for name in names}
    return own | {SERVER: SigningKey(bytes([number]) * 32).verify_key}


def test_one_identity_under_two_names_in_two_cohorts_is_refused():
    cohorts = two()
    rosters = [keys(FIRST, 9), keys(SECOND, 9)]
    cohorts.check_identities(rosters)
    again = rosters[1] | {"zeta": rosters[0]["alpha"]}
    with pytest.raises(PlanMismatchError, match="one identity key"):
        cohorts.check_identities([rosters[0], again])
    own = rosters[1] | {"zeta": rosters[1][SERVER]}
    with pytest.raises(PlanMismatchError, match="one identity key"):
        cohorts.check_identities([rosters[0], own])
    with pytest.raises(PlanMismatchError, match="different servers"):
        cohorts.check_identities([rosters[0], keys(SECOND, 8)])
    with pytest.raises(PlanMismatchError, match="exactly"):
        cohorts.check_identities([rosters[0], keys(SECOND[:2], 9)])


def test_an_offer_of_one_cohort_is_none_in_another():
    """Each has a federation handle, a plan and clients of its own."""
    terms = make_terms(6)
    parts = [dict(list(terms.cohort.items())[place : place + 3]) for place in (0, 3)]
    first, second = (
        replace(terms, federation=name, plan_digest=bytes([place]) * 32, cohort=part)
        for place, (name, part) in enumerate(zip("ab", parts, strict=True))
    )
    _, offer = open_round(first, identity("server"), Counter(), ())
    read_offer(offer, first, 0)
    with pytest.raises(PlanMismatchError, match="federation"):
        read_offer(offer, second, 0)
    same = replace(second, federation=first.federation)
    with pytest.raises(PlanMismatchError, match="plan_digest"):
        read_offer(offer, same, 0)
    with pytest.raises(ReplayError):
        read_offer(offer, first, first.round_number)


# The sum.


@given(
    parts=st.lists(
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6),
        min_size=1,
        max_size=5,
    )
)
def test_the_joined_sum_is_the_sum_of_the_integers(parts):
    plans = tuple(
        make_plan(clients=cohort(40, 40, 40, names=[f"{place}{n}" for n in "abc"]))
        for place in range(len(parts))
    )
    sums = (part(place, *numbers, plan=plans[0]) for place, numbers in enumerate(parts))
    joined = Cohorts(plans).add(sums)
    assert joined.steps.tolist() == [sum(column) for column in zip(*parts, strict=True)]
    assert joined.units == len(parts) * plans[0].largest_batch


def test_no_number_of_cohorts_that_is_allowed_wraps_the_sum(monkeypatch):
    """The bound is checked where cohorts are made: here with few bits, not 64."""
    monkeypatch.setattr("privacy.cohorts._INT64_BITS", 33)
    with pytest.raises(PlanMismatchError, match="may wrap"):
        two()
    monkeypatch.setattr("privacy.cohorts._INT64_BITS", 34)
    plan = two().plans[0]
    for extreme in (-(2**31), 2**31 - 1):
        sums = [part(place, extreme, plan=plan) for place in (0, 1)]
        assert two().add(sums).steps[0] == 2 * extreme
        assert -(2**33) <= 2 * extreme < 2**33


def test_cohorts_whose_largest_batches_differ_are_divided_by_what_they_hold():
    small = cohort(20, 10, 10, names=SECOND)
    cohorts = two(clients=small)
    first, second = cohorts.plans
    sums = []
    for place, plan in enumerate((first, second)):
        found = part(place, 100, plan=plan)
        # Every client is in it, with weight 1.
        found.total[-1] = sum(plan.batch_share(one.name) for one in plan.clients)
        sums.append(found)
    # 4 clients draw 4 units each, and then one draws 2 and two draw 1.
    assert cohorts.add(sums).units == 4 * 4 + 2 + 1 + 1
    assert cohorts.add(sums[1:]).units == 4


def test_a_factor_scales_a_cohorts_sum_and_its_weight_alike():
    cohorts = two()
    whole = part(0, 7, -8, plan=cohorts.plans[0])
    half = part(1, 7, -8, plan=cohorts.plans[1], factor=WEIGHT_ONE // 2)
    joined = cohorts.add([whole, half])
    # To the nearest integer, ties upwards.
    assert joined.steps[:2].tolist() == [7 + 4, -8 - 4]
    assert joined.units == Fraction(3, 2) * cohorts.plans[0].largest_batch
    with pytest.raises(ValueError, match="weight"):
        cohorts.add([replace(whole, factor=WEIGHT_ONE + 1)])


def test_the_mean_is_over_units_and_in_gradient_units():
    cohorts = two()
    plan = cohorts.plans[0]
    joined = cohorts.add([part(0, 1024, plan=plan), part(1, 512, plan=plan)])
    # 1536 grid steps, of which 1024 are a clip norm of 0.1, over twice four units.
    assert joined.mean(plan.scale)[0] == pytest.approx(0.15 / 8, abs=1e-15)


def test_rotated_sums_are_turned_back_each_by_its_own_offer():
    cohorts = Cohorts(tuple(replace(plan, rotation=True) for plan in two().plans))
    plan, vectors = (
        cohorts.plans[0],
        np.array([[8, -3, 0, 5, 1, 2], [1, 1, 4, 0, 0, -9]]),
    )
    sums = []
    for place, vector in enumerate(vectors):
        found = part(place, plan=plan)
        rotation = Rotation.of_round(found.offer_digest, plan.dimension)
        # So large that rounding the rotated numbers is far below what is compared.
        found.total[:-1] = np.rint(rotation.forward(2**24 * vector))
        sums.append(found)
    steps = cohorts.add(sums).steps
    assert np.abs(steps / 2**24 - vectors.sum(axis=0)).max() < 1e-6
    swapped = [replace(sums[0], offer_digest=sums[1].offer_digest), sums[1]]
    wrong = cohorts.add(swapped).steps
    assert np.abs(wrong / 2**24 - vectors.sum(axis=0)).max() > 1


def test_the_sum_of_a_cohort_that_ended_without_one_is_left_out():
    cohorts = two()
    only = cohorts.add([part(1, 5, plan=cohorts.plans[1])])
    assert only.steps[0] == 5
    assert only.units == cohorts.plans[1].largest_batch


def test_a_sum_that_counts_twice_or_is_of_no_cohort_is_refused():
    cohorts = two()
    one = part(0, 1, plan=cohorts.plans[0])
    for sums in ([one, one], [replace(one, cohort=2)], [replace(one, cohort=-1)]):
        with pytest.raises(ValueError, match="unknown, or was added before"):
            cohorts.add(sums)
    with pytest.raises(ValueError, match="no sum"):
        cohorts.add([])


def test_a_sum_that_no_residues_stand_for_is_refused():
    cohorts = two()
    good = total(1, plan=cohorts.plans[0])
    for wrong in (
        good[:-1],
        good.astype(np.int32),
        np.where(good == 1, 2**31, good),
        np.where(good == 1, -(2**31) - 1, good),
        good * np.array([1, 1, 1, 1, 1, 1, 0]),
    ):
        with pytest.raises(ValueError, match="decoded sum"):
            cohorts.add([CohortSum(0, wrong, bytes(32))])
