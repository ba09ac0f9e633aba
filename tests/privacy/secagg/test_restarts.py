"""Processes that die at any step and go on from their stored bytes.

The kernel does no input or output, so the store is the caller's. The one here keeps the
rule of docs/protocol.md and no more: one record, written at once before the answer is
sent, holds the next state, what was asked and what was answered. The same question
again gets the same bytes; another one meets the next state.
"""

from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest

from privacy.errors import ReplayError
from privacy.plan import SERVER
from privacy.secagg import client, server
from privacy.secagg.envelope import Signed, read_server, sign
from privacy.secagg.messages import Consistency, Survivors
from privacy.wire import decode
from tests.privacy.secagg.harness import (
    PHASES,
    Counter,
    identity,
    ledger_head,
    make_terms,
    make_vector,
    plain_sum,
    play_until,
)

KEY = identity("server")
POINTS = ("before it is stored", "before it is sent", "after it was sent")

ANSWERING = {
    "shares": client.AwaitingRoster,
    "masked": client.AwaitingShares,
    "consistency": client.AwaitingSurvivors,
    "reveal": client.AwaitingQuorum,
}

# No two runs of a process draw the same bytes.
RUNS = count()


class KilledError(Exception):
    """The process is gone; what was stored is not."""


@dataclass
class Disk:
    """What outlives a client's process.

    Attributes:
        joined: highest round number joined.
        record: next state, last question, its answer; `None` outside a round.
    """

    joined: int = 6
    record: tuple[bytes, bytes, bytes] | None = None


@dataclass
class Client:
    """A client whose process may be killed at one point of one phase."""

    name: str
    terms: object
    disk: Disk = field(default_factory=Disk)
    kill: tuple[str, str] | None = None

    def handle(self, phase, message):
        """The answer to send, from the store where it was given before."""
        if self.disk.record and self.disk.record[1] == message:
            return self.disk.record[2]
        following, sent = self._step(phase, message)
        self._point(phase, "before it is stored")
        # One write: the harness cannot be killed between these two lines.
        self.disk.joined = self.terms.round_number
        self.disk.record = (following.to_bytes(), message, sent)
        self._point(phase, "before it is sent")
        return sent

    def _step(self, phase, message):
        entropy = Counter(f"run {next(RUNS)} of {self.name}")
        if phase == "advert":
            key, last = identity(self.name), self.disk.joined
            return client.join(message, self.terms, key, entropy, last)
        if self.disk.record is None:
            msg = "no round is in progress here"
            raise ReplayError(msg)
        state = client.restore_client(self.disk.record[0], identity(self.name))
        if not isinstance(state, ANSWERING[phase]):
            msg = "this phase was answered, or is not reached"
            raise ReplayError(msg)
        if phase == "shares":
            return state.share_keys(message, entropy)
        if phase == "masked":
            return state.open_inbox(message).mask(make_vector(self.terms, self.name))
        if phase == "consistency":
            return state.confirm(message)
        return state.reveal(message, ledger_head(self.name))

    def conclude(self, message):
        """The end: nothing of the round stays on disk."""
        state = client.restore_client(self.disk.record[0], identity(self.name))
        outcome = state.conclude(message)
        self.disk.record = None
        return outcome

    def _point(self, phase, point):
        if self.kill == (phase, point):
            self.kill = None
            raise KilledError


@dataclass
class Federation:
    """A server that asks again whoever did not answer, and a log of what was sent."""

    clients: dict[str, Client]
    dropout: str
    server_dies: bool = False
    sent: dict[tuple[str, str], set[bytes]] = field(default_factory=dict)

    def ask(self, phase, name, message):
        for _ in range(2):
            party = self.clients[name]
            lost = party.kill == (phase, "after it was sent")
            try:
                answer = party.handle(phase, message)
            except KilledError:
                # Another process, with the same disk.
                self.clients[name] = Client(name, party.terms, party.disk)
                continue
            self.sent.setdefault((phase, name), set()).add(answer)
            if not lost:
                return answer
            self.clients[name] = Client(name, party.terms, party.disk)
        pytest.fail("a client that was restarted did not answer")

    def run(self, terms):
        state, offer = server.open_round(terms, KEY, Counter("server"), ())
        messages = dict.fromkeys(terms.cohort, offer)
        for phase in PHASES:
            replies = {
                name: self.ask(phase, name, message)
                for name, message in messages.items()
                if (phase, name) != ("masked", self.dropout)
            }
            state, messages = self.collect(state, replies)
        published = state.publish(bytes(32), bytes(32))
        for name in state.survivors:
            assert self.clients[name].conclude(published).survivors == state.survivors
        return state

    def collect(self, state, replies):
        if self.server_dies:
            data = state.to_bytes()
            lost = restored(data).collect(replies)
            if isinstance(state, server.CollectingMasked):
                for name in sorted(replies):
                    # It dies after each vector, having added it, and is sent it again.
                    state = restored(restored(data).add(name, replies[name]).to_bytes())
                    state = state.add(name, replies[name])
                    data = state.to_bytes()
                result = restored(data).close()
            else:
                result = restored(data).collect(replies)
            assert result == lost
        else:
            result = state.collect(replies)
        return result if isinstance(result, tuple) else (result, {})


def restored(data):
    return server.restore_server(data, KEY)


def federation(terms, dropout="client-003", **changes):
    clients = {name: Client(name, terms) for name in terms.cohort}
    return Federation(clients, dropout, **changes)


def check(run, terms):
    state = run.run(terms)
    survivors = tuple(sorted(set(terms.cohort) - {run.dropout}))
    assert state.survivors == survivors
    assert state.blamed == {}
    assert np.array_equal(state.residues, plain_sum(terms, survivors))
    # Nobody let two different answers to one phase out of its process.
    assert {len(answers) for answers in run.sent.values()} == {1}
    assert all(run.clients[name].disk.record is None for name in survivors)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_client_that_is_killed_anywhere_goes_on_and_answers_once(phase, point):
    terms = make_terms(4)
    run = federation(terms)
    run.clients["client-001"].kill = (phase, point)
    check(run, terms)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("phase", PHASES)
def test_all_clients_killed_at_one_point_go_on_and_answer_once(phase, point):
    terms = make_terms(4)
    run = federation(terms)
    for party in run.clients.values():
        if (phase, party.name) != ("masked", run.dropout):
            party.kill = (phase, point)
    # The dropout is asked nothing after R2.
    if phase in {"consistency", "reveal"}:
        run.clients[run.dropout].kill = None
    check(run, terms)


def test_a_server_that_is_killed_at_every_step_comes_to_the_same():
    terms = make_terms(4)
    check(federation(terms, server_dies=True), terms)


def test_a_store_that_is_written_too_late_would_be_seen():
    # The rule broken on purpose: the answer leaves before the record is written, the
    # process dies, and the next one deals other shares of the same secrets.
    class Hasty(Client):
        def _point(self, phase, point):
            if (phase, point) == ("shares", "before it is stored"):
                raise KilledError

        def _step(self, phase, message):
            following, sent = super()._step(phase, message)
            run.sent.setdefault((phase, self.name), set()).add(sent)
            return following, sent

    terms = make_terms(4)
    run = federation(terms)
    run.clients["client-001"] = Hasty("client-001", terms)
    with pytest.raises(AssertionError):
        check(run, terms)
    assert len(run.sent["shares", "client-001"]) == 2


def answered(phase):
    """A client that has answered this phase, and the message that it answered."""
    play = play_until(phase)
    party = Client("client-001", play.terms)
    state = play.clients["client-001"]
    if state is not None:
        party.disk.record = (state.to_bytes(), b"", b"")
    message = play.messages["client-001"]
    party.handle(phase, message)
    return play, party, message


@pytest.mark.parametrize("phase", PHASES)
def test_a_question_that_was_answered_gets_the_same_bytes_and_no_other_any(phase):
    play, party, message = answered(phase)
    stored = party.disk.record
    again = Client(party.name, party.terms, party.disk)
    assert again.handle(phase, message) == stored[2]
    # Any other question of that phase meets the next state, which has no such answer.
    other = server.open_round(play.terms, KEY, Counter("another"), ())[1]
    if phase != "advert":
        other = message[:-1] + bytes([message[-1] ^ 1])
    with pytest.raises(ReplayError, match=r"joined once|was answered"):
        again.handle(phase, other)
    assert party.disk.record == stored


def test_a_client_that_lost_its_state_joins_no_second_time():
    play, party, _ = answered("advert")
    party.disk.record = None
    other = server.open_round(play.terms, KEY, Counter("another"), ())[1]
    with pytest.raises(ReplayError, match="joined once"):
        party.handle("advert", other)


def test_bytes_alone_do_not_tell_an_old_state_from_the_last():
    # Why a store must not be put back from a copy, and why this runtime keeps none
    # (docs/decisions/0005): the old state knows nothing of the answer it gave.
    play = play_until("consistency")
    data = play.clients["client-001"].to_bytes()
    digest = play.server.desk.offer_digest
    told = read_server(play.messages["client-001"], Survivors, play.terms, digest)
    headers = dict(told.headers)
    first = play.clients["client-001"].confirm(play.messages["client-001"])[1]
    del headers["client-003"]
    message = sign(Survivors(headers), SERVER, digest, KEY)
    second = client.restore_client(data, identity("client-001")).confirm(message)[1]
    assert seen(first).survivors_hash != seen(second).survivors_hash


def seen(confirmation):
    return decode(Consistency, decode(Signed, confirmation).body)
