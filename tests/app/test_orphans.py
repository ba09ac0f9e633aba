"""A worker whose server is killed ends by itself, and cuts no line in two."""

import os
import select
import signal
import threading
from multiprocessing import get_context

import pytest

from fgrpo_secure.runtime import orphans
from fgrpo_secure.runtime.orphans import end_with_parent
from privacy.errors import LedgerError
from privacy.ledger import Ledger, Reason, Refused, Role
from tests.app.sites import NAME, plan_of
from tests.app.test_closing import key_of

PATIENCE = 20.0


def idle(path, key, ready):
    """Hold the ledger and compute for ever, as a worker does that sees no message."""
    with Ledger.open(path, key, party=NAME, role=Role.CLIENT):
        ready()
        while True:
            sum(range(1000))


def stuck(path, key, ready):
    """Wait for something that never comes, as a reward function may."""
    with Ledger.open(path, key, party=NAME, role=Role.CLIENT):
        ready()
        os.read(os.pipe()[0], 1)


def writing(path, key, ready):
    """Write line after line."""
    with Ledger.open(path, key, party=NAME, role=Role.CLIENT) as ledger:
        for count in range(10**6):
            ledger.append(Refused(0, 0, Reason.STOPPED, None))
            if count == 2:
                ready()
            sum(range(1000))


def within_a_write(path, key, ready):
    """Be in the middle of a line when the server dies and its worker is to end."""
    asked, lock = threading.Event(), orphans.WRITING

    class Asked:
        def __enter__(self):
            asked.set()
            lock.acquire()

        def __exit__(self, *error):
            lock.release()

    with Ledger.open(path, key, party=NAME, role=Role.CLIENT) as ledger:
        write = os.write

        def slow(descriptor, data):
            os.write = write
            written = write(descriptor, data[:100])
            ready()
            asked.wait(PATIENCE)
            return written + write(descriptor, data[100:])

        orphans.WRITING, os.write = Asked(), slow
        ledger.append(Refused(0, 0, Reason.STOPPED, None))


@pytest.fixture
def orphaned(sites):
    """Start a server with a worker, kill the server, and wait for the worker's end."""
    sites.open(plan_of()).close()
    path, key = sites.ledger_path, key_of(sites)

    def make(work, *, watched=True):
        alive, held = os.pipe()

        def ready():
            os.write(held, os.getpid().to_bytes(4, "big"))

        def worker():
            if watched:
                end_with_parent()
            work(path, key, ready)

        server = os.fork()
        if server == 0:
            try:
                context = get_context("fork")
                started = context.Process(target=worker)
                started.start()
                os.close(held)
                started.join()
            finally:
                os._exit(0)
        os.close(held)
        assert select.select([alive], [], [], PATIENCE)[0], "it never began"
        process = int.from_bytes(os.read(alive, 4), "big")
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        # The end of the pipe: nobody is left that could write.
        ended = bool(select.select([alive], [], [], PATIENCE if watched else 1.0)[0])
        if not ended:
            os.kill(process, signal.SIGKILL)
        assert os.read(alive, 1) == b""
        os.close(alive)
        return ended

    return make, path, key


@pytest.mark.parametrize("work", [idle, stuck, writing], ids=lambda work: work.__name__)
def test_an_orphan_lets_go_of_its_ledger(orphaned, work):
    make, path, key = orphaned
    assert make(work)
    with Ledger.open(path, key, party=NAME, role=Role.CLIENT) as ledger:
        # Nothing was cut away.
        assert ledger.entries[-1].record.torn_bytes == 0


def test_without_being_told_an_orphan_would_keep_it(orphaned):
    make, path, key = orphaned
    assert not make(stuck, watched=False)
    Ledger.open(path, key, party=NAME, role=Role.CLIENT).close()


def test_a_line_that_is_being_written_is_finished_first(orphaned):
    make, path, key = orphaned
    before = path.read_bytes().count(b"\n")
    assert make(within_a_write)
    data = path.read_bytes()
    assert data.endswith(b"\n")
    # The opening of the ledger, and the line that was under way.
    assert data.count(b"\n") == before + 2
    with Ledger.open(path, key, party=NAME, role=Role.CLIENT) as ledger:
        assert ledger.entries[-1].record.torn_bytes == 0


def test_who_holds_a_ledger_is_named(orphaned):
    _, path, key = orphaned
    with (
        Ledger.open(path, key, party=NAME, role=Role.CLIENT),
        pytest.raises(LedgerError, match=rf"another process \({os.getpid()}\)"),
    ):
        Ledger.open(path, key, party=NAME, role=Role.CLIENT)
