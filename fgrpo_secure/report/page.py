"""The report as one HTML page that needs nothing else.

It has no script, loads nothing and links to nothing outside of itself, and a policy in
its head tells the browser to hold it to that.
"""

from __future__ import annotations

from importlib import resources

from fgrpo_secure import __version__
from fgrpo_secure.report.course import audits, each_round, learnt, rounds, took
from fgrpo_secure.report.facts import PUBLISHED, Refuted, RunFacts
from fgrpo_secure.report.figures import epsilon_text
from fgrpo_secure.report.markup import (
    Html,
    element,
    joined,
    paragraphs,
    section,
    trusted,
)
from fgrpo_secure.report.results import attacker, declined, spend
from fgrpo_secure.report.sections import evidence, mechanism, not_covered, not_here
from fgrpo_secure.report.words import promise

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)

# More lines than this say nothing that the first ones do not.
_MOST_PROBLEMS = 60


def report_page(found: RunFacts | Refuted, called: str) -> bytes:
    """The file `report.html`.

    Args:
        found: what the folder proves, or what is wrong with it.
        called: the name of the run's folder.

    Guarantee:
        Of a folder that does not verify it claims nothing.
    """
    if isinstance(found, Refuted):
        title, body = "Nothing is claimed", _refuted(found, called)
    else:
        title, body = "Privacy report", _verified(found, called)
    style = (resources.files(__package__) / "style.css").read_text("utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        trusted(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}" />'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title}: {called}"),
        element("style", trusted(style)),
    )
    page = element("html", head, element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{page.text}\n".encode()


def _refuted(found: Refuted, called: str) -> Html:
    """A page with one thing to say."""
    shown = found.problems[:_MOST_PROBLEMS]
    more = len(found.problems) - len(shown)
    rest = [element("p", f"And {more:,} more.")] if more else []
    advice = [
        "Do not rely on this run, on its adapter, or on any earlier report of it, "
        "before somebody has found out why. `fgrpo ledger verify` says the same, and "
        "docs/ledger.md what is checked."
    ]
    if found.unfinished:
        advice.append(
            "It would verify as a run that has not ended yet. If it is one, "
            "`fgrpo report --unfinished` says what it has registered; that lines were "
            "cut off its end cannot be told apart from it."
        )
    return joined(
        [
            element(
                "header",
                element("h1", "Nothing is claimed about this run"),
                element("p", "Folder ", element("span", called, class_="code")),
            ),
            element(
                "section",
                element("h2", "This folder does not verify"),
                element("p", "What is wrong, and where:"),
                element("ul", *(element("li", problem) for problem in shown)),
                *rest,
                paragraphs(advice),
                class_="box bad",
                role="alert",
            ),
            *_declined_beside(found),
            _footer(),
        ]
    )


def _declined_beside(found: Refuted) -> list[Html]:
    """Why a client said no, which may be why there is no run that verifies."""
    tables = declined(found.declined)
    if not tables:
        return []
    said = (
        "By those ledgers that verify by themselves, whatever became of the others. It "
        "says nothing of the run."
    )
    return [section("What was declined", element("p", said), *tables)]


def _verified(facts: RunFacts, called: str) -> Html:
    plan = facts.plan
    sections = [
        element(
            "header",
            element("h1", "Privacy report"),
            element(
                "p",
                "Run ",
                element("span", called, class_="code"),
                ", plan ",
                element("span", plan.digest[:16], class_="code"),
                ". ",
                element("span", "All its ledgers verify.", class_="ok"),
            ),
        ),
        *_warnings(facts),
        element(
            "section",
            *(
                joined([element("h2", title), paragraphs(texts)])
                for title, texts in promise(facts)
            ),
            class_="lead",
        ),
        _at_a_glance(facts),
        attacker(facts),
        spend(facts),
        rounds(facts),
        learnt(facts),
        took(facts),
        audits(facts),
        not_covered(facts),
        mechanism(facts),
        evidence(facts),
        not_here(facts),
        each_round(facts),
        _footer(),
    ]
    return joined(sections)


def _warnings(facts: RunFacts) -> list[Html]:
    found = []
    if not facts.plan.promises_privacy:
        found.append(
            element(
                "section",
                element("h2", "No privacy: epsilon is infinity"),
                element("p", "No noise was added, and nothing is promised."),
                class_="box bad",
                role="alert",
            )
        )
    if facts.cohorts > 1:
        found.append(
            element(
                "section",
                element("h2", f"One of the {facts.cohorts} cohorts of a run"),
                element(
                    "p",
                    "This page is about the clients of this cohort, and all of the "
                    "run's ledgers verify, those of the other cohorts too. Each cohort "
                    "has a sum with all of the noise by itself; the adapter was moved "
                    "by the sums of all.",
                ),
                class_="box",
            )
        )
    if not facts.finished:
        found.append(
            element(
                "section",
                element("h2", "This run has not ended"),
                element(
                    "p",
                    "What is said of an onlooker is for all rounds that are "
                    "registered; what is said to be charged is what is recorded so "
                    "far. "
                    "Lines cut off the end of a ledger cannot be told apart from "
                    "lines that were not written yet.",
                ),
                class_="box warn",
            )
        )
    return found


def _at_a_glance(facts: RunFacts) -> Html:
    plan = facts.plan
    spent = "epsilon charged" if facts.finished else "epsilon charged so far"
    rows = [
        ("epsilon, the claim", epsilon_text(facts.epsilon)),
        (spent, epsilon_text(facts.spent)),
        ("delta", plan.delta),
        ("rounds with a result", f"{facts.count(PUBLISHED)} of {plan.rounds}"),
    ]
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value))
            for name, value in rows
        ),
        class_="figures",
    )


def _footer() -> Html:
    return element(
        "footer",
        element(
            "p",
            f"Written by fgrpo-secure {__version__} from the folder alone. The same "
            "folder gives the same page to the byte. claim.json beside it says the "
            "same for programs.",
        ),
    )
