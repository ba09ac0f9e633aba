"""What a run's folder holds before anything runs: plans, keys, and opened ledgers.

A folder holds one run. One that is begun is gone on with, if its plans are the same,
and one that is finished is never touched again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path

from fgrpo_secure.budget import check_pinned
from fgrpo_secure.checkpoint import Checkpoint, write_checkpoint
from fgrpo_secure.config import RunConfig
from fgrpo_secure.errors import StateError
from fgrpo_secure.folders import RunFolder, cohort_roots
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.registration import register_cohorts
from fgrpo_secure.secrets import (
    identity_key,
    private_directory,
    write_atomically,
)
from fgrpo_secure.server_optimizer import OptimizerState
from fgrpo_secure.software import software
from fgrpo_secure.task import load_run_policy, public_size
from privacy.crypto import SigningKey, VerifyKey
from privacy.ledger import (
    HANDLE_BYTES,
    Ledger,
    Role,
    ServerOpened,
    cohort_folders,
)
from privacy.ledger.durable import UNFINISHED_SUFFIX, make_directory
from privacy.plan import SERVER, Plan
from privacy.randomness import system_entropy
from privacy.wire import canonical_json

_PLAN = "plan.json"


def make_plan(config: RunConfig) -> tuple[Plan, Policy]:
    """As `make_plans`, of a configuration whose clients are one cohort."""
    (plan,), policy = make_plans(config)
    return plan, policy


def make_plans(config: RunConfig) -> tuple[tuple[Plan, ...], Policy]:
    """Register the cohorts' plans of a configuration; nothing runs or is spent.

    Raises:
        FgrpoError, PrivacyError: what is wrong with it.
    """
    sizes = {client.name: public_size(config, client) for client in config.client}
    policy = load_run_policy(config)
    dimension = adapter.read_vector(policy.model).size
    return register_cohorts(config, sizes, dimension), policy


def default_folder(name: str) -> Path:
    """`runs/<config>-<UTC>`, new, also where the clock shows a time that has been."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    first = Path("runs") / f"{name}-{stamp}"
    others = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return next(path for path in chain([first], others) if not path.exists())


def check_folder(root: Path) -> None:
    """Refuse a folder in which no run can begin or go on.

    Raises:
        StateError: it holds a finished run, or something else.
    """
    if (root / "summary.json").exists():
        raise StateError(
            f"{root} holds a finished run.",
            "Choose another --output, or leave it out to get a new folder.",
        )
    # Whoever died while it wrote a plan has left no more than a piece of it.
    listed = root.iterdir() if root.exists() else ()
    others = {path.name for path in listed} - {_PLAN + UNFINISHED_SUFFIX}
    if others and not _begun(root):
        raise StateError(
            f"{root} is not empty and is not a run.",
            "Choose another --output: nothing is written over other files.",
        )


def _begun(root: Path) -> set[str]:
    """The folders of the cohorts that a run's folder holds; "" is its own."""
    own = {""} if (root / _PLAN).exists() else set()
    return own | {folder.name for folder in cohort_folders(root)}


def prepare_folders(
    root: Path,
    config: RunConfig,
    plans: Sequence[Plan],
    keys: Mapping[str, VerifyKey] | None = None,
) -> bool:
    """As `prepare_folder`, for each cohort of a run.

    Raises:
        StateError: the folder holds a run of other plans.
    """
    roots = cohort_roots(root, len(plans))
    names = {"" if place == root else place.name for place in roots}
    if not _begun(root) <= names:
        raise _other_plan(root)
    found = [
        prepare_folder(place, config, plan, root, keys)
        for place, plan in zip(roots, plans, strict=True)
    ]
    if len(plans) > 1:
        write_atomically(root / "config.toml", config.to_toml().encode())
    return any(found)


def _other_plan(root: Path) -> StateError:
    return StateError(
        f"{root} holds an unfinished run of another plan.",
        f"Go on with it by `fgrpo run {root / 'config.toml'} --output {root}`, "
        "or choose another --output for this configuration.",
    )


def prepare_folder(
    root: Path,
    config: RunConfig,
    plan: Plan,
    run_root: Path | None = None,
    keys: Mapping[str, VerifyKey] | None = None,
) -> bool:
    """Write what identifies a cohort's run; returns whether it was there already.

    Args:
        root: the cohort's folder.
        config: the run's configuration.
        plan: the cohort's.
        run_root: the run's folder, where it is another; the server's key is in it.
        keys: of all parties, as they were pinned; None where all parties are here, and
            what they have, or make now, is what is pinned.

    Raises:
        StateError: the folder holds a run of another plan.
    """
    run_root = run_root or root
    path = root / _PLAN
    if path.exists():
        if path.read_bytes() != canonical_json(plan.to_json()):
            raise _other_plan(run_root)
        resumed = True
    else:
        make_directory(root)
        write_atomically(path, canonical_json(plan.to_json()))
        resumed = False
    for name in ("ledger", "keys"):
        make_directory(root / name)
    write_atomically(root / "config.toml", config.to_toml().encode())
    folder = RunFolder.of(root, config)
    if keys is None:
        keys = _keys_of_all(folder, plan, run_root)
    fix = "Restore its private folder; a run cannot change identities."
    folder.pin(plan, keys, fix)
    return resumed


def _keys_of_all(folder: RunFolder, plan: Plan, root: Path) -> dict[str, VerifyKey]:
    """The public keys of parties that are all on this machine."""
    private_directory(folder.store)
    parties = {client.name: folder.private(client.name) for client in plan.clients}
    parties[SERVER] = root / SERVER
    return {name: identity_key(at).verify_key for name, at in parties.items()}


def open_server_ledger(
    folder: RunFolder, plan: Plan, private: Path, policy: Policy, key: SigningKey
) -> Ledger:
    """The server's ledger, with the run opened in it.

    Raises:
        LedgerError: the ledger does not verify.
        StateError: it pins another plan or other keys than the folder holds.
    """
    ledger = Ledger.open(folder.ledger(SERVER), key, party=SERVER, role=Role.SERVER)
    if ledger.history.opened is None:
        fresh = OptimizerState.fresh(plan.dimension)
        start = Checkpoint(adapter.to_bytes(policy.model), fresh)
        write_checkpoint(private, None, start)
        ledger.append(
            ServerOpened(
                run=system_entropy(HANDLE_BYTES),
                software=software(),
                plan=plan.to_json(),
                plan_digest=plan.digest_bytes,
                roster={who: k.raw for who, k in folder.roster(plan).items()},
            )
        )
    check_pinned(ledger, plan, folder)
    return ledger
