"""The private side of `round.py`: a whole round, with one client measured.

All parties are in this process and talk through the real messages: the server, the
client that is measured, and peers that draw nothing. One peer's masked vector is lost
in every round, so that the server has a mask to take off by key shares.

Product code holds no timers. Functions are wrapped from outside, for as long as a step
lasts.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import fgrpo_secure.draws
import fgrpo_secure.learner
import privacy.contribution
from benchmarks.worker import Channel, forget_peak, held_memory, peak_memory
from fgrpo_secure.budget import open_client_ledger
from fgrpo_secure.client import Client
from fgrpo_secure.cohort import Cohort
from fgrpo_secure.config import RunConfig, load_config
from fgrpo_secure.draws import Draws
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.grpo.gradient import UnitGradients
from fgrpo_secure.learner import Learner
from fgrpo_secure.preparation import make_plan, open_server_ledger, prepare_folder
from fgrpo_secure.secrets import identity_key, private_directory
from fgrpo_secure.server import Server
from fgrpo_secure.task import load_task
from privacy.contribution import Contribution
from privacy.ledger import Ledger
from privacy.plan import SERVER
from privacy.secagg.server import CollectingMasked, CollectingReveals

_DEADLINE = 3600.0
_MEASURED, _PEER = "client", "peer"

# What is wrapped: where it hangs, its name, and the phase that it counts as. A phase
# does not count what a phase within it does.
_HOOKS: Sequence[tuple[Any, str, str]] = (
    (fgrpo_secure.learner, "charge", "charge"),
    (Contribution, "draw", "draw"),
    (fgrpo_secure.draws, "generate", "rollout"),
    (Draws, "_score", "reward"),
    (Contribution, "noised_mean", "statistic"),
    (UnitGradients, "compute", "gradient"),
    (privacy.contribution, "encode", "encode"),
    (privacy.contribution, "discrete_gaussian", "noise"),
    (Learner, "contribute", "rest"),
    (Ledger, "append", "ledger"),
    (CollectingMasked, "collect", "sum"),
    (CollectingReveals, "collect", "unmask"),
    (Server, "_decode", "decode"),
    (Server, "_publish", "optimizer"),
)


class Phases:
    """Seconds and peaks of memory, by party and phase.

    Args:
        memory: whether peaks are taken, which costs time of its own.
    """

    def __init__(self, *, memory: bool = False) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.peaks: dict[tuple[str, str], int] = defaultdict(int)
        self.party = SERVER
        self._memory = memory
        self._open: list[tuple[str, str]] = []
        self._since = 0.0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the block as this phase, and not as the one around it."""
        self._turn()
        self._open.append((self.party, name))
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """Book what passed since the last turn on the phase that is innermost."""
        if self._open:
            self.seconds[self._open[-1]] += time.perf_counter() - self._since
            if self._memory:
                known = self.peaks[self._open[-1]]
                self.peaks[self._open[-1]] = max(known, peak_memory())
                forget_peak()
        self._since = time.perf_counter()

    def hook(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, counted as a phase; of a generator, every step of it."""

        @functools.wraps(function)
        def wrapped(*args: object, **kwargs: object) -> Any:  # noqa: ANN401
            with self.of(name):
                result = function(*args, **kwargs)
            return self._steps(result, name) if isinstance(result, Iterator) else result

        return wrapped

    def _steps(self, generator: Iterator[Any], name: str) -> Iterator[Any]:
        end = object()
        while True:
            with self.of(name):
                item = next(generator, end)
            if item is end:
                return
            yield item


@contextmanager
def wrapped(table: Sequence[tuple[Any, str, Callable[..., Any]]]) -> Iterator[None]:
    """Put functions in the place of others, and those back afterwards."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in table]
    try:
        for owner, name, function in table:
            setattr(owner, name, function)
        yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


class Exchange:
    """Hands every phase to the clients of this process, and counts bytes.

    Args:
        clients: by name.
        measured: the one that is measured.
        lost: the one whose masked vector never arrives.
    """

    def __init__(
        self, clients: Mapping[str, Client], measured: str, lost: str | None = None
    ) -> None:
        self._clients, self._measured, self._lost = clients, measured, lost
        self.phases = Phases()
        self.traffic: dict[str, dict[str, int]] = {}
        self.seconds = 0.0

    def exchange(
        self,
        phase: str,
        messages: Mapping[str, bytes],
        deadline: float,  # noqa: ARG002
    ) -> dict[str, bytes]:
        """One phase, client after client."""
        answers = {}
        for name, payload in messages.items():
            own = name == self._measured
            self.phases.party = _MEASURED if own else _PEER
            began = time.perf_counter()
            with self.phases.of("mask"):
                answer = self._clients[name].handle(phase, payload)
            if own:
                self.seconds += time.perf_counter() - began
                self.traffic[phase] = {"down": len(payload), "up": len(answer)}
            if not (phase == "shares" and name == self._lost):
                answers[name] = answer
        self.phases.party = SERVER
        return answers


class Federation:
    """A server and its clients in this process, over a folder that is thrown away.

    Args:
        config: the configuration, with as many rounds as there will be steps.
        root: an empty folder.
        measured: the client that is measured.
    """

    def __init__(self, config: RunConfig, root: Path, measured: str) -> None:
        torch.set_num_threads(config.machine.threads)
        self.plan, policy = make_plan(config)
        self._folder = RunFolder.of(root, config)
        names = [client.name for client in self.plan.clients]
        # A round takes three clients at the least, so only of more can one be lost.
        lost = [name for name in names if name != measured][-1:] if names[3:] else []
        self.task = load_task(config, config.client_named(measured), policy)
        prepare_folder(root, config, self.plan)
        private = root / SERVER
        key = identity_key(private)
        roster = self._folder.roster(self.plan)
        ledger = open_server_ledger(self._folder, self.plan, private, policy, key)
        run = ledger.history.run
        clients = {}
        for name in names:
            own_key = identity_key(self._folder.private(name))
            own = open_client_ledger(
                config, self.plan, self._folder, name, own_key, run
            )
            learner = Learner(
                plan=self.plan,
                name=name,
                task=self.task,
                policy=policy,
                folder=private_directory(self._folder.of_run(name, run)),
            )
            clients[name] = Client(
                plan=self.plan,
                name=name,
                learner=learner,
                policy=policy,
                ledger=own,
                key=own_key,
                roster=roster,
                federation=run.hex(),
            )
        cohort = Cohort(
            plan=self.plan,
            ledger=ledger,
            key=key,
            roster=roster,
            deadline=_DEADLINE,
        )
        self._server = Server(
            cohorts=[cohort], policy=policy, settings=config.server, folder=private
        )
        self._server.recover()
        self._exchange = Exchange(clients, measured, *lost)
        self._round = 0

    def step(self, rows: Sequence[int], *, memory: bool = False) -> dict[str, Any]:
        """One round in which the measured client draws these units.

        Args:
            rows: numbers of the units, in the order of the client's data.
            memory: whether to take the peak of memory of each phase.

        Returns:
            Seconds of the client and of each phase, tokens and bytes, groups and those
            of them that needed no gradient.
        """
        self._round += 1
        phases, exchange = Phases(memory=memory), self._exchange
        exchange.phases, exchange.seconds = phases, 0.0
        draw, generate = (
            privacy.contribution.poisson_draw,
            fgrpo_secure.draws.generate,
        )
        differentiate = UnitGradients.compute
        tokens, count, skipped = 0, 0, 0

        def drawn(ids: Sequence[str], *args: Any) -> list[str]:  # noqa: ANN401
            # The draw takes its time and decides nothing: both sides of the benchmark
            # get the same prompts.
            draw(ids, *args)
            own = phases.party == _MEASURED
            return [ids[row] for row in rows] if own else []

        def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            nonlocal tokens
            groups = generate(*args, **kwargs)
            tokens += sum(int(group.completion_mask.sum()) for group in groups)
            return groups

        def sorted_out(self: UnitGradients, units: Sequence[Any]) -> Iterator[Any]:
            nonlocal count, skipped
            needed = [self.needs_pass(item) for unit in units for item in unit]
            count += len(needed)
            skipped += needed.count(False)
            return differentiate(self, units)

        counting = {"generate": counted, "compute": sorted_out}
        table = [(privacy.contribution, "poisson_draw", drawn)]
        for owner, name, phase in _HOOKS:
            function = counting.get(name, getattr(owner, name))
            table.append((owner, name, phases.hook(function, phase)))
        with wrapped(table), phases.of("messages"):
            outcome = self._server.run_round(exchange, self._round)
        if not outcome.published:
            raise RuntimeError(outcome.words)
        return {
            "seconds": exchange.seconds,
            "phases": _of(phases.seconds, _MEASURED),
            "server": _of(phases.seconds, SERVER),
            "peaks": _of(phases.peaks, _MEASURED),
            "server_peaks": _of(phases.peaks, SERVER),
            "traffic": exchange.traffic,
            "tokens": tokens,
            "groups": count,
            "skipped": skipped,
            "peak": peak_memory(),
        }


def _of(table: Mapping[tuple[str, str], Any], party: str) -> dict[str, Any]:
    return {phase: value for (who, phase), value in table.items() if who == party}


def open_federation(setup: Mapping[str, Any], root: Path) -> Federation:
    """The federation that `round.py` asks for."""
    config, _ = load_config(setup["config"], setup["overrides"])
    return Federation(config, root, setup["client"])


def main() -> None:
    """Serve `round.py`."""
    channel = Channel()
    setup = channel.receive()
    if setup is None:
        return
    with tempfile.TemporaryDirectory(prefix="fgrpo-round-") as folder:
        federation = open_federation(setup, Path(folder))
        forget_peak()
        channel.send(
            {
                "held": held_memory(),
                "units": len(federation.task.units),
                "dimension": federation.plan.dimension,
                "bytes_up": federation.plan.bytes_up,
                "microbatch": federation.task.rollout.microbatch_units,
            }
        )
        while (request := channel.receive()) is not None:
            channel.send(federation.step(request["rows"], memory=request["memory"]))


if __name__ == "__main__":
    main()
