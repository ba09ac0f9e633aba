"""What a site holds a proposed run to: its home, its keys, what it opened before."""

import json
from dataclasses import replace

import pytest

from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.runtime import training
from fgrpo_secure.runtime.envelope import Opening
from fgrpo_secure.runtime.training import open_pilot_site
from privacy.errors import PlanMismatchError, RefusalError
from privacy.plan import SERVER
from privacy.wire import canonical_json
from tests.pilot.stage import Stage, records

RUN, OTHER = bytes(range(16)), bytes(range(16, 32))
SITE = "count"


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("stage"), public=("sort",))


@pytest.fixture
def home(stage, tmp_path):
    """The site's home, as if nothing had been opened in it yet."""
    import shutil

    from fgrpo_secure.home import open_home

    root = tmp_path / "home"
    shutil.copytree(stage.homes / SITE, root)
    return open_home(root)


@pytest.fixture
def openings():
    opened = []
    yield opened
    for site in opened:
        site._site._clients[SITE]._ledger.close()


def opening(stage, plan=None, **changes):
    plan = plan or stage.plan()
    made = Opening("first", stage.text.encode(), canonical_json(plan.to_json()))
    return replace(made, **changes)


def opened(home, run, proposed, openings):
    site = open_pilot_site(home.root, run, proposed, lambda *told: None)
    openings.append(site)
    return site


def lines(home):
    """What the site's ledger says, line by line."""
    return records(home.private / "ledger" / f"{SITE}.jsonl")


def said(home):
    return json.dumps(lines(home))


def test_a_run_that_all_agreed_on_is_opened_and_laid_out_like_any_run(
    stage, home, openings
):
    opened(home, RUN, opening(stage), openings)
    folder = home.run("first")
    assert (folder / "plan.json").read_bytes() == opening(stage).plan
    assert {path.stem for path in (folder / "keys").iterdir()} == {*stage.sites, SERVER}
    assert (folder / "config.toml").stat().st_mode & 0o077 == 0
    assert len(lines(home)) == 1


def test_the_plan_is_that_of_the_same_terms_on_one_machine(stage):
    """Transport, identities and the run's handle are no part of it."""
    assert stage.plan().digest == stage.local_plan().digest


def test_a_changed_plan_is_refused_and_stands_in_the_ledger(stage, home, openings):
    plan = stage.plan()
    more = replace(plan, noise_variance=plan.noise_variance + 1, rounds=plan.rounds + 1)
    with pytest.raises(PlanMismatchError):
        opened(home, RUN, opening(stage, more), openings)
    assert "plan_mismatch" in said(home)
    assert more.digest in said(home)


def test_less_noise_than_the_terms_ask_for_is_refused(stage, home, openings):
    sent = json.loads(opening(stage).plan)
    sent["noise_variance"] = str(int(sent["noise_variance"]) // 2)
    less = replace(opening(stage), plan=canonical_json(sent))
    with pytest.raises(RefusalError):
        opened(home, RUN, less, openings)
    assert "joined" not in said(home)


def test_other_terms_under_a_name_that_was_opened_are_refused(stage, home, openings):
    opened(home, RUN, opening(stage), openings)
    openings.pop()._site._clients[SITE]._ledger.close()
    other = opening(stage, agreement=stage.text.encode() + b"\n# other\n")
    with pytest.raises(PlanMismatchError, match="other terms"):
        opened(home, RUN, other, openings)
    with pytest.raises(PlanMismatchError, match="another one"):
        opened(home, OTHER, opening(stage), openings)
    assert said(home).count("plan_mismatch") == 2


def test_a_run_that_was_interrupted_is_opened_again(stage, home, openings):
    opened(home, RUN, opening(stage), openings)
    openings.pop()._site._clients[SITE]._ledger.close()
    opened(home, RUN, opening(stage), openings)
    assert "plan_mismatch" not in said(home)


def test_a_client_whose_key_is_not_pinned_keeps_the_site_from_the_run(
    stage, home, openings
):
    home.key_file("sums").unlink()
    with pytest.raises(StateError, match="sums, of whom no key is pinned"):
        opened(home, RUN, opening(stage), openings)
    assert lines(home) == []


def test_a_run_that_pins_other_keys_than_the_home_is_refused(stage, home, openings):
    opened(home, RUN, opening(stage), openings)
    openings.pop()._site._clients[SITE]._ledger.close()
    key = home.run("first") / "keys" / "sums.pub"
    key.write_bytes((home.run("first") / "keys" / "sort.pub").read_bytes())
    with pytest.raises(StateError, match="key of sums"):
        opened(home, RUN, opening(stage), openings)


@pytest.mark.parametrize("name", ["../other", "/etc/x", "", "a/b", ".hidden"])
def test_a_name_that_leads_out_of_the_folder_of_runs_is_refused(
    stage, home, openings, name
):
    with pytest.raises(ConfigurationError):
        opened(home, RUN, opening(stage, name=name), openings)
    assert list(home.runs.iterdir()) == []


def test_without_a_policy_nothing_is_opened(stage, home, openings):
    home.policy.unlink()
    with pytest.raises(ConfigurationError, match="policy"):
        opened(home, RUN, opening(stage), openings)


def test_a_policy_that_refuses_stands_in_the_ledger(stage, home, openings):
    text = home.policy.read_text("utf-8")
    home.policy.write_text(text.replace("least_clients = 3", "least_clients = 9"))
    with pytest.raises(RefusalError):
        opened(home, RUN, opening(stage), openings)
    assert "policy_cohort" in said(home)


def test_a_ledger_is_given_once_the_run_is_closed_in_it(stage, home, openings):
    site = opened(home, RUN, opening(stage), openings)
    with pytest.raises(StateError, match="before this run is closed"):
        site.handle(training.LEDGER, SITE, b"")
    site.handle("close", SITE, b"")
    path = home.private / "ledger" / f"{SITE}.jsonl"
    assert site.handle(training.LEDGER, SITE, b"") == path.read_bytes()


def test_a_site_without_a_public_evaluation_set_scores_nothing(stage, home, openings):
    site = opened(home, RUN, opening(stage), openings)
    assert site.handle("evaluate", SITE, b"no adapter at all") == b"null"
