"""What a run promises, in words for people who decide and need not calculate.

Every number in these sentences is an upper bound and is rounded up. No sentence says
more than docs/privacy.md proves, and what it rests on stands beside it.
"""

from __future__ import annotations

from fgrpo_secure.config import PROMPT
from fgrpo_secure.guarantee import from_whom
from fgrpo_secure.report.facts import PUBLISHED, ClientFacts, RunFacts
from fgrpo_secure.report.figures import (
    FALSE_ALARMS,
    HARDLY_A_LIMIT,
    at_most,
    counted,
    listed,
    one_in,
)
from privacy.ledger import decimal_text
from privacy.plan import Plan

_SMALL_NUMBERS = (
    *("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"),
    *("Ten", "Eleven", "Twelve"),
)

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
    others = [client for client in facts.clients if client.data_set.budget.runs > 1]
    if others:
        said.insert(1, ("Together with other runs", [_together(others)]))
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
    return (
        f"For every client, and any two data sets of it of which one has a single "
        f"privacy unit ({_unit_name(plan)}) more than the other, all that the client "
        f"sends in this run of {plan.rounds} registered rounds is (epsilon, delta)-"
        f"indistinguishable to {whom}, with epsilon at most "
        f"{decimal_text(facts.epsilon)} and delta "
        f"{plan.delta}, under the assumptions stated with it."
    )


def _what(facts: RunFacts) -> str:
    plan, published = facts.plan, facts.count(PUBLISHED)
    count = len(plan.clients)
    owners = _SMALL_NUMBERS[count] if count < len(_SMALL_NUMBERS) else f"{count:,}"
    together = "one language model together without pooling their data"
    of = f"{published:,} of {counted(plan.rounds, 'round')}"
    if published and facts.finished:
        did = f"trained {together}; {of} gave a result."
    elif facts.finished:
        did = (
            f"set out to train {together}; {of} gave a result, so that the model is "
            "as it was."
        )
    else:
        did = f"have begun to train {together}; so far {of} gave a result."
    return f"{owners} data owners, the clients, {did}"


def _guess(facts: RunFacts) -> str:
    plan, right = facts.plan, facts.limits.accuracy
    unit = "prompt"
    if plan.unit != PROMPT:
        unit = f"{plan.unit} (all rows with one value of that column)"
    when = "Once every round that is registered has run"
    if facts.finished:
        when = "After this run"
    return (
        f"How much can that give away about any single {unit} in their data? Think of "
        f"an onlooker who knows all of the data but one {_short_unit(plan)}, and sees "
        "what the coordinator saw and all that was published. Asked whether that one "
        "was there, when both answers were equally likely beforehand, a tossed coin is "
        f"right 50% of the time. {when}, the onlooker is right at most "
        f"{at_most(right)} of the time.{_hardly(right)}"
    )


def _hardly(right: float) -> str:
    return " That is hardly a limit." if right >= HARDLY_A_LIMIT else ""


def _many(facts: RunFacts) -> str:
    limits = facts.limits
    few, fewer = (
        (one_in(rate), at_most(limits.found(rate)), f"{rate * 100:g}%")
        for rate in FALSE_ALARMS
    )
    less = (
        " Fewer charges than that were made; since what was seen may have decided so, "
        "all that are registered count here."
        if facts.finished and facts.charged_less
        else ""
    )
    return (
        f"If the onlooker may be wrong about {few[0]} of those that were not there, "
        f"it finds at most {few[1]} of those that were, where blind guessing finds "
        f"{few[2]}; if about {fewer[0]}, at most {fewer[1]}, where guessing finds "
        f"{fewer[2]}. This is what the noise of all registered rounds allows. As a "
        f"pair of numbers it is epsilon {decimal_text(facts.epsilon)} at delta "
        f"{facts.plan.delta}; epsilon {facts.plan.epsilon} was agreed on.{less}"
    )


def _not_covered(plan: Plan) -> str:
    more = "" if plan.is_local else "more owners working together than that; "
    several = (
        "several prompts" if plan.unit == PROMPT else f"several values of {plan.unit}"
    )
    return (
        "Whoever runs a data owner's machine sees that owner's data as before. "
        "`fgrpo run` has the programs of all data owners on one machine, and whoever "
        "owns that machine can see all of the data; no ledger says where a program "
        f"ran. Not covered either: {more}who took "
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


def _together(several: list[ClientFacts]) -> str:
    """What the runs of a shared ledger come to, where there is more than this one."""
    named = listed([f"{client.name} {_other_runs(client)}" for client in several])
    sets = [client.data_set for client in several]
    most = max(sets, key=lambda one: one.budget.promise).budget
    right = max(one.limits.accuracy for one in sets)
    found = [
        f"{at_most(max(one.limits.found(rate) for one in sets))} where it may be "
        f"wrong about {one_in(rate)}"
        for rate in FALSE_ALARMS
    ]
    return (
        f"The same data are in other runs of these ledgers: {named}. For a person all "
        "of them count. However these runs were chosen, all of them together, and any "
        "that their caps still let in, promise epsilon "
        f"{decimal_text(most.promise)} at delta "
        f"{decimal_text(most.lifetime.delta)}, the largest cap that was registered. "
        "By what the filter lets through under that cap the onlooker of all of them "
        f"is right at most {at_most(right)} of the time, and finds at most "
        f"{' and '.join(found)}.{_hardly(right)} The figures above are for this run "
        "by itself."
    )


def _other_runs(client: ClientFacts) -> str:
    """Of a client's ledger: how many runs it has before and after this one."""
    data_set = client.data_set
    parts = [
        f"{count:,} {place}"
        for count, place in ((data_set.earlier, "before"), (data_set.later, "after"))
        if count
    ]
    return f"({' and '.join(parts)})"


def _unit_name(plan: Plan) -> str:
    if plan.unit == PROMPT:
        return "a distinct prompt"
    return f"all rows of one value of {plan.unit}"


def _short_unit(plan: Plan) -> str:
    return "prompt" if plan.unit == PROMPT else plan.unit
