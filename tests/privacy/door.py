"""A client's ledger at which rounds are begun, for tests of the one door out."""

from decimal import Decimal
from fractions import Fraction

from privacy.contribution import charge, registered_event
from privacy.crypto import SigningKey
from privacy.ledger import (
    ClientOpened,
    Joined,
    Ledger,
    Outcome,
    Reason,
    Role,
    Status,
    cap_order,
)
from privacy.plan import SERVER, WEIGHT_ONE
from privacy.vectors import from_residues
from tests.plans import NAMES, NO_STATISTIC, UNIFORM
from tests.privacy.ledger.synthetic import payloads

UNITS = [f"unit-{number}" for number in range(40)]
EVERYTHING = {
    "sampling_rate": Fraction(1),
    "weighting": UNIFORM,
    **NO_STATISTIC,
    # One round at rate 1 is dear; only what is in the vector matters to most tests.
    "epsilon": "200",
}


class Site:
    """One client's ledger, ready for rounds."""

    def __init__(self, folder, plan, *, cap="200"):
        self.plan = plan
        self.name = plan.clients[0].name
        keys = {name: SigningKey(bytes([n]) * 32) for n, name in enumerate(NAMES)}
        keys[SERVER] = SigningKey(bytes([99]) * 32)
        self.key = keys[self.name]
        self.path = folder / "own.jsonl"
        self.ledger = self.reopen()
        self.ledger.append(
            ClientOpened(
                run=bytes(range(16)),
                software="tests",
                plan=plan.to_json(),
                plan_digest=plan.digest_bytes,
                roster={name: key.verify_key.raw for name, key in keys.items()},
                data=bytes(16),
                cap_epsilon=Decimal(cap),
                cap_delta=Decimal(plan.delta),
                cap_order=cap_order(
                    registered_event(plan, self.name), Decimal(cap), Decimal(plan.delta)
                ),
            )
        )

    def reopen(self, path=None):
        path = path or self.path
        return Ledger.open(path, self.key, party=self.name, role=Role.CLIENT)

    def join(self, number=1, attempt=1):
        self.ledger.append(Joined(number, attempt, bytes(32), bytes(32)))

    def charge(self, entropy, number=1, attempt=1):
        return charge(
            self.plan,
            self.name,
            round_number=number,
            attempt=attempt,
            ledger=self.ledger,
            entropy=entropy,
        )

    def begin(self, entropy, number=1):
        self.join(number)
        return self.charge(entropy, number)

    def miss(self, number=1, attempt=1):
        self.ledger.append(
            Outcome(
                number, attempt, Status.MISSED, Reason.INTERRUPTED, (), None, None, None
            )
        )

    def records(self):
        return [record["kind"] for record in payloads(self.path)]


def sealed(begun, gradients=None, weight=WEIGHT_ONE):
    """Go through a round; `gradients` says what each drawn unit adds."""
    drawn = begun.draw(UNITS)
    begun.weigh(weight)
    for unit in drawn:
        begun.add(unit, (gradients or {}).get(unit))
    return begun.seal()


def integers(vector):
    return from_residues(vector.residues, vector.modulus_bits)
