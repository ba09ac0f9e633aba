"""Folders of runs that verify, as `fgrpo run` leaves them, made without training.

The writers are the ones that real runs use; only what is learned, and with it the
digests of adapters and sums, is made up. Each name says what the run went through.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

from privacy.ledger import (
    Aborted,
    Declined,
    Reason,
    Refused,
    Role,
    Status,
    price_charges,
)
from privacy.ledger.shared_log import SharedLog
from privacy.ledger.witness import Witness
from privacy.plan import SERVER
from tests.plans import NO_PROMISE
from tests.privacy.ledger.synthetic import (
    CLIENTS,
    SyntheticClient,
    SyntheticRun,
    make_plan,
)

EARLIER = b"an earlier run.."
Files = dict[str, bytes]


def show(run: SyntheticRun, answering: tuple[str, ...] = CLIENTS) -> None:
    """Show the server's ledger to all clients; they check it and cosign.

    Args:
        run: between two rounds.
        answering: clients whose cosignature arrives.
    """
    keys = {name: run.keys[name].verify_key for name in CLIENTS}
    log = SharedLog(run.server, run.keys[SERVER], keys)
    notes = {}
    for name, update in log.updates(CLIENTS).items():
        witness = Witness(run.clients[name].ledger, run.keys[name])
        notes[name] = witness.vouch(witness.check(update))
    log.take({name: notes[name] for name in answering})


def three_rounds(run: SyntheticRun) -> None:
    """All survive, the second round is aborted, gamma is missing in the third."""
    run.open()
    run.rounds()
    run.finish()


def no_round(run: SyntheticRun) -> None:
    """All open the run, nothing happens, and all close it."""
    run.open()
    run.finish()


def one_round(run: SyntheticRun) -> None:
    """One round, in which gamma's vector came too late."""
    run.open()
    run.gather(1)
    run.publish(1, ("alpha", "beta"))
    run.finish()


def cosigned(run: SyntheticRun) -> None:
    """The clients check the server's log; an answer of beta's does not arrive."""
    run.open()
    show(run)
    run.gather(1)
    run.publish(1, ("alpha", "beta"))
    show(run, ("alpha", "gamma"))
    run.close_server()
    show(run)
    for client in run.clients.values():
        client.close()
    run.write_summary()


def shown(run: SyntheticRun) -> None:
    """The clients write down what they were shown; the second round came to no sum."""
    run.open()
    everybody: dict[str, dict[str, bytes]] = {name: {} for name in CLIENTS}
    run.gather(1, shown=everybody)
    run.publish(1, ("alpha", "beta"))
    run.gather(2, shown=everybody)
    run.abort(2)
    run.finish()


def second_run(run: SyntheticRun) -> None:
    """The clients' ledgers had a run before this one, in a store that both share."""
    for client in run.clients.values():
        client.open(run.roster, run=EARLIER)
        client.join(1)
        client.intent(1)
        client.outcome(1, Status.MISSED, Reason.DEADLINE)
        client.close()
    run.open()
    run.gather(1)
    run.publish(1, CLIENTS)
    run.finish()


def nothing_charged(run: SyntheticRun) -> None:
    """A second run in which nobody came, after a first in which nobody did."""
    for client in run.clients.values():
        client.open(run.roster, run=EARLIER)
        client.close()
    run.open()
    run.finish()


def local_trust(run: SyntheticRun) -> None:
    """Two draws of two releases in each round, every one with all of the noise."""
    run.open()
    run.gather(1)
    run.publish(1, CLIENTS)
    run.finish()


def no_promise(run: SyntheticRun) -> None:
    """A baseline without noise, whose every charge is priced at infinity."""
    run.open(cap_epsilon=Decimal("Infinity"))
    run.gather(1)
    run.publish(1, CLIENTS)
    run.finish()


def every_process_died(run: SyntheticRun) -> None:
    """Alpha charges again, beta lost its vector, gamma had refused another offer."""
    run.open()
    run.gather(1)
    run.clients["gamma"].ledger.append(Refused(2, 1, Reason.REPLAY, None))
    run.close_files()
    run.server = run.ledger(SERVER, Role.SERVER)
    run.clients = {
        name: SyntheticClient(run.ledger(name, Role.CLIENT), run.plan, price_charges)
        for name in CLIENTS
    }
    run.clients["alpha"].intent(1)
    run.clients["alpha"].commit(1)
    head = run.server.append(Aborted(1, 1, Reason.INTERRUPTED, ("beta",)))
    run.clients["alpha"].outcome(
        1, Status.ABORTED, Reason.SERVER_ABORTED, server_head=head
    )
    for name in ("beta", "gamma"):
        run.clients[name].outcome(1, Status.MISSED, Reason.INTERRUPTED)
    run.finish()


def unfinished(run: SyntheticRun) -> None:
    """The second round is under way: no `closed`, and no summary."""
    run.open()
    run.gather(1)
    run.publish(1, CLIENTS)
    run.gather(2)
    run.clients["alpha"].commit(2)


def declined(run: SyntheticRun) -> None:
    """Alpha's own rules keep it out of other runs, before, within and after this."""
    other = make_plan(unit="patient_id")
    record = Declined(
        EARLIER,
        "tests",
        other.to_json(),
        other.digest_bytes,
        run.roster,
        Reason.POLICY_TRUST,
    )
    alpha = run.clients["alpha"]
    alpha.ledger.append(record)
    run.open()
    alpha.ledger.append(record)
    run.gather(1)
    run.publish(1, CLIENTS)
    run.finish()
    alpha.ledger.append(record)


LOCAL = {
    "trust": "local",
    "local_steps": 2,
    "inner_steps": 2,
    "noise_variance": 2**26,
    "min_survivors": 3,
}

# What happens, and how the plan differs from that of tests/privacy/ledger/synthetic.py.
RUNS: tuple[tuple[Callable[[SyntheticRun], None], dict[str, object]], ...] = (
    (three_rounds, {}),
    (no_round, {"rounds": 1}),
    (one_round, {"rounds": 1}),
    (cosigned, {"rounds": 1}),
    (shown, {"rounds": 2}),
    (second_run, {"rounds": 1}),
    (nothing_charged, {"rounds": 1}),
    (local_trust, LOCAL | {"rounds": 1}),
    (no_promise, NO_PROMISE | {"rounds": 1}),
    (every_process_died, {"rounds": 2}),
    (unfinished, {"rounds": 2}),
    (declined, {"rounds": 1}),
)
UNFINISHED = {"unfinished"}


def files_in(folder: Path) -> Files:
    """Every file of a folder, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write(happens: Callable[[SyntheticRun], None], changes: dict[str, object]) -> Files:
    """The files of one run, by their path in its folder."""
    with tempfile.TemporaryDirectory() as name:
        run = SyntheticRun(Path(name), make_plan(**changes), price=price_charges)
        happens(run)
        run.close_files()
        return files_in(Path(name))


def folders() -> dict[str, Files]:
    """Every run, by its name."""
    return {happens.__name__: write(happens, changes) for happens, changes in RUNS}
