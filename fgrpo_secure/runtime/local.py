"""All parties on one machine: clients in worker processes, bytes over pipes.

Each worker holds some of the clients and one copy of the model. A worker that dies
takes its clients out of the round, as a machine that is switched off would.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from fgrpo_secure.config import RunConfig, load_config
from fgrpo_secure.errors import StateError
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.runtime.orphans import end_with_parent
from fgrpo_secure.runtime.worker import Failure, Kind, asked, work
from fgrpo_secure.site import Site, SiteProgress, open_site
from privacy.plan import Plan
from privacy.wire import Reader, parse_canonical_json

_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """What a worker is started with, for each cohort that it holds clients of.

    Attributes:
        root: the cohort's folder, where config.toml and plan.json lie.
        names: the clients that it holds.
        run: the cohort's handle.
        accepted: what `accepted` gives of the configuration and the plan that were
            admitted; files that were exchanged since are not opened.
    """

    root: str
    names: tuple[str, ...]
    run: bytes
    accepted: str


def accepted(config: RunConfig, plan: Plan) -> str:
    """Hex SHA-256 of a configuration, policies' paths among it, and a plan."""
    text = f"{plan.digest}\n{config.to_toml()}"
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    names: tuple[str, ...]
    alive: bool = True
    busy: bool = False


class LocalExchange:
    """Runs every client in a worker process of this machine.

    Args:
        cohorts: each with all of its clients.
        workers: how many processes to spread the clients over.
        on_progress: called with a label, what is done and what there is to do.
        on_silence: called with a client and why it did not answer; the reason holds
            nothing private.
    """

    def __init__(
        self,
        cohorts: Sequence[WorkerOrder],
        *,
        workers: int,
        on_progress: Callable[[str, int, int], None],
        on_silence: Callable[[str, str], None],
    ) -> None:
        self._on_progress = on_progress
        self._on_silence = on_silence
        self._sequence = 0
        context = get_context("spawn")
        self._workers: list[_Worker] = []
        names = [name for cohort in cohorts for name in cohort.names]
        count = min(workers, len(names))
        for index in range(count):
            own = tuple(names[index::count])
            ours, theirs = context.Pipe()
            orders = _parts(cohorts, own)
            process = context.Process(target=_work, args=(theirs, *orders), daemon=True)
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours, own))

    def wait_ready(self) -> None:
        """Wait until every client is open.

        Raises:
            StateError: a client could not be opened; the text says why.
        """
        for worker in self._workers:
            reader = self._receive(worker)
            if reader is None:
                raise StateError(
                    "A worker process ended while it started.",
                    "Look at the messages above; is there enough memory?",
                )
            if reader.integer() == Kind.FAILED:
                raise Failure.read(reader).error

    @property
    def present(self) -> frozenset[str]:
        """The clients whose processes are alive, as far as is known."""
        alive = (worker for worker in self._workers if worker.process.is_alive())
        return frozenset(name for worker in alive for name in worker.names)

    def exchange(
        self, phase: str, messages: Mapping[str, bytes], deadline: float
    ) -> dict[str, bytes]:
        """Carry one phase; see `Exchange`."""
        self._sequence += 1
        awaited = set(messages)
        # A worker is sent one message at a time, and none while it works on an earlier
        # phase: two ends that wait for each other to read would pass every deadline.
        queues = {
            worker.pipe: [
                name for name in sorted(worker.names, reverse=True) if name in messages
            ]
            for worker in self._workers
        }
        answers: dict[str, bytes] = {}
        end = time.monotonic() + deadline
        for worker in self._workers:
            self._send_next(worker, queues[worker.pipe], phase, messages)
        while awaited:
            awaited -= self._lost(awaited)
            pipes = [worker.pipe for worker in self._workers if worker.alive]
            left = end - time.monotonic()
            if not awaited or not pipes or left <= 0:
                break
            for pipe in connection.wait(pipes, left):
                worker = next(w for w in self._workers if w.pipe is pipe)
                if self._take(worker, awaited, answers):
                    self._send_next(worker, queues[worker.pipe], phase, messages)
        for name in sorted(awaited):
            self._on_silence(name, f"no answer to {phase!r} within {deadline:.0f} s")
        return answers

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(_STOP_SECONDS)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join(_STOP_SECONDS)

    def __enter__(self) -> Self:
        """The exchange; the block ends the workers."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the workers; at once where the block failed."""
        if error is not None:
            for worker in self._workers:
                worker.process.terminate()
        self.close()

    def _send_next(
        self,
        worker: _Worker,
        queue: list[str],
        phase: str,
        messages: Mapping[str, bytes],
    ) -> None:
        """Send a worker the message of its next client, where one is left."""
        if not queue or worker.busy:
            return
        name = queue.pop()
        worker.busy = True
        message = asked(self._sequence, phase, name, messages[name])
        try:
            worker.pipe.send_bytes(message)
        except (BrokenPipeError, ConnectionResetError):
            worker.alive = False

    def _receive(self, worker: _Worker) -> Reader | None:
        try:
            return Reader(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            worker.alive = False
            return None

    def _lost(self, awaited: Iterable[str]) -> set[str]:
        dead = {n for w in self._workers if not w.alive for n in w.names}
        lost = dead & set(awaited)
        for name in sorted(lost):
            self._on_silence(name, "its process has ended")
        return lost

    def _take(
        self, worker: _Worker, awaited: set[str], answers: dict[str, bytes]
    ) -> bool:
        """Take what a worker says; returns whether it can be sent another message."""
        reader = self._receive(worker)
        if reader is None:
            return False
        kind = reader.integer()
        if kind == Kind.PROGRESS:
            self._on_progress(reader.text(), reader.integer(), reader.integer())
            return False
        worker.busy = False
        sequence, name = reader.integer(), reader.text()
        # What comes after its deadline belongs to a phase that is over.
        if sequence != self._sequence or name not in awaited & set(worker.names):
            return True
        awaited.discard(name)
        if kind == Kind.ANSWER:
            answers[name] = reader.field()
        else:
            # Here one operator has the server and all sites, and may read the words.
            _code, words = reader.text(), reader.text()
            self._on_silence(name, words)
        return True


def _parts(cohorts: Sequence[WorkerOrder], names: Iterable[str]) -> list[WorkerOrder]:
    """What a worker that holds these clients is told of each of their cohorts."""
    held = set(names)
    parts = [
        replace(cohort, names=tuple(name for name in cohort.names if name in held))
        for cohort in cohorts
    ]
    return [part for part in parts if part.names]


def _open_sites(
    config: RunConfig, orders: Iterable[WorkerOrder], progress: SiteProgress
) -> dict[str, Site]:
    """A site for each cohort, by the names of its clients; one model serves all."""
    sites: dict[str, Site] = {}
    policy = None
    for order in orders:
        root, names = Path(order.root), order.names
        plan = Plan.from_json(parse_canonical_json((root / "plan.json").read_bytes()))
        if accepted(config, plan) != order.accepted:
            raise StateError(
                f"{root} holds another configuration or plan than were admitted.",
                "See who changed it, and start again.",
            )
        folder = RunFolder.of(root, config)
        site = open_site(config, plan, folder, names, order.run, progress, policy)
        policy = site.policy
        sites |= dict.fromkeys(names, site)
    return sites


def _work(pipe: Connection, *orders: WorkerOrder) -> None:
    """A worker's process."""
    end_with_parent()
    root = Path(orders[0].root)
    config, _ = load_config(str(root / "config.toml"))
    work(
        pipe,
        lambda progress: _open_sites(config, orders, progress),
        lambda: RunFolder.of(root, config).store / "crash.log",
    )
