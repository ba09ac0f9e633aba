"""Where the files of a run lie, and those that outlive it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fgrpo_secure.config import RunConfig
from fgrpo_secure.errors import StateError
from privacy.crypto import VerifyKey
from privacy.ledger import COHORT, read_key_file, write_key_file
from privacy.ledger.durable import holder_of
from privacy.plan import SERVER, Plan

# Where private state lies in a run's folder, if no store is configured.
_WITHIN = "clients"


def cohort_roots(root: Path, count: int) -> list[Path]:
    """The folder of each cohort: the run's own where there is one cohort only."""
    if count == 1:
        return [root]
    return [root / f"{COHORT}{place:04d}" for place in range(1, count + 1)]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where the files of a run lie, or those of one of its cohorts.

    Attributes:
        root: the run's folder.
        store: where clients keep private state; inside the run unless configured.
        data_sets: what each client's data set is called in a store that runs share;
            after the client where nothing is said.
    """

    root: Path
    store: Path
    data_sets: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(root: Path, config: RunConfig) -> RunFolder:
        """The folder of a run under a configuration."""
        state = config.machine.state
        return RunFolder(
            root,
            Path(state) if state else root / _WITHIN,
            {client.name: client.data_set or client.name for client in config.client},
        )

    @property
    def is_shared(self) -> bool:
        """Whether the store outlives the run, and with it what was spent."""
        return self.store != self.root / _WITHIN

    def private(self, name: str) -> Path:
        """A client's private folder."""
        return self.store / name

    def policy(self, name: str) -> Path:
        """Where a policy lies that binds a client whatever a configuration says."""
        return self.private(name) / "policy.toml"

    def of_run(self, name: str, run: bytes) -> Path:
        """What a client keeps of one run, within its private folder."""
        return self.private(name) / f"run-{run.hex()}"

    def ledger(self, name: str) -> Path:
        """The ledger of a party within the run's folder."""
        return self.root / "ledger" / f"{name}.jsonl"

    def data_set(self, name: str) -> str:
        """What a client's data set is called."""
        return self.data_sets.get(name, name)

    def own_ledger(self, name: str) -> Path:
        """Where a client writes its ledger: with its state where that is shared."""
        if not self.is_shared:
            return self.ledger(name)
        return self.private(name) / "ledger" / f"{self.data_set(name)}.jsonl"

    def key(self, name: str) -> Path:
        """A party's public key."""
        return self.root / "keys" / f"{name}.pub"

    def pin(self, plan: Plan, keys: Mapping[str, VerifyKey], fix: str) -> None:
        """Write the keys of all parties, or hold those that are there to them.

        Args:
            plan: names the clients.
            keys: of all parties, "server" among them.
            fix: what to do where a key is another.

        Raises:
            StateError: the folder pins another key of a party.
        """
        for name in (*(client.name for client in plan.clients), SERVER):
            path = self.key(name)
            if not path.exists():
                write_key_file(path, keys[name])
            elif read_key_file(path) != keys[name]:
                what = (
                    f"The identity key of {name} is not the one that {self.root} pins."
                )
                raise StateError(what, fix)

    def roster(self, plan: Plan) -> dict[str, VerifyKey]:
        """The pinned keys of all parties."""
        names = [client.name for client in plan.clients]
        return {name: read_key_file(self.key(name)) for name in [*names, SERVER]}


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Keep every other process that asks for it out of a run's folder.

    The lock goes with the process, however it ends, and leaves nothing behind.

    Raises:
        StateError: another process has it; nothing in the folder was touched.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                f"{root} is in use by another process{holder_of(descriptor)}, which "
                "runs in it.",
                "Wait until it ends, or choose another --output.",
            ) from None
        yield
    finally:
        os.close(descriptor)
