"""A small federation whose processes can be started, killed and started again.

The heavy part, libraries and model, is loaded once; each life of the run is a fork of
that, which calls the command `fgrpo run` and starts its own workers as forks. What
differs from a user's start is how a process comes to have its libraries, and nothing
of what it writes, sends or draws.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import fgrpo_secure.evaluate
import fgrpo_secure.preparation
import fgrpo_secure.site
from fgrpo_secure.cli import main
from fgrpo_secure.config import load_config
from fgrpo_secure.folders import cohort_roots
from fgrpo_secure.runtime import local
from fgrpo_secure.task import load_run_policy
from privacy.contribution import registered_event
from privacy.ledger import spend_of
from tests.app.federation import edit_rows
from tests.crash.boundaries import Boundaries, number_from
from tests.crash.lives import Files, Judge, Life, Living, Watch, fork_workers, go_on
from tests.crash.power import NAMES_KEPT, NAMES_LOST, Journal, lose
from tests.end_to_end.program import write_config

CLIENTS = ("count", "shift", "sort")
# Of the workers, the one that is killed by name.
CHOSEN = "shift"
ROUNDS = 10
_WORKERS = 2
_FIRST_SEQUENCE = 1000
_PR_SET_CHILD_SUBREAPER = 36


class World:
    """One configuration, in one folder, and everything that was seen of its runs.

    Args:
        folder: new; configuration, data, runs and the witness go there.
        clients: their names.
        **changes: sections of the configuration, as `write_config` takes them.

    Attributes:
        plans: of each cohort; mostly there is one.
    """

    def __init__(
        self, folder: Path, clients: tuple[str, ...] = CLIENTS, **changes: dict
    ) -> None:
        self.folder = folder
        self.clients = clients
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
            given, names=clients, public=(clients[0],), **settings
        )
        for name in clients:
            # No two clients of one task have a row in common: they share a store.
            for part, kept in (("", 6), ("-heldout", 2)):
                first = kept if name.endswith("-2") else 0
                path = given / "data" / f"{name}{part}.jsonl"
                edit_rows(path, lambda rows, a=first, n=kept: rows[a : a + n])
        torch.set_num_threads(1)
        config, _ = load_config(str(self.config))
        policy = load_run_policy(config)
        # How precise the public scores are takes nothing from the order of things.
        fgrpo_secure.evaluate.MIN_COMPLETIONS = 1
        fgrpo_secure.preparation.load_run_policy = lambda _: policy
        fgrpo_secure.site.load_run_policy = lambda _: policy
        self.plans, _ = fgrpo_secure.preparation.make_plans(config)
        plan = self.plans[0]
        for charged in range(1, plan.rounds + 1):
            # Every life would compute these again.
            cost = ((registered_event(plan, CHOSEN), charged),)
            spend_of(cost, config.privacy.delta, plan.registered_charges)
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
        lives: how often it was started.
        parts: the folder of each cohort; mostly `output` alone.
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
        self.parts = tuple(cohort_roots(self.output, len(world.plans)))

    def start(
        self,
        judge: Judge = go_on,
        planted: Callable[[], None] | None = None,
        command: Sequence[object] = (),
    ) -> Living:
        """Start the program.

        Args:
            judge: what happens at each boundary.
            planted: called in the program's process before it begins, to make a fault.
            command: what it is called with; `fgrpo run` of this run if nothing is said.
        """
        if not command:
            state = f'machine.state="{self.store}"'
            command = ("run", self.world.config, "--output", self.output)
            command = (*command, "--set", state)
        self.lives += 1
        files = Files(self.folder, self.lives)
        process = os.fork()
        if process == 0:
            self._be_program(judge, files, planted, [str(word) for word in command])
        return Living(process, files)

    def live(
        self,
        judge: Judge = go_on,
        *,
        planted: Callable[[], None] | None = None,
        then: Callable[[int], None] | None = None,
        command: Sequence[object] = (),
    ) -> Life:
        """Start the program and wait until all its processes have ended.

        Args:
            judge: what happens at each boundary.
            planted: as for `start`.
            then: called with the process once it was started; it may end it.
            command: as for `start`.
        """
        living = self.start(judge, planted, command)
        try:
            if then is not None:
                then(living.process)
        finally:
            life = living.end()
        for scope in life.scopes & {NAMES_LOST, NAMES_KEPT}:
            self.lose(names=scope == NAMES_LOST)
        return life

    def lose(self, *, names: bool) -> None:
        """Take from the disk what the last life did not have it promise."""
        lose(Files(self.folder, self.lives).journal, names=names)

    def seen(self) -> list[dict]:
        """What the witness noted, of all lives."""
        whole, _, _ = self.witness.read_text("ascii").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def workers(self) -> dict[str, int]:
        """The process that holds each client, as far as this life has come."""
        started = [event for event in self.seen() if event["what"] == "worker"]
        return {
            event["client"]: event["process"]
            for event in started
            if event["life"] == self.lives
        }

    def _be_program(
        self,
        judge: Judge,
        files: Files,
        planted: Callable[[], None] | None,
        command: list[str],
    ) -> None:
        """In the fork: be the program, and never return."""
        status = 99
        try:
            os.setsid()
            flags = os.O_WRONLY | os.O_APPEND
            for descriptor in (1, 2):
                os.dup2(os.open(files.stderr, flags), descriptor)
            watch = Watch(judge, files, self.witness)
            journal = Journal(partial(os.write, os.open(files.journal, flags)))
            folders = {"run": self.output, "store": self.store}
            clients = self.world.clients
            Boundaries(folders, clients, watch.passed, watch.noted, journal).install()
            number_from(local.LocalExchange, _FIRST_SEQUENCE)
            fork_workers(watch, self.output)
            if planted is not None:
                planted()
            status = main(command)
        except BaseException:
            # It would otherwise go on as the process that it was forked from.
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
