"""A small run written through the real `Ledger`: three clients, three rounds.

Round 1 publishes the sum of all, round 2 aborts, round 3 publishes without gamma.
"""

import hashlib
import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from privacy.crypto import Label, SigningKey, sha256
from privacy.ledger import (
    Aborted,
    ClientClosed,
    ClientOpened,
    Commit,
    Event,
    Intent,
    Joined,
    Ledger,
    Moved,
    Outcome,
    Published,
    Reason,
    Role,
    Roster,
    RoundOpened,
    ServerClosed,
    ServerOpened,
    Shown,
    Status,
    Survivors,
    cap_order,
    commitment,
    spends_after,
    write_key_file,
)
from privacy.ledger.envelope import GENESIS, line_hash, open_line, seal_line
from privacy.plan import SERVER, Plan, Weighting
from privacy.wire import canonical_json
from tests.plans import cohort

CLIENTS = ("alpha", "beta", "gamma")
RUN = bytes(range(16))
SOFTWARE = "fgrpo-secure 0.1.0"


def price(charges, delta, rounds):
    """An accountant that is quick: it adds, and depends on all its arguments."""
    count = sum(
        number * event.norm_bound // event.norm_bound for event, number in charges
    )
    return count * Decimal("1.5") + delta, count * Decimal(2) + rounds * delta


def make_plan(**changes):
    terms = {
        "unit": "prompt",
        "max_prompts_per_unit": 1,
        "trust": "distributed",
        "epsilon": "8",
        "delta": "0.00001",
        "rounds": 3,
        "local_steps": 1,
        "inner_steps": 1,
        "clip_norm": Fraction(1),
        "norm_bound": 1024,
        "noise_variance": 2**22,
        "statistic_norm_bound": 16,
        "statistic_variance": 4096,
        "modulus_bits": 32,
        "rotation": False,
        "dimension": 4,
        "min_survivors": 2,
        "colluders": 0,
        "clients": cohort(*[2000] * len(CLIENTS), rate=Fraction(1, 50), names=CLIENTS),
        "weighting": Weighting(
            "fgrpo", "relative", Fraction(1), Fraction(1, 2), Fraction(3)
        ),
        "recipe": "ab" * 32,
    }
    return Plan(**(terms | changes))


def make_key(name, tag=""):
    return SigningKey(hashlib.sha256(f"{name}{tag}".encode()).digest())


def digest(*words):
    return sha256(Label.OFFER, *(str(word).encode() for word in words))


def event_of(plan):
    return Event(
        sampling_rate=plan.sampling_rate,
        inner_steps=plan.inner_steps,
        norm_bound=plan.norm_bound,
        noise_variance=plan.noise_variance,
        statistic_norm_bound=plan.statistic_norm_bound,
        statistic_variance=plan.statistic_variance,
    )


def number(figure):
    """As a summary has it: JSON has no infinity."""
    return float(figure) if math.isfinite(float(figure)) else None


class SyntheticClient:
    """One client's side; every step is one record."""

    def __init__(self, ledger, plan, price=price, run=RUN, adapters=None):
        self.ledger, self.plan, self.price = ledger, plan, price
        self.run, self.adapters = run, adapters or ADAPTERS

    def open(self, roster, run=None, **changes):
        values = {
            "run": run or self.run,
            "software": SOFTWARE,
            "plan": self.plan.to_json(),
            "plan_digest": self.plan.digest_bytes,
            "roster": roster,
            "data": bytes(16),
            "cap_epsilon": Decimal(20),
            "cap_delta": Decimal("0.0001"),
        }
        both = values | changes
        before = self.ledger.history.opened
        values["cap_order"] = (
            before.cap_order
            if before
            else cap_order(event_of(self.plan), both["cap_epsilon"], both["cap_delta"])
        )
        return self.ledger.append(ClientOpened(**(values | changes)))

    def join(self, number, attempt=1):
        before = digest("adapter", self.adapters[number])
        return self.ledger.append(
            Joined(number, attempt, digest("offer", number), before)
        )

    def shown(self, number, attempt=1, **changes):
        values = {
            "roster_hash": digest("roster", number),
            "sharers_hash": digest("sharers", number),
        }
        return self.ledger.append(Shown(number, attempt, **(values | changes)))

    def intent(self, number, attempt=1, **changes):
        event = changes.pop("event", event_of(self.plan))
        history = self.ledger.history
        releases = self.plan.local_steps
        values = {
            "round": number,
            "attempt": attempt,
            "event": event,
            "releases": releases,
        }
        spend, lifetime = spends_after(history, event, releases, self.price)
        values |= {"spend": spend, "lifetime": lifetime}
        return self.ledger.append(Intent(**(values | changes)))

    def commit(self, number, attempt=1, vector=b"vector"):
        binding = commitment(bytes(32), vector)
        return self.ledger.append(Commit(number, attempt, binding, 5, 32))

    def outcome(self, number, status, reason=None, attempt=1, **told):
        values = {
            "survivors": (),
            "adapter_digest": None,
            "server_head": None,
            "transcript": None,
        }
        return self.ledger.append(
            Outcome(number, attempt, status, reason, **(values | told))
        )

    def close(self):
        history = self.ledger.history
        spend, lifetime = history.totals()
        return self.ledger.append(
            ClientClosed(
                records=history.records + 1,
                published=history.published,
                aborted=history.aborted,
                missed=history.missed,
                spend=spend,
                lifetime=lifetime,
            )
        )


# What each round of the run starts from; the last is what the third one leads to.
ADAPTERS = {1: "zero", 2: "one", 3: "one", 4: "three"}


def adapter_before(number):
    return digest("adapter", ADAPTERS[number])


def adapter_after(number):
    return adapter_before(number + 1)


class SyntheticRun:
    """All parties of one run in a folder as `fgrpo run` lays it out.

    Args:
        directory: an empty folder.
        plan: the terms.
        keys: signing keys by party.
        price: the accountant.
        run: the handle.
        adapters: what each round starts from, and the one after the last.
    """

    def __init__(
        self,
        directory,
        plan=None,
        *,
        keys=None,
        price=price,
        run=RUN,
        adapters=None,
    ):
        self.directory = Path(directory)
        self.plan = plan or make_plan()
        self.run, self.adapters = run, adapters or ADAPTERS
        self.names = tuple(client.name for client in self.plan.clients)
        self.keys = keys or {name: make_key(name) for name in (*self.names, SERVER)}
        self.roster = {name: key.verify_key.raw for name, key in self.keys.items()}
        (self.directory / "ledger").mkdir()
        (self.directory / "keys").mkdir()
        for name, key in self.keys.items():
            write_key_file(self.directory / f"keys/{name}.pub", key.verify_key)
        (self.directory / "plan.json").write_bytes(canonical_json(self.plan.to_json()))
        self.survivors = ()
        self.server = self.ledger(SERVER, Role.SERVER)
        self.clients = {
            name: SyntheticClient(
                self.ledger(name, Role.CLIENT), self.plan, price, run, self.adapters
            )
            for name in self.names
        }

    def ledger(self, name, role):
        path = self.directory / f"ledger/{name}.jsonl"
        return Ledger.open(path, self.keys[name], party=name, role=role)

    def open(self, **changes):
        self.server.append(
            ServerOpened(
                self.run,
                SOFTWARE,
                self.plan.to_json(),
                self.plan.digest_bytes,
                self.roster,
            )
        )
        for client in self.clients.values():
            client.open(self.roster, **changes)

    def adapter(self, number):
        """What a round starts from."""
        return digest("adapter", self.adapters[number])

    def gather(self, number, members=None, *, shown=()):
        """Offer a round, join it, advertise, charge.

        Args:
            number: of the round.
            members: who joins.
            shown: what some of them write down of what they were shown, by name.
        """
        members = self.names if members is None else members
        self.server.append(
            RoundOpened(number, 1, digest("offer", number), self.adapter(number))
        )
        for name in members:
            self.clients[name].join(number)
        self.server.append(Roster(number, 1, members, digest("roster", number)))
        for name in members:
            if name in shown:
                self.clients[name].shown(number, **dict(shown)[name])
            self.clients[name].intent(number)

    def count(self, number, survivors, members=None):
        """Commit, and count the vectors; returns the heads that came with them."""
        heads = {name: self.clients[name].commit(number) for name in survivors}
        self.server.append(
            Survivors(
                number,
                1,
                self.names if members is None else members,
                survivors,
                digest("sharers", number),
                digest("survivors", number),
            )
        )
        return heads

    def publish(self, number, survivors, members=None, adapter=None):
        """Count, open the sum, tell everybody."""
        members = self.names if members is None else members
        after = adapter or self.adapter(number + 1)
        heads = self.count(number, survivors, members)
        head = self.server.append(
            Published(
                number,
                1,
                survivors,
                digest("sum", number),
                self.adapter(number),
                after,
                digest("transcript", number),
                heads,
            )
        )
        self.survivors = survivors
        told = {
            "survivors": survivors,
            "adapter_digest": after,
            "server_head": head,
            "transcript": digest("transcript", number),
        }
        for name in members:
            if name in survivors:
                self.clients[name].outcome(number, Status.PUBLISHED, **told)
            else:
                self.clients[name].outcome(
                    number, Status.MISSED, Reason.LEFT_OUT, **told
                )

    def abort(self, number, members=None):
        head = self.server.append(
            Aborted(number, 1, Reason.BELOW_THRESHOLD, self.names[1:])
        )
        for name in self.names if members is None else members:
            self.clients[name].outcome(
                number, Status.ABORTED, Reason.SERVER_ABORTED, server_head=head
            )

    def move(self, number):
        """The sums of other cohorts moved the adapter."""
        self.server.append(
            Moved(number, 1, self.adapter(number), self.adapter(number + 1))
        )

    def rounds(self):
        self.gather(1)
        self.publish(1, self.names)
        self.gather(2)
        self.abort(2)
        self.gather(3)
        self.publish(3, ("alpha", "beta"))

    def finish(self):
        for client in self.clients.values():
            client.close()
        self.close_server()
        self.write_summary()

    def close_server(self):
        history = self.server.history
        self.server.append(
            ServerClosed(history.records + 1, history.published, history.aborted)
        )

    def write_summary(self, **changes):
        spends = {
            name: client.ledger.history.totals()[0]
            for name, client in self.clients.items()
        }
        history = self.server.history
        summary = {
            "epsilon": number(max(spend.epsilon_pld for spend in spends.values())),
            "delta": number(self.plan.delta),
            "target_epsilon": number(self.plan.epsilon),
            "rounds_completed": history.published,
            "rounds_aborted": history.aborted,
            "plan_digest": self.plan.digest,
            "survivors": list(self.survivors),
            "clients": [
                {"name": name, "reward_before": 0.2, "epsilon": number(s.epsilon_pld)}
                for name, s in spends.items()
            ],
            "reward_before": 0.2,
            "seconds": 1.5,
        }
        text = json.dumps(summary | changes, indent=2)
        (self.directory / "summary.json").write_text(text)

    def close_files(self):
        self.server.close()
        for client in self.clients.values():
            client.ledger.close()


def write_run(directory, plan=None):
    """A finished, honest run."""
    run = SyntheticRun(directory, plan)
    run.open()
    run.rounds()
    run.finish()
    run.close_files()
    return run


def payloads(path):
    """The records of a ledger file as JSON objects, unverified."""
    lines = Path(path).read_bytes().splitlines()
    return [json.loads(open_line(line).payload) for line in lines]


def forge(records, key, *, relink=True):
    """Sign records as their owner could: numbers and links made whole again."""
    lines, prev = [], GENESIS
    for seq, record in enumerate(records):
        linked = record | {"seq": seq, "prev": prev.hex()} if relink else record
        line = seal_line(canonical_json(linked), key)
        prev = line_hash(line)
        lines.append(line + b"\n")
    return b"".join(lines)
