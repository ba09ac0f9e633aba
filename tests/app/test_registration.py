"""From a configuration to a plan: deterministic, and blind to what does not matter."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest

from fgrpo_secure.config import MOST, load_config
from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.registration import (
    NORM_BOUND,
    base_fingerprint,
    recipe_digest,
    register,
    register_cohorts,
)
from privacy.cohorts import Cohorts
from privacy.contribution import registered_spend
from privacy.errors import PlanMismatchError, RefusalError, WrappingSumError
from privacy.ledger import claimed_epsilon

SIZES = {"count": 3000, "shift": 3000, "sort": 2000, "sums": 3000}
DIMENSION = 2304


def registered(*overrides, sizes=SIZES, dimension=DIMENSION):
    config, _ = load_config("tiny", overrides)
    return register(config, sizes, dimension)


@pytest.fixture(scope="module")
def plan():
    return registered()


def test_the_plan_carries_the_terms_of_the_configuration(plan):
    config, _ = load_config("tiny")
    assert (plan.epsilon, plan.delta) == ("8", "0.00001")
    assert plan.rounds == config.privacy.rounds
    assert plan.sampling_rate == Fraction(config.privacy.sampling_rate)
    assert plan.clip_norm == Fraction(config.privacy.clip_norm)
    assert (plan.norm_bound, plan.modulus_bits) == (NORM_BOUND, 32)
    assert not plan.rotation
    assert {client.name: client.units for client in plan.clients} == SIZES
    assert plan.dimension == DIMENSION


def test_the_noise_meets_the_target_and_wastes_little_of_it(plan):
    whole = registered_spend(plan, plan.most_exposed)
    assert Decimal("7.99") < claimed_epsilon(whole) <= 8


LOCAL = ("privacy.trust=local", "privacy.rounds=4", "privacy.local_steps=3")


@pytest.mark.parametrize(
    "overrides", [LOCAL, (*LOCAL, "privacy.inner_steps=2")], ids=["local", "inner"]
)
def test_the_noise_of_local_trust_meets_the_target_over_all_steps(plan, overrides):
    found = registered(*overrides)
    whole = registered_spend(found, found.most_exposed)
    assert whole.charges == 12
    assert Decimal("7.99") < claimed_epsilon(whole) <= 8
    # Every client adds all of it, where a share of two would be half.
    assert found.noise_share_variance == found.noise_variance
    assert found.noise_variance >= plan.noise_variance


def test_as_many_draws_in_fewer_rounds_cost_the_same(plan):
    found = registered(*LOCAL)
    assert found.noise_variance == plan.noise_variance


def test_the_noise_is_made_for_the_client_with_the_largest_rate(plan):
    slow = registered("client.sums.sampling_rate=0.01")
    assert slow.noise_variance == plan.noise_variance
    claims = {name: claimed_epsilon(registered_spend(slow, name)) for name in SIZES}
    assert claims["sums"] < 4
    assert 7 < claims["count"] <= 8
    assert slow.most_exposed == "count"
    fast = registered("client.sums.sampling_rate=0.2")
    assert fast.most_exposed == "sums"
    assert Decimal("7.99") < claimed_epsilon(registered_spend(fast, "sums")) <= 8
    assert fast.noise_variance > plan.noise_variance


def test_equal_configurations_give_equal_digests(plan):
    assert registered().digest == plan.digest


@pytest.mark.parametrize(
    "override",
    [
        "machine.seed=5",
        "machine.workers=4",
        "machine.microbatch=1",
        "machine.device=cuda",
        "client.sums.eval_public=false",
        "client.sums.epsilon_cap=100",
    ],
)
def test_what_cannot_change_the_guarantee_enters_no_digest(plan, override):
    assert registered(override).digest == plan.digest


@pytest.mark.parametrize(
    "override",
    [
        "grpo.group_size=8",
        "grpo.max_tokens=5",
        "grpo.temperature=0.9",
        "grpo.loss=grpo",
        "grpo.kl_coefficient=0.1",
        "model.lora_rank=2",
        "model.lora_alpha=4.0",
        "model.target_modules=q_proj",
        "model.layers=[0]",
        "server.learning_rate=0.01",
        "server.optimizer=sgd",
        "client.sums.reward_range=[0, 11]",
        "client.sums.reward=fgrpo_secure.assets.rewards:sort",
        "aggregation.temperature=2",
        "federation.min_survivors=4",
    ],
)
def test_what_changes_the_learning_or_the_guarantee_changes_the_digest(plan, override):
    config, _ = load_config("tiny", [override])
    if override.startswith(("grpo", "model", "server", "client")):
        assert recipe_digest(config) != plan.recipe
    else:
        assert registered(override).digest != plan.digest


def test_the_base_models_weights_enter_the_recipe(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    one = base_fingerprint(str(tmp_path))
    (tmp_path / "README.md").write_text("nobody's business")
    assert base_fingerprint(str(tmp_path)) == one
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert base_fingerprint(str(tmp_path)) != one
    assert base_fingerprint("hub/name") == "hub/name"


def test_where_the_model_lies_enters_no_digest(tmp_path):
    from shutil import copytree

    config, _ = load_config("tiny")
    copytree(config.model.base, tmp_path / "base")
    moved, _ = load_config("tiny", [f"model.base={tmp_path / 'base'}"])
    assert recipe_digest(moved) == recipe_digest(config)


def test_rules_without_a_statistic_register_none():
    plan = registered("aggregation.rule=uniform")
    assert plan.statistic_variance == plan.statistic_norm_bound == 0


@pytest.mark.parametrize("rule", ["fgrpo", "uniform"])
def test_an_infinite_epsilon_registers_no_noise_and_has_no_price(rule):
    found = registered("privacy.epsilon=inf", f'aggregation.rule="{rule}"')
    assert (found.epsilon, found.promises_privacy) == ("infinity", False)
    assert (found.noise_variance, found.statistic_variance) == (0, 0)
    assert (found.statistic_norm_bound > 0) == (rule == "fgrpo")
    assert claimed_epsilon(registered_spend(found, "sums")).is_infinite()


def test_less_epsilon_means_more_noise(plan):
    assert registered("privacy.epsilon=4").noise_variance > plan.noise_variance


@pytest.mark.parametrize(
    "override",
    [
        "privacy.delta=0.001",
        "privacy.epsilon=0.000001",
        "privacy.epsilon=1e400",
        "privacy.delta=1e-400",
        "privacy.epsilon=7.1234567",
        "privacy.statistic_multiplier=0.01",
        "federation.min_survivors=5",
        "federation.colluders=3",
        "aggregation.temperature=0.0",
        "client.sums.name=sort",
        "client.sums.name=server",
    ],
)
def test_terms_that_carry_no_guarantee_are_refused(override):
    sizes = SIZES | {"server": 3000}
    with pytest.raises(RefusalError) as caught:
        registered(override, sizes=sizes)
    assert len(str(caught.value)) > 20


@pytest.mark.parametrize("loss", ["dapo", "cispo", "vespo", "bnpo"])
def test_a_loss_that_couples_units_is_refused_with_its_reason(loss):
    with pytest.raises(ConfigurationError, match="would move the gradients of all"):
        registered(f"grpo.loss={loss}")


def test_a_scale_over_the_batch_is_refused_with_its_reason():
    with pytest.raises(ConfigurationError, match="deviation over the whole batch"):
        registered("grpo.scale_rewards=batch")


def test_a_modulus_that_would_wrap_is_refused():
    sizes = dict.fromkeys(SIZES, 10**9)
    with pytest.raises(ConfigurationError, match="modulus_bits = 32 has no room"):
        registered("privacy.delta=1e-11", sizes=sizes)


def test_a_rate_that_draws_nothing_is_refused_without_a_size_that_was_counted():
    sizes = SIZES | {"sort": 363}
    with pytest.raises(ConfigurationError, match="client sort would draw") as caught:
        registered("privacy.sampling_rate=0.001", sizes=sizes)
    assert "sampling_rate = 0.001" in caught.value.what
    assert caught.value.fix == (
        "Raise [privacy] sampling_rate until 32 or more are drawn a round."
    )
    # Neither the size nor what would give it away.
    for number in ("363", "0.36", "0.088", f"{32 / 363:.2g}"):
        assert number not in str(caught.value)


def test_a_rate_is_proposed_where_the_size_is_declared():
    overrides = ["privacy.sampling_rate=0.001", "client.sort.units=400"]
    with pytest.raises(ConfigurationError) as caught:
        registered(*overrides, sizes=SIZES | {"sort": 400})
    assert "0.08 draws 32 of the declared units a round" in caught.value.fix
    assert registered("privacy.sampling_rate=0.0005", sizes=SIZES).rounds == 12


def test_the_largest_numbers_of_a_configuration_can_be_written_down():
    plan = registered(
        "privacy.unit=patient",
        f"privacy.max_prompts_per_unit={MOST}",
        f"grpo.group_size={MOST}",
        f"grpo.max_tokens={MOST}",
        f"model.lora_rank={MOST}",
    )
    assert plan.max_prompts_per_unit == MOST
    assert len(plan.digest) == 64


@pytest.mark.parametrize("key", ["local_steps", "inner_steps"])
def test_several_steps_under_one_noise_cannot_be_configured(key):
    with pytest.raises(ConfigurationError) as caught:
        registered(f"privacy.{key}=2")
    assert key in caught.value.what
    assert 'trust = "local"' in str(caught.value)


# Few bits.

ROTATED = "privacy.rotation=true"


def bits(count):
    return f"privacy.modulus_bits={count}"


@pytest.mark.parametrize(
    ("overrides", "finest"),
    [
        ((bits(24),), 4096),
        ((bits(20),), 256),
        ((bits(20), ROTATED), 2048),
        ((bits(24), ROTATED), NORM_BOUND),
        ((ROTATED,), NORM_BOUND),
    ],
)
def test_few_bits_have_the_finest_grid_that_fits_and_the_same_promise(
    plan, overrides, finest
):
    found = registered(*overrides)
    assert found.norm_bound == finest
    assert found.digest != plan.digest
    # The promise is of multiples of the bound, whatever the grid.
    whole = registered_spend(found, found.most_exposed)
    assert Decimal("7.99") < claimed_epsilon(whole) <= 8
    assert found.noise_multiplier == pytest.approx(plan.noise_multiplier, rel=1e-3)
    if finest < NORM_BOUND:
        finer = {
            "norm_bound": 2 * finest,
            "noise_variance": 4 * found.noise_variance,
        }
        with pytest.raises(WrappingSumError):
            replace(found, **finer)


@pytest.mark.parametrize("count", [8, 16])
@pytest.mark.parametrize("more", [(), (ROTATED,)])
def test_a_grid_that_costs_more_than_it_saves_is_refused_with_a_way_out(count, more):
    with pytest.raises(ConfigurationError) as caught:
        registered(bits(count), *more)
    assert f"modulus_bits = {count}" in caught.value.what
    assert "10% of their length" in caught.value.what
    assert "raise modulus_bits" in caught.value.fix
    assert ("rotation" in caught.value.fix) == (not more)
    # Sizes that were counted are private, and so is what follows from them.
    for size in {*SIZES.values()}:
        assert str(size) not in str(caught.value)


@pytest.mark.parametrize("more", [(), (ROTATED,)])
def test_a_grid_too_coarse_for_the_noise_is_refused_with_a_way_out(more):
    """With few numbers rounding costs nothing, and noise is what needs a finer grid."""
    found = registered(bits(16), "privacy.epsilon=8", *more, dimension=12)
    assert found.noise_share_variance >= 16
    with pytest.raises(ConfigurationError) as caught:
        registered(bits(16), "privacy.epsilon=60", *more, dimension=12)
    assert "noise of a client is narrower than 4 steps" in caught.value.what
    assert "raise modulus_bits" in caught.value.fix


def test_what_is_wrong_on_every_grid_is_said_as_it_is():
    with pytest.raises(PlanMismatchError, match="delta"):
        registered(bits(20), "privacy.delta=0.01")


def test_more_numbers_need_a_finer_grid():
    """The same bits that do for few numbers are refused for many."""
    # sqrt(d / 12) steps are a tenth of 256 at d = 7864.3.
    assert registered(bits(20), dimension=7864).norm_bound == 256
    for dimension, words in ((7865, "7,865 numbers"), (200_000, "200,000 numbers")):
        with pytest.raises(ConfigurationError, match=words):
            registered(bits(20), dimension=dimension)
    assert registered(bits(20), ROTATED, dimension=200_000).norm_bound >= 2**12


def test_a_run_of_local_trust_takes_few_bits_too():
    found = registered(*LOCAL, bits(20), ROTATED)
    assert found.is_local
    assert found.bytes_up == 2.5 * (DIMENSION + 1) + 0.5


def cohorts_of(count, *overrides):
    """The plans of so many clients in cohorts of at most four."""
    config, _ = load_config("tiny", ("federation.cohort_size=4", *overrides))
    clients = tuple(
        config.client[place % 4].model_copy(update={"name": f"c{place:02d}"})
        for place in range(count)
    )
    sizes = {client.name: 3000 for client in clients}
    many = config.model_copy(update={"client": clients})
    return register_cohorts(many, sizes, DIMENSION)


def test_cohorts_have_the_terms_of_one_and_clients_of_their_own(plan):
    plans = cohorts_of(10, "federation.min_survivors=2", "federation.colluders=0")
    assert [len(own.clients) for own in plans] == [4, 3, 3]
    names = [client.name for own in plans for client in own.clients]
    assert names == [f"c{place:02d}" for place in range(10)]
    assert len({own.digest for own in plans}) == 3
    # All of the noise in each: as much as a federation of one cohort has.
    assert {own.noise_variance for own in plans} == {plan.noise_variance}
    assert len({own.recipe for own in plans}) == 1
    Cohorts(plans)


def test_cohorts_share_a_grid_though_one_alone_would_have_a_finer_one():
    few = ("federation.min_survivors=2", "federation.colluders=0")
    bits = ("privacy.modulus_bits=24", "privacy.sampling_rate=0.02")
    grids = {
        count: {own.norm_bound for own in cohorts_of(count, *few, *bits)}
        for count in (3, 4, 7)
    }
    assert max(grids[3]) > max(grids[4])
    assert grids[7] == grids[4]


def test_a_cohort_size_that_all_clients_fit_into_changes_nothing(plan):
    config, _ = load_config("tiny", ("federation.cohort_size=4",))
    assert register(config, SIZES, DIMENSION).digest == plan.digest
