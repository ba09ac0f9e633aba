"""Everything that determines the guarantee, in one frozen value with a digest.

A plan holds integers, rationals and names; no float enters its digest. What it refuses
at construction can never run: there is no second place where these checks are made.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from privacy.crypto import Label, sha256
from privacy.errors import (
    MalformedMessageError,
    PlanMismatchError,
    WrappingSumError,
)
from privacy.packing import packed_bytes
from privacy.rotation import spread
from privacy.vectors import MAX_MODULUS_BITS, MAX_SQUARED_NORM
from privacy.wire import Json, canonical_json, parse_rational, rational

PLAN_FORMAT = "fgrpo-secure/plan/1"

# The one party that is not a client; no client bears its name.
SERVER = "server"

# Who has to be trusted with the noise: the other clients for their shares, or nobody.
DISTRIBUTED = "distributed"
LOCAL = "local"

# Weights and batch shares are integers over this: w = k / WEIGHT_ONE, 0 < k <= it.
WEIGHT_ONE = 2**16

# Each share must be this wide for the sum of shares to be the discrete Gaussian that
# the claim prices, to far below 1e-60 (Kairouz, Liu and Steinke 2021).
MIN_NOISE_SHARE_STD = 4

MIN_CLIENTS = 3
MAX_CLIENTS = 200

# Up to here every product of the sampler is exact in int64.
MAX_NOISE_VARIANCE = 2**52

# The target of a plan that promises nothing: no noise, and a price to match.
NO_PROMISE = "infinity"

# Ledgers record epsilon rounded up to this many decimals.
EPSILON_DECIMALS = 6

# A sum that wraps is lost; a plan must make that less likely than this, per round.
WRAP_FAILURE = 2.0**-40

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DECIMAL = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]*[1-9])?")


@dataclass(frozen=True, slots=True)
class ClientTerms:
    """What the plan says of one client.

    Attributes:
        name: letters, digits and `._-`, at most 63 characters.
        units: the public size of its data set, the N in the expected batch q * N.
        sampling_rate: Poisson probability q that one of its units is drawn. A large
            client may have a lower one than a small client, and then a smaller
            epsilon.
    """

    name: str
    units: int
    sampling_rate: Fraction


@dataclass(frozen=True, slots=True)
class Weighting:
    """The constants of adaptive aggregation.

    Attributes:
        rule: "fgrpo" (relative performance gain), "uniform" (every client alike) or
            "size" (by public size).
        gain: how the gain is measured: "relative", "zscore" or "logit". It means
            nothing for the other rules.
        temperature: tau of exp(gain / tau); negative favours those who fall behind.
        baseline_decay: the moving average's memory, 0 <= decay < 1.
        max_weight_ratio: the largest weight over the smallest, >= 1.
    """

    rule: str
    gain: str
    temperature: Fraction
    baseline_decay: Fraction
    max_weight_ratio: Fraction

    @property
    def needs_statistic(self) -> bool:
        """Whether clients must release the noised mean reward to themselves."""
        return self.rule == "fgrpo"


@dataclass(frozen=True, slots=True)
class Plan:
    """The registered terms of one federated run.

    Attributes:
        unit: what the guarantee protects; "prompt" is the distinct prompt.
        max_prompts_per_unit: how many prompts of one unit may count.
        trust: "distributed": the sum of the clients' noise shares protects. "local":
            every release of every client carries all of the noise.
        epsilon: target, decimal text; "infinity" for a baseline that adds no noise
            and promises nothing.
        delta: target, decimal text.
        rounds: rounds registered; every one of them is charged when it begins.
        local_steps: draws that a client makes in one round, each an event of its own;
            1 in distributed trust.
        inner_steps: noised releases on one draw, which are one event together; 1 in
            distributed trust.
        clip_norm: C, gradient units.
        norm_bound: D, grid steps; the grid has D / C steps per gradient unit.
        noise_variance: variance of the noise that protects, grid steps squared: in the
            sum, or in local trust in each release. 0 only where epsilon is "infinity".
        statistic_norm_bound: the same bound for the reward statistic; 0 means that
            there is no statistic.
        statistic_variance: its noise variance; 0 without a statistic or a promise.
        modulus_bits: residues are modulo two to this power, and travel in as many bits.
        rotation: whether vectors are sent after a random rotation, drawn for each
            round, so that fewer bits hold their sum.
        dimension: d, trained numbers.
        min_survivors: fewer than these, and the round is not opened.
        colluders: clients that may show or omit their noise share, other than oneself.
        clients: the cohort, sorted by name.
        weighting: constants of adaptive aggregation.
        recipe: hex SHA-256 of the learning settings, so that parties which would learn
            differently cannot finish a round. The kernel does not look inside.

    Raises:
        PlanMismatchError: when any term is out of its range, or the terms together
            cannot carry the guarantee (see `__post_init__`).
        WrappingSumError: a sum under these terms may not fit the modulus.
    """

    unit: str
    max_prompts_per_unit: int
    trust: str
    epsilon: str
    delta: str
    rounds: int
    local_steps: int
    inner_steps: int
    clip_norm: Fraction
    norm_bound: int
    noise_variance: int
    statistic_norm_bound: int
    statistic_variance: int
    modulus_bits: int
    rotation: bool
    dimension: int
    min_survivors: int
    colluders: int
    clients: tuple[ClientTerms, ...]
    weighting: Weighting
    recipe: str

    def __post_init__(self) -> None:
        """Refuse terms that cannot carry the guarantee."""
        check_cohort(
            [client.name for client in self.clients],
            min_survivors=self.min_survivors,
            colluders=self.colluders,
        )
        self._check_ranges()
        self._check_delta()
        self._check_noise()
        self._check_modulus()

    @property
    def promises_privacy(self) -> bool:
        """Whether the plan states a finite epsilon, and so has noise.

        Guarantee:
            It is true of every plan but one whose epsilon is "infinity", whose every
            charge a ledger prices at infinity.
        """
        return self.epsilon != NO_PROMISE

    @property
    def sampling_rate(self) -> Fraction:
        """The largest rate of any client: the noise is made for this, the worst one."""
        return max(client.sampling_rate for client in self.clients)

    @property
    def most_exposed(self) -> str:
        """The first client with the largest rate, whose epsilon is the claim."""
        worst = self.sampling_rate
        return next(c.name for c in self.clients if c.sampling_rate == worst)

    @property
    def is_local(self) -> bool:
        """Whether each release carries all the noise, whatever others do."""
        return self.trust == LOCAL

    @property
    def registered_charges(self) -> int:
        """Events that one client is charged over the whole run."""
        return self.rounds * self.local_steps

    @property
    def releases_per_round(self) -> int:
        """Noised vectors that a client's message of one round is the sum of."""
        return self.local_steps * self.inner_steps

    @property
    def scale(self) -> Fraction:
        """Grid steps per gradient unit."""
        return self.norm_bound / self.clip_norm

    @property
    def honest_shares(self) -> int:
        """How many noise shares the guarantee counts on.

        A client knows its own share, so that against the other clients one share never
        counts, even where nobody else colludes. In local trust a client counts on its
        own noise alone, which is all of it.
        """
        if self.is_local:
            return 1
        return self.min_survivors - max(1, self.colluders)

    @property
    def noise_share_variance(self) -> int:
        """Variance of the noise that one client adds to a release, grid steps squared.

        Guarantee:
            `honest_shares` of them sum to at least `noise_variance`.
        """
        return -(-self.noise_variance // self.honest_shares)

    @property
    def noise_multiplier(self) -> float:
        """Registered noise standard deviation over `norm_bound`."""
        return math.sqrt(self.noise_variance) / self.norm_bound

    @property
    def vector_length(self) -> int:
        """What a client sends: d coordinates and the exact weight coordinate."""
        return self.dimension + 1

    @property
    def bytes_up(self) -> int:
        """Bytes of one masked vector, without headers."""
        return packed_bytes(self.vector_length, self.modulus_bits)

    @property
    def weight_steps(self) -> int:
        """In how many parts of 1 the exact weight coordinate is sent.

        It is a power of two, WEIGHT_ONE at most, and small enough for the weights of
        all clients to fit the modulus together.
        """
        room = (1 << (self.modulus_bits - 1)) // (len(self.clients) + 1)
        return min(WEIGHT_ONE, 1 << max(0, room.bit_length() - 1))

    @property
    def threshold(self) -> int:
        """Shamir threshold of the whole cohort; a smaller roster has its own."""
        return threshold(len(self.clients), self.colluders)

    def expected_batch(self, name: str) -> Fraction:
        """The public expected number of units that a client draws at a time."""
        client = self.client(name)
        return client.sampling_rate * client.units

    @property
    def largest_batch(self) -> Fraction:
        """The largest expected batch of any client: what weights are stated against."""
        return max(self.expected_batch(client.name) for client in self.clients)

    def batch_share(self, name: str) -> int:
        """The expected batch over the largest one, as an integer over WEIGHT_ONE.

        It is at least 1, so that the smallest client still has a part in the divisor.
        """
        share = self.expected_batch(name) / self.largest_batch
        return max(1, math.floor(WEIGHT_ONE * share))

    def client(self, name: str) -> ClientTerms:
        """The terms of one client.

        Raises:
            PlanMismatchError: it is not in the plan.
        """
        for client in self.clients:
            if client.name == name:
                return client
        msg = f"client {name!r} is not in the plan"
        raise PlanMismatchError(msg)

    def to_json(self) -> dict[str, Json]:
        """The canonical JSON object of which the digest is taken."""
        return {
            "format": PLAN_FORMAT,
            "unit": self.unit,
            "adjacency": "add-or-remove-one-unit-at-one-client",
            "max_prompts_per_unit": self.max_prompts_per_unit,
            "trust": self.trust,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "rounds": self.rounds,
            "local_steps": self.local_steps,
            "inner_steps": self.inner_steps,
            "clip_norm": rational(self.clip_norm),
            "norm_bound": self.norm_bound,
            "noise_variance": str(self.noise_variance),
            "statistic_norm_bound": self.statistic_norm_bound,
            "statistic_variance": str(self.statistic_variance),
            "modulus_bits": self.modulus_bits,
            "rotation": self.rotation,
            "dimension": self.dimension,
            "min_survivors": self.min_survivors,
            "colluders": self.colluders,
            "clients": [
                {
                    "name": client.name,
                    "units": client.units,
                    "sampling_rate": rational(client.sampling_rate),
                }
                for client in self.clients
            ],
            "weighting": {
                "rule": self.weighting.rule,
                "gain": self.weighting.gain,
                "temperature": rational(self.weighting.temperature),
                "baseline_decay": rational(self.weighting.baseline_decay),
                "max_weight_ratio": rational(self.weighting.max_weight_ratio),
            },
            "recipe": self.recipe,
        }

    @staticmethod
    def from_json(value: Json) -> Plan:
        """Read what `to_json` writes, and nothing else.

        Raises:
            PlanMismatchError: another form, another version, or terms that a plan
                refuses.
        """
        try:
            plan = _parse(value)
        except (
            KeyError,
            TypeError,
            ValueError,
            OverflowError,
            MalformedMessageError,
        ):
            plan = None
        if plan is None or plan.to_json() != value:
            msg = f"not a plan in the format {PLAN_FORMAT}"
            raise PlanMismatchError(msg)
        return plan

    @property
    def digest_bytes(self) -> bytes:
        """SHA-256 of the canonical JSON, 32 bytes."""
        return sha256(Label.PLAN, canonical_json(self.to_json()))

    @property
    def digest(self) -> str:
        """Hex of `digest_bytes`: what people compare."""
        return self.digest_bytes.hex()

    def _check_ranges(self) -> None:
        _require(self.unit != "", "unit must name what is protected")
        _require(self.max_prompts_per_unit >= 1, "max_prompts_per_unit must be >= 1")
        _require(
            self.unit != "prompt" or self.max_prompts_per_unit == 1,
            "with unit 'prompt' max_prompts_per_unit must be 1: a prompt is one unit",
        )
        self._check_trust()
        _require(self.rounds >= 1, "rounds must be at least 1")
        _require(self.clip_norm > 0, "clip_norm must be above 0")
        _require(self.norm_bound >= 1, "norm_bound must be at least 1")
        _require(self.dimension >= 1, "dimension must be at least 1")
        _require(
            self.dimension * self.norm_bound**2 < MAX_SQUARED_NORM,
            "dimension * norm_bound**2 must stay below 2**62: lower norm_bound",
        )
        for text, name in ((self.epsilon, "epsilon"), (self.delta, "delta")):
            _require(
                (_DECIMAL.fullmatch(text) is not None and float(text) > 0)
                or (name == "epsilon" and text == NO_PROMISE),
                f"{name} must be a decimal above 0",
            )
        _require(
            len(self.epsilon.partition(".")[2]) <= EPSILON_DECIMALS,
            f"epsilon has more decimals than ledgers record; give at most "
            f"{EPSILON_DECIMALS}",
        )
        _require(
            _DIGEST.fullmatch(self.recipe) is not None, "recipe must be a hex SHA-256"
        )
        for client in self.clients:
            _require(client.units >= 1, f"client {client.name!r} has no units")
            _require(
                0 < client.sampling_rate <= 1,
                f"sampling_rate of client {client.name!r} must be in (0, 1]",
            )
        weighting = self.weighting
        _require(
            weighting.rule in {"fgrpo", "uniform", "size"},
            f"aggregation rule {weighting.rule!r} is not fgrpo, uniform or size",
        )
        _require(
            weighting.gain in {"relative", "zscore", "logit"},
            f"aggregation gain {weighting.gain!r} is not relative, zscore or logit",
        )
        _require(
            weighting.temperature != 0,
            "aggregation temperature is 0; use one above it, or one below it to favour "
            "clients that fall behind",
        )
        _require(0 <= weighting.baseline_decay < 1, "baseline_decay must be in [0, 1)")
        _require(weighting.max_weight_ratio >= 1, "max_weight_ratio must be >= 1")

    def _check_trust(self) -> None:
        """Refuse steps that no noise would protect one by one."""
        _require(
            self.trust in {DISTRIBUTED, LOCAL},
            f"trust = {self.trust!r} is not 'distributed' or 'local'",
        )
        _require(
            self.local_steps >= 1 and self.inner_steps >= 1,
            "local_steps and inner_steps must be at least 1",
        )
        _require(
            self.is_local or self.local_steps == self.inner_steps == 1,
            "local_steps and inner_steps above 1 need trust = 'local', where each step "
            "carries all of its noise: noise on the sum of several steps alone does "
            "not cover what one unit of an early step changes in the later ones",
        )

    def _check_delta(self) -> None:
        largest = max(client.units for client in self.clients)
        _require(
            Fraction(self.delta) <= Fraction(1, 10 * largest),
            f"delta = {self.delta} is too large for {largest} units, since a mechanism "
            "that publishes one unit outright could pass; use at most 1/(10 N), for "
            f"example 1e-{len(str(10 * largest - 1))}",
        )

    def _check_noise(self) -> None:
        _require(
            self.honest_shares >= 1,
            f"min_survivors = {self.min_survivors} with colluders = {self.colluders} "
            "leaves no honest noise share, since a client knows its own; raise "
            "min_survivors above colluders, and to 2 or more",
        )
        if not self.promises_privacy:
            self._check_no_noise()
            return
        _require(
            self.noise_share_variance >= MIN_NOISE_SHARE_STD**2,
            "the noise share is narrower than 4 grid steps: raise norm_bound",
        )
        _require(
            max(self.noise_share_variance, self.statistic_variance)
            <= MAX_NOISE_VARIANCE,
            "a noise variance above 2**52 grid steps squared: lower norm_bound",
        )
        if self.weighting.needs_statistic:
            _require(
                self.statistic_norm_bound >= 1
                and self.statistic_variance >= MIN_NOISE_SHARE_STD**2,
                "rule 'fgrpo' needs a statistic with its own noise",
            )
        else:
            _require(
                self.statistic_variance == 0 and self.statistic_norm_bound == 0,
                "only rule 'fgrpo' releases a statistic",
            )

    def _check_no_noise(self) -> None:
        """A plan without a promise has no noise at all, rather than a little."""
        _require(
            self.noise_variance == 0 and self.statistic_variance == 0,
            "a plan with epsilon 'infinity' has no noise",
        )
        _require(
            (self.statistic_norm_bound >= 1) == self.weighting.needs_statistic,
            "only rule 'fgrpo' has a statistic, and it needs one",
        )

    def _check_modulus(self) -> None:
        _require(
            1 <= self.modulus_bits <= MAX_MODULUS_BITS, "modulus_bits must be 1 to 32"
        )
        level, half = wrap_level(self), 2 ** (self.modulus_bits - 1)
        if level >= half:
            msg = (
                f"the sum can wrap: it may reach {level} of the {half} that "
                f"{self.modulus_bits} bits hold; lower the sampling rate or "
                "norm_bound, raise modulus_bits, or turn on the rotation"
            )
            raise WrappingSumError(msg)


def check_cohort(names: list[str], *, min_survivors: int, colluders: int) -> None:
    """Refuse a cohort for which secure aggregation has no safe threshold.

    Raises:
        PlanMismatchError: fewer than 3 or more than 200 clients, a name that is not
            unique or not plain, or a threshold that cannot be met.
    """
    count = len(names)
    _require(
        count >= MIN_CLIENTS,
        f"{count} clients, and secure aggregation needs {MIN_CLIENTS}: with two, each "
        "knows the other's part of the sum; add clients",
    )
    _require(count <= MAX_CLIENTS, too_many_clients(count))
    _require(len(set(names)) == count, "two clients have one name; give each its own")
    _require(names == sorted(names), "clients must be sorted")
    for name in names:
        _require(
            _NAME.fullmatch(name) is not None and name != SERVER,
            "a client's name has letters, digits and ._- only, begins with one of the "
            f"first two, and is not 'server'; rename {name!r}",
        )
    _require(
        0 <= colluders < count,
        f"colluders is {colluders} of {count} clients; set it to at most {count - 1}",
    )
    _require(
        min_survivors <= count,
        f"min_survivors is {min_survivors} of {count} clients; set it to at most "
        f"{count}",
    )
    _require(
        min_survivors >= 1,
        f"min_survivors is {min_survivors}; set it to 1 or more",
    )
    _require(
        threshold(count, colluders) <= count,
        f"{count} clients with {colluders} colluders have no threshold t: "
        f"2t > n + colluders needs t > n; set colluders to at most {count - 1}",
    )


def too_many_clients(count: int) -> str:
    """Why one cohort does not hold so many clients, and what to do, in words."""
    return (
        f"{count} clients: one cohort holds at most {MAX_CLIENTS}, where each shares a "
        "mask with every other. With a mask for a few neighbours only, a malicious "
        "server that says who dropped out cuts some honest clients off from the rest "
        "with a few colluders, and opens their sum alone; use several cohorts"
    )


def threshold(count: int, colluders: int) -> int:
    """The Shamir threshold t of a roster of `count` clients.

    Guarantee:
        `2 * t > count + colluders`: a malicious server cannot get t answers to each
        of two questions, since an honest client answers one.
    """
    return (count + colluders) // 2 + 1


def wrap_level(plan: Plan) -> int:
    """A level that one coordinate of the sum passes with probability below 2**-40.

    Each client draws at most N units at a time, and by Bernstein's inequality in all
    of a round's draws rarely more than a little above q * N each; a unit adds at most
    `norm_bound` to a coordinate of each release, and after a rotation rarely more than
    a small part of it. The noise of all n clients' releases is subgaussian with their
    summed variance, rotated or not.

    Source: docs/protocol.md, "The modulus", has the proof.
    """
    log_clients = math.log(2 * len(plan.clients) / WRAP_FAILURE)
    units = 0
    for client in plan.clients:
        batch = float(plan.local_steps * plan.expected_batch(client.name))
        slack = log_clients / 3
        bound = batch + slack + math.sqrt(slack**2 + 2 * batch * log_clients)
        units += min(client.units * plan.local_steps, math.ceil(bound))
    vectors = units * plan.inner_steps
    # Half of what may fail is the drawing's. With a rotation the noise has a quarter.
    noise_failure = WRAP_FAILURE / (4 if plan.rotation else 2)
    # A weight made of a later draw's rewards may depend on the noise that moved the
    # model before it. Such clients' noises are bounded one by one, not in sum.
    apart = plan.weighting.needs_statistic and plan.local_steps > 1
    parts = len(plan.clients) if apart else 1
    releases = len(plan.clients) * plan.releases_per_round // parts
    variance = releases * plan.noise_share_variance
    log_coordinates = math.log(2 * plan.vector_length * parts / noise_failure)
    noise = parts * math.ceil(math.sqrt(2 * variance * log_coordinates))
    weights = len(plan.clients) * plan.weight_steps
    signal = vectors * plan.norm_bound
    if plan.rotation:
        # A vector that was shrunk until its rounding fits may itself be longer by all
        # of the rounding; and each client of local trust rounds once more at the end.
        longest = plan.norm_bound + math.sqrt(plan.dimension) / 2
        tries = plan.dimension * max(1, vectors)
        largest = longest * spread(plan.dimension, tries, WRAP_FAILURE / 4) + 1 / 2
        rotated = math.ceil(vectors * largest) + len(plan.clients)
        signal = min(signal + len(plan.clients), rotated)
    return max(signal + noise, weights)


def _parse(value: Any) -> Plan:  # noqa: ANN401
    weighting = value["weighting"]
    return Plan(
        unit=_text(value["unit"]),
        max_prompts_per_unit=_integer(value["max_prompts_per_unit"]),
        trust=_text(value["trust"]),
        epsilon=_text(value["epsilon"]),
        delta=_text(value["delta"]),
        rounds=_integer(value["rounds"]),
        local_steps=_integer(value["local_steps"]),
        inner_steps=_integer(value["inner_steps"]),
        clip_norm=parse_rational(_text(value["clip_norm"])),
        norm_bound=_integer(value["norm_bound"]),
        noise_variance=int(_text(value["noise_variance"])),
        statistic_norm_bound=_integer(value["statistic_norm_bound"]),
        statistic_variance=int(_text(value["statistic_variance"])),
        modulus_bits=_integer(value["modulus_bits"]),
        rotation=_truth(value["rotation"]),
        dimension=_integer(value["dimension"]),
        min_survivors=_integer(value["min_survivors"]),
        colluders=_integer(value["colluders"]),
        clients=tuple(
            ClientTerms(
                _text(client["name"]),
                _integer(client["units"]),
                parse_rational(_text(client["sampling_rate"])),
            )
            for client in value["clients"]
        ),
        weighting=Weighting(
            rule=_text(weighting["rule"]),
            gain=_text(weighting["gain"]),
            temperature=parse_rational(_text(weighting["temperature"])),
            baseline_decay=parse_rational(_text(weighting["baseline_decay"])),
            max_weight_ratio=parse_rational(_text(weighting["max_weight_ratio"])),
        ),
        recipe=_text(value["recipe"]),
    )


def _integer(value: Any) -> int:  # noqa: ANN401
    """An integer and no truth value, which Python counts as one."""
    if type(value) is not int:
        raise TypeError
    return value


def _truth(value: Any) -> bool:  # noqa: ANN401
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str):
        raise TypeError
    return value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PlanMismatchError(message)
