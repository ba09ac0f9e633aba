"""Rounds that a site's own policy forbids, offered by a server that signs them."""

import os
import shutil

import pytest

from fgrpo_secure.site_policy import SitePolicyError
from privacy.ledger import verify_ledger, verify_run
from privacy.plan import SERVER
from tests.app.federation import RUN, Federation
from tests.app.policies import allowing, write_policy
from tests.app.test_messages import offer_of
from tests.end_to_end.program import ASSETS

NAME = "sums"
TRIO = ("count", "shift", NAME)


class Guarded:
    """A federation of which one client's site has a policy."""

    def __init__(self, folder, names=TRIO, **settings):
        self.path = folder / "site.toml"
        named = f'client.{NAME}.policy="{self.path}"'
        state = f'machine.state="{folder / "state"}"'
        self.one = Federation(
            folder / "run", names=names, overrides=(named, state), **settings
        )
        self.tables = allowing(self.one.config, NAME)
        self.write()

    def write(self):
        write_policy(self.path, self.tables)

    def reasons(self):
        return [r["reason"] for r in self.one.records(NAME) if r["kind"] == "refused"]

    def charges(self):
        return self.one.kinds(NAME).count("intent")

    def verified(self):
        return verify_ledger(
            self.one.folder.own_ledger(NAME),
            key=self.one.keys[NAME].verify_key,
            closed=False,
        )


@pytest.fixture
def guarded(tmp_path):
    made = []

    def make(**settings):
        made.append(Guarded(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        one.one.close()


# What the server offers, of the plan that it registered, and the site no longer bears.
FORBIDDEN = {
    "units": ("plan", "units", ["patient_id"], "policy_unit"),
    "trust": ("plan", "trust", ["local"], "policy_trust"),
    "clients": ("plan", "least_clients", 5, "policy_cohort"),
    "survivors": ("plan", "least_survivors", 4, "policy_survivors"),
    "colluders": ("plan", "least_colluders", 2, "policy_colluders"),
    "model": ("plan", "base_models", ["00" * 32], "policy_model"),
    "epsilon": ("data_set", "epsilon", 49, "policy_epsilon"),
    "delta": ("data_set", "delta", 1e-9, "policy_delta"),
    "life": ("data_set", "epsilon_for_life", 49, "policy_epsilon"),
    "life's delta": ("data_set", "delta_for_life", 1e-9, "policy_delta"),
    "reward": ("reward", "name", "other.py:exact", "policy_reward"),
    "code": ("reward", "sha256", "00" * 32, "policy_code"),
    "task": ("task", "data_set", "others", "policy_task"),
    "approval": ("task", "approval", "ask", "not_approved"),
}


def test_a_signed_offer_of_a_plan_below_the_sites_floor_is_refused(guarded):
    one = guarded()
    client, offer = one.one.exchange.clients[NAME], None
    for number, (section, key, value, reason) in enumerate(FORBIDDEN.values(), 1):
        table = one.tables[section]
        table = table if section == "plan" else table[0]
        allowed, table[key] = table[key], value
        one.write()
        offer = offer_of(one.one, 1, one.one.server.adapter, reason + key)
        with pytest.raises(SitePolicyError):
            client.handle("offer", offer)
        assert one.reasons()[number - 1 :] == [reason]
        table[key] = allowed
    assert one.one.kinds(NAME) == ["opened", *["refused"] * len(FORBIDDEN)]
    assert one.verified().history.charges == ()
    # It was the policy alone: as it was, the same offer is answered.
    one.write()
    assert client.handle("offer", offer)
    assert one.one.kinds(NAME)[-1] == "joined"


def test_a_policy_that_is_tightened_holds_from_the_next_round_on(guarded):
    one = guarded(names=(*TRIO, "sort"))
    assert one.one.round(1).published
    assert one.charges() == 1
    one.tables["plan"]["least_colluders"] = 2
    one.write()
    # The others' round goes on without this client, whom it costs nothing.
    assert one.one.round(2).published
    assert NAME not in one.one.last(SERVER, "published")["survivors"]
    assert isinstance(one.one.exchange.errors["offer", NAME], SitePolicyError)
    assert (one.charges(), one.reasons()) == (1, ["policy_colluders"])
    assert one.verified().history.phase == "idle"


def test_a_policy_that_is_gone_or_broken_lets_no_round_in(guarded):
    one = guarded()
    for nonce, spoil in enumerate(
        (
            one.path.unlink,
            lambda: one.path.write_text("[plan]\n"),
            lambda: write_policy(one.path, one.tables | {"default": "allow"}),
            lambda: (one.write(), one.path.chmod(0o666)),
        )
    ):
        spoil()
        offer = offer_of(one.one, 1, one.one.server.adapter, str(nonce))
        with pytest.raises(SitePolicyError):
            one.one.exchange.clients[NAME].handle("offer", offer)
    assert one.reasons() == ["environment"] * 4
    assert one.charges() == 0
    one.verified()


def test_a_model_whose_files_are_touched_during_a_run_is_trained_no_further(tmp_path):
    """What was loaded may be a view of the files, which follows them."""
    base = tmp_path / "base"
    shutil.copytree(ASSETS / "tiny", base)
    one = Guarded(tmp_path, model={"base": str(base)})
    assert one.one.round(1).published
    weights = base / "model.safetensors"
    times = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not one.one.round(2).published
    assert (one.charges(), one.reasons()) == (1, ["policy_model"])
    one.one.close()


def test_an_offer_that_the_server_did_not_sign_writes_no_refusal(guarded):
    one = guarded()
    one.tables["plan"]["least_colluders"] = 2
    one.write()
    offer = bytearray(offer_of(one.one, 1, one.one.server.adapter))
    offer[60] ^= 1
    with pytest.raises(Exception):  # noqa: B017, PT011
        one.one.exchange.clients[NAME].handle("offer", bytes(offer))
    assert one.one.kinds(NAME) == ["opened"]


def test_a_roster_below_the_sites_floor_is_refused_before_the_charge(guarded):
    one = guarded(names=(*TRIO, "sort"))
    # The server withholds one client's keys, which the plan would bear.
    one.one.exchange.lost = {("offer", "count")}
    one.one.round(1)
    error = one.one.exchange.errors["roster", NAME]
    assert "the round has 3 clients" in str(error)
    assert one.one.kinds(NAME) == [
        *("opened", "cosigned", "joined", "refused", "outcome")
    ]
    assert one.reasons() == ["policy_cohort"]
    outcome = one.one.last(NAME, "outcome")
    assert (outcome["status"], outcome["reason"]) == ("missed", "policy_cohort")
    assert one.charges() == 0
    one.verified()
    # With everybody there the next round is as any other.
    one.one.exchange.lost = set()
    assert one.one.round(2).published
    assert one.charges() == 1


def test_without_a_policy_the_same_roster_is_taken(guarded):
    one = guarded(names=(*TRIO, "sort"))
    one.one.exchange.clients[NAME]._rules = None
    one.one.exchange.lost = {("offer", "count")}
    assert one.one.round(1).published
    assert one.charges() == 1


def test_survivors_below_the_sites_floor_are_not_confirmed(guarded):
    one = guarded(names=(*TRIO, "sort"))
    rules = one.one.exchange.clients[NAME]._rules

    def tightened(data):
        # The floor moves while the round is in flight, as no file can.
        least = rules._policy.plan.model_copy(update={"least_survivors": 4})
        rules._policy = rules._policy.model_copy(update={"plan": least})
        return data

    one.one.exchange.altered["survivors", NAME] = tightened
    one.one.exchange.lost = {("shares", "count")}
    one.one.round(1)
    assert ("survivors", NAME) in one.one.exchange.errors
    assert one.one.kinds(NAME) == [
        *("opened", "cosigned", "joined", "shown", "intent"),
        *("commit", "refused", "outcome"),
    ]
    assert one.reasons() == ["policy_survivors"]
    one.verified()


def test_a_run_in_which_a_policy_refused_rounds_verifies_as_a_whole(guarded):
    one = guarded(names=(*TRIO, "sort"))
    one.one.round(1)
    one.tables["plan"]["least_clients"] = 5
    one.write()
    one.one.round(2)
    one.tables["plan"]["least_clients"] = 4
    one.write()
    one.one.round(3)
    for client in one.one.exchange.clients.values():
        client.close()
    one.one.server.close()
    for name in one.one.names:
        own = one.one.folder.own_ledger(name)
        shutil.copyfile(own, one.one.folder.ledger(name))
    report = verify_run(one.one.root)
    assert [str(p) for p in report.problems if p.file != "summary.json"] == []
    assert report.spends[NAME].charges == 2
    assert report.run == RUN
