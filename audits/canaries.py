"""White-box gradient canaries through the real round: how much does a sum tell?

Every coordinate is one canary: a unit whose gradient is the whole clip norm in that
coordinate, present with probability 1/2. The canaries go through the real charge, clip,
noise, masks, sum and unmasking of `min_survivors` clients. The attacker sees the sum,
knows the shares of the colluders (of one other client at least), subtracts them, and
guesses for every canary whether it was there.

How often the guess is right bounds epsilon from below: Clopper and Pearson on both
error rates, turned into the mu of Gaussian differential privacy. A bound above the
claim refutes the claim; one far below it means that the attack or the mechanism is not
what it should be.

Source: Nasr et al., Tight auditing of differentially private machine learning, USENIX
Security 2023; Dong, Roth and Su, Gaussian differential privacy, JRSS-B 2022.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import beta, norm

from privacy.calibration import calibrate
from privacy.contribution import charge
from privacy.crypto import KEY_BYTES, Label, SigningKey, sha256
from privacy.ledger import ClientOpened, Joined, Ledger, Role
from privacy.plan import SERVER, WEIGHT_ONE, ClientTerms, Plan, Weighting
from privacy.randomness import RandomStream, system_entropy
from privacy.secagg import client as client_side
from privacy.secagg import server as server_side
from privacy.secagg.terms import RoundTerms
from privacy.vectors import IntVector, NoisedVector, from_residues

CANARIES = 1000
RELEASES = 10
CONFIDENCE = 0.95
# A sound mechanism gives a bound between this part of the claim and the claim.
WARN_BELOW = 0.7

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What the attack found.

    Attributes:
        epsilon_claimed: the target that the noise was calibrated to.
        epsilon_lower_bound: at least this much is lost, with the confidence below.
        delta: of both.
        scores: guesses made.
        confidence: of the bound.
    """

    epsilon_claimed: float
    epsilon_lower_bound: float
    delta: float
    scores: int
    confidence: float = CONFIDENCE

    @property
    def refuted(self) -> bool:
        """Whether more is lost than is claimed."""
        return self.epsilon_lower_bound > self.epsilon_claimed

    @property
    def weak(self) -> bool:
        """Whether the attack falls short of what a sound mechanism would show."""
        return self.epsilon_lower_bound < WARN_BELOW * self.epsilon_claimed


def audit_plan(
    *,
    epsilon: float,
    delta: float,
    clip_norm: Fraction,
    norm_bound: int,
    min_survivors: int,
    colluders: int,
    canaries: int = CANARIES,
) -> Plan:
    """The plan of one release at sampling rate 1, its noise made for the whole target.

    At small rates this attack reads a fraction of the claim whatever the mechanism
    does, so the draw is left out here and tested apart.
    """
    noise = calibrate(
        epsilon=epsilon,
        delta=delta,
        sampling_rate=Fraction(1),
        rounds=1,
        norm_bound=norm_bound,
        statistic_multiplier=None,
    )
    count = max(3, min_survivors)
    return Plan(
        unit="canary",
        max_prompts_per_unit=1,
        trust="distributed",
        epsilon=format(Decimal(repr(epsilon)).normalize(), "f"),
        delta=format(Decimal(repr(delta)).normalize(), "f"),
        rounds=1,
        sampling_rate=Fraction(1),
        inner_steps=1,
        clip_norm=clip_norm,
        norm_bound=norm_bound,
        noise_variance=noise.total_variance,
        statistic_norm_bound=0,
        statistic_variance=0,
        modulus_bits=32,
        dimension=canaries,
        min_survivors=count,
        colluders=colluders,
        clients=tuple(
            ClientTerms(f"client-{number}", canaries) for number in range(count)
        ),
        weighting=Weighting(
            "size", "relative", Fraction(1), Fraction(1, 2), Fraction(1)
        ),
        recipe=sha256(Label.PLAN, b"canaries").hex(),
    )


def attack(
    plan: Plan, releases: int = RELEASES, progress: Progress | None = None
) -> AuditResult:
    """Run the canaries and bound epsilon.

    Args:
        plan: as `audit_plan` makes it.
        releases: rounds to play, each with fresh parties; every one gives as many
            scores as the plan has dimensions.
        progress: called with a label, what is done and what there is to do.
    """
    present: list[NDArray[np.bool_]] = []
    scores: list[NDArray[np.float64]] = []
    for number in range(releases):
        there, seen = _release(plan)
        present.append(there)
        scores.append(seen)
        if progress is not None:
            progress("releases", number + 1, releases)
    delta = float(plan.delta)
    return AuditResult(
        epsilon_claimed=float(plan.epsilon),
        epsilon_lower_bound=lower_bound(
            np.concatenate(scores), np.concatenate(present), delta
        ),
        delta=delta,
        scores=releases * plan.dimension,
    )


def lower_bound(
    scores: NDArray[np.float64], present: NDArray[np.bool_], delta: float
) -> float:
    """Epsilon that a mechanism must have lost at least, given the guesses.

    Args:
        scores: shape (m,), about 1 where a canary was present and about 0 where not.
        present: shape (m,).
        delta: at which epsilon is asked for.
    """
    # The threshold is fixed before any score is seen, so that one test is made.
    guesses = scores > 0.5
    false_positive = _upper(int((guesses & ~present).sum()), int((~present).sum()))
    false_negative = _upper(int((~guesses & present).sum()), int(present.sum()))
    mu = float(norm.isf(false_positive) + norm.isf(false_negative))
    return epsilon_of_mu(mu, delta) if mu > 0 else 0.0


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Epsilon of mu-Gaussian differential privacy at a delta (Dong et al., eq. 6)."""

    def excess(epsilon: float) -> float:
        left = norm.cdf(mu / 2 - epsilon / mu)
        right = math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        return float(left - right) - delta

    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, 10 + 10 * mu**2 + 10 * mu))


def _upper(errors: int, trials: int) -> float:
    """Clopper and Pearson's upper bound; both sides share the error probability."""
    if errors >= trials:
        return 1.0
    return float(beta.ppf(1 - (1 - CONFIDENCE) / 2, errors + 1, trials - errors))


def _release(plan: Plan) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """One real round; returns which canaries were there, and the attacker's scores."""
    names = [client.name for client in plan.clients]
    target, *others = names
    coins = RandomStream(system_entropy).uint64(plan.dimension)
    there = (coins & np.uint64(1)).astype(bool)
    keys = {name: SigningKey(system_entropy(KEY_BYTES)) for name in (*names, SERVER)}
    with tempfile.TemporaryDirectory() as folder:
        vectors = {
            name: _vector(
                plan, name, keys, Path(folder), there if name == target else None
            )
            for name in names
        }
    total = _secure_sum(plan, keys, vectors)
    known = others[: max(1, plan.colluders)]
    for name in known:
        total = total - from_residues(vectors[name].residues, plan.modulus_bits)
    return there, total[:-1] / plan.norm_bound


def _vector(
    plan: Plan,
    name: str,
    keys: Mapping[str, SigningKey],
    folder: Path,
    canaries: NDArray[np.bool_] | None,
) -> NoisedVector:
    """One client's vector, by the only door there is."""
    path = folder / f"{name}.jsonl"
    with Ledger.open(path, keys[name], party=name, role=Role.CLIENT) as ledger:
        ledger.append(
            ClientOpened(
                run=system_entropy(16),
                software="fgrpo-secure canaries",
                plan=plan.to_json(),
                plan_digest=plan.digest_bytes,
                roster={who: key.verify_key.raw for who, key in keys.items()},
                data=system_entropy(16),
                cap_epsilon=Decimal(plan.epsilon),
                cap_delta=Decimal(plan.delta),
            )
        )
        ledger.append(Joined(1, 1, bytes(32), bytes(32)))
        contribution = charge(
            plan,
            name,
            round_number=1,
            attempt=1,
            ledger=ledger,
            entropy=system_entropy,
        )
        units = [] if canaries is None else [str(i) for i in np.flatnonzero(canaries)]
        drawn = contribution.draw(units)
        contribution.weigh(WEIGHT_ONE)
        for unit in drawn:
            gradient = np.zeros(plan.dimension)
            # Far above the clip norm: what is left of it is for the codec to say.
            gradient[int(unit)] = 100.0 * float(plan.clip_norm)
            contribution.add(unit, gradient)
        vector, _ = contribution.seal()
    return vector


def _secure_sum(
    plan: Plan, keys: Mapping[str, SigningKey], vectors: Mapping[str, NoisedVector]
) -> IntVector:
    """The sum as the coordinator gets it, through all phases."""
    terms = RoundTerms(
        federation="canaries",
        plan_digest=plan.digest_bytes,
        adapter_digest=bytes(32),
        round_number=1,
        cohort={name: keys[name].verify_key for name in vectors},
        server=keys[SERVER].verify_key,
        min_survivors=plan.min_survivors,
        colluders=plan.colluders,
        modulus_bits=plan.modulus_bits,
        vector_length=plan.vector_length,
    )
    adverts, offer = server_side.open_round(terms, keys[SERVER], system_entropy, ())
    joined = {
        name: client_side.join(offer, terms, keys[name], system_entropy, 0)
        for name in vectors
    }
    shares, messages = adverts.collect({n: sent for n, (_, sent) in joined.items()})
    dealt = {
        name: state.share_keys(messages[name], system_entropy)
        for name, (state, _) in joined.items()
    }
    masked, messages = shares.collect({n: sent for n, (_, sent) in dealt.items()})
    hidden = {
        name: state.open_inbox(messages[name]).mask(vectors[name])
        for name, (state, _) in dealt.items()
    }
    confirming, messages = masked.collect({n: sent for n, (_, sent) in hidden.items()})
    confirmed = {
        name: state.confirm(messages[name]) for name, (state, _) in hidden.items()
    }
    revealing, messages = confirming.collect(
        {n: sent for n, (_, sent) in confirmed.items()}
    )
    reveals = {
        name: state.reveal(messages[name], bytes(32))[1]
        for name, (state, _) in confirmed.items()
    }
    return from_residues(revealing.collect(reveals).residues, plan.modulus_bits)
