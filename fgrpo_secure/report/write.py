"""From a run's folder to the two files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgrpo_secure.errors import StateError
from fgrpo_secure.report.audited import RELEASE
from fgrpo_secure.report.claim import claim_json
from fgrpo_secure.report.facts import Refuted, RunFacts
from fgrpo_secure.report.gather import gather, is_run
from fgrpo_secure.report.page import report_page
from fgrpo_secure.secrets import write_atomically
from privacy.ledger import cohort_folders

PAGE = "report.html"
CLAIM = "claim.json"

# Where a run's folder has results of audits of its own.
_AUDITS = "audits"


def write_report(
    folder: Path, released: Path | None, *, unfinished: bool
) -> RunFacts | Refuted:
    """Write `report.html` and `claim.json` into a run's folder.

    Args:
        folder: that `fgrpo run` wrote, or that of one cohort in it.
        released: results of audits that came with the program.
        unfinished: accept a run that has not ended.

    Returns:
        What was written of: facts, or what is wrong.

    Raises:
        StateError: there is no run, or one of several cohorts.

    Guarantee:
        An earlier report never stays beside a folder that no longer verifies, also
        where no other can be written, and equal folders give equal files.
    """
    cohorts = cohort_folders(folder)
    if cohorts:
        raise StateError(
            f"{folder} holds a run of several cohorts, each with a report of its own.",
            f"Give the folder of each: {', '.join(one.name for one in cohorts[:3])}"
            f"{' and so on' if len(cohorts) > 3 else ''} in it.",
        )
    if not folder.is_dir() or not is_run(folder):
        raise StateError(
            f"{folder} holds no run.",
            "Give the folder that `fgrpo run` wrote with --output.",
        )
    audits: Sequence[tuple[str, Path]] = [(_AUDITS, folder / _AUDITS)]
    if released is not None:
        audits = [*audits, (RELEASE, released)]
    # An earlier report must not outlive what it was of, also where this one fails.
    for name in (CLAIM, PAGE):
        (folder / name).unlink(missing_ok=True)
    found = gather(folder, audits, unfinished=unfinished)
    page, claim = report_page(found, folder.resolve().name), claim_json(found)
    write_atomically(folder / PAGE, page)
    write_atomically(folder / CLAIM, claim)
    return found
