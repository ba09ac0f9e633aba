"""What does the coordinator see? Everything that clients send, against uniform words.

Real rounds are played, with data and without, and every byte that a client sends is
kept. Masked inputs must look like uniform words: one by one, as differences of two
clients or of two rounds of one client, and less the client's own vector (which leaves
its mask). So must the encrypted key shares. The unmasked sum must be the plain sum of
the integer vectors, exactly. And under one and the same randomness of the protocol no
field of any message may have another length for other data, nor another value, but for
the masked words and what is hashed and signed of them.

That something looks uniform does not prove that it is: the proof is that of the masks'
generator. This finds masks that are missing, short or used twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from audits.evidence import (
    Evidence,
    Finding,
    correlation,
    exact,
    uniform_bytes,
    uniform_words,
)
from audits.fields import all_fields, compare_fields
from audits.rounds import Aggregated, Cohort, Data, Progress
from privacy.crypto import KEY_BYTES, Keystream, Label
from privacy.packing import unpack
from privacy.plan import Plan
from privacy.randomness import system_entropy
from privacy.secagg.messages import KeyShares, MaskedInput
from privacy.vectors import (
    FloatVector,
    IntVector,
    NoisedVector,
    ResidueVector,
    from_residues,
)
from privacy.wire import decode

DIMENSION = 50_000
# Key shares are short, so that a test of theirs needs those of many rounds.
ROUNDS = 8


@dataclass(frozen=True, slots=True)
class _Round:
    """One round: what went in, and what the coordinator saw.

    Attributes:
        vectors: by client, before masks.
        seen: all messages, and the sum.
    """

    vectors: Mapping[str, NoisedVector]
    seen: Aggregated

    @property
    def masked(self) -> dict[str, ResidueVector]:
        """The masked inputs by client, shape (d + 1,)."""
        sent = self.seen.sent[Label.MASKED_INPUT]
        return {
            name: unpack(
                decode(MaskedInput, message).words,
                self.vectors[name].residues.size,
                self.vectors[name].modulus_bits,
            )
            for name, message in sent.items()
        }

    @property
    def sealed(self) -> list[bytes]:
        """Every encrypted key share."""
        return [
            share.ciphertext
            for message in self.seen.sent[Label.KEY_SHARES].values()
            for share in decode(KeyShares, message).sealed
        ]

    @property
    def plain_sum(self) -> IntVector:
        """The sum of the vectors as integers, which nobody but this audit can take."""
        total: IntVector = np.sum(
            [_integers(vector) for vector in self.vectors.values()], axis=0
        )
        return total


def read_transcript(
    plan: Plan, rounds: int = ROUNDS, progress: Progress | None = None
) -> Evidence:
    """Play rounds, and test everything that the coordinator sees.

    Args:
        plan: as `audits.canaries.audit_plan` makes it.
        rounds: how many, 2 or more.
        progress: called with a label, what is done and what there is to do.
    """
    cohort = Cohort.of(plan)
    played: list[_Round] = []
    for number in range(rounds):
        # Every other round has data, which must not show.
        played.append(_play(cohort, _data(plan, number % 2)))
        if progress is not None:
            progress("rounds", number + 1, rounds)
    findings = [
        *_masked_findings(played),
        *_share_findings(played),
        exact(
            "coordinates of the sums that are not the plain sum",
            wrong=sum(_wrong_coordinates(one) for one in played),
        ),
        *_field_findings(cohort),
    ]
    return Evidence(
        audit="transcript",
        subject={
            "trust": plan.trust,
            "parameters": plan.dimension,
            "clients": len(cohort.survivors),
            "rounds": rounds,
            "bytes of one masked input": plan.bytes_up,
        },
        findings=tuple(findings),
    )


def _play(cohort: Cohort, data: Data) -> _Round:
    vectors = {name: cohort.contribute(name, data).vector for name in cohort.survivors}
    return _Round(vectors, cohort.aggregate(vectors))


def _data(plan: Plan, units: int) -> Data:
    """Units whose gradients fill the clip norm, all in one direction."""

    def gradient(_: str, __: int) -> FloatVector:
        return np.full(plan.dimension, float(plan.clip_norm))

    return Data(tuple(map(str, range(units))), gradient)


def _masked_findings(played: list[_Round]) -> list[Finding]:
    first, second = played[0], played[1]
    one, other = list(first.masked)[:2]
    words, before = first.masked, first.vectors
    bits = before[one].modulus_bits
    modulus = np.uint32(2**bits - 1)
    uniform = partial(uniform_words, modulus_bits=bits)
    findings: list[Finding] = []
    for name, vector in words.items():
        findings += uniform(f"masked input of {name}", vector)
        mask = (vector - before[name].residues) & modulus
        findings += uniform(f"mask of {name}", mask)
        findings.append(
            correlation(
                f"masked input of {name} with its vector",
                vector,
                _integers(before[name]),
            )
        )
    findings += [
        finding
        for left, right in combinations(words, 2)
        for finding in (
            correlation(
                f"masked inputs of {left} and {right}", words[left], words[right]
            ),
        )
    ]
    findings += uniform(
        "difference of two clients' masked inputs",
        (words[one] - words[other]) & modulus,
    )
    findings += uniform(
        "sum of two clients' masked inputs", (words[one] + words[other]) & modulus
    )
    total: ResidueVector = np.sum(list(words.values()), axis=0, dtype=np.uint32)
    findings += uniform("sum of all masked inputs", total & modulus)
    later = second.masked[one]
    findings.append(
        correlation("masked inputs of one client in two rounds", words[one], later)
    )
    findings += uniform(
        "difference of one client's masked inputs in two rounds",
        (words[one] - later) & modulus,
    )
    return findings


def _share_findings(played: list[_Round]) -> list[Finding]:
    shares = [share for one in played for share in one.sealed]
    data = b"".join(shares)
    return [
        uniform_bytes("bytes of encrypted key shares, chi-square", data),
        correlation(
            "each byte of an encrypted key share with the next",
            np.frombuffer(data[:-1], np.uint8),
            np.frombuffer(data[1:], np.uint8),
        ),
        exact("encrypted key shares that come twice", wrong=_repeated(shares)),
        exact(
            "encrypted key shares of another length than the first",
            wrong=sum(len(share) != len(shares[0]) for share in shares),
        ),
    ]


def _field_findings(cohort: Cohort) -> list[Finding]:
    """One protocol, twice with the same randomness, with and without data."""
    key = system_entropy(KEY_BYTES)
    plan = cohort.plan
    read = []
    for units in (0, 1):
        vectors = {
            name: cohort.contribute(name, _data(plan, units)).vector
            for name in cohort.survivors
        }
        entropy = Keystream(key).read
        read.append(all_fields(cohort.aggregate(vectors, entropy=entropy)))
    return compare_fields(*read)


def _integers(vector: NoisedVector) -> IntVector:
    return from_residues(vector.residues, vector.modulus_bits)


def _wrong_coordinates(one: _Round) -> int:
    return int(np.count_nonzero(one.seen.total != one.plain_sum))


def _repeated(shares: list[bytes]) -> int:
    return len(shares) - len(set(shares))
