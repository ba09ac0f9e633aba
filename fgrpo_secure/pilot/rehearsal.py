"""A whole pilot on one machine: every home, a server, three sites, one short run.

What one person does at one keyboard here is what five do on five machines: the same
steps, the same files and the same checks, but for the fingerprints, which nobody has
to compare with.
"""

from __future__ import annotations

from pathlib import Path

from fgrpo_secure.pilot import enrol
from fgrpo_secure.pilot.enrol import Pilot
from fgrpo_secure.pilot.invitation import Cohort


def provision_here(pilot: Pilot, homes: Path) -> Cohort:
    """Make every party's home on this machine; may be repeated.

    Raises:
        FgrpoError: as enrolment raises it.
    """
    requests = []
    for party in pilot.invitation.parties:
        enrol.request_admission(pilot.invitation, homes / party, party)
        requests.append(homes / party / f"{party}.request.json")
    cohort = enrol.approve_requests(pilot, requests, lambda _request, _shown: True)
    if cohort is None:
        msg = "every party asked, and yet not all are approved"
        raise RuntimeError(msg)
    for party in pilot.invitation.parties:
        enrol.install(pilot.admission_file(party), homes / party, cohort.fingerprint)
    return cohort
