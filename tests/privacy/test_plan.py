"""What a plan refuses, and that its digest is of everything."""

import hashlib
import json
import math
from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import PlanMismatchError, RefusalError, WrappingSumError
from privacy.plan import (
    WEIGHT_ONE,
    Plan,
    Weighting,
    check_cohort,
    threshold,
    wrap_level,
)
from privacy.rotation import Rotation
from privacy.wire import canonical_json, parse_canonical_json
from tests.plans import NAMES, NO_PROMISE, NO_STATISTIC, UNIFORM, cohort, make_plan

# Written down by hand, not by `to_json`: RFC 8785 sorts keys and takes no spaces.
KNOWN_JSON = (
    '{"adjacency":"add-or-remove-one-unit-at-one-client","clients":['
    '{"name":"alpha","sampling_rate":"1/10","units":40},'
    '{"name":"beta","sampling_rate":"1/10","units":40},'
    '{"name":"gamma","sampling_rate":"1/10","units":40},'
    '{"name":"omega","sampling_rate":"1/10","units":40}],'
    '"clip_norm":"1/10","colluders":1,"delta":"0.00001","dimension":6,"epsilon":"8",'
    '"format":"fgrpo-secure/plan/1","inner_steps":1,"local_steps":1,'
    '"max_prompts_per_unit":1,'
    '"min_survivors":3,"modulus_bits":32,"noise_variance":"4194304",'
    '"norm_bound":1024,"recipe":"' + "ab" * 32 + '","rotation":false,"rounds":3,'
    '"statistic_norm_bound":4096,'
    '"statistic_variance":"1073741824","trust":"distributed","unit":"prompt",'
    '"weighting":{"baseline_decay":"4/5","gain":"relative",'
    '"max_weight_ratio":"3/1","rule":"fgrpo","temperature":"1/1"}}'
).encode()
KNOWN_DIGEST = "335470261394338f3e1d1a900cf5f2edc5df031ea334573c5db7c2ad0ba0014e"


# The digest.


def test_the_digest_is_a_known_answer():
    label = b"fgrpo-secure/1/plan"
    framed = b"".join(
        len(part).to_bytes(8, "big") + part for part in (label, KNOWN_JSON)
    )
    assert make_plan().digest == KNOWN_DIGEST
    assert hashlib.sha256(framed).hexdigest() == KNOWN_DIGEST


def test_equal_plans_have_equal_digests_and_both_forms_agree():
    assert make_plan().digest == make_plan().digest
    assert make_plan().digest_bytes.hex() == make_plan().digest


CHANGES = {
    "unit": "patient_id",
    "max_prompts_per_unit": 2,
    "epsilon": "7.9",
    "delta": "0.000009",
    "rounds": 4,
    "trust": "local",
    "local_steps": 2,
    "inner_steps": 2,
    "clip_norm": Fraction(1, 5),
    "norm_bound": 1023,
    "noise_variance": 2**22 + 1,
    "statistic_norm_bound": 4095,
    "statistic_variance": 2**30 + 1,
    "modulus_bits": 31,
    "rotation": True,
    "dimension": 7,
    "min_survivors": 4,
    "colluders": 0,
    "clients": cohort(41, 41, 41, 41, names=NAMES),
    "recipe": "cd" * 32,
    "weighting": Weighting("fgrpo", "zscore", Fraction(1), Fraction(4, 5), Fraction(3)),
}
# Other values of these go with other terms only.
WITH = {"local_steps": {"trust": "local"}, "inner_steps": {"trust": "local"}}


def test_every_field_of_a_plan_is_tried_below():
    assert {field.name for field in fields(Plan)} == CHANGES.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_the_digest_changes_with_every_field(name):
    # With the prompt as the unit there is no bound to change.
    column = {"unit": "visit_id"} | WITH.get(name, {})
    changed = make_plan(**(column | {name: CHANGES[name]}))
    assert changed.digest != make_plan(**column).digest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gain", "logit"),
        ("temperature", Fraction(2)),
        ("baseline_decay", Fraction(1, 2)),
        ("max_weight_ratio", Fraction(2)),
    ],
)
def test_the_digest_changes_with_every_constant_of_the_weighting(name, value):
    plan = make_plan()
    changed = replace(plan, weighting=replace(plan.weighting, **{name: value}))
    assert changed.digest != plan.digest


def test_the_digest_changes_with_the_rule():
    plain = make_plan(weighting=UNIFORM, **NO_STATISTIC)
    size = replace(UNIFORM, rule="size")
    assert make_plan(weighting=size, **NO_STATISTIC).digest != plain.digest


def test_the_digest_changes_with_a_clients_name():
    renamed = cohort(40, 40, 40, 40, names=(*NAMES[:-1], "sigma"))
    assert make_plan(clients=renamed).digest != make_plan().digest


def test_the_digest_changes_with_the_rate_of_one_client():
    slower = replace(make_plan().clients[2], sampling_rate=Fraction(1, 11))
    clients = (*make_plan().clients[:2], slower, make_plan().clients[3])
    assert make_plan(clients=clients).digest != make_plan().digest


def test_no_float_enters_the_digest():
    def walk(value):
        assert not isinstance(value, float)
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                walk(item)

    walk(make_plan().to_json())


# Its JSON.


def test_a_plan_reads_back_what_it_writes():
    plan = make_plan()
    data = canonical_json(plan.to_json())
    assert Plan.from_json(parse_canonical_json(data)) == plan


def tampered(change):
    value = json.loads(canonical_json(make_plan().to_json()))
    change(value)
    return value


BAD_JSON = {
    "another version": lambda v: v.update(format="fgrpo-secure/plan/2"),
    "another adjacency": lambda v: v.update(adjacency="replace-one"),
    "an unknown key": lambda v: v.update(extra=1),
    "a missing key": lambda v: v.pop("rounds"),
    "an unknown key of a client": lambda v: v["clients"][0].update(extra=1),
    "a missing key of a client": lambda v: v["clients"][0].pop("units"),
    "an unknown key of the weighting": lambda v: v["weighting"].update(extra=1),
    "a missing key of the weighting": lambda v: v["weighting"].pop("gain"),
    "a number as text": lambda v: v.update(rounds="3"),
    "text as a number": lambda v: v.update(noise_variance=4194304),
    "a float": lambda v: v.update(rounds=3.0),
    "a truth value": lambda v: v.update(inner_steps=True),
    "an unreduced rational": lambda v: v["clients"][0].update(sampling_rate="2/20"),
    "a decimal for a rational": lambda v: v["clients"][0].update(sampling_rate="0.1"),
    "a number for a rational": lambda v: v.update(clip_norm=1),
    "nothing for a rational": lambda v: v["weighting"].update(temperature=None),
    "a missing rate": lambda v: v["clients"][0].pop("sampling_rate"),
    "a variance with a sign": lambda v: v.update(noise_variance="+4194304"),
    "a variance with zeros in front": lambda v: v.update(noise_variance="04194304"),
    "terms that a plan refuses": lambda v: v.update(min_survivors=1),
    "clients that are not a list": lambda v: v.update(clients="alpha"),
    "a truth value for units": lambda v: v["clients"][0].update(units=True),
    "a number for a truth value": lambda v: v.update(rotation=0),
    "another number for a truth value": lambda v: v.update(rotation=1),
    "text for a truth value": lambda v: v.update(rotation="false"),
    "a number for a unit": lambda v: v.update(unit=5),
    "a list for a unit": lambda v: v.update(unit=["prompt"]),
    "a list for a recipe": lambda v: v.update(recipe=["a"] * 64),
    "null": lambda v: v.update(delta=None),
}


@pytest.mark.parametrize("change", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_json_of_another_form_is_refused(change):
    with pytest.raises(PlanMismatchError):
        Plan.from_json(tampered(change))


@pytest.mark.parametrize("value", [None, [], "plan", 7, {}])
def test_json_that_is_no_object_is_refused(value):
    with pytest.raises(PlanMismatchError):
        Plan.from_json(value)


# What it refuses.

REFUSED = {
    "two clients": {"clients": cohort(40, 40), "min_survivors": 2, "colluders": 0},
    "more than 200 clients": {"clients": cohort(*[40] * 201)},
    "clients out of order": {"clients": tuple(reversed(make_plan().clients))},
    "a client twice": {"clients": cohort(40, 40, 40)[:1] * 3},
    "a client named server": {
        "clients": (*make_plan().clients[:3], *cohort(40, names=["server"]))
    },
    "a name with a slash": {
        "clients": (*cohort(40, 40, 40), *cohort(40, names=["d/e"]))
    },
    "an empty name": {"clients": (*cohort(40, names=[""]), *cohort(40, 40, 40))},
    "a name that is too long": {
        "clients": (*cohort(40, 40, 40), *cohort(40, names=["z" * 64]))
    },
    "a client without units": {"clients": cohort(40, 40, 0, 40)},
    "as many colluders as clients": {"colluders": 4},
    "negative colluders": {"colluders": -1},
    "more survivors than clients": {"min_survivors": 5},
    "no threshold": {"clients": cohort(40, 40, 40, 40), "colluders": 3},
    "one survivor": {"min_survivors": 1, "colluders": 0},
    "no honest share": {"min_survivors": 2, "colluders": 2},
    "no honest share besides one's own": {"min_survivors": 1, "colluders": 1},
    "an empty unit": {"unit": ""},
    "no prompts of a unit": {"max_prompts_per_unit": 0},
    "several prompts of one prompt": {"max_prompts_per_unit": 2},
    "several local steps under one noise": {"local_steps": 2},
    "no local step": {"local_steps": 0, "trust": "local"},
    "unknown trust": {"trust": "none"},
    "no survivors": {"min_survivors": 0, "trust": "local"},
    "no rounds": {"rounds": 0},
    "a sampling rate of 0": {"sampling_rate": Fraction(0)},
    "a sampling rate above 1": {"sampling_rate": Fraction(11, 10)},
    "two inner steps": {"inner_steps": 2},
    "no inner step": {"inner_steps": 0, "trust": "local"},
    "a clip norm of 0": {"clip_norm": Fraction(0)},
    "a negative clip norm": {"clip_norm": Fraction(-1)},
    "a norm bound of 0": {"norm_bound": 0},
    "no dimension": {"dimension": 0},
    "squares that overflow": {"dimension": 2**42, "norm_bound": 1024},
    "epsilon 0": {"epsilon": "0"},
    "a negative epsilon": {"epsilon": "-1"},
    "epsilon with an exponent": {"epsilon": "8e0"},
    "epsilon with zeros at the end": {"epsilon": "8.0"},
    "epsilon with zeros in front": {"epsilon": "08"},
    "an infinite epsilon": {"epsilon": "inf"},
    "no epsilon": {"epsilon": ""},
    "epsilon with seven decimals": {"epsilon": "7.1234567"},
    "delta 0": {"delta": "0"},
    "a delta that allows publishing a unit": {"delta": "0.0026"},
    "delta 1": {"delta": "1"},
    "a short recipe": {"recipe": "ab"},
    "a recipe that is no digest": {"recipe": "xy" * 32},
    "a rule that is unknown": {"weighting": replace(UNIFORM, rule="best")},
    "a gain that is unknown": {
        "weighting": replace(UNIFORM, gain="best"),
        **NO_STATISTIC,
    },
    "a temperature of 0": {
        "weighting": replace(UNIFORM, temperature=Fraction(0)),
        **NO_STATISTIC,
    },
    "a decay of 1": {
        "weighting": replace(UNIFORM, baseline_decay=Fraction(1)),
        **NO_STATISTIC,
    },
    "a negative decay": {
        "weighting": replace(UNIFORM, baseline_decay=Fraction(-1, 2)),
        **NO_STATISTIC,
    },
    "a weight ratio below 1": {
        "weighting": replace(UNIFORM, max_weight_ratio=Fraction(1, 2)),
        **NO_STATISTIC,
    },
    "a noise share narrower than 4": {"noise_variance": 30},
    "no noise": {"noise_variance": 0},
    "no noise under any finite epsilon": {**NO_PROMISE, "epsilon": "1000000000"},
    "noise without a promise": {**NO_PROMISE, "noise_variance": 2**22},
    "a noised statistic without a promise": {**NO_PROMISE, "statistic_variance": 99},
    "fgrpo without a promise or a statistic": {**NO_PROMISE, **NO_STATISTIC},
    "uniform without a promise but with a statistic": {
        **NO_PROMISE,
        "weighting": UNIFORM,
    },
    "an infinite delta": {"delta": "infinity"},
    "negative noise": {"noise_variance": -(2**22)},
    "fgrpo without a statistic": NO_STATISTIC,
    "fgrpo with a statistic of too little noise": {"statistic_variance": 15},
    "fgrpo with a statistic of no bound": {"statistic_norm_bound": 0},
    "a statistic that nobody needs": {"weighting": UNIFORM},
    "a bound of a statistic that nobody needs": {
        "weighting": UNIFORM,
        "statistic_variance": 0,
    },
    "a modulus of 33 bits": {"modulus_bits": 33},
    "a modulus of no bits": {"modulus_bits": 0},
    "a sum that can wrap": {"modulus_bits": 17},
    "noise that can wrap": {"noise_variance": 2**50, "modulus_bits": 28},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
def test_a_plan_refuses(changes):
    with pytest.raises(PlanMismatchError) as caught:
        make_plan(**changes)
    assert isinstance(caught.value, RefusalError)
    assert len(str(caught.value)) > 10


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling_rate": Fraction(1)},
        {"delta": "0.0025"},
        {"noise_variance": 32},
        {"epsilon": "0.000001"},
        {"min_survivors": 4},
        {"min_survivors": 2, "colluders": 0},
        {"min_survivors": 2, "colluders": 1},
        NO_PROMISE,
        {**NO_PROMISE, **NO_STATISTIC, "weighting": UNIFORM},
        {"clients": cohort(*[40] * 200), "min_survivors": 200, "colluders": 198},
    ],
)
def test_a_plan_accepts_the_ends_of_its_ranges(changes):
    assert make_plan(**changes).digest


def test_a_plan_promises_privacy_unless_its_epsilon_is_infinite():
    assert make_plan().promises_privacy
    assert make_plan(epsilon="0.000001").promises_privacy
    assert not make_plan(**NO_PROMISE).promises_privacy


def test_delta_is_held_against_the_largest_client():
    sizes = cohort(10, 10, 1000)
    changes = {"clients": sizes, "min_survivors": 2}
    assert make_plan(delta="0.0001", **changes)
    with pytest.raises(PlanMismatchError, match="delta"):
        make_plan(delta="0.0001001", **changes)


# Shares and thresholds.


@given(st.integers(3, 200), st.data())
def test_the_honest_shares_carry_the_whole_noise(count, data):
    survivors = data.draw(st.integers(2, count))
    colluders = data.draw(st.integers(0, survivors - 1))
    variance = data.draw(st.integers(2**16, 2**40))
    plan = make_plan(
        clients=cohort(*[40] * count),
        min_survivors=survivors,
        colluders=colluders,
        noise_variance=variance,
    )
    assert plan.honest_shares == survivors - max(1, colluders)
    assert plan.noise_share_variance * plan.honest_shares >= variance
    # No more than the rounding of each share above what is needed.
    assert (plan.noise_share_variance - 1) * plan.honest_shares < variance


def test_a_client_that_knows_its_own_share_is_never_counted_as_noise():
    assert make_plan(min_survivors=3, colluders=0).honest_shares == 2
    assert make_plan(min_survivors=3, colluders=1).honest_shares == 2
    assert make_plan(min_survivors=3, colluders=2).honest_shares == 1


def test_no_server_gets_enough_answers_to_two_questions():
    for count in range(3, 201):
        for colluders in range(count):
            answers = threshold(count, colluders)
            assert 2 * answers > count + colluders
            assert 2 * (answers - 1) <= count + colluders


@given(st.integers(3, 200), st.data())
def test_a_cohort_is_accepted_only_with_a_threshold_that_can_be_met(count, data):
    colluders = data.draw(st.integers(0, count - 1))
    names = [f"client-{number:03d}" for number in range(count)]
    met = threshold(count, colluders) <= count
    try:
        check_cohort(names, min_survivors=2, colluders=colluders)
    except PlanMismatchError:
        assert not met
    else:
        assert met


def test_a_client_that_is_not_in_the_plan_is_an_error():
    with pytest.raises(PlanMismatchError, match="stranger"):
        make_plan().client("stranger")


# Derived numbers.


def test_the_grid_the_multiplier_and_the_batches_follow_from_the_terms():
    plan = make_plan(clients=cohort(40, 80, 20), min_survivors=2)
    assert plan.scale == 10240
    assert plan.noise_multiplier == pytest.approx(2.0)
    assert plan.vector_length == 7
    assert plan.bytes_up == 28
    packed = replace(plan, modulus_bits=20, norm_bound=64, noise_variance=2**14)
    assert packed.bytes_up == 18
    assert plan.expected_batch("client-001") == 8
    shares = [plan.batch_share(client.name) for client in plan.clients]
    assert shares == [WEIGHT_ONE // 2, WEIGHT_ONE, WEIGHT_ONE // 4]


@pytest.mark.parametrize("rate", [Fraction(1, 100), Fraction(1, 2), Fraction(1)])
def test_the_wrap_level_covers_a_draw_that_is_ten_deviations_too_large(rate):
    plan = make_plan(sampling_rate=rate, clients=cohort(500, 700, 900), min_survivors=2)
    draw = 0
    for client in plan.clients:
        mean = float(rate * client.units)
        spread = math.sqrt(mean * (1 - float(rate)))
        draw += min(client.units, math.floor(mean + 7 * spread))
    noise = math.sqrt(len(plan.clients) * plan.noise_share_variance)
    assert wrap_level(plan) >= draw * plan.norm_bound + 7 * noise
    # And never more than every unit at once with noise of ten deviations.
    assert wrap_level(plan) <= 2100 * plan.norm_bound + 14 * noise


@pytest.mark.parametrize("steps", [(7, 1), (1, 7), (3, 4)])
def test_the_wrap_level_holds_every_release_of_a_round(steps):
    local, inner = steps
    plan = make_plan(
        trust="local",
        sampling_rate=Fraction(1),
        local_steps=local,
        inner_steps=inner,
    )
    drawn = sum(client.units for client in plan.clients) * local
    noise = math.sqrt(len(plan.clients) * local * inner * plan.noise_variance)
    # Weights of several draws: the clients' noises may add up, and not in squares.
    apart = math.sqrt(len(plan.clients)) if local > 1 else 1
    level = wrap_level(plan)
    assert level >= drawn * inner * plan.norm_bound + 7 * apart * noise
    assert level <= drawn * inner * plan.norm_bound + 14 * apart * noise
    fixed = replace(plan, weighting=UNIFORM, **NO_STATISTIC)
    assert wrap_level(fixed) <= drawn * inner * plan.norm_bound + 14 * noise


def test_an_expected_batch_is_of_the_clients_own_rate():
    clients = tuple(
        replace(client, sampling_rate=Fraction(1, part))
        for client, part in zip(cohort(40, 80, 20), (10, 4, 2), strict=True)
    )
    plan = make_plan(clients=clients, min_survivors=2)
    assert [plan.expected_batch(c.name) for c in plan.clients] == [4, 20, 10]


def test_a_small_data_set_is_bounded_by_all_of_its_units():
    plan = make_plan(sampling_rate=Fraction(1))
    assert wrap_level(plan) < (160 + 100) * plan.norm_bound


def test_the_wrap_level_holds_every_weight_at_once():
    plan = make_plan(norm_bound=1, noise_variance=64)
    assert wrap_level(plan) >= len(plan.clients) * WEIGHT_ONE


# Few bits.

MODULI = [(bits, rotation) for bits in (16, 20, 24, 32) for rotation in (False, True)]


def wide_plan(bits, norm_bound, **changes):
    """A plan whose noise is twice the bound of a unit, whatever the grid."""
    terms = {
        "dimension": 4096,
        "modulus_bits": bits,
        "norm_bound": norm_bound,
        "noise_variance": 4 * norm_bound**2,
    }
    return make_plan(**(terms | changes))


def documented_level(plan):
    """The theorem of docs/protocol.md, written down from there."""
    n, d = len(plan.clients), plan.dimension
    steps, inner = plan.local_steps, plan.inner_steps
    log = math.log(2 * n * 2**40)
    units = 0
    for client in plan.clients:
        mean = float(client.sampling_rate) * client.units * steps
        most = mean + log / 3 + math.sqrt((log / 3) ** 2 + 2 * mean * log)
        units += min(client.units * steps, math.ceil(most))
    vectors = units * inner
    share = math.ceil(Fraction(plan.noise_variance, plan.honest_shares))
    variance = n * steps * inner * share
    logarithm = (8 if plan.rotation else 4) * (d + 1) * 2**40
    if plan.weighting.rule == "fgrpo" and steps > 1:
        each = math.sqrt(2 * variance / n * math.log(n * logarithm))
        noise = n * math.ceil(each)
    else:
        noise = math.ceil(math.sqrt(2 * variance * math.log(logarithm)))
    signal = vectors * plan.norm_bound
    if plan.rotation:
        block = 2 ** math.floor(math.log2(d))
        t = min(1.0, math.sqrt(2 * math.log(8 * d * vectors * 2**40) / block))
        turned = vectors * ((plan.norm_bound + math.sqrt(d) / 2) * t + 1 / 2)
        signal = min(signal, math.ceil(turned)) + n
    room = 2 ** (plan.modulus_bits - 1) // (n + 1)
    parts = min(2**16, 2 ** math.floor(math.log2(room)))
    return max(signal + noise, n * parts)


# So fine that the weights are not what decides.
FINE = {"norm_bound": 2**15, "noise_variance": 2**32}


@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("dimension", [1, 3, 4096, 5000, 100_000])
@pytest.mark.parametrize(
    "terms",
    [
        {},
        FINE,
        FINE | {"clients": cohort(400, 500, 30, rate=Fraction(1, 3)), "colluders": 0},
        FINE | {"trust": "local", "local_steps": 3, "inner_steps": 2},
        FINE
        | {"trust": "local", "local_steps": 3, "weighting": UNIFORM}
        | NO_STATISTIC,
        FINE | {"trust": "local", "inner_steps": 4},
        {"norm_bound": 2, **NO_PROMISE},
        {"norm_bound": 2, "modulus_bits": 16, **NO_PROMISE},
    ],
)
def test_the_wrap_level_is_the_documented_one(rotation, dimension, terms):
    plan = make_plan(**terms, rotation=rotation, dimension=dimension)
    assert wrap_level(plan) == documented_level(plan)


def test_half_the_modulus_is_out_of_reach_to_the_last_step():
    """A sum of exactly half of it would come out as minus half of it."""
    crowd = cohort(32, 16, 16, rate=Fraction(1))
    quiet = NO_PROMISE | {"clients": crowd, "min_survivors": 2, "norm_bound": 2}
    with pytest.raises(WrappingSumError):
        make_plan(**quiet, modulus_bits=8)
    less = cohort(32, 16, 15, rate=Fraction(1))
    assert wrap_level(make_plan(**(quiet | {"clients": less}), modulus_bits=8)) == 126


@pytest.mark.parametrize(("bits", "rotation"), MODULI)
def test_a_plan_is_accepted_just_as_long_as_its_sum_cannot_wrap(bits, rotation):
    accepted, refused = [], []
    for power in range(3, 20):
        try:
            accepted.append(wide_plan(bits, 2**power, rotation=rotation))
        except WrappingSumError:
            refused.append(2**power)
    assert accepted
    assert refused or bits == 32
    for plan in accepted:
        assert wrap_level(plan) < 2 ** (bits - 1)
    if refused:
        finest = accepted[-1].norm_bound
        assert refused[0] == 2 * finest
        room = replace(accepted[-1], modulus_bits=32, norm_bound=2 * finest)
        grown = replace(room, noise_variance=4 * room.norm_bound**2)
        assert wrap_level(grown) >= 2 ** (bits - 1)


def test_a_rotation_leaves_room_for_a_finer_grid():
    everyone = cohort(400, 400, 400, 400, rate=Fraction(1, 2), names=NAMES)
    plain = wide_plan(32, 2**10, clients=everyone)
    rotated = replace(plain, rotation=True)
    assert wrap_level(rotated) < wrap_level(plain) / 4
    with pytest.raises(WrappingSumError):
        replace(plain, modulus_bits=20)
    assert replace(rotated, modulus_bits=20).bytes_up == 2.5 * 4096 + 3


def test_a_rotation_of_few_numbers_bounds_no_more_than_none():
    plain = make_plan()
    rotated = replace(plain, rotation=True)
    extra = wrap_level(rotated) - wrap_level(plain)
    noise = math.sqrt(4 * plain.noise_share_variance)
    assert 0 <= extra < noise


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_the_wrap_level_covers_what_rotated_vectors_really_reach(trust):
    """All units alike and all of their norm in one place, the worst for no rotation."""
    everyone = cohort(400, 400, 400, 400, rate=Fraction(1), names=NAMES)
    plan = wide_plan(24, 2**12, rotation=True, trust=trust, clients=everyone)
    units = sum(client.units for client in plan.clients)
    gradient = np.zeros(plan.dimension)
    gradient[17] = 1.0
    for number in range(20):
        rotation = Rotation.of_round(number.to_bytes(32, "big"), plan.dimension)
        each = np.rint(rotation.forward(gradient) * plan.norm_bound)
        assert np.abs(units * each).max() < wrap_level(plan)
    # Far below the level of aligned vectors, or nothing would be gained.
    assert wrap_level(plan) < units * plan.norm_bound / 2


@pytest.mark.parametrize("bits", range(10, 33))
@pytest.mark.parametrize("clients", [3, 15, 200])
def test_the_weights_of_all_clients_fit_any_modulus(bits, clients):
    crowd = cohort(*[1] * clients, rate=Fraction(1, 1000))
    quiet = NO_PROMISE | {"norm_bound": 1, "modulus_bits": bits}
    plan = make_plan(clients=crowd, min_survivors=2, **quiet)
    steps = plan.weight_steps
    assert clients * steps < 2 ** (bits - 1)
    assert steps == WEIGHT_ONE or 2 * (clients + 1) * steps > 2 ** (bits - 1)
    assert steps.bit_count() == 1
    assert wrap_level(plan) >= clients * steps


def test_a_modulus_without_room_for_the_weights_is_refused():
    quiet = NO_PROMISE | {"norm_bound": 1, "modulus_bits": 8}
    crowd = cohort(*[1] * 130, rate=Fraction(1, 1000))
    with pytest.raises(WrappingSumError):
        make_plan(clients=crowd, min_survivors=2, **quiet)
