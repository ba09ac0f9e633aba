"""Above 200 clients: cohorts that are each a whole federation, and their sums added.

A cohort has a plan, a protocol, a noise and ledgers of its own, because the server sees
the sum of every cohort: none can count on the noise of another. What joins them is what
is done with these sums afterwards. All cohorts start a round from one adapter; their
decoded integer sums are added, and one step is taken. To add a cohort, or to leave one
out, is post-processing: it costs no privacy, and protects nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import numpy as np

from privacy.codec import check_weight, decode, weighted
from privacy.crypto import VerifyKey
from privacy.errors import PlanMismatchError
from privacy.plan import MAX_CLIENTS, MIN_CLIENTS, SERVER, WEIGHT_ONE, Plan
from privacy.rotation import Rotation
from privacy.vectors import FloatVector, IntVector

# What is a cohort's own. In every other term, also one that a plan gets some day, the
# cohorts of a federation have to agree.
_OWN_TERMS = frozenset({"clients", "min_survivors", "colluders"})

# Sums are added as int64: a coordinate of a cohort's sum lies within 2**(bits - 1).
_INT64_BITS = 64


def split_cohorts(
    names: Sequence[str], *, cohort_size: int, least: int = MIN_CLIENTS
) -> tuple[tuple[str, ...], ...]:
    """Part clients into as few cohorts as their greatest size allows, of like size.

    Neighbours in the order of names share a cohort. Nothing is drawn: every party comes
    to the same cohorts from the same names, and who sits with whom is not a secret that
    protects anybody. All colluders may sit in one cohort, so that each cohort's plan
    has to count all of them.

    Args:
        names: of all clients, distinct.
        cohort_size: most clients of a cohort, 3 to 200.
        least: fewest clients of a cohort, for its threshold and its noise.

    Returns:
        The names of each cohort, sorted, and so are the cohorts.

    Raises:
        PlanMismatchError: no such split, or a name occurs twice.

    Guarantee:
        Each name is in one cohort, and the sizes differ by at most one and lie between
        `least` and `cohort_size`.
    """
    _require(
        MIN_CLIENTS <= cohort_size <= MAX_CLIENTS,
        f"cohort_size is {cohort_size}; set it to {MIN_CLIENTS} to {MAX_CLIENTS}",
    )
    _require(len(set(names)) == len(names), "two clients have one name")
    count = -(-len(names) // cohort_size)
    needed = max(least, MIN_CLIENTS)
    smallest = len(names) // count if count else 0
    _require(
        smallest >= needed,
        f"{len(names)} clients in cohorts of at most {cohort_size} leave one with "
        f"{smallest}, where {needed} are needed; set a larger cohort_size or add "
        "clients",
    )
    ordered = sorted(names)
    larger = len(names) - smallest * count
    edges = [place * smallest + min(place, larger) for place in range(count + 1)]
    return tuple(tuple(ordered[left:right]) for left, right in pairwise(edges))


@dataclass(frozen=True, slots=True)
class CohortSum:
    """What one cohort's round came to.

    Attributes:
        cohort: its place among the cohorts.
        total: shape (d + 1,), int64, grid steps: the decoded sum, with the exact weight
            coordinate last.
        offer_digest: of the cohort's own offer, which its rotation is drawn from.
        factor: k of the factor k / 2**16 that the whole of it is multiplied by, where
            clients were weighed against their own cohort alone.
    """

    cohort: int
    total: IntVector
    offer_digest: bytes
    factor: int = WEIGHT_ONE


@dataclass(frozen=True, slots=True)
class JoinedSum:
    """The sum over several cohorts.

    Attributes:
        steps: shape (d,), grid steps: int64, or float64 where vectors were rotated and
            each cohort's sum had to be turned back by itself.
        units: what to divide by: the expected numbers of units of the clients in the
            sum, each times the client's weight. Cohorts state weights relative to
            different batches, so that only this, and no integer, can be added.
    """

    steps: IntVector | FloatVector
    units: Fraction

    def mean(self, scale: Fraction) -> FloatVector:
        """The weighted mean over all units.

        Args:
            scale: grid steps per gradient unit.

        Returns:
            Shape (d,), float64, gradient units.
        """
        mean: FloatVector = decode(self.steps, scale)
        return mean / float(self.units)


@dataclass(frozen=True)
class Cohorts:
    """The plans of one federation's cohorts, whose sums may be added.

    Attributes:
        plans: one for each cohort, at least one.

    Raises:
        PlanMismatchError: plans whose sums do not add up to anything, a client in two
            cohorts, or so many cohorts that a sum could wrap.
    """

    plans: tuple[Plan, ...]

    def __post_init__(self) -> None:
        """Refuse plans whose sums may not be added."""
        _require(bool(self.plans), "there is no cohort")
        first = self.plans[0]
        for plan in self.plans[1:]:
            differing = [
                item.name
                for item in fields(Plan)
                if item.name not in _OWN_TERMS
                and getattr(plan, item.name) != getattr(first, item.name)
            ]
            _require(
                not differing,
                f"two cohorts differ in {', '.join(differing)}, so that their sums "
                "cannot be added; give both the same terms",
            )
        names = [client.name for plan in self.plans for client in plan.clients]
        _require(
            len(set(names)) == len(names),
            "a client is in two cohorts, where its data would be in two sums; leave it "
            "in one",
        )
        _require(
            len(self.plans) * self._limit < 2 ** (_INT64_BITS - 1),
            "so many cohorts that the sum of their sums may wrap",
        )

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The cohort of each client."""
        return {
            client.name: place
            for place, plan in enumerate(self.plans)
            for client in plan.clients
        }

    @property
    def _limit(self) -> int:
        """No coordinate of one cohort's decoded sum is further from zero."""
        return int(2 ** (self.plans[0].modulus_bits - 1))

    def check_identities(self, rosters: Sequence[Mapping[str, VerifyKey]]) -> None:
        """Refuse identities under which one party would count in two cohorts.

        Args:
            rosters: for each cohort the pinned key of every party, "server" among
                them.

        Raises:
            PlanMismatchError: a roster of other parties than the plan's, two servers,
                or an identity that occurs twice.
        """
        keys: list[VerifyKey] = []
        for plan, roster in zip(self.plans, rosters, strict=True):
            parties = {client.name for client in plan.clients} | {SERVER}
            _require(
                roster.keys() == parties,
                "the roster of a cohort does not hold exactly its plan's clients and "
                "the server",
            )
            keys += [key for name, key in roster.items() if name != SERVER]
        servers = {roster[SERVER] for roster in rosters}
        _require(
            len(servers) == 1,
            "two cohorts have different servers: the sums of one federation come "
            "together at one",
        )
        raw = {key.raw for key in (*keys, *servers)}
        _require(
            len(raw) == len(keys) + 1,
            "two parties have one identity key: each needs its own",
        )

    def add(self, sums: Iterable[CohortSum]) -> JoinedSum:
        """Add the sums of the cohorts that finished, one after another.

        Args:
            sums: at least one; taken one by one, so that they need not all be held.

        Raises:
            ValueError: no sum, one of a cohort twice, or one that is not of its plan.

        Guarantee:
            Without a rotation `steps` is the sum of the integers, exactly, whatever
            they are and however many cohorts there may be.
        """
        shape = self.plans[0].dimension
        steps: IntVector | FloatVector = np.zeros(shape, dtype=np.int64)
        if self.plans[0].rotation:
            steps = np.zeros(shape, dtype=np.float64)
        units, added = Fraction(0), set[int]()
        for part in sums:
            if part.cohort in added or not 0 <= part.cohort < len(self.plans):
                msg = "the sum of a cohort that is unknown, or was added before"
                raise ValueError(msg)
            added.add(part.cohort)
            self._check(part)
            plan = self.plans[part.cohort]
            np.add(steps, _turned_back(plan, part), out=steps)
            weights = Fraction(int(part.total[-1]), plan.weight_steps)
            units += weights * plan.largest_batch * Fraction(part.factor, WEIGHT_ONE)
        if not added:
            msg = "there is no sum to add"
            raise ValueError(msg)
        return JoinedSum(steps, units)

    def _check(self, part: CohortSum) -> None:
        check_weight(part.factor)
        total, limit = part.total, self._limit
        length = self.plans[0].vector_length
        if total.dtype != np.int64 or total.shape != (length,):
            msg = f"a decoded sum is {length} int64 numbers"
            raise ValueError(msg)
        if total[-1] <= 0 or total.min() < -limit or total.max() >= limit:
            msg = "a decoded sum has numbers that no residues stand for"
            raise ValueError(msg)


def _turned_back(plan: Plan, part: CohortSum) -> IntVector | FloatVector:
    """The d coordinates of a cohort's sum, times its factor, as all cohorts have them.

    A factor of at most 1 keeps every coordinate of the integers within its limit.
    """
    total: IntVector = part.total[:-1]
    if part.factor != WEIGHT_ONE:
        total = weighted(total, part.factor)
    if not plan.rotation:
        return total
    return Rotation.of_round(part.offer_digest, plan.dimension).inverse(total)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PlanMismatchError(message)
