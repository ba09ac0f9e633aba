"""What `fgrpo site close` does: what an operator can do at its own site alone."""

# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgrpo_secure.errors import ConfigurationError, StateError

if TYPE_CHECKING:
    from fgrpo_secure.closing import Closed
    from fgrpo_secure.folders import RunFolder


def close_runs(options: argparse.Namespace) -> int:
    """End the part of one or more clients in a run that cannot go on."""
    from fgrpo_secure.closing import close_at_site
    from fgrpo_secure.folders import held

    root: Path | None = options.place if options.place.is_dir() else None
    folder, known = _folder(options.place, root)
    for name in options.names:
        if name not in known:
            raise ConfigurationError(
                f"There is no client {name} in the configuration.",
                f"Name one of: {', '.join(known)}.",
            )
    run = None if root is None else _run_of(root)
    # Whoever runs in the folder would go on with a ledger that is closed.
    with held(root) if root is not None else nullcontext():
        found = [close_at_site(folder, name, run) for name in options.names]
    if options.json:
        print(json.dumps([_facts(one) for one in found], indent=2))
        return 0
    for one in found:
        print("\n".join(_words(one)))
    return 0


def _folder(place: Path, root: Path | None) -> tuple[RunFolder, list[str]]:
    """Where ledgers lie, and the clients that the configuration names."""
    from fgrpo_secure.config import load_config
    from fgrpo_secure.folders import RunFolder

    config, _ = load_config(str(place if root is None else root / "config.toml"))
    if root is None and config.machine.state is None:
        raise ConfigurationError(
            "Without [machine] state the ledgers lie in the run's folder.",
            "Give that folder in place of the configuration.",
        )
    folder = RunFolder.of(root or Path(), config)
    return folder, [client.name for client in config.client]


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
