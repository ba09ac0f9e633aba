"""A small federation whose processes can be started, killed and started again.

The heavy part, libraries and model, is loaded once; each life of the run is a fork of
that, which calls the command `fgrpo run` and starts its own workers as forks. What
differs from a user's start is how a process comes to have its libraries, and nothing
of what it writes, sends or draws.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

import fgrpo_secure.evaluate
import fgrpo_secure.job
import fgrpo_secure.site
from fgrpo_secure.cli import main
from fgrpo_secure.config import load_config
from fgrpo_secure.runtime import local
from fgrpo_secure.task import load_run_policy
from privacy.contribution import registered_event
from privacy.ledger import spend_of
from privacy.plan import SERVER
from tests.app.federation import edit_rows
from tests.crash.boundaries import Boundaries, die, number_from
from tests.crash.power import NAMES_KEPT, NAMES_LOST, Journal, lose
from tests.end_to_end.program import write_config

CLIENTS = ("count", "shift", "sort")
# Of the workers, the one that is killed by name.
CHOSEN = "shift"
ROUNDS = 10
_WORKERS = 2
PATIENCE = 60.0
_FIRST_SEQUENCE = 1000
_PR_SET_CHILD_SUBREAPER = 36
# How long a worker may go on with what it had begun when its server died.
_ORPHANS_SECONDS = 15.0

Judge = Callable[[str, int, str], str | None]
"""(name of a boundary, how often this process came to it, party) -> what happens there.

"machine" and "process" end all processes or this one, `NAMES_LOST` and `NAMES_KEPT`
take the power away; "full" has the disk refuse this and all that this process changes
afterwards.
"""


def go_on(name: str, count: int, party: str) -> None:
    """Let everything pass."""


@dataclass(frozen=True)
class Life:
    """From one start of the program to the end of all its processes.

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


class World:
    """One configuration, in one folder, and everything that was seen of its runs.

    Args:
        folder: new; configuration, data, runs and the witness go there.
        **changes: sections of the configuration, as `write_config` takes them.
    """

    def __init__(self, folder: Path, **changes: dict) -> None:
        self.folder = folder
        settings = {
            "privacy": {"rounds": ROUNDS, "sampling_rate": 0.5, "epsilon": 20},
            "federation": {"min_survivors": len(CLIENTS), "colluders": 0},
            "grpo": {"group_size": 2, "max_tokens": 2, "max_prompt_tokens": 16},
            "machine": {"microbatch": 1, "workers": _WORKERS, "threads": 1},
            "model": {"layers": [1]},
        }
        settings["machine"]["deadline_seconds"] = 30
        for section, values in changes.items():
            settings[section] = settings.get(section, {}) | values
        given = folder / "given"
        self.config = write_config(
            given, names=CLIENTS, public=(CLIENTS[0],), **settings
        )
        for name in CLIENTS:
            for part, kept in (("", 6), ("-heldout", 2)):
                path = given / "data" / f"{name}{part}.jsonl"
                edit_rows(path, lambda rows, kept=kept: rows[:kept])
        torch.set_num_threads(1)
        config, _ = load_config(str(self.config))
        self._policy = load_run_policy(config)
        # How precise the public scores are takes nothing from the order of things.
        fgrpo_secure.evaluate.MIN_COMPLETIONS = 1
        fgrpo_secure.job.load_run_policy = lambda _: self._policy
        fgrpo_secure.site.load_run_policy = lambda _: self._policy
        self.plan, _ = fgrpo_secure.job.make_plan(config)
        for charged in range(1, self.plan.rounds + 1):
            # Every life would compute these again.
            event = registered_event(self.plan, CHOSEN)
            cost = ((event, charged),)
            spend_of(cost, config.privacy.delta, self.plan.registered_charges)
        # Orphans become this process's children, so that it sees when they end.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self, name: str) -> Run:
        """A run that was not begun yet; its store is its own."""
        return Run(self, self.folder / name)


class Run:
    """One run's folder, store and witness.

    Attributes:
        output: what `fgrpo run` writes.
        store: of its clients, shared as far as the program knows.
    """

    def __init__(self, world: World, folder: Path) -> None:
        folder.mkdir()
        self.world = world
        self.folder = folder
        self.output = folder / "out"
        self.store = folder / "state"
        self.witness = folder / "witness.jsonl"
        self.witness.touch()
        self.lives = 0

    def live(
        self, judge: Judge = go_on, *, then: Callable[[int], None] | None = None
    ) -> Life:
        """Start the program and wait until all its processes have ended.

        Args:
            judge: what happens at each boundary.
            then: called with the process once it was started; it may end it.
        """
        self.lives += 1
        self._passed.touch()
        self._journal.touch()
        started = time.monotonic()
        process = os.fork()
        if process == 0:
            self._be_server(judge)
        try:
            if then is not None:
                then(process)
            status = _end_of(process)
            left = _end_of_group(process)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        life = Life(
            status=status,
            stderr=self._stderr.read_text("utf-8"),
            seconds=time.monotonic() - started,
            passed=tuple(self._passed.read_text("utf-8").splitlines()),
            left=left,
        )
        for scope in life.scopes & {NAMES_LOST, NAMES_KEPT}:
            self.lose(names=scope == NAMES_LOST)
        return life

    def lose(self, *, names: bool) -> None:
        """Take from the disk what the last life did not have it promise."""
        lose(self._journal, names=names)

    def seen(self) -> list[dict]:
        """What the witness noted, of all lives."""
        lines = self.witness.read_text("ascii").splitlines()
        return [json.loads(line) for line in lines]

    def workers(self) -> dict[str, int]:
        """The process that holds each client, as far as this life has come."""
        started = [event for event in self.seen() if event["what"] == "worker"]
        return {
            event["client"]: event["process"]
            for event in started
            if event["life"] == self.lives
        }

    @property
    def _stderr(self) -> Path:
        return self.folder / f"stderr-{self.lives}"

    @property
    def _journal(self) -> Path:
        return self.folder / f"journal-{self.lives}"

    @property
    def _passed(self) -> Path:
        return self.folder / f"passed-{self.lives}"

    def _be_server(self, judge: Judge) -> None:
        """In the fork: be the program, and never return."""
        status = 99
        try:
            os.setsid()
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            for descriptor in (1, 2):
                os.dup2(os.open(self._stderr, flags, 0o600), descriptor)
            watch = _Watch(judge, self._passed, self.witness, self.lives)
            flags = os.O_WRONLY | os.O_APPEND
            journal = Journal(partial(os.write, os.open(self._journal, flags)))
            folders = {"run": self.output, "store": self.store}
            Boundaries(folders, CLIENTS, watch.passed, watch.noted, journal).install()
            number_from(local.LocalExchange, _FIRST_SEQUENCE)
            _fork_workers(watch)
            arguments = ["run", self.world.config, "--output", self.output]
            state = f'machine.state="{self.store}"'
            status = main([*map(str, arguments), "--set", state])
        except BaseException:
            # It would otherwise go on as the process that it was forked from.
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


def changes_files(name: str) -> bool:
    """Whether a disk can refuse what happens at this boundary."""
    return name.split()[1] in {"write", "tear", "sync", "rename", "make", "cut"}


class _Watch:
    """What a process of a life tells, and what happens to it.

    Attributes:
        party: the server, or the client of a worker.
    """

    def __init__(self, judge: Judge, told: Path, witness: Path, life: int) -> None:
        flags = os.O_WRONLY | os.O_APPEND
        self._judge = judge
        self._write = os.write
        self._told = os.open(told, flags)
        self._witness = os.open(witness, flags)
        self._life = life
        self._is_full = False
        self._counts: dict[str, int] = {}
        self.party = SERVER

    def become(self, party: str) -> None:
        """In a worker, which counts for itself."""
        self.party = party
        self._counts.clear()

    def passed(self, name: str) -> Callable[[], None] | None:
        named = f"{'server' if self.party == SERVER else 'client'} {name}"
        self._counts[named] = self._counts.get(named, 0) + 1
        verdict = self._judge(named, self._counts[named], self.party)
        if verdict is None and self._is_full and changes_files(named):
            return _full
        mark = "" if verdict is None else f" # {verdict}"
        self._write(self._told, f"{named}{mark}\n".encode())
        if verdict is None:
            return None
        if verdict == "full":
            self._is_full = True
            return _full
        return lambda: die(machine=verdict != "process")

    def noted(self, values: dict[str, object]) -> None:
        self._write(
            self._witness, (json.dumps({**values, "life": self._life}) + "\n").encode()
        )


def _fork_workers(watch: _Watch) -> None:
    """Have workers be forks of this process, with no end of a pipe but their own."""
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
        pipe, order = args
        for end in ends:
            if end is not pipe and not end.closed:
                end.close()
        watch.become(order.names[0])
        for name in order.names:
            watch.noted({"what": "worker", "client": name, "process": os.getpid()})
        target(*args)

    local.get_context = lambda _: Context


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _end_of(process: int) -> int:
    """The exit status of a process, which is killed where it does not end."""
    descriptor = os.pidfd_open(process)
    try:
        if not select.select([descriptor], [], [], PATIENCE)[0]:
            os.killpg(process, signal.SIGKILL)
        _, word = os.waitpid(process, 0)
        return os.waitstatus_to_exitcode(word)
    finally:
        os.close(descriptor)


def _end_of_group(group: int) -> int:
    """Wait for the processes that a dead one left; how many did not end."""
    end = time.monotonic() + _ORPHANS_SECONDS
    left = 0
    while True:
        try:
            found, _ = os.waitpid(-group, os.WNOHANG)
        except ChildProcessError:
            return left
        if found:
            left += time.monotonic() > end
        elif time.monotonic() > end:
            os.killpg(group, signal.SIGKILL)
        else:
            time.sleep(0.002)
