"""Enrolment with the real engine: what is signed, what is pinned, what is refused."""

import json
import shutil
import stat

import pytest

pytest.importorskip("nvflare", reason="the extra [nvflare] is not installed")

from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.home import open_home
from fgrpo_secure.pilot import enrol
from fgrpo_secure.pilot.engine import EngineError
from fgrpo_secure.pilot.invitation import Admission, Cohort, Request, fingerprint
from fgrpo_secure.secrets import identity_key
from tests.pilot.enrolment import PILOT, SITES, write_pilot

PARTIES = (*SITES, "server", "lead")


def agree(request, shown):
    return True


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pilot in which everybody has asked and is approved, and nobody installed."""
    folder = tmp_path_factory.mktemp("pilot")
    pilot = enrol.init_pilot(write_pilot(folder), folder / "pilot")
    for party in PARTIES:
        enrol.request_admission(pilot.invitation, folder / party, party)
    cohort = enrol.approve_requests(pilot, request_files(folder, PARTIES), agree)
    return folder, pilot, cohort


@pytest.fixture
def world(made, tmp_path):
    """The same, for one test to change."""
    folder, _pilot, cohort = made
    shutil.copytree(folder, tmp_path / "world")
    return tmp_path / "world", enrol.open_pilot(tmp_path / "world" / "pilot"), cohort


def request_files(folder, parties):
    return [folder / party / f"{party}.request.json" for party in parties]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_every_party_is_enrolled_with_keys_that_never_left_its_home(world):
    folder, pilot, cohort = world
    for party in PARTIES:
        enrol.install(pilot.admission_file(party), folder / party, cohort.fingerprint)
        home = open_home(folder / party)
        assert sorted(home.roster()) == sorted((*SITES, "server"))
        assert home.roster() == dict(cohort.keys)
    secret = [(folder / p / "state" / p / "identity.key").read_bytes() for p in PARTIES]
    secret += [
        path.read_bytes()
        for party in PARTIES
        for path in (folder / party).rglob("*.key")
    ]
    secret.append((folder / "pilot" / "ca" / "rootCA.key").read_bytes())
    sent = [pilot.admission_file(party).read_bytes() for party in PARTIES]
    sent += [path.read_bytes() for path in request_files(folder, PARTIES)]
    sent.append((folder / "pilot" / enrol.INVITATION).read_bytes())
    for text in sent:
        assert not any(key in text or key.hex().encode() in text for key in secret)
        assert b"PRIVATE KEY" not in text


def test_private_keys_are_their_owners_alone(world):
    folder, pilot, cohort = world
    enrol.install(pilot.admission_file("north"), folder / "north", cohort.fingerprint)
    keys = [*(folder / "north").rglob("*.key"), folder / "pilot" / "ca" / "rootCA.key"]
    assert len(keys) >= 3
    for path in keys:
        assert mode(path) == 0o600
    for path in (folder / "pilot", folder / "pilot" / "ca", folder / "north"):
        assert mode(path) == 0o700
    assert mode(folder / "north" / "kit") == 0o700


def test_every_step_may_be_repeated(world):
    folder, pilot, cohort = world
    again = enrol.init_pilot(folder / "PILOT.toml", folder / "pilot")
    assert again.root_fingerprint == pilot.root_fingerprint
    before = request_files(folder, ["north"])[0].read_bytes()
    enrol.request_admission(pilot.invitation, folder / "north", "north")
    assert request_files(folder, ["north"])[0].read_bytes() == before
    found = enrol.approve_requests(pilot, request_files(folder, PARTIES), agree)
    assert found.fingerprint == cohort.fingerprint
    for _ in range(2):
        enrol.install(
            pilot.admission_file("north"), folder / "north", cohort.fingerprint
        )


def test_an_interrupted_root_is_made_again(tmp_path):
    source = write_pilot(tmp_path)
    (tmp_path / "pilot" / "ca").mkdir(parents=True)
    (tmp_path / "pilot" / "ca" / "rootCA.key").write_text("half")
    enrol_root = tmp_path / "pilot" / enrol.INVITATION
    enrol_root.write_bytes(enrol.Invitation.of(enrol.read_pilot(PILOT, "x")).to_bytes())
    pilot = enrol.init_pilot(source, tmp_path / "pilot")
    assert pilot.root_fingerprint.startswith("SHA256:")


def test_a_pilot_is_not_made_over_another(world, tmp_path):
    folder, _, _ = world
    other = write_pilot(tmp_path, PILOT.replace('"trial"', '"other"'))
    with pytest.raises(StateError, match="folder of the pilot trial"):
        enrol.init_pilot(other, folder / "pilot")
    with pytest.raises(StateError, match="not empty"):
        enrol.init_pilot(other, folder)
    with pytest.raises(StateError, match="no folder of a pilot"):
        enrol.open_pilot(folder)


def test_nothing_goes_back_before_all_have_asked(tmp_path):
    pilot = enrol.init_pilot(write_pilot(tmp_path), tmp_path / "pilot")
    enrol.request_admission(pilot.invitation, tmp_path / "north", "north")
    files = request_files(tmp_path, ["north"])
    assert enrol.approve_requests(pilot, files, agree) is None
    assert enrol.missing(pilot) == ["east", "south-1", "server", "lead"]
    assert not list((tmp_path / "pilot" / "admissions").iterdir())


def test_what_the_lead_did_not_compare_is_not_signed(world):
    folder, pilot, _ = world
    pilot.request_file("north").unlink()
    pilot.certificate_file("north").unlink()
    shown = []

    def refuse(request, text):
        shown.append((request.party, text))
        return False

    file = request_files(folder, ["north"])[0]
    with pytest.raises(ConfigurationError, match="not approved"):
        enrol.approve_requests(pilot, [file], refuse)
    assert shown == [("north", fingerprint(file.read_bytes()))]
    assert not pilot.certificate_file("north").exists()


def test_a_second_home_in_a_sites_name_is_not_approved(world, tmp_path):
    _, pilot, _ = world
    enrol.request_admission(pilot.invitation, tmp_path / "mallory", "north")
    with pytest.raises(ConfigurationError, match="approved before, with other keys"):
        enrol.approve_requests(
            pilot, [tmp_path / "mallory" / "north.request.json"], agree
        )


def test_a_request_that_asks_the_engine_for_another_role_is_refused(world):
    folder, pilot, _ = world
    pilot.request_file("north").unlink()
    lead = Request.from_bytes(request_files(folder, ["lead"])[0].read_bytes(), "x")
    north = Request.from_bytes(request_files(folder, ["north"])[0].read_bytes(), "x")
    file = folder / "forged.json"
    file.write_bytes(Request("trial", "north", north.identity, lead.engine).to_bytes())
    pilot.certificate_file("north").unlink()
    with pytest.raises(ConfigurationError, match="another name or role"):
        enrol.approve_requests(pilot, [file], agree)
    assert not pilot.certificate_file("north").exists()


@pytest.mark.parametrize("engine", [b"", b"PK\0", b"not a zip"])
def test_a_request_that_the_engine_cannot_read_is_refused(world, engine):
    folder, pilot, _ = world
    pilot.request_file("north").unlink()
    key = identity_key(folder / "x").verify_key
    file = folder / "forged.json"
    file.write_bytes(Request("trial", "north", key, engine).to_bytes())
    with pytest.raises(EngineError):
        enrol.approve_requests(pilot, [file], agree)


def test_a_request_to_another_pilot_is_refused(world):
    folder, pilot, _ = world
    request = Request.from_bytes(request_files(folder, ["north"])[0].read_bytes(), "x")
    file = folder / "other.json"
    file.write_bytes(
        Request("other", "north", request.identity, request.engine).to_bytes()
    )
    with pytest.raises(ConfigurationError, match="request to the pilot other"):
        enrol.approve_requests(pilot, [file], agree)


def refuses(world, party, data, typed, words):
    """An install that must leave the home as it was."""
    folder, _, _ = world
    file = folder / "admission.json"
    file.write_bytes(data)
    with pytest.raises((ConfigurationError, StateError, EngineError), match=words):
        enrol.install(file, folder / party, typed)
    assert not (folder / party / "kit").exists()
    assert not list((folder / party / "keys").iterdir())


def test_a_wrong_fingerprint_is_refused(world):
    _, pilot, cohort = world
    data = pilot.admission_file("north").read_bytes()
    for typed in ("", cohort.fingerprint[:-1], pilot.root_fingerprint, "0" * 64):
        refuses(world, "north", data, typed, "another fingerprint")


def test_anothers_admission_is_refused(world):
    _, pilot, cohort = world
    data = pilot.admission_file("east").read_bytes()
    refuses(world, "north", data, cohort.fingerprint, "is for east of trial")


def test_a_cohort_with_another_key_for_this_party_is_refused(world, tmp_path):
    _, pilot, cohort = world
    keys = dict(cohort.keys) | {"north": identity_key(tmp_path / "m").verify_key}
    forged = Cohort(cohort.invitation, cohort.root, keys)
    engine = pilot.certificate_file("north").read_bytes()
    data = Admission("north", forged, engine).to_bytes()
    refuses(world, "north", data, forged.fingerprint, "another key for north")


def test_a_certificate_under_another_root_is_refused(world, tmp_path):
    _folder, pilot, cohort = world
    forged = Cohort(cohort.invitation, "SHA256" + ":AB" * 32, cohort.keys)
    engine = pilot.certificate_file("north").read_bytes()
    data = Admission("north", forged, engine).to_bytes()
    refuses(world, "north", data, forged.fingerprint, "nvflare package")


def test_anothers_certificate_is_refused(world):
    _, pilot, cohort = world
    engine = pilot.certificate_file("east").read_bytes()
    data = Admission("north", cohort, engine).to_bytes()
    refuses(world, "north", data, cohort.fingerprint, "nvflare package")


def test_a_pinned_key_never_changes_by_itself(world, tmp_path):
    folder, pilot, cohort = world
    enrol.install(pilot.admission_file("north"), folder / "north", cohort.fingerprint)
    keys = dict(cohort.keys) | {"east": identity_key(tmp_path / "m").verify_key}
    forged = Cohort(cohort.invitation, cohort.root, keys)
    file = folder / "admission.json"
    engine = pilot.certificate_file("north").read_bytes()
    file.write_bytes(Admission("north", forged, engine).to_bytes())
    with pytest.raises(StateError, match="key of east"):
        enrol.install(file, folder / "north", forged.fingerprint)
    assert open_home(folder / "north").roster() == dict(cohort.keys)


def test_a_site_that_joins_later_adds_its_key_and_changes_none(world):
    folder, pilot, cohort = world
    enrol.install(pilot.admission_file("north"), folder / "north", cohort.fingerprint)
    more = PILOT.replace("[lead]", '[[site]]\nname = "west"\n\n[lead]')
    pilot = enrol.init_pilot(write_pilot(folder, more), folder / "pilot")
    enrol.request_admission(pilot.invitation, folder / "west", "west")
    larger = enrol.approve_requests(pilot, request_files(folder, ["west"]), agree)
    assert larger.fingerprint != cohort.fingerprint
    for party in ("north", "west"):
        enrol.install(pilot.admission_file(party), folder / party, larger.fingerprint)
        assert "west" in open_home(folder / party).roster()


def test_a_kit_that_was_not_whole_is_made_again(world):
    folder, pilot, cohort = world
    work = folder / "north" / "request" / "work" / "trial" / "prod_00" / "north"
    work.mkdir(parents=True)
    enrol.install(pilot.admission_file("north"), folder / "north", cohort.fingerprint)
    assert (folder / "north" / "kit" / "startup" / "client.key").is_file()


def test_a_sites_kit_forbids_all_that_a_pilot_does_not_need(world):
    folder, pilot, cohort = world
    enrol.install(pilot.admission_file("north"), folder / "north", cohort.fingerprint)
    kit = folder / "north" / "kit"
    rights = json.loads((kit / "local" / "authorization.json").read_text())
    lead = rights["permissions"].pop("lead")
    allowed = {right for right, who in lead.items() if who != "none"}
    assert allowed == {"submit_job", "manage_job"}
    assert set(rights["permissions"].values()) == {"none"}
    resources = json.loads((kit / "local" / "resources.json").read_text())
    assert resources["class_list_enforcement_mode"] == "enforce"
    assert len(resources["class_allow_list"]) == 1
    assert resources["allow_log_streaming"] is False
    assert not any("log" in part["id"] for part in resources["components"])
    left = {path.name for path in kit.rglob("*") if path.is_file()}
    assert not {name for name in left if name.endswith(".sh")}
    assert "authorization.json.default" not in left
    assert "resources.json.default" not in left


def test_a_servers_kit_keeps_its_jobs_within_its_home(world):
    folder, pilot, cohort = world
    enrol.install(pilot.admission_file("server"), folder / "server", cohort.fingerprint)
    kit = open_home(folder / "server").kit
    text = (kit / "local" / "resources.json").read_text()
    assert "tmp/nvflare" not in text
    assert str(kit) in text
    for name in ("jobs", "snapshots"):
        assert mode(kit / name) == 0o700
