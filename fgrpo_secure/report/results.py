"""The parts of the page on what was promised and spent, and what clients declined."""

from __future__ import annotations

from collections.abc import Iterable

from fgrpo_secure.report.drawing import beside
from fgrpo_secure.report.facts import ClientFacts, Declination, RunFacts
from fgrpo_secure.report.figures import at_most, epsilon_text, guesses
from fgrpo_secure.report.markup import (
    Content,
    Html,
    element,
    paragraphs,
    section,
    table,
)
from fgrpo_secure.report.plots import attacker_plot, epsilon_plot
from fgrpo_secure.report.reasons import declined_what, in_words
from privacy.ledger import claimed_epsilon, decimal_text


def attacker(facts: RunFacts) -> Html:
    """What is left to somebody who guesses."""
    said = [
        "The most that anybody achieves who guesses, from what the coordinator saw and "
        "all that was published, whether one unit was in a client's data. It is "
        "computed from the privacy loss distribution of all that is registered, for "
        "the most exposed client, and holds for either answer. A real attack is "
        "usually worse."
    ]
    if not facts.plan.promises_privacy:
        said = ["Without noise nothing limits an attacker."]
    rows: list[tuple[Content, ...]] = [*guesses(facts.limits)]
    return section(
        "What an attacker could achieve",
        paragraphs(said),
        beside(
            table(
                "An attacker who knows all the data but one unit",
                ("", "by guessing", "at most"),
                rows,
                numbers=(1, 2),
            ),
            attacker_plot(facts.limits) if facts.plan.promises_privacy else None,
        ),
    )


def spend(facts: RunFacts) -> Html:
    """Epsilon by client, and over all runs of each data set."""
    rows = [_spend_row(client) for client in facts.clients]
    heads = (
        "client",
        "units",
        "charges",
        "epsilon charged",
        "epsilon",
        "by RDP",
        "guess right",
    )
    text = [
        "Each client's own, by two accountants: the claim by privacy loss "
        "distribution, and a looser second opinion by Renyi divergence. What was "
        "charged is recomputed from its ledger; what is promised is of all that the "
        "plan registers, since what was seen may have decided that less was charged. "
        "The claim of the run is the largest.",
    ]
    parts: list[Content] = [
        beside(paragraphs(text), epsilon_plot(facts)),
        table("Epsilon by client", heads, rows, numbers=range(1, 7)),
        element(
            "p",
            "And of each client's data set, over all runs that its ledger holds, at "
            "the delta of its cap. The promise of one run is that run's own. Over "
            "several the Renyi filter counts, the promise is the largest cap that any "
            "of them registered, and the limit is what the filter lets through under "
            "it, however the runs were chosen.",
        ),
        table(
            "Epsilon by data set",
            (
                "client",
                "runs",
                "charges",
                "at delta",
                "counted",
                "its cap",
                "promise",
                "guess right",
            ),
            [_data_set_row(client) for client in facts.clients],
            numbers=range(1, 8),
        ),
    ]
    said = [(client.name, one) for client in facts.clients for one in client.declined]
    return section("What was spent", *parts, *declined(said))


def _spend_row(client: ClientFacts) -> tuple[str, ...]:
    return (
        client.name,
        f"{client.terms.units:,}",
        f"{client.spend.charges:,} of {client.registered.charges:,}",
        epsilon_text(client.spent),
        epsilon_text(client.epsilon),
        epsilon_text(client.registered.epsilon_rdp),
        at_most(client.limits.accuracy),
    )


def _data_set_row(client: ClientFacts) -> tuple[str, ...]:
    data_set = client.data_set
    budget = data_set.budget
    several = budget.runs > 1
    return (
        client.name,
        f"{budget.runs:,}",
        f"{budget.lifetime.charges:,}",
        decimal_text(budget.lifetime.delta),
        epsilon_text(claimed_epsilon(budget.lifetime)),
        epsilon_text(budget.cap),
        epsilon_text(budget.promise) if several else "its run's",
        at_most(data_set.limits.accuracy),
    )


def declined(said: Iterable[tuple[str, Declination]]) -> list[Html]:
    """What clients said no to, with the reason in words; nothing where none did."""
    rows: list[tuple[Content, ...]] = [
        (name, declined_what(one), in_words(one.reason), _code(one.reason.value))
        for name, one in said
    ]
    if not rows:
        return []
    heads = ("client", "what", "reason", "as recorded")
    return [table("What clients declined; nothing left them for it", heads, rows)]


def _code(text: str) -> Html:
    return element("span", text, class_="code")
