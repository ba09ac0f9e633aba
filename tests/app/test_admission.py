"""A client at the door of a run: what is refused stands signed, and costs nothing."""

import importlib
import os
import shutil
import stat
import sys
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgrpo_secure import approvals
from fgrpo_secure import site as site_module
from fgrpo_secure.admission import admit, site_rules
from fgrpo_secure.approvals import approve, load_policy
from fgrpo_secure.base_model import read_base_model
from fgrpo_secure.budget import open_client_ledger
from fgrpo_secure.errors import ConfigurationError, RewardError
from fgrpo_secure.grpo.adapter import to_bytes
from fgrpo_secure.grpo.reward_sources import reward_sources
from fgrpo_secure.registration import recipe_digest
from fgrpo_secure.secrets import identity_key
from fgrpo_secure.site import open_site
from fgrpo_secure.site_policy import SitePolicyError
from privacy.errors import BudgetExceededError
from privacy.ledger import verify_ledger
from tests.app.policies import allowing, write_policy
from tests.app.sites import FIRST, NAME, SECOND
from tests.app.test_site_policy import tightened
from tests.end_to_end.program import ASSETS, NAMES, UNITS, records
from tests.plans import NO_PROMISE, cohort, make_plan


class Door:
    """One client, its policy, and runs that ask to be let in."""

    def __init__(self, sites, *overrides, approval="auto"):
        self.sites = sites
        self.path = sites.folder / "site.toml"
        named = f'client.{NAME}.policy="{self.path}"'
        single = ("machine.microbatch=1", "model.layers=[1]")
        self.config = sites.config(named, *single, *overrides)
        config = self.config
        self.plan = make_plan(
            epsilon=format(config.privacy.epsilon.normalize(), "f"),
            delta=format(config.privacy.delta.normalize(), "f"),
            rounds=config.privacy.rounds,
            min_survivors=config.federation.min_survivors,
            colluders=config.federation.colluders,
            clients=cohort(
                *[UNITS] * 4, names=NAMES, rate=Fraction(config.privacy.sampling_rate)
            ),
            recipe=recipe_digest(config),
        )
        self.tables = allowing(config, NAME, approval)
        self.write()

    def write(self):
        write_policy(self.path, self.tables)

    def folder(self, name="run"):
        return self.sites.run_folder(name, plan=self.plan, config=self.config)

    def rules(self, place="run"):
        folder = self.folder(place)
        return site_rules(self.config, self.plan, folder, NAMES)[NAME]

    def ask(self, run=FIRST, place="run", ask=None):
        """What the parent process and the client's own do before a run is opened."""
        admit(self.rules(place), self.plan, self.folder(place), run, ask)

    def open(self, run=FIRST, place="run"):
        folder = self.folder(place)
        ledger = open_client_ledger(
            self.config,
            self.plan,
            folder,
            NAME,
            identity_key(folder.private(NAME)),
            run,
            (),
            self.rules(place).check_opening,
        )
        self.sites.open_ledgers.append(ledger)
        return ledger

    def site(self, run=FIRST):
        return open_site(
            self.config, self.plan, self.folder(), [NAME], run, lambda *_: None
        )

    def proposal(self, run=FIRST, place="run"):
        rules = self.rules(place)
        return rules.proposal(rules.history(), run)

    def kinds(self):
        path = self.sites.ledger_path
        return [record["kind"] for record in records(path)] if path.exists() else []

    def declined(self):
        found = records(self.sites.ledger_path)
        return [record["reason"] for record in found if record["kind"] == "declined"]

    def verified(self):
        key = identity_key(self.folder().private(NAME)).verify_key
        return verify_ledger(self.sites.ledger_path, key=key)


@pytest.fixture
def door(sites):
    return lambda *overrides, **settings: Door(sites, *overrides, **settings)


# Every key, and the reason for which a plan that it forbids is refused.
KEYS = {
    "units": ("plan", "units", ["patient_id"], "policy_unit"),
    "trust": ("plan", "trust", ["local"], "policy_trust"),
    "least_clients": ("plan", "least_clients", 5, "policy_cohort"),
    "least_survivors": ("plan", "least_survivors", 4, "policy_survivors"),
    "least_colluders": ("plan", "least_colluders", 2, "policy_colluders"),
    "base_models": ("plan", "base_models", ["00" * 32], "policy_model"),
    "data_set.name": ("data_set", "name", "others", "policy_epsilon"),
    "data_set.epsilon": ("data_set", "epsilon", 7.75, "policy_epsilon"),
    "data_set.delta": ("data_set", "delta", 1e-6, "policy_delta"),
    "epsilon_for_life": ("data_set", "epsilon_for_life", 7.75, "policy_epsilon"),
    "delta_for_life": ("data_set", "delta_for_life", 1e-6, "policy_delta"),
    "reward.name": ("reward", "name", "rewards.py:gated", "policy_reward"),
    "reward.sha256": ("reward", "sha256", "00" * 32, "policy_code"),
    "task.data_set": ("task", "data_set", "others", "policy_task"),
    "task.rewards": ("task", "rewards", ["rewards.py:gated"], "policy_task"),
    "task.approval": ("task", "approval", "ask", "not_approved"),
}


def test_every_key_of_a_policy_is_violated_by_some_test(door):
    tables = door().tables
    every = {
        (section, key)
        for section, table in tables.items()
        for key in (table if section == "plan" else table[0])
    }
    assert {(section, key) for section, key, _, _ in KEYS.values()} == every


@pytest.mark.parametrize("name", KEYS)
def test_what_a_key_forbids_is_refused_in_writing_and_nothing_is_charged(door, name):
    section, key, value, reason = KEYS[name]
    one = door()
    one.ask()
    assert one.kinds() == []
    table = one.tables[section]
    table = table if section == "plan" else table[0]
    allowed, table[key] = table[key], value
    one.write()
    with pytest.raises(SitePolicyError):
        one.ask()
    assert one.declined() == [reason]
    assert one.kinds() == ["declined"]
    declined = records(one.sites.ledger_path)[0]
    assert declined["plan_digest"] == one.plan.digest
    assert declined["run"] == FIRST.hex()
    # The ledger verifies as it is, and with the run that is allowed afterwards.
    assert one.verified().runs == ()
    table[key] = allowed
    one.write()
    one.ask()
    one.sites.complete(one.open(), one.plan)
    (run,) = one.verified().runs
    assert run.opened.run == FIRST
    assert one.kinds().count("intent") == one.plan.rounds
    assert one.declined() == [reason]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_refused_is_signed_and_never_charged(door, data):
    one = door()
    for _ in range(data.draw(st.integers(1, 3))):
        one.tables = data.draw(tightened(one.tables))
    one.write()
    before = one.declined() if one.kinds() else []
    try:
        one.ask()
    except SitePolicyError as error:
        # Of one plan each reason is said once.
        reasons = [reason.value for reason in error.reasons]
        said = [reason for reason in reasons if reason not in before]
        assert one.declined() == before + said
        assert one.verified().history.charges == ()
    else:
        assert one.kinds() == ["declined"] * len(before)


def test_a_plan_that_promises_nothing_passes_no_policy(door):
    one = door()
    one.plan = replace(one.plan, **NO_PROMISE)
    with pytest.raises(SitePolicyError):
        one.ask()
    assert set(one.declined()) == {"policy_epsilon"}


def test_the_sites_own_price_counts_where_the_plan_states_less(door):
    one = door()
    # A plan that lies: little noise, and the target that the policy allows.
    one.plan = replace(one.plan, noise_variance=2**16)
    with pytest.raises(SitePolicyError, match="costs epsilon"):
        one.ask()
    assert one.declined() == ["policy_epsilon"]


def test_a_ledger_that_ends_with_the_run_keeps_no_cap_for_life(door):
    one = door()
    machine = one.config.machine.model_copy(update={"state": None})
    one.config = one.config.model_copy(update={"machine": machine})
    folder = one.folder("alone")
    with pytest.raises(SitePolicyError, match="ends with the run"):
        one.ask(place="alone")
    (record,) = records(folder.ledger(NAME))
    assert (record["kind"], record["reason"]) == ("declined", "policy_epsilon")


def test_a_cap_above_the_policys_is_refused_though_the_run_costs_less(door):
    one = door(f"client.{NAME}.epsilon_cap=20")
    one.tables["data_set"][0]["epsilon_for_life"] = 19.5
    one.write()
    with pytest.raises(SitePolicyError, match="for its life"):
        one.ask()
    assert one.declined() == ["policy_epsilon"]


def test_what_was_declined_binds_no_later_run(door):
    one = door()
    other = replace(one.plan, unit="patient_id", max_prompts_per_unit=4, rounds=9)
    allowed, one.plan = one.plan, other
    for run in (FIRST, SECOND):
        with pytest.raises(SitePolicyError):
            one.ask(run)
    one.plan = allowed
    one.ask(SECOND)
    one.sites.complete(one.open(SECOND), one.plan)
    (run,) = one.verified().runs
    # One run is one run, priced by the tight accountant.
    assert run.history.lifetime_spend.claimed == "pld"
    assert run.opened.plan["unit"] == "prompt"


def test_every_rule_that_is_broken_has_a_line(door):
    one = door()
    one.tables["plan"] |= {"units": ["patient_id"], "least_clients": 9}
    one.tables["task"][0]["approval"] = "ask"
    one.write()
    with pytest.raises(SitePolicyError):
        one.ask()
    assert one.declined() == ["policy_unit", "policy_cohort", "not_approved"]
    assert one.verified().runs == ()


def test_a_run_that_is_open_is_refused_within_when_it_is_taken_up_again(door):
    one = door()
    one.open().close()
    one.tables["plan"]["least_colluders"] = 2
    one.write()
    with pytest.raises(SitePolicyError):
        one.ask()
    assert one.kinds() == ["opened", "resumed", "refused"]
    last = records(one.sites.ledger_path)[-1]
    assert last["reason"] == "policy_colluders"
    assert (last["round"], last["attempt"]) == (0, 0)


def test_a_run_that_the_ledger_has_closed_is_refused_without_a_line(door):
    """It was opened and has ended: to say that it was declined would be false."""
    one = door()
    one.sites.complete(one.open(), one.plan)
    one.tables["plan"]["least_colluders"] = 2
    one.write()
    before = one.kinds()
    for refusing in (one.ask, one.site):
        with pytest.raises(SitePolicyError):
            refusing()
        assert one.kinds() == before
    assert one.verified().history.phase == "closed"


def test_a_run_that_the_ledger_left_for_another_is_refused_without_a_line(door):
    one = door(f"client.{NAME}.epsilon_cap=100")
    one.tables["data_set"][0]["epsilon_for_life"] = 100
    one.write()
    one.open().close()
    one.open(SECOND, "second").close()
    one.tables["plan"]["least_colluders"] = 2
    one.write()
    with pytest.raises(SitePolicyError):
        one.ask()
    assert "declined" not in one.kinds()
    assert one.kinds()[-2:] == ["opened", "resumed"]


def test_the_policy_is_looked_at_again_while_the_ledger_is_locked(door):
    one = door()
    one.ask()
    one.tables["plan"]["least_clients"] = 5
    one.write()
    with pytest.raises(SitePolicyError):
        one.open()
    assert one.kinds() == []


def test_without_a_policy_the_configuration_alone_decides(door):
    one = door()
    config = one.sites.config()
    assert site_rules(config, one.plan, one.folder(), NAMES) == {}


def kept_with_the_state(one):
    """The policy in the client's part of the store, and a configuration without one."""
    path = one.folder().policy(NAME)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    one.path.rename(path)
    one.path = path
    one.config = one.sites.config("machine.microbatch=1", "model.layers=[1]")
    return path


def test_a_policy_in_the_store_binds_a_configuration_that_names_none(door):
    one = door()
    kept_with_the_state(one)
    one.ask()
    one.tables["plan"]["least_colluders"] = 2
    one.write()
    with pytest.raises(SitePolicyError):
        one.ask()
    with pytest.raises(SitePolicyError):
        one.site()
    assert one.declined() == ["policy_colluders"]
    # Nor does it help to have it lead nowhere.
    one.path.unlink()
    one.path.symlink_to(one.sites.folder / "nowhere")
    with pytest.raises(ConfigurationError):
        one.ask()


def test_a_configuration_cannot_point_away_from_the_policy_in_the_store(door):
    one = door()
    path = kept_with_the_state(one)
    other = write_policy(one.sites.folder / "other.toml", one.tables)
    one.config = one.sites.config(
        f'client.{NAME}.policy="{other}"', "machine.microbatch=1", "model.layers=[1]"
    )
    with pytest.raises(ConfigurationError, match="names another policy"):
        one.ask()
    one.config = one.sites.config(
        f'client.{NAME}.policy="{path}"', "machine.microbatch=1", "model.layers=[1]"
    )
    one.ask()


# The policy as a file.


def test_a_policy_that_others_may_write_is_not_followed(door):
    one = door()
    for mode in (0o620, 0o602, 0o666):
        one.path.chmod(mode)
        with pytest.raises(ConfigurationError, match="written by others"):
            load_policy(one.path)
        with pytest.raises(ConfigurationError):
            one.ask()
    assert one.kinds() == []
    one.path.chmod(0o644)
    load_policy(one.path)


def test_a_policy_in_a_folder_that_others_may_write_is_not_followed(door):
    one = door()
    place = one.path.parent / "shared"
    place.mkdir()
    path = write_policy(place / "site.toml", one.tables)
    load_policy(path)
    place.chmod(0o777)
    with pytest.raises(ConfigurationError, match="written by others"):
        load_policy(path)
    # There each may only touch what is theirs.
    place.chmod(0o1777)
    load_policy(path)
    within = place / "within"
    within.mkdir(mode=0o700)
    inner = write_policy(within / "site.toml", one.tables)
    load_policy(inner)
    place.chmod(0o777)
    with pytest.raises(ConfigurationError, match="written by others"):
        load_policy(inner)


def test_a_policy_of_another_account_is_not_followed(door, monkeypatch):
    one = door()
    monkeypatch.setattr(os, "geteuid", lambda: one.path.stat().st_uid + 1)
    if one.path.stat().st_uid == 0:
        # The system's own files are followed.
        load_policy(one.path)
        return
    with pytest.raises(ConfigurationError, match="another account"):
        load_policy(one.path)


def test_a_link_in_the_place_of_a_policy_is_not_followed(door):
    one = door()
    elsewhere = write_policy(one.path.with_name("elsewhere.toml"), one.tables)
    one.path.unlink()
    one.path.symlink_to(elsewhere)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_policy(one.path)


def test_a_link_in_the_place_of_a_policys_folder_is_not_followed(door):
    """Whoever may write a folder above could bring an older policy back by it."""
    one = door()
    top = one.path.parent / "others"
    now, before = top / "site", one.path.parent / "older"
    for place, least in ((now, 5), (before, 3)):
        place.mkdir(parents=True)
        one.tables["plan"]["least_clients"] = least
        write_policy(place / "site.toml", one.tables)
    assert load_policy(now / "site.toml").plan.least_clients == 5
    top.chmod(0o777)
    now.rename(top / "away")
    now.symlink_to(before)
    # The folder that it leads to is nobody else's.
    load_policy(before / "site.toml")
    with pytest.raises(ConfigurationError):
        load_policy(now / "site.toml")
    # Nor where the folder around it is in order.
    top.chmod(0o755)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_policy(now / "site.toml")


def test_folders_are_looked_at_as_they_are_open(door, monkeypatch):
    """A folder that is exchanged between the look and the reading is not read."""
    one = door()
    now, other = one.path.parent / "now", one.path.parent / "other"
    for place, least in ((now, 5), (other, 3)):
        place.mkdir()
        one.tables["plan"]["least_clients"] = least
        write_policy(place / "site.toml", one.tables)
    real, done = approvals._check_owner, []

    def exchanged(path, *arguments, **options):
        real(path, *arguments, **options)
        if path == now and not done:
            done.append(now.rename(now.with_name("away")))
            other.rename(now)

    monkeypatch.setattr(approvals, "_check_owner", exchanged)
    assert load_policy(now / "site.toml").plan.least_clients == 5
    assert done


def test_a_link_that_a_configuration_names_is_resolved_once(door):
    one = door()
    link = one.path.with_name("link.toml")
    link.symlink_to(one.path)
    config = one.sites.config(f'client.{NAME}.policy="{link}"')
    assert config.client_named(NAME).policy == str(one.path)


def test_what_is_no_file_is_no_policy(door):
    one = door()
    pipe, folder = one.path.with_name("pipe"), one.path.with_name("folder")
    os.mkfifo(pipe, 0o600)
    folder.mkdir()
    huge = one.path.with_name("huge.toml")
    huge.write_bytes(b"#" * (2**20 + 1))
    huge.chmod(0o600)
    binary = one.path.with_name("binary.toml")
    binary.write_bytes(b"\xff\xfe")
    binary.chmod(0o600)
    for path in (pipe, folder, huge, binary, one.path.with_name("missing.toml")):
        with pytest.raises(ConfigurationError):
            load_policy(path)


def test_a_policy_that_cannot_be_used_lets_nothing_in(door):
    one = door()
    one.path.unlink()
    with pytest.raises(ConfigurationError, match="no policy"):
        one.ask()
    one.path.write_text("[plan]\n")
    with pytest.raises(ConfigurationError):
        one.ask()
    assert one.kinds() == []


# Approvals.


def test_an_approval_is_of_one_run_and_the_next_one_asks_again(door):
    one = door(f"client.{NAME}.epsilon_cap=100", approval="ask")
    one.tables["data_set"][0]["epsilon_for_life"] = 100
    one.write()
    with pytest.raises(SitePolicyError):
        one.ask()
    approve(one.path, one.proposal())
    one.ask()
    ledger = one.open()
    # A process that takes the same run up again needs no second approval.
    one.ask()
    one.sites.complete(ledger, one.plan)
    with pytest.raises(SitePolicyError, match="has not approved"):
        one.ask(SECOND, "second")
    with pytest.raises(SitePolicyError, match="has not approved"):
        one.open(SECOND, "second")
    approve(one.path, one.proposal(SECOND, "second"))
    one.ask(SECOND, "second")
    one.open(SECOND, "second")


def test_a_run_that_is_open_can_be_approved_when_its_policy_begins_to_ask(door):
    one = door()
    ledger = one.open()
    one.tables["task"][0]["approval"] = "ask"
    one.write()
    ledger.close()
    rules = one.rules()
    history = rules.history()
    run, found = rules.to_approve(history)
    assert (run, [refusal.reason for refusal in found]) == (FIRST, ["not_approved"])
    approve(one.path, rules.proposal(history, run))
    one.ask()
    # The next approval is of the next run, and this one's is not.
    run, found = rules.to_approve(history)
    assert (run, [refusal.reason for refusal in found]) == (b"", ["not_approved"])
    assert rules.proposal(history, run).run_number == 2


def altered(proposal):
    reward = proposal.rewards[0]
    yield "client", replace(proposal, client="sort")
    yield "data set", replace(proposal, data_set="others")
    yield "ledger", replace(proposal, data="00" * 16)
    yield "run", replace(proposal, run_number=2)
    yield "cap", replace(proposal, cap_epsilon=proposal.cap_epsilon / 2)
    yield "cap's delta", replace(proposal, cap_delta=proposal.cap_delta / 2)
    yield "plan", replace(proposal, plan="00" * 32)
    yield "model", replace(proposal, base_model="00" * 32)
    yield "reward", replace(proposal, rewards=(replace(reward, sha256="00" * 32),))
    yield "reward's name", replace(proposal, rewards=(replace(reward, name="x:y"),))
    yield "two rewards", replace(proposal, rewards=(reward, reward))


def test_an_approval_of_anything_else_is_none_of_this(door):
    one = door(approval="ask")
    proposal = one.proposal()
    for _, other in altered(proposal):
        approve(one.path, other)
        with pytest.raises(SitePolicyError):
            one.ask()
    # Nor is another's approval under the right name.
    right = approve(one.path, proposal)
    one.ask()
    right.write_bytes(replace(proposal, plan="00" * 32).to_bytes())
    with pytest.raises(SitePolicyError):
        one.ask()


def test_an_approval_of_a_first_run_is_none_of_one_in_another_store(door):
    """An empty store has no ledger, whose handle could tell the two apart."""
    one = door(approval="ask")
    approve(one.path, one.proposal())
    one.ask()
    other = one.sites.folder / "other-state"
    machine = one.config.machine.model_copy(update={"state": str(other)})
    one.config = one.config.model_copy(update={"machine": machine})
    with pytest.raises(SitePolicyError, match="has not approved"):
        one.ask(place="elsewhere")


def test_a_changed_reward_file_needs_another_approval(door):
    one = door(approval="ask")
    approve(one.path, one.proposal())
    one.ask()
    rewards = one.sites.path.parent / "rewards.py"
    rewards.write_text(rewards.read_text() + "\n# One line more.\n")
    one.tables = allowing(one.config, NAME, "ask")
    one.write()
    with pytest.raises(SitePolicyError, match="has not approved"):
        one.ask()


def test_an_approval_that_others_may_write_is_not_followed(door):
    one = door(approval="ask")
    path = approve(one.path, one.proposal())
    assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0
    path.chmod(0o666)
    with pytest.raises(ConfigurationError, match="written by others"):
        one.ask()
    path.chmod(0o600)
    path.parent.chmod(0o777)
    with pytest.raises(ConfigurationError, match="written by others"):
        one.ask()
    path.parent.chmod(0o755)
    one.ask()
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(SitePolicyError):
        one.ask()


@pytest.mark.parametrize(
    ("typed", "approved"),
    [
        (lambda digest: digest[:8], True),
        (lambda digest: f" {digest[:4]} {digest[4:8].upper()}\n", True),
        (lambda digest: digest, True),
        (lambda digest: digest[:7], False),
        (lambda digest: digest[1:9], False),
        (lambda digest: digest + "0", False),
        (lambda digest: "", False),
        (lambda digest: "yes", False),
    ],
)
def test_an_operator_approves_by_the_plans_first_characters(door, typed, approved):
    one = door(approval="ask")
    shown = []

    def ask(plan, proposal):
        shown.append((plan, proposal))
        return typed(plan.digest)

    if approved:
        one.ask(ask=ask)
        one.ask()
        assert one.kinds() == []
    else:
        with pytest.raises(SitePolicyError):
            one.ask(ask=ask)
        assert one.declined() == ["not_approved"]
    assert shown == [(one.plan, one.proposal())]


def test_nobody_is_asked_about_what_is_refused_anyway(door):
    one = door(approval="ask")
    one.tables["plan"]["least_clients"] = 5
    one.write()

    def ask(plan, proposal):
        raise AssertionError

    with pytest.raises(SitePolicyError):
        one.ask(ask=ask)
    assert one.declined() == ["policy_cohort", "not_approved"]


# The client's own process.


def test_a_site_refuses_by_itself_before_anything_is_loaded(door, monkeypatch):
    one = door()
    one.tables["plan"]["units"] = ["patient_id"]
    one.write()

    def reached(*arguments):
        raise AssertionError

    monkeypatch.setattr(site_module, "load_run_policy", reached)
    monkeypatch.setattr(site_module, "load_task", reached)
    with pytest.raises(SitePolicyError):
        one.site()
    assert one.declined() == ["policy_unit"]


def marked(one, name="ran"):
    """Let the reward file leave a mark wherever it is run."""
    marker = one.sites.folder / name
    rewards = one.sites.path.parent / "rewards.py"
    text = rewards.read_text()
    rewards.write_text(f"{text}\nopen({str(marker)!r}, 'w').close()\n")
    return rewards, marker


def test_a_reward_that_is_not_listed_is_never_run(door):
    one = door()
    _, marker = marked(one)
    with pytest.raises(SitePolicyError):
        one.site()
    assert one.declined() == ["policy_code"]
    assert not marker.exists()
    one.tables = allowing(one.config, NAME)
    one.write()
    one.site()
    assert marker.exists()


def test_a_reward_that_is_exchanged_after_it_was_checked_is_not_run(door, monkeypatch):
    one = door()
    before = one.kinds()
    load, made = site_module.load_task, []

    def exchanged(*arguments):
        made.append(marked(one)[1])
        return load(*arguments)

    monkeypatch.setattr(site_module, "load_task", exchanged)
    with pytest.raises(RewardError, match="has changed since"):
        one.site()
    assert not made[0].exists()
    assert one.kinds() == before


def test_a_reward_that_is_exchanged_during_a_run_does_not_score_its_end(door):
    one = door(
        f'client.{NAME}.eval_data="data/{NAME}-heldout.jsonl"',
        f"client.{NAME}.eval_public=true",
    )
    site = one.site()
    _, marker = marked(one)
    with pytest.raises(RewardError, match="has changed since"):
        site.handle("evaluate", NAME, to_bytes(site._policy.model))
    assert not marker.exists()


def test_compiled_code_beside_a_reward_is_not_run(door, tmp_path, monkeypatch):
    package = tmp_path / "judges"
    package.mkdir()
    (package / "__init__.py").write_text("")
    source = package / "fair.py"
    marker = tmp_path / "ran"
    honest = (
        "def score(prompts, completions, **columns):\n    return [0] * len(prompts)\n"
    )
    planted = f"{honest}open({str(marker)!r}, 'w').close()\n#"
    # Of one length and one time, so that Python would take the compiled code.
    source.write_text(planted)
    os.utime(source, (0, 0))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    importlib.import_module("judges.fair")
    marker.unlink()
    del sys.modules["judges.fair"]
    source.write_text(honest + "#" * (len(planted) - len(honest)))
    os.utime(source, (0, 0))
    assert list(package.glob("__pycache__/fair*"))
    one = door(f'client.{NAME}.reward="judges.fair:score"')
    assert one.tables["reward"][0]["name"] == "judges.fair:score"
    one.site()
    assert not marker.exists()
    # Python by itself would have taken it.
    del sys.modules["judges.fair"]
    importlib.import_module("judges.fair")
    assert marker.exists()
    # Another test's package may have the same name.
    for name in ("judges.fair", "judges"):
        del sys.modules[name]


def test_finding_a_reward_runs_no_package_around_it(door, tmp_path, monkeypatch):
    package = tmp_path / "loud"
    package.mkdir()
    marker = tmp_path / "ran"
    (package / "__init__.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    (package / "judge.py").write_text("def score(**columns):\n    return []\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    one = door(f'client.{NAME}.reward="loud.judge:score"')
    one.ask()
    assert not marker.exists()


@pytest.mark.parametrize(
    "spec", ["builtins:len", "sys:exit", "os:open", "no.such:thing", "missing.py:f"]
)
def test_a_reward_whose_source_cannot_be_seen_is_refused(spec, tmp_path):
    with pytest.raises(RewardError):
        reward_sources(spec, tmp_path)


def test_a_model_that_changes_while_it_is_loaded_is_refused(
    door, tmp_path, monkeypatch
):
    base = tmp_path / "base"
    shutil.copytree(ASSETS / "tiny", base)
    one = door(f'model.base="{base}"')
    load = site_module.load_run_policy

    def exchanged(config):
        policy = load(config)
        config_file = base / "generation_config.json"
        text = config_file.read_bytes()
        times = config_file.stat()
        config_file.write_bytes(text)
        os.utime(config_file, ns=(times.st_atime_ns, times.st_mtime_ns))
        return policy

    monkeypatch.setattr(site_module, "load_run_policy", exchanged)
    with pytest.raises(SitePolicyError, match="have changed since"):
        one.site()
    assert one.declined() == ["policy_model"]


def test_any_file_of_a_model_changes_its_digest(door, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(ASSETS / "tiny", base)
    seen = {read_base_model(str(base)).digest}
    assert seen == {read_base_model(str(ASSETS / "tiny")).digest}
    for path in sorted(base.iterdir()):
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(read_base_model(str(base)).digest)
    (base / "within").mkdir()
    (base / "within/chat_template.jinja").write_text("{{ messages }}")
    seen.add(read_base_model(str(base)).digest)
    (base / "config.json").rename(base / "other.json")
    seen.add(read_base_model(str(base)).digest)
    assert len(seen) == len(list((ASSETS / "tiny").iterdir())) + 3
    before = read_base_model(str(base)).digest
    (base / ".cache").mkdir()
    (base / ".cache/time").write_text("now")
    assert read_base_model(str(base)).digest == before
    (base / "weights").symlink_to(ASSETS)
    assert read_base_model(str(base)) is None
    assert read_base_model("no/such-model") is None


def test_a_budget_that_refuses_does_so_as_without_a_policy(door):
    one = door(f"client.{NAME}.epsilon_cap=0.1")
    one.ask()
    with pytest.raises(BudgetExceededError):
        one.open()
    assert one.kinds() == []
