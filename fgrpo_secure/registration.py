"""From a configuration to the registered plan: sizes in, noise out.

The target (epsilon, delta) is stated and the noise is derived. Everything that changes
what is learnt goes into the recipe's digest, so that parties which would learn
differently cannot finish a round together.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from fgrpo_secure.config import RunConfig
from fgrpo_secure.errors import ConfigurationError, said_by_kernel
from fgrpo_secure.grpo.loss import check_settings
from privacy.calibration import STATISTIC_NORM_BOUND, calibrate
from privacy.cohorts import split_cohorts
from privacy.errors import PlanMismatchError, WrappingSumError
from privacy.plan import (
    MAX_CLIENTS,
    MIN_NOISE_SHARE_STD,
    NO_PROMISE,
    ClientTerms,
    Plan,
    Weighting,
    check_cohort,
    too_many_clients,
)
from privacy.wire import Json, canonical_json

# Grid steps of a clipped gradient where the modulus has room for as many. With 32 bits
# it has, for up to 64,000 units in a sum; with fewer bits the grid is coarser.
NORM_BOUND = 2**15
# Rounding a vector moves it by about sqrt(d / 12) grid steps. More than this part of a
# clipped gradient's squared length is refused: few bits must not quietly cost learning.
MOST_ROUNDING = Fraction(1, 100)

_MODEL_FILES = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt"})


def cohort_names(config: RunConfig) -> tuple[tuple[str, ...], ...]:
    """The clients of each cohort, as every party works them out.

    Raises:
        ConfigurationError: more clients than one cohort may have, and no `cohort_size`.
        PlanMismatchError: a cohort would be too small.
    """
    names = tuple(client.name for client in config.client)
    size, least = config.federation.cohort_size, config.federation.min_survivors
    if size is not None and len(names) > size:
        return split_cohorts(names, cohort_size=size, least=least)
    if len(names) > MAX_CLIENTS:
        what, _ = said_by_kernel(PlanMismatchError(too_many_clients(len(names))), "")
        raise ConfigurationError(
            what,
            f"Set [federation] cohort_size to {MAX_CLIENTS} or less: each cohort is a "
            "whole protocol with its own noise, and their sums are added.",
        )
    return (names,)


def register(config: RunConfig, sizes: Mapping[str, int], dimension: int) -> Plan:
    """The plan of a run whose clients are one cohort; see `register_cohorts`."""
    (plan,) = register_cohorts(config, sizes, dimension)
    return plan


def register_cohorts(
    config: RunConfig, sizes: Mapping[str, int], dimension: int
) -> tuple[Plan, ...]:
    """Make the plans of a run, one a cohort, their noise calibrated to the target.

    They have the same terms, but for their clients: every cohort's sum carries all of
    the noise by itself, made for the client with the largest rate of all cohorts.

    Args:
        config: the run's configuration.
        sizes: public number of units of each client.
        dimension: trained numbers of the adapter.

    Returns:
        The plans; equal inputs give equal digests on every machine.

    Raises:
        ConfigurationError: the learner's settings would couple units, or the modulus is
            too small for the sums.
        PlanMismatchError: the terms cannot carry a guarantee.
        RefusalError: no noise meets the target.
    """
    check_settings(config.grpo.model_dump())
    privacy, federation = config.privacy, config.federation
    cohorts = cohort_names(config)
    for names in cohorts:
        check_cohort(
            list(names),
            min_survivors=federation.min_survivors,
            colluders=federation.colluders,
        )
    weighting = Weighting(
        rule=config.aggregation.rule,
        gain=config.aggregation.gain,
        temperature=Fraction(config.aggregation.temperature),
        baseline_decay=Fraction(config.aggregation.baseline_decay),
        max_weight_ratio=Fraction(config.aggregation.max_weight_ratio),
    )
    _check_draws(config, sizes)
    terms = _Terms(config, cohorts, sizes, dimension, weighting)
    noise = terms.noise(NORM_BOUND)
    for norm_bound in _norm_bounds(dimension):
        # What is calibrated for one grid is nearly that of another, and enough to
        # tell whether it fits.
        scaled = math.ceil(noise.gradient_variance * norm_bound**2 / NORM_BOUND**2)
        try:
            found = terms.plans(norm_bound, replace(noise, gradient_variance=scaled))
            if norm_bound == NORM_BOUND:
                return found
            return terms.plans(norm_bound, terms.noise(norm_bound))
        except WrappingSumError:
            continue
        except PlanMismatchError:
            if norm_bound == NORM_BOUND:
                raise
            # The finest grid that fits is too coarse for a client's share of the noise.
            break
    rotate = "" if privacy.rotation else "set rotation = true, "
    raise ConfigurationError(
        f"modulus_bits = {privacy.modulus_bits} has no room for the sums of this run, "
        f"unless gradients of {dimension:,} numbers are rounded so coarsely that it "
        f"moves them by {float(MOST_ROUNDING) ** 0.5:.0%} of their length, or that the "
        f"noise of a client is narrower than {MIN_NOISE_SHARE_STD} steps.",
        f"Under [privacy] raise modulus_bits, {rotate}or lower sampling_rate.",
    )


def _norm_bounds(dimension: int) -> Iterator[int]:
    """Bounds to try, the finest grid first, down to where rounding costs too much."""
    norm_bound = NORM_BOUND
    while norm_bound == NORM_BOUND or (
        Fraction(dimension, 12) <= MOST_ROUNDING * norm_bound**2
    ):
        yield norm_bound
        norm_bound //= 2


@dataclass(frozen=True, slots=True)
class _Terms:
    """All of the cohorts' plans but their grid and their noise."""

    config: RunConfig
    cohorts: tuple[tuple[str, ...], ...]
    sizes: Mapping[str, int]
    dimension: int
    weighting: Weighting

    def noise(self, norm_bound: int) -> RegisteredNoise:
        """The noise on a grid."""
        return registered_noise(
            self.config,
            with_statistic=self.weighting.needs_statistic,
            norm_bound=norm_bound,
        )

    def plans(self, norm_bound: int, noise: RegisteredNoise) -> tuple[Plan, ...]:
        """The plans with a grid and its noise, which all of them share."""
        return tuple(self._plan(names, norm_bound, noise) for names in self.cohorts)

    def _plan(
        self, names: Sequence[str], norm_bound: int, noise: RegisteredNoise
    ) -> Plan:
        privacy, federation = self.config.privacy, self.config.federation
        return Plan(
            unit=privacy.unit,
            max_prompts_per_unit=privacy.prompts_per_unit,
            trust=privacy.trust,
            epsilon=_decimal(privacy.epsilon),
            delta=_decimal(privacy.delta),
            rounds=privacy.rounds,
            local_steps=privacy.local_steps,
            inner_steps=privacy.inner_steps,
            clip_norm=Fraction(privacy.clip_norm),
            norm_bound=norm_bound,
            noise_variance=noise.gradient_variance,
            statistic_norm_bound=noise.statistic_norm_bound,
            statistic_variance=noise.statistic_variance,
            modulus_bits=privacy.modulus_bits,
            rotation=privacy.rotation,
            dimension=self.dimension,
            min_survivors=federation.min_survivors,
            colluders=federation.colluders,
            clients=tuple(
                ClientTerms(name, self.sizes[name], self.config.sampling_rate(name))
                for name in names
            ),
            weighting=self.weighting,
            recipe=recipe_digest(self.config),
        )


def _check_draws(config: RunConfig, sizes: Mapping[str, int]) -> None:
    """Refuse a rate at which a client would mostly draw nothing and be charged for it.

    A size that was counted is not said, and nothing that is worked out from it.

    Raises:
        ConfigurationError: a client would draw less than one unit a round on average.
    """
    for client in config.client:
        rate = client.sampling_rate or config.privacy.sampling_rate
        if Fraction(rate) * sizes[client.name] >= 1:
            continue
        where = "[privacy]" if client.sampling_rate is None else "its"
        fix = f"Raise {where} sampling_rate until {_SENSIBLE_BATCH} or more are drawn"
        if client.units is not None:
            better = min(1.0, _SENSIBLE_BATCH / client.units)
            fix = (
                f"Raise {where} sampling_rate: {better:.2g} draws "
                f"{better * client.units:.0f} of the declared units"
            )
        raise ConfigurationError(
            f"At sampling_rate = {rate} client {client.name} would draw less than one "
            "unit a round on average: most rounds would be charged for noise alone.",
            f"{fix} a round.",
        )


# Units a round of which a client begins to learn more than noise.
_SENSIBLE_BATCH = 32


@dataclass(frozen=True, slots=True)
class RegisteredNoise:
    """What a plan registers of its noise, as `Plan` names it."""

    gradient_variance: int
    statistic_variance: int
    statistic_norm_bound: int


def registered_noise(
    config: RunConfig, *, with_statistic: bool, norm_bound: int = NORM_BOUND
) -> RegisteredNoise:
    """The noise that a target asks for; none where epsilon is infinite.

    It is made for the client with the largest sampling rate; the others stay below.

    Raises:
        RefusalError: no noise meets the target.
    """
    privacy = config.privacy
    if privacy.epsilon.is_infinite():
        return RegisteredNoise(0, 0, STATISTIC_NORM_BOUND if with_statistic else 0)
    found = calibrate(
        epsilon=float(privacy.epsilon),
        delta=float(privacy.delta),
        sampling_rate=max(config.sampling_rate(c.name) for c in config.client),
        rounds=privacy.rounds * privacy.local_steps,
        inner_steps=privacy.inner_steps,
        norm_bound=norm_bound,
        statistic_multiplier=(
            Fraction(privacy.statistic_multiplier) if with_statistic else None
        ),
    )
    return RegisteredNoise(
        found.total_variance, found.statistic_variance, found.statistic_norm_bound
    )


def recipe_digest(config: RunConfig) -> str:
    """Hex SHA-256 of everything that decides what is learnt, data aside."""
    recipe: dict[str, Json] = {
        "base": base_fingerprint(config.model.base),
        "model": _texts(config.model.model_dump(exclude={"base"})),
        "grpo": _texts(config.grpo.model_dump()),
        "server": _texts(config.server.model_dump()),
        "rewards": {
            client.name: {
                "functions": [spec.rpartition(":")[2] for spec in client.reward],
                "ranges": _texts(client.reward_range),
                "weights": _texts(client.reward_weights),
            }
            for client in config.client
        },
    }
    return hashlib.sha256(canonical_json(recipe)).hexdigest()


def base_fingerprint(base: str) -> str:
    """What names the base model: a digest of its files, or its name on the hub.

    Tokenizer, chat template and generation settings are among them: parties that differ
    in one of these would learn differently.
    """
    folder = Path(base)
    if not folder.is_dir():
        return base
    state = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _MODEL_FILES:
            with path.open("rb") as handle:
                inner = hashlib.file_digest(handle, "sha256").hexdigest()
            state.update(f"{path.name} {inner}\n".encode())
    return state.hexdigest()


def _decimal(value: Decimal) -> str:
    """The one text of a decimal: no exponent, no trailing zeros."""
    if value.is_infinite():
        return NO_PROMISE
    return format(value.normalize(), "f")


def _texts(value: object) -> Json:
    """Floats as their shortest round-trip text: digests take no floats."""
    if isinstance(value, Mapping):
        return {str(key): _texts(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_texts(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return repr(value)
