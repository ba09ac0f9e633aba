"""What a site says of what it declines: to its ledger, its operator, and others.

A refusal stands in the client's ledger once. Whoever can send the same thing again, or
sign many things that are refused, could otherwise make the ledger grow at will.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fgrpo_secure.errors import FgrpoError, said_by_system
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.secrets import identity_key, private_directory
from fgrpo_secure.site_policy import SitePolicyError
from fgrpo_secure.software import software
from privacy.errors import PrivacyError, RefusalError
from privacy.ledger import (
    ClientOpened,
    Declined,
    Ledger,
    Phase,
    Reason,
    Record,
    Refused,
    Role,
    reason_of,
)
from privacy.plan import Plan

# Lines of one reason for plans that a server makes up.
_MOST_PLANS = 32


def reasons_of(error: PrivacyError) -> tuple[Reason, ...]:
    """The codes under which an error stands in the ledger, at least one."""
    if isinstance(error, SitePolicyError):
        return error.reasons
    return (reason_of(error),)


@dataclass(frozen=True, slots=True)
class Silence:
    """Why a client does not answer: a code for whoever asked, words for its operator.

    What a site's error says in words names its caps, its floors and its files. To
    another party only the code may leave.

    Attributes:
        reason: the code; of several rules the first that was broken.
        said_to_operator: what happened and what to do, in one line, for the log of the
            site. It holds no prompt, no row and no key.
    """

    reason: Reason
    said_to_operator: str


def silence_of(error: Exception) -> Silence:
    """What is said where a client raised this, when it was opened or asked."""
    if isinstance(error, PrivacyError):
        return Silence(reasons_of(error)[0], str(error))
    if isinstance(error, FgrpoError):
        what, fix = error.what, error.fix
    elif isinstance(error, OSError):
        what, fix = said_by_system(error)
    else:
        # Another library's text may quote data.
        what, fix = f"A bug was met ({type(error).__name__}).", "See crash.log."
    return Silence(Reason.ENVIRONMENT, f"{what.removesuffix('.')}. {fix}")


def note_offer(ledger: Ledger, error: RefusalError, digest: bytes, rounds: int) -> None:
    """Note an offer of the server that was declined, once for each reason.

    An honest server signs one offer for a round, and a few more where it was
    interrupted. One that has signed twice as many as there are rounds, all declined for
    one reason, has shown what it does, and gets no more lines.

    Args:
        ledger: the client's, opened for the run.
        error: why it was declined.
        digest: of the offer, whose signature was verified.
        rounds: of the plan.

    Raises:
        LedgerError: the disk refused the line.

    Guarantee:
        In one run no offer has two lines of one reason, and no reason has more lines
        of offers than twice the rounds of the plan.
    """
    for reason in reasons_of(error):
        noted = [
            record.offer_digest
            for record in _of_run(ledger, ledger.history.run)
            if isinstance(record, Refused)
            and record.reason is reason
            and record.round == 0
            and record.offer_digest is not None
        ]
        if digest not in noted and len(noted) < 2 * rounds:
            ledger.append(Refused(0, 0, reason, digest))


def sign_refusal(
    error: SitePolicyError, plan: Plan, folder: RunFolder, name: str, run: bytes
) -> None:
    """Write into a client's ledger which run it declines, and why.

    A run that it has open is refused within; another is not opened for it, which is
    said once for each plan and reason. Of a run that the ledger has left behind,
    closed or not, nothing can follow: there is nothing to decline. A server may make up
    a run, or a plan for one, whenever it likes, and gets no more lines than so many.

    Raises:
        LedgerError: the ledger does not verify, or another process writes it.

    Guarantee:
        No reason has more than 32 lines of plans within a run, nor from one opened run
        to the next.
    """
    key = identity_key(private_directory(folder.private(name)))
    path = folder.own_ledger(name)
    if folder.is_shared:
        private_directory(path.parent)
    with Ledger.open(path, key, party=name, role=Role.CLIENT) as ledger:
        history = ledger.history
        inside = history.run == run and history.phase is not Phase.CLOSED
        if run in history.runs and not inside:
            return
        roster = {who: known.raw for who, known in folder.roster(plan).items()}
        said = {
            (record.plan_digest, record.reason)
            for record in _of_run(ledger, run)
            if isinstance(record, Declined)
        }
        lines = Counter(_declined_plans(ledger, run if inside else None))
        for reason in error.reasons:
            if lines[reason] >= _MOST_PLANS:
                continue
            if inside:
                ledger.append(Refused(0, 0, reason, None))
            elif (plan.digest_bytes, reason) not in said:
                ledger.append(
                    Declined(
                        run=run,
                        software=software(),
                        plan=plan.to_json(),
                        plan_digest=plan.digest_bytes,
                        roster=roster,
                        reason=reason,
                    )
                )


def _declined_plans(ledger: Ledger, run: bytes | None) -> Iterator[Reason]:
    """Why plans were declined within a run; for None, since one was opened last."""
    for entry in reversed(ledger.entries):
        record = entry.record
        if run is None:
            if isinstance(record, ClientOpened):
                return
            if isinstance(record, Declined):
                yield record.reason
        elif isinstance(record, Refused) and entry.header.run == run:
            of_plan = record.round == 0 and record.offer_digest is None
            yield from (record.reason,) if of_plan else ()


def _of_run(ledger: Ledger, run: bytes) -> Iterator[Record]:
    """The lines of a run, and those that say that it was declined."""
    return (entry.record for entry in ledger.entries if entry.header.run == run)
