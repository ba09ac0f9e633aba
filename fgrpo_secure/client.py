"""A data owner's side of a round: where learning and privacy meet.

A client answers one phase at a time with bytes. Its own checks decide: it keeps its
ledger, refuses what would pass its cap, and never answers one phase of a round twice.
Secrets of a round live in memory only. A client that was restarted cannot go on with
a round in flight, and its ledger's `joined` record keeps it from joining it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from fgrpo_secure.admission import SiteRules
from fgrpo_secure.closing import close_run, end_round
from fgrpo_secure.errors import FgrpoError
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.learner import Learner
from fgrpo_secure.refusals import note_offer, reasons_of
from fgrpo_secure.site_policy import SitePolicyError
from fgrpo_secure.terms import round_terms
from privacy.crypto import Label, SigningKey, VerifyKey
from privacy.errors import (
    BudgetExceededError,
    EquivocationError,
    FaultyServerError,
    LedgerError,
    MalformedMessageError,
    PrivacyError,
    RefusalError,
    ReplayError,
    RollbackError,
)
from privacy.ledger import (
    Joined,
    Ledger,
    Outcome,
    Phase,
    Reason,
    Refused,
    Shown,
    Status,
    View,
    Witness,
    reason_of,
)
from privacy.plan import SERVER, Plan
from privacy.randomness import system_entropy
from privacy.secagg import client as secagg
from privacy.secagg.envelope import parse_envelope
from privacy.secagg.messages import read_aborted
from privacy.wire import Reader

_State = TypeVar("_State", bound=secagg.ClientState)

# What has to be waiting for the message of each phase. An offer may come at any time.
_AWAITED: Mapping[str, tuple[type[secagg.ClientState], ...]] = {
    "roster": (secagg.AwaitingRoster,),
    "shares": (secagg.AwaitingShares,),
    "survivors": (secagg.AwaitingSurvivors,),
    "quorum": (secagg.AwaitingQuorum,),
    # A client whose confirmation or reveal came too late is in the sum all the same.
    "published": (
        secagg.AwaitingSurvivors,
        secagg.AwaitingQuorum,
        secagg.Revealed,
    ),
    "aborted": (
        secagg.AwaitingRoster,
        secagg.AwaitingShares,
        secagg.AwaitingSurvivors,
        secagg.AwaitingQuorum,
        secagg.Revealed,
    ),
}


class Client:
    """One data owner.

    Args:
        plan: the registered terms, which this client's operator has accepted.
        name: this client.
        learner: what it does with a round.
        policy: the model, on which an offered adapter must fit.
        ledger: opened for this run.
        key: identity.
        roster: pinned public key of every party, "server" among them.
        federation: the run's handle, as every party knows it.
        rules: the site's own policy, if there is one; every round is held to it.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        name: str,
        learner: Learner,
        policy: Policy,
        ledger: Ledger,
        key: SigningKey,
        roster: Mapping[str, VerifyKey],
        federation: str,
        rules: SiteRules | None = None,
    ) -> None:
        self._plan = plan
        self._name = name
        self._learner = learner
        self._policy = policy
        self._ledger = ledger
        self._key = key
        self._roster = roster
        self._federation = federation
        self._rules = rules
        self._state: secagg.ClientState | None = None
        self._adapter = b""
        self._witness = Witness(ledger, key)
        self._phases = {
            "offer": self._join,
            "roster": self._share_keys,
            "shares": self._send_masked_input,
            "survivors": self._confirm,
            "quorum": self._reveal,
            "published": self._finish,
            "aborted": self._abort,
            "log": self._position,
        }

    def handle(self, phase: str, payload: bytes) -> bytes:
        """Answer one phase.

        A message that this client does not wait for changes nothing: whoever can send
        one could otherwise write into its ledger.

        Raises:
            RefusalError: this client declines, and says so in its ledger.
            ProtocolError: the message was wrong; the round is over for this client.
            LedgerError: the record is unreliable; nothing more may be done.
            FgrpoError: something on this site does not work, whatever was drawn.
        """
        if phase not in self._phases:
            msg = "a phase that this client does not know"
            raise MalformedMessageError(msg)
        if phase == "aborted" and self._state is None:
            return b"nothing to abort"
        if phase in _AWAITED and not isinstance(self._state, _AWAITED[phase]):
            msg = "this client does not wait for that message: skip the round"
            raise ReplayError(msg)
        if phase in {"offer", "aborted", "log"}:
            # These end what is in flight, so they are verified before it is touched;
            # the last of them only asks.
            return self._phases[phase](payload)
        try:
            return self._phases[phase](payload)
        except LedgerError:
            self._state = None
            raise
        except PrivacyError as error:
            self._state = None
            end_round(self._ledger, reasons_of(error)[0])
            raise
        except FgrpoError:
            self._state = None
            end_round(self._ledger, Reason.ENVIRONMENT)
            raise
        except BaseException:
            self._state = None
            raise

    def close(self, log: bytes = b"") -> bytes:
        """Close this run in the ledger. Closing twice is no error.

        Args:
            log: what the server shows of its own ledger, which it has closed.

        Returns:
            The last checkpoint that this client vouched for; nothing without one.

        Raises:
            PrivacyError: the log is not what it should be. The run is closed all the
                same.
        """
        if self._ledger.history.phase is Phase.CLOSED:
            return self._witness.position()
        self._state = None
        end_round(self._ledger, Reason.STOPPED)
        try:
            return self._cosign(log) if log else self._witness.position()
        finally:
            close_run(self._ledger)

    def _join(self, payload: bytes) -> bytes:
        """Check an offer, and only where it is good end what was before it."""
        if self._ledger.history.phase is Phase.CLOSED:
            msg = (
                "this client's ledger has closed the run; its part is over, and the "
                "others go on without it or begin another run"
            )
            raise ReplayError(msg)
        reader = Reader(payload)
        number, offer, offered = reader.integer(), reader.field(), reader.field()
        log = reader.field()
        reader.finish()
        try:
            terms = round_terms(
                self._plan,
                roster=self._roster,
                federation=self._federation,
                round_number=number,
                adapter=offered,
            )
            last = self._ledger.history.round
            state, answer = secagg.join(offer, terms, self._key, system_entropy, last)
            # Signed with the offer: nobody but the server makes another one.
            if number > self._plan.rounds:
                msg = "a round beyond the rounds of the plan"
                raise ReplayError(msg)
            if self._rules is not None:
                run = bytes.fromhex(self._federation)
                self._rules.check_offer(self._ledger.history, run)
        except RefusalError as error:
            self._refuse(error, offer)
            raise
        # The digest in the offer is of these bytes, so that a client which was shown
        # another adapter than the rest gets masks that do not cancel.
        adapter.from_bytes(self._policy.model, offered)
        # Nothing is joined, and so nothing charged, before the log of all that was
        # before is found to be in order.
        view = self._checked(log, offer)
        if not view.may_be_followed_by(number, terms.adapter_digest):
            msg = "an offer that does not follow from the server's own log"
            raise FaultyServerError(msg)
        self._state = None
        end_round(self._ledger, Reason.INTERRUPTED)
        self._witness.vouch(view)
        self._ledger.append(
            Joined(
                round=number,
                attempt=1,
                offer_digest=state.seat.offer_digest,
                adapter_digest=terms.adapter_digest,
            )
        )
        self._adapter, self._state = offered, state
        return answer

    def _share_keys(self, payload: bytes) -> bytes:
        state = self._taken(secagg.AwaitingRoster)
        following, answer = state.share_keys(payload, system_entropy)
        if self._rules is not None:
            with self._noted_as_refused(following.seat.offer_digest):
                self._rules.check_roster(len(following.roster.names))
        self._state = following
        return answer

    def _send_masked_input(self, payload: bytes) -> bytes:
        # Nothing is charged for a message that is not the key shares of this round.
        ready = self._taken(secagg.AwaitingShares).open_inbox(payload)
        history = self._ledger.history
        self._ledger.append(
            Shown(
                round=history.round,
                attempt=history.attempt,
                roster_hash=ready.roster_hash,
                sharers_hash=ready.sharers_hash,
            )
        )
        with self._noted_as_refused(ready.seat.offer_digest):
            noised = self._learner.contribute(self._ledger, self._adapter)
        self._state, answer = ready.mask(noised)
        return answer

    def _confirm(self, payload: bytes) -> bytes:
        following, answer = self._taken(secagg.AwaitingSurvivors).confirm(payload)
        if self._rules is not None:
            # Without this client's confirmation its shares open nothing.
            with self._noted_as_refused(following.seat.offer_digest):
                self._rules.check_survivors(len(following.survivors))
        self._witness.saw(survivors_hash=following.seen.survivors_hash)
        self._state = following
        return answer

    def _reveal(self, payload: bytes) -> bytes:
        state = self._taken(secagg.AwaitingQuorum)
        self._state, answer = state.reveal(payload, self._ledger.head)
        return answer

    def _finish(self, payload: bytes) -> bytes:
        message, log = _with_log(payload)
        published = self._taken(
            secagg.AwaitingSurvivors, secagg.AwaitingQuorum, secagg.Revealed
        ).conclude(message)
        self._witness.saw(sum_digest=published.sum_digest)
        history = self._ledger.history
        self._ledger.append(
            Outcome(
                round=history.round,
                attempt=history.attempt,
                status=Status.PUBLISHED,
                reason=None,
                survivors=published.survivors,
                adapter_digest=published.next_adapter_digest,
                server_head=published.ledger_head,
                transcript=published.transcript_hash,
            )
        )
        return self._cosign(log)

    def _abort(self, payload: bytes) -> bytes:
        """Note the end of a round, as far as this client can vouch for it.

        Whoever has revealed its shares has let the sum be opened: it can say that it
        missed the news of it, and not that there was none.
        """
        state = self._state
        if state is None:
            msg = "there is no round in progress at this client"
            raise ReplayError(msg)
        message, log = _with_log(payload)
        told = read_aborted(message, state.seat.terms, state.seat.offer_digest)
        self._state = None
        history = self._ledger.history
        if isinstance(state, secagg.Revealed):
            end_round(self._ledger, Reason.SERVER_ABORTED)
        else:
            self._ledger.append(
                Outcome(
                    round=history.round,
                    attempt=history.attempt,
                    status=Status.ABORTED,
                    reason=Reason.SERVER_ABORTED,
                    survivors=(),
                    adapter_digest=None,
                    server_head=told.ledger_head,
                    transcript=None,
                )
            )
        return self._cosign(log)

    def _checked(self, log: bytes, offer: bytes) -> View:
        """Check what an offer shows of the log."""
        try:
            return self._witness.check(log)
        except RefusalError as error:
            self._refuse(error, offer)
            raise
        except (EquivocationError, RollbackError) as error:
            # It has refused in writing; nothing that is in flight goes on.
            self._state = None
            end_round(self._ledger, reason_of(error))
            raise

    def _cosign(self, log: bytes) -> bytes:
        """Check what the server shows of its log; vouch for it on disk, then to it."""
        return self._witness.vouch(self._witness.check(log))

    def _position(self, payload: bytes) -> bytes:
        """How much of the server's log this client has checked."""
        Reader(payload).finish()
        return self._witness.position()

    def _taken(self, *kinds: type[_State]) -> _State:
        """The waiting state, which the caller now owns: nobody can use it again.

        Raises:
            ReplayError: this client does not wait for this message.
        """
        state, self._state = self._state, None
        if not isinstance(state, kinds):
            msg = "this client does not wait for that message: skip the round"
            raise ReplayError(msg)
        return state

    def _refuse(self, error: RefusalError, offer: bytes) -> None:
        """Note an offer that was declined; a round in flight goes on."""
        digest = parse_envelope(offer, Label.OFFER, SERVER).offer_digest
        note_offer(self._ledger, error, digest, self._plan.rounds)

    @contextmanager
    def _noted_as_refused(self, offer_digest: bytes) -> Iterator[None]:
        """Note a round that was joined and is then declined by a cap or a policy."""
        try:
            yield
        except (BudgetExceededError, SitePolicyError) as error:
            history = self._ledger.history
            for reason in reasons_of(error):
                self._ledger.append(
                    Refused(history.round, history.attempt, reason, offer_digest)
                )
            raise


def _with_log(payload: bytes) -> tuple[bytes, bytes]:
    """A message of the protocol, and what came with it of the server's log."""
    reader = Reader(payload)
    message, log = reader.field(), reader.field()
    reader.finish()
    return message, log
