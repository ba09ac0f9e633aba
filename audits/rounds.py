"""One real round, from made-up data to the sum: what every audit attacks.

Each client goes through the door (charge, draw, clip, noise, commit), and the vectors
through all phases of secure aggregation. Data are made up; nothing else is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np

from privacy.contribution import Contribution, charge, registered_event
from privacy.crypto import KEY_BYTES, Label, SigningKey
from privacy.ledger import ClientOpened, Joined, Ledger, Role, cap_order
from privacy.plan import SERVER, WEIGHT_ONE, Plan
from privacy.randomness import Entropy, system_entropy
from privacy.rotation import Rotation
from privacy.secagg import client as client_side
from privacy.secagg import server as server_side
from privacy.secagg.terms import RoundTerms
from privacy.vectors import FloatVector, IntVector, NoisedVector, from_residues

Progress = Callable[[str, int, int], None]

_FEDERATION = "audit"
# What every ledger of an audit says was joined.
_OFFER = bytes(32)

# An audit's ledgers are gone after the round. Where the system has a folder in memory
# they are kept there, since a thousand rounds wait for a disk ten times as long.
_MEMORY = Path("/dev") / "shm"


@dataclass(frozen=True, slots=True)
class Data:
    """What one client learns from: a stand-in for a data set and a model.

    Attributes:
        units: every unit's name.
        gradient: of a unit in one of the round's releases, counted from 0; shape (d,),
            gradient units. None counts as zeros.
        reward: of a unit, its mean reward rescaled to [-1, 1].
    """

    units: tuple[str, ...]
    gradient: Callable[[str, int], FloatVector | None]
    reward: Callable[[str], float] = lambda _: 0.0

    def silent(self) -> Data:
        """The same units, of which none contributes: what is sent is noise alone."""
        return Data(self.units, lambda _, __: None)


NOTHING = Data((), lambda _, __: None)


@dataclass(frozen=True, slots=True)
class Contributed:
    """What a client made in one round.

    Attributes:
        vector: what it masks.
        releases: in local trust every step's noised sum, shape (d,), grid steps.
        statistics: of every draw, the noised mean of the rewards.
        drawn: how many units each draw had.
    """

    vector: NoisedVector
    releases: tuple[FloatVector, ...]
    statistics: tuple[float, ...]
    drawn: tuple[int, ...]

    @property
    def integers(self) -> IntVector:
        """The vector without its weight, shape (d,), grid steps."""
        return from_residues(self.vector.residues, self.vector.modulus_bits)[:-1]


@dataclass(frozen=True, slots=True)
class Aggregated:
    """What secure aggregation gave, and what travelled.

    Attributes:
        total: of the survivors' vectors, shape (d + 1,), grid steps.
        sent: what each client sent, by phase.
        told: what the server sent each client, by phase.
    """

    total: IntVector
    sent: Mapping[Label, Mapping[str, bytes]]
    told: Mapping[Label, Mapping[str, bytes]]


@dataclass(frozen=True, slots=True)
class Cohort:
    """The parties of rounds under one plan.

    Attributes:
        plan: the registered terms.
        keys: identity of every client, and of the server.
    """

    plan: Plan
    keys: Mapping[str, SigningKey]

    @staticmethod
    def of(plan: Plan) -> Cohort:
        """A cohort of fresh identities."""
        names = [*(client.name for client in plan.clients), SERVER]
        return Cohort(
            plan, {name: SigningKey(system_entropy(KEY_BYTES)) for name in names}
        )

    @property
    def survivors(self) -> tuple[str, ...]:
        """As many clients as must survive: the least noise that a sum may have."""
        return tuple(client.name for client in self.plan.clients)[
            : self.plan.min_survivors
        ]

    def contribute(self, name: str, data: Data, number: int = 1) -> Contributed:
        """One client's round, by the only door there is.

        Args:
            name: the client.
            data: what it learns from.
            number: the round's.
        """
        plan, keys = self.plan, self.keys
        place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        with tempfile.TemporaryDirectory(dir=place) as folder:
            path = Path(folder) / "ledger.jsonl"
            with Ledger.open(path, keys[name], party=name, role=Role.CLIENT) as ledger:
                ledger.append(
                    ClientOpened(
                        run=system_entropy(16),
                        software="fgrpo-secure audit",
                        plan=plan.to_json(),
                        plan_digest=plan.digest_bytes,
                        roster={who: key.verify_key.raw for who, key in keys.items()},
                        data=system_entropy(16),
                        cap_epsilon=Decimal(plan.epsilon),
                        cap_delta=Decimal(plan.delta),
                        cap_order=cap_order(
                            registered_event(plan, name),
                            Decimal(plan.epsilon),
                            Decimal(plan.delta),
                        ),
                    )
                )
                ledger.append(Joined(number, 1, _OFFER, bytes(32)))
                contribution = charge(
                    plan,
                    name,
                    round_number=number,
                    attempt=1,
                    ledger=ledger,
                    entropy=system_entropy,
                )
                return _work(plan, name, contribution, data)

    def play(self, data: Data) -> tuple[dict[str, Contributed], IntVector]:
        """A round of the least survivors, of which the first alone has data.

        Returns:
            What each made, and the sum, shape (d,), grid steps.
        """
        target, *others = self.survivors
        made = {target: self.contribute(target, data)}
        made |= {name: self.contribute(name, NOTHING) for name in others}
        vectors = {name: each.vector for name, each in made.items()}
        return made, self.aggregate(vectors).total[:-1]

    def less_known(
        self, made: Mapping[str, Contributed], total: IntVector
    ) -> IntVector:
        """The sum, less the shares that colluders know: of one client at least."""
        known = max(1, self.plan.colluders)
        for name in self.survivors[1 : 1 + known]:
            total = total - made[name].integers
        return total

    def turned_back(self, vector: IntVector) -> FloatVector:
        """What was sent, without the rotation, which everybody knows.

        Args:
            vector: shape (d,), grid steps: a client's, or a sum of them.

        Returns:
            Shape (d,), grid steps.
        """
        if not self.plan.rotation:
            return vector.astype(np.float64)
        return Rotation.of_round(_OFFER, self.plan.dimension).inverse(vector)

    def aggregate(
        self,
        vectors: Mapping[str, NoisedVector],
        number: int = 1,
        entropy: Entropy = system_entropy,
    ) -> Aggregated:
        """The sum as the coordinator gets it, through all phases.

        Args:
            vectors: of the clients that take part; the others do not answer the offer.
            number: the round's.
            entropy: of the protocol's keys and shares.
        """
        server = self.keys[SERVER]
        terms = self._terms(number)
        adverts, offer = server_side.open_round(terms, server, entropy, ())
        joined = {
            name: client_side.join(offer, terms, self.keys[name], entropy, 0)
            for name in vectors
        }
        shares, roster = adverts.collect(_messages(joined))
        dealt = {
            name: state.share_keys(roster[name], entropy)
            for name, (state, _) in joined.items()
        }
        masked, inbox = shares.collect(_messages(dealt))
        hidden = {
            name: state.open_inbox(inbox[name]).mask(vectors[name])
            for name, (state, _) in dealt.items()
        }
        confirming, survivors = masked.collect(_messages(hidden))
        confirmed = {
            name: state.confirm(survivors[name]) for name, (state, _) in hidden.items()
        }
        revealing, quorum = confirming.collect(_messages(confirmed))
        revealed = {
            name: state.reveal(quorum[name], bytes(32))
            for name, (state, _) in confirmed.items()
        }
        total = revealing.collect(_messages(revealed)).residues
        return Aggregated(
            total=from_residues(total, self.plan.modulus_bits),
            sent={
                Label.ADVERT: _messages(joined),
                Label.KEY_SHARES: _messages(dealt),
                Label.MASKED_INPUT: _messages(hidden),
                Label.CONSISTENCY: _messages(confirmed),
                Label.REVEAL: _messages(revealed),
            },
            told={
                Label.OFFER: dict.fromkeys(vectors, offer),
                Label.ROSTER: roster,
                Label.KEY_SHARE_INBOX: inbox,
                Label.SURVIVORS: survivors,
                Label.QUORUM: quorum,
            },
        )

    def _terms(self, number: int) -> RoundTerms:
        plan = self.plan
        return RoundTerms(
            federation=_FEDERATION,
            plan_digest=plan.digest_bytes,
            adapter_digest=bytes(32),
            round_number=number,
            cohort={
                client.name: self.keys[client.name].verify_key
                for client in plan.clients
            },
            server=self.keys[SERVER].verify_key,
            min_survivors=plan.min_survivors,
            colluders=plan.colluders,
            modulus_bits=plan.modulus_bits,
            vector_length=plan.vector_length,
        )


def _messages(phase: Mapping[str, tuple[object, bytes]]) -> dict[str, bytes]:
    return {name: message for name, (_, message) in phase.items()}


def _work(plan: Plan, name: str, contribution: Contribution, data: Data) -> Contributed:
    """What a learner does between the charge and the vector."""
    releases: list[FloatVector] = []
    statistics: list[float] = []
    drawn_counts: list[int] = []
    steps = float(plan.scale * plan.expected_batch(name))
    drawn: Iterable[str] = ()
    for _ in range(plan.local_steps):
        drawn = contribution.draw(data.units)
        drawn_counts.append(len(drawn))
        if plan.weighting.needs_statistic:
            rewards = (data.reward(unit) for unit in drawn)
            statistics.append(contribution.noised_mean(rewards))
        if plan.is_local:
            for _ in range(plan.inner_steps):
                _add_all(contribution, drawn, data, len(releases))
                releases.append(contribution.release() * steps)
    contribution.weigh(WEIGHT_ONE)
    if not plan.is_local:
        _add_all(contribution, drawn, data, 0)
    vector, _ = contribution.seal()
    return Contributed(vector, tuple(releases), tuple(statistics), tuple(drawn_counts))


def _add_all(
    contribution: Contribution, drawn: Iterable[str], data: Data, release: int
) -> None:
    for unit in drawn:
        contribution.add(unit, data.gradient(unit, release))
