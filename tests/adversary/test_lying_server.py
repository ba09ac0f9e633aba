"""A malicious server: one test a lie. It holds the server's key and signs them all."""

from dataclasses import replace

import pytest

from privacy.crypto import AgreementKey
from privacy.errors import (
    BelowThresholdError,
    FaultyPeerOrServerError,
    FaultyServerError,
    MalformedMessageError,
    PlanMismatchError,
    PrivacyError,
    RefusalError,
    ReplayError,
)
from privacy.plan import SERVER
from privacy.secagg import client, server
from privacy.secagg.envelope import read_server, sign
from privacy.secagg.messages import (
    Aborted,
    Advert,
    Consistency,
    Delivery,
    Inbox,
    Published,
    Quorum,
    Roster,
    Survivors,
    make_offer,
    offer_digest_of,
    read_aborted,
    self_mask_commitment,
    survivors_hash_of,
)
from privacy.wire import Reader, Writer, encode
from tests.privacy.secagg.harness import (
    PHASES,
    Counter,
    Play,
    finish,
    identity,
    join,
    make_terms,
    plain_sum,
    play_until,
    run_round,
)

NAME = "client-001"
KEY = identity("server")
HEAD = bytes(32)


def said(play, kind, name=NAME):
    """What the server told a client in this phase."""
    digest = play.server.desk.offer_digest
    return read_server(play.messages[name], kind, play.terms, digest)


def lie(play, message):
    """Any message, signed by the server for this round."""
    return sign(message, SERVER, play.server.desk.offer_digest, KEY)


# R0: the offer.


def offered(**changes):
    """An offer of a server that works to other terms."""
    terms = make_terms(**changes)
    return server.open_round(terms, KEY, Counter("server"), ())[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"plan_digest": b"\x0e" * 32},
        {"adapter_digest": b"\x0e" * 32},
        {"federation": "another"},
        {"round_number": 8},
        {"colluders": 1},
        {"min_survivors": 3},
        {"modulus_bits": 31},
        {"vector_length": 12},
        {"count": 3},
        {"count": 5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_offer_of_other_terms_is_refused(changes):
    with pytest.raises(PlanMismatchError, match="not ours"):
        join(NAME, offered(**changes), make_terms(4))


def test_a_threshold_below_the_clients_own_floor_is_refused():
    strict = make_terms(4, min_survivors=4, colluders=1)
    with pytest.raises(PlanMismatchError, match="min_survivors"):
        join(NAME, offered(min_survivors=3, colluders=1), strict)
    with pytest.raises(PlanMismatchError, match="colluders"):
        join(NAME, offered(min_survivors=4, colluders=0), strict)


def test_a_cohort_below_the_clients_own_floor_is_refused():
    with pytest.raises(PlanMismatchError, match="cohort"):
        join(NAME, offered(count=3), make_terms(4))


def test_another_identity_in_the_cohort_is_refused():
    cohort = dict(make_terms(4).cohort) | {"client-002": identity("spy").verify_key}
    with pytest.raises(PlanMismatchError, match="cohort"):
        join(NAME, offered(cohort=cohort), make_terms(4))


def test_an_offer_that_the_pinned_server_did_not_sign_is_refused():
    spy = identity("spy")
    terms = make_terms(4, server=spy.verify_key)
    _, offer = server.open_round(terms, spy, Counter("server"), ())
    with pytest.raises(FaultyServerError):
        join(NAME, offer, make_terms(4))


def test_an_offer_under_another_offers_digest_is_refused():
    offer = make_offer(make_terms(4), bytes(32), ())
    message = sign(offer, SERVER, b"\x01" * 32, KEY)
    with pytest.raises(MalformedMessageError, match="digest"):
        join(NAME, message, make_terms(4))


def test_a_second_attempt_of_a_round_is_refused():
    offer = replace(make_offer(make_terms(4), bytes(32), ()), attempt=2)
    message = sign(offer, SERVER, offer_digest_of(offer), KEY)
    with pytest.raises(PlanMismatchError, match="attempt"):
        join(NAME, message, make_terms(4))


@pytest.mark.parametrize("last_round", [7, 8, 2**40])
def test_a_round_is_joined_once_and_never_an_earlier_one(last_round):
    with pytest.raises(ReplayError, match="joined once"):
        client.join(
            offered(), make_terms(4), identity(NAME), Counter("join"), last_round
        )


# R1: the roster.


def advert_of(play, name, **changes):
    """A signed advert of this client, with other keys."""
    digest = play.server.desk.offer_digest
    plain = Advert(
        encryption_key=AgreementKey(b"e" * 32).public,
        mask_key=AgreementKey(b"m" * 32).public,
        self_mask_commitment=self_mask_commitment(digest, name, b"b" * 32),
    )
    return sign(replace(plain, **changes), name, digest, identity(name))


def altered_roster(name, advert, phase_play=None):
    play = phase_play or play_until("shares")
    adverts = dict(said(play, Roster).adverts)
    adverts[name] = advert(play)
    return play, lie(play, Roster(adverts))


def share_keys(play, message):
    return play.clients[NAME].share_keys(message, Counter("deal"))


def test_a_key_that_the_server_put_in_place_of_a_clients_is_refused():
    def spy(play):
        digest = play.server.desk.offer_digest
        advert = Advert(
            AgreementKey(b"e" * 32).public, AgreementKey(b"m" * 32).public, bytes(32)
        )
        return sign(advert, "client-002", digest, KEY)

    play, message = altered_roster("client-002", spy)
    with pytest.raises(FaultyServerError, match="client-002"):
        share_keys(play, message)


def test_our_own_advert_is_compared_byte_for_byte():
    play, message = altered_roster(NAME, lambda play: advert_of(play, NAME))
    with pytest.raises(FaultyServerError, match="our own advert"):
        share_keys(play, message)


def test_a_roster_without_us_is_refused():
    play = play_until("shares")
    adverts = dict(said(play, Roster).adverts)
    del adverts[NAME]
    with pytest.raises(FaultyServerError, match="our own advert"):
        share_keys(play, lie(play, Roster(adverts)))


@pytest.mark.parametrize("part", ["encryption_key", "mask_key"])
@pytest.mark.parametrize(
    "public",
    [
        bytes(32),
        b"\x01" + bytes(31),
        b"\xff" * 32,
        (2**255 - 19).to_bytes(32, "little"),
    ],
    ids=["zero", "one", "all ones", "p"],
)
def test_a_low_order_or_non_canonical_key_is_refused(part, public):
    play, message = altered_roster(
        "client-002", lambda play: advert_of(play, "client-002", **{part: public})
    )
    with pytest.raises(FaultyServerError, match="X25519"):
        share_keys(play, message)


def test_a_public_key_that_occurs_twice_is_refused():
    def copied(play):
        own = play.clients[NAME].mask_key.public
        return advert_of(play, "client-002", mask_key=own)

    play, message = altered_roster("client-002", copied)
    with pytest.raises(FaultyServerError, match="occurs twice"):
        share_keys(play, message)


def test_an_advert_of_an_earlier_round_is_refused():
    earlier = play_until("shares", make_terms(4, round_number=6))
    old = said(earlier, Roster).adverts["client-002"]
    play, message = altered_roster("client-002", lambda _: old)
    with pytest.raises(FaultyServerError, match="another round"):
        share_keys(play, message)


def test_an_unknown_client_in_the_roster_is_refused():
    play, message = altered_roster("stranger", lambda play: advert_of(play, "stranger"))
    with pytest.raises(FaultyServerError, match="not in the cohort"):
        share_keys(play, message)


def test_a_roster_in_which_a_client_occurs_twice_is_refused():
    play = play_until("shares")
    adverts = said(play, Roster).adverts
    body = Writer().integer(5)
    for name in sorted([*adverts, "client-002"]):
        body.text(name).field(adverts[name])
    with pytest.raises(MalformedMessageError, match="distinct"):
        share_keys(play, raw(play, Roster, body.finish()))


def raw(play, kind, body):
    """A signed message of this kind, with any bytes for its body."""

    class Raw:
        LABEL = kind.LABEL

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("privacy.secagg.envelope.encode", encode_or(body))
        return sign(Raw(), SERVER, play.server.desk.offer_digest, KEY)


def encode_or(body):
    return lambda record: body if type(record).__name__ == "Raw" else encode(record)


def test_a_roster_below_the_threshold_is_refused():
    play = play_until("shares")
    adverts = dict(said(play, Roster).adverts)
    for name in ("client-002", "client-003"):
        del adverts[name]
    with pytest.raises(BelowThresholdError):
        share_keys(play, lie(play, Roster(adverts)))


def test_a_roster_of_an_earlier_round_is_refused():
    earlier = play_until("shares", make_terms(4, round_number=6))
    with pytest.raises(ReplayError):
        share_keys(play_until("shares"), earlier.messages[NAME])


def test_adverts_of_a_second_offer_of_the_same_round_are_refused():
    # Two offers of one round differ by their nonces alone: the clients that took one
    # cannot be put into the roster of those that took the other.
    terms = make_terms(4)
    second = server.open_round(terms, KEY, Counter("second offer"), ())[1]
    _, advert = join("client-002", second, terms)
    play, message = altered_roster("client-002", lambda _: advert)
    with pytest.raises(FaultyServerError, match="another round or attempt"):
        share_keys(play, message)


# R2: the key shares.


def open_inbox(play, message):
    return play.clients[NAME].open_inbox(message)


def altered_inbox(change):
    play = play_until("masked")
    deliveries = dict(said(play, Inbox).deliveries)
    change(deliveries)
    return play, lie(play, Inbox(deliveries))


def test_key_shares_that_were_not_forwarded_are_missed():
    play, message = altered_inbox(lambda deliveries: deliveries.pop(NAME))
    with pytest.raises(FaultyServerError, match="our own key shares"):
        open_inbox(play, message)

    def keep_two(deliveries):
        for name in ("client-002", "client-003"):
            del deliveries[name]

    play, message = altered_inbox(keep_two)
    with pytest.raises(BelowThresholdError, match="dealt key shares"):
        open_inbox(play, message)


def test_a_share_withheld_from_one_client_alone_gives_no_sum():
    # The server tells one client that client-003 dealt nothing. Its masks then do not
    # cancel, and it is alone with its survivors in the consistency check.
    def withhold(phase, name, data):
        if phase != "masked" or name != NAME:
            return data
        deliveries = dict(said(play, Inbox).deliveries)
        del deliveries["client-003"]
        return lie(play, Inbox(deliveries))

    play = Play(make_terms(4))
    outcome = finish(play, downstream=withhold)
    assert outcome.unmasked.survivors == ("client-000", "client-002", "client-003")
    assert outcome.unmasked.blamed == {NAME: "masked for another roster or sharers"}


@pytest.mark.parametrize("part", range(3))
def test_an_altered_share_is_refused(part):
    def alter(deliveries):
        delivery = deliveries["client-002"]
        fields = [*delivery.sealed.commitments, delivery.sealed.ciphertext]
        fields[part] = fields[part][:-1] + bytes([fields[part][-1] ^ 1])
        sealed = type(delivery.sealed)(*fields)
        deliveries["client-002"] = replace(delivery, sealed=sealed)

    play, message = altered_inbox(alter)
    with pytest.raises(FaultyServerError, match="altered on its way"):
        open_inbox(play, message)


def test_shares_for_another_holder_are_refused():
    play = play_until("masked")
    deliveries = dict(said(play, Inbox).deliveries)
    meant_for_other = said(play, Inbox, "client-000").deliveries["client-002"]
    deliveries["client-002"] = meant_for_other
    with pytest.raises(FaultyServerError, match="altered on its way"):
        open_inbox(play, lie(play, Inbox(deliveries)))


def test_shares_of_one_dealer_in_the_name_of_another_are_refused():
    def swap(deliveries):
        deliveries["client-002"] = deliveries["client-003"]

    play, message = altered_inbox(swap)
    with pytest.raises(FaultyServerError, match="another sender"):
        open_inbox(play, message)


def test_key_shares_of_somebody_outside_the_roster_are_refused():
    def add(deliveries):
        deliveries["stranger"] = deliveries["client-002"]

    play, message = altered_inbox(add)
    with pytest.raises(FaultyServerError, match="not in the roster"):
        open_inbox(play, message)


def test_key_shares_of_an_earlier_round_are_refused():
    earlier = play_until("masked", make_terms(4, round_number=6))
    old: Delivery = said(earlier, Inbox).deliveries["client-002"]

    def replay(deliveries):
        deliveries["client-002"] = old

    play, message = altered_inbox(replay)
    with pytest.raises(FaultyServerError, match="another round"):
        open_inbox(play, message)
    with pytest.raises(ReplayError):
        open_inbox(play_until("masked"), earlier.messages[NAME])


def test_two_rosters_in_one_round_show_in_the_key_shares():
    # The server hides client-003 from NAME and shows it to the others.
    play = play_until("shares")
    adverts = dict(said(play, Roster).adverts)
    del adverts["client-003"]
    honest = dict(play.messages)
    play.messages[NAME] = lie(play, Roster(adverts))
    play.answer("shares")
    heads = play.replies
    state = play.clients[NAME]
    other = play_until("shares")
    other.messages = honest
    other.answer("shares")
    other.replies[NAME] = heads[NAME]
    other.collect()
    assert other.server.blamed == {NAME: "dealt over another roster"}
    # Even where it forwards the others' shares to NAME, their signatures tell.
    inbox = said(other, Inbox, "client-000")
    own = said(play_until("masked"), Inbox).deliveries[NAME]
    del inbox.deliveries["client-003"]
    message = lie(play, Inbox(inbox.deliveries | {NAME: own}))
    with pytest.raises(FaultyPeerOrServerError, match="another roster"):
        state.open_inbox(message)


def test_a_dealer_in_an_inbox_twice_is_refused():
    play = play_until("masked")
    deliveries = said(play, Inbox).deliveries
    body = Writer().integer(5)
    for name in sorted([*deliveries, "client-002"]):
        delivery = deliveries[name]
        body.text(name).field(delivery.head)
        body.fixed(delivery.sealed.self_mask_commitment, 32)
        body.fixed(delivery.sealed.mask_key_commitment, 32)
        body.field(delivery.sealed.ciphertext).integer(len(delivery.path))
        for step in delivery.path:
            body.fixed(step, 32)
    with pytest.raises(MalformedMessageError, match="distinct"):
        open_inbox(play, raw(play, Inbox, body.finish()))


def test_a_colluder_that_deals_in_two_ways_opens_nothing():
    # It signs two roots, and the server shows each to half of the clients. Their U2 are
    # then of different hashes: masks do not cancel, and no quorum forms.
    terms = make_terms(4, colluders=1)
    play = play_until("shares", terms)
    colluder = play.clients["client-003"]
    again = play.again(colluder, identity("client-003"))
    deals = [
        state.share_keys(play.messages["client-003"], Counter(seed))[1]
        for state, seed in ((colluder, "one way"), (again, "another way"))
    ]
    play.clients["client-003"] = play.again(again, identity("client-003"))
    play.answer("shares")
    rounds = []
    for dealt in deals:
        play.replies["client-003"] = dealt
        rounds.append(play.server.collect(play.replies))
    (state, shown), (_, other) = rounds
    play.server = state
    play.messages = {**shown, NAME: other[NAME]}
    play.answer("masked")
    play.collect()
    # The server has every vector, and calls them all survivors.
    assert play.server.blamed == {NAME: "masked for another roster or sharers"}
    assert NAME not in play.server.survivors


class Watched(dict):
    """Vectors that remember who made one."""

    def __init__(self, vectors):
        super().__init__(vectors)
        self.made = set()

    def __getitem__(self, name):
        self.made.add(name)
        return super().__getitem__(name)


def strangers_inbox(play):
    inbox = Inbox(said(play, Inbox).deliveries)
    return sign(inbox, SERVER, play.server.desk.offer_digest, identity("spy"))


@pytest.mark.parametrize(
    "inbox",
    [
        lambda _: b"",
        lambda _: bytes(1000),
        lambda play: play.messages[NAME][:-1],
        lambda play: play.messages["client-000"],
        lambda play: lie(play, Inbox({})),
        strangers_inbox,
    ],
    ids=["empty", "garbage", "cut", "another client's", "no dealers", "not signed"],
)
def test_a_bad_inbox_ends_the_part_before_any_vector_is_made(inbox):
    play = play_until("masked")
    play.vectors = Watched(play.vectors)
    play.messages[NAME] = inbox(play)
    assert not hasattr(play.clients[NAME], "mask")
    play.answer("masked")
    assert NAME in play.errors
    assert NAME not in play.clients
    # The others made theirs, and no vector of this client was asked for.
    assert play.vectors.made == {"client-000", "client-002", "client-003"}


# R3 and R4: different models, different survivors.


def test_a_different_adapter_shown_to_one_client_ends_its_part():
    # A server that shows NAME another adapter must make it another offer, under which
    # nobody else's messages count.
    terms = make_terms(4)
    victim = make_terms(4, adapter_digest=b"\x66" * 32)
    with pytest.raises(PlanMismatchError, match="adapter_digest"):
        join(NAME, Play(terms).messages[NAME], victim)

    def other_offer(phase, name, data):
        if phase == "advert" and name == NAME:
            return server.open_round(victim, KEY, Counter("server"), ())[1]
        return data

    play = Play(terms)
    play.own_terms[NAME] = victim
    outcome = finish(play, downstream=other_offer)
    assert NAME not in outcome.unmasked.survivors
    assert "another round or attempt" in outcome.unmasked.blamed[NAME]


def test_a_different_plan_shown_to_one_client_ends_its_part():
    terms = make_terms(4)
    victim = make_terms(4, plan_digest=b"\x66" * 32)

    def other_offer(phase, name, data):
        if phase == "advert" and name == NAME:
            return server.open_round(victim, KEY, Counter("server"), ())[1]
        return data

    play = Play(terms)
    outcome = finish(play, downstream=other_offer)
    assert isinstance(play.errors[NAME], PlanMismatchError)
    assert NAME not in outcome.unmasked.survivors
    assert (
        outcome.unmasked.residues == plain_sum(terms, outcome.unmasked.survivors)
    ).all()


def survivors_without(play, *names):
    headers = dict(said(play, Survivors).headers)
    for name in names:
        del headers[name]
    return headers


def test_survivor_sets_that_differ_between_clients_open_nothing():
    # Two are told that everybody survived, two that client-000 dropped out: the server
    # would get shares of both of its secrets.
    play = play_until("consistency")
    for name in ("client-002", "client-003"):
        headers = survivors_without(play, "client-000")
        play.messages[name] = lie(play, Survivors(headers))
    play.answer("consistency")
    confirmations = play.replies
    messages = {
        "all": lie(play, Quorum(confirmations)),
        "two": lie(play, Quorum({NAME: confirmations[NAME]})),
    }
    errors = (FaultyServerError, FaultyPeerOrServerError, BelowThresholdError)
    for name in play.clients:
        for message in messages.values():
            state = play.again(play.clients[name], identity(name))
            with pytest.raises(errors):
                state.reveal(message, HEAD)


def test_a_client_listed_both_as_survivor_and_as_dropout_is_revealed_once():
    # One state, asked with two survivor sets: the first confirmation takes one share
    # of each peer into the next state, and the other is gone.
    play = play_until("consistency")
    state = play.clients[NAME]
    both = state.key_shares["client-000"]
    following, _ = state.confirm(play.messages[NAME])
    assert both.self_mask in following.shares
    assert both.mask_key not in following.to_bytes()
    second = lie(play, Survivors(survivors_without(play, "client-000")))
    with pytest.raises(ReplayError):
        state.confirm(second)


def test_a_client_twice_among_the_survivors_is_refused():
    play = play_until("consistency")
    headers = said(play, Survivors).headers
    body = Writer().integer(5)
    for name in sorted([*headers, NAME]):
        body.text(name).fixed(headers[name], 32)
    with pytest.raises(MalformedMessageError, match="distinct"):
        play.clients[NAME].confirm(raw(play, Survivors, body.finish()))


def test_survivors_outside_the_sharers_are_refused():
    play = play_until("consistency")
    headers = dict(said(play, Survivors).headers) | {"stranger": bytes(32)}
    with pytest.raises(FaultyServerError, match="dealt no key shares"):
        play.clients[NAME].confirm(lie(play, Survivors(headers)))


def test_survivors_that_dealt_nothing_are_refused():
    play = play_until("shares")
    play.answer("shares")
    del play.replies["client-003"]
    play.collect()
    play.answer("masked")
    play.collect()
    headers = dict(said(play, Survivors).headers) | {"client-003": bytes(32)}
    with pytest.raises(FaultyServerError, match="dealt no key shares"):
        play.clients[NAME].confirm(lie(play, Survivors(headers)))


def test_too_few_survivors_are_refused():
    play = play_until("consistency")
    headers = survivors_without(play, "client-002", "client-003")
    with pytest.raises(BelowThresholdError):
        play.clients[NAME].confirm(lie(play, Survivors(headers)))


def test_too_few_survivors_for_the_noise_are_refused():
    play = play_until("consistency", make_terms(5, min_survivors=5))
    headers = survivors_without(play, "client-004")
    with pytest.raises(BelowThresholdError, match="5 are needed"):
        play.clients[NAME].confirm(lie(play, Survivors(headers)))


def test_a_client_that_sent_and_is_called_a_dropout_stays_silent():
    play = play_until("consistency")
    message = lie(play, Survivors(survivors_without(play, NAME)))
    with pytest.raises(RefusalError, match="too late"):
        play.clients[NAME].confirm(message)


def test_another_vector_in_our_name_is_refused():
    play = play_until("consistency")
    headers = dict(said(play, Survivors).headers) | {NAME: b"\x01" * 32}
    with pytest.raises(FaultyServerError, match="not ours"):
        play.clients[NAME].confirm(lie(play, Survivors(headers)))


# R5: the quorum and the reveal.


def quorum(play):
    return dict(said(play, Quorum).confirmations)


def test_a_quorum_below_the_threshold_opens_nothing():
    play = play_until("reveal")
    confirmations = quorum(play)
    for name in ("client-002", "client-003"):
        del confirmations[name]
    with pytest.raises(BelowThresholdError, match="confirmed"):
        play.clients[NAME].reveal(lie(play, Quorum(confirmations)), HEAD)


def test_a_confirmation_that_the_server_made_up_opens_nothing():
    play = play_until("reveal")
    forged = sign(
        play.clients[NAME].seen, "client-002", play.server.desk.offer_digest, KEY
    )
    message = lie(play, Quorum(quorum(play) | {"client-002": forged}))
    with pytest.raises(FaultyServerError, match="client-002"):
        play.clients[NAME].reveal(message, HEAD)


def test_one_confirmation_under_several_names_opens_nothing():
    play = play_until("reveal")
    one = quorum(play)["client-000"]
    message = lie(play, Quorum(dict.fromkeys(quorum(play), one)))
    with pytest.raises(FaultyServerError, match="another sender"):
        play.clients[NAME].reveal(message, HEAD)


def test_a_confirmation_of_other_sets_opens_nothing():
    play = play_until("reveal")
    seen = play.clients[NAME].seen
    other = survivors_hash_of(seen.sharers_hash, {})
    signed = sign(
        Consistency(seen.roster_hash, seen.sharers_hash, other),
        "client-002",
        play.server.desk.offer_digest,
        identity("client-002"),
    )
    message = lie(play, Quorum(quorum(play) | {"client-002": signed}))
    with pytest.raises(FaultyPeerOrServerError, match="other sets"):
        play.clients[NAME].reveal(message, HEAD)


def test_a_colluder_that_dropped_out_does_not_count_for_the_quorum():
    play = play_until("masked", make_terms(5))
    play.answer("masked")
    del play.replies["client-004"]
    play.collect()
    play.answer("consistency")
    play.collect()
    state = play.clients[NAME]
    colluding = sign(
        state.seen,
        "client-004",
        play.server.desk.offer_digest,
        identity("client-004"),
    )
    message = lie(play, Quorum(quorum(play) | {"client-004": colluding}))
    with pytest.raises(FaultyServerError, match="not a survivor"):
        state.reveal(message, HEAD)


def test_a_confirmation_of_an_unknown_client_opens_nothing():
    play = play_until("reveal")
    state = play.clients[NAME]
    stranger = sign(
        state.seen,
        "stranger",
        play.server.desk.offer_digest,
        identity("stranger"),
    )
    message = lie(play, Quorum(quorum(play) | {"stranger": stranger}))
    with pytest.raises(FaultyServerError, match="not a survivor"):
        state.reveal(message, HEAD)


def test_a_client_in_a_quorum_twice_opens_nothing():
    play = play_until("reveal")
    confirmations = quorum(play)
    body = Writer().integer(5)
    for name in sorted([*confirmations, "client-002"]):
        body.text(name).field(confirmations[name])
    with pytest.raises(MalformedMessageError, match="distinct"):
        play.clients[NAME].reveal(raw(play, Quorum, body.finish()), HEAD)


def test_a_second_unmask_request_is_refused():
    play = play_until("reveal")
    state, message = play.clients[NAME], play.messages[NAME]
    revealed, _ = state.reveal(message, HEAD)
    with pytest.raises(ReplayError, match="already given"):
        state.reveal(message, HEAD)
    # What is stored by then has no share to give, and no method that gives one.
    restored = client.restore_client(revealed.to_bytes(), identity(NAME))
    assert not hasattr(restored, "reveal")
    assert not any(share in restored.to_bytes() for share in state.shares)


def test_a_quorum_of_an_earlier_round_opens_nothing():
    earlier = play_until("reveal", make_terms(4, round_number=6))
    with pytest.raises(ReplayError):
        play_until("reveal").clients[NAME].reveal(earlier.messages[NAME], HEAD)


# The end: aborts, and one cohort in two sums.


def abort(play, key=KEY, digest=None):
    """An abort of this round, or one that somebody else signed."""
    digest = digest or play.server.desk.offer_digest
    return sign(Aborted("too few clients", HEAD), SERVER, digest, key)


def read_as_client(play, data):
    seat = play.clients[NAME].seat
    return read_aborted(data, seat.terms, seat.offer_digest)


@pytest.mark.parametrize("phase", PHASES[1:])
def test_an_abort_that_the_pinned_server_did_not_sign_is_refused(phase):
    play = play_until(phase)
    assert read_as_client(play, abort(play)).reason == "too few clients"
    for forger in ("spy", "client-002"):
        with pytest.raises(FaultyServerError, match="did not sign"):
            read_as_client(play, abort(play, identity(forger)))


def test_an_abort_of_another_round_is_refused():
    earlier = play_until("shares", make_terms(4, round_number=6))
    play = play_until("shares")
    with pytest.raises(ReplayError, match="another round"):
        read_as_client(play, abort(earlier))
    with pytest.raises(ReplayError, match="another round"):
        read_as_client(play, abort(play, digest=b"\x01" * 32))


def test_no_altered_abort_passes():
    play = play_until("shares")
    message = abort(play)
    for bit in range(0, 8 * len(message), 3):
        data = bytearray(message)
        data[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(PrivacyError):
            read_as_client(play, bytes(data))
    for data in (b"", message[:-1], message + b"\0", play.messages[NAME]):
        with pytest.raises(MalformedMessageError):
            read_as_client(play, data)


def test_an_abort_is_no_outcome_and_an_outcome_no_abort():
    play = play_until("reveal")
    waiting = play.again(play.clients[NAME], identity(NAME))
    with pytest.raises(MalformedMessageError, match="another kind"):
        waiting.conclude(abort(play))
    published = finish(play_until("advert")).unmasked.publish(HEAD, HEAD)
    with pytest.raises(MalformedMessageError, match="another kind"):
        read_as_client(play, published)


@pytest.mark.parametrize("phase", ["consistency", "reveal"])
def test_an_outcome_that_the_pinned_server_did_not_sign_is_refused(phase):
    play = play_until(phase)
    published = finish(play_until("advert")).unmasked.publish(HEAD, HEAD)
    body = read_server(published, Published, play.terms, play.server.desk.offer_digest)
    digest = play.server.desk.offer_digest
    with pytest.raises(FaultyServerError, match="did not sign"):
        play.clients[NAME].conclude(sign(body, SERVER, digest, identity("spy")))
    earlier = finish(play_until("advert", make_terms(4, round_number=6)))
    state = play.again(play.clients["client-000"], identity("client-000"))
    with pytest.raises(ReplayError, match="another round"):
        state.conclude(earlier.unmasked.publish(HEAD, HEAD))


def test_a_cohort_that_was_split_gives_disjoint_sums_and_the_ledgers_show_it():
    # What masking does not prevent: each half believes that the other never joined.
    # Each sum still reaches min_survivors, and every client is in one of them.
    terms = make_terms(6, min_survivors=3)
    names = tuple(sorted(terms.cohort))
    halves = (names[:3], names[3:])
    outcomes = [
        finish(Play(terms), drops={"advert": set(names) - set(half)}) for half in halves
    ]
    digests = {outcome.unmasked.desk.offer_digest for outcome in outcomes}
    assert len(digests) == 1
    for half, outcome in zip(halves, outcomes, strict=True):
        assert outcome.unmasked.survivors == half
        assert (outcome.unmasked.residues == plain_sum(terms, half)).all()
        assert set(outcome.unmasked.heads) == set(half)
        # What a client of this half writes down is over this half alone.
        for published in outcome.published.values():
            assert published.survivors == half
    # The outcome of one half is refused by a client of the other.
    play = play_until("advert", terms)
    finish(play, drops={"advert": set(halves[1])})
    message = outcomes[1].unmasked.publish(HEAD, HEAD)
    with pytest.raises(FaultyServerError, match="other survivors"):
        play.clients[names[0]].conclude(message)


# Everywhere.


@pytest.mark.parametrize("phase", PHASES)
def test_a_message_out_of_its_turn_ends_the_round(phase):
    # Every message that an honest server sends this client, before its turn or after.
    play = play_until(phase)
    for other in PHASES:
        if other != phase:
            data = play_until(other).messages[NAME]
            with pytest.raises((MalformedMessageError, ReplayError)):
                again(play, phase, data)


@pytest.mark.parametrize("phase", PHASES)
def test_truncated_and_extended_messages_end_the_round(phase):
    play = play_until(phase)
    message = play.messages[NAME]
    wrong = [message[:length] for length in (0, 1, 7, 8, len(message) // 2)]
    for data in (*wrong, message[:-1], message + b"\0", b"\xff" * 100, bytes(1000)):
        with pytest.raises(MalformedMessageError):
            again(play, phase, data)


@pytest.mark.parametrize("phase", PHASES)
def test_no_flipped_bit_passes(phase):
    play = play_until(phase)
    message = play.messages[NAME]
    for bit in range(0, 8 * len(message), 8 * len(message) // 150):
        data = bytearray(message)
        data[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(PrivacyError):
            again(play, phase, bytes(data))


@pytest.mark.parametrize("phase", PHASES)
def test_a_stale_protocol_version_is_refused(phase):
    play = play_until(phase)
    assert Reader(play.messages[NAME]).integer() == 1
    data = bytes(8) + play.messages[NAME][8:]
    with pytest.raises(MalformedMessageError, match="version 0"):
        again(play, phase, data)


@pytest.mark.parametrize("phase", PHASES)
def test_a_message_that_another_key_signed_is_refused(phase):
    play = play_until(phase)
    data = play.messages[NAME][:-64] + bytes(64)
    with pytest.raises(FaultyServerError):
        again(play, phase, data)


def again(play, phase, data):
    """The client's step from a fresh copy of its state."""
    state = play.clients[NAME]
    if state is not None:
        play.clients[NAME] = play.again(state, identity(NAME))
    return play.step(phase, NAME, data)


def test_an_honest_round_still_ends_well():
    # All of the above would also pass if nothing ever worked.
    terms = make_terms(4)
    outcome = run_round(terms)
    assert (outcome.unmasked.residues == plain_sum(terms, terms.cohort)).all()
