"""Which noise is really in what is released? Its law, against the registered one.

Rounds without data go through the real charge, noise, masks, sum and unmasking. In
distributed trust the sum of the least survivors, less the shares that colluders know,
must be the registered noise; in local trust every release of one client must be. Noise
that is drawn once must never come again, so that two releases must be unrelated.

Source: docs/privacy.md; the tests of a law are those of `audits.evidence`.
"""

from __future__ import annotations

import numpy as np

from audits.evidence import Evidence, Finding, correlation, gaussian_noise
from audits.rounds import NOTHING, Cohort, Progress
from privacy.plan import Plan
from privacy.vectors import IntVector

DIMENSION = 50_000
RELEASES = 20


def fit_noise(
    plan: Plan, releases: int = RELEASES, progress: Progress | None = None
) -> Evidence:
    """Fit the noise that is in releases.

    Args:
        plan: as `audits.canaries.audit_plan` makes it; its dimension is how many draws
            each release gives.
        releases: how many at least, 2 or more.
        progress: called with a label, what is done and what there is to do.
    """
    cohort = Cohort.of(plan)
    drawn: list[IntVector] = []
    while len(drawn) < releases:
        drawn.extend(_noise(cohort))
        if progress is not None:
            progress("releases", min(len(drawn), releases), releases)
    findings: list[Finding] = list(
        gaussian_noise(np.concatenate(drawn), plan.noise_variance)
    )
    everything = np.stack(drawn)
    findings += [
        correlation(
            "each release with the next",
            everything[:-1].ravel(),
            everything[1:].ravel(),
        ),
        correlation(
            "each coordinate with the next",
            everything[:, :-1].ravel(),
            everything[:, 1:].ravel(),
        ),
    ]
    return Evidence(
        audit="noise fit",
        subject={
            "trust": plan.trust,
            "draws": everything.size,
            "releases": len(drawn),
            "registered standard deviation in grid steps": (
                f"{plan.noise_variance**0.5:.1f}"
            ),
            "honest shares in each": plan.honest_shares,
        },
        findings=tuple(findings),
    )


def _noise(cohort: Cohort) -> list[IntVector]:
    """The noise of one round's releases, each of shape (d,), grid steps."""
    if cohort.plan.is_local:
        made = cohort.contribute(cohort.survivors[0], NOTHING)
        return [np.rint(release).astype(np.int64) for release in made.releases]
    return [cohort.less_known(*cohort.play(NOTHING))]
