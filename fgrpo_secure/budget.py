"""What a data set has spent, what a run would bring it to, and whether it may run.

A ledger belongs to a data set. Where `[machine] state` names a store, the ledger lies
there, and a later run on the same data goes on with what the earlier ones spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from fgrpo_secure.config import RunConfig
from fgrpo_secure.errors import StateError
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.overlap import claim_units, had_units
from fgrpo_secure.secrets import existing_identity, private_directory
from fgrpo_secure.software import software
from privacy.contribution import registered_event
from privacy.crypto import SigningKey
from privacy.errors import BudgetExceededError, LedgerError
from privacy.ledger import (
    HANDLE_BYTES,
    HEAD_SUFFIX,
    ClientOpened,
    History,
    Ledger,
    Lifetime,
    Phase,
    Role,
    cap_order,
    charged,
    filter_epsilon,
    read_history,
    spend_of,
)
from privacy.plan import Plan
from privacy.randomness import system_entropy


@dataclass(frozen=True, slots=True)
class Standing:
    """What a run would do to the budget of one client's data set.

    Attributes:
        runs: how many runs the ledger holds.
        spent: what they were charged; None before the first run.
        cap: that the run is to be opened with.
        former_cap: of the run before; None before the first run.
        delta: at which the cap holds.
        order: at which the filter counts.
        after: what the whole run, as registered, would bring the spend to, by the
            figure that will then be held against the cap.
        least_cap: under which a run may ever follow the first one.
        refusal: why it may not run, what happened and what to do; None if it may.
    """

    runs: int
    spent: Lifetime | None
    cap: Decimal
    former_cap: Decimal | None
    delta: Decimal
    order: int
    after: Decimal
    least_cap: Decimal
    refusal: str | None


def standing(config: RunConfig, plan: Plan, name: str, history: History) -> Standing:
    """Hold a run, before it is opened, against what its data set has left.

    Args:
        config: states the client's cap. Where it does not, the ledger keeps the one it
            has, and a new one takes the run's target.
        plan: the run.
        name: the client.
        history: of the data set's ledger.
    """
    event, registered = registered_event(plan, name), plan.registered_charges
    stated = config.client_named(name).epsilon_cap
    opened = history.opened if isinstance(history.opened, ClientOpened) else None
    lifetime = charged(history.lifetime, event, registered)
    if opened is None:
        cap, delta = stated or config.privacy.epsilon, Decimal(plan.delta)
        order = cap_order(event, cap, delta)
        counted = filter_epsilon(lifetime, delta, order)
        after = spend_of(lifetime, delta, registered).epsilon_pld
        after = counted if after.is_infinite() else after
        refusal = None if after <= cap else _passes_cap(name, after, cap)
        return Standing(0, None, cap, None, delta, order, after, counted, refusal)
    # A cap holds at the delta of the first run: a larger one would make it cheaper.
    cap, delta, order = stated or opened.cap_epsilon, opened.cap_delta, opened.cap_order
    after = filter_epsilon(lifetime, delta, order)
    first = filter_epsilon(history.first, delta, order)
    refusal = _other_unit(plan, history, name) or _broken_promise(plan, opened, name)
    if refusal is None and max(first, after) > cap:
        refusal = _passes_filter(name, first, after, cap)
    return Standing(
        runs=len(history.runs),
        spent=history.totals()[1],
        cap=cap,
        former_cap=opened.cap_epsilon,
        delta=delta,
        order=order,
        after=after,
        least_cap=first,
        refusal=refusal,
    )


def standings(config: RunConfig, plan: Plan) -> dict[str, Standing | str]:
    """What is left to every client of a configuration, before anything is opened.

    Nothing is locked and nothing is written: a run may be going on meanwhile.

    Returns:
        For each client what the run would do, or, where its ledger cannot be used, why.
    """
    folder = RunFolder.of(Path(), config)
    found: dict[str, Standing | str] = {}
    for client in plan.clients:
        try:
            history = History(client.name, Role.CLIENT)
            if folder.is_shared:
                history = own_history(folder, client.name)
                _check_closed(history, client.name)
        except (LedgerError, StateError) as error:
            found[client.name] = " ".join(str(error).split())
            continue
        found[client.name] = standing(config, plan, client.name, history)
    return found


def own_history(folder: RunFolder, name: str) -> History:
    """What a client's ledger says, if there is one.

    Raises:
        LedgerError: it does not verify.
        StateError: it was there, and is gone.
    """
    path = folder.own_ledger(name)
    _check_there(folder, name)
    if not path.exists():
        return History(name, Role.CLIENT)
    return read_history(path, existing_identity(folder.private(name)), name)


def check_budgets(config: RunConfig, plan: Plan, folder: RunFolder, run: bytes) -> None:
    """Refuse a run that one client's budget refuses, before any client opens it.

    A run that some had opened and others refused could never be finished, and would
    keep the data sets of the former from every other run.

    Args:
        config: the run's configuration.
        plan: the run's plan.
        folder: where its files are.
        run: the run's handle; a client that has opened it already is not asked again.

    Raises:
        BudgetExceededError, LedgerError, StateError: as `open_client_ledger`.
    """
    for client in plan.clients:
        history = own_history(folder, client.name)
        if history.run == run:
            continue
        _check_closed(history, client.name)
        found = standing(config, plan, client.name, history)
        if found.refusal is not None:
            raise BudgetExceededError(found.refusal)


def open_client_ledger(
    config: RunConfig,
    plan: Plan,
    folder: RunFolder,
    name: str,
    key: SigningKey,
    run: bytes,
    units: Iterable[str] = (),
    check: Callable[[History, bytes], None] | None = None,
) -> Ledger:
    """Open a client's ledger for a run, and open the run in it where it is new.

    Args:
        config: the run's configuration.
        plan: the run's plan.
        folder: where its files are.
        name: the client.
        key: its identity.
        run: the run's handle.
        units: ids of all units of its data set, which no other data set of a shared
            store may have spent.
        check: refuses what else speaks against the run; called with the ledger's
            history and the run while nobody else can write the ledger.

    Raises:
        BudgetExceededError: the run as registered would pass the client's cap.
        LedgerError: the ledger does not verify.
        StateError: the ledger is in the middle of another run, or units of this data
            set have a budget under another name.
    """
    path = folder.own_ledger(name)
    if folder.is_shared:
        private_directory(path.parent)
    _check_there(folder, name)
    ledger = Ledger.open(path, key, party=name, role=Role.CLIENT)
    try:
        record = _opening(config, plan, folder, name, ledger, run)
        if check is not None:
            check(ledger.history, run)
        agreed = config.client_named(name).shares_units_with
        claim_units(folder, name, units, run, agreed)
        if record is not None:
            ledger.append(record)
    except BaseException:
        ledger.close()
        raise
    return ledger


def _opening(
    config: RunConfig,
    plan: Plan,
    folder: RunFolder,
    name: str,
    ledger: Ledger,
    run: bytes,
) -> ClientOpened | None:
    """What opens a run in a ledger; None where it is open, or was closed already."""
    history = ledger.history
    if history.run == run:
        # Closed already where the run was interrupted between its end and its summary.
        check_pinned(ledger, plan, folder)
        return None
    if run in history.runs:
        raise StateError(
            f"The ledger of client {name} has gone on with another run since.",
            "Start anew, with an output folder that does not exist yet.",
        )
    if folder.of_run(name, run).exists():
        raise StateError(
            f"Client {name} has taken part in this run, and its ledger is gone.",
            "Restore the ledger with its .head file: without it charges are forgotten.",
        )
    _check_closed(history, name)
    found = standing(config, plan, name, history)
    if found.refusal is not None:
        raise BudgetExceededError(found.refusal)
    opened = history.opened if isinstance(history.opened, ClientOpened) else None
    return ClientOpened(
        run=run,
        software=software(),
        plan=plan.to_json(),
        plan_digest=plan.digest_bytes,
        roster={who: k.raw for who, k in folder.roster(plan).items()},
        data=system_entropy(HANDLE_BYTES) if opened is None else opened.data,
        cap_epsilon=found.cap,
        cap_delta=found.delta,
        cap_order=found.order,
    )


def _check_there(folder: RunFolder, name: str) -> None:
    """Refuse to begin at 0 where a ledger was.

    The file is made before the units are noted, so that none is missing after a crash.

    Raises:
        StateError: what lies beside the ledger is there, and the ledger is not.
    """
    path = folder.own_ledger(name)
    beside = path.with_name(path.name + HEAD_SUFFIX)
    noted = beside.exists() or had_units(folder, name)
    if folder.is_shared and noted and not path.exists():
        raise StateError(
            f"The data of client {name} were in a run, and their ledger is gone.",
            "Restore it from a backup, with its .head file; without it charges are "
            "forgotten.",
        )


def _check_closed(history: History, name: str) -> None:
    """A run that was opened and charged nothing may be left where it is."""
    if history.phase is not Phase.CLOSED and history.charges:
        raise StateError(
            f"The ledger of client {name} is in the middle of another run.",
            "Finish that run first, with the same command and output folder, or end "
            f"this client's part by `fgrpo site close DIR --client {name}`.",
        )


def check_pinned(ledger: Ledger, plan: Plan, folder: RunFolder) -> None:
    """Hold the run's folder to what the ledger pinned when the run was opened.

    The files of plan and keys are in reach of others; the signed ledger is not.

    Raises:
        StateError: the folder now says another plan or other keys.
    """
    opened = ledger.history.opened
    keys = {who: key.raw for who, key in folder.roster(plan).items()}
    if (
        opened is None
        or opened.plan_digest != plan.digest_bytes
        or dict(opened.roster) != keys
    ):
        ledger.close()
        raise StateError(
            f"{folder.root} holds another plan or other keys than {ledger.path.name} "
            "pinned.",
            "Restore plan.json and keys/; a run changes neither.",
        )


def _passes_cap(name: str, after: Decimal, cap: Decimal) -> str:
    return (
        f"client {name!r}: this run would bring the data set's epsilon to {after}, "
        f"above its cap {cap}; raise epsilon_cap in its [[client]] table if its owner "
        "agrees, or run fewer rounds"
    )


def _passes_filter(name: str, first: Decimal, after: Decimal, cap: Decimal) -> str:
    """The text for a later run, which has to say why its figures are larger."""
    counted = (
        f"this run would bring the data set's epsilon to {after}"
        if after > cap
        else f"the first run in its ledger counts {first} in full"
    )
    return (
        f"client {name!r}: {counted}, above its cap {cap}, since over several runs the "
        "Renyi filter counts, whose figures are larger than a single run's; raise "
        f"epsilon_cap in its [[client]] table to {max(first, after)} or more if its "
        "owner would have agreed to that before the first run"
        + (", or run fewer rounds" if first <= cap else "")
    )


def _other_unit(plan: Plan, history: History, name: str) -> str | None:
    """A budget is one of one kind of unit."""
    if history.terms is None or history.terms.unit == plan.unit:
        return None
    return (
        f"the ledger of client {name!r} counts what units by {history.terms.unit!r} "
        f"have spent, and this run protects units by {plan.unit!r}; run it with the "
        "unit of the ledger: another name would give the same rows a second budget"
    )


def _broken_promise(plan: Plan, opened: ClientOpened, name: str) -> str | None:
    """Keep baselines that promise nothing and runs that do in ledgers apart."""
    if plan.promises_privacy == opened.cap_epsilon.is_finite():
        return None
    if plan.promises_privacy:
        return (
            f"the ledger of client {name!r} holds a baseline without noise, after "
            "which no epsilon is left to promise; this data set has none any more"
        )
    return (
        f"the ledger of client {name!r} caps what its data may spend, and a "
        "baseline without noise (epsilon = inf) passes every cap; run baselines "
        "on public data, with a [machine] state of their own"
    )
