"""Units of several prompts: one draw, one stream, one gradient, clipped once."""

import json
from fractions import Fraction

import numpy as np
import pytest

from fgrpo_secure import draws as draws_module
from fgrpo_secure import learner as learner_module
from fgrpo_secure.cli import main
from fgrpo_secure.config import load_config
from fgrpo_secure.draws import Draws
from fgrpo_secure.errors import ConfigurationError, DataError
from fgrpo_secure.grpo.gradient import UnitGradients
from fgrpo_secure.grpo.units import subject_id
from fgrpo_secure.learner import Learner
from fgrpo_secure.registration import register
from fgrpo_secure.site import check_plan
from fgrpo_secure.task import load_units, public_size
from privacy import contribution as door
from privacy.codec import encode
from privacy.contribution import Contribution
from privacy.errors import PlanMismatchError
from privacy.ledger import Joined
from privacy.plan import WEIGHT_ONE
from tests.app.federation import Federation, edit_rows
from tests.end_to_end.program import write_config
from tests.plans import Counter

NAME = "sums"
TRIO = ("count", "shift", NAME)
COLUMN = "patient_id"
BOUND = 3
# Rows of each patient, who stand mixed in the file; the last has more than may count.
PATIENTS = ("ann", "bob", "ann", "cas", "ann", "bob", "dee", *("eve",) * 5)
UNITS = {
    "privacy": {
        "unit": COLUMN,
        "max_prompts_per_unit": BOUND,
        "sampling_rate": 1,
        "epsilon": 50,
        "rounds": 3,
    },
    # Every client then has the weight 1, and a unit may use its whole bound.
    "aggregation": {"rule": "uniform"},
    # Without the reward's part some gradients would be zero, whatever becomes of them.
    "grpo": {"kl_coefficient": 0.1},
}


def patients(data):
    """Say whose each row is."""
    return [{**row, COLUMN: name} for row, name in zip(data, PATIENTS, strict=True)]


def unit(name):
    return subject_id(COLUMN, name)


class Told:
    """What one learner did in one round, before any noise.

    Attributes:
        vectors: by unit, the gradient that was handed in.
        texts: by unit, its completions, group by group.
        drawn: what was asked for and what was drawn.
        generated: the prompts of each call of the generator.
        total: the sum of the clipped integer vectors.
        rewards: what the statistic was made from.
    """

    def __init__(self):
        self.vectors, self.texts = {}, {}
        self.drawn, self.generated, self.rewards = None, [], []
        self.total = None


def learn(folder, change=lambda data: data, *, patch=None, **settings):
    """One round of one learner whose entropy is a counter that starts anew."""
    given = {section: dict(values) for section, values in UNITS.items()}
    for section, values in settings.items():
        given[section] = given.get(section, {}) | values

    def edit(data):
        return change(patients(data))

    edits = dict.fromkeys(TRIO, patients) | {NAME: edit}
    one = Federation(folder, names=TRIO, units=len(PATIENTS), edits=edits, **given)
    told = Told()
    draw, add, seal = Contribution.draw, Contribution.add, Contribution.seal
    generate, score = draws_module.generate, Draws._score
    measure = door.noised_mean

    def spied_draw(contribution, units):
        drawn = draw(contribution, units)
        told.drawn = (list(units), drawn)
        return drawn

    def spied_add(contribution, name, vector):
        told.vectors[name] = None if vector is None else vector.copy()
        add(contribution, name, vector)

    def spied_seal(contribution):
        told.total = contribution._total.copy()
        return seal(contribution)

    def spied_generate(policy, prompts, *rest):
        made = generate(policy, prompts, *rest)
        told.generated.append([tuple(prompt) for prompt in prompts])
        return made

    def spied_score(learner, name, groups):
        told.texts[name] = [group.texts for group in groups]
        return score(learner, name, groups)

    def spied_measure(rewards, **terms):
        told.rewards = list(rewards)
        return measure(told.rewards, **terms)

    try:
        with pytest.MonkeyPatch.context() as spying:
            spying.setattr(learner_module, "system_entropy", Counter("units"))
            spying.setattr(Contribution, "draw", spied_draw)
            spying.setattr(Contribution, "add", spied_add)
            spying.setattr(Contribution, "seal", spied_seal)
            spying.setattr(draws_module, "generate", spied_generate)
            spying.setattr(Draws, "_score", spied_score)
            spying.setattr(door, "noised_mean", spied_measure)
            if patch is not None:
                patch(spying, one)
            learner = Learner(
                plan=one.plan,
                name=NAME,
                task=one.tasks[NAME],
                policy=one.site_policy,
                folder=one.client_folder(NAME),
            )
            ledger = one.ledgers[NAME]
            ledger.append(Joined(1, 1, bytes(32), bytes(32)))
            learner.contribute(ledger, one.server.adapter)
    finally:
        one.close()
    told.plan, told.task, told.policy = one.plan, one.tasks[NAME], one.site_policy
    return told


def same(one, other):
    if one is None or other is None:
        return one is other
    return one.tobytes() == other.tobytes()


# One unit of several prompts more or less changes no other unit.

STRANGER = [
    {"prompt": f"add {a}+89=", "answer": "1", "note": "x", COLUMN: "zoe"}
    for a in range(11, 16)
]
NEIGHBOURS = {
    "added at the end": ("zoe", lambda data: [*data, *STRANGER]),
    "added in front": ("zoe", lambda data: [*STRANGER, *data]),
    "added in between": (
        "zoe",
        lambda data: [
            row for i, row in enumerate(data) for row in (row, STRANGER[i % 5])
        ],
    ),
    "removed": ("ann", lambda data: [row for row in data if row[COLUMN] != "ann"]),
    "the largest removed": (
        "eve",
        lambda data: [row for row in data if row[COLUMN] != "eve"],
    ),
    "all others removed": (
        "ann",
        lambda data: [row for row in data if row[COLUMN] in {"dee", "eve"}],
    ),
    "one row of it removed": ("ann", lambda data: data[1:]),
    "given more rows": (
        "bob",
        lambda data: [*data, *({**row, COLUMN: "bob"} for row in STRANGER)],
    ),
    "given a prompt that others have": (
        "bob",
        lambda data: [*data, {**data[0], COLUMN: "bob"}, {**data[-1], COLUMN: "bob"}],
    ),
    "made longer": (
        "ann",
        lambda data: [{**data[0], "prompt": "add 1111+11111="}, *data[1:]],
    ),
    "answered otherwise": (
        "ann",
        lambda data: [{**data[0], "answer": "other"}, *data[1:]],
    ),
    "put in another order": ("none", lambda data: data[::-1]),
    "said twice": ("none", lambda data: [*data, data[2], data[9]]),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    told = learn(tmp_path_factory.mktemp("undisturbed"))
    # The tests mean something: every vector is one that a change could be seen in.
    assert all(vector.any() for vector in told.vectors.values())
    return told


@pytest.mark.parametrize(("who", "change"), NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
def test_a_change_of_one_unit_leaves_every_other_unit_as_it_is(
    tmp_path, undisturbed, who, change
):
    told = learn(tmp_path / "one", change)
    shared = (undisturbed.vectors.keys() & told.vectors.keys()) - {unit(who)}
    assert {unit("dee"), unit("eve")} - {unit(who)} <= shared
    for name in shared:
        assert same(told.vectors[name], undisturbed.vectors[name])
        assert told.texts[name] == undisturbed.texts[name]


def test_a_change_of_a_unit_is_seen_in_the_unit_itself(tmp_path, undisturbed):
    """Without this the test before it could pass for constants."""
    _, change = NEIGHBOURS["one row of it removed"]
    told = learn(tmp_path / "one", change)
    assert not same(told.vectors[unit("ann")], undisturbed.vectors[unit("ann")])


# A unit is drawn as a whole, and has one part in everything.


def test_units_are_drawn_and_not_prompts(tmp_path):
    told = learn(tmp_path / "one", privacy={"sampling_rate": 0.5, "epsilon": 50})
    asked, drawn = told.drawn
    assert sorted(asked) == sorted(unit(name) for name in set(PATIENTS))
    # Else the test says nothing of a unit that was left out.
    assert 0 < len(drawn) < len(asked)
    wanted = [tuple(p) for name in drawn for p in told.task.prompts[name]]
    assert told.generated == [wanted]
    assert told.vectors.keys() == set(drawn)


def test_a_unit_counts_with_as_many_prompts_as_the_plan_says(undisturbed):
    sizes = {name: len(texts) for name, texts in undisturbed.texts.items()}
    assert sizes == {
        unit("ann"): 3,
        unit("bob"): 2,
        unit("cas"): 1,
        unit("dee"): 1,
        unit("eve"): BOUND,
    }
    assert undisturbed.plan.max_prompts_per_unit == BOUND
    assert undisturbed.plan.unit == COLUMN
    sizes = {client.name: client.units for client in undisturbed.plan.clients}
    assert sizes[NAME] == len(set(PATIENTS))
    assert undisturbed.plan.expected_batch(NAME) == Fraction(len(set(PATIENTS)))


def test_the_statistic_takes_one_bounded_number_of_each_unit(tmp_path):
    def patch(spying, one):
        rewards = one.tasks[NAME].rewards
        low, high = rewards.range

        def scored(rewards, example, group):
            top = (
                example.prompt == one.tasks[NAME].units[unit("ann")].examples[0].prompt
            )
            return np.full(len(group.texts), high if top else low)

        spying.setattr(draws_module, "score", scored)

    told = learn(tmp_path / "one", patch=patch, aggregation={"rule": "fgrpo"})
    assert len(told.rewards) == len(told.drawn[1]) == len(set(PATIENTS))
    found = dict(zip(told.drawn[1], told.rewards, strict=True))
    # The best reward at one prompt of three and the worst at two, not their sum.
    assert found.pop(unit("ann")) == pytest.approx(-1 / 3)
    assert set(found.values()) == {-1.0}


# A unit is clipped once, however many prompts it has.


def clipped(told, gradient):
    return encode(
        gradient,
        scale=told.plan.scale,
        norm_bound=told.plan.norm_bound,
        weight=WEIGHT_ONE,
    )


TIGHT = {"privacy": {"clip_norm": 1e-4, "max_prompts_per_unit": 5}}


def test_a_unit_of_five_prompts_moves_the_sum_by_no_more_than_the_norm_bound(tmp_path):
    whole = learn(tmp_path / "whole", **TIGHT)
    _, without = NEIGHBOURS["the largest removed"]
    less = learn(tmp_path / "less", without, **TIGHT)
    assert len(whole.texts[unit("eve")]) == 5
    moved = float(np.linalg.norm((whole.total - less.total).astype(np.float64)))
    bound = whole.plan.norm_bound
    # The clip acts, so that the bound is what holds it.
    assert 0.99 * bound < moved <= bound
    whole_sum = sum(clipped(whole, v).astype(np.int64) for v in whole.vectors.values())
    assert np.array_equal(whole.total, whole_sum)


def test_clipping_each_prompt_by_itself_would_be_seen(tmp_path):
    """The planted fault of the test before: five prompts, each clipped on its own."""
    kept = {}

    def patch(spying, one):
        compute = UnitGradients.compute

        def spied(computing, units):
            for groups in units:
                if len(groups) == 5:
                    alone = [[group] for group in groups]
                    kept["eve"] = [v.copy() for v in compute(computing, alone)]
            return compute(computing, units)

        spying.setattr(UnitGradients, "compute", spied)

    told = learn(tmp_path / "one", patch=patch, **TIGHT)
    fault = sum(clipped(told, vector).astype(np.int64) for vector in kept["eve"])
    assert np.linalg.norm(fault.astype(np.float64)) > 1.2 * told.plan.norm_bound
    # The unit's gradient is the sum over its prompts, taken before the clip.
    whole = np.sum(kept["eve"], axis=0, dtype=np.float64)
    assert told.vectors[unit("eve")] == pytest.approx(whole, rel=1e-4, abs=1e-7)


# A unit of which one prompt fails counts as zeros, and hurts no other.


def test_a_prompt_that_cannot_be_generated_makes_its_whole_unit_zeros(
    tmp_path, undisturbed
):
    def patch(spying, one):
        generate = draws_module.generate
        marked = list(one.tasks[NAME].prompts[unit("ann")][1])

        def failing(policy, prompts, *rest):
            if any(list(prompt) == marked for prompt in prompts):
                raise RuntimeError
            return generate(policy, prompts, *rest)

        spying.setattr(draws_module, "generate", failing)

    told = learn(tmp_path / "one", patch=patch)
    assert told.vectors.pop(unit("ann")) is None
    for name, vector in told.vectors.items():
        assert same(vector, undisturbed.vectors[name])


def test_a_prompt_that_cannot_be_differentiated_makes_its_whole_unit_zeros(
    tmp_path, undisturbed
):
    def patch(spying, one):
        compute = UnitGradients._gradients
        marked = one.tasks[NAME].prompts[unit("ann")][2]

        def failing(computing, items, tokens):
            for item in items:
                ids = item.group.prompt_ids[item.group.prompt_mask].tolist()
                if tuple(ids) == tuple(marked):
                    raise RuntimeError
            return compute(computing, items, tokens)

        spying.setattr(UnitGradients, "_gradients", failing)

    told = learn(tmp_path / "one", patch=patch)
    assert told.vectors.pop(unit("ann")) is None
    for name, vector in told.vectors.items():
        assert same(vector, undisturbed.vectors[name])


# The configuration and the plan.


@pytest.fixture
def given(tmp_path):
    path = write_config(tmp_path / "given", names=TRIO, **UNITS)
    for name in TRIO:
        edit_rows(
            path.parent / f"data/{name}.jsonl",
            lambda rows: patients(rows[: len(PATIENTS)]),
        )
    return path


def test_a_column_as_the_unit_needs_a_bound_on_its_prompts(given):
    text = given.read_text().replace(f"max_prompts_per_unit = {BOUND}\n", "")
    given.write_text(text)
    with pytest.raises(ConfigurationError, match="max_prompts_per_unit is missing"):
        load_config(str(given))


@pytest.mark.parametrize("value", ["0", "-1", "2.5", '"3"', "true"])
def test_a_bound_that_is_no_count_is_refused(given, value):
    with pytest.raises(ConfigurationError, match="max_prompts_per_unit"):
        load_config(str(given), [f"privacy.max_prompts_per_unit={value}"])


def test_a_prompt_has_no_bound_but_one(given):
    with pytest.raises(ConfigurationError, match="max_prompts_per_unit"):
        load_config(str(given), ["privacy.unit=prompt"])
    one = ["privacy.unit=prompt", "privacy.max_prompts_per_unit=1"]
    config, _ = load_config(str(given), one)
    assert config.privacy.prompts_per_unit == 1


def test_the_public_size_is_the_number_of_units(given):
    config, _ = load_config(str(given))
    client = config.client_named(NAME)
    assert public_size(config, client) == len(set(PATIENTS))
    assert load_units(config, client).keys() == {unit(name) for name in PATIENTS}
    config, _ = load_config(str(given), [f"client.{NAME}.units=1000"])
    assert public_size(config, config.client_named(NAME)) == 1000


def test_the_unit_and_its_bound_are_in_the_digest_and_held_by_the_site(given):
    sizes = dict.fromkeys(TRIO, 40)
    config, _ = load_config(str(given))
    plan = register(config, sizes, 1000)
    assert (plan.unit, plan.max_prompts_per_unit) == (COLUMN, BOUND)
    check_plan(plan, config)
    others = [
        ["privacy.max_prompts_per_unit=4"],
        ["privacy.unit=ward"],
        ["privacy.unit=prompt", "privacy.max_prompts_per_unit=1"],
    ]
    for overrides in others:
        changed, _ = load_config(str(given), overrides)
        other = register(changed, sizes, 1000)
        assert other.digest != plan.digest
        with pytest.raises(PlanMismatchError, match="other terms"):
            check_plan(other, config)


def test_a_column_that_no_row_has_is_an_error_that_names_the_file(given):
    config, _ = load_config(str(given), ["privacy.unit=ward"])
    with pytest.raises(DataError, match="no column 'ward'") as caught:
        load_units(config, config.client_named(NAME))
    assert caught.value.exit_code == 3
    assert "sums.jsonl" in caught.value.what
    assert "`fgrpo check` lists the columns" in caught.value.fix


def test_a_plan_says_in_words_what_the_unit_is(given, capsys):
    assert main(["plan", str(given)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "patient_id: all rows of one value, at most 3 prompts of each" in words
    assert "whether any one patient_id was in a client's data" in words
    assert "several values of patient_id" in words
    assert "several prompts" not in words


def test_a_plan_says_the_unit_and_its_bound_to_programs_too(given, capsys):
    assert main(["plan", str(given), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["unit"], found["max_prompts_per_unit"]) == (COLUMN, BOUND)
    assert found["expected_batch"] == dict.fromkeys(TRIO, len(set(PATIENTS)))
