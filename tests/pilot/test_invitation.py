"""What parties send one another: one form, one fingerprint, and nothing else passes."""

import json
from dataclasses import replace

import pytest

from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.home import HomeRole
from fgrpo_secure.pilot.invitation import (
    Admission,
    Cohort,
    Invitation,
    Request,
    fingerprint,
    is_fingerprint,
    read_pilot,
    read_small,
)
from fgrpo_secure.secrets import identity_key
from tests.pilot.enrolment import PILOT, SITES

ROOT = "SHA256" + ":0A" * 32


@pytest.fixture
def invitation():
    return Invitation.of(read_pilot(PILOT, "PILOT.toml"))


@pytest.fixture
def keys(tmp_path):
    return {
        name: identity_key(tmp_path / name).verify_key for name in (*SITES, "server")
    }


def test_an_invitation_is_read_as_it_was_written(invitation):
    assert Invitation.from_bytes(invitation.to_bytes(), "x") == invitation
    assert invitation.parties == (*SITES, "server", "lead")


def test_every_party_has_a_role_and_a_name_for_the_engine(invitation):
    assert invitation.role("north") is HomeRole.SITE
    assert invitation.role("server") is HomeRole.SERVER
    assert invitation.engine_name("server") == "localhost"
    assert invitation.engine_name("lead") == "lead@example.org"
    with pytest.raises(ConfigurationError, match="no party west"):
        invitation.role("west")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"north"', '"east"', "one name"),
        ('"north"', '"East"', "one name"),
        ('"north"', '"server"', "another party"),
        ('"north"', '"Lead"', "another party"),
        ('"north"', '"localhost"', "another party"),
        ('"north"', '"a.b"', "no name"),
        ('"north"', '"../x"', "no name"),
        ('"trial"', '"a b"', "no name"),
        ('"localhost"', '"-x"', "no host name"),
        ('"localhost"', '"a/b"', "no host name"),
        ('"lead@example.org"', '"lead"', "no mail address"),
        ("8003", "8002", "equal"),
        ("8003", "70000", "admin_port"),
        ('[[site]]\nname = "north"', "", "at least 3"),
        ("[lead]", "[led]", "not a known key"),
        ("[pilot]", "[pilot", "not valid TOML"),
    ],
)
def test_a_wrong_pilot_file_is_told(old, new, words):
    assert old in PILOT
    with pytest.raises(ConfigurationError, match=words):
        read_pilot(PILOT.replace(old, new), "PILOT.toml")


def test_sites_in_single_brackets_are_told():
    text = PILOT.partition("[[site]]")[0] + '[site]\nname = "x"\n'
    with pytest.raises(ConfigurationError, match="double brackets"):
        read_pilot(text, "PILOT.toml")


def test_an_invitation_from_elsewhere_is_held_to_the_same_rules(invitation):
    for wrong in (
        replace(invitation, pilot="../x"),
        replace(invitation, sites=("a", "b")),
        replace(invitation, port=0),
        replace(invitation, mail=""),
    ):
        with pytest.raises(ConfigurationError, match="is no invitation"):
            Invitation.from_bytes(wrong.to_bytes(), "x")


def test_a_request_is_read_as_it_was_written(keys):
    request = Request("trial", "north", keys["north"], b"PK\0")
    assert Request.from_bytes(request.to_bytes(), "x") == request


def test_an_admission_is_read_as_it_was_written(invitation, keys):
    admission = Admission("north", Cohort(invitation, ROOT, keys), b"PK\0")
    assert Admission.from_bytes(admission.to_bytes(), "x") == admission


@pytest.mark.parametrize("kind", [Invitation, Request, Admission])
@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"PK\0", b'{"format":"x"}', b"1"])
def test_what_is_no_file_of_a_pilot_is_refused(kind, data):
    with pytest.raises(ConfigurationError, match="of a pilot"):
        kind.from_bytes(data, "x")


def test_a_file_in_another_form_is_refused(keys):
    data = Request("trial", "north", keys["north"], b"PK").to_bytes()
    for wrong in (data + b"\n", b" " + data, json.dumps(json.loads(data)).encode()):
        with pytest.raises(ConfigurationError, match="is no request"):
            Request.from_bytes(wrong, "x")


def test_one_kind_is_not_taken_for_another(invitation, keys):
    data = Request("trial", "north", keys["north"], b"PK").to_bytes()
    with pytest.raises(ConfigurationError, match="is no invitation"):
        Invitation.from_bytes(data, "x")


def test_a_cohort_that_lacks_a_key_or_doubles_one_is_refused(invitation, keys):
    lacking = {name: key for name, key in keys.items() if name != "east"}
    doubled = keys | {"east": keys["north"]}
    more = keys | {"west": identity_of_another(keys)}
    for wrong in (lacking, doubled, more):
        data = Admission("north", Cohort(invitation, ROOT, wrong), b"").to_bytes()
        with pytest.raises(ConfigurationError, match="is no cohort"):
            Admission.from_bytes(data, "x")


def identity_of_another(keys):
    return next(iter(keys.values()))


def test_the_cohorts_fingerprint_covers_keys_names_address_and_root(
    invitation, keys, tmp_path
):
    cohort = Cohort(invitation, ROOT, keys)
    other = identity_key(tmp_path / "other").verify_key
    changed = [
        replace(cohort, keys=keys | {"east": other}),
        replace(cohort, root=ROOT.replace("0A", "0B")),
        replace(cohort, invitation=replace(invitation, host="example.org")),
        replace(cohort, invitation=replace(invitation, port=9000)),
    ]
    assert cohort.fingerprint not in {one.fingerprint for one in changed}


def test_a_fingerprint_is_read_in_any_grouping_and_never_in_part():
    found = fingerprint(b"x")
    assert is_fingerprint(found, found)
    assert is_fingerprint(found.replace(" ", "").upper(), found)
    assert is_fingerprint(found.replace(" ", ":"), found)
    assert not is_fingerprint(found[:-1], found)
    assert not is_fingerprint("", found)


def test_a_file_larger_than_any_of_ours_is_not_read(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(2**20 + 1))
    with pytest.raises(ConfigurationError, match="is no file of a pilot"):
        read_small(path)
    with pytest.raises(ConfigurationError, match="There is no file"):
        read_small(tmp_path / "missing")
