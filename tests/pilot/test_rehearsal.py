"""A whole pilot on this machine, as `make pilot` plays it: about a minute."""

import json
import stat

import pytest

pytest.importorskip("nvflare", reason="the extra [nvflare] is not installed")

from fgrpo_secure.agreement import read_agreement
from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.home import open_home
from fgrpo_secure.pilot import networks, processes
from fgrpo_secure.pilot.rehearsal import SITES, rehearse
from fgrpo_secure.preparation import make_plan
from privacy.ledger import verify_run


def test_three_sites_and_a_server_train_and_every_ledger_verifies(tmp_path):
    folder, said = tmp_path / "pilot", []
    summary = rehearse(folder, said.append)
    run = summary.parent
    found = json.loads(summary.read_text("utf-8"))
    assert (found["rounds_completed"], found["rounds_aborted"]) == (3, 0)
    assert found["survivors"] == sorted(SITES)
    report = verify_run(run)
    assert report.ok, report.problems
    assert report.published == 3
    # What the engine does has no say in what is promised and learnt.
    agreement = read_agreement((folder / "rehearsal.toml").read_text("utf-8"))
    homes = folder / "pilot" / "homes"
    plan, _ = make_plan(agreement.at_server(open_home(homes / "server")))
    assert found["plan_digest"] == plan.digest
    for name in SITES:
        assert not processes.processes(open_home(homes / name))
    # No private file of any party was collected.
    names = {path.name for path in run.rglob("*")}
    assert not {"identity.key", "checkpoint.json"} & names
    with pytest.raises(ConfigurationError, match="has ended"):
        rehearse(folder, said.append)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_with_other_files_is_not_used(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigurationError, match="not empty"):
        rehearse(tmp_path, lambda line: None)


def test_what_was_started_is_stopped_where_a_step_fails(tmp_path, monkeypatch):
    from fgrpo_secure.pilot import rehearsal

    stopped = []
    monkeypatch.setattr(
        rehearsal.processes,
        "start_in_background",
        lambda home, within: (_ for _ in ()).throw(StateError("x", "y")),
    )
    monkeypatch.setattr(
        rehearsal.processes, "stop", lambda home: stopped.append(home.party)
    )
    whole = rehearsal.Rehearsal(tmp_path, lambda line: None, lambda party: ())
    monkeypatch.setattr(
        rehearsal.Rehearsal, "home", lambda self, party: type("H", (), {"party": party})
    )
    with pytest.raises(StateError), rehearsal.running(whole, ["server"]):
        pass
    assert stopped == ["server"]


def test_networks_say_what_they_lack(monkeypatch):
    monkeypatch.setattr(networks.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(networks.shutil, "which", lambda name, path: "/sbin/ip")
    with (
        pytest.raises(ConfigurationError, match="Only root"),
        networks.networks(["a"], lambda line: None),
    ):
        pass
    monkeypatch.setattr(networks.shutil, "which", lambda name, path: None)
    with (
        pytest.raises(ConfigurationError, match="no command `ip`"),
        networks.networks(["a"], lambda line: None),
    ):
        pass
