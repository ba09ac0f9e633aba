"""Disks that refuse, in earnest: no right to write, and no room; and torn folders."""

import errno
import os
import resource
import shutil
import signal
import sys
import traceback

import pytest
from safetensors import SafetensorError

from fgrpo_secure import job, preparation
from fgrpo_secure.cli import main
from fgrpo_secure.errors import StateError, said_by_system
from fgrpo_secure.folders import held
from fgrpo_secure.grpo.adapter import save_pretrained
from fgrpo_secure.secrets import private_directory, write_atomically
from privacy.errors import LedgerError
from privacy.ledger import Ledger, Role
from privacy.ledger.durable import make_directory
from tests.privacy.ledger.synthetic import make_key

NOBODY = 65534
KEY = make_key("alpha")


def drop_rights():
    """Be somebody whom the mode of a folder can refuse."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def in_a_child(act, before=drop_rights):
    """What a child process returns."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before()
            said = str(act())
        except BaseException:
            said = traceback.format_exc()
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def closed(tmp_path):
    """A folder that may be read and not written."""
    for above in (tmp_path, *tmp_path.parents):
        if above.owner() == tmp_path.owner() and above.stat().st_mode & 0o777 == 0o700:
            above.chmod(0o755)
    folder = tmp_path / "closed"
    folder.mkdir()
    yield folder
    folder.chmod(0o755)


def open_ledger(path):
    return Ledger.open(path, KEY, party="alpha", role=Role.CLIENT)


def refusal(act):
    try:
        act()
    except (LedgerError, OSError, StateError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def test_a_ledger_in_a_folder_that_may_not_be_written_is_refused(closed):
    closed.chmod(0o555)
    said = in_a_child(lambda: refusal(lambda: open_ledger(closed / "alpha.jsonl")))
    assert said.startswith("LedgerError: alpha.jsonl cannot be opened for writing")
    assert "Permission denied" in said
    assert list(closed.iterdir()) == []


def test_a_ledger_whose_head_cannot_be_replaced_is_refused_and_stays_as_it_is(closed):
    open_ledger(closed / "alpha.jsonl").close()
    (closed / "alpha.jsonl").chmod(0o666)
    before = {path: path.read_bytes() for path in closed.iterdir()}
    closed.chmod(0o555)
    said = in_a_child(lambda: refusal(lambda: open_ledger(closed / "alpha.jsonl")))
    assert said.startswith("LedgerError: alpha.jsonl.head cannot be written")
    assert {path: path.read_bytes() for path in closed.iterdir()} == before


def test_a_run_in_a_folder_that_may_not_be_written_is_refused_in_two_lines(closed):
    closed.chmod(0o555)
    errors = closed.parent / "stderr"
    errors.touch()
    errors.chmod(0o666)

    def run():
        sys.stderr = errors.open("w", buffering=1)
        make_plans = job.make_plans

        def plan_and_drop(config):
            made = make_plans(config)
            # Whoever may not read the libraries could not have come so far.
            drop_rights()
            return made

        job.make_plans = plan_and_drop
        return main(["run", "tiny", "--output", str(closed / "out")])

    assert in_a_child(run, before=lambda: None) == "5"
    what, fix = errors.read_text().splitlines()[-2:]
    assert what == f"fgrpo: {closed / 'out'}: Permission denied."
    assert fix.strip() == (
        "See that the folder is there, may be written to and has room."
    )
    assert list(closed.iterdir()) == []


def test_a_file_that_passes_the_room_there_is_leaves_the_old_one_alone(tmp_path):
    path = tmp_path / "state"
    write_atomically(path, b"old")

    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return refusal(lambda: write_atomically(path, bytes(1001)))

    child = os.fork()
    if child == 0:
        os._exit(0 if "File too large" in write() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]


def test_an_adapter_for_which_there_is_no_room_is_refused_in_two_lines(tmp_path):
    class Full:
        def save_pretrained(self, where, **_):
            os.makedirs(where)
            msg = "Error while serializing: I/O error: No space left on device"
            raise SafetensorError(msg)

    with pytest.raises(StateError, match="cannot be written") as caught:
        save_pretrained(Full(), tmp_path / "adapter")
    assert "room" in caught.value.fix
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_takes_over_what_a_dead_process_left_of_it(tmp_path):
    class Model:
        def save_pretrained(self, where, **_):
            os.makedirs(where)
            with open(f"{where}/weights", "wb") as file:
                file.write(b"new")

    left = tmp_path / ".adapter.new" / "fresh"
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"half")
    (tmp_path / "adapter").mkdir()
    save_pretrained(Model(), tmp_path / "adapter")
    assert (tmp_path / "adapter" / "weights").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["adapter"]


def test_what_the_system_refused_is_said_without_a_path():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/anna-miller.txt")
    what, fix = said_by_system(error)
    assert what == "The system refused a file: No space left on device."
    assert "anna" not in what + fix


def test_a_directory_is_synced_where_it_was_made_and_with_those_above_it(
    tmp_path, monkeypatch
):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda descriptor: (
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}")),
            sync(descriptor),
        ),
    )
    made = private_directory(tmp_path / "store" / "alpha")
    assert synced == [str(tmp_path), str(tmp_path / "store")]
    make_directory(made)
    assert len(synced) == 2


def test_a_folder_is_held_by_one_process_and_free_when_that_is_dead(tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with held(tmp_path):
            os.write(writing, b"held")
            signal.pause()
    assert os.read(reading, 4) == b"held"
    try:
        with (
            pytest.raises(StateError, match="in use by another process"),
            held(tmp_path),
        ):
            pytest.fail("it was not refused")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with held(tmp_path):
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("names", [[], ["plan.json.tmp"], ["plan.json", "config.toml"]])
def test_a_folder_in_which_a_run_may_begin_or_go_on_is_taken(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    preparation.check_folder(tmp_path)


@pytest.mark.parametrize("names", [["thesis.tex"], ["plan.json.tmp", "config.toml"]])
def test_a_folder_of_something_else_is_not_taken(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(StateError, match="is not a run"):
        preparation.check_folder(tmp_path)
    shutil.rmtree(tmp_path)
