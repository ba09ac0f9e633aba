"""What a client does with a round: draw, generate, score, weigh, differentiate, seal.

Everything between the charge and the noised vector is here. Nothing of it leaves but by
`privacy.contribution`, and nothing that goes wrong with one unit decides anything but
that unit's own part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgrpo_secure.errors import FgrpoError, StateError
from fgrpo_secure.gain import Baseline, adaptive_weight, fixed_weight, gain, updated
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.gradient import ScoredGroup, UnitGradients
from fgrpo_secure.grpo.loss import group_advantages
from fgrpo_secure.grpo.packing import Group
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.grpo.rollout import generate
from fgrpo_secure.metrics import note
from fgrpo_secure.secrets import write_atomically
from fgrpo_secure.task import Task, score
from privacy.contribution import Contribution, charge
from privacy.ledger import Ledger
from privacy.plan import Plan
from privacy.randomness import system_entropy
from privacy.vectors import NoisedVector

Progress = Callable[[int, int], None]


class Learner:
    """One client's learning, round by round.

    Args:
        plan: the registered terms.
        name: this client.
        task: what it learns from.
        policy: the model; its adapter is replaced by what a round offers.
        folder: private state of this run, mode 0700.
        progress: called with the prompts done and the prompts drawn, which are
            private, and once a round with two equal numbers, at the end.
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
        self._progress = progress
        self._baseline = _load_baseline(folder / _BASELINE)

    def contribute(self, ledger: Ledger, adapter_bytes: bytes) -> NoisedVector:
        """Charge, draw, generate, score, weigh, differentiate and seal one round.

        Args:
            ledger: the client's, in which it has joined the round.
            adapter_bytes: the adapter that the round offers.
        """
        history = ledger.history
        contribution = charge(
            self._plan,
            self._name,
            round_number=history.round,
            attempt=history.attempt,
            ledger=ledger,
            entropy=system_entropy,
        )
        drawn = contribution.draw(list(self._task.units))
        adapter.from_bytes(self._policy.model, adapter_bytes)
        groups, failed = self._generate(contribution, drawn)
        rewards = {unit: self._score(unit, groups[unit]) for unit in drawn}
        weight = self._weigh(contribution, rewards)
        contribution.weigh(weight)
        failed |= self._add_gradients(contribution, drawn, groups, rewards)
        vector, opening = contribution.seal()
        write_atomically(
            self._folder / f"opening-{history.round:05d}.key", opening, private=True
        )
        scored = [_centred_mean(self._task, rewards[unit]) for unit in drawn]
        note(
            self._folder / "metrics.jsonl",
            {
                "round": history.round,
                "drawn": len(drawn),
                "failed": len(failed),
                "mean_reward": float(np.mean(scored)) if scored else 0.0,
                "weight": weight,
            },
        )
        return vector

    def _generate(
        self, contribution: Contribution, drawn: Sequence[str]
    ) -> tuple[dict[str, list[Group]], set[str]]:
        """Completions of every drawn unit; those of a unit that failed are missing.

        A failure after the draw must not decide whether this client stays in the
        round, since that would be a release: the unit counts as zeros instead.
        """
        groups = self._generate_for(contribution, drawn, self._progress)
        if groups is None:
            # One of them is to blame, and its mates must not suffer for it.
            groups = {}
            for unit in drawn:
                groups |= self._generate_for(contribution, [unit]) or {}
        if self._progress is not None:
            self._progress(1, 1)
        failed = set(drawn) - set(groups)
        return {unit: groups.get(unit, []) for unit in drawn}, failed

    def _generate_for(
        self,
        contribution: Contribution,
        chosen: Sequence[str],
        progress: Progress | None = None,
    ) -> dict[str, list[Group]] | None:
        """Completions of some units, or None where generating them failed."""
        if not chosen:
            return {}
        settings, prompts = self._task.rollout, self._task.prompts
        shape = (-1, settings.group_size, settings.max_tokens)
        each = settings.group_size * settings.max_tokens
        numbers = [
            contribution.uniforms(unit, len(prompts[unit]) * each).reshape(shape)
            for unit in chosen
        ]
        flat = [prompt for unit in chosen for prompt in prompts[unit]]
        try:
            made = generate(
                self._policy,
                flat,
                np.concatenate(numbers),
                settings,
                None if progress is None else _below_end(progress, len(flat)),
            )
        # Whatever it is: an exception that ended this client's round would tell that
        # a unit which causes it was drawn.
        except Exception as error:
            self._note_failure("generation", error)
            return None
        following = iter(made)
        return {unit: [next(following) for _ in prompts[unit]] for unit in chosen}

    def _score(self, unit: str, groups: list[Group]) -> list[NDArray[np.float64]]:
        """Rewards of a unit's groups, one a prompt, shape (G,); NaN where missing."""
        examples = self._task.units[unit].examples
        return [
            score(self._task.rewards, example, group)
            for example, group in zip(examples, groups, strict=False)
        ]

    def _weigh(
        self,
        contribution: Contribution,
        rewards: Mapping[str, list[NDArray[np.float64]]],
    ) -> int:
        """This round's weight, from the noised statistic alone."""
        plan = self._plan
        if not plan.weighting.needs_statistic:
            return fixed_weight(plan, self._name)
        measured = contribution.noised_mean(
            _centred_mean(self._task, values) for values in rewards.values()
        )
        noise = plan.statistic_variance**0.5 / plan.statistic_norm_bound
        noise_std = noise / float(plan.expected_batch(self._name))
        weighting, before = plan.weighting, self._baseline
        weight = adaptive_weight(weighting, gain(weighting, before, measured))
        self._baseline = updated(weighting, before, measured, noise_std)
        _store_baseline(self._folder / _BASELINE, self._baseline)
        return weight

    def _add_gradients(
        self,
        contribution: Contribution,
        drawn: Sequence[str],
        groups: Mapping[str, list[Group]],
        rewards: Mapping[str, list[NDArray[np.float64]]],
    ) -> set[str]:
        """Add every drawn unit's gradient; returns the units that failed."""
        scale = self._task.scale_rewards
        scored = [
            [
                ScoredGroup(group, group_advantages(values, scale))
                for group, values in zip(groups[unit], rewards[unit], strict=True)
            ]
            for unit in drawn
        ]
        left = list(zip(drawn, scored, strict=True))
        done = self._add_until_failure(contribution, left)
        failed = set()
        for unit, own in left[done:]:
            # One of them is to blame, and its mates must not suffer for it.
            if not self._add_until_failure(contribution, [(unit, own)]):
                contribution.add(unit, None)
                failed.add(unit)
        return failed

    def _add_until_failure(
        self,
        contribution: Contribution,
        chosen: Sequence[tuple[str, Sequence[ScoredGroup]]],
    ) -> int:
        """Add units' gradients in order; returns how many came before a failure."""
        computing = UnitGradients(self._policy, self._task.gradient)
        gradients = computing.compute([groups for _, groups in chosen])
        for done, (unit, _) in enumerate(chosen):
            try:
                vector = next(gradients)
            except FgrpoError:
                # The model cannot be differentiated at all, whatever was drawn.
                raise
            except Exception as error:
                self._note_failure("gradient", error)
                return done
            contribution.add(unit, vector)
        return len(chosen)

    def _note_failure(self, where: str, error: Exception) -> None:
        """Keep the kind of a failure for the operator, in the private folder."""
        values = {"failure": where, "kind": type(error).__name__}
        note(self._folder / "metrics.jsonl", values)


_BASELINE = "baseline.json"


def _below_end(progress: Progress, total: int) -> Callable[[int], None]:
    """Tells of the prompts that are done, all but the end."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done < total:
            progress(done, total)

    return advance


def _centred_mean(task: Task, values: Sequence[NDArray[np.float64]]) -> float:
    """A unit's mean reward over all its prompts, in [-1, 1]; 0 for one that failed.

    One number a unit: a sum over its prompts would pass the bound of the statistic.
    """
    flat = [task.rewards.centred(value).mean() for value in values]
    return float(np.mean(flat)) if flat else 0.0


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
