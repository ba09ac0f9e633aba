"""Keys and private files: who may read them, and what a crash leaves."""

import ast
import os
import stat
from pathlib import Path

import pytest

from fgrpo_secure import secrets
from fgrpo_secure.errors import StateError
from fgrpo_secure.secrets import (
    append_privately,
    existing_identity,
    identity_key,
    private_directory,
    remove_unfinished,
    store_key,
    write_atomically,
)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_private_things_are_private_whatever_the_umask(tmp_path, umask):
    folder = private_directory(tmp_path / "client")
    write_atomically(folder / "secret", b"1", private=True)
    assert mode(folder) == 0o700
    assert mode(folder / "secret") & 0o077 == 0
    assert mode(folder / "secret") & 0o400


def test_a_directory_that_was_open_is_closed(tmp_path):
    (tmp_path / "client").mkdir(mode=0o755)
    assert mode(private_directory(tmp_path / "client")) == 0o700


def test_an_identity_is_made_once_and_kept(tmp_path):
    folder = tmp_path / "client"
    first = identity_key(folder)
    assert identity_key(folder).verify_key == first.verify_key
    assert mode(folder / "identity.key") == 0o600
    assert len((folder / "identity.key").read_bytes()) == 32


def test_two_identities_differ(tmp_path):
    one, other = identity_key(tmp_path / "a"), identity_key(tmp_path / "b")
    assert one.verify_key != other.verify_key


@pytest.mark.parametrize("data", [b"", b"short", bytes(33)])
def test_a_damaged_identity_is_an_error_that_shows_no_byte_of_it(tmp_path, data):
    folder = private_directory(tmp_path / "client")
    (folder / "identity.key").write_bytes(data)
    with pytest.raises(StateError) as caught:
        identity_key(folder)
    assert "short" not in str(caught.value)
    assert (folder / "identity.key").read_bytes() == data


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(secrets.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_what_is_written_is_synced_before_it_has_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "state", []
    sync = os.fsync

    def spied(descriptor):
        seen.append(path.exists())
        sync(descriptor)

    monkeypatch.setattr(secrets.os, "fsync", spied)
    write_atomically(path, b"data")
    # The file's own sync, then that of its directory, which holds the name.
    assert seen == [False, True]


def test_looking_for_an_identity_makes_none(tmp_path):
    folder = tmp_path / "client"
    assert existing_identity(folder) is None
    assert not folder.exists()
    made = identity_key(folder).verify_key
    folder.chmod(0o755)
    assert existing_identity(folder) == made
    assert mode(folder) == 0o755


def test_one_module_reads_private_keys():
    package = Path(secrets.__file__).parent
    for path in package.rglob("*.py"):
        names = {
            node.id if isinstance(node, ast.Name) else node.value
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Name | ast.Constant)
        }
        called = {
            getattr(node.func, "id", "")
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call)
        }
        own = path.name == "secrets.py"
        assert ("SigningKey" in called) is own, path
        assert ("identity.key" in names) is own, path


def test_a_line_is_added_to_a_private_file_in_one_piece(tmp_path, umask):
    path = tmp_path / "metrics.jsonl"
    append_privately(path, "one")
    path.chmod(0o600)
    append_privately(path, "two")
    assert path.read_text() == "one\ntwo\n"
    path.write_text("one\ntw")
    append_privately(path, "three")
    assert path.read_text() == "one\ntw\nthree\n"
    (tmp_path / "fresh").mkdir()
    append_privately(tmp_path / "fresh" / "file", "")
    assert mode(tmp_path / "fresh" / "file") & 0o077 == 0


def test_a_private_file_does_not_take_the_mode_of_a_piece_that_was_left(tmp_path):
    path = tmp_path / "identity.key"
    piece = tmp_path / "identity.key.tmp"
    piece.write_bytes(b"older")
    piece.chmod(0o644)
    write_atomically(path, b"key", private=True)
    assert (path.read_bytes(), mode(path)) == (b"key", 0o600)
    # Nor is it written through a link that lies in its place.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"as it was")
    piece.symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic link"):
        write_atomically(path, b"another", private=True)
    assert elsewhere.read_bytes() == b"as it was"
    assert path.read_bytes() == b"key"


def test_what_a_dead_process_left_is_removed_and_nothing_else(tmp_path):
    for name in ("opening-00001.key.tmp", "opening-00001.key", "baseline.json"):
        (tmp_path / name).write_bytes(b"1")
    remove_unfinished(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"opening-00001.key", "baseline.json"}


def test_the_key_of_a_store_is_made_once_and_is_private(tmp_path, umask, monkeypatch):
    path = tmp_path / ".units.key"
    key = store_key(path)
    assert len(key) == 32
    assert mode(path) & 0o077 == 0
    assert store_key(path) == key
    # A process that looked before the other one had written finds the other's key.
    looks = iter([False, True])
    monkeypatch.setattr(type(path), "exists", lambda self: next(looks))
    assert store_key(path) == key
    assert next(looks, None) is None
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_key_of_a_store_that_is_not_whole_is_an_error(tmp_path):
    (tmp_path / ".units.key").write_bytes(bytes(31))
    with pytest.raises(StateError, match="not a key of this store"):
        store_key(tmp_path / ".units.key")
