"""What a client does with a round: draw, generate, score, weigh, differentiate, seal.

Everything between the charge and the noised vector is here. Nothing of it leaves but by
`privacy.contribution`, and nothing that goes wrong with one unit decides anything but
that unit's own part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgrpo_secure.errors import FgrpoError, ModelError, StateError
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
from privacy.vectors import FloatVector, NoisedVector

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
        adapter.from_bytes(self._policy.model, adapter_bytes)
        if self._plan.is_local:
            draws, weight = self._take_steps(contribution)
        else:
            draws, weight = self._take_one_gradient(contribution)
        vector, opening = contribution.seal()
        write_atomically(
            self._folder / f"opening-{history.round:05d}.key", opening, private=True
        )
        for draw in draws:
            scored = list(self._centred_means(draw))
            note(
                self._folder / "metrics.jsonl",
                {
                    "round": history.round,
                    "drawn": len(draw.units),
                    "failed": len(draw.failed),
                    "mean_reward": float(np.mean(scored)) if scored else 0.0,
                    "weight": weight,
                },
            )
        return vector

    def _take_one_gradient(self, contribution: Contribution) -> tuple[list[_Draw], int]:
        """Distributed trust: nothing is released before the sum of all clients."""
        draw = self._draw(contribution)
        weight = self._weight([self._measure(contribution, draw)])
        contribution.weigh(weight)
        self._add_gradients(contribution, draw)
        return [draw], weight

    def _take_steps(self, contribution: Contribution) -> tuple[list[_Draw], int]:
        """Local trust: DP-SGD on this client's own model, noised step by step.

        What the model moves by is the noised release, so that the next step's draw,
        completions and gradients see nothing else of this one's units.
        """
        plan, draws, measured = self._plan, [], []
        for _ in range(plan.local_steps):
            draw = self._draw(contribution)
            measured.append(self._measure(contribution, draw))
            if plan.inner_steps > 1:
                self._keep_behaviour(draw)
            for _ in range(plan.inner_steps):
                self._add_gradients(contribution, draw)
                self._move(contribution.release())
            draws.append(draw)
        weight = self._weight(measured)
        contribution.weigh(weight)
        return draws, weight

    def _move(self, mean_gradient: FloatVector) -> None:
        """One step down a noised gradient. Source: Abadi et al., CCS 2016, alg. 1.

        Raises:
            ModelError: the step leaves a tensor as it was, or goes out of all bounds.
                Both are read off what is released already.
        """
        model, rate = self._policy.model, self._task.local_learning_rate
        before = adapter.read_vector(model)
        with np.errstate(over="ignore"):
            after = (before - rate * mean_gradient).astype(np.float32)
        if not np.isfinite(after).all():
            raise ModelError(
                f"A client's own step of local_learning_rate = {rate:g} makes numbers "
                "that are not finite.",
                "Lower [grpo] local_learning_rate, and start a new run.",
            )
        stuck = adapter.unchanged_tensors(model, before, after)
        # Without noise a step may well be zero: where all rewards are equal.
        if stuck and self._plan.promises_privacy:
            raise ModelError(
                f"A client's own step of local_learning_rate = {rate:g} leaves the "
                f"adapter of {adapter.layers_of(stuck)} as it was.",
                "Raise [grpo] local_learning_rate, and start a new run.",
            )
        adapter.write_vector(model, after)

    def _draw(self, contribution: Contribution) -> _Draw:
        """Draw units, generate for them with the present model, and score them."""
        drawn = contribution.draw(list(self._task.units))
        groups, failed = self._generate(contribution, drawn)
        rewards = {unit: self._score(unit, groups[unit]) for unit in drawn}
        scale = self._task.scale_rewards
        scored = {
            unit: [
                ScoredGroup(group, group_advantages(values, scale))
                for group, values in zip(groups[unit], rewards[unit], strict=True)
            ]
            for unit in drawn
        }
        return _Draw(drawn, rewards, scored, failed)

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

    def _measure(self, contribution: Contribution, draw: _Draw) -> float | None:
        """The noised mean reward of a draw; None where the plan has none."""
        if not self._plan.weighting.needs_statistic:
            return None
        return contribution.noised_mean(self._centred_means(draw))

    def _centred_means(self, draw: _Draw) -> Iterator[float]:
        """Each drawn unit's mean reward, in [-1, 1]."""
        for unit in draw.units:
            yield _centred_mean(self._task, draw.rewards[unit])

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

    def _keep_behaviour(self, draw: _Draw) -> None:
        """Remember how likely the model that generated found its completions.

        The steps to come on this draw move the model away from it, and the ratio of the
        two is what their loss clips.
        """
        left = [unit for unit in draw.units if unit not in draw.failed]
        if self._keep_behaviour_of(draw, left):
            return
        for unit in left:
            # One of them is to blame, and its mates must not suffer for it.
            if not self._keep_behaviour_of(draw, [unit]):
                draw.failed.add(unit)

    def _keep_behaviour_of(self, draw: _Draw, chosen: Sequence[str]) -> bool:
        """Do so for some units; false where anything failed, and nothing is kept."""
        computing = UnitGradients(self._policy, self._task.gradient)
        try:
            found = computing.behaviour_logps([draw.scored[unit] for unit in chosen])
        except FgrpoError:
            # The model cannot be evaluated at all, whatever was drawn.
            raise
        except Exception as error:
            self._note_failure("behaviour", error)
            return False
        for unit, logps in zip(chosen, found, strict=True):
            draw.scored[unit] = [
                ScoredGroup(item.group, item.advantages, own)
                for item, own in zip(draw.scored[unit], logps, strict=True)
            ]
        return True

    def _add_gradients(self, contribution: Contribution, draw: _Draw) -> None:
        """Add every drawn unit's gradient to one release; who fails counts as zeros."""
        left = [
            (unit, draw.scored[unit]) for unit in draw.units if unit not in draw.failed
        ]
        for unit in draw.failed:
            contribution.add(unit, None)
        done = self._add_until_failure(contribution, left)
        for unit, own in left[done:]:
            # One of them is to blame, and its mates must not suffer for it.
            if not self._add_until_failure(contribution, [(unit, own)]):
                contribution.add(unit, None)
                draw.failed.add(unit)

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


@dataclass(frozen=True, slots=True)
class _Draw:
    """One draw's units and what became of them; all of it private.

    Attributes:
        units: in the order of the draw.
        rewards: by unit, one array of shape (G,) a prompt.
        scored: by unit, its groups with their advantages.
        failed: units that count as zeros from here on.
    """

    units: Sequence[str]
    rewards: Mapping[str, list[NDArray[np.float64]]]
    scored: dict[str, list[ScoredGroup]]
    failed: set[str]


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
