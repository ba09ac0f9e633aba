"""Messages that no honest server sends: what they leave in state and ledger."""

import pytest

from fgrpo_secure.errors import FgrpoError
from fgrpo_secure.terms import round_terms
from privacy.errors import PrivacyError
from privacy.secagg.server import open_round
from privacy.wire import Reader, Writer
from tests.app.federation import RUN
from tests.plans import Counter

NAME = "sums"
TRIO = ("count", "shift", NAME)
AWAITED = {
    "roster": {"roster", "aborted"},
    "shares": {"shares", "aborted"},
    "survivors": {"survivors", "published", "aborted"},
    "quorum": {"quorum", "published", "aborted"},
    "published": {"published", "aborted"},
}
EVERY = ("offer", "roster", "shares", "survivors", "quorum", "published", "aborted")


def published_with_everybody(one, number=1):
    assert one.round(number).published
    assert one.last("server", "published")["survivors"] == one.names


def offer_of(one, number, adapter, nonce="offer"):
    """An offer as the server would sign it; another nonce makes another."""
    terms = round_terms(
        one.plan,
        roster=one.roster,
        federation=RUN.hex(),
        round_number=number,
        adapter=adapter,
    )
    _, offer = open_round(terms, one.keys["server"], Counter(nonce), ())
    shown = log_shown(one) or one.server.last_words()[NAME]
    message = Writer().integer(number).field(offer).field(adapter).field(shown)
    return message.finish()


def log_shown(one):
    """What the last offer showed of the server's log; nothing before the first."""
    shown = b""
    for data in one.exchange.payloads("offer", NAME):
        reader = Reader(data)
        reader.integer()
        *_, shown = (reader.field() for _ in range(3))
    return shown


def during(one, phase, act, name=NAME):
    """Do something just before a client receives the message of a phase."""
    done = []

    def hook(data):
        act(one.exchange.clients[name])
        done.append(phase)
        return data

    one.exchange.altered[phase, name] = hook
    return done


def test_an_offer_whose_adapter_does_not_load_leaves_the_round_in_flight(federation):
    one = federation(names=TRIO)

    def offered(client):
        before, state = one.kinds(NAME), client._state
        with pytest.raises((FgrpoError, PrivacyError)):
            client.handle("offer", offer_of(one, 2, b"not an adapter"))
        assert client._state is state
        assert one.kinds(NAME) == before

    done = [during(one, phase, offered) for phase in ("shares", "quorum")]
    published_with_everybody(one)
    assert all(done)
    assert one.kinds(NAME).count("outcome") == 1


def test_junk_that_is_not_awaited_changes_neither_state_nor_ledger(federation):
    one = federation(names=TRIO)
    done = []

    def send_junk(phase):
        def act(client):
            before, state = one.kinds(NAME), client._state
            assert state is not None
            for other in EVERY:
                if other in AWAITED[phase]:
                    continue
                for junk in (b"", b"junk", bytes(300)):
                    with pytest.raises(PrivacyError):
                        client.handle(other, junk)
                    assert client._state is state
                    assert one.kinds(NAME) == before

        return act

    for phase in AWAITED:
        done.append(during(one, phase, send_junk(phase)))
    published_with_everybody(one)
    assert all(done)


def test_a_stray_abort_after_a_round_changes_nothing(federation):
    one = federation()
    one.exchange.lost = {("shares", name) for name in one.names}
    assert not one.round(1).published
    told = one.exchange.payloads("aborted")[0]
    before = one.kinds(NAME)
    for payload in (told, b"junk"):
        one.exchange.clients[NAME].handle("aborted", payload)
    assert one.kinds(NAME) == before
    assert one.exchange.clients[NAME]._state is None


def test_the_abort_of_an_earlier_round_does_not_abort_this_one(federation):
    one = federation()
    one.exchange.lost = {("shares", name) for name in one.names}
    assert not one.round(1).published
    told = one.exchange.payloads("aborted")[0]
    one.exchange.lost = set()
    refused = []

    def replayed(client):
        with pytest.raises(PrivacyError) as error:
            client.handle("aborted", told)
        refused.append(error.value)

    during(one, "shares", replayed)
    one.round(2)
    assert refused
    own = [r for r in one.records(NAME) if r["kind"] == "outcome" and r["round"] == 2]
    assert all(record["status"] != "aborted" for record in own)


def test_an_abort_is_recorded_with_the_head_of_the_servers_ledger(federation):
    one = federation()
    one.exchange.lost = {("shares", name) for name in one.names}
    assert not one.round(1).published
    head = one.ledgers["server"].head.hex()
    for name in one.names:
        outcome = one.last(name, "outcome")
        assert outcome["status"] == "aborted"
        assert outcome["reason"] == "server_aborted"
        assert outcome["server_head"] == head


def test_whoever_has_revealed_its_shares_records_an_abort_as_missed(federation):
    one = federation()
    one.exchange.lost = {("quorum", name) for name in one.names}
    # Only this one was never asked for its shares, and can vouch for the abort.
    one.exchange.unreached = {("quorum", NAME)}
    assert not one.round(1).published
    for name in one.names:
        outcome = one.last(name, "outcome")
        assert outcome["reason"] == "server_aborted"
        if name == NAME:
            assert outcome["status"] == "aborted"
        else:
            assert outcome["status"] == "missed"
            assert outcome["server_head"] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:-1],
        lambda data: b"junk",
    ],
    ids=["a bit flipped", "cut", "junk"],
)
def test_nothing_is_charged_for_a_bad_inbox(federation, change):
    one = federation()
    one.exchange.altered["shares", NAME] = change
    assert one.round(1).published
    assert isinstance(one.exchange.errors["shares", NAME], PrivacyError)
    assert one.kinds(NAME) == ["opened", "cosigned", "joined", "outcome"]
    assert one.ledgers[NAME].history.totals()[0].charges == 0


def test_a_round_beyond_the_plan_is_refused_and_the_refusal_recorded(federation):
    one = federation(names=TRIO)
    client, before = one.exchange.clients[NAME], one.kinds(NAME)
    with pytest.raises(PrivacyError):
        client.handle("offer", offer_of(one, one.plan.rounds + 1, one.server.adapter))
    assert one.kinds(NAME) == [*before, "refused"]
    assert client._state is None
    # The number alone was wrong: the plan's last round is joined.
    client.handle("offer", offer_of(one, one.plan.rounds, one.server.adapter))
    assert one.kinds(NAME)[-1] == "joined"


def test_a_round_number_that_nobody_signed_writes_no_refusal(federation):
    one = federation(names=TRIO)
    offer = offer_of(one, 1, one.server.adapter)
    reader = Reader(offer)
    reader.integer(), reader.field()
    parts = reader.field(), reader.field()
    before = one.kinds(NAME)
    for number in (0, 10**6):
        forged = Writer().integer(number).field(bytes(200))
        for part in parts:
            forged.field(part)
        with pytest.raises(PrivacyError):
            one.exchange.clients[NAME].handle("offer", forged.finish())
    assert one.kinds(NAME) == before
