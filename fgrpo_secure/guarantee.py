"""A plan in words for a person who need not know differential privacy."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fgrpo_secure.config import PROMPT
from privacy.attacker import NO_LIMIT, Tradeoff, tradeoff
from privacy.contribution import registered_event
from privacy.ledger import priced
from privacy.plan import Plan

_WIDTH = 78

# False alarms at which an attacker's success is stated: one in a hundred.
FALSE_ALARMS = 0.01


@dataclass(frozen=True, slots=True)
class Attack:
    """The most that anybody achieves who guesses whether one unit was there.

    Attributes:
        accuracy: right guesses where both are equally likely, 0.5 to 1.
        found: share of the units that were there which are found, where FALSE_ALARMS
            of those that were not are taken for there as well.
    """

    accuracy: float
    found: float


def attack_bound(points: Iterable[tuple[float, float]]) -> Attack:
    """What (epsilon, delta) pairs that all hold leave to an attacker.

    Args:
        points: pairs of epsilon, at least 0, and delta; none leave everything.

    Guarantee:
        No test between the data with and without one unit does better.

    """
    limits = Tradeoff(tuple(points))
    return Attack(limits.accuracy, limits.found(FALSE_ALARMS))


def attack_on(plan: Plan) -> Attack:
    """What a plan's noise leaves to an attacker, by the accountant at many deltas.

    This is tighter than what the plan's one (epsilon, delta) says, and as proved.
    """
    return attack_bound(limits_of(plan, plan.most_exposed).pairs)


def limits_of(plan: Plan, name: str) -> Tradeoff:
    """What the registered rounds leave to an attacker on one client's units."""
    if not plan.promises_privacy:
        return NO_LIMIT
    event = priced(registered_event(plan, name))
    return tradeoff({event: plan.registered_charges}, Decimal(plan.delta))


def explain(plan: Plan, facts: Mapping[str, Any]) -> str:
    """What a plan promises, to whom, what it does not promise, and what it costs.

    Args:
        plan: the registered terms.
        facts: as `fgrpo plan --json` prints them.

    Returns:
        Text for a terminal.
    """
    if not plan.promises_privacy:
        budget = _budget(facts)
        return "\n\n".join([_NO_PROMISE, _terms(plan, facts), *budget, _NO_PROMISE])
    return "\n\n".join(
        [
            _section("Protected", [protected(plan)]),
            _section("From whom", [from_whom(plan)]),
            _section("How far", [_how_far(plan, facts)], _guesses(plan, facts)),
            _section("Not protected", not_protected(plan)),
            "The plan\n" + _terms(plan, facts),
            *_budget(facts),
        ]
    )


_NO_PROMISE = "\n".join(
    [
        "*" * _WIDTH,
        "NO GUARANTEE".center(_WIDTH),
        "NO PRIVACY: epsilon is infinity".center(_WIDTH),
        "",
        *(
            line.center(_WIDTH).rstrip()
            for line in textwrap.wrap(
                "No noise is added. Whoever gets the adapter, and whoever sees the "
                "updates, may learn anything about the data. It is a baseline for "
                "public data, to measure by. Its ledgers say infinity.",
                _WIDTH - 8,
            )
        ),
        "*" * _WIDTH,
    ]
)


def protected(plan: Plan) -> str:
    """What the promise is about."""
    if plan.unit == PROMPT:
        return (
            "Each distinct prompt at a client, with every completion, reward and "
            "gradient that is made from it: whether it was in the client's data, and "
            "what it says beyond what the other prompts tell anyway. With or without "
            "it whatever the run publishes has nearly the same chance to come about; "
            "how nearly stands below."
        )
    return (
        f"Each value of {plan.unit} at a client, with all its rows together (at most "
        f"{_prompts(plan)} of one value count): whether any one {plan.unit} was in a "
        "client's data, and what its rows say beyond what those of others tell "
        "anyway. With or without all of them whatever the run publishes has nearly "
        "the same chance to come about; how nearly stands below."
    )


def from_whom(plan: Plan) -> str:
    """Against whom it holds."""
    if plan.is_local:
        return (
            "Everybody outside the client's own site, at once: the coordinator, all "
            "other clients together, and whoever gets the adapter, the ledgers or "
            "anything else that the run publishes. Each client adds all of the noise "
            "to each of its steps by itself, so that nobody else has to be trusted "
            "with any, and the promise holds even for one client's own update. Secure "
            "aggregation hides that one as well from whoever works with too few "
            "others to take the sum apart, and nothing is promised of that."
        )
    if plan.colluders == 0:
        others = "each of the other clients, as long as it works alone"
    elif plan.colluders == 1:
        others = "any one other client, also where it works with the coordinator"
    else:
        others = (
            f"any {plan.colluders} other clients, also where they work together and "
            "with the coordinator"
        )
    return (
        "The coordinator, also one that lies; "
        f"{others}; and whoever gets the adapter, the ledgers or anything else that "
        "the run publishes, whatever else they know, now or later."
    )


def _how_far(plan: Plan, facts: Mapping[str, Any]) -> str:
    epsilon = float(plan.epsilon)
    if epsilon <= 1:
        strength = "is strong"
    elif epsilon <= 4:
        strength = "is moderate"
    elif epsilon > 20:
        strength = (
            "is so large that nobody should rely on it: what limits a guess, if "
            "anything, is the noise, in the last column"
        )
    else:
        strength = (
            "is weak by itself: taken as a number alone it hardly limits a guess, and "
            "what limits it is the noise, in the last column"
        )
    return (
        f"Up to epsilon {facts['epsilon_target']:g} and delta {facts['delta']:g}, for "
        f"all {plan.rounds} rounds together: with or without a unit, the "
        "probability of anything that an onlooker may see or conclude differs by a "
        f"factor of at most e^{facts['epsilon_target']:g}, which is "
        f"{_factor(epsilon)}, and by delta on top. This epsilon {strength}. "
        "For somebody who knows all the data but one unit and guesses whether that "
        "one was there:"
    )


def _guesses(plan: Plan, facts: Mapping[str, Any]) -> list[str]:
    """A small table: the attacker's success by chance, by epsilon, and by the noise."""
    stated = attack_bound([(float(plan.epsilon), float(plan.delta))])
    priced = facts.get("attack", {})
    rows = [
        ("", "by chance", "by epsilon, delta", "by this noise"),
        (
            "right, where both are as likely",
            "50%",
            _at_most(stated.accuracy),
            _at_most(priced.get("accuracy", stated.accuracy)),
        ),
        (
            "found, at 1 false alarm in 100",
            "1%",
            _at_most(stated.found),
            _at_most(priced.get("found", stated.found)),
        ),
    ]
    return [
        f"    {name:<31} {chance:>9}  {bound:>17}  {noise:>13}"
        for name, chance, bound, noise in rows
    ]


def not_protected(plan: Plan) -> list[str]:
    """What it does not cover, as items of a list that end in semicolons."""
    several = (
        "somebody behind several prompts: two of them are covered by twice epsilon "
        "and more than twice delta only, and so on. Name the column that says whose a "
        "row is as the unit instead"
        if plan.unit == PROMPT
        else f"somebody behind several values of {plan.unit}: two of them are "
        "covered by twice epsilon and more than twice delta only, and so on"
    )
    return [
        "- the data from the client's own site: its machine, its operator and its "
        "reward functions see them as before, and so does any service that a reward "
        "function asks. `fgrpo run` runs all parties on one machine, and whoever "
        "owns that sees all data;",
        "- against a reward function that remembers or compares prompts: none of this "
        "holds then, and nothing here can check it;",
        "- who takes part, when messages are sent, and how large the data sets are "
        "(state a rounded `units` where the exact number must not be known);",
        "- what is true of many units: that is what is learnt;",
        f"- {several}; likewise somebody with data at several clients;",
        *(
            []
            if plan.is_local
            else ["- against more clients that work together than stated above;"]
        ),
        "- the model from a client that poisons its own update: clipping limits what "
        "bad data can do, and not what a changed program can;",
        "- what was known otherwise: what the base model has memorised, other runs on "
        "the same data (each spends its own epsilon on top; epsilon_cap with a shared "
        "[machine] state stops that), settings that were "
        "chosen by looking at the data, and evaluation sets declared public.",
    ]


def _trust(plan: Plan) -> str:
    if not plan.promises_privacy:
        return "only the sum of the updates is seen, and there is no noise in it"
    if plan.is_local:
        return "all of the noise is in each step of each client"
    return "the sum of the clients' noise shares protects"


def _draw(plan: Plan, facts: Mapping[str, Any]) -> str:
    """Who draws what, and how often."""
    batches = sorted(set(facts["expected_batch"].values()))
    rates = sorted(set(facts["sampling_rate_by_client"].values()))
    times = "units a client and round"
    if plan.is_local:
        times = f"units a client and time, {_times(plan.local_steps)} a round"
        if plan.inner_steps > 1:
            times += f", with {plan.inner_steps} noised steps on each draw"
    return f"each unit with probability {_span(rates)}, about {_span(batches)} {times}"


def _span(values: Sequence[float]) -> str:
    """One number, or the least and the greatest of several."""
    low, high = values[0], values[-1]
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _terms(plan: Plan, facts: Mapping[str, Any]) -> str:
    statistic = facts["statistic_multiplier"]
    rows = [
        ("plan", _digests(facts)),
        ("unit", f"{_unit(plan)}: one present or absent at one client"),
        ("trust", f"{plan.trust}: {_trust(plan)}"),
        (
            "clients",
            f"{facts['clients']}{_cohorts(facts)}, at least {plan.min_survivors} in "
            f"every sum, {plan.colluders} may collude; threshold {_thresholds(facts)}",
        ),
        ("rounds", f"{plan.rounds}, each paid for when it begins, also one that fails"),
        ("draw", _draw(plan, facts)),
        ("clip norm", f"{facts['clip_norm']:g} (D = {plan.norm_bound} grid steps)"),
        (
            "sends",
            f"{facts['bytes_per_round']:,} bytes a client and round, "
            f"{facts['bytes_per_parameter']:.2f} a number: {plan.dimension:,} of them "
            f"modulo 2**{plan.modulus_bits}{', rotated' if plan.rotation else ''}",
        ),
    ]
    if plan.promises_privacy:
        rows += [
            (
                "noise",
                f"multiplier {facts['noise_multiplier']:.4f} in "
                f"{'each step' if plan.is_local else 'the sum'}; each "
                f"{'step' if plan.is_local else 'share'} has a deviation of "
                f"{facts['noise_share_std']:.0f} grid steps",
            ),
            (
                "statistic",
                "none"
                if statistic is None
                else f"mean reward, multiplier {statistic:.3g}, seen by its client "
                "alone",
            ),
            (
                "epsilon",
                f"{facts['epsilon_pld']:.4f} is the claim (by PLD), of a target of "
                f"{facts['epsilon_target']:g}; a looser accountant, as a cross-check: "
                f"{facts['epsilon_rdp']:.4f} (by RDP)",
            ),
            *_by_client(facts),
            ("delta", f"{facts['delta']:g}"),
        ]
    else:
        rows += [("noise", "NONE"), ("epsilon", "INFINITY: nothing is promised")]
    return "\n".join(
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent=f"{name:>10}  ",
            subsequent_indent=" " * 12,
            break_on_hyphens=False,
        )
        for name, text in rows
    )


def _digests(facts: Mapping[str, Any]) -> str:
    """The plan's digest, or those of all cohorts' plans."""
    cohorts = facts.get("cohorts") or [facts]
    return ", ".join(cohort["digest"] for cohort in cohorts)


def _cohorts(facts: Mapping[str, Any]) -> str:
    """How the clients are parted, where they are."""
    cohorts = facts.get("cohorts")
    if not cohorts:
        return ""
    sizes = _span(sorted({cohort["clients"] for cohort in cohorts}))
    return (
        f" in {len(cohorts)} cohorts of {sizes}, each with a sum and all of the noise "
        "by itself"
    )


def _thresholds(facts: Mapping[str, Any]) -> str:
    cohorts = facts.get("cohorts") or [facts]
    return _span(sorted({cohort["threshold"] for cohort in cohorts}))


def _by_client(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each client's own epsilon, where they differ."""
    epsilons = facts["epsilon_by_client"]
    if len(set(epsilons.values())) == 1:
        return []
    each = ", ".join(f"{name} {_shown(value)}" for name, value in epsilons.items())
    return [
        (
            "by client",
            f"{each}: a unit's risk is that of its own client, each ledger carries its "
            "own, and the largest is the claim",
        )
    ]


def _budget(facts: Mapping[str, Any]) -> list[str]:
    """What earlier runs spent, where anything adds it up; no section without facts."""
    budget = facts.get("budget")
    if budget is None:
        return []
    if not budget["shared"]:
        alone = (
            "Each run's folder has ledgers of its own, and each run a budget of its "
            "own: this one begins at 0, and nothing adds up what other runs spend on "
            "the same data. Where [machine] state names a store, later runs go on with "
            "what the earlier ones spent."
        )
        why = [c["why_not"] for c in budget["clients"].values() if c["why_not"]]
        return [_section("Budget", [alone, *why])]
    rows = [f"    {'client':<24} {'spent':>9} {'after this run':>15} {'cap':>9}"]
    notes = []
    for name, client in budget["clients"].items():
        if "spent" in client:
            # From the second run on the filter counts the first one by its own figure.
            spent = "counted" if client["by_filter"] else "spent"
            figures = [_shown(client[key]) for key in (spent, "after", "cap")]
            rows.append(
                f"    {name:<24} {figures[0]:>9} {figures[1]:>15} {figures[2]:>9}"
            )
            former = client["former_cap"]
            if former not in {None, client["cap"]}:
                notes.append(
                    f"- {name}: the cap of its ledger was {_shown(former)}, and this "
                    f"run would make it {_shown(client['cap'])}. What its data are "
                    "promised from then on is the larger of the two;"
                )
            least = client["least_cap"]
            if client["runs"] == 0 and float(least) > float(client["cap"]):
                notes.append(
                    f"- {name}: no second run can follow this one under its cap, since "
                    f"over several runs this one counts {_shown(least)}. "
                    "To leave room state a larger epsilon_cap now;"
                )
        if client["why_not"]:
            notes.append(f"- {name} MAY NOT RUN: {client['why_not']};")
    if any(client.get("by_filter") for client in budget["clients"].values()):
        notes.append(
            "- a later run may have been chosen by what an earlier one showed. Over "
            "several runs the Renyi filter counts therefore, what was spent too, by a "
            "looser figure than a single run's, and the promise is the cap."
        )
    store = (
        "The store that [machine] state names goes on with what earlier runs spent on "
        "each client's data:"
    )
    return ["\n".join([_section("Budget", [store]), *rows, *_filled(notes)])]


def _shown(epsilon: float | str) -> str:
    return epsilon if isinstance(epsilon, str) else f"{epsilon:.4f}"


def _section(title: str, paragraphs: Iterable[str], lines: Iterable[str] = ()) -> str:
    return "\n".join([title, *_filled(paragraphs), *lines])


def _filled(paragraphs: Iterable[str]) -> list[str]:
    return [
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="    " if text.startswith("- ") else "  ",
        )
        for text in paragraphs
    ]


def _factor(epsilon: float) -> str:
    """Euler's number to this power, for people."""
    if epsilon > 20:
        return "beyond 400 million"
    value = math.exp(epsilon)
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _at_most(share: float) -> str:
    """A share in percent, rounded up: near 100 to two decimals, else to one."""
    digits = 100 if share > 0.99 else 10
    return f"at most {math.ceil(share * 100 * digits - 1e-9) / digits:g}%"


def _unit(plan: Plan) -> str:
    """What one unit is made of."""
    if plan.unit == PROMPT:
        return plan.unit
    return f"{plan.unit}: all rows of one value, at most {_prompts(plan)} of each"


def _prompts(plan: Plan) -> str:
    count = plan.max_prompts_per_unit
    return "1 prompt" if count == 1 else f"{count} prompts"
