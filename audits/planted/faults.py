"""The bugs, each a few lines that stand in for lines of the mechanism.

A fault replaces attributes of the modules that a round goes through, while a `with`
block runs. The rest of the round stays the real one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np

from audits import canaries, rounds
from privacy import codec, events, statistic
from privacy import contribution as door
from privacy.crypto import KEY_BYTES, Keystream
from privacy.plan import WEIGHT_ONE, Plan
from privacy.randomness import Entropy, system_entropy

# What stands in for an attribute: where it is, its name, and its replacement.
Swap: TypeAlias = tuple[object, str, Any]

COMPLETIONS = 8
PROMPTS = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """One planted bug.

    Attributes:
        name: of the switch.
        bug: in words.
        check: the name of the check that sees it.
        swaps: makes the replacements, anew for each use.
    """

    name: str
    bug: str
    check: str
    swaps: Callable[[], list[Swap]]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The bug is there while the block runs, and gone after it."""
        with ExitStack() as stack:
            for place, name, replacement in self.swaps():
                stack.enter_context(patch.object(place, name, replacement))
            yield


def _share(variance: Callable[[Plan], int]) -> Callable[[], list[Swap]]:
    return lambda: [(Plan, "noise_share_variance", property(variance))]


def _clipped_to_twice_the_norm() -> list[Swap]:
    real = door.encode

    def encode(gradient: Any, *, scale: Any, norm_bound: int, weight: int) -> Any:  # noqa: ANN401
        return real(gradient, scale=2 * scale, norm_bound=2 * norm_bound, weight=weight)

    return [(door, "encode", encode)]


def _clipped_in_parts(parts: int) -> Callable[[], list[Swap]]:
    """The parts of a unit's gradient, here all alike, are clipped and then summed."""

    def swaps() -> list[Swap]:
        real = door.encode

        def encode(gradient: Any, **terms: Any) -> Any:  # noqa: ANN401
            return sum(real(gradient / parts, **terms) for _ in range(parts))

        return [(door, "encode", encode)]

    return swaps


def _weight_of_two() -> list[Swap]:
    real = door.encode

    def encode(gradient: Any, **terms: Any) -> Any:  # noqa: ANN401
        return real(gradient, **(terms | {"weight": 2 * WEIGHT_ONE}))

    return [(door, "encode", encode), (codec, "check_weight", lambda _: None)]


def _charging_with(entropy_of: Callable[[Plan, str], Entropy]) -> list[Swap]:
    real = rounds.charge

    def charge(plan: Plan, name: str, **terms: Any) -> Any:  # noqa: ANN401
        return real(plan, name, **(terms | {"entropy": entropy_of(plan, name)}))

    return [(rounds, "charge", charge)]


def _one_key_for_all_rounds() -> list[Swap]:
    keys: dict[str, bytes] = {}

    def repeated(_: Plan, name: str) -> Entropy:
        key = keys.setdefault(name, system_entropy(KEY_BYTES))
        return Keystream(key).read

    return _charging_with(repeated)


def _one_key_for_all_clients() -> list[Swap]:
    keys: list[bytes] = []

    def shared(plan: Plan, name: str) -> Entropy:
        if name == plan.clients[0].name:
            keys.append(system_entropy(KEY_BYTES))
        return Keystream(keys[-1]).read

    return _charging_with(shared)


def _twice_the_rate() -> list[Swap]:
    real = door.poisson_draw
    return [
        (door, "poisson_draw", lambda ids, rate, stream: real(ids, 2 * rate, stream))
    ]


# The checks of local trust play this many releases a round.
LOCAL_STEPS = 3
INNER_STEPS = 2
_RELEASES = LOCAL_STEPS * INNER_STEPS


def _noise_at_the_end_alone() -> list[Swap]:
    real = door.discrete_gaussian
    calls = 0

    def noise(stream: Any, variance: int, count: int) -> Any:  # noqa: ANN401
        nonlocal calls
        calls += 1
        if calls % _RELEASES:
            return np.zeros(count, np.int64)
        return real(stream, variance, count)

    return [(door, "discrete_gaussian", noise)]


def _one_noise_for_all_steps() -> list[Swap]:
    real = door.discrete_gaussian
    calls = 0
    kept: Any = None

    def noise(stream: Any, variance: int, count: int) -> Any:  # noqa: ANN401
        nonlocal calls, kept
        if calls % _RELEASES == 0:
            kept = real(stream, variance, count)
        calls += 1
        return kept

    return [(door, "discrete_gaussian", noise)]


def _priced_as_one_step() -> list[Swap]:
    """Calibration and ledger forget the inner steps; one alone would be refused."""
    calibrate, priced = canaries.calibrate, events.draw_event
    return [
        (canaries, "calibrate", lambda **t: calibrate(**(t | {"inner_steps": 1}))),
        (events, "draw_event", lambda **t: priced(**(t | {"inner_steps": 1}))),
    ]


def _quarter_of_the_statistics_noise() -> list[Swap]:
    real = statistic.discrete_gaussian
    return [
        (
            statistic,
            "discrete_gaussian",
            lambda stream, variance, count: real(stream, variance // 4, count),
        )
    ]


def _rewards_summed_over_completions() -> list[Swap]:
    real = statistic._to_grid
    return [
        (
            statistic,
            "_to_grid",
            lambda value, norm_bound: COMPLETIONS * real(value, norm_bound),
        )
    ]


SOUND = Fault("sound", "no bug", "", list)

FAULTS = (
    Fault(
        "shares-over-all-clients",
        "noise shares sized for all clients of the cohort, not the honest survivors",
        "sum",
        _share(lambda plan: plan.noise_variance // len(plan.clients)),
    ),
    Fault(
        "quarter-variance",
        "noise of a quarter of the variance",
        "sum",
        _share(lambda plan: plan.noise_variance // (4 * plan.honest_shares)),
    ),
    Fault(
        "deviation-over-shares",
        "the shares divide the noise's standard deviation, not its variance",
        "sum",
        _share(lambda plan: plan.noise_variance // plan.honest_shares**2),
    ),
    Fault(
        "clip-doubled",
        "units clipped to twice the norm",
        "sum",
        _clipped_to_twice_the_norm,
    ),
    Fault(
        "completions-clipped",
        f"{COMPLETIONS} completions clipped one by one, and not their unit",
        "sum",
        _clipped_in_parts(COMPLETIONS),
    ),
    Fault(
        "prompts-clipped",
        f"a unit's {PROMPTS} prompts clipped one by one, and not the unit",
        "sum",
        _clipped_in_parts(PROMPTS),
    ),
    Fault("weight-above-one", "a weight of 2", "sum", _weight_of_two),
    Fault(
        "noise-key-of-all-rounds",
        "a client's noise key used in every round",
        "two rounds",
        _one_key_for_all_rounds,
    ),
    Fault(
        "noise-key-of-all-clients",
        "one noise key for all clients of a round",
        "own noise",
        _one_key_for_all_clients,
    ),
    Fault(
        "draw-rate-doubled", "units drawn at twice the rate", "draw", _twice_the_rate
    ),
    Fault(
        "statistic-quarter-variance",
        "noise on the mean reward of a quarter of the variance",
        "joint",
        _quarter_of_the_statistics_noise,
    ),
    Fault(
        "statistic-sensitivity",
        f"rewards summed over {COMPLETIONS} completions, not their mean",
        "joint",
        _rewards_summed_over_completions,
    ),
    Fault(
        "local-quarter-variance",
        "local trust, releases with a quarter of the variance",
        "local",
        _share(lambda plan: math.ceil(plan.noise_variance / 4)),
    ),
    Fault(
        "local-noise-at-the-end",
        "local trust, noise on the final update only",
        "local",
        _noise_at_the_end_alone,
    ),
    Fault(
        "local-one-noise",
        "local trust, one noise for all steps of a round",
        "alternating",
        _one_noise_for_all_steps,
    ),
    Fault(
        "local-inner-steps-as-one",
        "local trust, inner steps on one draw priced as one",
        "local",
        _priced_as_one_step,
    ),
)
