"""The claim as a JSON object, filled from the ledgers and the plan.

Its fields are those that NIST SP 800-226 and the OpenDP deployment registry ask for.

Numbers that a ledger or plan holds as text (decimals, rationals) stay text, so that no
digit is lost; infinity is "infinity".
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version

from fgrpo_secure.guarantee import not_protected
from fgrpo_secure.report.claim_loss import attacker_of, client_of, loss_of
from fgrpo_secure.report.claim_terms import (
    UNPROTECTED,
    Value,
    assumptions,
    terms_of,
)
from fgrpo_secure.report.facts import (
    NOT_ENDED,
    PUBLISHED,
    Refuted,
    RoundFacts,
    RunFacts,
)
from fgrpo_secure.report.words import sentence
from fgrpo_secure.software import software
from fgrpo_secure.tracking import METRICS
from privacy.ledger import decimal_text

FORMAT = "fgrpo-secure/claim/1"


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
        **terms_of(plan),
        "rounds": _rounds(facts),
        "privacy_loss": loss_of(facts),
        "clients": [client_of(client) for client in facts.clients],
        "attacker": attacker_of(facts.limits),
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


def _rounds(facts: RunFacts) -> dict[str, Value]:
    return {
        "registered": facts.plan.rounds,
        "begun": len({one.number for one in facts.rounds}),
        "published": facts.count(PUBLISHED),
        "aborted": facts.count("aborted"),
        "not_ended": facts.count(NOT_ENDED),
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


def _other_releases(facts: RunFacts) -> dict[str, Value]:
    public = [c.name for c in facts.clients if c.reward_after is not None]
    return {
        "held_out_scores_without_noise": public,
        "other_runs_in_the_ledgers": {
            client.name: client.data_set.budget.runs - 1 for client in facts.clients
        },
        "metrics": "where tracking was on, of each round or at the end: "
        + ", ".join(sorted(METRICS)),
        "base_model": "what it has memorised is outside the claim; where it was tuned "
        "on the same data before, that composes and is not known to these ledgers",
        "seconds": "those of the process that ended the run, and the share of each "
        "phase where more than one round was noted: they depend on the data and are "
        "outside the claim",
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
        "not_in_this_folder": list(facts.missing),
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
