"""Runs of one client over the same private state, one after another."""

from decimal import Decimal

from fgrpo_secure.budget import open_client_ledger
from fgrpo_secure.config import load_config
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.secrets import identity_key, private_directory
from privacy.contribution import charge, registered_event
from privacy.crypto import SigningKey
from privacy.ledger import (
    ClientClosed,
    Joined,
    Outcome,
    Reason,
    Status,
    claimed_epsilon,
    filter_epsilon,
    spend_of,
    write_key_file,
)
from privacy.plan import SERVER
from privacy.wire import canonical_json
from tests.end_to_end.program import NAMES, records, write_config
from tests.plans import Counter, cohort, make_plan

NAME = "sums"
FIRST, SECOND = bytes(range(16)), bytes(range(16, 32))
CLIENTS = cohort(40, 40, 40, 40, names=NAMES)


def cost(plan, rounds, delta=None):
    """The epsilon of this many rounds, as it would be claimed."""
    event = registered_event(plan, plan.most_exposed)
    at = Decimal(delta or plan.delta)
    return claimed_epsilon(spend_of(((event, rounds),), at, rounds))


class Sites:
    """Runs of one client over the same private state."""

    def __init__(self, folder):
        self.path = write_config(folder / "given")
        self.folder = folder
        self.open_ledgers = []

    def config(self, *overrides):
        state = f'machine.state="{self.folder / "state"}"'
        return load_config(str(self.path), (state, *overrides))[0]

    def run_folder(self, name="run", plan=None, config=None):
        """A run's folder with everyone's key and the plan."""
        root = self.folder / name
        folder = RunFolder.of(root, config or self.config())
        if not root.exists():
            (root / "keys").mkdir(parents=True)
            (root / "ledger").mkdir()
            private_directory(folder.store)
            for number, party in enumerate([*NAMES, SERVER]):
                key = SigningKey(bytes([number + 1]) * 32)
                if party in NAMES:
                    key = identity_key(private_directory(folder.private(party)))
                write_key_file(folder.key(party), key.verify_key)
        if plan is not None:
            (root / "plan.json").write_bytes(canonical_json(plan.to_json()))
        return folder

    def open(self, plan, *overrides, run=FIRST, folder="run", units=()):
        """Open the client's ledger for a run, as its process would."""
        config = self.config(*overrides)
        place = self.run_folder(folder, config=config)
        key = identity_key(private_directory(place.private(NAME)))
        ledger = open_client_ledger(config, plan, place, NAME, key, run, units)
        self.open_ledgers.append(ledger)
        return ledger

    @property
    def ledger_path(self):
        return self.run_folder().own_ledger(NAME)

    def opened(self):
        return [r for r in records(self.ledger_path) if r["kind"] == "opened"]

    def complete(self, ledger, plan, rounds=None):
        """Charge every round of a run, or the first few, and close it."""
        rounds = rounds or plan.rounds
        for number in range(1, rounds + 1):
            ledger.append(Joined(number, 1, bytes(32), bytes(32)))
            charge(
                plan,
                NAME,
                round_number=number,
                attempt=1,
                ledger=ledger,
                entropy=Counter(str(number)),
            )
            ledger.append(
                Outcome(
                    number, 1, Status.MISSED, Reason.INTERRUPTED, (), None, None, None
                )
            )
        history = ledger.history
        spend, lifetime = history.totals()
        ledger.append(
            ClientClosed(
                records=history.records + 1,
                published=0,
                aborted=0,
                missed=rounds,
                spend=spend,
                lifetime=lifetime,
            )
        )
        ledger.close()


def plan_of(**changes):
    return make_plan(clients=CLIENTS, **changes)


def capped(epsilon):
    return f"client.{NAME}.epsilon_cap={epsilon}"


def filtered(sites, plan, rounds):
    """What the filter counts of this many rounds, at the order that was registered."""
    order = sites.opened()[0]["cap_order"]
    event = registered_event(plan, NAME)
    return filter_epsilon(((event, rounds),), Decimal(plan.delta), order)
