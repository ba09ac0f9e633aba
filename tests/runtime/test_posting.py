"""A run's progress in a file, for other processes of the server."""

import os
import stat
import time

from fgrpo_secure.runtime.engine_job import Progress
from fgrpo_secure.runtime.posting import posted, read_posted

SHOWN = Progress("running", 3, ((1, True, 3),), "1.5", "8", ("north",), "round 1")


def wait_for(holds):
    end = time.monotonic() + 20
    while time.monotonic() < end and not holds():
        os.sched_yield()
    return holds()


def test_progress_is_there_while_the_run_is_and_gone_afterwards(tmp_path):
    with posted(SHOWN.to_text, tmp_path):
        assert wait_for(lambda: read_posted(tmp_path) == SHOWN)
        (path,) = tmp_path.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_posted(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_progress_of_a_process_that_was_killed_is_not_believed(tmp_path):
    path = tmp_path / "progress.json"
    path.write_text(SHOWN.to_text(), "utf-8")
    assert read_posted(tmp_path) == SHOWN
    before = time.time() - 60
    os.utime(path, (before, before))
    assert read_posted(tmp_path) is None


def test_progress_that_is_none_is_passed_over(tmp_path):
    path = tmp_path / "progress.json"
    for text in (b"\xff", b"{}", b"[1]", b""):
        path.write_bytes(text)
        assert read_posted(tmp_path) is None


def test_a_run_goes_on_where_its_progress_cannot_be_written(tmp_path):
    asked = []

    def text():
        asked.append(1)
        return SHOWN.to_text()

    with posted(text, tmp_path / "nowhere"):
        assert wait_for(lambda: asked)
    assert not (tmp_path / "nowhere").exists()
