"""A whole run on one machine, from a configuration to a summary.

The folder of a run is all its state: a run that was interrupted goes on from it, and
one that is finished is never touched again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from fgrpo_secure.admission import Ask, admit, site_rules
from fgrpo_secure.budget import check_budgets
from fgrpo_secure.cohort import Cohort
from fgrpo_secure.config import RunConfig
from fgrpo_secure.display import RoundReport, stated_epsilon
from fgrpo_secure.errors import StateError
from fgrpo_secure.folders import RunFolder, cohort_roots, held
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.preparation import (
    check_folder,
    open_server_ledger,
    prepare_folders,
)
from fgrpo_secure.registration import register_cohorts
from fgrpo_secure.rounds import Meter, write_note
from fgrpo_secure.runtime.local import LocalExchange, WorkerOrder, accepted
from fgrpo_secure.secrets import (
    identity_key,
    private_directory,
    remove_unfinished,
    write_atomically,
)
from fgrpo_secure.server import Server
from fgrpo_secure.task import load_run_policy, public_size
from fgrpo_secure.tracking import Tracking, tracked
from privacy.contribution import registered_event
from privacy.ledger import (
    Ledger,
    Spend,
    claimed_epsilon,
    read_key_file,
    spend_of,
    verify_ledger,
)
from privacy.ledger.durable import make_directory
from privacy.plan import MIN_CLIENTS, SERVER, Plan

_BEFORE = "before.json"
_RESUME = "the same command with the same --output goes on from here."


class Watcher(Protocol):
    """Whoever shows a run to a person."""

    def say(self, text: str) -> None:
        """Say one line."""
        ...

    def progress(self, label: str, done: int, total: int) -> None:
        """Show how far something is."""
        ...

    def round_done(self, report: RoundReport) -> None:
        """Show the end of a round."""
        ...

    @contextmanager
    def running(self, rounds: int, done: int) -> Iterator[None]:
        """Show progress while the block runs."""
        ...


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run.

    Attributes:
        summary: what `summary.json` holds.
        samples: client, prompt, answer before and answer after, of public prompts.
    """

    summary: dict[str, Any]
    samples: tuple[tuple[str, str, str, str], ...]


def make_plan(config: RunConfig) -> tuple[Plan, Policy]:
    """As `make_plans`, of a configuration whose clients are one cohort."""
    (plan,), policy = make_plans(config)
    return plan, policy


def make_plans(config: RunConfig) -> tuple[tuple[Plan, ...], Policy]:
    """Register the cohorts' plans of a configuration; nothing runs or is spent.

    Raises:
        FgrpoError, PrivacyError: what is wrong with it.
    """
    sizes = {client.name: public_size(config, client) for client in config.client}
    policy = load_run_policy(config)
    dimension = adapter.read_vector(policy.model).size
    return register_cohorts(config, sizes, dimension), policy


def run(
    config: RunConfig, root: Path, watcher: Watcher, ask: Ask | None = None
) -> Finished:
    """Run to the end, or go on with a run that was interrupted.

    Args:
        config: the configuration.
        root: the run's folder; made if missing.
        watcher: who shows it.
        ask: asks a site's operator where its policy does; None asks nobody, so that
            only what was approved before may run.

    Raises:
        StateError: the folder holds a finished run, or one of another plan, or another
            process runs in it.
        FgrpoError, PrivacyError: what went wrong; the folder can be resumed.
    """
    started = time.monotonic()
    check_folder(root)
    watcher.say("Registering the plan: sizes, model, noise for the target epsilon ...")
    plans, policy = make_plans(config)
    make_directory(root)
    with held(root):
        # Who had it until now may have finished in it.
        check_folder(root)
        return _run_alone(config, root, watcher, plans, policy, started, ask)


def _run_alone(
    config: RunConfig,
    root: Path,
    watcher: Watcher,
    plans: Sequence[Plan],
    policy: Policy,
    started: float,
    ask: Ask | None,
) -> Finished:
    """Run, or go on, in a folder that no other process runs in."""
    resumed = prepare_folders(root, config, plans)
    private = private_directory(root / SERVER)
    key = identity_key(private)
    digests = ", ".join(plan.digest[:16] for plan in plans)
    terms = plans[0]
    watcher.say(
        f"plan {digests}: epsilon {terms.epsilon} at delta {terms.delta} over "
        f"{terms.rounds} rounds; {root}"
    )
    remove_unfinished(private)
    with ExitStack() as opened:
        parts = []
        for plan, place in zip(plans, cohort_roots(root, len(plans)), strict=True):
            folder = RunFolder.of(place, config)
            ledger = opened.enter_context(
                open_server_ledger(folder, plan, private, policy, key)
            )
            _admit_all(config, plan, folder, ledger.history.run, ask)
            check_budgets(config, plan, folder, ledger.history.run)
            parts.append(_Part(config, plan, folder, ledger))
        history = parts[0].ledger.history
        tracking = opened.enter_context(
            tracked(
                config.machine.tracking, root, history.run, history.round, watcher.say
            )
        )
        exchange = opened.enter_context(
            LocalExchange(
                [part.order for part in parts],
                workers=config.machine.workers,
                on_progress=watcher.progress,
                on_silence=lambda name, why: watcher.say(f"client {name}: {why}"),
            )
        )
        exchange.wait_ready()
        cohorts = [
            Cohort(
                plan=part.plan,
                ledger=part.ledger,
                key=key,
                roster=part.folder.roster(part.plan),
                deadline=config.machine.deadline_seconds,
            )
            for part in parts
        ]
        server = Server(
            cohorts=cohorts, policy=policy, settings=config.server, folder=private
        )
        server.meet(exchange)
        done = server.recover()
        if resumed:
            watcher.say(f"Going on after round {done} of {terms.rounds}.")
        job = _Job(config, parts, exchange, watcher, tracking, private)
        try:
            with watcher.running(terms.rounds, done):
                before = job.before(private / _BEFORE, server.adapter)
                job.rounds(server, done)
                after = job.evaluate(server.adapter)
            adapter.save_pretrained(server.model_with_adapter(), root / "adapter")
            server.close()
            job.close(server)
        finally:
            job.copy_ledgers()
        summaries = [job.summary(part, before, after) for part in parts]
        seconds = round(time.monotonic() - started, 1)
        if len(parts) > 1:
            for part, own in zip(parts, summaries, strict=True):
                _write_summary(part.folder.root, own | {"seconds": seconds})
        summary = _joined(parts, summaries) | {"seconds": seconds}
        # It marks the run as finished, so that it comes last.
        _write_summary(root, summary)
        tracking.run_done(terms.rounds, summary)
    return Finished(summary, _samples(before, after))


def _admit_all(
    config: RunConfig, plan: Plan, folder: RunFolder, run: bytes, ask: Ask | None
) -> None:
    """Have every site's policy look at a run before any client opens it.

    Each site looks again by itself when it opens. A run that some had opened and
    others declined could never be finished.
    """
    names = [client.name for client in plan.clients]
    for rules in site_rules(config, plan, folder, names).values():
        admit(rules, plan, folder, run, ask)


@dataclass(frozen=True, slots=True)
class _Part:
    """One cohort of a run: its plan, its folder, and the server's ledger of it."""

    config: RunConfig
    plan: Plan
    folder: RunFolder
    ledger: Ledger

    @property
    def names(self) -> list[str]:
        """Its clients."""
        return [client.name for client in self.plan.clients]

    @property
    def order(self) -> WorkerOrder:
        """What workers are told of it."""
        run = self.ledger.history.run
        terms = accepted(self.config, self.plan)
        return WorkerOrder(str(self.folder.root), tuple(self.names), run, terms)


class _Job:
    """The steps of a run that talk to all clients."""

    def __init__(
        self,
        config: RunConfig,
        parts: Sequence[_Part],
        exchange: LocalExchange,
        watcher: Watcher,
        tracking: Tracking,
        notes: Path,
    ) -> None:
        self._config = config
        self._parts = parts
        # Of the client that spends most.
        self._plan = max((p.plan for p in parts), key=lambda plan: plan.sampling_rate)
        self._exchange = exchange
        self._watcher = watcher
        self._tracking = tracking
        self._notes = notes
        self._names = [name for part in parts for name in part.names]

    def evaluate(self, adapter_bytes: bytes) -> dict[str, Any]:
        """Scores of the public evaluation sets, by client."""
        public = [
            client.name
            for client in self._config.client
            if client.eval_public and client.eval_data is not None
        ]
        if public:
            self._watcher.say("Scoring the public evaluation sets ...")
        answers = self._exchange.exchange(
            "evaluate",
            dict.fromkeys(public, adapter_bytes),
            self._config.machine.deadline_seconds,
        )
        return {name: json.loads(answer) for name, answer in answers.items()}

    def before(self, path: Path, adapter_bytes: bytes) -> dict[str, Any]:
        """Scores of the untrained adapter, kept for a run that is resumed."""
        if path.exists():
            kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
            return kept
        scores = self.evaluate(adapter_bytes)
        write_atomically(path, json.dumps(scores).encode())
        return scores

    def rounds(self, server: Server, done: int) -> None:
        """Run the rounds that are left."""
        plan, target = self._plan, float(self._plan.epsilon)
        began = time.monotonic()
        for number in range(done + 1, plan.rounds + 1):
            self._require_clients()
            meter = Meter(self._exchange)
            outcome = server.run_round(meter, number)
            noted = meter.noted(
                number,
                published=outcome.published,
                survivors=outcome.survivors,
                weights=outcome.weights,
            )
            write_note(self._notes, noted)
            spent = float(claimed_epsilon(self._cost(number)))
            self._tracking.round_done(noted, spent)
            each = (time.monotonic() - began) / (number - done)
            report = RoundReport(
                number=number,
                rounds=plan.rounds,
                published=outcome.published,
                outcome=outcome.words,
                spent=spent,
                target=target,
                seconds_left=each * (plan.rounds - number),
            )
            self._watcher.round_done(report)

    def _cost(self, rounds: int) -> Spend:
        """What a client has spent, at most, that was charged this many rounds."""
        plan = self._plan
        event = registered_event(plan, plan.most_exposed)
        charges = ((event, rounds * plan.local_steps),)
        return spend_of(charges, Decimal(plan.delta), plan.registered_charges)

    def _require_clients(self) -> None:
        """Stop where the processes that are left cannot make a sum.

        On this machine a process that has ended does not come back, and to go on would
        use the plan's rounds up one by one.

        Raises:
            StateError: too few clients are left.
        """
        present = self._exchange.present
        for part in self._parts:
            plan, names = part.plan, set(part.names)
            least = max(MIN_CLIENTS, plan.threshold, plan.min_survivors)
            if len(names & present) < least:
                gone = ", ".join(sorted(names - present))
                raise StateError(
                    f"The processes of {gone} have ended, and too few are left for a "
                    "sum.",
                    f"See what ended them, then go on: {_RESUME}",
                )

    def close(self, server: Server) -> None:
        """Show every client the whole log, and have it close its ledger.

        Raises:
            StateError: one could not; the run is then not finished.
        """
        closed = self._exchange.exchange(
            "close", server.last_words(), self._config.machine.deadline_seconds
        )
        server.take_cosignatures(closed)
        gone = ", ".join(sorted(set(self._names) - closed.keys()))
        if gone:
            raise StateError(
                f"The ledgers of {gone} are not closed: their processes have ended.",
                f"See what ended them, then finish: {_RESUME}",
            )

    def copy_ledgers(self) -> None:
        """Bring ledgers that are kept elsewhere into the run's folder."""
        for part in self._parts:
            for name in part.names:
                own, here = part.folder.own_ledger(name), part.folder.ledger(name)
                if own != here and own.exists():
                    write_atomically(here, own.read_bytes())

    def summary(
        self, part: _Part, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a cohort's `summary.json` holds; epsilon comes from the ledgers."""
        history = part.ledger.history
        clients = []
        largest = Decimal(0)
        for name in part.names:
            spend = _claimed(part.folder, name, history.run)
            clients.append(
                {
                    "name": name,
                    "reward_before": before.get(name, {}).get("mean"),
                    "reward_after": after.get(name, {}).get("mean"),
                    "epsilon": stated_epsilon(spend),
                }
            )
            largest = max(largest, spend)
        return {
            "epsilon": stated_epsilon(largest),
            "delta": float(part.plan.delta),
            "target_epsilon": stated_epsilon(Decimal(part.plan.epsilon)),
            "plan_digest": part.plan.digest,
            "rounds_completed": history.published,
            "rounds_aborted": history.aborted,
            "survivors": list(history.last_survivors),
            "clients": clients,
            "reward_before": _mean(clients, "reward_before"),
            "reward_after": _mean(clients, "reward_after"),
        }


def _joined(
    parts: Sequence[_Part], summaries: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the summary of the whole run holds: of its one cohort, or of all."""
    if len(parts) == 1:
        return summaries[0]
    clients = [client for own in summaries for client in own["clients"]]
    worst = dict(max(summaries, key=lambda own: float(own["epsilon"])))
    del worst["plan_digest"]
    histories = [part.ledger.history for part in parts]
    # A round counts where the adapter moved, by whichever cohorts.
    completed = max(history.published + history.moved for history in histories)
    return worst | {
        "cohorts": [
            {"folder": part.folder.root.name, "plan_digest": part.plan.digest}
            for part in parts
        ],
        "rounds_completed": completed,
        "rounds_aborted": max(history.round for history in histories) - completed,
        "survivors": [name for own in summaries for name in own["survivors"]],
        "clients": clients,
        "reward_before": _mean(clients, "reward_before"),
        "reward_after": _mean(clients, "reward_after"),
    }


def _write_summary(root: Path, summary: Mapping[str, Any]) -> None:
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_atomically(root / "summary.json", text.encode())


def _mean(clients: list[dict[str, Any]], key: str) -> float | None:
    values = [client[key] for client in clients]
    if any(value is None for value in values):
        return None
    return float(sum(values) / len(values))


def _claimed(folder: RunFolder, name: str, run_handle: bytes) -> Decimal:
    """What a client has spent in this run, by its own ledger, verified."""
    ledger = verify_ledger(
        folder.ledger(name), key=read_key_file(folder.key(name)), closed=False
    )
    own = next(part for part in ledger.runs if part.opened.run == run_handle)
    return claimed_epsilon(own.history.totals()[0])


def _samples(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[tuple[str, str, str, str], ...]:
    rows = []
    for name in sorted(before.keys() & after.keys()):
        pairs = zip(before[name]["samples"], after[name]["samples"], strict=True)
        for old, new in pairs:
            rows.append((name, old["prompt"], old["completion"], new["completion"]))
    return tuple(rows)
