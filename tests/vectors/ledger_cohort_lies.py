"""Lies that every cohort's ledgers bear, and that those of the others contradict."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy

from privacy.plan import SERVER
from tests.privacy.ledger.synthetic import digest, make_key
from tests.vectors import ledger_cohorts
from tests.vectors.ledger_cohorts import NAMES, summary_of
from tests.vectors.ledger_lies import LIES, OTHER, Lie, damage, lie
from tests.vectors.ledger_story import Files, Record, Story

FIRST, SECOND, THIRD = (f"cohort-{place:04d}" for place in (1, 2, 3))
SUMMARY = "summary.json"
STARTS = {
    n: digest("adapter", word).hex() for n, word in ledger_cohorts.ADAPTERS.items()
}


class Stories:
    """The folder of a run with several cohorts, whose parties may lie.

    Args:
        files: of one that verifies.

    Attributes:
        cohorts: a story for each, by the name of its folder.
        files: what lies beside them.
    """

    def __init__(self, files: Files) -> None:
        parts: dict[str, Files] = {}
        self.files: Files = {}
        for name, data in files.items():
            folder, _, rest = name.partition("/")
            if rest:
                parts.setdefault(folder, {})[rest] = data
            else:
                self.files[name] = data
        self.cohorts = {name: Story(part) for name, part in parts.items()}

    def written(self) -> Files:
        """The folder, with summaries of what the ledgers then say."""
        parts = {name: story.written() for name, story in self.cohorts.items()}
        files = dict(self.files)
        if SUMMARY in files:
            told = {name: json.loads(part[SUMMARY]) for name, part in parts.items()}
            servers = [story.records[SERVER] for story in self.cohorts.values()]
            steps = {
                record["round"]
                for records in servers
                for record in records
                if record["kind"] in {"published", "moved"}
            }
            begun = {r["round"] for own in servers for r in own if "round" in r}
            summary = summary_of(told, completed=len(steps), aborted=len(begun - steps))
            files[SUMMARY] = json.dumps(summary, indent=2).encode()
        return files | {
            f"{folder}/{name}": data
            for folder, part in parts.items()
            for name, data in part.items()
        }


def lie_together(
    rule: int, run: str = "cohorts"
) -> Callable[[Callable[[Stories], None]], object]:
    """A change of records of any cohort, signed by whose ledger it is."""

    def register(change: Callable[[Stories], None]) -> object:
        def tell(files: Files) -> Files:
            stories = Stories(files)
            change(stories)
            return stories.written()

        what = " ".join(change.__doc__.split())
        LIES[change.__name__] = Lie(run, rule, what, tell)
        return change

    return register


def moved_after(story: Story, aborted: Record, before: str, after: str) -> Record:
    """The server of one cohort says that others moved the adapter."""
    names = ("v", "party", "role", "run", "round", "attempt")
    record = {name: aborted[name] for name in names}
    record |= {"kind": "moved", "adapter_before": before, "adapter_after": after}
    place = next(i for i, r in enumerate(story.records[SERVER]) if r is aborted)
    story.records[SERVER].insert(place + 1, record)
    if story.records[SERVER][-1]["kind"] == "closed":
        story.mend(SERVER)
    return record


def starts_from(story: Story, number: int, adapter: str) -> None:
    """A round of one cohort was offered, and joined, on this adapter."""
    for record in (*story.every("round_opened"), *story.every("joined")):
        if record["round"] == number:
            record["adapter_digest"] = adapter


def leads_to(story: Story, adapter: str) -> None:
    """The first round of one cohort published this adapter, and told of it."""
    story.of(SERVER, "published")["adapter_after"] = adapter
    for outcome in story.every("outcome"):
        if outcome["status"] == "published":
            outcome["adapter_digest"] = adapter


# --- Rules 2, 4 and 8: what one ledger says of `moved` --------------------------------


@lie_together(2)
def moved_while_a_round_is_under_way(told: Stories) -> None:
    """A server says that others moved the adapter before its own round has ended."""
    records = told.cohorts[FIRST].records[SERVER]
    place = next(i for i, r in enumerate(records) if r["kind"] == "moved")
    records[place - 1], records[place] = records[place], records[place - 1]


@lie_together(4)
def moved_in_another_round(told: Stories) -> None:
    """A server says of the first round what happened in the second."""
    told.cohorts[FIRST].of(SERVER, "moved")["round"] = 1


@lie_together(4)
def moved_adapter_is_not_offered(told: Stories) -> None:
    """After the adapter was moved, a cohort is offered the one from before."""
    starts_from(told.cohorts[FIRST], 3, STARTS[2])


@lie_together(8)
def moved_from_another_adapter(told: Stories) -> None:
    """The adapter is moved from one that the round did not start from."""
    told.cohorts[FIRST].of(SERVER, "moved")["adapter_before"] = OTHER


@lie_together(8)
def moved_after_a_sum(told: Stories) -> None:
    """A sum that moves nothing, and then the others' move in the same round."""
    story = told.cohorts[FIRST]
    published = story.of(SERVER, "published")
    leads_to(story, STARTS[1])
    moved_after(story, published, STARTS[1], STARTS[2])


@lie_together(8)
def moved_twice(told: Stories) -> None:
    """A move to where the adapter was, and then another in the same round."""
    story = told.cohorts[FIRST]
    moved = story.of(SERVER, "moved")
    moved_after(story, moved, STARTS[2], STARTS[3])
    moved["adapter_after"] = STARTS[2]


# --- Rule 17: the folders -------------------------------------------------------------


def without(files: Files, *folders: str) -> Files:
    """The folder without some of its cohorts."""
    return {n: data for n, data in files.items() if n.partition("/")[0] not in folders}


@damage("cohorts", 17)
def cohorts_all_but_one_gone(files: Files) -> Files:
    """Only one cohort of the run is left, and lies in a cohort's folder."""
    return without(files, SECOND, THIRD)


@damage("cohorts", 17)
def cohort_in_between_gone(files: Files) -> Files:
    """The folder of the second cohort is gone."""
    return without(files, SECOND)


@damage("cohorts", 17)
def cohort_under_another_name(files: Files) -> Files:
    """A cohort's folder is not called by its number."""
    own = {n: data for n, data in files.items() if n.startswith(f"{THIRD}/")}
    renamed = {n.replace(THIRD, "cohort-3"): data for n, data in own.items()}
    return without(files, THIRD) | renamed


@damage("cohorts", 17)
def ledger_beside_the_cohorts(files: Files) -> Files:
    """A ledger lies in the run's folder, where no rule would look at it."""
    return files | {"ledger/server.jsonl": files[f"{FIRST}/ledger/server.jsonl"]}


@lie_together(13)
def cohort_in_which_a_charge_is_left_out(told: Stories) -> None:
    """A client of one cohort leaves a published round out of its ledger."""
    kinds = ("joined", "intent", "commit", "outcome")
    told.cohorts[SECOND].leave_out("eta", *kinds, round=1)


# --- Rule 18: terms and parties -------------------------------------------------------


@lie_together(18)
def cohort_with_another_recipe(told: Stories) -> None:
    """All parties of one cohort agree on another recipe than the other cohorts do."""
    told.cohorts[SECOND].change_plan(recipe="cd" * 32)


@lie_together(18)
def cohort_with_a_term_more(told: Stories) -> None:
    """All parties of one cohort agree on a term that the others do not have."""
    told.cohorts[THIRD].change_plan(bonus=1)


def with_cohorts(**how: object) -> Files:
    """The same run with other parties."""
    return ledger_cohorts.write(ledger_cohorts.cohorts, **how)


@damage("cohorts", 18)
def client_in_two_cohorts(_: Files) -> Files:
    """A name, with another key, is in the second cohort too."""
    names = (NAMES[0], ("alpha", *NAMES[1][1:]), NAMES[2])
    return with_cohorts(names=names, keys={1: {"alpha": make_key("alpha", "'s other")}})


@damage("cohorts", 18)
def client_in_two_cohorts_under_two_names(_: Files) -> Files:
    """A key of the first cohort is in the third under another name."""
    return with_cohorts(keys={2: {"iota": make_key("alpha")}})


@damage("cohorts", 18)
def servers_of_two_cohorts(_: Files) -> Files:
    """One cohort has another server."""
    return with_cohorts(keys={1: {SERVER: make_key("mallory")}})


@damage("cohorts", 18)
def handle_of_two_cohorts(_: Files) -> Files:
    """Two cohorts have one handle, so that what is signed in one fits the other."""
    return with_cohorts(runs={2: bytes([1]) * 16})


# --- Rule 19: one adapter -------------------------------------------------------------


@lie_together(19)
def adapters_shown_to_two_cohorts(told: Stories) -> None:
    """The first round starts from another adapter in one cohort than in the others."""
    story = told.cohorts[SECOND]
    starts_from(story, 1, OTHER)
    story.of(SERVER, "published")["adapter_before"] = OTHER


@lie_together(19)
def adapter_shown_to_one_cohort_in_an_attempt_that_is_aborted(told: Stories) -> None:
    """Another adapter is offered to one cohort, whose round is then tried again."""
    story = told.cohorts[SECOND]
    opened = story.of(SERVER, "round_opened")
    first = deepcopy(opened) | {"adapter_digest": OTHER}
    names = ("v", "party", "role", "run", "round", "attempt")
    ended = {name: first[name] for name in names}
    ended |= {"kind": "aborted", "reason": "below_threshold", "dropouts": []}
    for records in story.records.values():
        for record in records:
            if record.get("round") == 1:
                record["attempt"] = 2
    story.records[SERVER][1:1] = [first, ended]
    story.mend(SERVER)


@lie_together(19)
def adapters_told_to_two_cohorts(told: Stories) -> None:
    """One cohort is told that the first round led to another adapter."""
    story = told.cohorts[SECOND]
    leads_to(story, OTHER)
    starts_from(story, 2, OTHER)
    story.of(SERVER, "moved")["adapter_before"] = OTHER


@lie_together(19)
def adapter_moved_by_a_sum_that_is_made_up(told: Stories) -> None:
    """A round in which no cohort has a sum moves the adapter all the same."""
    for story in told.cohorts.values():
        aborted = [r for r in story.records[SERVER] if r["kind"] == "aborted"][-1]
        moved_after(story, aborted, STARTS[3], OTHER)


@lie("three_rounds", 19)
def adapter_moved_by_cohorts_that_there_are_not(story: Story) -> None:
    """The server of a run without cohorts says that others moved the adapter."""
    aborted = story.of(SERVER, "aborted")
    before = story.of(SERVER, "round_opened", 1)["adapter_digest"]
    moved_after(story, aborted, before, OTHER)
    starts_from(story, 3, OTHER)
    story.of(SERVER, "published", 1)["adapter_before"] = OTHER


@lie_together(19)
def cohort_not_told_that_the_adapter_moved(told: Stories) -> None:
    """One cohort goes on from the adapter before the others' step."""
    story = told.cohorts[FIRST]
    story.leave_out(SERVER, "moved")
    starts_from(story, 3, STARTS[2])


@lie_together(19)
def cohort_left_out_of_a_round(told: Stories) -> None:
    """One cohort is not offered the round in which another's sum moves the adapter."""
    story = told.cohorts[SECOND]
    kinds = ("round_opened", "roster", "aborted", "moved")
    story.leave_out(SERVER, *kinds, round=2)
    for name in story.clients:
        story.leave_out(name, "joined", "intent", "outcome", round=2)
    starts_from(story, 3, STARTS[2])


@lie_together(19)
def round_used_twice(told: Stories) -> None:
    """One cohort has a second attempt, from where the round's own step had led."""
    story = told.cohorts[THIRD]
    opened = story.of(SERVER, "round_opened", 2)
    for records in story.records.values():
        for record in records:
            if record.get("round") == 3:
                record |= {"round": 2, "attempt": 2}
    assert opened["round"] == 2


@lie_together(19)
def cohort_hidden(told: Stories) -> None:
    """The one cohort whose sum moved the adapter in a round is not in the folder."""
    del told.cohorts[THIRD]


@lie_together(19, "cohorts_unfinished")
def adapters_told_to_two_cohorts_of_a_run_that_goes_on(told: Stories) -> None:
    """Not all need to tell of the last round, and those that do have to agree."""
    story = told.cohorts[SECOND]
    moved_after(story, story.of(SERVER, "aborted"), STARTS[2], OTHER)


# --- Rule 20: the summary of all ------------------------------------------------------


def with_summary(files: Files, **changes: object) -> Files:
    """Another summary of the run; a field that is None is left out."""
    told = json.loads(files[SUMMARY]) | changes
    told = {name: value for name, value in told.items() if value is not None}
    return files | {SUMMARY: json.dumps(told, indent=2).encode()}


@damage("cohorts", 20)
def joint_summary_missing(files: Files) -> Files:
    """A finished run has no summary of all its cohorts."""
    return {name: data for name, data in files.items() if name != SUMMARY}


@damage("cohorts", 20)
def joint_summary_no_object(files: Files) -> Files:
    """The summary is a list."""
    return files | {SUMMARY: b"[]"}


@damage("cohorts", 20)
def joint_summary_understates_epsilon(files: Files) -> Files:
    """The summary's epsilon is below that of every client."""
    return with_summary(files, epsilon=0.5)


@damage("cohorts", 20)
def joint_summary_of_another_delta(files: Files) -> Files:
    """The summary states a smaller delta than the plans."""
    return with_summary(files, delta=1e-6)


@damage("cohorts", 20)
def joint_summary_without_a_client(files: Files) -> Files:
    """The clients of one cohort are not listed."""
    return with_summary(files, clients=json.loads(files[SUMMARY])["clients"][3:])


@damage("cohorts", 20)
def joint_summary_of_more_rounds(files: Files) -> Files:
    """The round that moved nothing counts as completed."""
    return with_summary(files, rounds_completed=3, rounds_aborted=0)


@damage("cohorts", 20)
def joint_summary_of_other_plans(files: Files) -> Files:
    """The summary names the cohorts' plans in another order."""
    return with_summary(files, cohorts=json.loads(files[SUMMARY])["cohorts"][::-1])


@damage("cohorts", 20)
def joint_summary_of_other_survivors(files: Files) -> Files:
    """A client is among the last survivors that was in no last sum."""
    survivors = json.loads(files[SUMMARY])["survivors"]
    return with_summary(files, survivors=[*survivors, "omega"])
