"""The only door: what is charged, drawn, clipped, noised and handed out in a round."""

import copy
import os
from decimal import Decimal
from fractions import Fraction
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest

from privacy import contribution as door
from privacy.contribution import registered_event
from privacy.errors import (
    BrokenChainError,
    BudgetExceededError,
    DisagreementError,
    LedgerError,
    PlanMismatchError,
    PrivacyError,
)
from privacy.ledger import (
    Joined,
    commitment,
    spend_of,
)
from privacy.plan import WEIGHT_ONE
from privacy.randomness import system_entropy
from privacy.rotation import Rotation
from privacy.vectors import NoisedVector
from tests.plans import (
    NAMES,
    NO_PROMISE,
    NO_STATISTIC,
    UNIFORM,
    Counter,
    cohort,
    make_plan,
)
from tests.privacy.door import EVERYTHING, UNITS, integers, sealed
from tests.privacy.ledger.synthetic import payloads

# What is on disk, and when.


def test_the_intent_is_on_disk_before_any_random_number_is_asked_for(site):
    one = site()
    seen = []

    def entropy(count):
        seen.append(one.records()[-1])
        return Counter(str(len(seen)))(count)

    one.join()
    one.charge(entropy)
    assert seen
    assert set(seen) == {"intent"}


def test_the_charge_is_synced_before_any_random_number_is_asked_for(site, monkeypatch):
    one, synced = site(), []
    sync = os.fsync

    def fsync(descriptor):
        synced.append(one.records()[-1])
        sync(descriptor)

    def entropy(count):
        assert "intent" in synced
        return bytes(count)

    one.join()
    monkeypatch.setattr(os, "fsync", fsync)
    one.charge(entropy)


def test_a_crash_at_the_first_random_number_leaves_the_charge_standing(site, tmp_path):
    one = site()

    def entropy(count):
        raise KeyboardInterrupt

    one.join()
    with pytest.raises(KeyboardInterrupt):
        one.charge(entropy)
    one.ledger.close()
    with one.reopen() as again:
        assert again.history.totals()[0].charges == 1
        assert again.history.totals()[0].epsilon_pld > 0


def test_nothing_is_drawn_when_the_disk_refuses_the_charge(site, monkeypatch):
    one, entropy = site(), Counter()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    one.join()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError):
        one.charge(entropy)
    assert entropy.calls == 0


def test_the_commitment_is_on_disk_before_the_vector_exists(site, monkeypatch):
    one, seen = site(**EVERYTHING), []

    def constructed(*values):
        seen.append(one.records()[-1])
        return NoisedVector(*values)

    monkeypatch.setattr(door, "NoisedVector", constructed)
    sealed(one.begin(Counter()))
    assert seen == ["commit"]


def test_no_vector_is_handed_out_when_the_disk_refuses_the_commitment(
    site, monkeypatch
):
    one = site(**EVERYTHING)
    begun = one.begin(Counter())
    begun.draw(UNITS)
    begun.weigh(1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError):
        begun.seal()
    assert one.records()[-1] == "intent"


@pytest.mark.parametrize("bits", [32, 24, 21])
def test_the_opening_opens_the_commitment_to_the_very_vector(site, bits):
    one = site(**(EVERYTHING | {"modulus_bits": bits}))
    vector, opening = sealed(one.begin(Counter()))
    commit = payloads(one.path)[-1]
    # Of what travels, the packed bytes.
    whole = sum(int(word) << (n * bits) for n, word in enumerate(vector.residues))
    words = whole.to_bytes(-(-bits * vector.residues.size // 8), "little")
    assert commit["modulus_bits"] == bits
    assert commit["commitment"] == commitment(opening, words).hex()
    assert commit["length"] == vector.residues.size
    other = commitment(bytes(32), words).hex()
    assert commit["commitment"] != other


def test_the_record_and_the_vector_name_the_plan_and_the_round(site):
    one = site(**EVERYTHING)
    one.join(2)
    vector, _ = sealed(one.charge(Counter(), 2))
    assert vector.plan_digest == one.plan.digest
    assert vector.round_number == 2
    assert vector.modulus_bits == one.plan.modulus_bits
    intent = next(r for r in payloads(one.path) if r["kind"] == "intent")
    assert intent["round"] == 2
    assert intent["event"]["noise_variance"] == str(one.plan.noise_variance)


# What may be spent.


def test_a_charge_beyond_the_plans_rounds_is_refused_and_writes_nothing(site):
    one, entropy = site(), Counter()
    for attempt in range(1, one.plan.rounds + 1):
        one.join(1, attempt)
        one.charge(entropy, 1, attempt)
        one.miss(1, attempt)
    one.join(1, one.plan.rounds + 1)
    before, calls = one.path.read_bytes(), entropy.calls
    with pytest.raises(BudgetExceededError):
        one.charge(entropy, 1, one.plan.rounds + 1)
    assert one.path.read_bytes() == before
    assert entropy.calls == calls


def test_a_round_that_the_plan_does_not_have_cannot_be_joined(site):
    one = site()
    before = one.path.read_bytes()
    with pytest.raises(DisagreementError):
        one.join(one.plan.rounds + 1)
    assert one.path.read_bytes() == before


def cost(plan, rounds):
    event = registered_event(plan, NAMES[0])
    return spend_of(((event, rounds),), Decimal(plan.delta), plan.rounds).epsilon_pld


@pytest.mark.parametrize("who", ["the client's cap", "the plan's target"])
def test_a_charge_above_what_was_agreed_is_refused_and_writes_nothing(site, who):
    between = (cost(make_plan(), 1) + cost(make_plan(), 2)) / 2
    text = format(between.quantize(Decimal("0.000001")).normalize(), "f")
    one = site(cap=text) if who == "the client's cap" else site(epsilon=text)
    entropy = Counter()
    one.begin(entropy)
    one.miss()
    one.join(2)
    before, calls = one.path.read_bytes(), entropy.calls
    with pytest.raises(BudgetExceededError):
        one.charge(entropy, 2)
    assert one.path.read_bytes() == before
    assert entropy.calls == calls
    # The ledger stays usable: the client can say that it misses the round.
    one.miss(2)


def test_a_round_that_was_not_joined_cannot_be_charged(site):
    one, entropy = site(), Counter()
    with pytest.raises(BrokenChainError):
        one.charge(entropy)
    assert entropy.calls == 0


def test_one_round_cannot_be_charged_twice(site):
    one, entropy = site(), Counter()
    one.begin(entropy)
    calls = entropy.calls
    with pytest.raises(BrokenChainError):
        one.charge(entropy)
    assert entropy.calls == calls


# The order of the steps.

WAY = {
    "draw": lambda begun: begun.draw(UNITS),
    "noised_mean": lambda begun: begun.noised_mean([0.5]),
    "weigh": lambda begun: begun.weigh(WEIGHT_ONE),
    "seal": lambda begun: begun.seal(),
}
ADD = {"add": lambda begun: begun.add(UNITS[0], None)}
# How many steps of the way are done, and a step that is not the next one.
MISPLACED = [
    (done, name)
    for done in range(len(WAY) + 1)
    for number, name in enumerate([*WAY, "add"])
    if number != done and (done, name) != (3, "add")
]


@pytest.mark.parametrize(("done", "name"), MISPLACED)
def test_each_step_is_possible_in_its_place_alone(site, done, name):
    begun = site().begin(Counter())
    for step in list(WAY.values())[:done]:
        step(begun)
    with pytest.raises(RuntimeError, match="out of order"):
        (WAY | ADD)[name](begun)


def test_without_a_statistic_a_weight_follows_the_draw(site):
    begun = site(**EVERYTHING).begin(Counter())
    begun.draw(UNITS)
    begun.weigh(1)


def test_a_plan_without_a_statistic_releases_none(site):
    begun = site(**EVERYTHING).begin(Counter())
    begun.draw(UNITS)
    with pytest.raises(PlanMismatchError):
        begun.noised_mean([1.0])


def test_a_plan_with_a_statistic_takes_no_weight_before_it(site):
    begun = site().begin(Counter())
    begun.draw(UNITS)
    with pytest.raises(RuntimeError, match="out of order"):
        begun.weigh(1)


def test_a_unit_counts_once(site):
    begun = site(**EVERYTHING).begin(Counter())
    begun.draw(UNITS)
    begun.weigh(WEIGHT_ONE)
    begun.add(UNITS[0], np.ones(6))
    with pytest.raises(RuntimeError, match="added already"):
        begun.add(UNITS[0], np.ones(6))


def test_a_unit_that_failed_counts_no_second_time_either(site):
    begun = site(**EVERYTHING).begin(Counter())
    begun.draw(UNITS)
    begun.weigh(WEIGHT_ONE)
    begun.add(UNITS[0], None)
    with pytest.raises(RuntimeError, match="added already"):
        begun.add(UNITS[0], np.ones(6))


def test_a_unit_that_was_not_drawn_cannot_be_added(site):
    one = site(sampling_rate=Fraction(1, 2), weighting=UNIFORM, **NO_STATISTIC)
    begun = one.begin(Counter())
    drawn = begun.draw(UNITS)
    begun.weigh(WEIGHT_ONE)
    left_out = next(unit for unit in UNITS if unit not in drawn)
    for unit in (left_out, "a stranger"):
        with pytest.raises(RuntimeError, match="not drawn"):
            begun.add(unit, np.ones(6))


def test_a_gradient_of_another_model_is_refused(site):
    begun = site(**EVERYTHING).begin(Counter())
    begun.draw(UNITS)
    begun.weigh(WEIGHT_ONE)
    with pytest.raises(PlanMismatchError):
        begun.add(UNITS[0], np.ones(7))


@pytest.mark.parametrize("weight", [-1, 0, WEIGHT_ONE + 1, 2**20])
def test_a_weight_outside_its_range_is_refused_before_anything_is_added(site, weight):
    begun = site(**EVERYTHING).begin(Counter())
    begun.draw(UNITS)
    with pytest.raises(ValueError, match="weight"):
        begun.weigh(weight)
    begun.weigh(WEIGHT_ONE)


# A plan that promises nothing.


def test_without_a_promise_the_vector_is_the_plain_sum_and_the_charge_infinite(site):
    one = site(**(EVERYTHING | NO_PROMISE), cap="Infinity")
    gradients = {unit: np.full(6, 0.01) for unit in UNITS[:3]}
    vector, _ = sealed(one.begin(Counter()), gradients)
    steps = 3 * round(0.01 * 1024 / 0.1)
    assert integers(vector).tolist() == [steps] * 6 + [WEIGHT_ONE]
    (intent,) = [r for r in payloads(one.path) if r["kind"] == "intent"]
    for total in (intent["spend"], intent["lifetime"]):
        assert (total["epsilon_pld"], total["epsilon_rdp"]) == ("infinity", "infinity")


def test_without_a_promise_the_statistic_is_exact(site):
    one = site(**NO_PROMISE, cap="Infinity")
    begun = one.begin(Counter())
    begun.draw(UNITS)
    assert begun.noised_mean([1.0, 0.5]) == pytest.approx(1.5 / 4, abs=1e-4)


def test_no_finite_cap_allows_a_round_without_a_promise(site):
    one = site(**(EVERYTHING | NO_PROMISE), cap="1000000000")
    entropy = Counter()
    one.join()
    with pytest.raises(BudgetExceededError):
        one.charge(entropy)
    assert one.records() == ["opened", "joined"]
    assert entropy.calls == 0


# What is in the vector.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_counts_as_zeros(site, bad):
    others = {unit: np.full(6, 0.01) for unit in UNITS[1:]}
    spoilt = np.array([0.01, 0.02, bad, 0.0, 0.0, 0.0])
    with_bad, _ = sealed(
        site(**EVERYTHING).begin(Counter()), others | {UNITS[0]: spoilt}
    )
    without, _ = sealed(site(**EVERYTHING).begin(Counter()), others)
    assert np.array_equal(with_bad.residues, without.residues)


def test_a_unit_more_moves_the_sum_by_its_own_vector_and_nothing_else(site):
    some = {unit: np.full(6, 0.01) for unit in UNITS[:5]}
    more = some | {UNITS[7]: np.array([0.03, 0, 0, 0, 0, 0])}
    one, _ = sealed(site(**EVERYTHING).begin(Counter()), some)
    two, _ = sealed(site(**EVERYTHING).begin(Counter()), more)
    difference = integers(two) - integers(one)
    steps = round(0.03 * 1024 / 0.1)
    assert difference.tolist() == [steps, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("weight", [WEIGHT_ONE, WEIGHT_ONE // 2, 3000])
@pytest.mark.parametrize("size", [1.0, 1e6, 1e300])
def test_no_unit_moves_the_sum_by_more_than_the_weighted_norm_bound(site, weight, size):
    gradient = size * np.array([1.0, -2.0, 3.0, -4.0, 5.0, -6.0])
    one, _ = sealed(site(**EVERYTHING).begin(Counter()), {}, weight)
    two, _ = sealed(site(**EVERYTHING).begin(Counter()), {UNITS[0]: gradient}, weight)
    moved = (integers(two) - integers(one))[:-1]
    bound = 1024 * weight // WEIGHT_ONE
    assert int(np.dot(moved, moved)) <= bound**2
    # A clipped gradient uses the bound: one that is half as large would fail here.
    assert int(np.dot(moved, moved)) >= (bound - 4) ** 2


ROTATED = EVERYTHING | {"rotation": True}
# What the site's ledger says it joined.
OFFER = bytes(32)


def test_a_rotated_unit_moves_the_sum_by_its_own_rotated_vector_and_nothing_else(site):
    some = {unit: np.full(6, 0.01) for unit in UNITS[:5]}
    gradient = np.array([0.03, 0, -0.01, 0, 0, 0.02])
    one, _ = sealed(site(**ROTATED).begin(Counter()), some)
    two, _ = sealed(site(**ROTATED).begin(Counter()), some | {UNITS[7]: gradient})
    difference = (integers(two) - integers(one)).tolist()
    rotated = Rotation.of_round(OFFER, 6).forward(gradient)
    assert difference == [*np.rint(rotated * 1024 / 0.1).astype(int), 0]
    assert np.abs(rotated - gradient).max() > 0.005


@pytest.mark.parametrize("weight", [WEIGHT_ONE, WEIGHT_ONE // 2, 3000])
@pytest.mark.parametrize("size", [1.0, 1e6, 1e300])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_unit_moves_a_rotated_sum_by_more_than_the_weighted_norm_bound(
    site, weight, size, number
):
    words = np.frombuffer(Counter(str(number))(48), dtype="<i8")
    gradient = size * (words / 2.0**60)
    one, _ = sealed(site(**ROTATED).begin(Counter()), {}, weight)
    two, _ = sealed(site(**ROTATED).begin(Counter()), {UNITS[0]: gradient}, weight)
    moved = (integers(two) - integers(one))[:-1]
    bound = 1024 * weight // WEIGHT_ONE
    assert (bound - 4) ** 2 <= int(np.dot(moved, moved)) <= bound**2


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 7, 8])
def test_a_rotated_unit_is_held_to_the_bound_whatever_the_dimension(site, dimension):
    """On integers, where rounding weighs most: the bound is a few grid steps."""
    small = {"dimension": dimension, "norm_bound": 8, "clip_norm": Fraction(8)}
    words = np.frombuffer(Counter("some")(8 * 8 * 6), dtype="<i8").reshape(6, 8)
    silent, _ = sealed(site(**ROTATED, **small).begin(Counter()))
    for number, row in enumerate(words[:, :dimension] / 2.0**63, start=1):
        gradient = row / np.linalg.norm(row) * (7 + number)
        begun = site(**ROTATED, **small).begin(Counter())
        moved = integers(sealed(begun, {UNITS[0]: gradient})[0]) - integers(silent)
        squared = int(np.dot(moved[:-1], moved[:-1]))
        # Not less than the bound by more than rounding.
        assert (8 - dimension**0.5) ** 2 <= squared <= 8**2


def test_no_offer_that_a_server_tries_lifts_a_unit_over_its_bound(site):
    """The server draws the offer: it may look for signs that suit a gradient.

    Here rounding would lengthen the rotated vector the most, and every coordinate of
    the gradient be in one place.
    """
    small = {"dimension": 4, "norm_bound": 3, "clip_norm": Fraction(3)}
    gradient = np.array([2.9, -0.45, 0.4, 0.3])

    def rounded(number):
        turned = Rotation.of_round(number.to_bytes(32, "big"), 4).forward(gradient)
        return float(np.dot(np.rint(turned), np.rint(turned)))

    offers = sorted(range(300), key=rounded)
    assert rounded(offers[-1]) > 9 > rounded(offers[0])
    for number in (offers[0], offers[-1]):
        offer = number.to_bytes(32, "big")
        found = []
        for given in ({}, {UNITS[0]: gradient}):
            one = site(**ROTATED, **small)
            one.ledger.append(Joined(1, 1, offer, bytes(32)))
            found.append(integers(sealed(one.charge(Counter()), given)[0]))
        moved = (found[1] - found[0])[:-1]
        assert 0 < int(np.dot(moved, moved)) <= 9


@pytest.mark.parametrize("bits", [32, 20, 14])
def test_the_weight_is_not_rotated_and_exact_in_the_parts_of_the_plan(site, bits):
    small = {"norm_bound": 4, "clip_norm": Fraction(4), "noise_variance": 2**11}
    one = site(**ROTATED, **small, modulus_bits=bits)
    vector, _ = sealed(one.begin(Counter()), {}, 3 * 2**12)
    steps = one.plan.weight_steps
    # Five times as many parts, for four clients and one to spare, fit half the modulus.
    assert steps == {32: 2**16, 20: 2**16, 14: 2**10}[bits]
    assert integers(vector)[-1] == 3 * steps // 16


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.7e308])
def test_a_rotated_gradient_that_is_not_finite_counts_as_zeros(site, bad):
    some = {unit: np.full(6, 0.01) for unit in UNITS[:5]}
    broken = np.full(6, 1.7e308 if bad == 1.7e308 else 0.0)
    broken[2] = bad
    one, _ = sealed(site(**ROTATED).begin(Counter()), some)
    two, _ = sealed(site(**ROTATED).begin(Counter()), some | {UNITS[7]: broken})
    assert np.array_equal(one.residues, two.residues)


def test_the_rotation_is_of_the_offer_that_was_joined(site):
    """And of nothing that a client or its data have a say in."""
    vectors = []
    for offer in (OFFER, b"\x01" * 32):
        one = site(**ROTATED)
        one.ledger.append(Joined(1, 1, offer, bytes(32)))
        found, _ = sealed(one.charge(Counter()), {UNITS[0]: np.full(6, 0.01)})
        silent, _ = sealed(site(**ROTATED).begin(Counter()))
        moved = integers(found) - integers(silent)
        rotated = Rotation.of_round(offer, 6).forward(np.full(6, 0.01))
        assert np.array_equal(moved[:-1], np.rint(rotated * 1024 / 0.1))
        vectors.append(moved)
    assert not np.array_equal(*vectors)


def test_the_noise_of_a_rotated_vector_is_whole_and_not_rotated(site):
    """The same noise numbers as without: they are added to what is sent."""
    plain, _ = sealed(site(**EVERYTHING).begin(Counter()))
    rotated, _ = sealed(site(**ROTATED).begin(Counter()))
    assert np.array_equal(plain.residues, rotated.residues)


def test_an_empty_draw_is_charged_noised_and_sent(site):
    changes = {"sampling_rate": Fraction(1, 10**12)}
    one = site(**(EVERYTHING | changes))
    begun = one.begin(Counter())
    assert begun.draw(UNITS) == []
    begun.weigh(WEIGHT_ONE)
    vector, _ = begun.seal()
    assert one.records()[-2:] == ["intent", "commit"]
    assert vector.residues.size == one.plan.vector_length
    assert np.count_nonzero(integers(vector)[:-1]) == one.plan.dimension


DIMENSION = 20_000
# Of 20,000 squares the mean is off by 1% of itself, one standard error. A right program
# fails a bound of six for one counter in 5e8; a variance that is halved misses it by
# fifty.
SIX_STANDARD_ERRORS = 6 * np.sqrt(2 / DIMENSION)


def noise_of(site, weight=WEIGHT_ONE, entropy=None, **changes):
    terms = EVERYTHING | {"dimension": DIMENSION, "sampling_rate": Fraction(1, 10**9)}
    one = site(**(terms | changes))
    vector, _ = sealed(one.begin(entropy or Counter("noise")), None, weight)
    return integers(vector)[:-1], one.plan


@pytest.mark.parametrize(
    "changes",
    [{}, {"min_survivors": 4}, {"colluders": 2, "min_survivors": 3}],
    ids=["two honest shares", "three", "one"],
)
def test_a_vector_carries_the_noise_share_of_the_plan(site, changes):
    noise, plan = noise_of(site, **changes)
    honest = plan.min_survivors - max(1, plan.colluders)
    wanted = -(-plan.noise_variance // honest)
    measured = float(np.mean(noise.astype(np.float64) ** 2))
    assert abs(measured / wanted - 1) < SIX_STANDARD_ERRORS
    assert abs(noise.mean()) < 6 * np.sqrt(wanted / DIMENSION)


def test_the_honest_shares_sum_to_the_registered_noise(site):
    _, plan = noise_of(site)
    shares = [
        noise_of(site, entropy=Counter(f"client {number}"))[0]
        for number in range(plan.honest_shares)
    ]
    total = np.sum(shares, axis=0).astype(np.float64)
    ratio = float(np.mean(total**2)) / plan.noise_variance
    assert abs(ratio - 1) < SIX_STANDARD_ERRORS


def test_the_noise_does_not_depend_on_the_weight(site):
    heavy, _ = noise_of(site, WEIGHT_ONE)
    light, _ = noise_of(site, 1)
    assert np.array_equal(heavy, light)


def test_the_noise_of_one_coordinate_tells_nothing_of_the_next(site):
    noise, plan = noise_of(site)
    product = float(np.mean(noise[1:] * noise[:-1])) / plan.noise_share_variance
    assert abs(product) < 6 / np.sqrt(DIMENSION)


def test_the_noise_is_fresh_in_every_round(site):
    one = site(**EVERYTHING)
    first, _ = sealed(one.begin(system_entropy, 1))
    one.miss(1)
    second, _ = sealed(one.begin(system_entropy, 2))
    assert not np.array_equal(first.residues[:-1], second.residues[:-1])


def test_the_last_coordinate_is_the_exact_weight_times_the_batch_share(site):
    sizes = cohort(30, 40, 10, 20, names=NAMES)
    one = site(**(EVERYTHING | {"clients": sizes}))
    vector, _ = sealed(one.begin(Counter()), {}, WEIGHT_ONE // 2)
    assert integers(vector)[-1] == WEIGHT_ONE // 2 * 3 // 4


def test_the_statistic_is_noised_over_the_public_expected_batch(site):
    rewards = [1.0] * 3
    one = site()
    begun = one.begin(Counter())
    begun.draw(UNITS)
    loud = begun.noised_mean(rewards)
    other = site()
    begun = other.begin(Counter())
    begun.draw(UNITS)
    quiet = begun.noised_mean([])
    # Equal noise in both; three best rewards over the expected batch of 4 units.
    assert loud - quiet == pytest.approx(3 / 4)
    assert quiet != 0


def test_the_statistic_is_over_the_expected_batch_whatever_was_drawn(site):
    def begun_and_drawn(seed):
        begun = site().begin(Counter(seed))
        return begun, begun.draw(UNITS)

    def differs(seed):
        return len(begun_and_drawn(seed)[1]) not in {0, 4}

    seed = next(str(number) for number in range(50) if differs(str(number)))
    begun, drawn = begun_and_drawn(seed)
    assert len(drawn) != begun._plan.expected_batch(begun._name) == 4
    loud = begun.noised_mean([1.0] * len(drawn))
    other, again = begun_and_drawn(seed)
    assert again == drawn
    # The noise is the same in both, and the best rewards are worth one unit each.
    quiet = other.noised_mean([0.0] * len(drawn))
    assert loud - quiet == pytest.approx(len(drawn) / 4)


def test_at_rate_one_every_unit_is_drawn_in_its_order(site):
    shuffled = UNITS[7:] + UNITS[:7]
    assert site(**EVERYTHING).begin(Counter()).draw(UNITS) == UNITS
    assert site(**EVERYTHING).begin(Counter()).draw(shuffled) == shuffled


# Randomness that belongs to one unit.


def test_a_units_numbers_depend_on_no_other_unit(site):
    one = site().begin(Counter())
    two = site().begin(Counter())
    one.draw(UNITS)
    two.draw(UNITS[:-3])
    for unit in UNITS[:5]:
        assert np.array_equal(one.uniforms(unit, 9), two.uniforms(unit, 9))
    assert not np.array_equal(one.uniforms(UNITS[0], 9), one.uniforms(UNITS[1], 9))


def test_a_units_numbers_are_fresh_in_every_round(site):
    one = site()
    first = one.begin(system_entropy, 1).uniforms(UNITS[0], 9)
    one.miss(1)
    second = one.begin(system_entropy, 2).uniforms(UNITS[0], 9)
    assert not np.array_equal(first, second)


def test_a_round_keeps_neither_stream_nor_sum_after_it_is_sealed(site):
    begun = site(**EVERYTHING).begin(Counter())
    sealed(begun)
    kept = vars(begun)
    assert not {"_stream", "_round_key", "_total"} & set(kept)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, ForkingPickler.dumps])
def test_a_round_in_progress_cannot_be_copied_or_stored(site, duplicate):
    begun = site().begin(Counter())
    with pytest.raises(TypeError):
        duplicate(begun)


def test_two_views_of_one_round_cannot_both_be_sealed(site):
    begun = site(**EVERYTHING).begin(Counter())
    begun.draw(UNITS)
    begun.weigh(WEIGHT_ONE)
    other = copy.copy(begun)
    begun.seal()
    with pytest.raises(PrivacyError):
        other.seal()


def test_a_round_in_progress_does_not_survive_a_fork(site):
    begun = site(**EVERYTHING).begin(Counter())
    begun.draw(UNITS)
    begun.weigh(WEIGHT_ONE)
    child = os.fork()
    if child == 0:
        try:
            begun.seal()
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    begun.seal()
