"""What one process holds for its parties: opened clients that answer phases.

A runtime hands it a phase's bytes and gets bytes back. `open_site` is where a client's
folder, key, ledger, model and data come together.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import torch

from fgrpo_secure import __version__
from fgrpo_secure.client import Client
from fgrpo_secure.config import RunConfig
from fgrpo_secure.errors import FgrpoError, StateError
from fgrpo_secure.evaluate import evaluate
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.learner import Learner
from fgrpo_secure.registration import recipe_digest
from fgrpo_secure.secrets import (
    identity_key,
    private_directory,
    write_atomically,
)
from fgrpo_secure.task import load_run_policy, load_task
from privacy.contribution import registered_event
from privacy.crypto import SigningKey, VerifyKey
from privacy.errors import BudgetExceededError, PlanMismatchError, PrivacyError
from privacy.ledger import (
    HANDLE_BYTES,
    ClientOpened,
    Ledger,
    Phase,
    Role,
    charged,
    claimed_epsilon,
    read_key_file,
    spend_of,
)
from privacy.plan import SERVER, Plan
from privacy.randomness import system_entropy

SOFTWARE = f"fgrpo-secure {__version__}"

# Called with a label, what is done and what there is to do.
SiteProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where the files of a run lie.

    Attributes:
        root: the run's folder.
        store: where clients keep private state; inside the run unless configured.
    """

    root: Path
    store: Path

    @staticmethod
    def of(root: Path, config: RunConfig) -> RunFolder:
        """The folder of a run under a configuration."""
        state = config.machine.state
        return RunFolder(root, Path(state) if state else root / "clients")

    def private(self, name: str) -> Path:
        """A client's private folder."""
        return self.store / name

    def of_run(self, name: str, run: bytes) -> Path:
        """What a client keeps of one run, within its private folder."""
        return self.private(name) / f"run-{run.hex()}"

    def ledger(self, name: str) -> Path:
        """The ledger of a party within the run's folder."""
        return self.root / "ledger" / f"{name}.jsonl"

    def own_ledger(self, name: str) -> Path:
        """Where a client writes its ledger: with its state where that is shared."""
        if self.store == self.root / "clients":
            return self.ledger(name)
        return self.private(name) / "ledger.jsonl"

    def key(self, name: str) -> Path:
        """A party's public key."""
        return self.root / "keys" / f"{name}.pub"

    def roster(self, plan: Plan) -> dict[str, VerifyKey]:
        """The pinned keys of all parties."""
        names = [client.name for client in plan.clients]
        return {name: read_key_file(self.key(name)) for name in [*names, SERVER]}


class Site:
    """The clients of one process, and the model that they share.

    Args:
        config: the run's configuration.
        policy: the model; each round puts the offered adapter on it.
        clients: by name.
        folder: where their private folders are.
        progress: for the operator's eyes.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        clients: Mapping[str, Client],
        folder: RunFolder,
        progress: SiteProgress,
    ) -> None:
        self._folder = folder
        self._config = config
        self._policy = policy
        self._clients = clients
        self._progress = progress

    def handle(self, phase: str, name: str, payload: bytes) -> bytes:
        """Answer one phase in one client's name.

        `evaluate` and `close` are not phases of a round: they score an adapter on the
        client's public evaluation set, and close its ledger.

        Raises:
            PrivacyError: the client declines, or a message was wrong.
            FgrpoError: what a user can mend; also a bug, whose text may quote data
                and therefore stays in the client's private folder.
        """
        try:
            if phase == "evaluate":
                return self._evaluate(name, payload)
            if phase == "close":
                self._clients[name].close()
                return b"done"
            return self._clients[name].handle(phase, payload)
        except (PrivacyError, FgrpoError):
            raise
        # The other clients of this process must not go down with this one.
        except Exception:
            path = self._folder.private(name) / "crash.log"
            write_atomically(path, traceback.format_exc().encode(), private=True)
            raise StateError(
                f"client {name} met an unexpected error",
                f"Look at {path}, which may quote data.",
            ) from None

    def _evaluate(self, name: str, payload: bytes) -> bytes:
        adapter.from_bytes(self._policy.model, payload)
        client = self._config.client_named(name)
        result = evaluate(self._config, client, self._policy, self._progress)
        return json.dumps(asdict(result)).encode()


def open_site(
    config: RunConfig,
    plan: Plan,
    folder: RunFolder,
    names: Sequence[str],
    run: bytes,
    progress: SiteProgress,
) -> Site:
    """Open clients in this process: model, data, rewards, keys and ledgers.

    Raises:
        FgrpoError: what a user can mend.
        PrivacyError: a ledger that does not verify, or a budget that is spent.
    """
    check_plan(plan, config)
    if plan.recipe != recipe_digest(config):
        msg = (
            "the plan has another recipe than this site's configuration, base model "
            "and settings of learning; compare these with the other parties"
        )
        raise PlanMismatchError(msg)
    torch.set_num_threads(config.machine.threads)
    policy = load_run_policy(config)
    clients = {}
    for name in names:
        task = load_task(config, config.client_named(name), policy)
        if len(task.units) > plan.client(name).units:
            msg = (
                f"the plan states fewer units for client {name!r} than it has; state "
                "`units` as a number that is not below it, since delta is held "
                "against it"
            )
            raise PlanMismatchError(msg)
        private = private_directory(folder.private(name))
        key = identity_key(private)
        roster = folder.roster(plan)
        ledger = open_client_ledger(config, plan, folder, name, key, run)
        learner = Learner(
            plan=plan,
            name=name,
            task=task,
            policy=policy,
            folder=private_directory(folder.of_run(name, run)),
            progress=TenthsOfADraw(progress, f"rollouts {name}"),
        )
        clients[name] = Client(
            plan=plan,
            name=name,
            learner=learner,
            policy=policy,
            ledger=ledger,
            key=key,
            roster=roster,
            federation=run.hex(),
        )
    return Site(config, policy, clients, folder, progress)


def open_client_ledger(
    config: RunConfig,
    plan: Plan,
    folder: RunFolder,
    name: str,
    key: SigningKey,
    run: bytes,
) -> Ledger:
    """Open a client's ledger for a run, and open the run in it where it is new.

    Raises:
        BudgetExceededError: the run as registered would pass the client's cap.
        LedgerError: the ledger does not verify.
        StateError: the ledger is in the middle of another run.
    """
    cap = config.client_named(name).epsilon_cap or config.privacy.epsilon
    ledger = Ledger.open(folder.own_ledger(name), key, party=name, role=Role.CLIENT)
    history = ledger.history
    if history.run == run:
        # Closed already where the run was interrupted between its end and its summary.
        check_pinned(ledger, plan, folder)
        return ledger
    if folder.of_run(name, run).exists():
        ledger.close()
        raise StateError(
            f"Client {name} has taken part in this run, and its ledger is gone.",
            "Restore the ledger with its .head file: without it charges are forgotten.",
        )
    if history.phase is not Phase.CLOSED:
        ledger.close()
        raise StateError(
            f"The ledger of client {name} is in the middle of another run.",
            "Finish that run first, with the same command and output folder.",
        )
    opened = history.opened if isinstance(history.opened, ClientOpened) else None
    # A cap holds at the delta of the first run: a larger one would make it cheaper.
    delta = Decimal(plan.delta) if opened is None else opened.cap_delta
    _check_promise(plan, opened, name, ledger)
    event = registered_event(plan)
    lifetime = charged(history.lifetime, event, plan.rounds)
    needed = spend_of(lifetime, delta, plan.rounds)
    if claimed_epsilon(needed) > cap:
        ledger.close()
        msg = (
            f"client {name!r}: this run would bring the data set's epsilon to "
            f"{claimed_epsilon(needed)}, above its cap {cap}; raise epsilon_cap in its "
            "[[client]] table if its owner agrees, or run fewer rounds"
        )
        raise BudgetExceededError(msg)
    ledger.append(
        ClientOpened(
            run=run,
            software=SOFTWARE,
            plan=plan.to_json(),
            plan_digest=plan.digest_bytes,
            roster={who: k.raw for who, k in folder.roster(plan).items()},
            data=system_entropy(HANDLE_BYTES) if opened is None else opened.data,
            cap_epsilon=cap,
            cap_delta=delta,
        )
    )
    return ledger


def _check_promise(
    plan: Plan, opened: ClientOpened | None, name: str, ledger: Ledger
) -> None:
    """Keep baselines that promise nothing and runs that do in ledgers apart.

    Raises:
        BudgetExceededError: the one would follow the other.
    """
    if opened is None or plan.promises_privacy == opened.cap_epsilon.is_finite():
        return
    ledger.close()
    if plan.promises_privacy:
        msg = (
            f"the ledger of client {name!r} holds a baseline without noise, after "
            "which no epsilon is left to promise; this data set has none any more"
        )
    else:
        msg = (
            f"the ledger of client {name!r} caps what its data may spend, and a "
            "baseline without noise (epsilon = inf) passes every cap; run baselines "
            "on public data, with a [machine] state of their own"
        )
    raise BudgetExceededError(msg)


def check_pinned(ledger: Ledger, plan: Plan, folder: RunFolder) -> None:
    """Hold the run's folder to what the ledger pinned when the run was opened.

    The files of plan and keys are in reach of others; the signed ledger is not.

    Raises:
        StateError: the folder now says another plan or other keys.
    """
    opened = ledger.history.opened
    keys = {who: key.raw for who, key in folder.roster(plan).items()}
    if (
        opened is None
        or opened.plan_digest != plan.digest_bytes
        or dict(opened.roster) != keys
    ):
        ledger.close()
        raise StateError(
            f"{folder.root} holds another plan or other keys than {ledger.path.name} "
            "pinned.",
            "Restore plan.json and keys/; a run changes neither.",
        )


def check_plan(plan: Plan, config: RunConfig) -> None:
    """Hold a plan to the terms of the configuration that the site accepted.

    Raises:
        PlanMismatchError: a term of the guarantee differs.
    """
    stated = (
        plan.unit,
        plan.max_prompts_per_unit,
        Decimal(plan.epsilon),
        Decimal(plan.delta),
        plan.rounds,
        plan.sampling_rate,
        plan.clip_norm,
        plan.min_survivors,
        plan.colluders,
        tuple(client.name for client in plan.clients),
    )
    accepted = (
        config.privacy.unit,
        config.privacy.prompts_per_unit,
        config.privacy.epsilon,
        config.privacy.delta,
        config.privacy.rounds,
        Fraction(config.privacy.sampling_rate),
        Fraction(config.privacy.clip_norm),
        config.federation.min_survivors,
        config.federation.colluders,
        tuple(client.name for client in config.client),
    )
    if stated != accepted:
        msg = "the plan has other terms than the configuration; see both again"
        raise PlanMismatchError(msg)
    for client in config.client:
        if client.units not in {None, plan.client(client.name).units}:
            msg = (
                f"the plan states another number of units for client {client.name!r} "
                "than the configuration; see both again"
            )
            raise PlanMismatchError(msg)


class TenthsOfADraw:
    """Progress that says the same of every draw, whatever its size: ten steps, once.

    How many units were drawn is nobody else's business, and a bar that moves by units
    tells it. An empty draw moves through the same steps.

    Args:
        progress: what is told.
        label: of the bar.
    """

    def __init__(self, progress: SiteProgress, label: str) -> None:
        self._progress = progress
        self._label = label
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        """Move on; a draw is over where `done` is `total`, and the next one begins.

        Guarantee:
            Between two ends the steps 1 to 10 are told, each once and in order.
        """
        reached = 10 if done == total else min(9, 10 * done // total)
        for step in range(self._shown + 1, reached + 1):
            self._progress(self._label, step, 10)
        self._shown = 0 if done == total else max(self._shown, reached)
