"""One round of a large federation in one process, for `scale.py`: every party's work.

Every client charges its ledger, draws, clips, adds its noise and masks by the product's
own code, and answers real message bytes, and so does the server. A client's vector is
made when it is due and let go when the server has added it: of those of all clients,
one is held at a time.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.secagg_task import Stopwatch, values
from benchmarks.worker import forget_peak, held_memory, peak_memory
from privacy.calibration import calibrate
from privacy.cohorts import Cohorts, CohortSum, split_cohorts
from privacy.contribution import charge, registered_event
from privacy.crypto import SigningKey
from privacy.errors import PlanMismatchError
from privacy.ledger import ClientOpened, Joined, Ledger, Role, cap_order
from privacy.plan import (
    MAX_CLIENTS,
    SERVER,
    WEIGHT_ONE,
    ClientTerms,
    Plan,
    Weighting,
)
from privacy.randomness import system_entropy
from privacy.secagg.client import (
    AwaitingRoster,
    AwaitingShares,
    AwaitingSurvivors,
    join,
)
from privacy.secagg.server import CollectingMasked, Unmasked, open_round
from privacy.secagg.terms import RoundTerms
from privacy.vectors import NoisedVector, from_residues

_ROUND = 1
_DEADLINES = (1, 2, 3, 4, 5)
_HEAD = bytes(32)
_EPSILON, _DELTA, _ROUNDS = "8", "0.00001", 10
# A client's units, and how often it draws each: two are drawn on average.
_UNITS, _RATE = 200, Fraction(1, 100)
_NORM_BOUND = 2**15
_MODULUS_BITS = 32
_UNIFORM = Weighting("uniform", "relative", Fraction(1), Fraction(0), Fraction(1))


@dataclass(frozen=True, slots=True)
class Size:
    """What is run.

    Attributes:
        clients: of all cohorts.
        dimension: d.
        cohorts: how many; their sizes differ by at most one.
        dropouts: share of each cohort's clients whose vectors are lost.
    """

    clients: int
    dimension: int
    cohorts: int
    dropouts: float


def make_cohorts(size: Size) -> Cohorts:
    """Plans with noise for epsilon 8, in which a third may collude and a fifth be lost.

    Raises:
        PlanMismatchError: a cohort of more than 200 clients, or one that is too small.
    """
    names = [f"client-{place:04d}" for place in range(size.clients)]
    cohort_size = -(-size.clients // size.cohorts)
    # A single cohort is not split, so that what refuses a large one is its plan.
    split = (
        split_cohorts(names, cohort_size=min(cohort_size, MAX_CLIENTS))
        if size.cohorts > 1
        else (tuple(names),)
    )
    noise = calibrate(
        epsilon=float(_EPSILON),
        delta=float(_DELTA),
        sampling_rate=_RATE,
        rounds=_ROUNDS,
        norm_bound=_NORM_BOUND,
        statistic_multiplier=None,
    )
    return Cohorts(
        tuple(
            Plan(
                unit="prompt",
                max_prompts_per_unit=1,
                trust="distributed",
                epsilon=_EPSILON,
                delta=_DELTA,
                rounds=_ROUNDS,
                local_steps=1,
                inner_steps=1,
                clip_norm=Fraction(1, 10),
                norm_bound=_NORM_BOUND,
                noise_variance=noise.total_variance,
                statistic_norm_bound=0,
                statistic_variance=0,
                modulus_bits=_MODULUS_BITS,
                rotation=False,
                dimension=size.dimension,
                min_survivors=len(own) - len(own) // 5,
                colluders=len(own) // 3,
                clients=tuple(ClientTerms(name, _UNITS, _RATE) for name in own),
                weighting=_UNIFORM,
                recipe="00" * 32,
            )
            for own in split
        )
    )


class _Client:
    """One client's ledger, key and draw; its state in the protocol is the driver's."""

    def __init__(
        self, plan: Plan, name: str, key: SigningKey, ledger: Ledger, number: int
    ) -> None:
        self.name = name
        self.key = key
        self.ledger = ledger
        self._plan = plan
        self._number = number

    def vector(self) -> NoisedVector:
        """Charge, draw, clip and noise: the only door that a vector comes from."""
        begun = charge(
            self._plan,
            self.name,
            round_number=_ROUND,
            attempt=1,
            ledger=self.ledger,
            entropy=system_entropy,
        )
        drawn = begun.draw([f"unit-{unit}" for unit in range(_UNITS)])
        begun.weigh(WEIGHT_ONE)
        gradient = values(self._number, self._plan.dimension)
        for unit in drawn:
            begun.add(unit, gradient)
        noised, _ = begun.seal()
        return noised


class Federation:
    """A round of all cohorts, one after another.

    Args:
        size: of it.
        folder: for the clients' ledgers.

    Attributes:
        clock: seconds of each step, over all parties.
        up: bytes that all clients sent.
        down: bytes that the server sent.
    """

    def __init__(self, size: Size, folder: Path) -> None:
        self.size = size
        self.clock = Stopwatch()
        self.up = self.down = 0
        self.survivors = 0
        with self.clock.of("plans"):
            self.cohorts = make_cohorts(size)
        self._folder = folder
        self._server_key = SigningKey(secrets.token_bytes(32))
        self._expected = np.zeros(size.dimension, dtype=np.int64)

    def run(self) -> None:
        """Run every cohort's round, add the sums, and hold them against integers.

        Raises:
            RuntimeError: a sum is not the sum of the survivors' integers.
        """
        joined = self.cohorts.add(self._sums())
        if not np.array_equal(joined.steps, self._expected):
            msg = "the sum over the cohorts is not the sum of the survivors"
            raise RuntimeError(msg)
        # Every client has one weight and one expected batch here.
        if joined.units != self.survivors * _RATE * _UNITS:
            msg = "the weights do not add up"
            raise RuntimeError(msg)

    def _sums(self) -> Iterator[CohortSum]:
        for place, plan in enumerate(self.cohorts.plans):
            yield self._run_cohort(place, plan)

    def _run_cohort(self, place: int, plan: Plan) -> CohortSum:
        """One cohort's round, from its offer to its decoded sum."""
        clients = self._open(plan)
        try:
            unmasked = self._round(plan, clients)
            total = from_residues(unmasked.residues, plan.modulus_bits)
            return CohortSum(place, total, unmasked.desk.offer_digest)
        finally:
            for client in clients.values():
                client.ledger.close()

    def _open(self, plan: Plan) -> dict[str, _Client]:
        """Every client's key and ledger, with the run opened in it."""
        names = [client.name for client in plan.clients]
        with self.clock.of("ledgers"):
            keys = {name: SigningKey(secrets.token_bytes(32)) for name in names}
            roster = {name: key.verify_key.raw for name, key in keys.items()}
            roster[SERVER] = self._server_key.verify_key.raw
            event = registered_event(plan, names[0])
            epsilon, delta = Decimal(plan.epsilon), Decimal(plan.delta)
            # All but the data set's handle is the same in every client's first record.
            opened = ClientOpened(
                run=secrets.token_bytes(16),
                software="benchmark",
                plan=plan.to_json(),
                plan_digest=plan.digest_bytes,
                roster=roster,
                data=secrets.token_bytes(16),
                cap_epsilon=epsilon,
                cap_delta=delta,
                cap_order=cap_order(event, epsilon, delta),
            )
            clients = {}
            for name, key in keys.items():
                path = self._folder / f"{name}.jsonl"
                ledger = Ledger.open(path, key, party=name, role=Role.CLIENT)
                ledger.append(replace(opened, data=secrets.token_bytes(16)))
                number = int(name.rpartition("-")[2])
                clients[name] = _Client(plan, name, key, ledger, number)
        return clients

    def _round(self, plan: Plan, clients: dict[str, _Client]) -> Unmasked:
        clock = self.clock
        terms = RoundTerms(
            federation=secrets.token_hex(16),
            plan_digest=plan.digest_bytes,
            adapter_digest=_HEAD,
            round_number=_ROUND,
            cohort={name: one.key.verify_key for name, one in clients.items()},
            server=self._server_key.verify_key,
            min_survivors=plan.min_survivors,
            colluders=plan.colluders,
            modulus_bits=plan.modulus_bits,
            vector_length=plan.vector_length,
        )
        with clock.of("adverts"):
            adverts, offer = open_round(
                terms, self._server_key, system_entropy, _DEADLINES
            )
            joined = {
                name: self._join(one, self._received(offer), terms)
                for name, one in clients.items()
            }
            sharing, rosters = adverts.collect(self._replies(joined))
        with clock.of("key shares, dealt"):
            dealt = {
                name: state.share_keys(self._received(rosters[name]), system_entropy)
                for name, (state, _) in joined.items()
            }
        del joined
        with clock.of("key shares, server"):
            collecting, inboxes = sharing.collect(self._replies(dealt))
        opening = {name: state for name, (state, _) in dealt.items()}
        del dealt
        collecting, sent = self._vectors(plan, clients, opening, inboxes, collecting)
        with clock.of("consistency"):
            confirming, announced = collecting.close()
            confirmed = {
                name: state.confirm(self._received(announced[name]))
                for name, state in sent.items()
            }
            revealing, quorums = confirming.collect(self._replies(confirmed))
        with clock.of("reveals"):
            revealed = {
                name: state.reveal(
                    self._received(quorums[name]), clients[name].ledger.head
                )
                for name, (state, _) in confirmed.items()
            }
        with clock.of("unmasking, server"):
            unmasked = revealing.collect(self._replies(revealed))
        with clock.of("published"):
            published = unmasked.publish(_HEAD, _HEAD)
            for state, _ in revealed.values():
                state.conclude(self._received(published))
        if unmasked.survivors != tuple(sent) or unmasked.blamed:
            msg = "an honest client is missing from the sum"
            raise RuntimeError(msg)
        self.survivors += len(sent)
        return unmasked

    def _vectors(
        self,
        plan: Plan,
        clients: dict[str, _Client],
        opening: dict[str, AwaitingShares],
        inboxes: dict[str, bytes],
        collecting: CollectingMasked,
    ) -> tuple[CollectingMasked, dict[str, AwaitingSurvivors]]:
        """Each client's vector in its turn: made, masked, added or lost, let go.

        Returns:
            The server's state with all that arrived, and those of their senders.
        """
        lost = _spread(list(clients), int(self.size.dropouts * len(clients)))
        sent = {}
        for name, client in clients.items():
            with self.clock.of("key shares, opened"):
                # Neither the message nor the state before it is needed any more.
                inbox = self._received(inboxes.pop(name))
                ready = opening.pop(name).open_inbox(inbox)
            with self.clock.of("vectors, charged and noised"):
                noised = client.vector()
            with self.clock.of("vectors, masked"):
                state, message = ready.mask(noised)
            self.up += len(message)
            if name in lost:
                continue
            with self.clock.of("sum, server"):
                collecting = collecting.add(name, message)
            sent[name] = state
            self._expected += from_residues(noised.residues, plan.modulus_bits)[:-1]
        return collecting, sent

    def _join(
        self, client: _Client, offer: bytes, terms: RoundTerms
    ) -> tuple[AwaitingRoster, bytes]:
        last = client.ledger.history.round
        state, advert = join(offer, terms, client.key, system_entropy, last)
        client.ledger.append(
            Joined(_ROUND, 1, state.seat.offer_digest, terms.adapter_digest)
        )
        return state, advert

    def _replies(self, answers: Mapping[str, tuple[object, bytes]]) -> dict[str, bytes]:
        """What clients answered in a phase, counted."""
        replies = {name: sent for name, (_, sent) in answers.items()}
        self.up += sum(map(len, replies.values()))
        return replies

    def _received(self, message: bytes) -> bytes:
        """A message of the server, counted."""
        self.down += len(message)
        return message


def _spread(names: Sequence[str], lost: int) -> set[str]:
    """So many of the names, at even distances."""
    return {names[(2 * k + 1) * len(names) // (2 * lost)] for k in range(lost)}


def measure(size: Size) -> dict[str, Any]:
    """Run a round and say what it took.

    Raises:
        RuntimeError: a sum is not the sum.
        PlanMismatchError: a size that no plan allows.
    """
    with TemporaryDirectory() as folder:
        before = held_memory()
        forget_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        federation = Federation(size, Path(folder))
        federation.run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = peak_memory()
    vector = 4 * (size.dimension + 1)
    return asdict(size) | {
        "survivors": federation.survivors,
        # Anything else has ended in an error.
        "exact": True,
        "wall": wall,
        "cpu": cpu,
        "peak_bytes": peak,
        "start_bytes": before,
        "all_vectors_bytes": size.clients * vector,
        "bytes_up": federation.up / size.clients,
        "bytes_down": federation.down / size.clients,
        "steps": {
            step: {"cpu": seconds, "wall": federation.clock.wall[step]}
            for step, seconds in federation.clock.cpu.items()
        },
    }


def main(given: str) -> int:
    """Measure a size given as JSON, and print the result as one line of it."""
    try:
        print(json.dumps(measure(Size(**json.loads(given)))))
    except PlanMismatchError as error:
        print(error, file=sys.stderr)
        return REFUSED
    return 0


REFUSED = 6

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
