"""A client at the door of a run: what is proposed, its site's policy, and the record.

What is proposed is found by the site itself, from its own configuration, files and
ledger. The policy is read anew at every step, so that one that was tightened holds from
the next round on. Whatever it refuses stands in the client's ledger, signed, and
nothing is charged for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from fgrpo_secure.approvals import Proposal, approve, is_approved, load_policy
from fgrpo_secure.base_model import BaseModel, read_base_model
from fgrpo_secure.budget import own_history, standing
from fgrpo_secure.config import RunConfig
from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.grpo.reward_sources import reward_sources
from fgrpo_secure.refusals import sign_refusal
from fgrpo_secure.site_policy import (
    Facts,
    Refusal,
    RewardFile,
    SitePolicy,
    SitePolicyError,
    check,
    check_cohort,
    check_survivors,
)
from privacy.contribution import registered_spend
from privacy.ledger import ClientOpened, History, Phase, Reason, claimed_epsilon
from privacy.plan import Plan

# Of a run that has not begun: no handle is that short.
NO_RUN = b""

# Shows an operator what is proposed, and returns what they typed.
Ask = Callable[[Plan, Proposal], str]


class SiteRules:
    """One client's proposal, and the policy of its site.

    Args:
        config: the site's configuration, which names the policy.
        plan: what is proposed.
        folder: where the client's ledger lies.
        name: the client, whose table has a policy.
        base_model: the base model's files; None where they are not here.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        folder: RunFolder,
        name: str,
        base_model: BaseModel | None,
    ) -> None:
        client, path = config.client_named(name), policy_of(config, folder, name)
        if path is None:
            msg = f"client {name!r} has no policy"
            raise ValueError(msg)
        self.path = path
        self.name = name
        self._config, self._plan, self._folder = config, plan, folder
        self._base_model = base_model
        sources = {spec: reward_sources(spec, Path()) for spec in client.reward}
        self._rewards = {
            spec: RewardFile(source.name, source.sha256)
            for spec, source in sources.items()
        }
        price = claimed_epsilon(registered_spend(plan, name))
        self._epsilon = max(Decimal(plan.epsilon), price)
        self._policy: SitePolicy | None = None

    @property
    def allowed(self) -> Mapping[str, str]:
        """Of each reward the only files that may be run, by their hash."""
        return {spec: reward.sha256 for spec, reward in self._rewards.items()}

    def history(self) -> History:
        """What the data set's ledger says as it lies there, if there is one.

        Raises:
            LedgerError: it does not verify.
            StateError: it was there, and is gone.
        """
        return own_history(self._folder, self.name)

    def proposal(self, history: History, run: bytes) -> Proposal:
        """What an operator's approval would be of.

        Args:
            history: of the data set's ledger.
            run: handle of the run, which the ledger may have opened.
        """
        opened = history.opened if isinstance(history.opened, ClientOpened) else None
        begun = len(history.runs - {run})
        cap_epsilon, cap_delta = self._cap(history, run)
        return Proposal(
            client=self.name,
            data_set=self._folder.data_set(self.name),
            # A first run has no handle to name before it is opened.
            data=opened.data.hex() if opened is not None and begun else "",
            store=str(self._folder.store),
            run_number=begun + 1,
            cap_epsilon=cap_epsilon,
            cap_delta=cap_delta,
            plan=self._plan.digest,
            base_model=self._base_model.digest if self._base_model else "",
            rewards=tuple(self._rewards.values()),
        )

    def to_approve(self, history: History) -> tuple[bytes, list[Refusal]]:
        """The run that an operator would approve now, and what is against it.

        A run of this plan that the ledger has open comes first, where it lacks an
        approval; then the next one, which has no handle yet.

        Raises:
            ConfigurationError: the policy cannot be used.
        """
        opened = history.opened
        is_open = opened is not None and history.phase is not Phase.CLOSED
        if is_open and opened.plan_digest == self._plan.digest_bytes:
            found = self.refusals(history, history.run)
            if found:
                return history.run, found
        return NO_RUN, self.refusals(history, NO_RUN)

    def facts(self, history: History, run: bytes) -> Facts:
        """What the policy is held to.

        Raises:
            ConfigurationError: somebody else may write an approval.
        """
        plan, proposal = self._plan, self.proposal(history, run)
        return Facts(
            data_set=proposal.data_set,
            unit=plan.unit,
            trust=plan.trust,
            epsilon=self._epsilon,
            delta=Decimal(plan.delta),
            cap_epsilon=proposal.cap_epsilon,
            cap_delta=proposal.cap_delta,
            kept=self._folder.is_shared,
            clients=len(plan.clients),
            min_survivors=plan.min_survivors,
            colluders=plan.colluders,
            base_model=self._base_model.digest if self._base_model else None,
            rewards=proposal.rewards,
            approved=is_approved(self.path, proposal),
        )

    def refusals(self, history: History, run: bytes) -> list[Refusal]:
        """What the policy, as it lies there now, has against the run.

        Raises:
            ConfigurationError: the policy cannot be used.
        """
        self._policy = load_policy(self.path)
        return check(self._policy, self.facts(history, run))

    def check_opening(self, history: History, run: bytes) -> None:
        """Hold a run to the policy.

        Raises:
            SitePolicyError: it refuses.
            ConfigurationError: it cannot be used.
        """
        self._raise(self.refusals(history, run))

    def check_offer(self, history: History, run: bytes) -> None:
        """Hold a round that is offered to the policy.

        Raises:
            SitePolicyError: it refuses, or it cannot be used any more; or the model's
                files were touched, of which the process may hold a view and no copy.
        """
        try:
            found = [*self.refusals(history, run), *self._model_refusals()]
        except ConfigurationError as error:
            what = error.what.removesuffix(".").replace(";", ",")
            fix = error.fix.removesuffix(".").replace(";", ",")
            found = [Refusal(Reason.ENVIRONMENT, what, fix)]
        self._raise(found)

    def check_roster(self, clients: int) -> None:
        """Hold the clients that advertised keys for a round to the policy.

        Raises:
            SitePolicyError: too few.
        """
        if self._policy is not None:
            self._raise(check_cohort(self._policy, clients, "the round has"))

    def check_survivors(self, clients: int) -> None:
        """Hold the clients whose sum is about to be opened to the policy.

        Raises:
            SitePolicyError: too few.
        """
        if self._policy is not None:
            self._raise(check_survivors(self._policy, clients, "the sum is of"))

    def check_model(self) -> None:
        """See that the model which was loaded is the one that was hashed.

        Raises:
            SitePolicyError: its files have changed since.
        """
        self._raise(self._model_refusals())

    def _model_refusals(self) -> list[Refusal]:
        if self._base_model is None or self._base_model.is_unchanged():
            return []
        what = "the base model's files have changed since they were looked at"
        fix = "see who changes them, and start again"
        return [Refusal(Reason.POLICY_MODEL, what, fix)]

    def _cap(self, history: History, run: bytes) -> tuple[Decimal, Decimal]:
        """The cap that the ledger has with this run in it."""
        opened = history.opened
        if history.run == run and isinstance(opened, ClientOpened):
            return opened.cap_epsilon, opened.cap_delta
        found = standing(self._config, self._plan, self.name, history)
        return found.cap, found.delta

    def _raise(self, found: Sequence[Refusal]) -> None:
        if found:
            raise SitePolicyError(self.name, found)


def policy_of(config: RunConfig, folder: RunFolder, name: str) -> Path | None:
    """The policy that a client is held to, if there is one.

    One that lies with the client's private state binds whoever uses that state. A
    configuration may come from elsewhere: it could name another policy, or none.

    Raises:
        ConfigurationError: the configuration names another than lies there.
    """
    stated, kept = config.client_named(name).policy, folder.policy(name)
    # A link that leads nowhere is no leave to do without.
    if not os.path.lexists(kept):
        return None if stated is None else Path(stated)
    if stated is not None and Path(stated) != kept.absolute():
        raise ConfigurationError(
            f"Client {name} is bound by {kept}, and the configuration names another "
            "policy.",
            "Take the policy out of its [[client]] table.",
        )
    return kept.absolute()


def site_rules(
    config: RunConfig, plan: Plan, folder: RunFolder, names: Sequence[str]
) -> dict[str, SiteRules]:
    """The rules of those clients that have a policy.

    Raises:
        RewardError: a reward has no file that could be checked.
        ConfigurationError: as `policy_of`.
    """
    bound = [name for name in names if policy_of(config, folder, name) is not None]
    base_model = read_base_model(config.model.base) if bound else None
    return {name: SiteRules(config, plan, folder, name, base_model) for name in bound}


def admit(
    rules: SiteRules,
    plan: Plan,
    folder: RunFolder,
    run: bytes,
    ask: Ask | None = None,
) -> None:
    """Hold a run to a client's policy before anything is opened, and sign what it says.

    Args:
        rules: the client's.
        plan: what is proposed.
        folder: where the client's ledger lies.
        run: the run's handle.
        ask: asks an operator where the policy does; None asks nobody.

    Raises:
        SitePolicyError: the policy refuses. The client's ledger says so.
        ConfigurationError: the policy cannot be used; nothing is written.
        LedgerError: the ledger does not verify.
    """
    history = rules.history()
    found = rules.refusals(history, run)
    if ask is not None and [one.reason for one in found] == [Reason.NOT_APPROVED]:
        proposal = rules.proposal(history, run)
        if proposal.is_named_by(ask(plan, proposal)):
            approve(rules.path, proposal)
            found = rules.refusals(history, run)
    if not found:
        return
    error = SitePolicyError(rules.name, found)
    sign_refusal(error, plan, folder, rules.name, run)
    raise error
