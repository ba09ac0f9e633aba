"""What a claim says of the plan: its terms, and what it takes for granted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from fgrpo_secure.config import PROMPT
from fgrpo_secure.gain import fixed_weight
from fgrpo_secure.guarantee import from_whom
from privacy.plan import WEIGHT_ONE, Plan
from privacy.wire import rational

Value: TypeAlias = (
    "bool | int | float | str | Sequence[Value] | dict[str, Value] | None"
)

UNPROTECTED = (
    "the number of units of each client, as the plan states it",
    "who takes part in which round, and who drops out",
    "when messages are sent and how long work takes",
    "the number of trained parameters, and every setting in the plan",
)


def assumptions(plan: Plan) -> list[str]:
    """What the claim takes for granted; docs/privacy.md, section 11, says more."""
    column = [f"the column {plan.unit} says truly whose each row is"]
    return [
        "each party's program did what its ledger records, the noise included",
        "a unit's completions and gradient depend on no other unit: measured at every "
        "start, not proved",
        "reward functions look at one row at a time and remember nothing",
        *([] if plan.unit == PROMPT else column),
        "AES-256, SHA-256, HMAC, HKDF, X25519, Ed25519 and the system's generator hold",
        "settings were chosen without looking at the private data",
        "the keys in keys/ are those of the parties",
    ]


def terms_of(plan: Plan) -> dict[str, Value]:
    """The fields of a claim that follow from the plan alone."""
    return {
        "privacy_unit": _unit(plan),
        "trust_model": _trust(plan),
        "mechanism": _mechanism(plan),
        "sampling": _sampling(plan),
        "steps": {"local_steps": plan.local_steps, "inner_steps": plan.inner_steps},
        "statistic": _statistic(plan),
        "weights": _weights(plan),
    }


def _unit(plan: Plan) -> dict[str, Value]:
    return {
        "unit": plan.unit,
        "max_prompts_per_unit": plan.max_prompts_per_unit,
        "adjacency": "add or remove one unit at one client",
        "contributions": "drawn by itself, clipped once over all its completions, at "
        "most once in each draw",
        "scope": "each client by itself; all registered rounds of this run together",
    }


def _trust(plan: Plan) -> dict[str, Value]:
    return {
        "model": plan.trust,
        "clients": len(plan.clients),
        "min_survivors": plan.min_survivors,
        "colluders": plan.colluders,
        "honest_noise_shares": plan.honest_shares,
        "threshold": plan.threshold,
        "against": from_whom(plan),
        "guarantee": "information-theoretic up to the generator of the noise"
        if plan.is_local
        else "computational: secure aggregation hides the single vectors",
        "failure_of_secure_aggregation": "none is counted on"
        if plan.is_local
        else "if it fails with probability p in a round, add T p (1 + e^epsilon) to "
        "delta",
    }


def _mechanism(plan: Plan) -> dict[str, Value]:
    private = plan.promises_privacy
    return {
        "name": "Poisson-sampled discrete Gaussian on integer vectors"
        if private
        else "none: no noise is added",
        "dimension": plan.dimension,
        "clip_norm": rational(plan.clip_norm),
        "norm_bound": plan.norm_bound,
        "scale": rational(plan.scale),
        "noise_variance": str(plan.noise_variance),
        "noise_share_variance": str(plan.noise_share_variance),
        "noise_multiplier": plan.noise_multiplier,
        "modulus_bits": plan.modulus_bits,
        "rotation": plan.rotation,
        "rounding": "to the nearest integer, then the integer norm is checked exactly",
        "sampler": "exact (Canonne, Kamath and Steinke 2020) on AES-256-CTR",
    }


def _sampling(plan: Plan) -> dict[str, Value]:
    return {
        "scheme": "Poisson, each unit by itself",
        "rates": {c.name: rational(c.sampling_rate) for c in plan.clients},
        "expected_batches": {
            c.name: rational(plan.expected_batch(c.name)) for c in plan.clients
        },
        "generator": "AES-256-CTR keyed by the operating system's generator",
        "truncation": "none: no draw is cut, and an empty one is sent and charged",
    }


def _statistic(plan: Plan) -> dict[str, Value] | None:
    if not plan.weighting.needs_statistic:
        return None
    bound = plan.statistic_norm_bound
    return {
        "what": "mean reward of each draw, seen by its own client alone",
        "norm_bound": bound,
        "noise_variance": str(plan.statistic_variance),
        "noise_multiplier": plan.statistic_variance**0.5 / bound,
    }


def _weights(plan: Plan) -> dict[str, Value]:
    """Of the weights w = k / 2**16: each client's, or the range it is taken from."""
    weighting = plan.weighting
    said: dict[str, Value] = {"rule": weighting.rule, "denominator": WEIGHT_ONE}
    if weighting.needs_statistic:
        least = rational(1 / weighting.max_weight_ratio)
        return said | {"made_from": "noised statistics", "least": least, "most": "1"}
    fixed = {client.name: fixed_weight(plan, client.name) for client in plan.clients}
    return said | {"made_from": "the plan", "numerators": fixed}
