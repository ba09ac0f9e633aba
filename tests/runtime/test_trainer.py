"""The process that learns, seen by its supervisor: started, asked, ended, replaced."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fgrpo_secure.runtime import trainer as module
from fgrpo_secure.runtime.envelope import Opening
from fgrpo_secure.runtime.trainer import DeclinedError, Trainer
from privacy.ledger import Reason

RUN = bytes(16)
ROOT = Path(__file__).parents[2]
# What a site has to stop within.
STOP_SECONDS = 15.0
PATIENCE = 60.0


def named(name):
    return Opening(name, b"terms", b"plan")


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MODULE", "tests.runtime.child")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    own = Trainer(tmp_path, tmp_path, "north")
    yield own
    own.halt()


def is_gone(process):
    """Whether a process has ended; one that nobody has waited for has ended too."""
    try:
        state = Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2]
    except FileNotFoundError:
        return True
    return state.split()[0] == "Z"


def until(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


def test_it_opens_once_and_answers(trainer):
    trainer.open(RUN, named("run"))
    first = trainer.process_id
    trainer.open(RUN, named("run"))
    assert trainer.process_id == first
    assert trainer.ask("offer", b"x") == b"offer:x"


def test_no_folder_of_a_home_is_where_its_modules_are(trainer, tmp_path, monkeypatch):
    # The engine adds such a folder for each job, there or not.
    custom = tmp_path / "kit" / "job" / "app_north" / "custom"
    custom.mkdir(parents=True)
    (custom / "sitecustomize.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    places = [str(custom), "", str(tmp_path / "kit" / ".." / "x"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    trainer.open(RUN, named("run"))
    assert trainer.ask("path", b"") == str(ROOT).encode()
    assert not (tmp_path / "ran").exists()


def test_other_terms_get_a_process_of_their_own(trainer):
    trainer.open(RUN, named("run"))
    first = trainer.process_id
    trainer.open(RUN, Opening("run", b"other terms", b"plan"))
    assert trainer.process_id != first
    assert is_gone(first)


def test_where_other_terms_are_refused_the_first_are_opened_again(trainer):
    trainer.open(RUN, named("run"))
    with pytest.raises(DeclinedError) as caught:
        trainer.open(RUN, named("refused"))
    assert caught.value.reason is Reason.ENVIRONMENT
    assert not trainer.is_alive
    trainer.reopen()
    assert trainer.ask("offer", b"") == b"offer:"


def test_a_process_that_is_killed_over_a_phase_is_said_to_have_ended(trainer):
    trainer.open(RUN, named("run"))
    with pytest.raises(DeclinedError) as caught:
        trainer.ask("die", b"")
    assert caught.value.reason is Reason.INTERRUPTED
    until(lambda: not trainer.is_alive)
    trainer.reopen()
    assert trainer.ask("offer", b"x") == b"offer:x"


def test_a_process_that_dies_as_it_opens_is_no_more_than_a_refusal(trainer):
    with pytest.raises(DeclinedError) as caught:
        trainer.open(RUN, named("crashing"))
    assert caught.value.reason is Reason.INTERRUPTED


def test_a_refusal_has_a_code_for_all_and_words_for_the_operator(trainer):
    trainer.open(RUN, named("run"))
    with pytest.raises(DeclinedError) as caught:
        trainer.ask("decline", b"")
    assert caught.value.reason is Reason.REPLAY
    assert "words for the operator" in caught.value.what


def test_it_ends_in_time_with_all_that_it_started_though_it_does_not_listen(trainer):
    trainer.open(RUN, named("stubborn"))
    group = trainer.process_id

    def hang():
        with pytest.raises(DeclinedError):
            trainer.ask("hang", b"")

    asked = threading.Thread(target=hang)
    asked.start()
    began = time.monotonic()
    trainer.halt()
    assert time.monotonic() - began < STOP_SECONDS - 5
    asked.join(PATIENCE)
    assert not asked.is_alive()
    until(lambda: not group_lives(group))


def group_lives(group):
    """Whether a process of this group runs."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text("utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def test_while_it_is_halted_nothing_is_started(trainer):
    trainer.open(RUN, named("run"))
    trainer.halt()
    with pytest.raises(DeclinedError) as caught:
        trainer.reopen()
    assert caught.value.reason is Reason.STOPPED
    trainer.resume()
    trainer.reopen()
    assert trainer.is_alive


def test_it_dies_with_its_supervisor_however_that_dies(tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from fgrpo_secure.runtime import trainer\n"
        "from fgrpo_secure.runtime.envelope import Opening\n"
        "trainer._MODULE = 'tests.runtime.child'\n"
        "own = trainer.Trainer(Path(sys.argv[1]), Path(sys.argv[1]), 'north')\n"
        "own.open(bytes(16), Opening('stubborn', b'', b''))\n"
        "print(own.process_id, flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    supervisor = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=environment,
    )
    group = int(supervisor.stdout.readline())
    assert group_lives(group)
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait(PATIENCE)
    until(lambda: not group_lives(group), STOP_SECONDS)


def test_a_supervisor_loads_no_learner():
    code = (
        "import sys, fgrpo_secure.runtime.desk, fgrpo_secure.runtime.trainer\n"
        "import fgrpo_secure.home\n"
        "sys.exit(bool({'torch', 'transformers', 'peft'} & set(sys.modules)))\n"
    )
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], env=environment, check=False
    )
    assert done.returncode == 0


def test_what_the_process_prints_lies_in_a_file_for_the_owner_alone(trainer, tmp_path):
    trainer.open(RUN, named("run"))
    assert (tmp_path / "trainer.log").stat().st_mode & 0o077 == 0


def test_nothing_is_imported_from_where_the_engine_lies(trainer, tmp_path, monkeypatch):
    """A job's files lie in the engine's folder, which is where its processes are."""
    planted = tmp_path / "kit"
    (planted / "fgrpo_secure").mkdir(parents=True)
    (planted / "fgrpo_secure" / "__init__.py").write_text("raise SystemExit(3)")
    (planted / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(planted)
    trainer.open(RUN, named("run"))
    assert trainer.ask("offer", b"") == b"offer:"
