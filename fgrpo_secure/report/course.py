"""The parts of the page on how the run went: rounds, scores, time, audits."""

from __future__ import annotations

from collections.abc import Sequence

from fgrpo_secure.report.drawing import beside, side_by_side
from fgrpo_secure.report.facts import PUBLISHED, RoundFacts, RunFacts
from fgrpo_secure.report.figures import counted, epsilon_text, listed
from fgrpo_secure.report.markup import (
    NOTHING,
    Content,
    Html,
    element,
    joined,
    paragraphs,
    section,
    table,
)
from fgrpo_secure.report.noted_plots import (
    LEAST_TIMED,
    bytes_plot,
    reward_plot,
    seconds_plot,
    timed_rounds,
    weights_plot,
)
from fgrpo_secure.report.plots import noise_plot, survivors_plot
from fgrpo_secure.report.reasons import in_words
from privacy.ledger import Reason

# Audits of many tests are told by how many hold.
_MOST_FINDINGS = 4


def rounds(facts: RunFacts) -> Html:
    """How many gave a sum, and what noise was in it."""
    aborted = facts.count("aborted")
    text = f"{counted(facts.count('published'), 'round')} gave a sum" + (
        f", {aborted:,} did not; what was charged for them stays charged."
        if aborted
        else "."
    )
    return section(
        "The rounds",
        element("p", text),
        side_by_side([survivors_plot(facts), noise_plot(facts), weights_plot(facts)]),
    )


def learnt(facts: RunFacts) -> Html:
    """Scores before and after, of public sets."""
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
        return section(
            "What was learnt",
            element(
                "p",
                "No score is shown: summary.json has none. No client declared a "
                "public evaluation set, or the run has not ended, or the scores are "
                "not in this folder.",
            ),
        )
    shown = {row[0] for row in rows}
    rest = [client.name for client in facts.clients if client.name not in shown]
    without = f" It has none of {listed(rest)}." if rest else ""
    return section(
        "What was learnt",
        element(
            "p",
            "Scores without noise, of sets that their owners declared public. They "
            f"stand in summary.json, where no signature vouches for them.{without}",
        ),
        beside(
            table(
                "Mean held-out reward, rescaled to 0 to 1",
                ("client", "before", "after", "change"),
                rows,
                numbers=(1, 2, 3),
            ),
            reward_plot(facts),
        ),
    )


def took(facts: RunFacts) -> Html:
    """Bytes and time, as the coordinator counted them."""
    text = [
        f"Each client sends one masked vector of {facts.plan.bytes_up:,} bytes a "
        "round, whatever it has drawn; the rest is the adapter, keys, shares and "
        "signatures."
    ]
    if facts.seconds is not None:
        text.append(_seconds(facts, facts.seconds))
    drawn = [bytes_plot(facts), seconds_plot(facts)]
    if facts.rounds and not facts.noted:
        text.append("The coordinator's notes of bytes and time are not in this folder.")
    elif len(timed_rounds(facts)) == 1 < LEAST_TIMED:
        text.append(
            "The time of one round alone is noted. It depends on what was drawn, and "
            "its share by phase is not shown."
        )
    return section("Where time and bytes went", paragraphs(text), side_by_side(drawn))


def _seconds(facts: RunFacts, seconds: float) -> str:
    """How long it took, and what that is of."""
    if not facts.resumed:
        return f"The run took {seconds:,.0f} seconds, loading and scoring included."
    times = "once" if facts.resumed == 1 else f"{facts.resumed:,} times"
    return (
        f"The run was interrupted and taken up again {times}. Its last process took "
        f"{seconds:,.0f} seconds, loading and scoring included; the time of those "
        "before it is not in that."
    )


def audits(facts: RunFacts) -> Html:
    """Results of audits, of the release and of the folder."""
    if not facts.audits:
        return section(
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
    return section(
        "Audits",
        element("p", _about_audits(facts)),
        table("Results", ("audit", "result", "what was found"), rows),
    )


def _about_audits(facts: RunFacts) -> str:
    """Where those results come from that are there and could be read."""
    read = [audit for audit in facts.audits if audit.findings]
    said = ["Attacks on the claim, with made-up data."]
    if any(audit.released for audit in read):
        said.append(
            "Those of the release found nothing against this program where they looked."
        )
    if not all(audit.released for audit in facts.audits):
        said.append("Those of the folder are from whoever put them there.")
    said.append("An audit can refute a claim, and never prove one.")
    return " ".join(said)


def each_round(facts: RunFacts) -> Html:
    """A line for each attempt."""
    heads, rows, numbers = _round_rows(facts)
    caption = "By the server's ledger, which the clients' ledgers bear out"
    if "weights" in heads:
        caption += "; weights and bytes as the coordinator noted them, unsigned"
    return section(
        "Every round",
        table(
            caption,
            heads,
            rows,
            numbers=numbers,
        ),
    )


def _round_rows(
    facts: RunFacts,
) -> tuple[Sequence[str], list[tuple[Content, ...]], Sequence[int]]:
    """Heads, rows and columns of figures of the table of rounds."""
    noted = any(one.note is not None for one in facts.rounds)
    heads = ["round", "result", "in sum", "charged", "epsilon charged"]
    if noted:
        heads += ["weights", "bytes down", "bytes up"]
    heads.append("missing")
    rows: list[tuple[Content, ...]] = []
    for one in facts.rounds:
        place = f"{one.number}" if one.attempt == 1 else f"{one.number}.{one.attempt}"
        row: list[Content] = [
            place,
            _result(one),
            f"{len(one.survivors)} of {len(facts.plan.clients)}",
            f"{one.charged}",
            epsilon_text(one.epsilon),
        ]
        if noted:
            row += _noted(one)
        row.append(", ".join(_absent(facts, one)) or NOTHING)
        rows.append(tuple(row))
    last = len(heads) - 1
    return heads, rows, [0, *range(2, last)]


def _noted(one: RoundFacts) -> list[Content]:
    if one.note is None:
        return [NOTHING, NOTHING, NOTHING]
    weights = f"{one.note.weights:.3f}" if one.note.weights else NOTHING
    down, up = (sum(table.values()) for table in (one.note.down, one.note.up))
    return [weights, f"{down:,.0f}", f"{up:,.0f}"]


def _absent(facts: RunFacts, one: RoundFacts) -> list[str]:
    """Clients of the plan that are not in the sum, where there is one."""
    if one.status != PUBLISHED:
        return list(one.dropouts)
    return [c.name for c in facts.clients if c.name not in one.survivors]


def _result(one: RoundFacts) -> Content:
    if one.status == PUBLISHED:
        return PUBLISHED
    reason = f": {in_words(Reason(one.reason))}" if one.reason else ""
    reason += "; other cohorts' sums moved the adapter" if one.moved else ""
    return element("span", f"{one.status}{reason}", class_="no")
