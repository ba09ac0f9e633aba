"""Local trust: several steps a round, each noised in full and each paid for."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from privacy.accountant import epsilon_pld
from privacy.contribution import registered_event, registered_spend
from privacy.errors import (
    BudgetExceededError,
    DisagreementError,
    PlanMismatchError,
)
from privacy.events import draw_event
from privacy.ledger import Intent
from privacy.plan import WEIGHT_ONE
from privacy.randomness import system_entropy
from privacy.rotation import Rotation
from tests.plans import NAMES, NO_PROMISE, NO_STATISTIC, UNIFORM, Counter, cohort
from tests.privacy.door import EVERYTHING, UNITS, integers
from tests.privacy.ledger.synthetic import payloads

LOCAL = {"trust": "local", "local_steps": 3}
WIDE = EVERYTHING | LOCAL | {"dimension": 4096, "min_survivors": 2, "epsilon": "5000"}
# 4096 numbers: a false alarm of six deviations is rarer than 2e-9 in each test.
TOLERANCE = 6


def gradient(dimension, place, value=1.0):
    vector = np.zeros(dimension)
    vector[place] = value
    return vector


def step(begun, gradients=None, inner=1):
    """One draw with all of its releases; returns them."""
    drawn, released = begun.draw(UNITS), []
    for _ in range(inner):
        for unit in drawn:
            begun.add(unit, (gradients or {}).get(unit))
        released.append(begun.release())
    return released


def in_steps(plan, released):
    """A released mean in grid steps again, exactly."""
    batch = float(plan.expected_batch(plan.clients[0].name))
    return np.rint(released * float(plan.scale) * batch).astype(np.int64)


# The charge.


def test_all_draws_of_a_round_are_charged_before_the_first_random_number(site):
    one = site(**LOCAL)
    seen = []

    def entropy(count):
        seen.append([r for r in payloads(one.path) if r["kind"] == "intent"])
        return Counter(str(len(seen)))(count)

    begun = one.begin(entropy)
    begun.draw(UNITS)
    assert seen
    for intents in seen:
        assert [intent["releases"] for intent in intents] == [3]
        assert intents[0]["spend"]["charges"] == 3


def test_every_local_step_is_an_event_of_its_own(site):
    one = site(**LOCAL)
    one.begin(Counter())
    plan, history = one.plan, one.ledger.history
    event = draw_event(
        sampling_rate=plan.sampling_rate,
        variance=plan.noise_variance,
        norm_bound=plan.norm_bound,
        statistic_variance=plan.statistic_variance,
        statistic_norm_bound=plan.statistic_norm_bound,
    )
    assert history.charges == ((registered_event(plan, one.name), 3),)
    cost = epsilon_pld(event, 3, 1e-5, registered_rounds=9)
    assert float(history.totals()[0].epsilon_pld) == pytest.approx(cost, abs=2e-6)


def test_several_releases_on_one_draw_cost_less_than_as_many_draws_and_more_than_one():
    def cost(**changes):
        made = site_plan(**changes)
        return registered_spend(made, made.most_exposed).epsilon_pld

    one, inner, several = cost(), cost(inner_steps=4), cost(local_steps=4)
    assert one < inner
    assert one < several
    # At this rate being drawn again is cheaper than being shown four times.
    assert several < inner


def site_plan(**changes):
    from tests.plans import make_plan

    return make_plan(trust="local", sampling_rate=Fraction(1, 50), **changes)


def test_a_round_of_local_steps_is_refused_whole_where_one_step_would_pass_the_cap(
    site,
):
    whole = registered_spend(site_plan(local_steps=3, rounds=1), NAMES[0]).epsilon_pld
    under = format(Decimal(whole) - Decimal("0.01"), "f")
    one = site(
        cap=under, trust="local", local_steps=3, sampling_rate=Fraction(1, 50), rounds=1
    )
    entropy = Counter()
    one.join()
    before = one.path.read_bytes()
    with pytest.raises(BudgetExceededError):
        one.charge(entropy)
    assert one.path.read_bytes() == before
    assert entropy.calls == 0


@pytest.mark.parametrize("releases", [1, 2, 4])
def test_a_record_that_charges_another_number_of_steps_is_refused(site, releases):
    one = site(**LOCAL)
    spend, lifetime = one.ledger.history.totals()
    one.join()
    wrong = Intent(
        round=1,
        attempt=1,
        event=registered_event(one.plan, one.name),
        releases=releases,
        spend=spend,
        lifetime=lifetime,
    )
    with pytest.raises(DisagreementError, match="event"):
        one.ledger.append(wrong)


# The order of the steps.


def test_no_step_can_be_left_out_or_made_twice(site):
    one = site(**(EVERYTHING | LOCAL))
    begun = one.begin(Counter())
    for _ in range(3):
        with pytest.raises(RuntimeError, match="order"):
            begun.weigh(WEIGHT_ONE)
        with pytest.raises(RuntimeError, match="order"):
            begun.seal()
        begun.draw(UNITS)
        with pytest.raises(RuntimeError, match="order"):
            begun.draw(UNITS)
        begun.release()
        with pytest.raises(RuntimeError, match="order"):
            begun.release()
        with pytest.raises(RuntimeError, match="order"):
            begun.add(UNITS[0], None)
    with pytest.raises(RuntimeError, match="charged"):
        begun.draw(UNITS)
    begun.weigh(WEIGHT_ONE)
    for act in (lambda: begun.draw(UNITS), begun.release):
        with pytest.raises(RuntimeError):
            act()
    begun.seal()
    with pytest.raises(RuntimeError):
        begun.seal()


def test_the_statistic_comes_before_any_release_of_its_draw_and_once(site):
    one = site(**LOCAL, epsilon="200")
    begun = one.begin(Counter())
    for _ in range(3):
        begun.draw(UNITS)
        with pytest.raises(RuntimeError, match="order"):
            begun.release()
        begun.noised_mean([0.5])
        with pytest.raises(RuntimeError, match="order"):
            begun.noised_mean([0.5])
        begun.release()


def test_a_share_of_the_noise_is_never_released_by_itself(site):
    one = site(**EVERYTHING)
    begun = one.begin(Counter())
    begun.draw(UNITS)
    begun.weigh(WEIGHT_ONE)
    with pytest.raises(PlanMismatchError, match="local trust"):
        begun.release()


def test_a_unit_counts_once_in_each_release(site):
    one = site(**(EVERYTHING | LOCAL | {"local_steps": 1, "inner_steps": 2}))
    begun = one.begin(Counter())
    drawn = begun.draw(UNITS)
    for _ in range(2):
        begun.add(drawn[0], None)
        with pytest.raises(RuntimeError, match="already"):
            begun.add(drawn[0], None)
        begun.release()


def test_a_unit_that_is_drawn_again_gets_other_numbers(site):
    one = site(**(EVERYTHING | LOCAL))
    begun = one.begin(system_entropy)
    numbers = []
    for _ in range(3):
        begun.draw(UNITS)
        numbers.append(begun.uniforms(UNITS[0], 50))
        assert np.array_equal(numbers[-1], begun.uniforms(UNITS[0], 50))
        begun.release()
    assert not np.isin(numbers[0], [*numbers[1], *numbers[2]]).any()
    assert not np.isin(numbers[1], numbers[2]).any()


# The noise.


def deviations(noise, variance):
    """How far the sample's variance is from the stated one, in its deviations."""
    return (np.mean(noise.astype(float) ** 2) / variance - 1) * np.sqrt(noise.size / 2)


def test_every_release_carries_all_of_the_noise(site):
    one = site(**WIDE)
    begun = one.begin(system_entropy)
    for _ in range(3):
        (released,) = step(begun)
        noise = in_steps(one.plan, released)
        assert abs(deviations(noise, one.plan.noise_variance)) < TOLERANCE
        # As a share of two or of three would be, were the others' shares counted on.
        assert abs(deviations(noise, one.plan.noise_variance / 2)) > TOLERANCE
        assert abs(deviations(noise, one.plan.noise_variance / 3)) > TOLERANCE


def test_every_inner_release_carries_all_of_the_noise(site):
    one = site(**(WIDE | {"local_steps": 1, "inner_steps": 3}))
    begun = one.begin(system_entropy)
    for released in step(begun, inner=3):
        noise = in_steps(one.plan, released)
        assert abs(deviations(noise, one.plan.noise_variance)) < TOLERANCE


def test_no_two_releases_share_their_noise(site):
    one = site(**(WIDE | {"inner_steps": 2}))
    begun = one.begin(system_entropy)
    found = [
        in_steps(one.plan, released)
        for _ in range(3)
        for released in step(begun, inner=2)
    ]
    for number, left in enumerate(found):
        for right in found[:number]:
            both = np.mean(left.astype(float) * right) / one.plan.noise_variance
            assert abs(both) * np.sqrt(left.size) < TOLERANCE


def test_an_empty_draw_is_noised_released_and_sent(site):
    rare = cohort(40, 40, 40, 40, names=NAMES, rate=Fraction(1, 10**9))
    one = site(**(WIDE | {"clients": rare, "sampling_rate": Fraction(1, 10**9)}))
    begun = one.begin(system_entropy)
    for _ in range(3):
        assert begun.draw(UNITS) == []
        noise = in_steps(one.plan, begun.release())
        assert abs(deviations(noise, one.plan.noise_variance)) < TOLERANCE
    begun.weigh(WEIGHT_ONE)
    assert begun.seal()[0].residues.size == one.plan.vector_length


def test_a_plan_sizes_no_noise_by_what_other_clients_add():
    for survivors, colluders in ((3, 1), (4, 2), (2, 0)):
        plan = site_plan(min_survivors=survivors, colluders=colluders)
        assert plan.noise_share_variance == plan.noise_variance


# What leaves.


@pytest.mark.parametrize("weight", [WEIGHT_ONE, WEIGHT_ONE // 3, 1])
def test_the_vector_is_the_weighted_sum_of_the_releases_and_adds_nothing(site, weight):
    one = site(**(WIDE | {"inner_steps": 2}))
    begun = one.begin(system_entropy)
    total = np.zeros(one.plan.dimension, dtype=np.int64)
    for _ in range(3):
        for released in step(begun, inner=2):
            total += in_steps(one.plan, released)
    begun.weigh(weight)
    vector, _ = begun.seal()
    expected = [
        (Fraction(int(value)) * weight / WEIGHT_ONE + Fraction(1, 2)).__floor__()
        for value in total
    ]
    assert integers(vector)[:-1].tolist() == expected
    assert integers(vector)[-1] == weight


@pytest.mark.parametrize("weight", [WEIGHT_ONE, WEIGHT_ONE // 3])
def test_a_rotation_turns_what_is_sent_and_no_release(site, weight):
    """It is post-processing here: the releases and the noise are those without it."""
    grads = {unit: gradient(4096, n, 0.05) for n, unit in enumerate(UNITS[:9])}
    found = {}
    for rotation in (False, True):
        one = site(**(WIDE | {"rotation": rotation}))
        begun = one.begin(Counter())
        released = [step(begun, grads)[0] for _ in range(3)]
        begun.weigh(weight)
        found[rotation] = released, integers(begun.seal()[0])
    for plain, turned in zip(found[False][0], found[True][0], strict=True):
        assert np.array_equal(plain, turned)
    total = sum(in_steps(one.plan, release) for release in found[True][0])
    turn = Rotation.of_round(bytes(32), 4096)
    exact = turn.forward(total) * (weight / WEIGHT_ONE)
    sent = found[True][1]
    assert np.abs(sent[:-1] - exact).max() <= 0.5 + 1e-6
    assert sent[-1] == found[False][1][-1] == weight
    # What the server undoes: each number is the plain one, up to the rounding.
    back = turn.inverse(sent[:-1]) - found[False][1][:-1]
    assert np.abs(back).max() < 4


def test_a_weight_does_not_clip_a_local_step(site):
    """Weights multiply what is released, so that no step is shrunk under its noise."""
    quiet = EVERYTHING | LOCAL | NO_PROMISE | NO_STATISTIC | {"local_steps": 1}
    one = site(**(quiet | {"weighting": UNIFORM}), cap="Infinity")
    begun = one.begin(Counter())
    d, bound = one.plan.dimension, one.plan.norm_bound
    (released,) = step(begun, {UNITS[0]: gradient(d, 1, 1e6)})
    assert in_steps(one.plan, released).tolist() == [0, bound, *[0] * (d - 2)]
    begun.weigh(WEIGHT_ONE // 2)
    vector, _ = begun.seal()
    assert integers(vector)[1] == bound // 2


def test_one_unit_moves_each_release_by_no_more_than_the_norm_bound(site):
    quiet = EVERYTHING | LOCAL | NO_PROMISE | NO_STATISTIC | {"inner_steps": 2}
    extremes = [1e-320, 1e38, 1e308, -0.1, float("nan"), float("inf"), 0.05]
    found = {}
    for there in (True, False):
        one = site(**(quiet | {"weighting": UNIFORM}), cap="Infinity")
        begun = one.begin(Counter())
        found[there] = []
        for extreme in extremes[:3]:
            own = {unit: gradient(6, 2, 0.01) for unit in UNITS[1:]}
            if there:
                own[UNITS[0]] = np.full(6, extreme)
            found[there] += step(begun, own, inner=2)
        bound = one.plan.norm_bound
        plan = one.plan
    for with_it, without in zip(found[True], found[False], strict=True):
        moved = in_steps(plan, with_it) - in_steps(plan, without)
        assert 0 <= int(moved @ moved) <= bound**2
    assert any((a != b).any() for a, b in zip(found[True], found[False], strict=True))
