"""What a run promises, in words for people who decide and need not calculate.

Every number in these sentences is an upper bound and is rounded up. No sentence says
more than docs/privacy.md proves, and what it rests on stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from fgrpo_secure.config import PROMPT
from fgrpo_secure.guarantee import from_whom
from fgrpo_secure.report.facts import ClientFacts, RunFacts
from privacy.attacker import NO_LIMIT, Tradeoff
from privacy.ledger import decimal_text
from privacy.plan import Plan

# Shares of absent units that an attacker takes for present, at which the report says
# how many of the present ones it finds.
FALSE_ALARMS = (0.01, 0.001)

_SMALL_NUMBERS = (
    *("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"),
    *("Ten", "Eleven", "Twelve"),
)

# Beyond this a guess is right so often that a limit is none.
_HARDLY_A_LIMIT = 0.99

NO_PROMISE = (
    "No noise was added in this run, and it promises nothing to anybody. Whoever gets "
    "the trained adapter, or saw the updates, may learn anything about the data. Its "
    "epsilon is infinity, and its ledgers say so. Such a run is a baseline for public "
    "data, to measure others by."
)


def promise(facts: RunFacts) -> list[tuple[str, list[str]]]:
    """The first paragraphs of the page, in parts that have a title.

    What the run promises, by how much, against whom, what it does not cover, and what
    it rests on.
    """
    plan = facts.plan
    if not plan.promises_privacy:
        return [("What this run promises", [f"{_what(facts)} {NO_PROMISE}"])]
    said = [
        ("What this run promises", [f"{_what(facts)} {_guess(facts)}", _many(facts)]),
        ("Against whom", [from_whom(plan)]),
        ("Not covered", [_not_covered(plan)]),
        ("What it rests on", [_rests_on(plan)]),
    ]
    earlier = _earlier(facts.clients)
    if earlier:
        said.insert(1, ("Together with earlier runs", [earlier]))
    return said


def sentence(facts: RunFacts) -> str:
    """The claim in one sentence, as an expert states it."""
    plan = facts.plan
    if not plan.promises_privacy:
        return "No differential privacy is claimed: epsilon is infinity."
    whom = (
        "everybody else together"
        if plan.is_local
        else f"the server and up to {plan.colluders} of the other clients together, "
        "and to whoever sees what is published"
    )
    epsilon = (
        f"at most {decimal_text(facts.epsilon)}"
        if facts.finished
        else f"at most {plan.epsilon}, the target of all registered rounds"
    )
    return (
        f"For every client, and any two data sets of it of which one has a single "
        f"privacy unit ({_unit_name(plan)}) more than the other, all that the client "
        f"sends in this run of {plan.rounds} registered rounds is (epsilon, delta)-"
        f"indistinguishable to {whom}, with epsilon {epsilon} and delta "
        f"{plan.delta}, under the assumptions stated with it."
    )


def guesses(limits: Tradeoff) -> list[tuple[str, str, str]]:
    """What an attacker achieves: the question, by guessing, and at most."""
    rows = [
        (
            "Right guesses, where present and absent are equally likely",
            "50%",
            at_most(limits.accuracy),
        )
    ]
    for rate in FALSE_ALARMS:
        rows.append(
            (
                f"Found, where 1 in {round(1 / rate):,} absent ones is wrongly named",
                f"{rate:.1%}".replace(".0%", "%"),
                at_most(limits.found(rate)),
            )
        )
    return rows


def at_most(share: float) -> str:
    """A share in percent, rounded up, to as many digits as it takes to tell it."""
    if share >= 1:
        return "100%"
    scale = 10000 if share > _HARDLY_A_LIMIT or share < _HARDLY_A_LIMIT / 100 else 1000
    digits = 2 if scale == 10000 else 1
    return f"{math.ceil(share * scale - 1e-9) / scale * 100:.{digits}f}%"


def epsilon_text(epsilon: Decimal) -> str:
    """An epsilon for tables: four decimals, rounded up."""
    if epsilon.is_infinite():
        return "infinity"
    return f"{math.ceil(epsilon * 10000) / 10000:.4f}"


def counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _what(facts: RunFacts) -> str:
    plan = facts.plan
    done = f"{facts.count('published'):,} of {counted(plan.rounds, 'round')}"
    if not facts.finished:
        done = f"so far {done}"
    count = len(plan.clients)
    owners = _SMALL_NUMBERS[count] if count < len(_SMALL_NUMBERS) else f"{count:,}"
    return (
        f"{owners} data owners, the clients, trained one language model together "
        f"without pooling their data; {done} gave a result."
    )


def _guess(facts: RunFacts) -> str:
    plan, right = facts.plan, facts.limits.accuracy
    unit = "prompt"
    if plan.unit != PROMPT:
        unit = f"{plan.unit} (all rows with one value of that column)"
    when = (
        "After this run"
        if facts.finished
        else "Once every round that is registered has run"
    )
    hardly = " That is hardly a limit." if right >= _HARDLY_A_LIMIT else ""
    return (
        f"How much can that give away about any single {unit} in their data? Think of "
        f"an onlooker who knows all of the data but one {_short_unit(plan)}, and sees "
        "what the coordinator saw and all that was published. Asked whether that one "
        "was there, when both answers were equally likely beforehand, a tossed coin is "
        f"right 50% of the time. {when}, the onlooker is right at most "
        f"{at_most(right)} of the time.{hardly}"
    )


def _many(facts: RunFacts) -> str:
    limits = facts.limits
    few, fewer = (
        (f"1 in {round(1 / rate):,}", at_most(limits.found(rate)), f"{rate * 100:g}%")
        for rate in FALSE_ALARMS
    )
    return (
        f"If the onlooker may be wrong about {few[0]} of those that were not there, "
        f"it finds at most {few[1]} of those that were, where blind guessing finds "
        f"{few[2]}; if about {fewer[0]}, at most {fewer[1]}, where guessing finds "
        f"{fewer[2]}. This is what the noise allows that the ledgers record. As a "
        f"pair of numbers it is {_pair(facts)}."
    )


def _pair(facts: RunFacts) -> str:
    plan = facts.plan
    if not facts.finished:
        return f"epsilon {plan.epsilon} at delta {plan.delta}"
    return (
        f"epsilon {decimal_text(facts.epsilon)} at delta {plan.delta}; epsilon "
        f"{plan.epsilon} was agreed on"
    )


def _not_covered(plan: Plan) -> str:
    more = "" if plan.is_local else "more owners working together than that; "
    several = (
        "several prompts" if plan.unit == PROMPT else f"several values of {plan.unit}"
    )
    return (
        "Whoever runs a data owner's machine sees that owner's data as before. In this "
        "version the programs of all data owners run on one machine, and whoever owns "
        f"that machine can see all of the data. Not covered either: {more}who took "
        "part, when, for how long, and how much data each has; what is true of many "
        "at once, which is what the model is meant to learn; what is known from "
        f"elsewhere; other runs on the same data that no ledger here holds. A person "
        f"behind {several}, or with data at several owners, is covered less."
    )


def _rests_on(plan: Plan) -> str:
    shares = (
        "Each owner's own noise is enough for its own data."
        if plan.is_local
        else f"In each sum {counted(plan.honest_shares, 'owner')}, the one whose data "
        "it is among them, must have added their noise."
    )
    column = (
        ""
        if plan.unit == PROMPT
        else f"; on the column {plan.unit} saying truly whose each row is"
    )
    return (
        "The signed ledgers show what each party recorded, and that nobody changed it "
        "since. They cannot show that a party's program did what it recorded: this "
        "page relies on the owners' programs for that, the noise included. "
        f"{shares} It also relies on the cryptography; on reward functions that look "
        f"at one row at a time and remember nothing{column}; and on the keys below "
        "being those of the parties, which is for you to compare with them."
    )


def _earlier(clients: Sequence[ClientFacts]) -> str:
    """What the runs of a shared ledger come to, where there is more than this one."""
    several = [client for client in clients if client.budget.runs > 1]
    if not several:
        return ""
    worst = max(several, key=lambda client: client.budget.promise)
    limits = lifetime_limits(worst)
    named = ", ".join(client.name for client in several)
    return (
        f"The same data were used before: the ledgers of {named} hold earlier runs, "
        "and for a person all of them count. For all of them together the promise is "
        f"epsilon {decimal_text(worst.budget.promise)} at delta "
        f"{decimal_text(worst.budget.lifetime.delta)}, by which the onlooker of all of "
        f"them is right at most {at_most(limits.accuracy)} of the time. The figure "
        "above is for this run by itself."
    )


def lifetime_limits(client: ClientFacts) -> Tradeoff:
    """What all runs in a client's ledger leave to an attacker."""
    budget = client.budget
    if budget.runs == 1:
        return client.limits
    if budget.promise.is_infinite():
        return NO_LIMIT
    pair = (float(budget.promise), float(budget.lifetime.delta))
    return Tradeoff((pair,))


def _unit_name(plan: Plan) -> str:
    if plan.unit == PROMPT:
        return "a distinct prompt"
    return f"all rows of one value of {plan.unit}"


def _short_unit(plan: Plan) -> str:
    return "prompt" if plan.unit == PROMPT else plan.unit
