"""What `fgrpo audit` does, from parsed options to an exit status.

Exit status 1 says that an audit refuted something.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from audits.bounds import FALSE_ALARM, IN_SIGHT, AuditResult, largest_bound
from audits.canaries import (
    CANARIES,
    JOINT_FACTOR,
    alternating,
    attack,
    attack_jointly,
    audit_plan,
)
from audits.evidence import Evidence
from audits.noise_fit import fit_noise
from audits.planted.table import run_planted, table, write_table
from audits.rounds import Progress
from audits.transcript import read_transcript
from fgrpo_secure.config import RunConfig, load_config
from fgrpo_secure.display import Display
from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.registration import NORM_BOUND
from privacy.plan import LOCAL, Plan

_REFUTED = 1

_RELEASED = "what is released"
_ALTERNATING = "canaries of alternating sign"
_JOINT = "gradient and statistic"


def run_audit(options: argparse.Namespace) -> int:
    """Run the audit that `options.audit` names; returns the exit status."""
    display = Display()
    with display.running(rounds=1, done=0):
        return _AUDITS[options.audit](options, display.progress)


def _canaries(options: argparse.Namespace, progress: Progress) -> int:
    config, _ = load_config(options.config, options.overrides)
    releases, joint_releases = options.releases, JOINT_FACTOR * options.releases
    scores = {_RELEASED: CANARIES * releases}
    if config.aggregation.rule == "fgrpo":
        scores[_JOINT] = joint_releases
    _refuse_out_of_sight(config, scores)
    plan = _plan(config, options.trust)
    results = {_RELEASED: attack(plan, releases, progress)}
    if plan.releases_per_round > 1:
        results[_ALTERNATING] = attack(plan, releases, progress, view=alternating)
    if _JOINT in scores:
        # One honest share is left, which is all that one client can be.
        alone = {"min_survivors": 3, "colluders": 2, "clients": 3}
        joint = _plan(config, options.trust, **alone, statistic=True, canaries=1)
        results[_JOINT] = attack_jointly(joint, joint_releases, progress)
    refuted = any(result.refuted for result in results.values())
    if options.json:
        found = {
            "trust": plan.trust,
            "refuted": refuted,
            "weak": any(result.weak for result in results.values()),
            "attacks": {name: _in_json(result) for name, result in results.items()},
        }
        print(json.dumps(_in_json(results[_RELEASED]) | found))
    else:
        for name, result in results.items():
            print(f"{name}: {_in_words(result)}")
        if refuted:
            print("The claim is refuted: do not use this build on private data.")
    return _REFUTED if refuted else 0


def _refuse_out_of_sight(config: RunConfig, scores: Mapping[str, int]) -> None:
    """Refuse a claim that some attack could not refute, were there no noise at all.

    Args:
        config: with the claim.
        scores: how many each attack makes, by its name.

    Raises:
        ConfigurationError: it is such a claim.
    """
    claim, delta = float(config.privacy.epsilon), float(config.privacy.delta)
    largest = {name: largest_bound(count, delta) for name, count in scores.items()}
    blindest = min(largest, key=largest.__getitem__)
    highest = math.floor(10 * IN_SIGHT * largest[blindest]) / 10
    if claim > highest:
        raise ConfigurationError(
            f"A claim of epsilon {claim:g} cannot be audited with {scores[blindest]} "
            f"scores of {blindest}: without any noise they would show "
            f"{largest[blindest]:.1f}.",
            "Audit the same mechanism at a smaller epsilon, with --set "
            f"privacy.epsilon={highest:g} or less, or raise --releases.",
        )


def _in_json(result: AuditResult) -> dict[str, Any]:
    said = {name: getattr(result, name) for name in ("weak", "weak_below", "refuted")}
    return asdict(result) | said


def _in_words(result: AuditResult) -> str:
    words = (
        f"epsilon is at least {result.epsilon_lower_bound:.3f} of the "
        f"{result.epsilon_claimed:g} that are claimed at delta {result.delta:g} "
        f"({result.scores} scores, {result.confidence:.0%} confidence)"
    )
    if result.weak:
        return (
            f"{words}; that is weak: a sound mechanism shows less than "
            f"{result.weak_below:.3f} in {FALSE_ALARM * 1000:g} of 1000 attacks at "
            "most, so that the attack or the noise is not what it should be"
        )
    if result.weak_below == 0:
        return f"{words}; they are too few to say whether that is weak"
    return words


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
        "modulus_bits": privacy.modulus_bits,
        "rotation": privacy.rotation,
    }
    return audit_plan(**(terms | changes))


_AUDITS: dict[str, Callable[[argparse.Namespace, Progress], int]] = {
    "canaries": _canaries,
    "planted": _planted,
    "noise-fit": _noise_fit,
    "transcript": _transcript,
}
