"""What a site allows, whatever a plan, a configuration or a server says.

A policy is one TOML file that the site's operator writes and nobody sends. Every key
is required, and what no line allows is refused. `check` holds what is proposed to it
and has no input or output of its own: who gathers the facts, and who signs the
refusals, is in `admission`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from fgrpo_secure.config import MOST, Names, Section
from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.explanations import POLICY_GUIDE, explain
from privacy.errors import RefusalError
from privacy.ledger import Reason, decimal_text
from privacy.plan import LOCAL, MIN_CLIENTS

AUTO, ASK = "auto", "ask"

_DIGEST = re.compile(r"\A[0-9a-f]{64}\Z")

_Digest = Annotated[str, StringConstraints(pattern=_DIGEST)]
_Name = Annotated[str, StringConstraints(min_length=1)]
_Epsilon = Annotated[Decimal, Field(gt=0)]
_Delta = Annotated[Decimal, Field(gt=0, lt=1)]


class PlanRules(Section):
    """What every plan must be like that this site takes part in."""

    units: Names = Field(description='"prompt", or names of columns')
    trust: tuple[Literal["distributed", "local"], ...]
    least_clients: Annotated[int, Field(ge=MIN_CLIENTS, le=MOST)] = Field(
        description="in the plan, and in every round that this site charges"
    )
    least_survivors: Annotated[int, Field(ge=2, le=MOST)]
    least_colluders: Annotated[int, Field(ge=0, le=MOST)] = Field(
        description="the promise must hold though this many others work together"
    )
    base_models: tuple[_Digest, ...]


class DataSetRules(Section):
    """What may be spent on the units of one data set."""

    name: _Name
    epsilon: _Epsilon = Field(description="most that one run may promise")
    delta: _Delta
    epsilon_for_life: _Epsilon = Field(description="most that all runs may add up to")
    delta_for_life: _Delta


class RewardRules(Section):
    """A reward function that may see the data, by the file that defines it."""

    name: _Name
    sha256: _Digest


class TaskRules(Section):
    """What may be learnt from one data set, and whether its operator is asked."""

    data_set: _Name
    rewards: Names = Field(min_length=1)
    approval: Literal["auto", "ask"]


class SitePolicy(Section):
    """A whole policy."""

    plan: PlanRules
    data_set: tuple[DataSetRules, ...]
    reward: tuple[RewardRules, ...]
    task: tuple[TaskRules, ...]

    @model_validator(mode="after")
    def _nothing_is_said_twice(self) -> SitePolicy:
        """Two lines for one thing would leave open which of them holds."""
        kinds: tuple[tuple[str, Iterable[object]], ...] = (
            ("[[data_set]] have the same name", (r.name for r in self.data_set)),
            ("[[reward]] have the same name and sha256", map(_pair, self.reward)),
            ("[[task]] have the same data_set and rewards", map(_key, self.task)),
        )
        for what, keys in kinds:
            listed = list(keys)
            if any(key in listed[:place] for place, key in enumerate(listed)):
                msg = f"two {what}; keep the one that is meant"
                raise ValueError(msg)
        return self


@dataclass(frozen=True, slots=True)
class RewardFile:
    """A reward function as a policy names it.

    Attributes:
        name: "file.py:function" without the folder, or "module:function".
        sha256: hex, of the file that defines it and of those that it imports from its
            own folder.
    """

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What is proposed to one client, as the site itself finds it.

    Attributes:
        data_set: what its data are called.
        unit: what the plan protects.
        trust: "distributed" or "local".
        epsilon: what the run may cost: the plan's target, or what it registers by the
            site's own price where that is more.
        delta: the plan's.
        cap_epsilon: most that the data set's ledger may hold over all runs, with this
            run in it.
        cap_delta: at which.
        kept: whether that ledger outlives the run.
        clients: in the plan.
        min_survivors: of the plan.
        colluders: of the plan.
        base_model: hex digest of the files of the base model; None where it is not
            known.
        rewards: what scores the completions.
        approved: whether the operator has approved exactly this.
    """

    data_set: str
    unit: str
    trust: str
    epsilon: Decimal
    delta: Decimal
    cap_epsilon: Decimal
    cap_delta: Decimal
    kept: bool
    clients: int
    min_survivors: int
    colluders: int
    base_model: str | None
    rewards: tuple[RewardFile, ...]
    approved: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """One rule that what is proposed breaks.

    Attributes:
        reason: the code that stands in the ledger.
        what: what is wrong, in words, without a full stop.
        fix: what to do, likewise.
    """

    reason: Reason
    what: str
    fix: str


class SitePolicyError(RefusalError):
    """A site's own policy keeps it out of a run or a round.

    Attributes:
        refusals: the rules that are broken, at least one.
    """

    def __init__(self, client: str, refusals: Sequence[Refusal]) -> None:
        """Say all of it in two parts, as the kernel's errors do.

        Args:
            client: whose site declines.
            refusals: at least one.
        """
        what = ", and ".join(refusal.what for refusal in refusals)
        fixes = dict.fromkeys(refusal.fix for refusal in refusals)
        fix = ". ".join(f"{text[:1].upper()}{text[1:]}" for text in fixes)
        super().__init__(f"the policy of client {client!r} refuses: {what}; {fix}")
        self.refusals = tuple(refusals)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Their codes, each once."""
        return tuple(dict.fromkeys(refusal.reason for refusal in self.refusals))


def parse_policy(text: str, source: str) -> SitePolicy:
    """Read a policy.

    Args:
        text: TOML.
        source: what errors call it.

    Raises:
        ConfigurationError: not TOML, an unknown or missing key, or a value out of
            range; the text names the key.
    """
    try:
        tree: dict[str, Any] = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            f"{source} is not valid TOML: {error}.",
            "Correct that line; `fgrpo policy init` writes a policy to start from.",
        ) from None
    except (ArithmeticError, RecursionError, ValueError):
        raise ConfigurationError(
            f"{source} has a number or a nesting beyond what can be read.",
            "Write numbers of a usual size; `fgrpo policy init` writes one to start "
            "from.",
        ) from None
    try:
        return SitePolicy.model_validate(tree)
    except ValidationError as error:
        known = {
            "plan": tuple(PlanRules.model_fields),
            "data_set": tuple(DataSetRules.model_fields),
            "reward": tuple(RewardRules.model_fields),
            "task": tuple(TaskRules.model_fields),
        }
        raise explain(source, tree, error, known, POLICY_GUIDE) from None


def check(policy: SitePolicy, facts: Facts) -> list[Refusal]:
    """Hold what is proposed to a client to the policy of its site.

    Returns:
        Every rule that is broken; none allows it.

    Guarantee:
        A smaller cap, a larger floor, an entry less in a list, and "ask" in place of
        "auto" never make this list empty where it was not.
    """
    return [
        *check_plan(policy, facts),
        *_check_spend(policy, facts),
        *_check_model(policy, facts),
        *_check_rewards(policy, facts),
        *_check_task(policy, facts),
    ]


def check_plan(policy: SitePolicy, facts: Facts) -> list[Refusal]:
    """Hold the terms of a plan to the policy, whosever data it is about."""
    rules, found = policy.plan, []
    if facts.unit not in rules.units:
        found.append(
            Refusal(
                Reason.POLICY_UNIT,
                f"the plan protects units by {facts.unit!r}, and the site allows "
                f"{_listed(rules.units)}",
                "take a plan with an allowed unit, or add this one to units",
            )
        )
    if facts.trust not in rules.trust:
        found.append(
            Refusal(
                Reason.POLICY_TRUST,
                f"the plan has trust {facts.trust!r}, and the site allows "
                f"{_listed(rules.trust)}",
                "take a plan with an allowed trust, or add this one to trust",
            )
        )
    found += check_cohort(policy, facts.clients, "the plan has")
    found += check_survivors(policy, facts.min_survivors, "the plan opens sums of")
    # With local trust the promise rests on nobody else's noise.
    held = facts.clients - 1 if facts.trust == LOCAL else facts.colluders
    if held < rules.least_colluders:
        found.append(
            Refusal(
                Reason.POLICY_COLLUDERS,
                f"the plan's promise holds against {held} other clients that work with "
                f"the coordinator, and the site asks for {rules.least_colluders}",
                "take a plan with more colluders, or lower least_colluders",
            )
        )
    return found


def check_cohort(policy: SitePolicy, clients: int, where: str) -> list[Refusal]:
    """Hold a number of clients, of a plan or of a round's roster, to the policy."""
    least = policy.plan.least_clients
    if clients >= least:
        return []
    what = f"{where} {clients} clients, and the site asks for {least}"
    fix = "wait for more clients, or lower least_clients"
    return [Refusal(Reason.POLICY_COHORT, what, fix)]


def check_survivors(policy: SitePolicy, clients: int, where: str) -> list[Refusal]:
    """Hold a number of clients in a sum, least or really, to the policy."""
    least = policy.plan.least_survivors
    if clients >= least:
        return []
    what = f"{where} {clients} clients, and the site asks for {least}"
    fix = "take a plan with more min_survivors, or lower least_survivors"
    return [Refusal(Reason.POLICY_SURVIVORS, what, fix)]


def task_of(policy: SitePolicy, facts: Facts) -> TaskRules | None:
    """The one entry for this data set with exactly these rewards, if there is one."""
    named = sorted(reward.name for reward in facts.rewards)
    for task in policy.task:
        if _key(task) == (facts.data_set, named):
            return task
    return None


def _check_spend(policy: SitePolicy, facts: Facts) -> list[Refusal]:
    rules = next((r for r in policy.data_set if r.name == facts.data_set), None)
    if rules is None:
        what = f"nothing may be spent on data set {facts.data_set!r}, which it lacks"
        fix = "add a [[data_set]] with that name and its caps, or leave the run"
        return [Refusal(Reason.POLICY_EPSILON, what, fix)]
    found = []
    if not facts.kept:
        found.append(
            Refusal(
                Reason.POLICY_EPSILON,
                f"the ledger of data set {rules.name!r} ends with the run, so that "
                "nobody adds up what its life costs",
                "name a store in [machine] state, which later runs share",
            )
        )
    found += check_run_cost(rules, facts)
    if not _is_within(facts.cap_epsilon, rules.epsilon_for_life):
        found.append(
            Refusal(
                Reason.POLICY_EPSILON,
                f"all runs on data set {rules.name!r} may cost epsilon "
                f"{decimal_text(facts.cap_epsilon)}, and the site allows "
                f"{decimal_text(rules.epsilon_for_life)} for its life",
                "state a smaller epsilon_cap in the [[client]] table, or raise "
                "epsilon_for_life",
            )
        )
    if not _is_within(facts.cap_delta, rules.delta_for_life):
        found.append(
            Refusal(
                Reason.POLICY_DELTA,
                f"all runs on data set {rules.name!r} have delta "
                f"{decimal_text(facts.cap_delta)}, which its first run fixes, and the "
                f"site allows {decimal_text(rules.delta_for_life)} for its life",
                "take a smaller delta in a first run, or raise delta_for_life",
            )
        )
    return found


def check_run_cost(rules: DataSetRules, facts: Facts) -> list[Refusal]:
    """Hold what one run costs to what its data set allows a run."""
    compared = (
        (Reason.POLICY_EPSILON, "epsilon", facts.epsilon, rules.epsilon),
        (Reason.POLICY_DELTA, "delta", facts.delta, rules.delta),
    )
    found = []
    for reason, key, value, most in compared:
        if not _is_within(value, most):
            what = (
                f"a run on data set {rules.name!r} costs {key} {decimal_text(value)}, "
                f"and the site allows {decimal_text(most)}"
            )
            fix = f"take a plan of a smaller {key}, or raise the policy's"
            found.append(Refusal(reason, what, fix))
    return found


def _is_within(value: Decimal, most: Decimal) -> bool:
    """Whether a cost is a number, and no more than what is allowed."""
    return not value.is_nan() and value <= most


def _check_model(policy: SitePolicy, facts: Facts) -> list[Refusal]:
    if facts.base_model in policy.plan.base_models:
        return []
    digest = facts.base_model or "unknown, since its files are not here"
    what = f"the base model's digest is {digest}, which is not among base_models"
    fix = "compare the model with the one that was agreed, and add its digest"
    return [Refusal(Reason.POLICY_MODEL, what, fix)]


def _check_rewards(policy: SitePolicy, facts: Facts) -> list[Refusal]:
    found = []
    for reward in facts.rewards:
        hashes = {rules.sha256 for rules in policy.reward if rules.name == reward.name}
        if not hashes:
            what = f"no [[reward]] is named {reward.name!r}"
            code = Reason.POLICY_REWARD
        elif reward.sha256 not in hashes:
            what = f"the file of reward {reward.name!r} is not the one that was listed"
            code = Reason.POLICY_CODE
        else:
            continue
        fix = f"read that file, and list it with sha256 {reward.sha256}"
        found.append(Refusal(code, what, fix))
    return found


def _check_task(policy: SitePolicy, facts: Facts) -> list[Refusal]:
    task = task_of(policy, facts)
    if task is None:
        names = _listed(reward.name for reward in facts.rewards)
        what = f"no [[task]] learns from data set {facts.data_set!r} with {names}"
        fix = "add one with this data_set and exactly these rewards, or leave the run"
        return [Refusal(Reason.POLICY_TASK, what, fix)]
    if task.approval == AUTO or facts.approved:
        return []
    what = (
        f"its operator is asked about data set {facts.data_set!r}, and has not "
        "approved this plan with this base model and these rewards"
    )
    fix = (
        "read it and approve it by `fgrpo policy approve`, in a pilot by `fgrpo site "
        "approve`, then run again"
    )
    return [Refusal(Reason.NOT_APPROVED, what, fix)]


def _pair(reward: RewardRules) -> tuple[str, str]:
    return reward.name, reward.sha256


def _key(task: TaskRules) -> tuple[str, list[str]]:
    return task.data_set, sorted(task.rewards)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
