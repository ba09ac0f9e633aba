"""What a client does with a round, from the charge to the noised vector.

Nothing of it leaves but by `privacy.contribution`. What is made of a draw's units is in
`draws`; here is the order of things in either trust model, and what a client remembers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fgrpo_secure.draws import Draw, Draws, Progress
from fgrpo_secure.errors import StateError
from fgrpo_secure.gain import Baseline, adaptive_weight, fixed_weight, gain, updated
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.metrics import note
from fgrpo_secure.secrets import write_atomically
from fgrpo_secure.stopping import StepError, refuse_if_stopped, stop
from fgrpo_secure.task import Task
from privacy.contribution import Contribution, charge
from privacy.ledger import Ledger
from privacy.plan import Plan
from privacy.randomness import system_entropy
from privacy.vectors import FloatVector, NoisedVector

_Figures = dict[str, float]


class Learner:
    """One client's learning, round by round.

    Args:
        plan: the registered terms.
        name: this client.
        task: what it learns from.
        policy: the model; its adapter is replaced by what a round offers.
        folder: private state of this run, mode 0700.
        progress: called with the prompts done and the prompts drawn, which are
            private, and once a draw with two equal numbers, at the end.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        name: str,
        task: Task,
        policy: Policy,
        folder: Path,
        progress: Progress | None = None,
    ) -> None:
        self._plan = plan
        self._name = name
        self._task = task
        self._policy = policy
        self._folder = folder
        self._draws = Draws(task, policy, self._note_failure, progress)
        self._baseline = _load_baseline(folder / _BASELINE)

    def contribute(self, ledger: Ledger, adapter_bytes: bytes) -> NoisedVector:
        """Charge, draw, generate, score, weigh, differentiate and seal one round.

        Args:
            ledger: the client's, in which it has joined the round.
            adapter_bytes: the adapter that the round offers.

        Raises:
            StepError: a step of this client's own was at fault, in this round or in
                one before. In the latter case nothing is charged.
        """
        refuse_if_stopped(self._folder)
        history = ledger.history
        contribution = charge(
            self._plan,
            self._name,
            round_number=history.round,
            attempt=history.attempt,
            ledger=ledger,
            entropy=system_entropy,
        )
        adapter.from_bytes(self._policy.model, adapter_bytes)
        if self._plan.is_local:
            figures, weight = self._take_steps(contribution)
        else:
            figures, weight = self._take_one_gradient(contribution)
        vector, opening = contribution.seal()
        write_atomically(
            self._folder / f"opening-{history.round:05d}.key", opening, private=True
        )
        for own in figures:
            values = {"round": history.round, "weight": weight, **own}
            note(self._folder / _METRICS, values)
        return vector

    def _take_one_gradient(
        self, contribution: Contribution
    ) -> tuple[list[_Figures], int]:
        """Distributed trust: nothing is released before the sum of all clients."""
        draw = self._draws.make(contribution)
        weight = self._weight([self._measure(contribution, draw)])
        contribution.weigh(weight)
        self._draws.add_gradients(contribution, draw)
        return [self._figures(draw)], weight

    def _take_steps(self, contribution: Contribution) -> tuple[list[_Figures], int]:
        """Local trust: DP-SGD on this client's own model, noised step by step.

        What the model moves by is the noised release, so that the next step's draw,
        completions and gradients see nothing else of this one's units.
        """
        plan, draws = self._plan, self._draws
        figures, measured = [], []
        for _ in range(plan.local_steps):
            draw = draws.make(contribution)
            measured.append(self._measure(contribution, draw))
            if plan.inner_steps > 1:
                draws.keep_behaviour(draw)
            for _ in range(plan.inner_steps):
                draws.add_gradients(contribution, draw)
                self._move(contribution.release())
            figures.append(self._figures(draw))
        weight = self._weight(measured)
        contribution.weigh(weight)
        return figures, weight

    def _figures(self, draw: Draw) -> _Figures:
        """What the client's operator may look up of a draw, in the private folder."""
        scored = list(self._draws.centred_means(draw))
        return {
            "drawn": len(draw.units),
            "failed": len(draw.failed),
            "mean_reward": float(np.mean(scored)) if scored else 0.0,
        }

    def _move(self, mean_gradient: FloatVector) -> None:
        """One step down a noised gradient. Source: Abadi et al., CCS 2016, alg. 1.

        Raises:
            StepError: the step leaves a tensor as it was, or goes out of all bounds.
                Both are read off what is released already.
        """
        model, rate = self._policy.model, self._task.local_learning_rate
        before = adapter.read_vector(model)
        with np.errstate(over="ignore"):
            after = (before - rate * mean_gradient).astype(np.float32)
        if not np.isfinite(after).all():
            raise self._stopped(
                f"A client's own step of local_learning_rate = {rate:g} makes numbers "
                "that are not finite.",
                "Lower [grpo] local_learning_rate, and start a new run.",
            )
        stuck = adapter.unchanged_tensors(model, before, after)
        # Without noise a step may well be zero: where all rewards are equal.
        if stuck and self._plan.promises_privacy:
            raise self._stopped(
                f"A client's own step of local_learning_rate = {rate:g} leaves the "
                f"adapter of {adapter.layers_of(stuck)} as it was.",
                "Raise [grpo] local_learning_rate, and start a new run.",
            )
        adapter.write_vector(model, after)

    def _stopped(self, what: str, fix: str) -> StepError:
        """Keep an error of a step, so that no later round is charged for the same.

        That there was one is read off noised releases, as the error itself is.
        """
        error = StepError(what, fix)
        stop(self._folder, error, private=True)
        return error

    def _measure(self, contribution: Contribution, draw: Draw) -> float | None:
        """The noised mean reward of a draw; None where the plan has none."""
        if not self._plan.weighting.needs_statistic:
            return None
        return contribution.noised_mean(self._draws.centred_means(draw))

    def _weight(self, measured: Sequence[float | None]) -> int:
        """This round's weight, from the noised statistics of its draws alone."""
        plan = self._plan
        known = [value for value in measured if value is not None]
        if not known:
            return fixed_weight(plan, self._name)
        mean = sum(known) / len(known)
        noise = plan.statistic_variance**0.5 / plan.statistic_norm_bound
        batch = float(plan.expected_batch(self._name))
        noise_std = noise / (batch * len(known) ** 0.5)
        weighting, before = plan.weighting, self._baseline
        weight = adaptive_weight(weighting, gain(weighting, before, mean))
        self._baseline = updated(weighting, before, mean, noise_std)
        _store_baseline(self._folder / _BASELINE, self._baseline)
        return weight

    def _note_failure(self, where: str, error: Exception) -> None:
        """Keep the kind of a failure for the operator, in the private folder."""
        values = {"failure": where, "kind": type(error).__name__}
        note(self._folder / _METRICS, values)


_BASELINE = "baseline.json"
_METRICS = "metrics.jsonl"


def _load_baseline(path: Path) -> Baseline:
    if not path.exists():
        return Baseline()
    try:
        return Baseline(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError):
        raise StateError(
            f"{path} is damaged", "remove it: the baseline then starts anew"
        ) from None


def _store_baseline(path: Path, baseline: Baseline) -> None:
    data = json.dumps(asdict(baseline)).encode()
    write_atomically(path, data, private=True)
