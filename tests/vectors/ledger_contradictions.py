"""Lies that each ledger bears by itself, and that the folder as a whole contradicts."""

from __future__ import annotations

import json

from privacy.crypto import Label, sha256
from privacy.ledger import Reason, Status
from privacy.plan import SERVER
from privacy.wire import canonical_json
from tests.privacy.ledger.synthetic import CLIENTS, make_plan
from tests.vectors.ledger_lies import (
    ALPHA,
    GAMMA,
    OTHER,
    SERVERS,
    STRANGER,
    damage,
    lie,
)
from tests.vectors.ledger_runs import EARLIER
from tests.vectors.ledger_story import Files, Record, Story, Told

# y = 1 with x = 0. A signature needs S B = R + h A. Here A counts for nothing, so that
# S = 1 and R = B fit every message.
NEUTRAL = bytes([1]) + bytes(31)
BASE = bytes([0x58]) + bytes([0x66]) * 31


class Anybody:
    """Signs without a secret under the neutral point."""

    class verify_key:  # noqa: N801 - it stands for a key
        raw = NEUTRAL
        fingerprint = sha256(Label.IDENTITY, NEUTRAL).hex()

    @staticmethod
    def sign_raw(message: bytes) -> bytes:
        """A signature of every message."""
        return BASE + NEUTRAL


# --- Rules 11 and 12: the files, and one run ------------------------------------------


@damage("three_rounds", 11)
def ledger_missing(files: Files) -> Files:
    """A client's ledger is gone."""
    return {name: data for name, data in files.items() if not name.startswith(GAMMA)}


@damage("three_rounds", 11)
def ledger_of_the_server_missing(files: Files) -> Files:
    """The server's ledger is gone."""
    return {name: data for name, data in files.items() if not name.startswith(SERVERS)}


@damage("three_rounds", 11)
def key_missing(files: Files) -> Files:
    """A client's key is gone."""
    return {name: data for name, data in files.items() if name != "keys/gamma.pub"}


@damage("three_rounds", 11)
def plan_missing(files: Files) -> Files:
    """The plan is gone."""
    return {name: data for name, data in files.items() if name != "plan.json"}


@damage("three_rounds", 11)
def plan_that_is_a_list(files: Files) -> Files:
    """The plan is no object."""
    return files | {"plan.json": b"[]"}


@lie("no_round", 11)
def ledger_that_anybody_can_sign(story: Story) -> None:
    """A client's key is the neutral point, under which one signature fits all lines."""
    story.keys["alpha"] = Anybody()
    for record in story.every("opened"):
        record["roster"]["alpha"] = NEUTRAL.hex()
    story.files["keys/alpha.pub"] = NEUTRAL.hex().encode() + b"\n"


@damage("three_rounds", 11)
def plan_with_a_key_twice(files: Files) -> Files:
    """The plan says two things of one term."""
    text = files["plan.json"].replace(b'{"', b'{"rounds":3,"', 1)
    return files | {"plan.json": text}


@damage("no_round", 11)
def ledger_of_nobody(files: Files) -> Files:
    """There is a ledger of a party that the plan does not have."""
    return files | {"ledger/delta.jsonl": files[ALPHA]}


@damage("three_rounds", 11)
def key_of_nobody(files: Files) -> Files:
    """There is a key of a party that the plan does not have."""
    return files | {"keys/delta.pub": files["keys/alpha.pub"]}


@damage("three_rounds", 11)
def key_in_capitals(files: Files) -> Files:
    """A key is written in capital letters."""
    return files | {"keys/alpha.pub": files["keys/alpha.pub"].upper()}


@damage("three_rounds", 11)
def key_of_low_order(files: Files) -> Files:
    """A key under which one signature holds for many messages."""
    return files | {"keys/alpha.pub": b"00" * 32 + b"\n"}


@damage("three_rounds", 11)
def older_copy_beside_a_newer_head(files: Files) -> Files:
    """A ledger was cut, and its remembered head knows of more lines."""
    story = Story(files)
    story.leave_out("alpha", "joined", "intent", "commit", "outcome", round=3)
    return files | {ALPHA: story.written()[ALPHA]}


@damage("unfinished", 11)
def head_of_the_line_before_with_another_hash(files: Files) -> Files:
    """A remembered head is one line behind, as in a run, and has another hash."""
    head = json.loads(files[f"{ALPHA}.head"])
    other = {"head": OTHER, "records": head["records"] - 1}
    return files | {f"{ALPHA}.head": canonical_json(other) + b"\n"}


@damage("three_rounds", 12)
def plan_of_another_digest(files: Files) -> Files:
    """The plan of the folder has a round more than the one that all opened."""
    plan = make_plan(rounds=4).to_json()
    return files | {"plan.json": canonical_json(plan)}


@lie("no_round", 12)
def client_under_another_plan(story: Story) -> None:
    """A client opened a plan with another recipe."""
    story.change_plan(parties=("gamma",), recipe="cd" * 32)


@lie("no_round", 12)
def server_with_another_key(story: Story) -> None:
    """The server's ledger and key are not those that the clients pinned."""
    story.keys[SERVER] = STRANGER
    raw = STRANGER.verify_key.raw.hex()
    story.of(SERVER, "opened")["roster"][SERVER] = raw
    story.files["keys/server.pub"] = f"{raw}\n".encode()


@lie("no_round", 12)
def client_of_another_run(story: Story) -> None:
    """A client's whole ledger is of another run."""
    for record in story.records["alpha"]:
        record["run"] = EARLIER.hex()


@lie("second_run", 12)
def run_left_open_before_a_later_one(story: Story) -> None:
    """A client never closed this run, and went on to a later one."""
    records = story.records["alpha"]
    later = records[0] | {"run": b"a later run.....".hex()}
    lifetime = records[-1]["lifetime"]
    closed = records[4] | {
        "run": later["run"],
        "missed": 0,
        "records": len(records) + 1,
        "lifetime": lifetime,
        "spend": records[4]["spend"]
        | {"charges": 0, "epsilon_pld": "0", "epsilon_rdp": "0"},
    }
    story.records["alpha"] = [*records[:-1], later, closed]


# --- Rule 13: two accounts of one round -----------------------------------------------


@lie("shown", 13)
def roster_of_a_hidden_half(story: Story) -> None:
    """A client outside the sum was shown another roster than the server recorded."""
    story.of("gamma", "shown")["roster_hash"] = OTHER


@lie("shown", 13)
def sharers_of_a_hidden_half(story: Story) -> None:
    """A client outside the sum was shown other sharers than the server recorded."""
    story.of("gamma", "shown")["sharers_hash"] = OTHER


@lie("shown", 13)
def roster_that_nobody_was_shown(story: Story) -> None:
    """The server records another roster of an aborted attempt than it showed."""
    story.of(SERVER, "roster", 1)["roster_hash"] = OTHER


@lie("shown", 13)
def roster_shown_and_not_recorded(story: Story) -> None:
    """The server ends an attempt as if it had come to no roster, and showed one."""
    story.leave_out(SERVER, "roster", round=2)


@lie("three_rounds", 13)
def charge_left_out(story: Story) -> None:
    """A client leaves out its part of a round, charge and all."""
    story.leave_out("alpha", "joined", "intent", "commit", "outcome", round=2)


@lie("three_rounds", 13)
def charge_left_out_of_a_round_joined(story: Story) -> None:
    """A client joined a round and hides that it charged it and was counted."""
    story.leave_out("alpha", "intent", "commit", round=3)
    outcome = story.of("alpha", "outcome", 2)
    nothing = {"survivors": [], "adapter_digest": None, "transcript": None}
    outcome |= nothing | {"server_head": None}
    outcome |= {"status": "missed", "reason": Reason.DEADLINE.value}
    story.mend("alpha")


@lie("three_rounds", 13)
def attempt_that_the_server_leaves_out(story: Story) -> None:
    """The server leaves out the round that it aborted."""
    kinds = ("round_opened", "roster", "aborted")
    story.leave_out(SERVER, *kinds, round=2)


@lie("one_round", 13)
def another_offer(story: Story) -> None:
    """A client joined another offer than the server made."""
    story.of("alpha", "joined")["offer_digest"] = OTHER


@lie("one_round", 13)
def another_adapter_joined(story: Story) -> None:
    """A client was shown another adapter than the server recorded."""
    story.of("alpha", "joined")["adapter_digest"] = OTHER


@lie("one_round", 13)
def hidden_cohort(story: Story) -> None:
    """The server's roster leaves out a client that charged: it saw another one."""
    story.of(SERVER, "roster")["members"] = ["alpha", "beta"]
    story.of(SERVER, "survivors")["sharers"] = ["alpha", "beta"]


@lie("three_rounds", 13)
def hidden_sharers(story: Story) -> None:
    """The server's sharers leave out a client that was charged."""
    story.of(SERVER, "survivors", 1)["sharers"] = ["alpha", "beta"]


@lie("one_round", 13)
def survivor_that_missed(story: Story) -> None:
    """The server says survivor, and the client was told that it is in no sum."""
    everyone = list(CLIENTS)
    story.of(SERVER, "survivors")["survivors"] = everyone
    story.of(SERVER, "published")["survivors"] = everyone


@lie("one_round", 13)
def survivor_that_committed_nothing(story: Story) -> None:
    """The server counts a client that charged the round and sent nothing."""
    everyone = list(CLIENTS)
    for record in (story.of(SERVER, "survivors"), story.of(SERVER, "published")):
        record["survivors"] = everyone
    for name in ("alpha", "beta"):
        story.of(name, "outcome")["survivors"] = everyone
    nothing = {"survivors": [], "adapter_digest": None, "transcript": None}
    story.of("gamma", "outcome").update(nothing | {"server_head": None})


@lie("three_rounds", 13)
def another_sum_told(story: Story) -> None:
    """The server told one client of another transcript than the others."""
    story.of("alpha", "outcome", 2)["transcript"] = OTHER


@lie("three_rounds", 13)
def another_adapter_told(story: Story) -> None:
    """The server told one client of another next adapter than it recorded."""
    story.of("alpha", "outcome", 2)["adapter_digest"] = OTHER


@lie("three_rounds", 13)
def aborted_to_one_and_published_to_others(story: Story) -> None:
    """A client outside the sum was told that there is none."""
    nothing = {"survivors": [], "adapter_digest": None, "transcript": None}
    outcome = story.of("gamma", "outcome", 2)
    outcome |= nothing | {"status": Status.ABORTED.value, "server_head": None}
    story.mend("gamma")


@lie("three_rounds", 13)
def opened_sum_recorded_as_aborted(story: Story) -> None:
    """The server opened a sum, told of it, and records the attempt as aborted."""
    published = story.of(SERVER, "published", 1)
    aborted: Record = dict(story.of(SERVER, "aborted"))
    aborted |= {"round": 3, "dropouts": []}
    published.clear()
    published |= aborted
    closed = story.of(SERVER, "closed")
    closed |= {"published": 1, "aborted": 2}


@lie("three_rounds", 13)
def head_of_another_round(story: Story) -> None:
    """The server has a head of a client that is of a line of the round before."""
    early = story.of("alpha", "commit")
    story.of(SERVER, "published", 1)["heads"]["alpha"] = Told(early, OTHER)


@lie("three_rounds", 13)
def head_of_no_line(story: Story) -> None:
    """The server has a head of a client that is of none of its lines."""
    story.of(SERVER, "published", 1)["heads"]["alpha"] = OTHER


@lie("three_rounds", 13)
def servers_head_of_an_earlier_line(story: Story) -> None:
    """A client was told a head of the server's that was before the round's end."""
    early = story.of(SERVER, "survivors", 1)
    story.of("alpha", "outcome", 2)["server_head"] = Told(early, OTHER)


@damage("one_round", 13)
def server_that_writes_its_ledger_anew(files: Files) -> Files:
    """The server changes a hash after it told the clients of its ledger's heads."""
    story = Story(files)
    story.of(SERVER, "roster")["roster_hash"] = OTHER
    written = story.written()
    return files | {name: written[name] for name in (SERVERS, f"{SERVERS}.head")}


@lie("three_rounds", 13)
def member_that_never_joined(story: Story) -> None:
    """A client is in the roster of a round that it had left before."""
    story.leave_out("gamma", "joined", "intent", "outcome", round=3)


# --- Rule 16: the summary -------------------------------------------------------------


def summary(files: Files, **changes: object) -> Files:
    """A summary that says something else."""
    told = json.loads(files["summary.json"]) | changes
    return files | {"summary.json": json.dumps(told, indent=2).encode()}


@damage("three_rounds", 16)
def summary_with_a_smaller_epsilon(files: Files) -> Files:
    """The summary says less than was spent."""
    return summary(files, epsilon=0.05)


@damage("three_rounds", 16)
def summary_with_another_delta(files: Files) -> Files:
    """The summary has another delta than the plan."""
    return summary(files, delta=1e-6)


@damage("three_rounds", 16)
def summary_with_a_round_more(files: Files) -> Files:
    """The summary has a round that was never published."""
    return summary(files, rounds_completed=3, rounds_aborted=0)


@damage("three_rounds", 16)
def summary_without_a_client(files: Files) -> Files:
    """The summary leaves out a client."""
    clients = json.loads(files["summary.json"])["clients"]
    return summary(files, clients=clients[:-1])


@damage("three_rounds", 16)
def summary_with_a_client_twice(files: Files) -> Files:
    """The summary has one client twice and another not at all."""
    clients = json.loads(files["summary.json"])["clients"]
    return summary(files, clients=[*clients[:-1], clients[0]])


@damage("three_rounds", 16)
def summary_of_other_survivors(files: Files) -> Files:
    """The summary says that all survived the last sum."""
    return summary(files, survivors=list(CLIENTS))


@damage("three_rounds", 16)
def summary_of_another_plan(files: Files) -> Files:
    """The summary names another plan."""
    return summary(files, plan_digest=OTHER)


@damage("three_rounds", 16)
def summary_with_an_absurd_exponent(files: Files) -> Files:
    """The summary has a number that no decimal holds."""
    text = files["summary.json"].replace(b"1e-05", b"1e-99999999999999999999")
    return files | {"summary.json": text}


@damage("no_promise", 16)
def summary_with_a_list_for_a_number(files: Files) -> Files:
    """The summary has a list where an epsilon belongs."""
    return summary(files, epsilon=[None])


@damage("three_rounds", 16)
def summary_that_is_a_list(files: Files) -> Files:
    """The summary is no object."""
    return files | {"summary.json": b"[]"}


@damage("three_rounds", 16)
def summary_with_another_epsilon_of_a_client(files: Files) -> Files:
    """The summary has less for one client than its ledger."""
    clients = json.loads(files["summary.json"])["clients"]
    clients[0]["epsilon"] = 0.05
    return summary(files, clients=clients)


@damage("three_rounds", 16)
def summary_missing(files: Files) -> Files:
    """A finished run has no summary."""
    return {name: data for name, data in files.items() if name != "summary.json"}


@damage("no_promise", 16)
def summary_that_promises_something(files: Files) -> Files:
    """The summary of a baseline without noise has a finite epsilon."""
    return summary(files, epsilon=8)
