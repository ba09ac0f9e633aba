"""The parts of the page that list: what is not covered, the terms, the evidence."""

from __future__ import annotations

from fgrpo_secure.config import PROMPT
from fgrpo_secure.guarantee import not_protected
from fgrpo_secure.report.claim_terms import assumptions
from fgrpo_secure.report.facts import RunFacts
from fgrpo_secure.report.figures import counted, noise_text
from fgrpo_secure.report.markup import (
    NOTHING,
    Content,
    Html,
    element,
    section,
    table,
    terms,
    with_code,
)
from fgrpo_secure.report.words import sentence
from privacy.renyi import ORDERS
from privacy.wire import rational


def not_covered(facts: RunFacts) -> Html:
    """What the promise leaves out, and what it rests on."""
    items = [text.removeprefix("- ").rstrip(";.") for text in not_protected(facts.plan)]
    return element(
        "section",
        element("h2", "What is not protected, and what the promise rests on"),
        element("p", "Not protected:"),
        element("ul", *(element("li", with_code(text)) for text in items)),
        element("p", "Taken for granted, and not to be seen in any ledger:"),
        element("ul", *(element("li", text) for text in assumptions(facts.plan))),
        element(
            "p",
            "Released besides: the scores above, where there are any; how long the "
            "run took, and the share of each phase where it is shown. Time depends on "
            "the data and has no noise.",
        ),
    )


def mechanism(facts: RunFacts) -> Html:
    """The terms, for an expert."""
    plan = facts.plan
    each = "each release" if plan.is_local else "each sum"
    rates = sorted({client.sampling_rate for client in plan.clients})
    rows: list[tuple[str, Content]] = [
        ("unit", _unit(facts)),
        ("neighbours", "one unit more or less at one client"),
        (
            "trust",
            f"{plan.trust}; {counted(len(plan.clients), 'client')}, at least "
            f"{plan.min_survivors} in every sum, up to {plan.colluders} may collude; "
            f"threshold {plan.threshold}; "
            f"{counted(plan.honest_shares, 'honest share')} of noise counted on",
        ),
        (
            "draw",
            f"Poisson, rate {', '.join(map(rational, rates))}; never cut; "
            f"{counted(plan.local_steps, 'draw')} a round, "
            f"{counted(plan.inner_steps, 'release')} each",
        ),
        (
            "sensitivity",
            f"clip norm {rational(plan.clip_norm)}, {plan.norm_bound:,} grid steps, "
            f"checked on the integers; {plan.dimension:,} numbers modulo "
            f"2^{plan.modulus_bits}{', rotated at random' if plan.rotation else ''}",
        ),
        ("noise", _noise(facts, each)),
        ("statistic", _statistic(facts)),
        ("weights", f"rule {plan.weighting.rule}; never above 1"),
        ("rounds", f"{plan.rounds:,} registered; each is charged when it begins"),
        (
            "accountants",
            "privacy loss distribution (dp-accounting, add or remove), the claim; "
            f"Renyi divergence at integer orders {ORDERS[0]} to {ORDERS[-1]}, the "
            "second opinion",
        ),
    ]
    return element(
        "section",
        element("h2", "The mechanism"),
        element("p", sentence(facts)),
        terms(rows),
    )


def evidence(facts: RunFacts) -> Html:
    """What was checked, and what to compare."""
    records = facts.server_records + sum(client.records for client in facts.clients)
    keys: list[tuple[Content, ...]] = [
        ("server", _code(facts.server_fingerprint), _code(facts.server_head), NOTHING),
        *(
            (
                client.name,
                _code(client.fingerprint),
                _code(client.head),
                f"{client.cosigned:,}" if client.cosigned else "nothing",
            )
            for client in facts.clients
        ),
    ]
    return element(
        "section",
        element("h2", "How this was checked"),
        element(
            "p",
            element("span", "The ledgers verify. ", class_="ok"),
            f"{counted(len(keys), 'ledger')} with {counted(records, 'record')}: every "
            "line is signed by its party and follows the one before; every epsilon "
            "was computed again; no charge is above what was agreed on; and the "
            "clients' ledgers and the server's tell the same story of every round.",
        ),
        element(
            "p",
            "A folder that was forged as a whole, keys included, verifies too. "
            "Compare these fingerprints with the parties over another channel.",
        ),
        element("p", _shared_log(facts)),
        table(
            "Keys, ends of ledgers, and lines of the server's that each vouches for",
            ("party", "key", "last line", "cosigned"),
            keys,
            numbers=(3,),
        ),
        terms(
            [
                ("plan", _code(facts.plan.digest)),
                (
                    "root of the log",
                    _code(facts.log_root) if facts.log_root else "none",
                ),
                ("run", _code(facts.handle)),
                ("recipe", _code(facts.plan.recipe)),
                ("software, as recorded", ", ".join(facts.software)),
                ("code commit", "not recorded"),
            ]
        ),
    )


def not_here(facts: RunFacts) -> Html:
    """What a folder may hold and this one does not."""
    if not facts.missing:
        return Html("")
    return section(
        "What is not in this folder",
        element(
            "p",
            "Nothing of it is needed for the promise. What it would show is left out; "
            "that does not make it zero.",
        ),
        element("ul", *(element("li", said) for said in facts.missing)),
    )


def _shared_log(facts: RunFacts) -> str:
    """How far the clients have checked the server's ledger while the run went on."""
    if not facts.log_size:
        return "There is no checkpoint of the server's ledger that clients cosigned."
    whole = sum(client.cosigned >= facts.log_size for client in facts.clients)
    return (
        f"The server's ledger is a log that clients check while the run goes on. Its "
        f"last checkpoint is of {counted(facts.log_size, 'line')}, and "
        f"{whole} of {counted(len(facts.clients), 'client')} cosigned it. Two "
        "histories shown to two clients would show as two roots."
    )


def _unit(facts: RunFacts) -> str:
    plan = facts.plan
    if plan.unit == PROMPT:
        return "prompt: a distinct prompt with all its completions"
    return (
        f"{plan.unit}: all rows with one value of it, of which at most "
        f"{counted(plan.max_prompts_per_unit, 'prompt')} count"
    )


def _noise(facts: RunFacts, each: str) -> str:
    plan = facts.plan
    if not plan.promises_privacy:
        return "none"
    return (
        f"discrete Gaussian of variance {plan.noise_variance:,} grid steps squared in "
        f"{each}, multiplier {noise_text(plan.noise_multiplier)}; variance "
        f"{plan.noise_share_variance:,} from each client"
    )


def _statistic(facts: RunFacts) -> str:
    plan = facts.plan
    if not plan.weighting.needs_statistic:
        return "none"
    if not plan.promises_privacy:
        return "mean reward of each draw, without noise"
    multiplier = plan.statistic_variance**0.5 / plan.statistic_norm_bound
    return (
        f"mean reward of each draw, multiplier {noise_text(multiplier)}, seen by its "
        "own client alone and paid for in the same event"
    )


def _code(text: str) -> Html:
    return element("span", text, class_="code digest")
