"""What a ledger can say: one frozen class for each kind of record.

The meaning of a kind never changes; a new meaning is a new kind. Nothing here is
private: no counts of draws, no rewards, no hashes of data, no times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

from privacy.ledger.codes import Claim, Reason, Status
from privacy.ledger.fields import (
    BigInteger,
    Count,
    Digest,
    Handle,
    Heads,
    Keys,
    Kind,
    MaybeDigest,
    Names,
    Number,
    Object,
    Order,
    Positive,
    Rate,
    Signature,
    Software,
    choice,
    nested,
    optional,
    refuse,
)


@dataclass(frozen=True, slots=True)
class Event:
    """What one charge pays for: the registered worst case, as the plan has it.

    Attributes:
        sampling_rate: Poisson probability that a unit is drawn.
        inner_steps: gradient steps on the one draw.
        norm_bound: sensitivity, grid steps.
        noise_variance: of the noise in the sum, grid steps squared; 0 is no noise,
            which costs infinity.
        statistic_norm_bound: sensitivity of the reward statistic, 0 without one.
        statistic_variance: its noise, 0 without one.
    """

    sampling_rate: Rate
    inner_steps: Positive
    norm_bound: Positive
    noise_variance: BigInteger
    statistic_norm_bound: Count
    statistic_variance: BigInteger


@dataclass(frozen=True, slots=True)
class Spend:
    """What charges of one run cost together.

    Attributes:
        charges: how many events are charged.
        delta: at which the epsilons hold.
        epsilon_pld: by the privacy loss distribution; the claim while it is finite.
        epsilon_rdp: by our own Renyi accountant.
    """

    charges: Count
    delta: Number
    epsilon_pld: Number
    epsilon_rdp: Number


@dataclass(frozen=True, slots=True)
class Lifetime:
    """What all charges in a ledger cost together, over all its runs.

    Attributes:
        charges: how many events are charged.
        delta: the cap's.
        epsilon_pld: by the privacy loss distribution, as if every run had been fixed in
            advance.
        epsilon_rdp: what the filter counts: by Renyi divergence at `cap_order` alone.
        claimed: which of them is held against the cap. It is `pld` while the ledger
            holds one run, unless that is infinite, and `rdp` from the second run on.
    """

    charges: Count
    delta: Number
    epsilon_pld: Number
    epsilon_rdp: Number
    claimed: Annotated[Claim, choice(Claim)]


_EVENT = nested(Event)
_SPEND = nested(Spend)
_LIFETIME = nested(Lifetime)
_REASON = choice(Reason)


@dataclass(frozen=True, slots=True)
class ClientOpened:
    """A client begins a run under a plan, with the identities that it pinned.

    It commits to nothing by itself: what it takes part in is `Joined`.

    Attributes:
        run: the run's random handle, the same at every party.
        software: name and version of what writes.
        plan: the plan's canonical JSON object.
        plan_digest: its digest, recomputed by every reader.
        roster: raw public key of every party, "server" among them.
        data: random handle of the data set, never a hash of it; the same in every
            run that one ledger holds.
        cap_epsilon: most that this ledger may ever spend, over all its runs. A later
            run may register another one.
        cap_delta: at which that epsilon is priced; the same in every run.
        cap_order: the Renyi order of the filter that guards the cap; the same in every
            run, and decided by the first one's terms.
    """

    kind: ClassVar[str] = "opened"
    run: Handle
    software: Software
    plan: Object
    plan_digest: Digest
    roster: Keys
    data: Handle
    cap_epsilon: Number
    cap_delta: Number
    cap_order: Order


@dataclass(frozen=True, slots=True)
class Joined:
    """A client accepts an offer: it has checked the plan and loaded the adapter."""

    kind: ClassVar[str] = "joined"
    round: Positive
    attempt: Positive
    offer_digest: Digest
    adapter_digest: Digest


@dataclass(frozen=True, slots=True)
class Shown:
    """What a client saw of a round with its own eyes, before it charges.

    A server that splits a cohort shows each part another roster, and its log has one.
    With this record a client that has been restarted, and an auditor, see it too.

    Attributes:
        round: as joined.
        attempt: as joined.
        roster_hash: U1, as the client computed it from the signed keys.
        sharers_hash: U2, as it computed it from the key shares that it verified.
    """

    kind: ClassVar[str] = "shown"
    round: Positive
    attempt: Positive
    roster_hash: Digest
    sharers_hash: Digest


@dataclass(frozen=True, slots=True)
class Intent:
    """The charge, on disk before the draw and before any noise. Never refunded.

    Attributes:
        round: from 1.
        attempt: from 1 within the round.
        event: what is about to happen.
        releases: how many times; each has a draw of its own.
        spend: of this run with this charge, at the plan's delta.
        lifetime: of all runs in this ledger with this charge.
    """

    kind: ClassVar[str] = "intent"
    round: Positive
    attempt: Positive
    event: Annotated[Event, _EVENT]
    releases: Positive
    spend: Annotated[Spend, _SPEND]
    lifetime: Annotated[Lifetime, _LIFETIME]


@dataclass(frozen=True, slots=True)
class Commit:
    """What is about to be sent, bound without being shown.

    Attributes:
        round: as in the intent.
        attempt: as in the intent.
        commitment: `commitment(secret, vector)`.
        length: words of the vector.
        modulus_bits: residues are modulo two to this power.
    """

    kind: ClassVar[str] = "commit"
    round: Positive
    attempt: Positive
    commitment: Digest
    length: Positive
    modulus_bits: Positive


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the round ended for this client.

    Attributes:
        round: as joined.
        attempt: as joined.
        status: "published": this client is in the published sum. "missed": it is not,
            or it cannot know. "aborted": there is no sum.
        reason: None where published.
        survivors: the clients in the sum; empty where unknown or aborted.
        adapter_digest: of the adapter after the round, where known.
        server_head: hash of the server's ledger line that reports the round.
        transcript: hash of the round's transcript, where known.
    """

    kind: ClassVar[str] = "outcome"
    round: Positive
    attempt: Positive
    status: Annotated[Status, choice(Status)]
    reason: Annotated[Reason | None, optional(_REASON)]
    survivors: Names
    adapter_digest: MaybeDigest
    server_head: MaybeDigest
    transcript: MaybeDigest

    def __post_init__(self) -> None:
        """Refuse a mixture: what is known must fit the status."""
        told = (self.adapter_digest, self.server_head, self.transcript)
        if self.status is Status.PUBLISHED:
            fits = self.reason is None and bool(self.survivors) and None not in told
        elif self.status is Status.MISSED:
            silent = not self.survivors and told == (None, None, None)
            fits = bool(self.survivors) and None not in told
            fits = self.reason is not None and (fits or silent)
        else:
            fits = (
                self.reason is not None
                and not self.survivors
                and self.adapter_digest is None
                and self.transcript is None
            )
        if not fits:
            msg = f"an outcome whose fields do not fit the status {self.status.value!r}"
            raise refuse(msg)


@dataclass(frozen=True, slots=True)
class Refused:
    """A client declines, and nothing has left it.

    Attributes:
        round: what was asked for; 0 means the plan as a whole.
        attempt: within the round; 0 with round 0.
        reason: a code.
        offer_digest: of the offer that was refused, where there was one.
    """

    kind: ClassVar[str] = "refused"
    round: Count
    attempt: Count
    reason: Annotated[Reason, _REASON]
    offer_digest: MaybeDigest


@dataclass(frozen=True, slots=True)
class Declined:
    """A client's own rules keep it out of a run, which it does not open.

    `Refused` stands within a run. A run that was opened counts as one of the ledger's:
    its unit, its cap and what it registers bind the later ones, and a plan that is
    declined may bind nothing. So this record changes nothing but the chain.

    Attributes:
        run: handle of the run that was declined; another run may be open.
        software: name and version of what writes.
        plan: the plan's canonical JSON object.
        plan_digest: its digest, recomputed by every reader.
        roster: raw public key of every party of that run, this one among them.
        reason: a code; a plan that breaks several rules has a record for each.
    """

    kind: ClassVar[str] = "declined"
    run: Handle
    software: Software
    plan: Object
    plan_digest: Digest
    roster: Keys
    reason: Annotated[Reason, _REASON]


@dataclass(frozen=True, slots=True)
class Cosigned:
    """The client has checked the server's log up to here, and vouches for it.

    It is on disk before a cosignature leaves, so that an older copy of this ledger is
    shown up by what it signed.

    Attributes:
        size: lines of the server's ledger.
        root: of the Merkle tree over them.
        signature: the server's, of the checkpoint with this size and root. With it
            this record shows to anybody what the server claimed.
    """

    kind: ClassVar[str] = "cosigned"
    size: Positive
    root: Digest
    signature: Signature


@dataclass(frozen=True, slots=True)
class Disputed:
    """A checkpoint that the server signed, and that the client refuses to vouch for.

    It cannot be true together with what the server signed or told before. A `Refused`
    with the reason follows. Fields as in `Cosigned`.
    """

    kind: ClassVar[str] = "disputed"
    size: Positive
    root: Digest
    signature: Signature


@dataclass(frozen=True, slots=True)
class Resumed:
    """A process has opened a ledger whose run was not closed.

    Attributes:
        last: kind of the record before this one.
        round: the last round that was begun, 0 without one.
        attempt: its attempt, 0 without one.
        torn_bytes: length of the half-written line that was cut away; it had not
            been acknowledged to anybody.
    """

    kind: ClassVar[str] = "resumed"
    last: Kind
    round: Count
    attempt: Count
    torn_bytes: Count


@dataclass(frozen=True, slots=True)
class ClientClosed:
    """The last record of a run: a line cut off the end is missed by it.

    Attributes:
        records: lines of the ledger, this one included.
        published: rounds whose sum holds this client.
        aborted: rounds joined that gave no sum.
        missed: rounds joined whose sum does not hold this client.
        spend: of the run, as in its last intent.
        lifetime: of the ledger.
    """

    kind: ClassVar[str] = "closed"
    records: Positive
    published: Count
    aborted: Count
    missed: Count
    spend: Annotated[Spend, _SPEND]
    lifetime: Annotated[Lifetime, _LIFETIME]


@dataclass(frozen=True, slots=True)
class ServerOpened:
    """The server begins a run. Fields as in `ClientOpened`."""

    kind: ClassVar[str] = "opened"
    run: Handle
    software: Software
    plan: Object
    plan_digest: Digest
    roster: Keys


@dataclass(frozen=True, slots=True)
class RoundOpened:
    """The server has offered a round on this adapter."""

    kind: ClassVar[str] = "round_opened"
    round: Positive
    attempt: Positive
    offer_digest: Digest
    adapter_digest: Digest


@dataclass(frozen=True, slots=True)
class Roster:
    """Who advertised keys (U1).

    Attributes:
        round: from 1.
        attempt: from 1.
        members: the clients.
        roster_hash: as the clients compute it.
    """

    kind: ClassVar[str] = "roster"
    round: Positive
    attempt: Positive
    members: Names
    roster_hash: Digest


@dataclass(frozen=True, slots=True)
class Survivors:
    """Who sent key shares (U2) and who sent a masked vector (U3)."""

    kind: ClassVar[str] = "survivors"
    round: Positive
    attempt: Positive
    sharers: Names
    survivors: Names
    sharers_hash: Digest
    survivors_hash: Digest


@dataclass(frozen=True, slots=True)
class Published:
    """A sum was opened and the adapter moved.

    Attributes:
        round: from 1.
        attempt: from 1.
        survivors: the clients in the sum.
        sum_digest: of the opened sum.
        adapter_before: digest of the adapter that was offered.
        adapter_after: digest of the next one.
        transcript: hash of the round's transcript.
        heads: the last ledger hash that each client sent in this round.
    """

    kind: ClassVar[str] = "published"
    round: Positive
    attempt: Positive
    survivors: Names
    sum_digest: Digest
    adapter_before: Digest
    adapter_after: Digest
    transcript: Digest
    heads: Heads


@dataclass(frozen=True, slots=True)
class Aborted:
    """There is no sum of this attempt and there never will be."""

    kind: ClassVar[str] = "aborted"
    round: Positive
    attempt: Positive
    reason: Annotated[Reason, _REASON]
    dropouts: Names


@dataclass(frozen=True, slots=True)
class Moved:
    """The adapter moved by the sums of other cohorts; this one's attempt gave none.

    Attributes:
        round: the one that was aborted here.
        attempt: likewise.
        adapter_before: digest of the adapter that it started from.
        adapter_after: digest of the one that the next round starts from.
    """

    kind: ClassVar[str] = "moved"
    round: Positive
    attempt: Positive
    adapter_before: Digest
    adapter_after: Digest


@dataclass(frozen=True, slots=True)
class ServerClosed:
    """The last record of the server's run.

    Attributes:
        records: lines of the ledger, this one included.
        published: attempts that gave a sum.
        aborted: attempts that did not.
    """

    kind: ClassVar[str] = "closed"
    records: Positive
    published: Count
    aborted: Count


ClientRecord: TypeAlias = (
    ClientOpened
    | Declined
    | Joined
    | Shown
    | Intent
    | Commit
    | Outcome
    | Refused
    | Cosigned
    | Disputed
    | Resumed
    | ClientClosed
)
ServerRecord: TypeAlias = (
    ServerOpened
    | RoundOpened
    | Roster
    | Survivors
    | Published
    | Aborted
    | Moved
    | Resumed
    | ServerClosed
)
Record: TypeAlias = ClientRecord | ServerRecord
