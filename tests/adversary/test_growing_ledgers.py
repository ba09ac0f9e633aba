"""Who makes a client's ledger grow: nobody by sending again, nor by signing much."""

from dataclasses import replace

import pytest

from fgrpo_secure.admission import admit, site_rules
from fgrpo_secure.site_policy import SitePolicyError
from privacy.errors import PlanMismatchError, ReplayError
from privacy.ledger import verify_ledger
from tests.adversary.test_site_policy import NAME, TRIO, Guarded
from tests.app.federation import RUN, Federation
from tests.app.test_messages import offer_of

ROUNDS = 3


@pytest.fixture
def guarded(tmp_path):
    one = Guarded(tmp_path)
    yield one
    one.one.close()


@pytest.fixture
def trio(tmp_path):
    one = Federation(tmp_path, names=TRIO)
    yield one
    one.close()


def refused(one):
    return [r for r in one.records(NAME) if r["kind"] == "refused"]


def declines(one, offer, error):
    with pytest.raises(error):
        one.exchange.clients[NAME].handle("offer", offer)


def test_an_old_offer_that_is_replayed_leaves_one_line(trio):
    trio.round(1)
    (offer,) = trio.exchange.payloads("offer", NAME)
    for _ in range(3):
        declines(trio, offer, ReplayError)
    (line,) = refused(trio)
    joined = trio.last(NAME, "joined")
    assert (line["reason"], line["offer_digest"]) == (
        "replay",
        joined["offer_digest"],
    )
    # Nor does a restart of the client forget it.
    trio.restart_client(NAME)
    declines(trio, offer, ReplayError)
    assert len(refused(trio)) == 1


def test_an_offer_that_is_mangled_on_its_way_leaves_one_line(trio):
    """The adapter beside an offer is not signed: anybody may exchange it."""
    offer = offer_of(trio, 1, trio.server.adapter)
    for number in range(4):
        changed = bytearray(offer)
        # The last bytes are of the log, and those before of the adapter.
        changed[-6000 - number] ^= 1
        with pytest.raises(PlanMismatchError):
            trio.exchange.clients[NAME].handle("offer", bytes(changed))
    (line,) = refused(trio)
    assert line["reason"] == "plan_mismatch"
    # What was sent is joined all the same.
    trio.exchange.clients[NAME].handle("offer", offer)
    assert trio.kinds(NAME)[-1] == "joined"


def test_each_reason_and_each_offer_has_its_line(guarded):
    one = guarded.one
    first, second = (offer_of(one, 1, one.server.adapter, n) for n in ("a", "b"))
    for key, value in (("least_clients", 5), ("least_colluders", 2)):
        guarded.tables["plan"][key] = value
        guarded.write()
        for offer in (first, first, second, first):
            declines(one, offer, SitePolicyError)
    lines = [(r["reason"], r["offer_digest"]) for r in refused(one)]
    assert len(lines) == len(set(lines)) == 4
    assert {reason for reason, _ in lines} == {"policy_cohort", "policy_colluders"}
    assert None not in {digest for _, digest in lines}


def test_a_server_that_signs_ever_new_offers_gets_no_more_than_so_many_lines(guarded):
    one = guarded.one
    guarded.tables["plan"] |= {"least_clients": 5, "least_colluders": 2}
    guarded.write()
    for nonce in range(4 * one.plan.rounds):
        offer = offer_of(one, 1, one.server.adapter, str(nonce))
        declines(one, offer, SitePolicyError)
    reasons = [line["reason"] for line in refused(one)]
    assert reasons.count("policy_cohort") == 2 * one.plan.rounds
    assert reasons.count("policy_colluders") == 2 * one.plan.rounds
    # What comes next for another reason has room of its own.
    guarded.tables["plan"] |= {"least_clients": 3, "least_colluders": 1}
    guarded.tables["plan"]["least_survivors"] = 4
    guarded.write()
    declines(one, offer_of(one, 1, one.server.adapter), SitePolicyError)
    assert refused(one)[-1]["reason"] == "policy_survivors"
    ledger = verify_ledger(
        one.folder.own_ledger(NAME), key=one.keys[NAME].verify_key, closed=False
    )
    assert ledger.history.charges == ()


def test_a_run_of_an_honest_server_that_is_always_declined_has_every_line(guarded):
    one = guarded.one
    guarded.tables["plan"]["least_clients"] = 5
    guarded.write()
    for number in range(1, one.plan.rounds + 1):
        assert not one.round(number).published
    digests = [line["offer_digest"] for line in refused(one)]
    assert len(set(digests)) == len(digests) == one.plan.rounds


def test_a_plan_that_is_proposed_again_is_declined_in_one_line(guarded):
    """As `fgrpo run` does it, or whoever starts runs at a site."""
    one = guarded.one
    guarded.tables["plan"]["least_clients"] = 5
    guarded.write()
    plans = [one.plan, replace(one.plan, rounds=one.plan.rounds + 1)]
    one.ledgers[NAME].close()
    for plan in [*plans, *plans]:
        rules = site_rules(one.config, plan, one.folder, [NAME])[NAME]
        with pytest.raises(SitePolicyError):
            admit(rules, plan, one.folder, bytes(16))
    lines = [r for r in one.records(NAME) if r["kind"] == "declined"]
    said = [(line["plan_digest"], line["reason"]) for line in lines]
    assert len(said) == len(set(said))
    assert {digest for digest, _ in said} == {plan.digest for plan in plans}


def test_a_server_that_makes_up_runs_and_plans_gets_no_more_than_so_many_lines(guarded):
    """Over an engine a server proposes what it likes, and signs it."""
    one = guarded.one
    guarded.tables["plan"] |= {"least_clients": 5, "least_colluders": 2}
    guarded.write()
    one.ledgers[NAME].close()
    rules = site_rules(one.config, one.plan, one.folder, [NAME])[NAME]

    def propose(run, plan=one.plan):
        with pytest.raises(SitePolicyError):
            admit(rules, plan, one.folder, run)

    for number in range(40):
        propose(number.to_bytes(16, "big"))
        # Of the run that is open, it may propose other terms.
        propose(RUN, replace(one.plan, rounds=number + 1))
    for kind in ("declined", "refused"):
        lines = [r["reason"] for r in one.records(NAME) if r["kind"] == kind]
        assert lines.count("policy_cohort") == 32
        assert lines.count("policy_colluders") == 32
    # What is against a run for another reason still stands there.
    guarded.tables["plan"] |= {"least_clients": 3, "least_colluders": 1}
    guarded.tables["plan"]["least_survivors"] = 4
    guarded.write()
    for run in (bytes(16), RUN):
        propose(run)
        assert one.records(NAME)[-1]["reason"] == "policy_survivors"
    verify_ledger(
        one.folder.own_ledger(NAME), key=one.keys[NAME].verify_key, closed=False
    )
