"""What a ledger can say: one frozen class for each kind of record.

The meaning of a kind never changes; a new meaning is a new kind. Nothing here is
private: no counts of draws, no rewards, no hashes of data, no times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, TypeAlias

from privacy.crypto import Label, sha256
from privacy.errors import (
    BadSignatureError,
    BelowThresholdError,
    BudgetExceededError,
    FaultyClientError,
    FaultyPeerOrServerError,
    FaultyServerError,
    LedgerError,
    MalformedMessageError,
    PlanMismatchError,
    PrivacyError,
    ReplayError,
    UnsupportedEventError,
)
from privacy.ledger.fields import (
    BigInteger,
    Count,
    Digest,
    Handle,
    Heads,
    Keys,
    Kind,
    MaybeDigest,
    Name,
    Names,
    Number,
    Object,
    Positive,
    Rate,
    Software,
    choice,
    from_object,
    nested,
    optional,
    refuse,
    to_object,
)
from privacy.wire import Json, canonical_json

FORMAT_VERSION = 1
SERVER = "server"
COMMIT_SECRET_BYTES = 32


class Role(StrEnum):
    """On which side of the federation a ledger is kept."""

    CLIENT = "client"
    SERVER = "server"


class Status(StrEnum):
    """How a round ended for a client."""

    PUBLISHED = "published"
    ABORTED = "aborted"
    MISSED = "missed"


class Reason(StrEnum):
    """Why something was refused, aborted or missed: codes, never free text.

    None depends on private data. The `policy_*` codes are a site's own rules.
    """

    BELOW_THRESHOLD = "below_threshold"
    MALFORMED_MESSAGE = "malformed_message"
    BAD_SIGNATURE = "bad_signature"
    FAULTY_SERVER = "faulty_server"
    FAULTY_CLIENT = "faulty_client"
    FAULTY_PEER_OR_SERVER = "faulty_peer_or_server"
    SERVER_ABORTED = "server_aborted"
    DEADLINE = "deadline"
    LEFT_OUT = "left_out"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"
    REFUSED = "refused"
    REPLAY = "replay"
    PLAN_MISMATCH = "plan_mismatch"
    ADAPTER_MISMATCH = "adapter_mismatch"
    UNKNOWN_PARTY = "unknown_party"
    BUDGET_EXCEEDED = "budget_exceeded"
    UNSUPPORTED_EVENT = "unsupported_event"
    LEDGER_UNRELIABLE = "ledger_unreliable"
    POLICY_EPSILON = "policy_epsilon"
    POLICY_DELTA = "policy_delta"
    POLICY_COHORT = "policy_cohort"
    POLICY_SURVIVORS = "policy_survivors"
    POLICY_COLLUDERS = "policy_colluders"
    POLICY_UNIT = "policy_unit"
    POLICY_MODEL = "policy_model"
    POLICY_REWARD = "policy_reward"
    POLICY_CODE = "policy_code"
    POLICY_TASK = "policy_task"
    NOT_APPROVED = "not_approved"
    ENVIRONMENT = "environment"


_REASONS: tuple[tuple[type[PrivacyError], Reason], ...] = (
    (BudgetExceededError, Reason.BUDGET_EXCEEDED),
    (UnsupportedEventError, Reason.UNSUPPORTED_EVENT),
    (PlanMismatchError, Reason.PLAN_MISMATCH),
    (ReplayError, Reason.REPLAY),
    (BelowThresholdError, Reason.BELOW_THRESHOLD),
    (MalformedMessageError, Reason.MALFORMED_MESSAGE),
    (FaultyServerError, Reason.FAULTY_SERVER),
    (FaultyClientError, Reason.FAULTY_CLIENT),
    (FaultyPeerOrServerError, Reason.FAULTY_PEER_OR_SERVER),
    (BadSignatureError, Reason.BAD_SIGNATURE),
    (LedgerError, Reason.LEDGER_UNRELIABLE),
)


def reason_of(error: PrivacyError) -> Reason:
    """The code under which an error of the kernel stands in a ledger."""
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    return Reason.STOPPED


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
    """What some charges cost together.

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


_EVENT = nested(Event)
_SPEND = nested(Spend)
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
        cap_epsilon: most that this ledger may ever spend, over all its runs.
        cap_delta: at which that epsilon is priced.
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


@dataclass(frozen=True, slots=True)
class Joined:
    """A client accepts an offer: it has checked the plan and loaded the adapter."""

    kind: ClassVar[str] = "joined"
    round: Positive
    attempt: Positive
    offer_digest: Digest
    adapter_digest: Digest


@dataclass(frozen=True, slots=True)
class Intent:
    """The charge, on disk before the draw and before any noise. Never refunded.

    Attributes:
        round: from 1.
        attempt: from 1 within the round.
        event: what is about to happen.
        releases: how many times; each has a draw of its own.
        spend: of this run with this charge, at the plan's delta.
        lifetime: of all runs in this ledger with this charge, at the cap's delta.
    """

    kind: ClassVar[str] = "intent"
    round: Positive
    attempt: Positive
    event: Annotated[Event, _EVENT]
    releases: Positive
    spend: Annotated[Spend, _SPEND]
    lifetime: Annotated[Spend, _SPEND]


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
    lifetime: Annotated[Spend, _SPEND]


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
    ClientOpened | Joined | Intent | Commit | Outcome | Refused | Resumed | ClientClosed
)
ServerRecord: TypeAlias = (
    ServerOpened
    | RoundOpened
    | Roster
    | Survivors
    | Published
    | Aborted
    | Resumed
    | ServerClosed
)
Record: TypeAlias = ClientRecord | ServerRecord

_CLIENT_KINDS: tuple[type[Record], ...] = (
    ClientOpened,
    Joined,
    Intent,
    Commit,
    Outcome,
    Refused,
    Resumed,
    ClientClosed,
)
_SERVER_KINDS: tuple[type[Record], ...] = (
    ServerOpened,
    RoundOpened,
    Roster,
    Survivors,
    Published,
    Aborted,
    Resumed,
    ServerClosed,
)
KINDS: Mapping[Role, Mapping[str, type[Record]]] = {
    Role.CLIENT: {record.kind: record for record in _CLIENT_KINDS},
    Role.SERVER: {record.kind: record for record in _SERVER_KINDS},
}


@dataclass(frozen=True, slots=True)
class Header:
    """What every record carries beside its own fields.

    Attributes:
        seq: the record's place, from 0.
        prev: hash of the line before, 32 zero bytes at first.
        party: whose ledger it is.
        role: on which side.
        run: the run's handle.
    """

    seq: Count
    prev: Digest
    party: Name
    role: Annotated[Role, choice(Role)]
    run: Handle


def commitment(secret: bytes, vector: bytes) -> bytes:
    """Bind a vector before it is sent, without a hash that can be searched.

    Args:
        secret: 32 fresh bytes that the client keeps.
        vector: the noised vector, little-endian words.

    Returns:
        32 bytes.
    """
    if len(secret) != COMMIT_SECRET_BYTES:
        msg = f"a commitment needs {COMMIT_SECRET_BYTES} secret bytes"
        raise ValueError(msg)
    return sha256(Label.LEDGER_COMMIT, secret, vector)


def plan_digest(plan: Mapping[str, Json]) -> bytes:
    """The digest of a plan's JSON object, 32 bytes."""
    return sha256(Label.PLAN, canonical_json(dict(plan)))


def encode_record(header: Header, record: Record) -> bytes:
    """The canonical payload of a line."""
    payload = to_object(header) | to_object(record)
    payload |= {"v": FORMAT_VERSION, "kind": record.kind}
    return canonical_json(payload)


def decode_record(value: Json) -> tuple[Header, Record]:
    """Read a payload that has exactly the fields of its kind.

    Raises:
        MalformedMessageError: anything else.
    """
    if not isinstance(value, dict):
        msg = "a payload that is not an object"
        raise refuse(msg)
    body = dict(value)
    version = body.pop("v", None)
    if version != FORMAT_VERSION or isinstance(version, bool):
        msg = "a record of another format version"
        raise refuse(msg)
    kind = body.pop("kind", None)
    names = ("seq", "prev", "party", "role", "run")
    header = from_object(Header, {name: body.get(name) for name in names})
    known = KINDS[header.role]
    if not isinstance(kind, str) or kind not in known:
        msg = f"an unknown kind of record for a {header.role.value}"
        raise refuse(msg)
    record_type = known[kind]
    # Only `opened` names its run; every other record inherits it from the header.
    shared = {"run"} if kind == ClientOpened.kind else set()
    for name in names:
        if name not in shared:
            body.pop(name)
    return header, from_object(record_type, body)
