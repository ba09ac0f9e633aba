"""A policy as a function: which proposals it refuses, and what it may say at all."""

import copy
from dataclasses import replace
from decimal import Decimal

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from fgrpo_secure.errors import ConfigurationError, said_by_kernel
from fgrpo_secure.site_policy import (
    Facts,
    RewardFile,
    SitePolicyError,
    check,
    check_cohort,
    check_survivors,
    parse_policy,
    task_of,
)
from privacy.ledger import Reason

MODEL, FILE, OTHER = "aa" * 32, "bb" * 32, "cc" * 32
TABLES = {
    "plan": {
        "units": ["prompt", "patient_id"],
        "trust": ["distributed", "local"],
        "least_clients": 4,
        "least_survivors": 3,
        "least_colluders": 1,
        "base_models": [MODEL, OTHER],
    },
    "data_set": [
        {
            "name": "north",
            "epsilon": Decimal(4),
            "delta": Decimal("0.00001"),
            "epsilon_for_life": Decimal(8),
            "delta_for_life": Decimal("0.0001"),
        },
        {
            "name": "south",
            "epsilon": Decimal(1),
            "delta": Decimal("0.00001"),
            "epsilon_for_life": Decimal(1),
            "delta_for_life": Decimal("0.00001"),
        },
    ],
    "reward": [
        {"name": "rewards.py:exact", "sha256": FILE},
        {"name": "rewards.py:exact", "sha256": OTHER},
        {"name": "judge:fair", "sha256": FILE},
    ],
    "task": [
        {"data_set": "north", "rewards": ["rewards.py:exact"], "approval": "ask"},
        {
            "data_set": "north",
            "rewards": ["judge:fair", "rewards.py:exact"],
            "approval": "auto",
        },
    ],
}
ALLOWED = Facts(
    data_set="north",
    unit="patient_id",
    trust="distributed",
    epsilon=Decimal(4),
    delta=Decimal("0.00001"),
    cap_epsilon=Decimal(8),
    cap_delta=Decimal("0.0001"),
    kept=True,
    clients=4,
    min_survivors=3,
    colluders=1,
    base_model=MODEL,
    rewards=(RewardFile("rewards.py:exact", FILE),),
    approved=True,
)
BOTH = (*ALLOWED.rewards, RewardFile("judge:fair", FILE))


def policy_of(tables):
    return parse_policy(tomli_w.dumps(tables), "policy.toml")


def reasons(facts, tables=TABLES):
    return [refusal.reason for refusal in check(policy_of(tables), facts)]


def test_what_the_policy_allows_to_the_last_digit_is_not_refused():
    assert reasons(ALLOWED) == []
    assert reasons(replace(ALLOWED, rewards=BOTH, approved=False)) == []


# One thing too much, and the one reason that it is refused for.
TOO_MUCH = {
    "unit": ({"unit": "prompts"}, Reason.POLICY_UNIT),
    "unit in other letters": ({"unit": "Patient_id"}, Reason.POLICY_UNIT),
    "unit that looks alike": ({"unit": "p\u0430tient_id"}, Reason.POLICY_UNIT),
    "trust": ({"trust": "everybody"}, Reason.POLICY_TRUST),
    "clients": ({"clients": 3}, Reason.POLICY_COHORT),
    "survivors": ({"min_survivors": 2}, Reason.POLICY_SURVIVORS),
    "colluders": ({"colluders": 0}, Reason.POLICY_COLLUDERS),
    "epsilon": ({"epsilon": Decimal("4.000001")}, Reason.POLICY_EPSILON),
    "no promise": ({"epsilon": Decimal("Infinity")}, Reason.POLICY_EPSILON),
    "delta": ({"delta": Decimal("0.000011")}, Reason.POLICY_DELTA),
    "life": ({"cap_epsilon": Decimal("8.1")}, Reason.POLICY_EPSILON),
    "life without a cap": ({"cap_epsilon": Decimal("Infinity")}, Reason.POLICY_EPSILON),
    "life's delta": ({"cap_delta": Decimal("0.00011")}, Reason.POLICY_DELTA),
    "a ledger for one run": ({"kept": False}, Reason.POLICY_EPSILON),
    "model": ({"base_model": FILE}, Reason.POLICY_MODEL),
    "model unknown": ({"base_model": None}, Reason.POLICY_MODEL),
    "code": ({"rewards": (RewardFile("rewards.py:exact", MODEL),)}, Reason.POLICY_CODE),
    "not approved": ({"approved": False}, Reason.NOT_APPROVED),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_one_thing_too_much_is_refused_for_that_reason_alone(name):
    change, reason = TOO_MUCH[name]
    assert reasons(replace(ALLOWED, **change)) == [reason]


@pytest.mark.parametrize("field", ["epsilon", "delta", "cap_epsilon", "cap_delta"])
def test_a_cost_that_is_no_number_is_refused(field):
    assert len(reasons(replace(ALLOWED, **{field: Decimal("NaN")}))) == 1


def test_a_data_set_that_is_not_listed_may_spend_nothing_and_has_no_task():
    for name in ("west", "North", "north ", ""):
        found = reasons(replace(ALLOWED, data_set=name))
        assert found == [Reason.POLICY_EPSILON, Reason.POLICY_TASK]


def test_a_reward_under_another_name_is_refused_though_the_file_is_listed():
    other = (RewardFile("rewards.py:inexact", FILE),)
    found = reasons(replace(ALLOWED, rewards=other))
    assert found == [Reason.POLICY_REWARD, Reason.POLICY_TASK]


def test_a_task_is_exactly_its_rewards_and_no_part_of_them():
    judge = replace(ALLOWED, rewards=BOTH[1:])
    assert reasons(judge) == [Reason.POLICY_TASK]
    # Two files of one name are two rewards.
    twice = (*ALLOWED.rewards, RewardFile("rewards.py:exact", OTHER))
    assert reasons(replace(ALLOWED, rewards=twice)) == [Reason.POLICY_TASK]
    assert task_of(policy_of(TABLES), judge) is None
    assert task_of(policy_of(TABLES), replace(ALLOWED, rewards=BOTH)).approval == "auto"


def test_with_local_trust_the_promise_holds_against_all_others():
    local = replace(ALLOWED, trust="local", colluders=0)
    assert reasons(local) == []
    greedy = copy.deepcopy(TABLES)
    greedy["plan"]["least_colluders"] = 4
    assert reasons(local, greedy) == [Reason.POLICY_COLLUDERS]


def test_a_round_is_held_to_the_same_floors():
    policy = policy_of(TABLES)
    assert check_cohort(policy, 4, "the round has") == []
    (refusal,) = check_cohort(policy, 3, "the round has")
    assert refusal.reason is Reason.POLICY_COHORT
    assert check_survivors(policy, 3, "the sum is of") == []
    (refusal,) = check_survivors(policy, 2, "the sum is of")
    assert refusal.reason is Reason.POLICY_SURVIVORS


def test_all_that_is_wrong_is_said_at_once_in_two_parts():
    found = check(
        policy_of(TABLES), replace(ALLOWED, unit="prompts", epsilon=Decimal(9))
    )
    error = SitePolicyError("north", found)
    assert error.reasons == (Reason.POLICY_UNIT, Reason.POLICY_EPSILON)
    what, fix = said_by_kernel(error, "nothing")
    assert "'prompts'" in what
    assert "epsilon 9" in what
    assert fix.startswith("Take a plan with an allowed unit")
    assert "the policy's" in fix


# Nothing that is made tighter lets through what was refused before.

CAPS = ("epsilon", "delta", "epsilon_for_life", "delta_for_life")
FLOORS = ("least_clients", "least_survivors", "least_colluders")


@st.composite
def proposals(draw):
    """Facts near the limits, allowed and not."""
    near = st.sampled_from([Decimal(1), Decimal(4), Decimal(8), Decimal("Infinity")])
    small = st.sampled_from(
        [Decimal("0.000001"), Decimal("0.00001"), Decimal("0.0002")]
    )
    return Facts(
        data_set=draw(st.sampled_from(["north", "south", "west"])),
        unit=draw(st.sampled_from(["prompt", "patient_id", "row"])),
        trust=draw(st.sampled_from(["distributed", "local"])),
        epsilon=draw(near),
        delta=draw(small),
        cap_epsilon=draw(near),
        cap_delta=draw(small),
        kept=draw(st.booleans()),
        clients=draw(st.integers(3, 6)),
        min_survivors=draw(st.integers(2, 5)),
        colluders=draw(st.integers(0, 3)),
        base_model=draw(st.sampled_from([MODEL, FILE, None])),
        rewards=draw(st.sampled_from([BOTH, BOTH[:1], BOTH[1:]])),
        approved=draw(st.booleans()),
    )


@st.composite
def tightened(draw, tables):
    """The same policy with one key tighter, or one entry less."""
    made = copy.deepcopy(tables)
    lists = [made["plan"][name] for name in ("units", "trust", "base_models")]
    lists += [made["data_set"], made["reward"], made["task"]]
    lists = [entries for entries in lists if entries]
    match draw(st.sampled_from(["cap", "floor", "entry", "ask"])):
        case "cap" if made["data_set"]:
            rules = draw(st.sampled_from(made["data_set"]))
            key = draw(st.sampled_from(CAPS))
            rules[key] *= draw(st.sampled_from([Decimal("0.5"), Decimal("0.999")]))
        case "floor":
            made["plan"][draw(st.sampled_from(FLOORS))] += draw(st.integers(1, 2))
        case "entry" if lists:
            entries = draw(st.sampled_from(lists))
            del entries[draw(st.integers(0, len(entries) - 1))]
        case _ if made["task"]:
            draw(st.sampled_from(made["task"]))["approval"] = "ask"
    return made


@given(st.data())
def test_tightening_a_policy_never_lets_through_what_it_refused(data):
    tables, facts = TABLES, data.draw(proposals())
    refused = bool(reasons(facts, tables))
    for _ in range(3):
        tables = data.draw(tightened(tables))
        found = bool(reasons(facts, tables))
        assert found >= refused
        refused = found


# What a policy may say.

BAD = {
    "epsilon as text": ("data_set", 0, "epsilon", "4"),
    "epsilon as truth": ("data_set", 0, "epsilon", True),
    "epsilon of nothing": ("data_set", 0, "epsilon", 0),
    "epsilon below nothing": ("data_set", 0, "epsilon", -1),
    "epsilon infinite": ("data_set", 0, "epsilon", float("inf")),
    "epsilon no number": ("data_set", 0, "epsilon", float("nan")),
    "epsilon of many digits": ("data_set", 0, "epsilon", Decimal("1e-5000")),
    "delta infinite": ("data_set", 0, "delta", float("inf")),
    "delta of one": ("data_set", 0, "delta", 1),
    "life's delta below nothing": ("data_set", 0, "delta_for_life", Decimal("-0.1")),
    "life no number": ("data_set", 0, "epsilon_for_life", float("nan")),
    "clients as truth": ("plan", None, "least_clients", True),
    "clients too few": ("plan", None, "least_clients", 2),
    "clients as text": ("plan", None, "least_clients", "4"),
    "clients by half": ("plan", None, "least_clients", 3.5),
    "survivors of one": ("plan", None, "least_survivors", 1),
    "colluders below nothing": ("plan", None, "least_colluders", -1),
    "colluders as truth": ("plan", None, "least_colluders", False),
    "trust unknown": ("plan", None, "trust", ["nobody"]),
    "unit as number": ("plan", None, "units", [7]),
    "model by name": ("plan", None, "base_models", ["smollm2"]),
    "model in capitals": ("plan", None, "base_models", [MODEL.upper()]),
    "model and a newline": ("plan", None, "base_models", [MODEL + "\n"]),
    "model and more": ("plan", None, "base_models", ["x" + MODEL]),
    "hash too short": ("reward", 0, "sha256", FILE[:-2]),
    "rewards none": ("task", 0, "rewards", []),
    "approval unknown": ("task", 0, "approval", "later"),
    "approval as truth": ("task", 0, "approval", True),
    "unknown in plan": ("plan", None, "most_clients", 4),
    "unknown in task": ("task", 0, "aproval", "ask"),
    "unknown at the top": (None, None, "default", "allow"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_policy_that_says_what_it_cannot_is_an_error(name):
    section, place, key, value = BAD[name]
    tables = copy.deepcopy(TABLES)
    table = tables if section is None else tables[section]
    (table if place is None else table[place])[key] = value
    with pytest.raises(ConfigurationError) as caught:
        policy_of(tables)
    assert key in caught.value.what
    assert caught.value.fix


def places():
    yield from ((section, None, None) for section in TABLES)
    for section, table in TABLES.items():
        entry = table if section == "plan" else table[0]
        place = None if section == "plan" else 0
        yield from ((section, place, key) for key in entry)


@pytest.mark.parametrize(("section", "place", "key"), places())
def test_a_key_that_is_left_out_is_an_error_and_no_default(section, place, key):
    tables = copy.deepcopy(TABLES)
    if key is None:
        del tables[section]
    else:
        del (tables[section] if place is None else tables[section][place])[key]
    with pytest.raises(ConfigurationError, match=f"{key or section}.* is missing"):
        policy_of(tables)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("data_set", {"epsilon": Decimal(100)}),
        ("reward", {}),
        ("task", {"approval": "auto"}),
    ],
)
def test_two_entries_for_one_thing_are_an_error(section, change):
    tables = copy.deepcopy(TABLES)
    tables[section].append(tables[section][0] | change)
    with pytest.raises(ConfigurationError, match="have the same"):
        policy_of(tables)


def test_the_order_of_a_tasks_rewards_makes_no_second_task():
    tables = copy.deepcopy(TABLES)
    turned = tables["task"][1]["rewards"][::-1]
    tables["task"].append(tables["task"][1] | {"rewards": turned, "approval": "ask"})
    with pytest.raises(ConfigurationError, match="have the same"):
        policy_of(tables)


@pytest.mark.parametrize(
    "text",
    [
        *("", "plan", "[plan", "[plan]\n[plan]", "[[plan]]"),
        # Each would stop the reader itself.
        "epsilon = 1e1000000000000000000",
        f"units = {'[' * 100_000}",
        f"epsilon = 1{'0' * 10_000}",
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_policy_is_an_error(text):
    with pytest.raises(ConfigurationError):
        parse_policy(text, "policy.toml")


def test_empty_lists_allow_nothing():
    tables = copy.deepcopy(TABLES)
    tables["plan"] |= {"units": [], "trust": [], "base_models": []}
    tables |= {"data_set": [], "reward": [], "task": []}
    assert set(reasons(ALLOWED, tables)) == {
        Reason.POLICY_UNIT,
        Reason.POLICY_TRUST,
        Reason.POLICY_EPSILON,
        Reason.POLICY_MODEL,
        Reason.POLICY_REWARD,
        Reason.POLICY_TASK,
    }
