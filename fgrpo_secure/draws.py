"""One draw of a client: its units' completions, rewards and gradients.

All of it is private, and nothing that goes wrong with one unit decides anything but
that unit's own part: it counts as zeros, its mates as if it had not been there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgrpo_secure.errors import FgrpoError
from fgrpo_secure.grpo.gradient import ScoredGroup, UnitGradients
from fgrpo_secure.grpo.loss import group_advantages
from fgrpo_secure.grpo.packing import Group
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.grpo.rollout import generate
from fgrpo_secure.task import Task, score
from privacy.contribution import Contribution

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Draw:
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


class Draws:
    """Makes a client's draws with the model as it stands.

    Args:
        task: what the client learns from.
        policy: the model.
        note_failure: called with where a unit failed and the error; what it keeps is
            for the client's operator alone.
        progress: called with the prompts done and the prompts drawn, which are
            private, and once a draw with two equal numbers, at the end.
    """

    def __init__(
        self,
        task: Task,
        policy: Policy,
        note_failure: Callable[[str, Exception], None],
        progress: Progress | None,
    ) -> None:
        self._task = task
        self._policy = policy
        self._note_failure = note_failure
        self._progress = progress

    def make(self, contribution: Contribution) -> Draw:
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
        return Draw(drawn, rewards, scored, failed)

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
        flat = [prompt for unit in chosen for prompt in prompts[unit]]
        try:
            numbers = [
                contribution.uniforms(unit, len(prompts[unit]) * each).reshape(shape)
                for unit in chosen
            ]
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

    def centred_means(self, draw: Draw) -> Iterator[float]:
        """Each drawn unit's mean reward, in [-1, 1]."""
        for unit in draw.units:
            yield _centred_mean(self._task, draw.rewards[unit])

    def keep_behaviour(self, draw: Draw) -> None:
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

    def _keep_behaviour_of(self, draw: Draw, chosen: Sequence[str]) -> bool:
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

    def add_gradients(self, contribution: Contribution, draw: Draw) -> None:
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
