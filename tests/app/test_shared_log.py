"""The server's log in real rounds: what is cosigned, refused, and not charged."""

import shutil
from dataclasses import replace

import pytest

from fgrpo_secure.terms import round_terms
from privacy.errors import EquivocationError, FaultyServerError, RollbackError
from privacy.ledger import Ledger, Roster, parse_note, verify_run
from privacy.ledger.checkpoint import Note, sign_checkpoint
from privacy.ledger.log_update import LogUpdate, open_update, seal_update
from privacy.ledger.merkle import Tree
from privacy.plan import SERVER
from privacy.secagg.server import open_round
from privacy.wire import Reader, Writer
from tests.app.federation import RUN, Crash
from tests.plans import Counter
from tests.privacy.ledger.synthetic import forge, payloads

NAME = "sums"
TRIO = ("count", "shift", NAME)


def sizes(one, name=NAME):
    return [r["size"] for r in one.records(name) if r["kind"] == "cosigned"]


def notes(one):
    folder = one.root / "ledger/log"
    found = {int(path.stem): parse_note(path.read_bytes()) for path in folder.iterdir()}
    return dict(sorted(found.items()))


def cosigners(note):
    return [signature.name for signature in note.signatures[1:]]


def finish(one):
    """The end of a run, as the command brings it about."""
    one.server.close()
    words = one.server.last_words()
    answers = {name: one.exchange.clients[name].close(words[name]) for name in words}
    one.server.take_cosignatures(answers)
    return answers


def check(one, **options):
    """What an auditor finds wrong, but for the summary that nobody wrote here."""
    report = verify_run(one.root, **options)
    return [p for p in report.problems if p.file != "summary.json"], report


def lines(one):
    return one.folder.ledger(SERVER).read_bytes().splitlines()


def test_every_round_ends_with_a_checkpoint_that_all_clients_cosigned(federation):
    one = federation()
    one.round(1)
    one.round(2)
    answers = finish(one)
    # The opening, that a process took it up, two rounds, and the end.
    assert list(notes(one)) == [2, 6, 10, 11]
    assert cosigners(notes(one)[2]) == []
    for size in (6, 10, 11):
        assert cosigners(notes(one)[size]) == one.names
    for name in one.names:
        assert sizes(one, name) == [2, 6, 10, 11]
        assert parse_note(answers[name]).checkpoint.size == 11
    problems, report = check(one)
    assert problems == []
    assert report.cosigned == dict.fromkeys(one.names, 11)
    last = (one.root / "ledger/checkpoint").read_bytes()
    assert last == (one.root / "ledger/log/11.note").read_bytes()


def test_a_client_that_was_not_told_sees_the_log_before_it_joins_again(federation):
    one = federation()
    one.exchange.unreached = {("published", NAME)}
    one.round(1)
    assert sizes(one) == [2]
    assert cosigners(notes(one)[6]) == [n for n in one.names if n != NAME]
    one.exchange.unreached = set()
    one.round(2)
    assert sizes(one) == [2, 6, 10]
    found = one.kinds(NAME)
    second = [place for place, kind in enumerate(found) if kind == "joined"][1]
    assert found[second - 2 : second] == ["outcome", "cosigned"]
    finish(one)
    assert check(one)[0] == []


def test_an_aborted_round_is_in_the_log_that_is_cosigned(federation):
    one = federation()
    one.exchange.lost = {("shares", "sums"), ("shares", "sort")}
    assert not one.round(1).published
    assert set(notes(one)) == {2, 5}
    assert cosigners(notes(one)[5]) == one.names


def test_a_cosignature_that_is_lost_costs_nothing(federation):
    one = federation()
    one.exchange.lost = {("published", NAME)}
    assert one.round(1).published
    assert one.round(2).published
    one.exchange.lost = set()
    assert one.round(3).published
    assert sizes(one) == [2, 6, 10, 14]
    finish(one)
    assert check(one)[0] == []


class Hostile:
    """A client whose answers to one phase are another's."""

    def __init__(self, client, phase, answer):
        self._client, self._phase, self._answer = client, phase, answer

    def handle(self, phase, payload):
        answer = self._client.handle(phase, payload)
        return self._answer(answer) if phase == self._phase else answer


@pytest.mark.parametrize(
    "answer",
    [
        lambda answer: b"",
        lambda answer: b"junk" * 1000,
        lambda answer: answer[:-2] + b"\n",
        lambda answer: answer.replace(b"sums", b"sort"),
    ],
    ids=["nothing", "junk", "cut", "another's name"],
)
def test_a_client_with_a_bogus_cosignature_does_not_stop_the_run(federation, answer):
    one = federation()
    honest = one.exchange.clients[NAME]
    one.exchange.clients[NAME] = Hostile(honest, "published", answer)
    assert one.round(1).published
    assert cosigners(notes(one)[6]) == [n for n in one.names if n != NAME]
    one.exchange.clients[NAME] = honest
    assert one.round(2).published
    assert cosigners(notes(one)[10]) == one.names
    finish(one)
    assert check(one)[0] == []


def test_no_answer_to_the_log_tells_anything_of_the_data(federation):
    """Two clients' data differ; what they sign is the same text, and nothing else."""
    one = federation(edits={"count": lambda rows: rows[:3]})
    one.round(1)
    texts = {}
    for name in one.names:
        note = parse_note(one.exchange.clients[name].handle("log", b""))
        key = one.keys[name]
        texts[name] = note.checkpoint.text()
        assert note.signatures[1] == sign_checkpoint(note.checkpoint, name, key)
    assert len(set(texts.values())) == 1


# A server with two histories.


def shown(one, payload, name):
    """The update within a message that ends a round."""
    reader = Reader(payload)
    message, data = reader.field(), reader.field()
    reader.finish()
    key = one.keys[SERVER].verify_key
    return message, open_update(data, key, RUN, name)


def with_log(one, message, update, name):
    data = seal_update(update, one.keys[SERVER], RUN, name)
    return Writer().field(message).field(data).finish()


def fork(one, update, change):
    """The same update of a ledger whose last record the server wrote otherwise."""
    records = payloads(one.folder.ledger(SERVER))
    change(records)
    forked = forge(records, one.keys[SERVER]).splitlines()
    head = parse_note(update.note).checkpoint
    head = type(head)(head.origin, len(forked), Tree(forked).root())
    note = Note(head, (sign_checkpoint(head, head.origin, one.keys[SERVER]),))
    start = update.start
    proof = Tree(forked).consistency(start, len(forked)) if start else ()
    return LogUpdate(note.to_bytes(), start, tuple(forked[start:]), proof, b"")


def drops_somebody_else(records):
    records[-1]["dropouts"] = ["count"]


def fork_for(one, name, change):
    """Show one client another history at the end of an aborted round."""

    def altered(payload):
        message, update = shown(one, payload, name)
        return with_log(one, message, fork(one, update, change), name)

    one.exchange.altered["aborted", name] = altered


def not_joined(one, name):
    """A client that is not in the round, so that nothing of it was told to it."""
    one.exchange.unreached = {("offer", name)}


def test_two_histories_shown_to_two_clients_are_found_by_whoever_compares(federation):
    """One client did not take part, so that it cannot tell the histories apart."""
    one = federation()
    one.exchange.unreached = {("offer", NAME)}
    one.exchange.lost = {("shares", "count"), ("shares", "shift")}
    assert not one.round(1).published
    honest = one.server.last_words()[NAME]
    key = one.keys[SERVER].verify_key
    forked = fork(one, open_update(honest, key, RUN, NAME), drops_somebody_else)

    def altered(payload):
        reader = Reader(payload)
        message = Writer().integer(reader.integer())
        message.field(reader.field()).field(reader.field())
        data = seal_update(forked, one.keys[SERVER], RUN, NAME)
        return message.field(data).finish()

    one.exchange.unreached, one.exchange.lost = set(), set()
    one.exchange.altered["offer", NAME] = altered
    one.round(2)
    # The next update cannot hide it: it would have to begin with what was shown.
    assert isinstance(one.exchange.errors["published", NAME], EquivocationError)
    roots = {
        name: {
            r["size"]: r["root"] for r in one.records(name) if r["kind"] == "cosigned"
        }
        for name in one.names
    }
    assert roots[NAME][5] != roots["sort"][5]
    problems, _ = check(one, unfinished=True)
    found = [str(p) for p in problems if p.file == f"ledger/{NAME}.jsonl"]
    assert any("the server signed another history of 5 lines" in f for f in found)
    assert any("disputes" in f for f in found)


def test_a_client_that_found_two_histories_takes_part_no_more(federation):
    one = federation()
    fork_for(one, NAME, drops_somebody_else)
    one.exchange.lost = {("shares", "count"), ("shares", "shift")}
    one.round(1)
    assert isinstance(one.exchange.errors["aborted", NAME], EquivocationError)
    assert one.kinds(NAME)[-3:] == ["outcome", "disputed", "refused"]
    assert one.last(NAME, "refused")["reason"] == "equivocation"
    charged = one.kinds(NAME).count("intent")
    one.exchange.altered.clear()
    one.exchange.lost = set()
    assert one.round(2).published
    assert isinstance(one.exchange.errors["offer", NAME], EquivocationError)
    one.restart_client(NAME)
    assert one.round(3).published
    assert NAME not in one.last(SERVER, "published")["survivors"]
    assert one.kinds(NAME).count("joined") == 1
    assert one.kinds(NAME).count("intent") == charged
    assert one.kinds(NAME).count("disputed") == 1


def test_two_histories_end_a_round_that_is_in_flight(federation):
    """The offer of the next round shows them, while the client waits for the last."""
    one = federation()
    one.exchange.unreached = {("published", NAME)}
    one.round(1)
    assert one.ledgers[NAME].history.unfinished

    def altered(payload):
        reader = Reader(payload)
        message = Writer().integer(reader.integer())
        message.field(reader.field()).field(reader.field())
        key = one.keys[SERVER].verify_key
        update = open_update(reader.field(), key, RUN, NAME)

        def other_sum(records):
            records[1]["offer_digest"] = "77" * 32

        data = seal_update(fork(one, update, other_sum), one.keys[SERVER], RUN, NAME)
        return message.field(data).finish()

    one.exchange.altered["offer", NAME] = altered
    one.round(2)
    assert one.kinds(NAME)[-3:] == ["disputed", "refused", "outcome"]
    assert one.last(NAME, "outcome")["reason"] == "equivocation"
    assert one.exchange.clients[NAME]._state is None


def test_a_log_that_is_wrong_at_the_end_does_not_keep_a_ledger_open(federation):
    one = federation()
    one.round(1)
    one.server.close()
    key = one.keys[SERVER].verify_key
    update = open_update(one.server.last_words()[NAME], key, RUN, NAME)
    bad = fork(one, update, lambda records: records[-1].update(published=7))
    client = one.exchange.clients[NAME]
    with pytest.raises(EquivocationError):
        client.close(seal_update(bad, one.keys[SERVER], RUN, NAME))
    assert one.kinds(NAME)[-3:] == ["disputed", "refused", "closed"]
    assert client.close(b"") == client.handle("log", b"")


def test_an_offer_of_another_adapter_than_the_log_published_is_not_joined(federation):
    one = federation()
    one.round(1)
    spoilt = bytearray(one.server.adapter)
    spoilt[-1] ^= 1
    terms = round_terms(
        one.plan,
        roster=one.roster,
        federation=RUN.hex(),
        round_number=2,
        adapter=bytes(spoilt),
    )
    _, offer = open_round(terms, one.keys[SERVER], Counter("offer"), ())
    message = Writer().integer(2).field(offer).field(bytes(spoilt))
    message.field(one.server.last_words()[NAME])
    before = one.kinds(NAME)
    with pytest.raises(FaultyServerError, match="does not follow"):
        one.exchange.clients[NAME].handle("offer", message.finish())
    assert one.kinds(NAME) == before
    assert one.round(2).published


@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_round_is_joined_that_the_servers_own_log_rules_out(federation, number):
    """An earlier round, one that the log has, and one after the log was closed."""
    one = federation()
    one.exchange.unreached = {("offer", NAME)}
    one.round(1)
    one.round(2)
    if number == 3:
        one.server.close()
    terms = round_terms(
        one.plan,
        roster=one.roster,
        federation=RUN.hex(),
        round_number=number,
        adapter=one.server.adapter,
    )
    _, offer = open_round(terms, one.keys[SERVER], Counter("offer"), ())
    message = Writer().integer(number).field(offer).field(one.server.adapter)
    message.field(one.server.last_words()[NAME])
    with pytest.raises(FaultyServerError, match="does not follow"):
        one.exchange.clients[NAME].handle("offer", message.finish())
    assert "joined" not in one.kinds(NAME)


def test_a_client_that_was_shown_other_survivors_is_charged_once_and_no_more(
    federation,
):
    """The log is honest here; what the client was shown is as if it had not been."""
    one = federation()
    one.exchange.unreached = {("published", NAME)}

    def shown_otherwise(payload):
        one.exchange.clients[NAME]._witness.saw(survivors_hash=bytes(32))
        return payload

    one.exchange.altered["quorum", NAME] = shown_otherwise
    one.round(1)
    one.exchange.altered.clear()
    one.round(2)
    assert isinstance(one.exchange.errors["offer", NAME], EquivocationError)
    assert one.kinds(NAME).count("intent") == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_a_client_that_was_shown_another_roster_is_charged_once_and_no_more(
    federation, monkeypatch, restarted
):
    """The server's ledger has a roster that it showed to nobody.

    The client misses how the round ended, and its process may die before the next.
    """
    one = federation()
    one.exchange.unreached = {("published", NAME)}
    append = Ledger.append

    def hidden(ledger, record):
        if isinstance(record, Roster):
            record = replace(record, roster_hash=bytes(32))
        return append(ledger, record)

    monkeypatch.setattr(Ledger, "append", hidden)
    one.round(1)
    if restarted:
        roll_back_client(one, NAME, lambda: None)
    one.round(2)
    assert isinstance(one.exchange.errors["offer", NAME], EquivocationError)
    assert one.kinds(NAME).count("intent") == 1
    assert one.kinds(NAME).count("shown") == 1


# Older copies.


def keep(one, name):
    """Copy a ledger and its remembered head; returns what puts them back."""
    path = one.folder.ledger(name)
    files = [path, path.with_name(path.name + ".head")]
    for file in files:
        shutil.copyfile(file, one.root.parent / file.name)

    def restore():
        for file in files:
            shutil.copyfile(one.root.parent / file.name, file)

    return restore


def roll_back_client(one, name, restore):
    one.ledgers[name].close()
    restore()
    one.exchange.clients[name] = one.open_client(name)


def test_a_client_whose_ledger_is_an_older_copy_is_not_charged(federation):
    one = federation()
    one.round(1)
    restore = keep(one, NAME)
    one.round(2)
    charged = one.records(NAME)
    assert sum(r["kind"] == "intent" for r in charged) == 2
    roll_back_client(one, NAME, restore)
    assert one.round(3).published
    error = one.exchange.errors["offer", NAME]
    assert isinstance(error, RollbackError)
    assert "restore the newest copy" in str(error)
    assert one.kinds(NAME).count("intent") == 1
    assert one.kinds(NAME)[-2:] == ["resumed", "refused"]
    assert one.last(NAME, "refused")["reason"] == "rollback"
    assert NAME not in one.last(SERVER, "published")["survivors"]


@pytest.mark.parametrize("phase", ["shares", "survivors", "quorum", "published"])
def test_a_charge_that_an_older_copy_forgot_is_seen_without_any_cosignature(
    federation, phase
):
    """Whatever the client did not live to say, the roster or its head says it."""
    one = federation()
    one.round(1)
    restore = keep(one, NAME)
    one.exchange.lost = {(phase, NAME)}
    one.round(2)
    assert one.kinds(NAME).count("intent") == 2
    one.exchange.lost = set()
    roll_back_client(one, NAME, restore)
    one.round(3)
    assert isinstance(one.exchange.errors["offer", NAME], RollbackError)
    assert one.kinds(NAME).count("intent") == 1


def test_the_newest_copy_takes_part_again(federation):
    one = federation()
    one.round(1)
    older = keep(one, NAME)
    one.round(2)
    newest = [one.folder.ledger(NAME).read_bytes()]
    head = one.folder.ledger(NAME).with_name(f"{NAME}.jsonl.head")
    newest.append(head.read_bytes())
    roll_back_client(one, NAME, older)
    one.exchange.clients[NAME].handle("log", b"")

    def restore():
        one.folder.ledger(NAME).write_bytes(newest[0])
        head.write_bytes(newest[1])

    roll_back_client(one, NAME, restore)
    assert one.round(3).published
    assert NAME in one.last(SERVER, "published")["survivors"]
    finish(one)
    assert check(one)[0] == []


@pytest.mark.parametrize("notes_too", [False, True])
def test_a_server_whose_ledger_is_an_older_copy_offers_nothing(federation, notes_too):
    one = federation()
    restore = keep(one, SERVER)
    private = one.root.parent / "private"
    shutil.copytree(one.private, private)
    one.round(1)
    one.ledgers[SERVER].close()
    restore()
    shutil.copytree(private, one.private, dirs_exist_ok=True)
    if notes_too:
        shutil.rmtree(one.root / "ledger/log")
        one.server = one.open_server()
        with pytest.raises(RollbackError, match="client count has a checkpoint"):
            one.round(1)
    else:
        with pytest.raises(RollbackError, match=r"log/6\.note has a checkpoint"):
            one.open_server()
    for name in one.names:
        assert one.kinds(name).count("joined") == 1
        assert "refused" not in one.kinds(name)


# Servers that die.


@pytest.mark.parametrize("phase", ["offer", "shares", "published", "aborted"])
def test_a_server_that_dies_between_log_and_clients_goes_on(federation, phase):
    one = federation()
    one.round(1)
    if phase == "aborted":
        one.exchange.lost = {("shares", "sums"), ("shares", "sort")}
    one.exchange.crash = phase
    with pytest.raises(Crash):
        one.round(2)
    one.exchange.lost = set()
    one.restart_server()
    assert one.round(3).published
    asked = [name for sent, name, _ in one.exchange.sent if sent == "log"]
    # Once for each process of the server.
    assert sorted(asked) == sorted(2 * one.names)
    size = len(lines(one))
    assert cosigners(notes(one)[size]) == one.names
    finish(one)
    problems, report = check(one)
    assert problems == []
    assert report.cosigned == dict.fromkeys(one.names, size + 1)


def test_a_client_that_dies_before_each_record_of_a_round_catches_up(federation):
    """Killed between its outcome and its checkpoint, or before either."""
    one = federation()
    for number, kind in enumerate(("Outcome", "Cosigned"), 1):
        ledger = one.ledgers[NAME]
        append = type(ledger).append

        def dying(record, kind=kind, ledger=ledger, append=append):
            if type(record).__name__ == kind and len(one.exchange.payloads("quorum")):
                raise Crash
            return append(ledger, record)

        client = one.exchange.clients[NAME]
        done = []

        def hook(payload, client=client, dying=dying, done=done):
            # The process of the client dies; the exchange goes on without it.
            client._ledger = client._witness._ledger = Dying(client._ledger, dying)
            with pytest.raises(Crash):
                client.handle("published", payload)
            done.append(True)
            return b""

        one.exchange.altered["published", NAME] = hook
        one.round(number)
        assert done
        one.exchange.altered.clear()
        one.restart_client(NAME)
    assert one.round(3).published
    assert NAME in one.last(SERVER, "published")["survivors"]
    assert sizes(one)[-1] == len(lines(one))
    finish(one)
    assert check(one)[0] == []


class Dying:
    """A ledger whose process dies when it is about to write a certain record."""

    def __init__(self, ledger, append):
        self._real, self.append = ledger, append

    def __getattr__(self, name):
        return getattr(self._real, name)
