"""The course of a run, whatever carries it: rounds, scores, closing, the summary.

It runs in the coordinator's process, and all that it knows of a client came in a
message. What differs between one machine and many is behind `Engine`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fgrpo_secure.cohort import Cohort
from fgrpo_secure.config import RunConfig
from fgrpo_secure.display import RoundReport, stated_epsilon
from fgrpo_secure.errors import StateError
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.rounds import Meter, write_note
from fgrpo_secure.secrets import write_atomically
from fgrpo_secure.server import Server
from fgrpo_secure.tracking import Tracking
from privacy.contribution import registered_event
from privacy.crypto import SigningKey
from privacy.ledger import (
    Ledger,
    Spend,
    claimed_epsilon,
    read_key_file,
    spend_of,
    verify_ledger,
)
from privacy.plan import MIN_CLIENTS, SERVER, Plan

if TYPE_CHECKING:
    from fgrpo_secure.runtime.exchange import Engine

_BEFORE = "before.json"
RESUME = "the same command with the same --output goes on from here."


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


@dataclass(frozen=True, slots=True)
class Part:
    """One cohort of a run: its plan, its folder, and the server's ledger of it."""

    plan: Plan
    folder: RunFolder
    ledger: Ledger

    @property
    def names(self) -> list[str]:
        """Its clients."""
        return [client.name for client in self.plan.clients]

    @property
    def least(self) -> int:
        """How many clients a sum takes."""
        plan = self.plan
        return max(MIN_CLIENTS, plan.threshold, plan.min_survivors)


def conduct(
    config: RunConfig,
    root: Path,
    parts: Sequence[Part],
    policy: Policy,
    key: SigningKey,
    engine: Engine,
    watcher: Watcher,
    tracking: Tracking,
    *,
    resumed: bool,
    started: float,
) -> Finished:
    """Run the rounds that are left, and finish the run.

    Args:
        config: the configuration, as the coordinator has it.
        root: the run's folder.
        parts: its cohorts, their ledgers open.
        policy: the model whose adapter moves.
        key: the coordinator's identity.
        engine: reaches the clients.
        watcher: who shows it.
        tracking: what may be shown elsewhere.
        resumed: whether the run was begun before.
        started: when this process began, on the monotonic clock.

    Raises:
        FgrpoError, PrivacyError: what went wrong; the run can be resumed.
    """
    private = root / SERVER
    rounds = parts[0].plan.rounds
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
    course = _Course(config, parts, engine, watcher, tracking, private)
    course.gather(0)
    server.meet(engine)
    done = server.recover()
    if resumed:
        watcher.say(f"Going on after round {done} of {rounds}.")
    try:
        with watcher.running(rounds, done):
            before = course.before(private / _BEFORE, server.adapter)
            course.rounds(server, done)
            course.gather(0)
            after = course.evaluate(server.adapter)
        adapter.save_pretrained(server.model_with_adapter(), root / "adapter")
        server.close()
        course.close(server)
    finally:
        engine.collect_ledgers()
    summaries = [course.summary(part, before, after) for part in parts]
    seconds = round(time.monotonic() - started, 1)
    if len(parts) > 1:
        for part, own in zip(parts, summaries, strict=True):
            _write_summary(part.folder.root, own | {"seconds": seconds})
    summary = _joined(parts, summaries) | {"seconds": seconds}
    # It marks the run as finished, so that it comes last.
    _write_summary(root, summary)
    tracking.run_done(rounds, summary)
    return Finished(summary, _samples(before, after))


class _Course:
    """The steps of a run that talk to all clients."""

    def __init__(
        self,
        config: RunConfig,
        parts: Sequence[Part],
        engine: Engine,
        watcher: Watcher,
        tracking: Tracking,
        notes: Path,
    ) -> None:
        self._config = config
        self._parts = parts
        # Of the client that spends most.
        self._plan = max((p.plan for p in parts), key=lambda plan: plan.sampling_rate)
        self._engine = engine
        self._watcher = watcher
        self._tracking = tracking
        self._notes = notes
        self._names = [name for part in parts for name in part.names]

    def gather(self, number: int) -> None:
        """Have the engine see to it that a round, or what is of none, may begin."""
        sums = {tuple(part.names): part.least for part in self._parts}
        self._engine.gather(number, sums)

    def evaluate(self, adapter_bytes: bytes) -> dict[str, Any]:
        """Scores of the public evaluation sets, by client."""
        public = self._engine.evaluating(
            [
                client.name
                for client in self._config.client
                if client.eval_public and client.eval_data is not None
            ]
        )
        if public:
            self._watcher.say("Scoring the public evaluation sets ...")
        answers = self._engine.exchange(
            "evaluate",
            dict.fromkeys(public, adapter_bytes),
            self._config.machine.deadline_seconds,
        )
        scores = {name: read_scores(answer) for name, answer in answers.items()}
        return {name: found for name, found in scores.items() if found is not None}

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
            self.gather(number)
            meter = Meter(self._engine)
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
                survivors=outcome.survivors,
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

    def close(self, server: Server) -> None:
        """Show every client the whole log, and have it close its ledger.

        Raises:
            StateError: one could not; the run is then not finished.
        """
        closed = self._engine.exchange(
            "close", server.last_words(), self._config.machine.deadline_seconds
        )
        server.take_cosignatures(closed)
        silent = ", ".join(sorted(set(self._names) - closed.keys()))
        if silent:
            raise StateError(
                f"No word of {silent} that the server's log is whole and their ledgers "
                "are closed; the lines above say why.",
                f"Mend that, and see `fgrpo ledger verify`; then finish: {RESUME}",
            )

    def summary(
        self, part: Part, before: Mapping[str, Any], after: Mapping[str, Any]
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
    parts: Sequence[Part], summaries: Sequence[dict[str, Any]]
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


def read_scores(answer: bytes) -> dict[str, Any] | None:
    """What a client answers of its public evaluation set; None where it has none.

    A client can state any scores. It cannot end the run by a form that they do not
    have.
    """
    try:
        found = json.loads(answer)
        mean, samples = found["mean"], found["samples"]
        texts = [(one["prompt"], one["completion"]) for one in samples]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_number = isinstance(mean, (int, float)) and not isinstance(mean, bool)
    are_texts = all(isinstance(text, str) for pair in texts for text in pair)
    if not is_number or not math.isfinite(mean) or not are_texts:
        return None
    shown = [{"prompt": p, "completion": c} for p, c in texts]
    return {"mean": float(mean), "samples": shown}


def _samples(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[tuple[str, str, str, str], ...]:
    rows = []
    for name in sorted(before.keys() & after.keys()):
        pairs = zip(before[name]["samples"], after[name]["samples"], strict=False)
        for old, new in pairs:
            rows.append((name, old["prompt"], old["completion"], new["completion"]))
    return tuple(rows)
