"""What the ledger must know of a plan, read from its JSON object.

A verifier meets plans as bytes from strangers, so that it reads the few terms that it
checks and trusts nothing else; the digest binds the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from privacy.errors import MalformedMessageError
from privacy.ledger.fields import NAME, NUMBER, codecs, from_object
from privacy.ledger.records import Event
from privacy.plan import (
    DISTRIBUTED,
    LOCAL,
    MAX_CLIENTS,
    PLAN_FORMAT,
    SERVER,
    threshold,
)
from privacy.wire import MAX_JSON_INTEGER, Json


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one plan that its ledgers are held to.

    Attributes:
        unit: what the guarantee protects.
        rounds: rounds registered.
        local_steps: events that one round charges.
        epsilon: target.
        delta: target.
        events: what a client is charged for one draw, by its name.
        modulus_bits: residues are modulo two to this power.
        min_survivors: fewest clients in a published sum.
        colluders: clients that may side with the server.
    """

    unit: str
    rounds: int
    local_steps: int
    epsilon: Decimal
    delta: Decimal
    events: Mapping[str, Event]
    modulus_bits: int
    min_survivors: int
    colluders: int

    @property
    def clients(self) -> frozenset[str]:
        """Names of the cohort."""
        return frozenset(self.events)

    @property
    def registered_charges(self) -> int:
        """Events that one client is charged over the whole run."""
        return self.rounds * self.local_steps

    @property
    def parties(self) -> frozenset[str]:
        """The cohort and the server."""
        return self.clients | {SERVER}

    def least_clients(self, members: int) -> int:
        """Fewest clients in a sum over a roster of `members` clients.

        It is what the protocol itself asks for: with fewer, shares for two different
        sums could be collected.
        """
        return max(threshold(members, self.colluders), self.min_survivors)


def read_terms(plan: Mapping[str, Json]) -> Terms:
    """Read the terms out of a plan's JSON object.

    Raises:
        MalformedMessageError: a term is missing or not in its form.
    """
    if plan.get("format") != PLAN_FORMAT:
        msg = f"a plan that is not of the format {PLAN_FORMAT}"
        raise MalformedMessageError(msg)
    if plan.get("trust") not in (DISTRIBUTED, LOCAL):
        msg = "a plan without a trust model"
        raise MalformedMessageError(msg)
    local_steps = _positive(plan, "local_steps")
    if plan.get("trust") != LOCAL and (local_steps, plan.get("inner_steps")) != (1, 1):
        msg = "a plan of several steps without local trust"
        raise MalformedMessageError(msg)
    unit = plan.get("unit")
    if not isinstance(unit, str):
        msg = "a plan without a unit"
        raise MalformedMessageError(msg)
    return Terms(
        unit=unit,
        rounds=_positive(plan, "rounds"),
        local_steps=local_steps,
        epsilon=_decimal(plan, "epsilon"),
        delta=_decimal(plan, "delta"),
        events=_events(plan),
        modulus_bits=_positive(plan, "modulus_bits"),
        min_survivors=_positive(plan, "min_survivors"),
        colluders=_whole(plan, "colluders", 0),
    )


def _positive(plan: Mapping[str, Json], name: str) -> int:
    return _whole(plan, name, 1)


def _whole(plan: Mapping[str, Json], name: str, least: int) -> int:
    value = plan.get(name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and isinstance(value, int) and least <= value <= MAX_JSON_INTEGER:
        return value
    msg = f"a plan without a whole number {name!r} from {least}"
    raise MalformedMessageError(msg)


def _decimal(plan: Mapping[str, Json], name: str) -> Decimal:
    # A plan has one text, and so has each of its numbers.
    try:
        value = NUMBER.decode(plan.get(name))
    except MalformedMessageError:
        value = Decimal(0)
    if value > 0 and (name != "delta" or value < 1):
        return value
    msg = f"a plan without a decimal {name!r} above 0"
    raise MalformedMessageError(msg)


def _events(plan: Mapping[str, Json]) -> Mapping[str, Event]:
    """What each client's draw costs: the plan's terms, and the client's own rate."""
    shared = {name: plan.get(name) for name in codecs(Event)}
    clients = plan.get("clients")
    events: dict[str, Event] = {}
    names: list[str] = []
    for client in clients if isinstance(clients, list) else []:
        if isinstance(client, dict):
            # A verifier makes file names of it.
            name = NAME.decode(client.get("name"))
            own = shared | {"sampling_rate": client.get("sampling_rate")}
            events[name] = from_object(Event, own)
            names.append(name)
    if (
        not isinstance(clients, list)
        or not 0 < len(names) <= MAX_CLIENTS
        or len(names) != len(clients)
        or names != sorted(set(names))
        or SERVER in names
    ):
        msg = "a plan without a sorted list of named clients"
        raise MalformedMessageError(msg)
    return events
