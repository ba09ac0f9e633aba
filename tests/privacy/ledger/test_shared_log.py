"""The server's log before its clients: honest runs, hostile servers, lost ledgers."""

import json
import os
from dataclasses import replace

import pytest

from privacy.crypto import Label
from privacy.errors import (
    EquivocationError,
    FaultyServerError,
    LedgerError,
    MalformedMessageError,
    PrivacyError,
    ReplayError,
    RollbackError,
)
from privacy.ledger import durable, shared_log
from privacy.ledger.checkpoint import (
    Checkpoint,
    Note,
    log_origin,
    parse_note,
    sign_checkpoint,
)
from privacy.ledger.codes import Reason, Role, Status
from privacy.ledger.envelope import open_line
from privacy.ledger.log_update import open_update
from privacy.ledger.merkle import Tree
from privacy.ledger.records import (
    Aborted,
    Cosigned,
    Moved,
    Refused,
    Roster,
    RoundOpened,
    Survivors,
)
from privacy.plan import SERVER
from privacy.wire import Writer
from tests.privacy.ledger.synthetic import (
    CLIENTS,
    RUN,
    adapter_after,
    adapter_before,
    digest,
    forge,
    make_key,
    payloads,
)
from tests.privacy.ledger.watched import ORIGIN, Watched

NAME = "alpha"


@pytest.fixture
def watched(tmp_path):
    made = []

    def make(**options):
        made.append(Watched(tmp_path / f"run-{len(made)}", **options))
        return made[-1]

    yield make
    for one in made:
        one.close_files()


def kinds(one, name=NAME):
    return [record["kind"] for record in payloads(one.path(name))]


def reasons(one, name=NAME):
    return [r["reason"] for r in payloads(one.path(name)) if r["kind"] == "refused"]


def sizes(one, name=NAME):
    return [r["size"] for r in payloads(one.path(name)) if r["kind"] == "cosigned"]


def notes(one):
    folder = one.directory / "ledger/log"
    found = {int(path.stem): parse_note(path.read_bytes()) for path in folder.iterdir()}
    return dict(sorted(found.items()))


def signers(note):
    return [one.name for one in note.signatures[1:]]


def refuses(one, error, data, name=NAME):
    """A client refuses an update; what it wrote in its ledger because of it."""
    before = kinds(one, name)
    with pytest.raises(error):
        one.witnesses[name].check(data)
    after = kinds(one, name)
    assert after[: len(before)] == before
    return after[len(before) :]


# An honest server.


def test_every_client_checks_and_cosigns_what_came_since(watched):
    one = watched()
    one.watched_rounds()
    ends = [1, 5, 8, 12]
    assert list(notes(one)) == ends
    for size, note in notes(one).items():
        assert note.checkpoint.root == Tree(one.lines()[:size]).root()
        assert note.require(ORIGIN, one.keys[SERVER].verify_key)
        assert signers(note) == list(CLIENTS)
        for name in CLIENTS:
            assert note.require(name, one.keys[name].verify_key)
    for name in CLIENTS:
        assert sizes(one, name) == ends
    last = (one.directory / "ledger/checkpoint").read_bytes()
    assert parse_note(last) == notes(one)[12]


def test_only_new_lines_are_sent_and_nothing_twice(watched):
    one = watched()
    one.show()
    one.round(1)
    update = one.shown_to(NAME)
    assert (update.start, len(update.lines)) == (1, 4)
    one.show()
    update = one.shown_to(NAME)
    assert (update.start, update.lines, update.proof) == (5, (), ())
    before = kinds(one)
    one.show()
    # A checkpoint that was vouched for is answered with the same note, and not written.
    assert kinds(one) == before
    assert signers(notes(one)[5]) == list(CLIENTS)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_client_that_missed_the_news_catches_up(watched, restarted):
    one = watched()
    one.show()
    one.round(1)
    one.show(["beta", "gamma"])
    one.gather(2)
    one.abort(2)
    one.show(["beta"])
    one.round(3, ("alpha", "beta"))
    if restarted:
        one.restart_client(NAME)
    one.show()
    assert sizes(one) == [1, 12]
    assert sizes(one, "gamma") == [1, 5, 12]
    found = {size: signers(note) for size, note in notes(one).items()}
    assert found == {
        1: list(CLIENTS),
        5: ["beta", "gamma"],
        8: ["beta"],
        12: list(CLIENTS),
    }


@pytest.mark.parametrize("restarted", [False, True])
def test_a_cosignature_that_was_lost_does_not_stop_a_client(watched, restarted):
    """The server then begins at a size that the client has left behind."""
    one = watched()
    one.show(lost=[NAME])
    one.round(1)
    one.show(lost=[NAME])
    assert one.shown_to(NAME).start == 0
    one.round(2)
    one.show()
    one.round(3)
    one.show(lost=[NAME])
    if restarted:
        one.restart_client(NAME)
    assert one.shown_to(NAME).start == 9
    assert sizes(one) == [1, 5, 9, 13]
    one.close_clients()
    assert signers(list(notes(one).values())[-1]) == list(CLIENTS)


@pytest.mark.parametrize("place", range(4))
def test_a_server_that_is_restarted_knows_how_far_each_client_is(watched, place):
    one = watched()
    one.show(lost=["gamma"])
    for number in range(1, place + 1):
        one.round(number)
        one.show(["alpha", "gamma"], lost=["gamma"])
    one.restart_server()
    positions = {name: one.witnesses[name].position() for name in CLIENTS}
    assert one.shown_to("beta").start == 1
    assert one.shown_to("gamma").start == 0
    one.log.meet(positions)
    assert one.shown_to("gamma").start == 4 * place + 1
    one.show()
    assert {sizes(one, name)[-1] for name in CLIENTS} == {4 * place + 2}


def test_a_client_that_has_checked_nothing_says_nothing(watched):
    one = watched()
    assert one.witnesses[NAME].position() == b""
    one.log.meet({NAME: b""})
    assert one.shown_to(NAME).start == 0


def test_a_checkpoint_is_on_disk_before_anybody_is_told_of_it(watched):
    one = watched()
    one.shown_to(NAME)
    assert list(notes(one)) == [1]
    assert signers(notes(one)[1]) == []


def test_no_checkpoint_is_signed_while_a_round_is_under_way(watched):
    one = watched()
    one.show()
    one.gather(1)
    with pytest.raises(LedgerError, match="under way"):
        one.log.updates(CLIENTS)


def test_every_line_of_the_log_is_salted(watched):
    """Neither a signature nor the run's handle can be guessed from outside."""
    one = watched()
    one.watched_rounds()
    one.finish()
    handle = RUN.hex()
    seen = set()
    for line, record in zip(one.lines(), payloads(one.path(SERVER)), strict=True):
        assert record["run"] == handle
        assert len(open_line(line).signature) == 64
        seen.add(record["kind"])
    assert seen == {
        "opened", "round_opened", "roster", "survivors", "published", "aborted",
        "closed",
    }  # fmt: skip
    for note in notes(one).values():
        assert handle.encode() not in note.to_bytes()


def test_what_a_client_answers_depends_on_the_log_alone(watched):
    """Ed25519 is deterministic, so that one text has one answer."""
    one = watched()
    one.show()
    one.round(1)
    head = notes(one)[1].checkpoint
    update = one.log.updates([NAME])[NAME]
    witness = one.witnesses[NAME]
    answer = parse_note(witness.vouch(witness.check(update)))
    key = one.keys[NAME]
    assert answer.signatures[1] == sign_checkpoint(answer.checkpoint, NAME, key)
    assert answer.signatures[0].name == ORIGIN
    assert head.size < answer.checkpoint.size == 5


# The order of things at the client.


def test_a_checkpoint_is_in_the_ledger_before_the_cosignature_leaves(
    watched, monkeypatch
):
    one = watched()
    witness = one.witnesses[NAME]
    view = witness.check(one.log.updates([NAME])[NAME])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(LedgerError):
            witness.vouch(view)
    assert sizes(one) == []
    witness = one.restart_client(NAME)
    witness.vouch(witness.check(one.log.updates([NAME])[NAME]))
    assert sizes(one) == [1]


def test_a_client_killed_after_it_wrote_and_before_it_answered_goes_on(watched):
    one = watched()
    one.show(lost=[NAME])
    one.restart_client(NAME)
    one.log.meet({NAME: one.witnesses[NAME].position()})
    assert one.shown_to(NAME).start == 1
    one.round(1)
    one.show()
    assert sizes(one) == [1, 5]


# A hostile server: another history.


def forked(one, place, **changes):
    """The server's lines with one record changed, signed again by the server."""
    records = payloads(one.path(SERVER))
    records[place] |= changes
    return forge(records, one.keys[SERVER]).splitlines()


def test_two_roots_of_one_size_end_it_for_good(watched):
    one = watched()
    one.show()
    one.round(1)
    one.show()
    lines = forked(one, 4, sum_digest="77" * 32)
    added = refuses(one, EquivocationError, one.sealed(one.update_of(lines)))
    assert added == ["disputed", "refused"]
    assert reasons(one) == ["equivocation"]
    disputed = payloads(one.path(NAME))[-2]
    assert (disputed["size"], disputed["root"]) == (5, Tree(lines).root().hex())
    # The honest log does not make up for it, nor does a new process.
    honest = one.log.updates([NAME])[NAME]
    assert refuses(one, EquivocationError, honest) == []
    one.restart_client(NAME)
    assert refuses(one, EquivocationError, honest) == []
    with pytest.raises(LedgerError, match="refused"):
        one.clients[NAME].join(2)
    # What is in flight can still be ended, and the ledger closed.
    one.clients[NAME].close()


def test_no_later_run_of_the_same_server_is_joined_and_one_of_another_is(watched):
    one = watched()
    one.show()
    lines = forked(one, 0, software="other")
    refuses(one, EquivocationError, one.sealed(one.update_of(lines)))
    client = one.clients[NAME]
    client.close()
    client.open(one.roster, run=bytes(15) + b"\7")
    with pytest.raises(LedgerError, match="refused"):
        client.join(1)
    client.close()
    other = dict(one.roster) | {SERVER: make_key("another").verify_key.raw}
    client.open(other, run=bytes(15) + b"\x08")
    client.join(1)


FORKS = {
    "the opening": (0, {"software": "other"}),
    "the roster": (2, {"roster_hash": "77" * 32}),
    "the sum": (4, {"sum_digest": "77" * 32}),
    "the transcript": (4, {"transcript": "77" * 32}),
}


@pytest.mark.parametrize("name", FORKS)
@pytest.mark.parametrize("start", [0, 1, 5])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_longer_log_that_does_not_begin_with_the_old_one_is_found(
    watched, name, start, restarted
):
    one = watched()
    one.show()
    one.round(1)
    one.show()
    one.gather(2)
    one.abort(2)
    place, changes = FORKS[name]
    lines = forked(one, place, **changes)
    if restarted:
        one.restart_client(NAME)
    update = one.update_of(lines, start)
    assert refuses(one, EquivocationError, one.sealed(update)) == [
        "disputed",
        "refused",
    ]


@pytest.mark.parametrize("start", [0, 1, 5])
def test_the_proof_of_one_history_with_the_checkpoint_of_another(watched, start):
    """Every mixture of the honest log and a fork of it is seen through."""
    one = watched()
    one.show()
    one.round(1)
    one.show()
    one.gather(2)
    one.abort(2)
    honest = one.update_of(one.lines(), start)
    fork = one.update_of(forked(one, 4, sum_digest="77" * 32), start)
    for changes in (
        {"note": fork.note},
        {"note": fork.note, "lines": fork.lines},
        {"note": fork.note, "proof": fork.proof},
        {"lines": fork.lines},
        {"lines": fork.lines, "proof": fork.proof},
    ):
        if all(getattr(honest, k) == v for k, v in changes.items()):
            continue
        mixed = replace(honest, **changes)
        saved = one.save(NAME)
        added = refuses(one, EquivocationError, one.sealed(mixed))
        assert added == ["disputed", "refused"], changes
        one.restart_client(NAME, before=saved)
    one.show()
    assert sizes(one) == [1, 5, 8]


def test_a_line_that_the_checkpoint_does_not_hold_is_found(watched):
    one = watched()
    one.show()
    one.round(1)
    update = one.shown_to(NAME)
    lines = list(update.lines)
    swapped = [lines[1], lines[0], *lines[2:]]
    bad = replace(update, lines=tuple(swapped))
    assert refuses(one, EquivocationError, one.sealed(bad))


@pytest.mark.parametrize(
    "change",
    [
        lambda u: {"proof": u.proof[:-1]},
        lambda u: {"proof": (*u.proof, bytes(32))},
        lambda u: {"proof": (bytes(32),) * 100_000},
        lambda u: {"proof": tuple(reversed(u.proof))},
    ],
    ids=["cut", "longer", "huge", "reversed"],
)
def test_a_proof_that_proves_nothing_is_refused(watched, change):
    one = watched()
    one.show()
    for number in (1, 2):
        one.round(number)
        one.show()
    one.round(3)
    update = one.shown_to(NAME)
    bad = replace(update, **change(update))
    assert refuses(one, EquivocationError, one.sealed(bad))


# Other cohorts, whose sums moved the adapter.


def moved(one, number=1, **changes):
    """What the server says after a round that it aborted."""
    one.server.append(
        Moved(
            **{
                "round": number,
                "attempt": 1,
                "adapter_before": one.adapter(number),
                "adapter_after": digest("adapter", "others"),
                **changes,
            }
        )
    )


def aborted_and_shown(one, members=CLIENTS):
    one.show()
    one.gather(1, members)
    one.abort(1, members)
    one.show()
    return one


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("members", [CLIENTS, ("beta", "gamma")])
def test_a_client_follows_the_adapter_that_others_moved(watched, dies, members):
    """Also one that died since, and knows of the round what its ledger says."""
    one = aborted_and_shown(watched(), members)
    moved(one)
    if dies:
        one.restart_client(NAME)
        one.restart_server()
    view = one.witnesses[NAME].check(one.log.updates([NAME])[NAME])
    assert view.may_be_followed_by(2, digest("adapter", "others"))
    assert not view.may_be_followed_by(2, one.adapter(1))
    assert not view.may_be_followed_by(1, digest("adapter", "others"))
    one.witnesses[NAME].vouch(view)
    assert "refused" not in kinds(one)


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize(
    "also",
    [
        [(), ("round", 2)],
        [("adapter_before", "77" * 32)],
        [(), ("adapter_before", "77" * 32)],
        [(), ()],
    ],
    ids=["another round", "from another", "onward", "twice"],
)
def test_an_adapter_that_others_cannot_have_moved_is_refused(watched, dies, also):
    one = aborted_and_shown(watched())
    moved(one)
    *before, last = payloads(one.path(SERVER))
    records = [last | dict([change] if change else []) for change in also]
    lines = forge([*before, *records], one.keys[SERVER]).splitlines()
    if dies:
        one.restart_client(NAME)
    added = refuses(one, EquivocationError, one.sealed(one.update_of(lines, 4)))
    assert added == ["disputed", "refused"]


@pytest.mark.parametrize("dies", [False, True])
def test_no_others_move_the_adapter_after_a_sum_that_this_client_is_in(watched, dies):
    one = watched()
    one.show()
    one.round(1)
    one.show()
    records = payloads(one.path(SERVER))
    names = ("v", "party", "role", "run", "round", "attempt")
    move = {name: records[-1][name] for name in names} | {
        "kind": "moved",
        "adapter_before": one.adapter(1).hex(),
        "adapter_after": "77" * 32,
    }
    lines = forge([*records, move], one.keys[SERVER]).splitlines()
    if dies:
        one.restart_client(NAME)
    added = refuses(one, EquivocationError, one.sealed(one.update_of(lines, 5)))
    assert added == ["disputed", "refused"]


# A hostile server: a log that breaks the rules, or contradicts what it told.


def opened_otherwise(records):
    records[0]["plan_digest"] = "77" * 32


def another_key_for_a_peer(records):
    records[0]["roster"]["beta"] = make_key("mallory").verify_key.raw.hex()


def another_plan_with_its_digest(records):
    from privacy.ledger.payload import plan_digest

    records[0]["plan"]["noise_variance"] = "5"
    records[0]["plan_digest"] = plan_digest(records[0]["plan"]).hex()


def no_opening(records):
    del records[0]


def a_sum_of_one(records):
    for place in (3, 4):
        records[place]["survivors"] = [NAME]


def a_sum_of_strangers(records):
    records[3]["sharers"] = records[3]["survivors"] = ["alpha", "beta", "zeta"]


def other_survivors_at_the_end(records):
    records[4]["survivors"] = ["alpha", "beta"]


def another_adapter_before(records):
    records[4]["adapter_before"] = "77" * 32


def no_survivors_counted(records):
    del records[3]


def a_round_beyond_the_plan(records):
    for record in records[1:]:
        record["round"] = 99


def another_run(records):
    records[4]["run"] = "77" * 16


def another_party(records):
    records[4]["party"] = "beta"


def under_way(records):
    del records[4]


BROKEN = [
    opened_otherwise,
    another_key_for_a_peer,
    another_plan_with_its_digest,
    no_opening,
    a_sum_of_one,
    a_sum_of_strangers,
    other_survivors_at_the_end,
    another_adapter_before,
    no_survivors_counted,
    a_round_beyond_the_plan,
    another_run,
    another_party,
    under_way,
]


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
@pytest.mark.parametrize("seen", [0, 1])
def test_a_log_that_breaks_the_rules_is_refused(watched, change, seen):
    one = watched()
    if seen and change not in BROKEN[:4]:
        one.show()
    one.round(1)
    records = payloads(one.path(SERVER))
    change(records)
    lines = forge(records, one.keys[SERVER]).splitlines()
    start = seen if change not in BROKEN[:4] else 0
    added = refuses(one, EquivocationError, one.sealed(one.update_of(lines, start)))
    assert added == ["disputed", "refused"]


@pytest.mark.parametrize(
    "forge_line",
    [
        lambda one, line: b"{}",
        lambda one, line: b"",
        lambda one, line: line + b"\n",
        lambda one, line: line.replace(b"payload", b"pay1oad", 1),
        lambda one, line: one.path("beta").read_bytes().splitlines()[0],
        lambda one, line: forge(
            [json.loads(open_line(line).payload)], make_key("mallory"), relink=False
        ).strip(),
    ],
    ids=["an object", "nothing", "two lines", "a typo", "a client's", "not signed"],
)
def test_a_leaf_that_is_no_line_of_the_servers_ledger_is_refused(watched, forge_line):
    one = watched()
    one.show()
    one.round(1)
    lines = one.lines()
    lines[-1] = forge_line(one, lines[-1])
    assert refuses(one, EquivocationError, one.sealed(one.update_of(lines, 1)))


# Each check by itself: a client that took part in nothing knows only the log.


def unconcerned(one):
    """A round that nobody joined, so that no ledger but the server's says anything."""
    one.show()
    one.gather(1, ())
    one.abort(1, ())
    return payloads(one.path(SERVER))


def refuses_saying(one, lines, start, what):
    data = one.sealed(one.update_of(lines, start))
    with pytest.raises(EquivocationError, match=what):
        one.witnesses[NAME].check(data)


@pytest.mark.parametrize(
    "change", BROKEN[:3], ids=lambda change: getattr(change, "__name__", "")
)
def test_an_opening_that_is_not_the_clients_own_is_refused_at_once(watched, change):
    one = watched()
    records = payloads(one.path(SERVER))
    change(records)
    lines = forge(records, one.keys[SERVER]).splitlines()
    refuses_saying(one, lines, 0, "plan")


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("restarted", [False, True])
def test_no_line_that_was_vouched_for_changes_though_no_ledger_contradicts_it(
    watched, start, restarted
):
    one = watched()
    unconcerned(one)
    one.show()
    one.gather(2, ())
    one.abort(2, ())
    lines = forked(one, 3, dropouts=["alpha"])
    if restarted:
        one.restart_client(NAME)
    refuses_saying(one, lines, start, "no longer holds the 4 lines")


def test_a_proof_from_where_the_client_is_shows_a_change_by_itself(watched):
    one = watched()
    unconcerned(one)
    one.show()
    one.gather(2, ())
    one.abort(2, ())
    lines = forked(one, 3, dropouts=["alpha"])
    refuses_saying(one, lines, 4, "does not begin with the 4 that were checked")


def test_a_checkpoint_in_the_middle_of_a_round_is_refused(watched):
    one = watched()
    unconcerned(one)
    refuses_saying(one, one.lines()[:3], 1, "middle of a round")


@pytest.mark.parametrize("changes", [{"seq": 9}, {"prev": "77" * 32}])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_line_that_is_not_linked_to_the_one_before_is_refused(
    watched, changes, restarted
):
    one = watched()
    records = unconcerned(one)
    records[2] |= changes
    data = forge(records, one.keys[SERVER], relink=False)
    if restarted:
        one.restart_client(NAME)
    refuses_saying(one, data.splitlines(), 1, "not linked")


@pytest.mark.parametrize("changes", [{"seq": 9}, {"prev": "77" * 32}])
def test_no_later_line_is_needed_to_see_that_one_is_not_linked(watched, changes):
    one = watched()
    records = unconcerned(one)
    records[-1] |= changes
    data = forge(records, one.keys[SERVER], relink=False)
    refuses_saying(one, data.splitlines(), 1, "not linked")


def test_the_first_line_of_a_log_is_linked_to_nothing(watched):
    one = watched()
    records = payloads(one.path(SERVER))
    records[0]["prev"] = "77" * 32
    data = forge(records, one.keys[SERVER], relink=False)
    refuses_saying(one, data.splitlines(), 0, "not linked")


def test_the_log_of_another_run_under_the_name_of_this_one_is_refused(watched):
    """The server signs the checkpoint for this run, and all lines are of another."""
    one = watched()
    records = payloads(one.path(SERVER))
    for record in records:
        record["run"] = "77" * 16
    lines = forge(records, one.keys[SERVER]).splitlines()
    refuses_saying(one, lines, 0, "another run, plan or roster")


def test_what_another_hand_vouched_for_in_the_same_ledger_is_not_read_again(watched):
    """What the ledger holds decides, and not what this object last saw."""
    one = watched()
    one.show()
    first = one.witnesses[NAME]
    one.witnesses[NAME] = one.open_witness(NAME)
    one.round(1)
    one.show()
    one.witnesses[NAME] = first
    one.round(2)
    one.show()
    assert sizes(one) == [1, 5, 9]


def with_more(one, *kinds, **changes):
    """The server's lines, and records of these kinds behind them."""
    records = payloads(one.path(SERVER))
    shared = {key: records[0][key] for key in ("v", "party", "role", "run", "seq")}
    more = {
        "closed": {"records": 1, "published": 0, "aborted": 0},
        "resumed": {"last": "opened", "round": 0, "attempt": 0, "torn_bytes": 0},
    }
    records += [
        shared | {"prev": "", "kind": kind} | more[kind] | changes for kind in kinds
    ]
    return forge(records, one.keys[SERVER]).splitlines()


@pytest.mark.parametrize(
    ("kinds_added", "changes"),
    [
        (("closed", "closed"), {}),
        (("closed", "resumed"), {}),
        (("closed", "resumed", "closed"), {}),
        (("resumed",), {"party": "beta"}),
        (("resumed",), {"role": "client"}),
    ],
)
def test_who_has_just_started_still_knows_what_may_follow_what(
    watched, kinds_added, changes
):
    one = watched()
    one.show()
    one.round(1)
    one.show()
    lines = with_more(one, *kinds_added, **changes)
    one.restart_client(NAME)
    assert refuses(one, EquivocationError, one.sealed(one.update_of(lines, 5)))


def test_who_has_just_started_cannot_judge_what_is_said_of_lines_before(watched):
    """What `resumed` and `closed` repeat of them, an auditor checks who has them."""
    one = watched()
    one.show()
    one.round(1)
    one.show()
    update = one.update_of(with_more(one, "resumed", "closed"), 5)
    assert refuses(one, EquivocationError, one.sealed(update, "beta"), "beta")
    one.restart_client(NAME).check(one.sealed(update))


@pytest.mark.parametrize("restarted", [False, True])
def test_only_a_later_round_on_the_published_adapter_may_follow(watched, restarted):
    """Who has just started does not know what was published before."""
    one = watched()
    one.show()
    one.round(1)
    one.show()
    if restarted:
        one.restart_client(NAME)
    view = one.witnesses[NAME].check(one.log.updates([NAME])[NAME])
    assert view.may_be_followed_by(2, adapter_after(1))
    assert view.may_be_followed_by(2, bytes(32)) == restarted
    assert view.may_be_followed_by(1, adapter_after(1)) == restarted
    one.close_server()
    view = one.witnesses[NAME].check(one.log.updates([NAME])[NAME])
    assert not view.may_be_followed_by(2, adapter_after(1))


TOLD = {
    "another adapter": {"adapter_after": "77" * 32},
    "another transcript": {"transcript": "77" * 32},
    "another sum": {"sum_digest": "77" * 32},
}


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("restarted", [False, True])
def test_a_log_that_says_something_else_than_was_told_is_refused(
    watched, name, restarted
):
    """The hash of the server's line was told, so that no field of it can differ."""
    one = watched()
    one.show()
    one.round(1)
    lines = forked(one, 4, **TOLD[name])
    if restarted:
        one.restart_client(NAME)
    assert refuses(one, EquivocationError, one.sealed(one.update_of(lines, 1)))


def test_a_sum_that_was_told_and_is_aborted_in_the_log_is_refused(watched):
    one, other = watched(), watched()
    for run in (one, other):
        run.show()
        run.gather(1)
    one.publish(1, CLIENTS)
    other.abort(1)
    for hers, theirs in ((one, other), (other, one)):
        update = theirs.update_of(theirs.lines(), 1)
        assert refuses(hers, EquivocationError, hers.sealed(update))


def test_a_roster_without_a_client_that_was_charged_is_refused(watched):
    """The hidden half of a split cohort finds out before its next charge."""
    one = watched()
    one.show()
    one.gather(1)
    one.clients[NAME].commit(1)
    one.clients[NAME].outcome(1, Status.MISSED, Reason.INTERRUPTED)
    other = watched()
    other.show()
    other.round(1, ("beta", "gamma"), ("beta", "gamma"))
    update = other.update_of(other.lines(), 1)
    assert refuses(one, EquivocationError, one.sealed(update))


def split_cohort(one, **shown):
    """Alpha is charged in a roster of its own, and the log lists it in the other.

    The server has signed a false roster, so that no name in a ledger contradicts it:
    alpha looks like a client whose vector came late.
    """
    one.show()
    one.gather(1, shown={NAME: shown})
    one.clients[NAME].commit(1)
    one.publish(1, ("beta", "gamma"), ("alpha", "beta", "gamma"))


SHOWN = {
    "roster": {"roster_hash": digest("roster", "of alpha's half")},
    "sharers": {"sharers_hash": digest("sharers", "of alpha's half")},
}
SAW = {
    "survivors": {"survivors_hash": digest("survivors", "of alpha's half")},
    "sum": {"sum_digest": digest("sum", "of alpha's half")},
}


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("name", SHOWN)
def test_a_client_of_a_hidden_half_sees_that_the_log_has_another_roster(
    watched, name, restarted
):
    one = watched()
    split_cohort(one, **SHOWN[name])
    if restarted:
        one.restart_client(NAME)
    update = one.log.updates([NAME])[NAME]
    added = refuses(one, EquivocationError, update)
    assert added == ["disputed", "refused"]


@pytest.mark.parametrize("name", SAW)
def test_a_client_sees_other_survivors_or_another_sum_than_it_was_shown(watched, name):
    one = watched()
    split_cohort(one)
    one.witnesses[NAME].saw(**SAW[name])
    update = one.log.updates([NAME])[NAME]
    assert refuses(one, EquivocationError, update) == ["disputed", "refused"]


def test_what_was_seen_of_a_round_is_kept_as_it_comes(watched):
    one = watched()
    split_cohort(one)
    one.witnesses[NAME].saw(**SAW["survivors"])
    one.witnesses[NAME].saw(sum_digest=digest("sum", 1))
    assert refuses(one, EquivocationError, one.log.updates([NAME])[NAME])


@pytest.mark.parametrize("restarted", [False, True])
def test_a_client_that_really_came_late_finds_what_it_saw(watched, restarted):
    one = watched()
    split_cohort(one)
    if restarted:
        one.restart_client(NAME)
    one.show()
    assert sizes(one) == [1, 5]


@pytest.mark.parametrize("restarted", [False, True])
def test_an_aborted_round_has_the_roster_and_need_not_have_the_sharers(
    watched, restarted
):
    """The server writes the sharers down with the survivors, and came to none."""
    one = watched()
    one.show()
    one.gather(1, shown={NAME: {"sharers_hash": digest("sharers", "anything")}})
    one.abort(1)
    if restarted:
        one.restart_client(NAME)
    one.show()
    assert sizes(one) == [1, 4]


def test_an_attempt_without_the_roster_that_was_shown_is_a_contradiction(watched):
    one = watched()
    one.show()
    one.gather(1, shown={NAME: {}})
    one.abort(1)
    records = payloads(one.path(SERVER))
    kept = [record for record in records if record["kind"] != "roster"]
    lines = forge(kept, one.keys[SERVER]).splitlines()
    assert refuses(one, EquivocationError, one.sealed(one.update_of(lines, 1)))


@pytest.mark.parametrize("seen", SAW)
def test_what_was_seen_and_is_not_in_the_log_is_a_contradiction(watched, seen):
    """The round was aborted after the roster."""
    one = watched()
    one.show()
    one.gather(1)
    one.abort(1)
    one.witnesses[NAME].saw(**SAW[seen])
    update = one.log.updates([NAME])[NAME]
    assert refuses(one, EquivocationError, update)


@pytest.mark.parametrize("ended", [False, True])
def test_a_round_that_was_joined_and_is_not_in_the_log_is_not_vouched_for(
    watched, ended
):
    """The server may be about to tell of it, so that this is no equivocation yet."""
    one = watched()
    one.show()
    before = one.sealed(one.update_of(one.lines()))
    one.round(1) if ended else one.gather(1)
    assert refuses(one, FaultyServerError, before) == []


# A hostile server, or somebody on the way: messages that are not the server's.


def test_an_older_checkpoint_is_refused_and_ends_nothing(watched):
    one = watched()
    one.show()
    old = one.log.updates([NAME])[NAME]
    one.round(1)
    one.show()
    assert refuses(one, ReplayError, old) == []
    one.round(3)
    one.show()
    assert sizes(one) == [1, 5, 9]


def test_an_older_size_with_another_root_is_a_second_history(watched):
    """It proves as much as a new one would, so that it is not taken for a replay."""
    one = watched()
    one.show()
    one.round(1)
    one.show()
    lines = forked(one, 0, software="other")[:1]
    added = refuses(one, EquivocationError, one.sealed(one.update_of(lines)))
    assert added == ["disputed", "refused"]


def test_an_update_that_the_server_did_not_sign_for_this_client_changes_nothing(
    watched,
):
    one = watched()
    one.show()
    one.round(1)
    honest = one.shown_to(NAME)
    for data in (
        one.sealed(honest, name="beta"),
        one.sealed(honest, run=bytes(16)),
        one.sealed(honest, key=make_key("mallory")),
        one.sealed(honest, key=one.keys["beta"]),
        one.log.updates(["beta"])["beta"],
    ):
        assert refuses(one, FaultyServerError, data) == []
    sealed = one.sealed(honest)
    for place in range(0, len(sealed), 97):
        spoilt = sealed[:place] + bytes([sealed[place] ^ 4]) + sealed[place + 1 :]
        wrong = (FaultyServerError, MalformedMessageError)
        assert refuses(one, wrong, spoilt) == []
    for spoilt in (b"", sealed[:-1], sealed + b"\0", bytes(80)):
        wrong = (FaultyServerError, MalformedMessageError)
        assert refuses(one, wrong, spoilt) == []


def signed_by(one, key, name, note):
    return Note(note.checkpoint, (sign_checkpoint(note.checkpoint, name, key),))


@pytest.mark.parametrize(
    "forge_note",
    [
        lambda one, note: signed_by(one, make_key("mallory"), ORIGIN, note),
        lambda one, note: signed_by(one, one.keys["beta"], "beta", note),
        lambda one, note: signed_by(one, one.keys[SERVER], "server", note),
        lambda one, note: one.note_of(one.lines(), origin=log_origin(bytes(16))),
        lambda one, note: signed_by(
            one,
            one.keys[SERVER],
            ORIGIN,
            one.note_of(one.lines(), origin=log_origin(bytes(16))),
        ),
    ],
    ids=["another key", "a client", "another name", "another run", "its name"],
)
def test_a_checkpoint_of_somebody_else_is_refused(watched, forge_note):
    one = watched()
    one.show()
    one.round(1)
    update = one.shown_to(NAME)
    note = forge_note(one, parse_note(update.note))
    bad = replace(update, note=note.to_bytes())
    assert refuses(one, FaultyServerError, one.sealed(bad)) == []


def test_a_checkpoint_with_many_signatures_is_read_and_only_ours_counts(watched):
    one = watched()
    one.round(1)
    update = one.shown_to(NAME)
    note = parse_note(update.note)
    mallory = make_key("mallory")
    others = tuple(
        sign_checkpoint(note.checkpoint, f"witness-{number}", mallory)
        for number in range(1000)
    )
    many = Note(note.checkpoint, (*others, *note.signatures))
    witness = one.witnesses[NAME]
    bad = one.sealed(replace(update, note=many.to_bytes()))
    answer = parse_note(witness.vouch(witness.check(bad)))
    assert [signed.name for signed in answer.signatures] == [ORIGIN, NAME]


@pytest.mark.parametrize(
    "change",
    [
        lambda u: {"lines": u.lines[:-1]},
        lambda u: {"lines": (*u.lines, u.lines[-1])},
        lambda u: {"lines": ()},
        lambda u: {"start": 3},
        lambda u: {"start": 6},
        lambda u: {"start": 2**63},
    ],
    ids=["one missing", "one more", "none", "unknown", "beyond", "huge"],
)
def test_lines_that_do_not_fit_the_checkpoint_are_refused(watched, change):
    one = watched()
    one.show()
    one.round(1)
    update = one.shown_to(NAME)
    bad = replace(update, **change(update))
    assert refuses(one, FaultyServerError, one.sealed(bad)) == []


@pytest.mark.parametrize("start", [3, 5, 8])
def test_a_log_that_begins_where_the_client_has_not_been_is_refused(watched, start):
    """All of it fits together; the client cannot tell whether it fits what it has."""
    one = watched()
    one.show()
    one.round(1)
    one.show(["beta"])
    one.round(2)
    if start == 8:
        # Beyond what the client has, and before it.
        one.show()
        start = 4
    update = one.update_of(one.lines(), start)
    assert refuses(one, FaultyServerError, one.sealed(update)) == []


# A client whose ledger is an older copy.


def test_a_ledger_that_forgot_what_it_cosigned_is_refused(watched):
    one = watched()
    one.show()
    saved = one.save(NAME)
    one.round(1)
    one.show()
    one.restart_client(NAME, before=saved)
    assert sizes(one) == [1]
    update = one.log.updates([NAME])[NAME]
    assert refuses(one, RollbackError, update) == ["refused"]
    assert reasons(one) == ["rollback"]
    # Whoever shows it again adds nothing.
    assert refuses(one, RollbackError, update) == []


def test_a_ledger_that_was_begun_anew_under_the_same_key_is_refused(watched):
    one = watched()
    one.round(1)
    one.show()

    def remove():
        one.path(NAME).unlink()
        one.path(NAME).with_name(f"{NAME}.jsonl.head").unlink()

    one.clients[NAME].ledger.close()
    remove()
    one.clients[NAME].ledger = one.ledger(NAME, Role.CLIENT)
    one.clients[NAME].open(one.roster)
    one.witnesses[NAME] = one.open_witness(NAME)
    update = one.log.updates([NAME])[NAME]
    assert refuses(one, RollbackError, update) == ["refused"]


def test_a_ledger_that_forgot_its_charge_is_refused_by_the_head_in_the_log(watched):
    """The server has no cosignature of what was lost, and yet its log shows it."""
    one = watched()
    one.show()
    saved = one.save(NAME)
    one.round(1)
    one.restart_client(NAME, before=saved)
    update = one.shown_to(NAME)
    assert parse_note(update.cosigned).checkpoint.size == 1
    assert refuses(one, RollbackError, one.sealed(update)) == ["refused"]


def test_a_ledger_that_holds_the_joining_alone_has_forgotten_its_charge(watched):
    """That is a rollback and no lie of the server, which would end it for good."""
    one = watched()
    one.show()
    before = adapter_before(1)
    one.server.append(RoundOpened(1, 1, digest("offer", 1), before))
    for name in CLIENTS:
        one.clients[name].join(1)
    saved = one.save(NAME)
    one.server.append(Roster(1, 1, CLIENTS, digest("roster", 1)))
    for name in CLIENTS:
        one.clients[name].intent(1)
    one.publish(1, CLIENTS)
    one.restart_client(NAME, before=saved)
    assert refuses(one, RollbackError, one.log.updates([NAME])[NAME]) == ["refused"]
    assert reasons(one) == ["rollback"]


@pytest.mark.parametrize("shown", [False, True])
def test_a_copy_from_before_its_charge_is_no_lie_of_the_server(watched, shown):
    """Its vector was counted, and the round came to nothing: no head names it."""
    one = watched()
    one.show()
    one.server.append(RoundOpened(1, 1, digest("offer", 1), adapter_before(1)))
    for name in CLIENTS:
        one.clients[name].join(1)
    one.server.append(Roster(1, 1, CLIENTS, digest("roster", 1)))
    if shown:
        one.clients[NAME].shown(1)
    saved = one.save(NAME)
    for name in CLIENTS:
        one.clients[name].intent(1)
    one.count(1, CLIENTS)
    one.server.append(Aborted(1, 1, Reason.INTERRUPTED, ()))
    one.restart_client(NAME, before=saved)
    assert refuses(one, RollbackError, one.log.updates([NAME])[NAME]) == ["refused"]
    assert reasons(one) == ["rollback"]


def test_a_server_that_counts_a_client_which_sent_nothing_is_found_out(watched):
    """The client has lived through the round, so that it has forgotten nothing."""
    one = watched()
    one.show()
    one.gather(1)
    one.server.append(
        Survivors(1, 1, CLIENTS, CLIENTS, digest("sharers", 1), digest("all", 1))
    )
    one.server.append(Aborted(1, 1, Reason.INTERRUPTED, ()))
    update = one.log.updates([NAME])[NAME]
    assert refuses(one, EquivocationError, update) == ["disputed", "refused"]


def test_what_a_ledger_holds_of_an_earlier_run_is_not_of_this_log(tmp_path):
    """Its rounds, its checkpoints, and how far the earlier log was seen."""
    earlier = b"an earlier run.."

    class Second(Watched):
        def open(self, **changes):
            head = Checkpoint(log_origin(earlier), 99, bytes(32))
            signed = sign_checkpoint(head, head.origin, self.keys[SERVER])
            for client in self.clients.values():
                client.open(self.roster, run=earlier, **changes)
                client.ledger.append(Cosigned(99, head.root, signed.signature))
                client.join(3)
                client.outcome(3, Status.MISSED, Reason.DEADLINE)
                client.close()
            super().open(**changes)

    one = Second(tmp_path / "run")
    assert one.witnesses[NAME].position() == b""
    one.watched_rounds()
    assert sizes(one) == [99, 1, 5, 8, 12]
    one.close_files()


def test_a_ledger_that_forgot_a_charge_of_an_aborted_round_is_refused(watched):
    one = watched()
    one.show()
    saved = one.save(NAME)
    one.gather(1)
    one.abort(1)
    one.restart_client(NAME, before=saved)
    update = one.log.updates([NAME])[NAME]
    assert refuses(one, RollbackError, update) == ["refused"]


def test_a_ledger_that_went_on_from_an_older_copy_is_refused(watched):
    """It has as many lines as the lost one had, and others."""
    one = watched()
    one.show()
    saved = one.save(NAME)
    one.gather(1)
    one.abort(1)
    one.show()
    length = len(kinds(one))
    one.restart_client(NAME, before=saved)
    while len(kinds(one)) < length:
        one.restart_client(NAME)
    update = one.log.updates([NAME])[NAME]
    assert refuses(one, RollbackError, update) == ["refused"]


def test_the_newest_copy_of_a_ledger_goes_on(watched):
    one = watched()
    one.show()
    older = one.save(NAME)
    one.round(1)
    one.show()
    newest = [path.read_bytes() for path in (one.path(NAME),)]
    head = one.path(NAME).with_name(f"{NAME}.jsonl.head")
    newest.append(head.read_bytes())
    one.restart_client(NAME, before=older)
    refuses(one, RollbackError, one.log.updates([NAME])[NAME])

    def restore():
        one.path(NAME).write_bytes(newest[0])
        head.write_bytes(newest[1])

    one.restart_client(NAME, before=restore)
    one.round(3)
    one.show()
    assert sizes(one) == [1, 5, 9]


def test_a_reminder_that_the_client_did_not_sign_means_nothing(watched):
    one = watched()
    one.show()
    one.round(1)
    update = one.shown_to(NAME)
    forged = one.note_of(one.lines())
    beta = sign_checkpoint(forged.checkpoint, "beta", one.keys["beta"])
    witness = one.witnesses[NAME]
    for reminder in (
        b"",
        b"junk",
        forged.to_bytes(),
        Note(forged.checkpoint, (beta,)).to_bytes(),
    ):
        witness.check(one.sealed(replace(update, cosigned=reminder)))


def test_a_note_of_another_run_reminds_of_nothing(watched):
    one = watched()
    one.show()
    elsewhere = one.note_of(one.lines() * 9, origin=log_origin(bytes(16)))
    note = Note(
        elsewhere.checkpoint,
        (sign_checkpoint(elsewhere.checkpoint, NAME, one.keys[NAME]),),
    )
    update = replace(one.shown_to(NAME), cosigned=note.to_bytes())
    one.witnesses[NAME].check(one.sealed(update))


# A server whose ledger is an older copy.


def test_a_server_whose_ledger_is_an_older_copy_refuses_to_start(watched):
    one = watched()
    one.show()
    saved = one.save(SERVER)
    one.round(1)
    one.show()
    with pytest.raises(RollbackError, match=r"5 lines log/5\.note has") as error:
        one.restart_server(before=saved)
    assert "restore" in str(error.value)


def test_a_server_whose_folder_is_an_older_copy_learns_it_from_a_client(watched):
    one = watched()
    one.show()
    saved = one.save(SERVER)
    one.round(1)
    one.show()

    def rolled_back():
        saved()
        (one.directory / "ledger/log/5.note").unlink()

    one.restart_server(before=rolled_back)
    position = one.witnesses["beta"].position()
    with pytest.raises(RollbackError, match="client beta"):
        one.log.meet({"beta": position})


def test_a_server_that_went_on_from_an_older_copy_learns_it_too(watched):
    """Its ledger is as long as the client's checkpoint says, and another."""
    one = watched()
    one.show()
    saved = one.save(SERVER)
    one.gather(1)
    one.abort(1)
    one.show()

    def rolled_back():
        saved()
        (one.directory / "ledger/log/4.note").unlink()

    position = one.witnesses["beta"].position()
    one.restart_server(before=rolled_back)
    for _ in range(2):
        one.server.append(one.server.history.resumption(0))
    assert one.server.history.records == 4
    with pytest.raises(RollbackError, match="client beta"):
        one.log.meet({"beta": position})


def test_a_client_cannot_make_a_server_believe_that_it_was_rolled_back(watched):
    """Only what the server itself signed counts against its ledger."""
    one = watched()
    one.show()
    head = replace(notes(one)[1].checkpoint, size=99)
    own = sign_checkpoint(head, NAME, one.keys[NAME])
    mallory = sign_checkpoint(head, ORIGIN, make_key("mallory"))
    for note in (Note(head, (own,)), Note(head, (mallory, own))):
        one.log.meet({NAME: note.to_bytes()})
        assert one.log.take({NAME: note.to_bytes()}) == (NAME,)
    assert one.shown_to(NAME).start == 1


def test_a_kept_note_that_is_damaged_is_a_clear_error(watched):
    one = watched()
    one.show()
    path = one.directory / "ledger/log/1.note"
    good = path.read_bytes()
    other = make_key("mallory")
    head = parse_note(good).checkpoint
    for bad in (
        b"",
        good[:-1],
        Note(head, (sign_checkpoint(head, ORIGIN, other),)).to_bytes(),
    ):
        path.write_bytes(bad)
        with pytest.raises(LedgerError, match=r"1\.note is damaged; restore"):
            one.open_log()
    path.write_bytes(good)
    path.rename(path.with_name("2.note"))
    with pytest.raises(LedgerError, match=r"2\.note is damaged"):
        one.open_log()


# Hostile clients.


def bogus(one, note):
    """Answers that are no cosignature by alpha of this note."""
    head = note.checkpoint
    server, own, beta = (one.keys[name] for name in (SERVER, NAME, "beta"))
    first = sign_checkpoint(head, ORIGIN, server)

    def by(key, name, other=head):
        return sign_checkpoint(other, name, key)

    earlier = replace(head, root=bytes(32))
    later = replace(head, size=head.size + 1)
    yield from (b"", b"done", b"\xff" * 200, bytes(2**16), note.to_bytes())
    for signatures in (
        (first, by(beta, "beta")),
        (first, by(beta, NAME)),
        (first, by(own, "beta")),
        (first, replace(by(own, NAME), signature=bytes(64))),
        (first, replace(by(own, NAME), key_id=b"abcd")),
        (by(own, NAME),),
        (by(make_key("mallory"), ORIGIN), by(own, NAME)),
        (first, by(own, NAME, earlier)),
    ):
        yield Note(head, signatures).to_bytes()
    for other in (earlier, later, replace(head, origin=log_origin(bytes(16)))):
        yield Note(other, (first, by(own, NAME, other))).to_bytes()


def test_an_answer_that_is_no_cosignature_is_dropped_and_the_others_are_kept(watched):
    one = watched()
    one.show(lost=CLIENTS)
    note = notes(one)[1]
    good = {name: one.witnesses[name].position() for name in ("beta", "gamma")}
    count = 0
    for answer in bogus(one, note):
        assert one.log.take({NAME: answer, **good}) == (NAME,)
        assert signers(notes(one)[1]) == ["beta", "gamma"]
        assert one.shown_to(NAME).start == 0
        count += 1
    assert count == 16
    assert one.log.take({"zeta": good["beta"]}) == ("zeta",)
    one.round(1)
    one.show()
    assert signers(notes(one)[5]) == list(CLIENTS)


def test_a_cosignature_of_an_earlier_size_does_not_set_a_client_back(watched):
    one = watched()
    one.show()
    old = one.witnesses[NAME].position()
    one.round(1)
    one.show()
    before = notes(one)
    assert one.log.take({NAME: old}) == ()
    assert notes(one) == before
    assert one.shown_to(NAME).start == 5


def test_what_strangers_signed_in_an_answer_is_not_kept(watched):
    one = watched()
    one.show(lost=[NAME])
    note = parse_note(one.witnesses[NAME].position())
    extra = sign_checkpoint(note.checkpoint, "zeta", make_key("zeta"))
    answer = Note(note.checkpoint, (*note.signatures, extra)).to_bytes()
    assert one.log.take({NAME: answer}) == ()
    assert signers(notes(one)[1]) == list(CLIENTS)


# Crashes of the server while it keeps notes.


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("step", range(10))
def test_a_server_killed_while_it_keeps_cosignatures_goes_on(
    watched, monkeypatch, step
):
    one = watched()
    one.show()
    one.round(1)
    updates = one.log.updates(CLIENTS)
    replies = {
        name: one.witnesses[name].vouch(one.witnesses[name].check(update))
        for name, update in updates.items()
    }
    left = [step]

    def dying(name):
        real = getattr(os, name)

        def call(*arguments):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "write", "fsync"):
            patch.setattr(durable.os, name, dying(name))
        with pytest.raises(Killed):
            one.log.take(replies)
    one.restart_server()
    assert not list((one.directory / "ledger").glob("log/*.tmp"))
    # A note is the one before or the one after, and never a part.
    assert signers(notes(one)[5]) in ([], list(CLIENTS))
    one.log.meet({name: one.witnesses[name].position() for name in CLIENTS})
    one.show()
    last = parse_note((one.directory / "ledger/checkpoint").read_bytes())
    assert last == list(notes(one).values())[-1]
    assert signers(last) == list(CLIENTS)


def test_a_disk_that_is_full_ends_the_run_with_its_reason(watched, monkeypatch):
    one = watched()

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_log, "replace_file", full)
    with pytest.raises(LedgerError, match="No space left on device"):
        one.log.updates(CLIENTS)


def test_an_update_reads_back_only_for_whom_it_was_signed(watched):
    one = watched()
    update = one.shown_to(NAME)
    key = one.keys[SERVER].verify_key
    assert open_update(one.sealed(update), key, RUN, NAME) == update
    junk = Writer().field(b"junk").finish()
    signature = one.keys[SERVER].sign(Label.LOG_UPDATE, RUN, NAME.encode(), b"junk")
    with pytest.raises(MalformedMessageError):
        open_update(junk + signature, key, RUN, NAME)


def test_no_round_is_joined_after_a_refusal_even_if_it_is_taken_up_again(watched):
    one = watched()
    one.clients[NAME].ledger.append(Refused(0, 0, Reason.EQUIVOCATION, None))
    one.restart_client(NAME)
    with pytest.raises(PrivacyError, match="refused"):
        one.clients[NAME].join(1)
    with pytest.raises(PrivacyError, match="refused"):
        one.clients[NAME].ledger.append(
            Cosigned(
                1,
                Tree(one.lines()).root(),
                one.note_of(one.lines()).signatures[0].signature,
            )
        )
