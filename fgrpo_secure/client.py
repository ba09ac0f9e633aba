"""A data owner's side of a round: where learning and privacy meet.

A client answers one phase at a time with bytes. Its own checks decide: it keeps its
ledger, refuses what would pass its cap, and never answers one phase of a round twice.
Secrets of a round live in memory only. A client that was restarted cannot go on with
a round in flight, and its ledger's `joined` record keeps it from joining it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fgrpo_secure.errors import FgrpoError, StateError
from fgrpo_secure.gain import Baseline, adaptive_weight, fixed_weight, gain, updated
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.gradient import ScoredGroup, UnitGradients
from fgrpo_secure.grpo.loss import group_advantages
from fgrpo_secure.grpo.packing import Group
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.grpo.rollout import generate
from fgrpo_secure.metrics import note
from fgrpo_secure.secrets import write_atomically
from fgrpo_secure.task import Task, score
from fgrpo_secure.terms import round_terms
from privacy.contribution import Contribution, charge
from privacy.crypto import SigningKey, VerifyKey
from privacy.errors import (
    FaultyServerError,
    MalformedMessageError,
    PrivacyError,
    ReplayError,
)
from privacy.ledger import (
    ClientClosed,
    Joined,
    Ledger,
    Outcome,
    Phase,
    Reason,
    Refused,
    Status,
    reason_of,
)
from privacy.plan import Plan
from privacy.randomness import system_entropy
from privacy.secagg import client as secagg
from privacy.secagg.messages import Published, read_published
from privacy.vectors import NoisedVector
from privacy.wire import Reader, Writer

Progress = Callable[[int, int], None]
_State = TypeVar("_State", bound=secagg.ClientState)


class Client:
    """One data owner.

    Args:
        plan: the registered terms, which this client's operator has accepted.
        name: this client.
        task: what it learns from.
        policy: the model; its adapter is replaced by what a round offers.
        folder: private state of this run, mode 0700.
        ledger: opened for this run.
        key: identity.
        roster: pinned public key of every party, "server" among them.
        federation: the run's handle, as every party knows it.
        progress: called with the units done and the units drawn, for the operator's
            own eyes.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        name: str,
        task: Task,
        policy: Policy,
        folder: Path,
        ledger: Ledger,
        key: SigningKey,
        roster: Mapping[str, VerifyKey],
        federation: str,
        progress: Progress | None = None,
    ) -> None:
        self._plan = plan
        self._name = name
        self._task = task
        self._policy = policy
        self._folder = folder
        self._ledger = ledger
        self._key = key
        self._roster = roster
        self._federation = federation
        self._progress = progress
        self._state: secagg.ClientState | None = None
        self._adapter = b""
        self._baseline = _load_baseline(folder / _BASELINE)
        self._phases = {
            "offer": self._join,
            "roster": self._share_keys,
            "shares": self._send_masked_input,
            "survivors": self._confirm,
            "quorum": self._reveal,
            "published": self._finish,
            "aborted": self._abort,
        }

    def handle(self, phase: str, payload: bytes) -> bytes:
        """Answer one phase.

        Raises:
            RefusalError: this client declines, and says so in its ledger.
            ProtocolError: the message was wrong; the round is over for this client.
            LedgerError: the record is unreliable; nothing more may be done.
        """
        try:
            if phase not in self._phases:
                msg = "a phase that this client does not know"
                raise MalformedMessageError(msg)
            return self._phases[phase](payload)
        except PrivacyError as error:
            self._state = None
            self._record_failure(error)
            raise

    def close(self) -> None:
        """Close this run in the ledger. Closing twice is no error."""
        if self._ledger.history.phase is Phase.CLOSED:
            return
        self._end_unfinished(Reason.STOPPED)
        history = self._ledger.history
        spend, lifetime = history.totals()
        self._ledger.append(
            ClientClosed(
                records=history.records + 1,
                published=history.published,
                aborted=history.aborted,
                missed=history.missed,
                spend=spend,
                lifetime=lifetime,
            )
        )

    def _join(self, payload: bytes) -> bytes:
        reader = Reader(payload)
        number, offer, offered = reader.integer(), reader.field(), reader.field()
        reader.finish()
        self._end_unfinished(Reason.INTERRUPTED)
        terms = round_terms(
            self._plan,
            roster=self._roster,
            federation=self._federation,
            round_number=number,
            adapter=offered,
        )
        last = self._ledger.history.round
        state, answer = secagg.join(offer, terms, self._key, system_entropy, last)
        # The digest in the offer is of these bytes, so that a client which was shown
        # another adapter than the rest gets masks that do not cancel.
        adapter.from_bytes(self._policy.model, offered)
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
        self._state, answer = self._taken(secagg.AwaitingRoster).share_keys(
            payload, system_entropy
        )
        return answer

    def _send_masked_input(self, payload: bytes) -> bytes:
        state = self._taken(secagg.AwaitingShares)
        self._state, answer = state.mask(payload, self._contribute())
        return answer

    def _confirm(self, payload: bytes) -> bytes:
        self._state, answer = self._taken(secagg.AwaitingSurvivors).confirm(payload)
        return answer

    def _reveal(self, payload: bytes) -> bytes:
        self._state, answer = self._taken(secagg.AwaitingQuorum).reveal(payload)
        head = self._ledger.head
        return Writer().field(answer).fixed(head, len(head)).finish()

    def _finish(self, payload: bytes) -> bytes:
        published = self._concluded(payload)
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
        return b"done"

    def _concluded(self, payload: bytes) -> Published:
        """What the server published of the round whose sum this client is in.

        A client whose confirmation or reveal came too late is in the sum all the same,
        and its ledger has to say so.

        Raises:
            FaultyServerError: over other survivors than were confirmed, or without us.
            ReplayError: this client has sent no vector in this round.
        """
        kinds = (secagg.AwaitingSurvivors, secagg.AwaitingQuorum)
        if not isinstance(self._state, kinds):
            return self._taken(secagg.Revealed).conclude(payload)
        seat, self._state = self._state.seat, None
        published = read_published(payload, seat.terms, seat.offer_digest)
        if self._name not in published.survivors:
            msg = "the server published to us a sum without us"
            raise FaultyServerError(msg)
        return published

    def _abort(self, payload: bytes) -> bytes:  # noqa: ARG002
        self._state = None
        if self._ledger.history.unfinished:
            self._ledger.append(self._outcome(Status.ABORTED, Reason.SERVER_ABORTED))
        return b"done"

    def _taken(self, kind: type[_State]) -> _State:
        """The waiting state, which the caller now owns: nobody can use it again.

        Raises:
            ReplayError: this client does not wait for this message.
        """
        state, self._state = self._state, None
        if not isinstance(state, kind):
            msg = "this client does not wait for that message: skip the round"
            raise ReplayError(msg)
        return state

    def _contribute(self) -> NoisedVector:
        """Draw, generate, score, weigh, differentiate and seal one round."""
        history = self._ledger.history
        contribution = charge(
            self._plan,
            self._name,
            round_number=history.round,
            attempt=history.attempt,
            ledger=self._ledger,
            entropy=system_entropy,
        )
        drawn = contribution.draw(list(self._task.units))
        adapter.from_bytes(self._policy.model, self._adapter)
        groups, failed = self._generate(contribution, drawn)
        rewards = {unit: self._score(unit, groups[unit]) for unit in drawn}
        weight = self._weigh(contribution, rewards)
        contribution.weigh(weight)
        failed |= self._add_gradients(contribution, drawn, groups, rewards)
        vector, opening = contribution.seal()
        write_atomically(
            self._folder / f"opening-{history.round:05d}.key", opening, private=True
        )
        scored = [_centred_mean(self._task, rewards[unit]) for unit in drawn]
        note(
            self._folder / "metrics.jsonl",
            {
                "round": history.round,
                "drawn": len(drawn),
                "failed": len(failed),
                "mean_reward": float(np.mean(scored)) if scored else 0.0,
                "weight": weight,
            },
        )
        return vector

    def _generate(
        self, contribution: Contribution, drawn: Sequence[str]
    ) -> tuple[dict[str, list[Group]], set[str]]:
        """Completions of every drawn unit; those of a unit that failed are missing.

        A failure after the draw must not decide whether this client stays in the
        round, since that would be a release: the unit counts as zeros instead.
        """
        groups = self._generate_for(contribution, drawn)
        if groups is None:
            # One of them is to blame, and its mates must not suffer for it.
            groups = {}
            for unit in drawn:
                groups |= self._generate_for(contribution, [unit]) or {}
        failed = set(drawn) - set(groups)
        return {unit: groups.get(unit, []) for unit in drawn}, failed

    def _generate_for(
        self, contribution: Contribution, chosen: Sequence[str]
    ) -> dict[str, list[Group]] | None:
        """Completions of some units, or None where generating them failed."""
        if not chosen:
            return {}
        settings, prompts = self._task.rollout, self._task.prompts
        shape = (-1, settings.group_size, settings.max_tokens)
        each = settings.group_size * settings.max_tokens
        numbers = [
            contribution.uniforms(unit, len(prompts[unit]) * each).reshape(shape)
            for unit in chosen
        ]
        flat = [prompt for unit in chosen for prompt in prompts[unit]]
        try:
            made = generate(
                self._policy,
                flat,
                np.concatenate(numbers),
                settings,
                self._progress_over(len(flat)),
            )
        # Whatever it is: an exception that ended this client's round would tell that
        # a unit which causes it was drawn.
        except Exception as error:
            self._note_failure("generation", error)
            return None
        following = iter(made)
        return {unit: [next(following) for _ in prompts[unit]] for unit in chosen}

    def _progress_over(self, total: int) -> Callable[[int], None] | None:
        """Counts the prompts that are done, for the operator's bar."""
        if self._progress is None:
            return None
        show, done = self._progress, 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            show(done, total)

        return advance

    def _score(self, unit: str, groups: list[Group]) -> list[NDArray[np.float64]]:
        """Rewards of one unit's groups, each shape (G,); NaN where one is missing."""
        examples = self._task.units[unit].examples
        return [
            score(self._task.rewards, example, group)
            for example, group in zip(examples, groups, strict=False)
        ]

    def _weigh(
        self,
        contribution: Contribution,
        rewards: Mapping[str, list[NDArray[np.float64]]],
    ) -> int:
        """This round's weight, from the noised statistic alone."""
        plan = self._plan
        if not plan.weighting.needs_statistic:
            return fixed_weight(plan, self._name)
        measured = contribution.noised_mean(
            _centred_mean(self._task, values) for values in rewards.values()
        )
        noise = plan.statistic_variance**0.5 / plan.statistic_norm_bound
        noise_std = noise / float(plan.expected_batch(self._name))
        weighting, before = plan.weighting, self._baseline
        weight = adaptive_weight(weighting, gain(weighting, before, measured))
        self._baseline = updated(weighting, before, measured, noise_std)
        _store_baseline(self._folder / _BASELINE, self._baseline)
        return weight

    def _add_gradients(
        self,
        contribution: Contribution,
        drawn: Sequence[str],
        groups: Mapping[str, list[Group]],
        rewards: Mapping[str, list[NDArray[np.float64]]],
    ) -> set[str]:
        """Add every drawn unit's gradient; returns the units that failed."""
        scale = self._task.scale_rewards
        scored = [
            [
                ScoredGroup(group, group_advantages(values, scale))
                for group, values in zip(groups[unit], rewards[unit], strict=True)
            ]
            for unit in drawn
        ]
        left = list(zip(drawn, scored, strict=True))
        done = self._add_until_failure(contribution, left)
        failed = set()
        for unit, own in left[done:]:
            # One of them is to blame, and its mates must not suffer for it.
            if not self._add_until_failure(contribution, [(unit, own)]):
                contribution.add(unit, None)
                failed.add(unit)
        return failed

    def _add_until_failure(
        self,
        contribution: Contribution,
        chosen: Sequence[tuple[str, Sequence[ScoredGroup]]],
    ) -> int:
        """Add units' gradients in order; returns how many came before a failure."""
        computing = UnitGradients(self._policy, self._task.gradient)
        gradients = computing.compute([groups for _, groups in chosen])
        for done, (unit, _) in enumerate(chosen):
            try:
                vector = next(gradients)
            except FgrpoError:
                # The model cannot be differentiated at all, whatever was drawn.
                raise
            except Exception as error:
                self._note_failure("gradient", error)
                return done
            contribution.add(unit, vector)
        return len(chosen)

    def _note_failure(self, where: str, error: Exception) -> None:
        """Keep the kind of a failure for the operator, in the private folder."""
        values = {"failure": where, "kind": type(error).__name__}
        note(self._folder / "metrics.jsonl", values)

    def _record_failure(self, error: PrivacyError) -> None:
        history = self._ledger.history
        reason = reason_of(error)
        if history.unfinished:
            self._ledger.append(self._outcome(Status.MISSED, reason))
        elif history.phase is Phase.IDLE:
            self._ledger.append(
                Refused(round=0, attempt=0, reason=reason, offer_digest=None)
            )

    def _end_unfinished(self, reason: Reason) -> None:
        """Note that a round which was begun came to nothing that we know of."""
        if self._ledger.history.unfinished:
            self._ledger.append(self._outcome(Status.MISSED, reason))

    def _outcome(self, status: Status, reason: Reason) -> Outcome:
        history = self._ledger.history
        return Outcome(
            round=history.round,
            attempt=history.attempt,
            status=status,
            reason=reason,
            survivors=(),
            adapter_digest=None,
            server_head=None,
            transcript=None,
        )


_BASELINE = "baseline.json"


def _centred_mean(task: Task, values: Sequence[NDArray[np.float64]]) -> float:
    """A unit's mean reward in [-1, 1]; 0 for a unit that failed."""
    flat = [task.rewards.centred(value).mean() for value in values]
    return float(np.mean(flat)) if flat else 0.0


def _load_baseline(path: Path) -> Baseline:
    if not path.exists():
        return Baseline()
    try:
        return Baseline(**json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError):
        raise StateError(
            f"{path} is damaged", "remove it: the baseline then starts anew"
        ) from None


def _store_baseline(path: Path, baseline: Baseline) -> None:
    data = json.dumps(asdict(baseline)).encode()
    write_atomically(path, data, private=True)
