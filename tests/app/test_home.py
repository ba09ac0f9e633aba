"""A party's home: private, its own, and told apart from every other folder."""

import stat
from dataclasses import replace

import pytest

from fgrpo_secure.errors import ConfigurationError, FgrpoError, StateError
from fgrpo_secure.home import Home, HomeRole, check_name, make_home, open_home
from fgrpo_secure.secrets import identity_key
from privacy.ledger import write_key_file


@pytest.fixture
def home(tmp_path):
    root = tmp_path / "homes" / "north"
    return Home(root, "north", HomeRole.SITE, "trial", "localhost", 8002, 8003)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_home_is_read_as_it_was_made(home):
    key = make_home(home)
    assert open_home(home.root) == home
    assert home.identity().verify_key == key.verify_key


def test_a_home_and_its_state_are_its_owners_alone(home):
    make_home(home)
    for folder in (home.root, home.state, home.private):
        assert mode(folder) == 0o700
    assert mode(home.private / "identity.key") == 0o600


def test_making_a_home_again_keeps_its_identity(home):
    first = make_home(home)
    assert make_home(home).verify_key == first.verify_key


def test_another_partys_home_is_left_alone(home):
    key = make_home(home)
    with pytest.raises(StateError, match="another party's home"):
        make_home(replace(home, party="east"))
    assert open_home(home.root).identity().verify_key == key.verify_key


def test_a_folder_with_other_files_is_not_made_a_home(home):
    home.root.mkdir(parents=True)
    (home.root / "thesis.tex").write_text("x")
    with pytest.raises(StateError, match="not empty"):
        make_home(home)
    assert [path.name for path in home.root.iterdir()] == ["thesis.tex"]


def test_a_folder_without_a_home_is_told(tmp_path):
    with pytest.raises(StateError, match="no home"):
        open_home(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "party = 1",
        "nonsense",
        'party = "north"\nrole = "site"',
        'party = "north"\nrole = "king"\npilot = "t"\nhost = "h"\nport = 1\n'
        "admin_port = 2",
        'party = "north"\nrole = "site"\npilot = "t"\nhost = "h"\nport = true\n'
        "admin_port = 2",
    ],
)
def test_a_spoilt_home_file_is_told(home, text):
    make_home(home)
    (home.root / "home.toml").write_text(text)
    with pytest.raises(StateError, match="does not say whose"):
        open_home(home.root)


def test_a_home_that_others_may_write_is_refused(home):
    make_home(home)
    home.root.chmod(0o770)
    with pytest.raises(StateError, match="another account"):
        open_home(home.root)


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "a" * 64, "a\n", "-x"])
def test_no_name_leads_out_of_a_home(home, name):
    with pytest.raises(ConfigurationError, match="is no name"):
        home.run(name)
    with pytest.raises(ConfigurationError, match="is no name"):
        check_name(name, "a party")


def test_a_lost_identity_is_never_made_anew(home):
    make_home(home)
    (home.private / "identity.key").unlink()
    with pytest.raises(StateError, match="Restore"):
        home.identity()
    assert not (home.private / "identity.key").exists()


def pin(home, *names):
    for name in names:
        key = identity_key(home.root.parent / name).verify_key
        write_key_file(home.key_file(name), key)


def test_the_pinned_keys_are_read_by_name(home, tmp_path):
    key = make_home(home)
    pin(home, "east", "server")
    write_key_file(home.key_file("north"), key.verify_key)
    assert sorted(home.roster()) == ["east", "north", "server"]


def test_keys_that_are_not_pinned_yet_are_told(home):
    make_home(home)
    with pytest.raises(StateError, match="install"):
        home.roster()
    pin(home, "server")
    with pytest.raises(StateError, match="install"):
        home.roster()


def test_a_pinned_key_that_is_not_this_partys_own_is_refused(home):
    make_home(home)
    pin(home, "north", "server")
    with pytest.raises(StateError, match="is not the key"):
        home.roster()


def test_every_error_says_what_to_do(home):
    with pytest.raises(FgrpoError) as caught:
        open_home(home.root)
    assert caught.value.fix.endswith(".")
