"""The report as one HTML page that needs nothing else.

It has no script, loads nothing and links to nothing outside of itself, and a policy in
its head tells the browser to hold it to that.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources

from fgrpo_secure import __version__
from fgrpo_secure.report.facts import Refuted, RunFacts
from fgrpo_secure.report.markup import (
    Content,
    Html,
    element,
    joined,
    paragraphs,
    table,
    trusted,
)
from fgrpo_secure.report.plots import (
    Plot,
    attacker_plot,
    bytes_plot,
    epsilon_plot,
    noise_plot,
    reward_plot,
    seconds_plot,
    survivors_plot,
    weights_plot,
)
from fgrpo_secure.report.sections import (
    evidence,
    mechanism,
    not_covered,
    round_rows,
)
from fgrpo_secure.report.words import (
    at_most,
    counted,
    epsilon_text,
    guesses,
    promise,
)
from privacy.attacker import Tradeoff
from privacy.ledger import claimed_epsilon

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)

# Audits of many tests are told by how many hold.
_MOST_FINDINGS = 4

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
            _footer(),
        ]
    )


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
        _attacker(facts),
        _spend(facts),
        _rounds(facts),
        _learnt(facts),
        _took(facts),
        _audits(facts),
        not_covered(facts),
        mechanism(facts),
        evidence(facts),
        _each_round(facts),
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
                    "registered; what is said to be spent is what is recorded so far. "
                    "Lines cut off the end of a ledger cannot be told apart from "
                    "lines that were not written yet.",
                ),
                class_="box warn",
            )
        )
    return found


def _at_a_glance(facts: RunFacts) -> Html:
    plan = facts.plan
    spent = "epsilon, the claim" if facts.finished else "epsilon so far"
    rows = [
        (spent, epsilon_text(facts.epsilon)),
        ("delta", plan.delta),
        ("epsilon agreed on", plan.epsilon),
        ("rounds with a result", f"{facts.count('published')} of {plan.rounds}"),
    ]
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value))
            for name, value in rows
        ),
        class_="figures",
    )


def _section(title: str, *content: Content) -> Html:
    return element("section", element("h2", title), *content)


def _plots(plots: Iterable[Plot | None]) -> Html:
    drawn = [plot.figure() for plot in plots if plot is not None]
    return element("div", *drawn, class_="plots") if drawn else Html("")


def _beside(content: Html, plot: Plot | None) -> Html:
    """Words or a table with a plot at their side, where the page is wide enough."""
    if plot is None:
        return content
    return element("div", element("div", content), plot.figure(), class_="plots")


def _attacker(facts: RunFacts) -> Html:
    said = [
        "The most that anybody achieves who guesses, from what the coordinator saw and "
        "all that was published, whether one unit was in a client's data. It is "
        "computed from the privacy loss distribution of the charges in the ledgers, "
        "for the most exposed client, and holds for either answer. A real attack is "
        "usually worse."
    ]
    if not facts.plan.promises_privacy:
        said = ["Without noise nothing limits an attacker."]
    rows: list[tuple[Content, ...]] = [*guesses(facts.limits)]
    return _section(
        "What an attacker could achieve",
        paragraphs(said),
        _beside(
            table(
                "An attacker who knows all the data but one unit",
                ("", "by guessing", "at most"),
                rows,
                numbers=(1, 2),
            ),
            attacker_plot(facts.limits) if facts.plan.promises_privacy else None,
        ),
    )


def _spend(facts: RunFacts) -> Html:
    several = any(client.budget.runs > 1 for client in facts.clients)
    rows = [
        (
            client.name,
            f"{client.terms.units:,}",
            f"{client.spend.charges:,}",
            epsilon_text(client.epsilon),
            epsilon_text(client.spend.epsilon_rdp),
            _accuracy(client.limits),
            epsilon_text(claimed_epsilon(client.budget.lifetime)),
            epsilon_text(client.budget.cap),
            f"{client.budget.runs:,}",
        )
        for client in facts.clients
    ]
    heads = (
        "client",
        "units",
        "charges",
        "epsilon",
        "by RDP",
        "guess right",
        "data set's epsilon",
        "its cap",
        "its runs",
    )
    text = [
        "Each client's own, recomputed from its ledger by two accountants: the claim "
        "by privacy loss distribution, and a looser second opinion by Renyi "
        "divergence. The claim of the run is the largest. The last three columns are "
        "of the client's data set, over all runs that its ledger holds."
    ]
    if several:
        text.append(
            "Over several runs the Renyi filter counts, and the promise is the largest "
            "cap that any run of the ledger registered."
        )
    refused = [
        (client.name, "the plan" if number == 0 else f"round {number}", reason)
        for client in facts.clients
        for number, reason in client.refusals
    ]
    parts: list[Content] = [
        _beside(paragraphs(text), epsilon_plot(facts)),
        table("Epsilon by client", heads, rows, numbers=range(1, 9)),
    ]
    if refused:
        parts.append(
            table(
                "What clients declined; nothing left them for it",
                ("client", "what", "reason"),
                refused,
            )
        )
    return _section("What was spent", *parts)


def _accuracy(limits: Tradeoff) -> str:
    return at_most(limits.accuracy)


def _rounds(facts: RunFacts) -> Html:
    aborted = facts.count("aborted")
    text = f"{counted(facts.count('published'), 'round')} gave a sum" + (
        f", {aborted:,} did not; what was charged for them stays charged."
        if aborted
        else "."
    )
    return _section(
        "The rounds",
        element("p", text),
        _plots([survivors_plot(facts), noise_plot(facts), weights_plot(facts)]),
    )


def _learnt(facts: RunFacts) -> Html:
    rows = [
        (
            client.name,
            f"{client.reward_before:.3f}",
            f"{client.reward_after:.3f}",
            f"{client.reward_after - client.reward_before:+.3f}",
        )
        for client in facts.clients
        if client.reward_before is not None and client.reward_after is not None
    ]
    if not rows:
        return _section(
            "What was learnt",
            element(
                "p",
                "No client declared a public evaluation set, or the run has "
                "not ended: no score was published.",
            ),
        )
    return _section(
        "What was learnt",
        element(
            "p",
            "Scores without noise, of sets that their owners declared public. They "
            "stand in summary.json, where no signature vouches for them.",
        ),
        _beside(
            table(
                "Mean held-out reward, rescaled to 0 to 1",
                ("client", "before", "after", "change"),
                rows,
                numbers=(1, 2, 3),
            ),
            reward_plot(facts),
        ),
    )


def _took(facts: RunFacts) -> Html:
    text = [
        f"Each client sends one masked vector of {facts.plan.bytes_up:,} bytes a "
        "round, whatever it has drawn; the rest is the adapter, keys, shares and "
        "signatures."
    ]
    if facts.seconds is not None:
        text.append(
            f"The run took {facts.seconds:,.0f} seconds, loading and scoring included."
        )
    plots = [bytes_plot(facts), seconds_plot(facts)]
    if plots == [None, None]:
        text.append("The coordinator's notes of bytes and time are not in this folder.")
    return _section("Where time and bytes went", paragraphs(text), _plots(plots))


def _audits(facts: RunFacts) -> Html:
    if not facts.audits:
        return _section(
            "Audits", element("p", "No result of an audit is in this folder.")
        )
    rows: list[tuple[Content, ...]] = []
    for audit in facts.audits:
        held = f"{audit.held:,} of {len(audit.findings):,} hold"
        shown = [f"{one.name}: {one.value}" for one in audit.findings]
        if len(shown) > _MOST_FINDINGS:
            shown = []
        said = [*shown, audit.method, audit.subject]
        rows.append(
            (
                joined(
                    [
                        element("div", audit.name),
                        element("div", audit.source, class_="code whole"),
                    ]
                ),
                element("span", held, class_="ok") if audit.findings else "not read",
                joined(element("div", text) for text in said if text),
            )
        )
    return _section(
        "Audits",
        element(
            "p",
            "Attacks on the claim, with made-up data. Those of the release found "
            "nothing against this program where they looked; those of the folder are "
            "from whoever put them there. An audit can refute a claim, and never "
            "prove one.",
        ),
        table("Results", ("audit", "result", "what was found"), rows),
    )


def _each_round(facts: RunFacts) -> Html:
    heads, rows, numbers = round_rows(facts)
    caption = "By the server's ledger, which the clients' ledgers bear out"
    if "weights" in heads:
        caption += "; weights and bytes as the coordinator noted them, unsigned"
    return _section(
        "Every round",
        table(
            caption,
            heads,
            rows,
            numbers=numbers,
        ),
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
