"""What `fgrpo site close` does: what an operator can do at its own site alone."""

# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgrpo_secure.errors import ConfigurationError, StateError

if TYPE_CHECKING:
    from fgrpo_secure.closing import Closed
    from fgrpo_secure.config import RunConfig
    from privacy.plan import Plan


def close_runs(options: argparse.Namespace) -> int:
    """End the part of one or more clients in a run that cannot go on."""
    from fgrpo_secure.closing import close_at_site
    from fgrpo_secure.folders import RunFolder, held

    root: Path | None = options.place if options.place.is_dir() else None
    config = _config(options.place, root)
    known = [client.name for client in config.client]
    for name in options.names:
        if name not in known:
            raise ConfigurationError(
                f"There is no client {name} in the configuration.",
                f"Name one of: {', '.join(known)}.",
            )
    found = []
    with ExitStack() as holding:
        # Whoever runs in the folder would go on with a ledger that is closed.
        for place in _held_by_a_run(root):
            holding.enter_context(held(place))
        for name in options.names:
            part = None if root is None else _part_of(root, name)
            folder = RunFolder.of(part or Path(), config)
            run = None if part is None else _run_of(part)
            found.append(close_at_site(folder, name, run))
    if options.json:
        print(json.dumps([_facts(one) for one in found], indent=2))
        return 0
    for one in found:
        print("\n".join(_words(one)))
    return 0


def _config(place: Path, root: Path | None) -> RunConfig:
    """The configuration that says where ledgers lie."""
    from fgrpo_secure.config import load_config

    config, _ = load_config(str(place if root is None else root / "config.toml"))
    if root is None and config.machine.state is None:
        raise ConfigurationError(
            "Without [machine] state the ledgers lie in the run's folder.",
            "Give that folder in place of the configuration.",
        )
    return config


def _held_by_a_run(root: Path | None) -> list[Path]:
    """What a process that runs in a folder, or in a cohort's, holds."""
    from privacy.ledger import is_cohort_folder

    if root is None:
        return []
    return [root, root.resolve().parent] if is_cohort_folder(root) else [root]


def _part_of(root: Path, name: str) -> Path:
    """The folder of a client's cohort; the run's own where there is one cohort."""
    from privacy.ledger import cohort_folders

    parts = cohort_folders(root) or [root]
    if parts == [root]:
        return root
    for part in parts:
        if any(client.name == name for client in _plan_of(part).clients):
            return part
    raise StateError(
        f"No cohort of {root} has a client {name}.",
        "Nothing has to be done, unless files of that folder are missing.",
    )


def _plan_of(part: Path) -> Plan:
    from privacy.plan import Plan
    from privacy.wire import parse_canonical_json

    path = part / "plan.json"
    if not path.exists():
        raise StateError(
            f"{part} has no plan.json.",
            "Restore it, or give the configuration in place of the folder.",
        )
    return Plan.from_json(parse_canonical_json(path.read_bytes()))


def _run_of(root: Path) -> bytes | None:
    """The run that a folder is of, where its server's ledger is there."""
    from privacy.ledger.chain import read_chain
    from privacy.plan import SERVER

    path = root / "ledger" / f"{SERVER}.jsonl"
    if not path.exists():
        return None
    chain = read_chain(path.read_bytes(), path.name, None)
    if not chain.entries:
        raise StateError(
            f"{path} says of no run.", "Give the configuration in place of the folder."
        )
    return chain.entries[0].header.run


def _facts(one: Closed) -> dict[str, Any]:
    from fgrpo_secure.display import stated_epsilon
    from privacy.ledger import claimed_epsilon

    return {
        "client": one.client,
        "run": one.run.hex(),
        "plan": one.plan,
        "already_closed": one.already,
        "rounds_published": one.published,
        "rounds_ended_otherwise": one.ended,
        "charges": one.spend.charges,
        "epsilon": stated_epsilon(claimed_epsilon(one.spend)),
        "delta": float(one.spend.delta),
        "lifetime_charges": one.lifetime.charges,
        "lifetime_epsilon": stated_epsilon(claimed_epsilon(one.lifetime)),
        "lifetime_delta": float(one.lifetime.delta),
        "cap": stated_epsilon(one.opened.cap_epsilon),
    }


def _words(one: Closed) -> list[str]:
    from privacy.ledger import claimed_epsilon, decimal_text

    spend, lifetime = one.spend, one.lifetime
    state = "was closed before; nothing was written" if one.already else "is closed"
    return [
        f"{one.client}: run {one.run.hex()} of plan {one.plan[:16]} {state}",
        f"  rounds      {one.published} with this client in the sum, {one.ended} that "
        "came to nothing it knows of",
        f"  spent       epsilon {decimal_text(claimed_epsilon(spend))} at delta "
        f"{decimal_text(spend.delta)}, {spend.charges} charges",
        f"  all runs    epsilon {decimal_text(claimed_epsilon(lifetime))} at delta "
        f"{decimal_text(lifetime.delta)}, {lifetime.charges} charges, of a cap of "
        f"{decimal_text(one.opened.cap_epsilon)}",
    ]
