"""The arms of the learning benchmark: ways to train on the same prompts.

Every arm draws as many prompts a client and round, and generates as many completions
of each, as the others. Federated arms go through the product's own server, clients,
ledgers and secure aggregation, in one process and without a network.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fgrpo_secure.cohort import Cohort
from fgrpo_secure.config import RunConfig, load_config
from fgrpo_secure.evaluate import evaluate
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.data import Example
from fgrpo_secure.grpo.gradient import ScoredGroup, UnitGradients
from fgrpo_secure.grpo.loss import group_advantages
from fgrpo_secure.grpo.packing import Group
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.grpo.rollout import generate
from fgrpo_secure.preparation import make_plan, open_server_ledger, prepare_folder
from fgrpo_secure.registration import NORM_BOUND, registered_noise
from fgrpo_secure.secrets import identity_key, private_directory
from fgrpo_secure.server import Server
from fgrpo_secure.server_optimizer import OptimizerState, step
from fgrpo_secure.site import Site, open_site
from fgrpo_secure.task import Task, load_run_policy, load_task, score
from privacy.codec import decode, encode
from privacy.errors import PrivacyError
from privacy.ledger import claimed_epsilon, verify_run
from privacy.noise import discrete_gaussian
from privacy.plan import SERVER, WEIGHT_ONE
from privacy.randomness import RandomStream, system_entropy
from privacy.sampling import poisson_draw, uniforms, unit_stream

_Sum = Callable[[Iterator[NDArray[np.float32]]], NDArray[np.float64]]

Scores = dict[str, float]
"""Held-out reward of each client's task, rescaled to [0, 1]."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train.

    Attributes:
        name: as the table shows it.
        kind: "base", "alone", "central" or "federated".
        overrides: of the configuration, as `fgrpo run --set` takes them.
        absent: how many clients, another choice each round, do not answer.
        rows: how many prompts each client has; all of them without it.
        task: the client whose task all clients get, each with other prompts of it, in
            the place of their own; needs `rows`.
    """

    name: str
    kind: str
    overrides: tuple[str, ...] = ()
    absent: int = 0
    rows: int | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """What one run of an arm gave.

    Attributes:
        rounds: held-out reward by client after each round, from round 0, on a part of
            the evaluation sets.
        final: the same at the end, on all of them.
        epsilon: what verified ledgers charge, or the target where there are none;
            infinite without noise, 0 for the base.
    """

    rounds: tuple[Scores, ...]
    final: Scores
    epsilon: float


def run_arm(config_name: str, arm: Arm, seed: int) -> Curve:
    """Train once by an arm and score it by the rewards of the plain configuration.

    Args:
        config_name: as `fgrpo run` takes it.
        arm: how to train.
        seed: of the evaluation. Draws, completions and noise cannot be seeded: each
            run has fresh ones.
    """
    torch.set_num_threads(1)
    plain, _ = load_config(config_name, [f"machine.seed={seed}"])
    config, _ = load_config(config_name, [*arm.overrides, f"machine.seed={seed}"])
    names = [client.name for client in config.client]
    with tempfile.TemporaryDirectory(prefix="fgrpo-benchmark-") as scratch:
        folder = Path(scratch)
        if arm.rows is not None:
            config = _shortened(config, arm, folder)
        judge = _Judge(plain if arm.task is None else config)
        if arm.kind == "alone":
            own = [judge.curve(_central(config, [name]), [name]) for name in names]
            pairs = zip(*(curve.rounds for curve in own), strict=True)
            rounds = tuple(_merged(scores) for scores in pairs)
            final = _merged([curve.final for curve in own])
            return Curve(rounds, final, float(config.privacy.epsilon))
        if arm.kind == "central":
            curve = judge.curve(_central(config, names), names)
            return replace(curve, epsilon=float(config.privacy.epsilon))
        if arm.kind == "federated":
            root = folder / "run"
            curve = judge.curve(_federated(config, arm.absent, root), names)
            return replace(curve, epsilon=_charged(root))
        start = adapter.to_bytes(load_run_policy(config).model)
        return replace(judge.curve(iter([start]), names), epsilon=0.0)


def _shortened(config: RunConfig, arm: Arm, folder: Path) -> RunConfig:
    """The same with only the first prompts of each client, or parts of one client's."""
    clients = []
    for place, client in enumerate(config.client):
        source = client if arm.task is None else config.client_named(arm.task)
        start = 0 if arm.task is None else place * arm.rows
        path = folder / f"{client.name}.jsonl"
        lines = Path(source.data).read_text("utf-8").splitlines()
        path.write_text("\n".join(lines[start : start + arm.rows]) + "\n", "utf-8")
        own = {"name": client.name, "data": str(path)}
        clients.append(source.model_copy(update=own))
    return config.model_copy(update={"client": tuple(clients)})


def _charged(root: Path) -> float:
    """The largest epsilon of a client, from ledgers that are verified first.

    Raises:
        RuntimeError: they do not verify.
    """
    report = verify_run(root, unfinished=True)
    if report.problems:
        raise RuntimeError(str(report.problems[0]))
    return max(float(claimed_epsilon(spend)) for spend in report.spends.values())


class _Judge:
    """Scores adapters on the public evaluation sets."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._policy = load_run_policy(config)

    def score(self, offered: bytes, names: Sequence[str], *, every: int = 1) -> Scores:
        """Held-out reward of some clients' tasks, on each so-manieth prompt."""
        adapter.from_bytes(self._policy.model, offered)
        return {
            name: evaluate(
                self._config,
                self._config.client_named(name),
                self._policy,
                lambda *_: None,
                every=every,
            ).mean
            for name in names
        }

    def curve(self, adapters: Iterator[bytes], names: Sequence[str]) -> Curve:
        """Score adapters as they come; epsilon is infinite until it is known."""
        rounds = []
        last = b""
        for last in adapters:
            rounds.append(self.score(last, names, every=4))
        return Curve(tuple(rounds), self.score(last, names), math.inf)


def _merged(scores: Sequence[Scores]) -> Scores:
    return {name: value for part in scores for name, value in part.items()}


def _federated(config: RunConfig, absent: int, root: Path) -> Iterator[bytes]:
    """The adapter before the first round and after each one; the run is at `root`."""
    plan, policy = make_plan(config)
    prepare_folder(root, config, plan)
    folder = RunFolder.of(root, config)
    private = private_directory(root / SERVER)
    key = identity_key(private)
    names = [client.name for client in plan.clients]
    with open_server_ledger(folder, plan, private, policy, key) as ledger:
        site = open_site(
            config, plan, folder, names, ledger.history.run, lambda *_: None
        )
        cohort = Cohort(
            plan=plan,
            ledger=ledger,
            key=key,
            roster=folder.roster(plan),
            deadline=config.machine.deadline_seconds,
        )
        server = Server(
            cohorts=[cohort], policy=policy, settings=config.server, folder=private
        )
        server.recover()
        yield server.adapter
        for number in range(1, plan.rounds + 1):
            exchange = _Direct(site, _absent(names, absent))
            outcome = server.run_round(exchange, number)
            if not outcome.published:
                raise RuntimeError(outcome.words)
            yield server.adapter
        for name in names:
            site.handle("close", name, b"")
        server.close()


def _absent(names: Sequence[str], count: int) -> frozenset[str]:
    """Clients that miss a round, chosen uniformly."""
    stream = RandomStream(system_entropy)
    order = np.argsort(stream.uint64(len(names)))
    return frozenset(names[place] for place in order[:count])


class _Direct:
    """Hands every phase to the clients of this process."""

    def __init__(self, site: Site, gone: frozenset[str]) -> None:
        self._site = site
        self._gone = gone

    def exchange(
        self,
        phase: str,
        messages: Mapping[str, bytes],
        deadline: float,  # noqa: ARG002
    ) -> dict[str, bytes]:
        answers = {}
        for name, payload in messages.items():
            if name in self._gone:
                continue
            try:
                answers[name] = self._site.handle(phase, name, payload)
            except PrivacyError as error:
                raise RuntimeError(f"{phase} at {name}: {error}") from error
        return answers


def _central(config: RunConfig, names: Sequence[str]) -> Iterator[bytes]:
    """GRPO on the pooled prompts, by whoever holds them all: no weights, no masks.

    Where epsilon is infinite it is plain, without clipping or noise. Else each unit is
    clipped and the sum noised by the kernel's own integers, all noise from one hand.
    """
    policy = load_run_policy(config)
    tasks = [load_task(config, config.client_named(name), policy) for name in names]
    rate = Fraction(config.privacy.sampling_rate)
    batch = float(rate * sum(len(task.units) for task in tasks))
    size = adapter.read_vector(policy.model).size
    add_up = _private_sum(config, size) if _is_private(config) else _plain_sum(size)
    state = OptimizerState.fresh(size)
    yield adapter.to_bytes(policy.model)
    for _ in range(config.privacy.rounds):
        gradients = (
            vector for task in tasks for vector in _unit_gradients(policy, task, rate)
        )
        state, parameters = step(
            config.server,
            state,
            adapter.read_vector(policy.model),
            add_up(gradients) / batch,
        )
        adapter.write_vector(policy.model, parameters)
        yield adapter.to_bytes(policy.model)


def _is_private(config: RunConfig) -> bool:
    return config.privacy.epsilon.is_finite()


def _plain_sum(size: int) -> _Sum:
    """Adds gradients up as they are."""

    def add_up(gradients: Iterator[NDArray[np.float32]]) -> NDArray[np.float64]:
        total = np.zeros(size)
        for vector in gradients:
            total += vector
        return total

    return add_up


def _private_sum(config: RunConfig, size: int) -> _Sum:
    """Clips and rounds each gradient, and noises the sum for the target epsilon."""
    noise = registered_noise(config, with_statistic=False)
    scale = NORM_BOUND / Fraction(config.privacy.clip_norm)

    def add_up(gradients: Iterator[NDArray[np.float32]]) -> NDArray[np.float64]:
        stream = RandomStream(system_entropy)
        total = discrete_gaussian(stream, noise.gradient_variance, size)
        for vector in gradients:
            total += encode(
                vector, scale=scale, norm_bound=NORM_BOUND, weight=WEIGHT_ONE
            )
        return np.asarray(decode(total, scale), dtype=np.float64)

    return add_up


def _unit_gradients(
    policy: Policy, task: Task, rate: Fraction
) -> Iterator[NDArray[np.float32]]:
    """The gradients of one draw's units."""
    drawn = poisson_draw(list(task.units), rate, RandomStream(system_entropy))
    if not drawn:
        return
    settings = task.rollout
    key = system_entropy(32)
    each = settings.group_size * settings.max_tokens
    shape = (-1, settings.group_size, settings.max_tokens)
    numbers = [
        uniforms(unit_stream(key, unit), len(task.prompts[unit]) * each).reshape(shape)
        for unit in drawn
    ]
    prompts = [prompt for unit in drawn for prompt in task.prompts[unit]]
    made = iter(generate(policy, prompts, np.concatenate(numbers), settings))
    scored = [
        [_scored(task, example, next(made)) for example in task.units[unit].examples]
        for unit in drawn
    ]
    yield from UnitGradients(policy, task.gradient).compute(scored)


def _scored(task: Task, example: Example, group: Group) -> ScoredGroup:
    values = score(task.rewards, example, group)
    return ScoredGroup(group, group_advantages(values, task.scale_rewards))
