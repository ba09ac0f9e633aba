"""The claim as a JSON object, filled from the ledgers and the plan.

Its fields are those that NIST SP 800-226 and the OpenDP deployment registry ask for.

Numbers that a ledger or plan holds as text (decimals, rationals) stay text, so that no
digit is lost; infinity is "infinity".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TypeAlias

from fgrpo_secure.config import PROMPT
from fgrpo_secure.gain import fixed_weight
from fgrpo_secure.guarantee import from_whom, not_protected
from fgrpo_secure.report.facts import ClientFacts, Refuted, RoundFacts, RunFacts
from fgrpo_secure.report.words import FALSE_ALARMS, lifetime_limits, sentence
from fgrpo_secure.software import software
from privacy.accountant import TRANSFER_SLACK, delta_slack
from privacy.attacker import Tradeoff
from privacy.contribution import registered_event
from privacy.ledger import Spend, claimed_epsilon, decimal_text, priced
from privacy.plan import WEIGHT_ONE, Plan
from privacy.renyi import ORDERS, rdp_curve
from privacy.wire import rational

FORMAT = "fgrpo-secure/claim/1"

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


def claim_json(found: RunFacts | Refuted) -> bytes:
    """The file `claim.json`.

    Guarantee:
        Of a folder that does not verify it claims nothing.
    """
    if isinstance(found, Refuted):
        said: dict[str, Value] = {
            "format": FORMAT,
            "verified": False,
            "problems": list(found.problems),
            "claim": None,
        }
    else:
        said = {
            "format": FORMAT,
            "verified": True,
            "problems": [],
            "claim": _claim(found),
        }
    text = json.dumps(said, indent=2, ensure_ascii=True, allow_nan=False)
    return text.encode() + b"\n"


def _claim(facts: RunFacts) -> dict[str, Value]:
    plan = facts.plan
    return {
        "sentence": sentence(facts),
        "promises_privacy": plan.promises_privacy,
        "finished": facts.finished,
        "cohorts": facts.cohorts,
        "privacy_unit": _unit(plan),
        "trust_model": _trust(plan),
        "mechanism": _mechanism(plan),
        "sampling": _sampling(plan),
        "steps": {"local_steps": plan.local_steps, "inner_steps": plan.inner_steps},
        "statistic": _statistic(plan),
        "weights": _weights(plan),
        "rounds": _rounds(facts),
        "privacy_loss": _loss(facts),
        "clients": [_client(client) for client in facts.clients],
        "attacker": _attacker(facts.limits),
        "not_protected": [
            *(text.removeprefix("- ").rstrip(";.") for text in not_protected(plan))
        ],
        "unprotected_quantities": list(UNPROTECTED),
        "other_releases": _other_releases(facts),
        "tuning": "not recorded; runs to choose settings on the same data compose",
        "audits": [
            {
                "audit": audit.name,
                "source": audit.source,
                "subject": audit.subject,
                "method": audit.method,
                "findings": len(audit.findings),
                "held": audit.held,
                "results": [
                    f"{finding.name}: {finding.value}" for finding in audit.findings
                ],
            }
            for audit in facts.audits
        ],
        "assumptions": assumptions(plan),
        "evidence": _evidence(facts),
        "plan": dict(plan.to_json()),
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


def _rounds(facts: RunFacts) -> dict[str, Value]:
    return {
        "registered": facts.plan.rounds,
        "begun": len({one.number for one in facts.rounds}),
        "published": facts.count("published"),
        "aborted": facts.count("aborted"),
        "not_ended": facts.count("not ended"),
        "retried": sum(one.attempt > 1 for one in facts.rounds),
        "each": [_round(one) for one in facts.rounds],
    }


def _round(one: RoundFacts) -> dict[str, Value]:
    return {
        "round": one.number,
        "attempt": one.attempt,
        "status": one.status,
        "reason": one.reason or None,
        "roster": list(one.members),
        "survivors": list(one.survivors),
        "clients_charged": one.charged,
        "epsilon_after": decimal_text(one.epsilon),
    }


def _loss(facts: RunFacts) -> dict[str, Value]:
    plan = facts.plan
    worst = facts.worst
    return {
        "epsilon_target": plan.epsilon,
        "delta": plan.delta,
        "epsilon": decimal_text(facts.epsilon),
        "epsilon_pld": decimal_text(worst.spend.epsilon_pld),
        "epsilon_rdp": decimal_text(worst.spend.epsilon_rdp),
        "of_client": worst.name,
        "epsilon_is_of": "the charges of the run"
        if facts.finished
        else "the charges so far; the run has not ended",
        "accountants": [
            "privacy loss distribution, dp-accounting, add or remove (the claim)",
            "Renyi divergence at integer orders 2 to 256, our own (the second opinion)",
        ],
        "slack": {
            "discrete_noise": "variance less 4 grid steps squared",
            "epsilon": TRANSFER_SLACK,
            "delta": delta_slack(worst.spend.charges),
        },
        "renyi_curve": _curve(plan, worst),
    }


def _curve(plan: Plan, worst: ClientFacts) -> dict[str, Value] | None:
    """Renyi divergence of all charges of the most exposed client, by order."""
    if not plan.promises_privacy:
        return None
    curve = rdp_curve(priced(registered_event(plan, worst.name)))
    whole = curve * worst.spend.charges
    return {
        str(order): float(f"{value:.9g}")
        for order, value in zip(ORDERS.tolist(), whole.tolist(), strict=True)
    }


def _client(client: ClientFacts) -> dict[str, Value]:
    budget = client.budget
    published, missed, aborted = client.outcomes
    return {
        "name": client.name,
        "units": client.terms.units,
        "sampling_rate": rational(client.terms.sampling_rate),
        **_spent(client.spend),
        "rounds": {"published": published, "missed": missed, "aborted": aborted},
        "refused": [
            {"round": number, "reason": reason} for number, reason in client.refusals
        ],
        "resumed": client.resumed,
        "attacker": _attacker(client.limits),
        "data_set": {
            "runs": budget.runs,
            "charges": budget.lifetime.charges,
            "epsilon": decimal_text(claimed_epsilon(budget.lifetime)),
            "counted_by": budget.lifetime.claimed.value,
            "filter_order": budget.order,
            "cap_epsilon": decimal_text(budget.cap),
            "promised_epsilon": decimal_text(budget.promise),
            "delta": decimal_text(budget.lifetime.delta),
            "attacker": _attacker(lifetime_limits(client)),
        },
        "held_out_reward": {
            "before": client.reward_before,
            "after": client.reward_after,
            "signed": False,
        },
        "ledger": {
            "records": client.records,
            "head": client.head,
            "key": client.fingerprint,
        },
    }


def _spent(spend: Spend) -> dict[str, Value]:
    return {
        "charges": spend.charges,
        "delta": decimal_text(spend.delta),
        "epsilon": decimal_text(claimed_epsilon(spend)),
        "epsilon_pld": decimal_text(spend.epsilon_pld),
        "epsilon_rdp": decimal_text(spend.epsilon_rdp),
    }


def _attacker(limits: Tradeoff) -> dict[str, Value]:
    """Upper bounds, which hold for either direction of the test."""
    return {
        "accuracy_at_even_odds": limits.accuracy,
        "true_positive_rate": {
            f"at_false_positive_rate_{rate:g}": limits.found(rate)
            for rate in FALSE_ALARMS
        },
    }


def _other_releases(facts: RunFacts) -> dict[str, Value]:
    public = [c.name for c in facts.clients if c.reward_after is not None]
    return {
        "held_out_scores_without_noise": public,
        "earlier_runs_in_the_ledgers": {
            client.name: client.budget.runs - 1 for client in facts.clients
        },
        "base_model": "what it has memorised is outside the claim",
        "seconds": "the whole run's, and the share of each phase where noted: they "
        "depend on the data and are outside the claim",
        "elsewhere": "not known to these ledgers",
    }


def _evidence(facts: RunFacts) -> dict[str, Value]:
    return {
        "run": facts.handle,
        "plan_digest": facts.plan.digest,
        "recipe_digest": facts.plan.recipe,
        "software_recorded": list(facts.software),
        "software_of_this_report": software(),
        "versions": {name: _version(name) for name in ("dp-accounting", "numpy")},
        "code_commit": None,
        "server_ledger": {
            "records": facts.server_records,
            "head": facts.server_head,
            "key": facts.server_fingerprint,
        },
        "shared_log": {
            "size": facts.log_size,
            "root": facts.log_root or None,
            "cosigned": {client.name: client.cosigned for client in facts.clients},
        },
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
