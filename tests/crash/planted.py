"""Faults that the tests of crashes must see, each planted into the program and killed.

A harness that finds nothing proves something only if it would have found these.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fgrpo_secure.learner
import fgrpo_secure.secrets
import privacy.ledger.remembered
from privacy.contribution import Contribution, registered_event
from privacy.ledger import Intent, Ledger, spends_after
from tests.crash.campaigns import at
from tests.crash.checks import broken_at_the_end, broken_now
from tests.crash.power import NAMES_KEPT, NAMES_LOST
from tests.crash.world import World


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: what is wrong, in words.
        plant: makes it, in the program's process.
        boundary: where it is killed.
        scope: how.
        said: what the checks must say.
    """

    name: str
    plant: Callable[[], None]
    boundary: str
    scope: str
    said: str


def charge_late() -> None:
    """Charge when the vector is sealed, and not before the draw."""

    def late(plan, name, *, round_number, attempt, ledger, entropy):
        event = registered_event(plan, name)
        spend, lifetime = spends_after(ledger.history, event, 1)
        intent = Intent(round_number, attempt, event, 1, spend, lifetime)
        contribution = Contribution(plan, name, intent, ledger, entropy)
        seal = contribution.seal

        def charged_seal():
            ledger.append(intent)
            return seal()

        contribution.seal = charged_seal
        return contribution

    fgrpo_secure.learner.charge = late


def sync_no_line() -> None:
    """Leave it to the system when a line of a ledger reaches the disk."""
    Ledger._write = lambda ledger, data: os.write(ledger._descriptor, data)


def acknowledge_first() -> None:
    """Remember a line before it was written."""
    write, remember = Ledger._write, Ledger._remember
    kept: list[bytes] = []

    def remember_and_write(ledger: Ledger, head: object) -> None:
        remember(ledger, head)
        if kept:
            write(ledger, kept.pop())

    Ledger._write = lambda ledger, data: kept.append(data)
    Ledger._remember = remember_and_write


def write_in_place() -> None:
    """Write over a file without one beside it."""

    def in_place(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        descriptor = os.open(path, flags, mode)
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)

    fgrpo_secure.secrets.replace_file = in_place
    privacy.ledger.remembered.replace_file = in_place


def sync_no_directory() -> None:
    """Make directories whose names no loss of power leaves."""

    def make(path: Path, *, mode: int = 0o777) -> None:
        path.mkdir(mode, parents=True, exist_ok=True)

    fgrpo_secure.secrets.make_directory = make


FAULTS = (
    Fault(
        "a charge after the draw",
        charge_late,
        "client statistic",
        "machine",
        "fewer are charged",
    ),
    Fault(
        "a line that was not synced",
        sync_no_line,
        "client noise",
        NAMES_KEPT,
        "fewer are charged",
    ),
    Fault(
        "a line that was remembered before it was written",
        acknowledge_first,
        "client write line joined",
        "machine",
        "did not go on",
    ),
    Fault(
        "a plan that is written in place",
        write_in_place,
        "server tear run/plan.json",
        "machine",
        "did not go on",
    ),
    Fault(
        "a head that is written in place",
        write_in_place,
        "client tear head intent",
        "machine",
        "did not go on",
    ),
    Fault(
        "a directory that was not synced",
        sync_no_directory,
        "client noise",
        NAMES_LOST,
        "fewer are charged",
    ),
)


def unseen(world: World) -> list[str]:
    """The faults that the checks did not see."""
    missed = []
    for number, fault in enumerate(FAULTS):
        run = world.run(f"planted-{number}")
        judge = at(fault.boundary, 1, fault.scope)
        life = run.live(judge, planted=fault.plant)
        wrong = broken_now(run, life)
        wrong += broken_at_the_end(run, run.live())
        if not any(fault.said in text for text in wrong):
            missed.append(f"{fault.name}: {life.ended} {wrong}")
    return missed
