"""What one party knows of a round before any message, and how many clients it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from privacy.crypto import VerifyKey
from privacy.errors import BelowThresholdError, PlanMismatchError
from privacy.plan import MIN_CLIENTS, check_cohort, threshold
from privacy.wire import Bytes32


@dataclass(frozen=True, slots=True)
class RoundTerms:
    """What one party knows of a round before any message: its plan, its adapter.

    Each party builds its own from its own plan and from the adapter that it has
    loaded. They are therefore also a client's floor: an offer with a smaller cohort
    or threshold, or of another model, is not the client's and is refused.

    Attributes:
        federation: the name of the consortium.
        plan_digest: SHA-256 of the plan.
        adapter_digest: SHA-256 of the adapter that this party has loaded.
        round_number: rises by at least one from round to round.
        cohort: pinned identity of every client.
        server: pinned identity of the server.
        min_survivors: with fewer, the sum carries too little noise.
        colluders: clients that the server may control.
        modulus_bits: residues are modulo two to this power.
        vector_length: d coordinates and the exact weight coordinate.

    Raises:
        PlanMismatchError: terms under which no round can be safe.
    """

    federation: str
    plan_digest: Bytes32
    adapter_digest: Bytes32
    round_number: int
    cohort: Mapping[str, VerifyKey]
    server: VerifyKey
    min_survivors: int
    colluders: int
    modulus_bits: int
    vector_length: int

    def __post_init__(self) -> None:
        """Refuse terms under which no round can be safe."""
        check_cohort(
            sorted(self.cohort),
            min_survivors=self.min_survivors,
            colluders=self.colluders,
        )
        identities = {key.raw for key in self.cohort.values()} | {self.server.raw}
        if len(identities) != len(self.cohort) + 1:
            msg = "two parties have one identity key: each needs its own"
            raise PlanMismatchError(msg)

    def name_of(self, key: VerifyKey) -> str:
        """The client whose identity this is.

        Raises:
            PlanMismatchError: no client of the cohort.
        """
        for name, pinned in self.cohort.items():
            if pinned == key:
                return name
        msg = "this identity key is not in the cohort: check the federation's file"
        raise PlanMismatchError(msg)

    def roster_threshold(self, clients: int) -> int:
        """The Shamir threshold t among the clients that really advertised.

        A client computes it from the roster that it verified, never from a message.

        Guarantee:
            `2 * t > clients + colluders`, so that a malicious server cannot collect t
            answers to each of two questions.

        Raises:
            BelowThresholdError: too few clients for any threshold, or for the noise.
        """
        needed = threshold(clients, self.colluders)
        least = max(MIN_CLIENTS, self.least_clients(needed))
        require_clients(clients, least, "advertised keys")
        return needed

    def least_clients(self, threshold_met: int) -> int:
        """How many clients must be left so that their sum is safe to open.

        Args:
            threshold_met: the Shamir threshold t of the roster.
        """
        return max(threshold_met, self.min_survivors)


def require_clients(count: int, least: int, what: str) -> None:
    """Refuse to go on with too few clients.

    Args:
        count: how many there are.
        least: how many there must be.
        what: what they did, for the error's text.

    Raises:
        BelowThresholdError: fewer.
    """
    if count < least:
        msg = f"{count} clients {what} and {least} are needed: skip this round"
        raise BelowThresholdError(msg)
