"""What `fgrpo audit` does, from parsed options to an exit status.

Exit status 1 says that an audit refuted something.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from audits.bounds import AuditResult
from audits.canaries import alternating, attack, attack_jointly, audit_plan
from audits.evidence import Evidence
from audits.noise_fit import fit_noise
from audits.planted.table import run_planted, table, write_table
from audits.rounds import Progress
from audits.transcript import read_transcript
from fgrpo_secure.config import RunConfig, load_config
from fgrpo_secure.display import Display
from fgrpo_secure.errors import StateError
from fgrpo_secure.registration import NORM_BOUND
from privacy.plan import LOCAL, Plan

_REFUTED = 1


def run_audit(options: argparse.Namespace) -> int:
    """Run the audit that `options.audit` names; returns the exit status."""
    display = Display()
    with display.running(rounds=1, done=0):
        return _AUDITS[options.audit](options, display.progress)


def _canaries(options: argparse.Namespace, progress: Progress) -> int:
    config, _ = load_config(options.config, options.overrides)
    plan = _plan(config, options.trust)
    results = {"what is released": attack(plan, progress=progress)}
    if plan.releases_per_round > 1:
        results["canaries of alternating sign"] = attack(
            plan, progress=progress, view=alternating
        )
    if config.aggregation.rule == "fgrpo":
        # One honest share is left, which is all that one client can be.
        alone = {"min_survivors": 3, "colluders": 2, "clients": 3}
        joint = _plan(config, options.trust, **alone, statistic=True, canaries=1)
        results["gradient and statistic"] = attack_jointly(joint, progress=progress)
    refuted = any(result.refuted for result in results.values())
    if options.json:
        main = asdict(results["what is released"])
        attacks = {name: asdict(result) for name, result in results.items()}
        found = {"trust": plan.trust, "refuted": refuted, "attacks": attacks}
        print(json.dumps(main | found))
    else:
        for name, result in results.items():
            print(f"{name}: {_in_words(result)}")
        if refuted:
            print("The claim is refuted: do not use this build on private data.")
    return _REFUTED if refuted else 0


def _in_words(result: AuditResult) -> str:
    weak = "; that is weak: the attack or the noise is not what it should be"
    return (
        f"epsilon is at least {result.epsilon_lower_bound:.3f} of the "
        f"{result.epsilon_claimed:g} that are claimed at delta {result.delta:g} "
        f"({result.scores} scores, {result.confidence:.0%} confidence"
        f"{weak if result.weak else ''})"
    )


def _planted(options: argparse.Namespace, progress: Progress) -> int:
    rows = run_planted(progress=progress)
    wrong = [row for row in rows if not row.right]
    if options.write is not None:
        try:
            write_table(options.write, rows)
        except ValueError as error:
            raise StateError(f"{error}.", "Give a file with both markers.") from None
    if options.json:
        found = [
            {
                "switch": row.fault.name,
                "bug": row.fault.bug,
                "check": row.check,
                "read": row.reading.text,
                "caught": row.reading.caught,
            }
            for row in rows
        ]
        print(json.dumps({"rows": found, "refuted": bool(wrong)}))
    else:
        print(table(rows))
        for row in wrong:
            said = "was caught" if row.reading.caught else "was not caught"
            print(f"{row.fault.name} {said} by {row.check}: an audit is broken.")
    return _REFUTED if wrong else 0


def _noise_fit(options: argparse.Namespace, progress: Progress) -> int:
    plan = _measured_plan(options)
    return _tell(fit_noise(plan, progress=progress), options, "noise_fit")


def _transcript(options: argparse.Namespace, progress: Progress) -> int:
    plan = _measured_plan(options)
    return _tell(read_transcript(plan, progress=progress), options, "transcript")


def _measured_plan(options: argparse.Namespace) -> Plan:
    config, _ = load_config(options.config, options.overrides)
    return _plan(config, options.trust, canaries=options.dimension, units=1)


def _tell(evidence: Evidence, options: argparse.Namespace, name: str) -> int:
    found = json.dumps(evidence.to_json(), indent=2)
    if options.write is not None:
        folder: Path = options.write
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(found + "\n", "utf-8")
        (folder / f"{name}.md").write_text(evidence.to_markdown(), "utf-8")
    print(found if options.json else evidence.to_markdown(), end="")
    if options.json:
        print()
    return _REFUTED if evidence.refuted else 0


def _plan(config: RunConfig, trust: str | None, **changes: Any) -> Plan:  # noqa: ANN401
    """The audit's plan with the configuration's terms."""
    privacy = config.privacy
    trust = privacy.trust if trust is None else trust
    # Steps above 1 belong to local trust, whatever the configuration runs.
    local = trust == LOCAL and privacy.trust == LOCAL
    terms: dict[str, Any] = {
        "epsilon": float(privacy.epsilon),
        "delta": float(privacy.delta),
        "clip_norm": Fraction(privacy.clip_norm),
        "norm_bound": NORM_BOUND,
        "min_survivors": config.federation.min_survivors,
        "colluders": config.federation.colluders,
        "clients": len(config.client),
        "trust": trust,
        "local_steps": privacy.local_steps if local else 1,
        "inner_steps": privacy.inner_steps if local else 1,
    }
    return audit_plan(**(terms | changes))


_AUDITS: dict[str, Callable[[argparse.Namespace, Progress], int]] = {
    "canaries": _canaries,
    "planted": _planted,
    "noise-fit": _noise_fit,
    "transcript": _transcript,
}
