"""An operator ends a run at its own site: what is spent counts, killed or not."""

import json
import os
import signal
from dataclasses import replace
from decimal import Decimal

import pytest

from fgrpo_secure import budget
from fgrpo_secure.cli import main
from fgrpo_secure.closing import close_at_site
from fgrpo_secure.errors import StateError
from privacy.contribution import charge, registered_event
from privacy.crypto import SigningKey
from privacy.errors import LedgerError
from privacy.ledger import (
    Commit,
    Declined,
    Joined,
    Ledger,
    Outcome,
    Reason,
    Role,
    ServerOpened,
    Status,
    charge_count,
    claimed_epsilon,
    spend_of,
    verify_ledger,
)
from privacy.plan import SERVER
from tests.app.cohorts import CohortRun
from tests.app.federation import RUN
from tests.app.sites import FIRST, NAME, SECOND, capped, plan_of
from tests.end_to_end.program import records
from tests.plans import Counter

# How far the second round came when the process died.
PHASES = ("idle", "joined", "charged", "committed")
CHARGES = {"idle": 1, "joined": 1, "charged": 2, "committed": 2}


@pytest.fixture
def plan():
    return plan_of(rounds=4)


def begun(sites, plan, phase, run=FIRST, folder="run", **options):
    """A run of which a client's process died in its second round."""
    ledger = sites.open(plan, *options.pop("overrides", ()), run=run, folder=folder)
    for number in (1, 2):
        if number == 2 and phase == "idle":
            break
        ledger.append(Joined(number, 1, bytes(32), bytes(32)))
        if number == 2 and phase == "joined":
            break
        entropy = Counter(str(number))
        charge(
            plan, NAME, round_number=number, attempt=1, ledger=ledger, entropy=entropy
        )
        if number == 1:
            missed = (Status.MISSED, Reason.DEADLINE, (), None, None, None)
            ledger.append(Outcome(number, 1, *missed))
        elif phase == "committed":
            bits = plan.modulus_bits
            ledger.append(Commit(number, 1, bytes(32), plan.vector_length, bits))
    ledger.close()
    prepare(sites, plan, run, folder)
    return sites.ledger_path


def prepare(sites, plan, run=FIRST, folder="run"):
    """What else lies in a run's folder: its configuration and the server's ledger."""
    place = sites.run_folder(folder, plan=plan)
    (place.root / "config.toml").write_text(sites.config().to_toml())
    key = SigningKey(bytes([5]) * 32)
    path = place.ledger(SERVER)
    with Ledger.open(path, key, party=SERVER, role=Role.SERVER) as ledger:
        roster = {who: k.raw for who, k in place.roster(plan).items()}
        terms = (plan.to_json(), plan.digest_bytes, roster)
        ledger.append(ServerOpened(run, "tests", *terms))
    return place.root


def close(place, *more):
    return main(["site", "close", str(place), "--client", NAME, *more])


def kinds(path):
    return [record["kind"] for record in records(path)]


def verified(sites):
    return verify_ledger(sites.ledger_path, key=None)


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_is_closed_with_all_that_was_charged(sites, plan, phase, capsys):
    path = begun(sites, plan, phase)
    before = kinds(path)
    assert close(sites.folder / "run") == 0
    middle = [] if phase == "idle" else ["outcome"]
    assert kinds(path) == [*before, "resumed", *middle, "closed"]
    if middle:
        outcome = records(path)[-2]
        assert (outcome["status"], outcome["reason"]) == ("missed", "stopped")
    (run,) = verified(sites).runs
    event = registered_event(plan, NAME)
    spent = spend_of(((event, CHARGES[phase]),), Decimal(plan.delta), plan.rounds)
    assert records(path)[-1]["spend"]["charges"] == CHARGES[phase]
    assert run.history.totals()[0] == spent
    shown = capsys.readouterr().out
    assert FIRST.hex() in shown
    assert f"epsilon {claimed_epsilon(spent)}" in shown.replace("epsilon 0 ", "")
    assert f"{CHARGES[phase]} charges" in shown


def test_the_data_set_is_free_again_and_what_was_spent_counts(sites, plan):
    begun(sites, plan, "charged", overrides=(capped(1000),))
    again = {"run": SECOND, "folder": "second"}
    with pytest.raises(StateError, match="fgrpo site close"):
        sites.open(plan, capped(1000), **again)
    close(sites.folder / "run")
    ledger = sites.open(plan, capped(1000), **again)
    assert charge_count(ledger.history.lifetime) == 2


def test_closing_again_writes_nothing_and_says_the_same(sites, plan, capsys):
    path = begun(sites, plan, "committed")
    assert close(sites.folder / "run", "--json") == 0
    (first,) = json.loads(capsys.readouterr().out)
    whole = path.read_bytes()
    assert close(sites.folder / "run", "--json") == 0
    (second,) = json.loads(capsys.readouterr().out)
    assert path.read_bytes() == whole
    assert not first["already_closed"]
    assert second == first | {"already_closed": True}
    assert first["charges"] == first["lifetime_charges"] == 2
    assert first["epsilon"] > 0


def test_a_store_whose_run_folder_is_gone_is_closed_by_the_configuration(sites, plan):
    path = begun(sites, plan, "joined")
    own = sites.folder / "own.toml"
    own.write_text(sites.config().to_toml())
    assert close(own) == 0
    assert kinds(path)[-1] == "closed"


def test_data_and_policy_that_are_gone_do_not_keep_a_run_open(sites, plan):
    path = begun(sites, plan, "joined")
    config = sites.folder / "run/config.toml"
    policy = sites.folder / "gone.toml"
    text = sites.config(f'client.{NAME}.policy="{policy}"').to_toml()
    config.write_text(text)
    (sites.path.parent / f"data/{NAME}.jsonl").unlink()
    (sites.path.parent / "rewards.py").unlink()
    assert close(sites.folder / "run") == 0
    assert kinds(path)[-1] == "closed"


def test_nothing_is_closed_while_a_process_holds_the_ledger(sites, plan, capsys):
    path = begun(sites, plan, "joined")
    with Ledger.open(path, key_of(sites), party=NAME, role=Role.CLIENT):
        whole = path.read_bytes()
        assert close(sites.folder / "run") == 7
        assert path.read_bytes() == whole
    shown = capsys.readouterr().err
    assert "in use by another process" in shown
    assert str(os.getpid()) in shown


def test_nothing_is_closed_while_a_process_runs_in_the_folder(sites, plan, capsys):
    """Its server would go on with a client that has left."""
    from fgrpo_secure.folders import held

    path = begun(sites, plan, "joined")
    whole = path.read_bytes()
    with held(sites.folder / "run"):
        assert close(sites.folder / "run") == 5
    assert path.read_bytes() == whole
    assert "in use by another process" in capsys.readouterr().err


def test_the_folder_of_another_run_closes_nothing(sites, plan, capsys):
    path = begun(sites, plan, "joined")
    other = prepare(sites, replace(plan, rounds=3), SECOND, "second")
    whole = path.read_bytes()
    assert close(other) == 5
    assert "another" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_a_wrong_path_makes_neither_a_ledger_nor_an_identity(sites, plan):
    root = prepare(sites, plan)
    before = sorted(sites.folder.rglob("*"))
    assert close(root) == 5
    assert sorted(sites.folder.rglob("*")) == before
    assert main(["site", "close", str(root), "--client", "nobody"]) == 2
    assert main(["site", "close", str(sites.path), "--client", NAME]) == 2


def test_a_ledger_that_only_declined_has_nothing_to_close(sites, plan):
    place = sites.run_folder(plan=plan)
    path = place.own_ledger(NAME)
    path.parent.mkdir(parents=True, mode=0o700)
    roster = {who: k.raw for who, k in place.roster(plan).items()}
    terms = (plan.to_json(), plan.digest_bytes, roster)
    with Ledger.open(path, key_of(sites), party=NAME, role=Role.CLIENT) as ledger:
        ledger.append(Declined(FIRST, "tests", *terms, Reason.POLICY_UNIT))
    with pytest.raises(StateError, match="no run"):
        close_at_site(place, NAME)
    assert kinds(path) == ["declined"]


def test_a_ledger_that_was_cut_is_not_closed_over(sites, plan, capsys):
    path = begun(sites, plan, "charged")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert close(sites.folder / "run") == 7
    assert path.read_bytes() == b"".join(lines[:-1])


def key_of(sites):
    from fgrpo_secure.secrets import identity_key

    return identity_key(sites.run_folder().private(NAME))


def test_the_others_go_on_without_a_client_that_has_closed_its_part(federation):
    one = federation()
    one.round(1)
    one.ledgers[NAME].close()
    closed = close_at_site(one.folder, NAME, RUN)
    assert (closed.published, closed.spend.charges) == (1, 1)
    whole = one.folder.own_ledger(NAME).read_bytes()
    one.restart_client(NAME)
    assert one.round(2).published
    assert "its part is over" in str(one.exchange.errors["offer", NAME])
    assert NAME not in one.last(SERVER, "published")["survivors"]
    one.exchange.clients[NAME].close()
    assert one.folder.own_ledger(NAME).read_bytes() == whole


# In a run of several cohorts each client has the folder of its own.


@pytest.fixture
def two_cohorts(tmp_path):
    """Makes runs of two cohorts that were opened, and whose processes have ended."""

    def make(name, **settings):
        folder = tmp_path / name
        folder.mkdir()
        one = CohortRun(folder, **settings)
        one.close()
        for client in one.exchange.clients.values():
            client._ledger.close()
        return one

    return make


def close_both(root, *names):
    words = [word for name in names for word in ("--client", name)]
    return main(["site", "close", str(root), *words])


def test_the_folder_of_a_run_of_cohorts_closes_a_client_of_any(two_cohorts, capsys):
    one = two_cohorts("one")
    assert close_both(one.root, "count", "sums") == 0
    said = capsys.readouterr().out
    for place, name in enumerate(("count", "sums")):
        assert one.kinds(place, name)[-1] == "closed"
        assert one.ledgers[place].history.run.hex() in said
    assert one.kinds(0, "shift")[-1] != "closed"
    assert close_both(one.root / "cohort-0002", "sort") == 0
    assert one.kinds(1, "sort")[-1] == "closed"


def test_the_folder_of_an_older_run_of_cohorts_does_not_close_the_one_that_is_open(
    two_cohorts, tmp_path, capsys, monkeypatch
):
    """Each cohort has a handle of its own, and there is none above them."""
    # That clients have rows in common, and no budget for two runs, is beside the point.
    standing, room = budget.standing, {"refusal": None, "cap": Decimal(1000)}
    monkeypatch.setattr(budget, "claim_units", lambda *_: None)
    monkeypatch.setattr(
        budget, "standing", lambda *given: replace(standing(*given), **room)
    )
    state = {"machine": {"state": str(tmp_path / "store")}}
    old = two_cohorts("old", **state)
    new = two_cohorts("new", **state)
    path = new.folders[1].own_ledger("sums")
    whole = path.read_bytes()
    assert close_both(old.root, "sums") == 5
    assert "has gone on with another" in capsys.readouterr().err
    assert path.read_bytes() == whole
    assert close_both(new.root, "sums") == 0
    assert kinds(path)[-1] == "closed"


def test_nothing_is_closed_in_a_cohort_while_a_process_runs_in_the_folder_above(
    two_cohorts, capsys
):
    from fgrpo_secure.folders import held

    one = two_cohorts("one")
    with held(one.root):
        for place in (one.root, one.root / "cohort-0001"):
            assert close_both(place, "count") == 5
            assert "in use by another process" in capsys.readouterr().err
    assert one.kinds(0, "count")[-1] != "closed"


def test_a_cohort_whose_plan_is_gone_is_told_and_closes_nothing(two_cohorts, capsys):
    one = two_cohorts("one")
    (one.root / "cohort-0002/plan.json").unlink()
    assert close_both(one.root, "sums") == 5
    assert "has no plan.json" in capsys.readouterr().err
    assert close_both(one.root, "count") == 0


# Killed at every step of every write.


class Steps:
    """Kills this process before the n-th call by which a file is changed."""

    CALLS = ("write", "fsync", "ftruncate", "rename", "replace", "open")

    def __init__(self, last, *, tear):
        self.left = last
        self.tear = tear
        for name in self.CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name, call):
        def counted(*arguments, **options):
            self.left -= 1
            if self.left == 0:
                if name == "write" and self.tear:
                    call(arguments[0], bytes(arguments[1])[:100])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted


def killed_at(step, place, *, tear):
    """Whether a process that closes a run was killed; it dies for real."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            Steps(step, tear=tear)
            close_at_site(place, NAME, FIRST)
            status = 0
        finally:
            os._exit(status)
    _, word = os.waitpid(process, 0)
    status = os.waitstatus_to_exitcode(word)
    assert status in {0, -signal.SIGKILL}
    return status != 0


@pytest.mark.parametrize("tear", [False, True], ids=["before", "within"])
def test_a_kill_at_any_step_loses_no_charge_and_closing_again_ends_it(
    sites, plan, tear
):
    path = begun(sites, plan, "charged")
    place = sites.run_folder()
    files = [path, path.with_name(f"{path.name}.head")]
    before = [file.read_bytes() for file in files]
    step = 0
    while True:
        step += 1
        for file, data in zip(files, before, strict=True):
            file.write_bytes(data)
        was_killed = killed_at(step, place, tear=tear)
        closed = close_at_site(place, NAME, FIRST)
        assert closed.spend.charges == 2
        (run,) = verified(sites).runs
        assert run.history.phase == "closed"
        assert kinds(path).count("closed") == kinds(path).count("outcome") - 1 == 1
        if not was_killed:
            break
    assert step > 20
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LedgerError):
        close_at_site(place, NAME, FIRST)
