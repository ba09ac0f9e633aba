import os
from pathlib import Path

import pytest

from privacy.errors import LedgerError
from privacy.ledger import read_key_file, write_key_file
from tests.privacy.ledger.synthetic import make_key

OLD, NEW = make_key("alpha").verify_key, make_key("beta").verify_key


def test_a_key_file_reads_back_and_is_replaced_whole(tmp_path):
    path = tmp_path / "alpha.pub"
    for key in (OLD, NEW):
        write_key_file(path, key)
        assert path.read_bytes() == key.raw.hex().encode() + b"\n"
        assert read_key_file(path) == key
    assert [file.name for file in tmp_path.iterdir()] == ["alpha.pub"]


def test_a_key_that_must_not_be_used_is_refused(tmp_path):
    path = tmp_path / "alpha.pub"
    path.write_bytes(b"00" * 32 + b"\n")
    with pytest.raises(LedgerError, match="low order"):
        read_key_file(path)


def test_a_key_file_is_synced_before_it_takes_its_place(tmp_path, monkeypatch):
    path = tmp_path / "alpha.pub"
    calls = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor):
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        calls.append(("fsync", name))
        return real_fsync(descriptor)

    def replaced(self, target):
        calls.append(("replace", Path(target).name))
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replaced)
    write_key_file(path, OLD)
    assert calls == [
        ("fsync", "alpha.pub.tmp"),
        ("replace", "alpha.pub"),
        ("fsync", tmp_path.name),
    ]


@pytest.mark.parametrize("failing", ["write", "fsync", "short"])
def test_a_write_that_fails_leaves_the_old_key_and_nothing_else(
    tmp_path, monkeypatch, failing
):
    path = tmp_path / "alpha.pub"
    write_key_file(path, OLD)
    real, taken = os.write, iter([7, 0])

    def fails(*_):
        raise OSError(28, "No space left on device")

    if failing == "short":
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: next(taken)]))
    else:
        monkeypatch.setattr(os, failing, fails)
    with pytest.raises(OSError, match=r"only a part|No space"):
        write_key_file(path, NEW)
    monkeypatch.undo()
    assert read_key_file(path) == OLD
    assert [file.name for file in tmp_path.iterdir()] == ["alpha.pub"]


def test_a_write_of_which_the_system_takes_a_part_goes_on_with_the_rest(
    tmp_path, monkeypatch
):
    path = tmp_path / "alpha.pub"
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    write_key_file(path, NEW)
    monkeypatch.undo()
    assert read_key_file(path) == NEW
