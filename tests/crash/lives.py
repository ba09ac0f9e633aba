"""One life of the program: from a start to the end of all its processes."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from fgrpo_secure.runtime import local
from privacy.plan import SERVER
from tests.crash.boundaries import die

PATIENCE = 60.0
# How long a worker may go on with what it had begun when its server died.
_ORPHANS_SECONDS = 15.0

Judge = Callable[[str, int, str], str | None]
"""(name of a boundary, how often this process came to it, party) -> what happens there.

"machine" and "process" end all processes or this one, `NAMES_LOST` and `NAMES_KEPT`
take the power away; "full" has the disk refuse this and all that this process changes
afterwards; "stall" has the process stand still until it is told to go on, and "orphan"
does so after the server was killed; after "stuck", which kills it too, the process
waits for something that never comes.
"""


def go_on(name: str, count: int, party: str) -> None:
    """Let everything pass."""


def changes_files(name: str) -> bool:
    """Whether a disk can refuse what happens at this boundary."""
    return name.split()[1] in {"write", "tear", "sync", "rename", "make", "cut"}


@dataclass(frozen=True)
class Life:
    """What a life came to.

    Attributes:
        status: as `os.waitpid` gives it, made an exit status; negative for a signal.
        stderr: what it printed for people.
        seconds: how long it took.
        passed: names of boundaries in the order of being come to, all processes.
        left: processes that had to be ended because they did not end by themselves.
    """

    status: int
    stderr: str
    seconds: float
    passed: tuple[str, ...]
    left: int

    @property
    def names(self) -> list[str]:
        """The boundaries, without what happened there."""
        return [name.partition(" # ")[0] for name in self.passed]

    @property
    def scopes(self) -> set[str]:
        """What happened at the boundaries where something did."""
        return {name.partition(" # ")[2] for name in self.passed} - {""}

    @property
    def ended(self) -> list[str]:
        """The boundaries at which something was made to happen."""
        return [name.partition(" # ")[0] for name in self.passed if " # " in name]


@dataclass(frozen=True)
class Files:
    """Where the processes of a life write what the tests read.

    Attributes:
        folder: of the run.
        number: of the life, from 1.
    """

    folder: Path
    number: int
    stderr: Path = field(init=False)
    passed: Path = field(init=False)
    journal: Path = field(init=False)

    def __post_init__(self) -> None:
        for name in ("stderr", "passed", "journal"):
            path = self.folder / f"{name}-{self.number}"
            path.touch()
            object.__setattr__(self, name, path)


class Living:
    """A life that was begun.

    Attributes:
        process: the server; its id is that of the group of all processes.
        files: what they write.
    """

    def __init__(self, process: int, files: Files) -> None:
        self.process = process
        self.files = files
        self._started = time.monotonic()

    def wait_for(self, mark: str) -> None:
        """Wait until a process came to a boundary where something happened."""
        end = time.monotonic() + PATIENCE
        while f"# {mark}\n" not in self.files.passed.read_text("utf-8"):
            assert time.monotonic() < end, f"no process came to {mark}"
            time.sleep(0.005)

    def go_on(self) -> None:
        """Let whoever stands still go on."""
        os.killpg(self.process, signal.SIGCONT)

    def end_of_server(self) -> int:
        """Wait for the server alone; returns its exit status."""
        descriptor = os.pidfd_open(self.process)
        try:
            if not select.select([descriptor], [], [], PATIENCE)[0]:
                self.kill()
            _, word = os.waitpid(self.process, 0)
            return os.waitstatus_to_exitcode(word)
        finally:
            os.close(descriptor)

    def end(self) -> Life:
        """Wait until all processes have ended, and kill what does not end."""
        try:
            status = self.end_of_server()
            left = self.end_of_workers()
        finally:
            self.kill()
        return Life(
            status=status,
            stderr=self.files.stderr.read_text("utf-8"),
            seconds=time.monotonic() - self._started,
            passed=tuple(self.files.passed.read_text("utf-8").splitlines()),
            left=left,
        )

    def end_of_workers(self) -> int:
        """Wait for what a dead server left; returns how many had to be killed."""
        end = time.monotonic() + _ORPHANS_SECONDS
        left = 0
        while True:
            try:
                found, _ = os.waitpid(-self.process, os.WNOHANG)
            except ChildProcessError:
                return left
            if found:
                left += time.monotonic() > end
            elif time.monotonic() > end:
                self.kill()
            else:
                time.sleep(0.002)

    def kill(self) -> None:
        """End all processes of this life."""
        with suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)


class Watch:
    """What a process of a life tells, and what happens to it.

    Attributes:
        party: the server, or the client of a worker.
    """

    def __init__(self, judge: Judge, files: Files, witness: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND
        self._judge = judge
        self._write = os.write
        self._told = os.open(files.passed, flags)
        self._witness = os.open(witness, flags)
        self._life = files.number
        self._is_full = False
        self._counts: dict[str, int] = {}
        self.party = SERVER

    def become(self, names: tuple[str, ...]) -> None:
        """In a worker, which counts for itself."""
        self.party = names[0]
        self._counts.clear()
        for name in names:
            self.noted({"what": "worker", "client": name, "process": os.getpid()})

    def passed(self, name: str) -> Callable[[], None] | None:
        """Judge a boundary; returns what happens in place of the call."""
        named = f"{'server' if self.party == SERVER else 'client'} {name}"
        self._counts[named] = self._counts.get(named, 0) + 1
        verdict = self._judge(named, self._counts[named], self.party)
        if verdict is None and self._is_full and changes_files(named):
            return _refuse
        mark = "" if verdict is None else f" # {verdict}"
        self._write(self._told, f"{named}{mark}\n".encode())
        if verdict is None:
            return None
        if verdict == "full":
            self._is_full = True
            return _refuse
        if verdict in {"stall", "orphan"}:
            _stall(orphan=verdict == "orphan")
            return None
        if verdict == "stuck":
            os.kill(os.getppid(), signal.SIGKILL)
            os.read(os.pipe()[0], 1)
        return lambda: die(machine=verdict != "process")

    def noted(self, values: dict[str, object]) -> None:
        """Tell the witness, which lies outside of the run."""
        line = json.dumps({**values, "life": self._life}) + "\n"
        self._write(self._witness, line.encode())


def fork_workers(watch: Watch, folder: Path) -> None:
    """Have workers be forks of this process, with no file or pipe but their own.

    Args:
        watch: what the workers tell.
        folder: of the run, in which the server has files open.
    """
    real = get_context("fork")
    ends: list = []

    class Context:
        @staticmethod
        def Pipe():  # noqa: N802
            pair = real.Pipe()
            ends.extend(pair)
            return pair

        @staticmethod
        def Process(target, args, daemon):  # noqa: N802
            return real.Process(target=work, args=(target, args), daemon=daemon)

    def work(target, args):
        pipe, *orders = args
        for end in ends:
            if end is not pipe and not end.closed:
                end.close()
        _close_inherited(folder)
        watch.become(tuple(name for order in orders for name in order.names))
        target(*args)

    local.get_context = lambda _: Context


def _close_inherited(root: Path) -> None:
    """Close what the server has open in the run, locks among it, as `exec` would."""
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            path = Path(os.readlink(f"/proc/self/fd/{entry}"))
            if path == root or root in path.parents:
                os.close(int(entry))


def _stall(*, orphan: bool) -> None:
    if orphan:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGSTOP)


def _refuse() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
