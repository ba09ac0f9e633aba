"""The end of a run in a client's ledger, with the server or without it.

A run that cannot go on at a site keeps its data set from every other run: its ledger is
open, and charges of it may still be to come. The site's operator can end its part
alone. What was charged stays charged, and the run is over for this client.
"""

from __future__ import annotations

from dataclasses import dataclass

from fgrpo_secure.budget import own_history
from fgrpo_secure.errors import StateError
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.secrets import existing_identity, identity_key
from privacy.ledger import (
    ClientClosed,
    ClientOpened,
    History,
    Ledger,
    Lifetime,
    Outcome,
    Phase,
    Reason,
    Role,
    Spend,
    Status,
)


def end_round(ledger: Ledger, reason: Reason) -> None:
    """Note that a round which was begun came to nothing that this client knows of.

    Nothing is written where no round is under way. Whether a sum was opened with this
    client in it nobody here can tell, so that its charge stands.

    Raises:
        LedgerError: the disk refused the line.
    """
    history = ledger.history
    if history.unfinished:
        ledger.append(
            Outcome(
                round=history.round,
                attempt=history.attempt,
                status=Status.MISSED,
                reason=reason,
                survivors=(),
                adapter_digest=None,
                server_head=None,
                transcript=None,
            )
        )


def close_run(ledger: Ledger) -> None:
    """Write the last line of a client's run, with what it and all runs have spent.

    Raises:
        LedgerError: the disk refused the line, or no run is open.
    """
    history = ledger.history
    spend, lifetime = history.totals()
    ledger.append(
        ClientClosed(
            records=history.records + 1,
            published=history.published,
            aborted=history.aborted,
            missed=history.missed,
            spend=spend,
            lifetime=lifetime,
        )
    )


@dataclass(frozen=True, slots=True)
class Closed:
    """What a run came to that its site has closed.

    Attributes:
        client: whose part it was.
        run: its handle.
        plan: hex digest of its plan.
        already: whether it was closed before, so that nothing was written.
        published: rounds whose sum has this client in it, as far as it knows.
        ended: other rounds that it joined.
        spend: of this run.
        lifetime: of all runs on the data set.
        opened: with which cap.
    """

    client: str
    run: bytes
    plan: str
    already: bool
    published: int
    ended: int
    spend: Spend
    lifetime: Lifetime
    opened: ClientOpened


def close_at_site(folder: RunFolder, name: str, run: bytes | None = None) -> Closed:
    """End a client's part in a run without the server.

    It may be killed anywhere and called again: what is missing is written.

    Args:
        folder: where the client's ledger lies.
        name: the client.
        run: the only run that may be closed; None closes the one that is open.

    Raises:
        StateError: there is no ledger, no run in it, or another run than the one meant.
        LedgerError: the ledger does not verify, or another process writes it.

    Guarantee:
        Every charge that the ledger held is in the spend that is closed with, and
        a run that is closed stays as it is.
    """
    path = folder.own_ledger(name)
    private = folder.private(name)
    # Neither a ledger nor an identity is to be made by the wrong path.
    if not path.exists() or existing_identity(private) is None:
        raise StateError(
            f"Client {name} has no ledger {path}, or no identity beside it.",
            "Give the run's folder, or the configuration that names its store.",
        )
    # Before anything is written, and again while nobody else can write.
    _opened(own_history(folder, name), name, run)
    key = identity_key(private)
    with Ledger.open(path, key, party=name, role=Role.CLIENT) as ledger:
        opened = _opened(ledger.history, name, run)
        already = ledger.history.phase is Phase.CLOSED
        if not already:
            end_round(ledger, Reason.STOPPED)
            close_run(ledger)
        history = ledger.history
        spend, lifetime = history.totals()
        return Closed(
            client=name,
            run=history.run,
            plan=opened.plan_digest.hex(),
            already=already,
            published=history.published,
            ended=history.aborted + history.missed,
            spend=spend,
            lifetime=lifetime,
            opened=opened,
        )


def _opened(history: History, name: str, run: bytes | None) -> ClientOpened:
    """The opening of the run that is to be closed."""
    if not isinstance(history.opened, ClientOpened):
        raise StateError(
            f"The ledger of client {name} holds no run that could be closed.",
            "Nothing has to be done: it keeps no data set from a run.",
        )
    if run is not None and history.run != run:
        raise StateError(
            f"The ledger of client {name} does not hold this run, or has gone on with "
            "another since.",
            "Give the folder of the run that is open; `fgrpo ledger show` names it.",
        )
    return history.opened
