"""What one process holds for its parties: opened clients that answer phases.

A runtime hands it a phase's bytes and gets bytes back. `open_site` is where a client's
folder, key, ledger, model and data come together.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from decimal import Decimal
from fractions import Fraction

import torch

from fgrpo_secure.admission import SiteRules, admit, site_rules
from fgrpo_secure.budget import open_client_ledger
from fgrpo_secure.client import Client
from fgrpo_secure.config import RunConfig
from fgrpo_secure.errors import FgrpoError, StateError, said_by_system
from fgrpo_secure.evaluate import evaluate
from fgrpo_secure.folders import RunFolder
from fgrpo_secure.grpo import adapter
from fgrpo_secure.grpo.policy import Policy
from fgrpo_secure.learner import Learner
from fgrpo_secure.refusals import sign_refusal
from fgrpo_secure.registration import cohort_names, recipe_digest
from fgrpo_secure.secrets import (
    identity_key,
    private_directory,
    remove_unfinished,
    write_atomically,
)
from fgrpo_secure.site_policy import SitePolicyError
from fgrpo_secure.task import load_run_policy, load_task
from privacy.errors import MalformedMessageError, PlanMismatchError, PrivacyError
from privacy.plan import Plan

# Called with a label, what is done and what there is to do.
SiteProgress = Callable[[str, int, int], None]


class Site:
    """The clients of one process, and the model that they share.

    Args:
        config: the run's configuration.
        policy: the model; each round puts the offered adapter on it.
        clients: by name.
        folder: where their private folders are.
        progress: for the operator's eyes.
        rules: of the clients whose sites have a policy.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        clients: Mapping[str, Client],
        folder: RunFolder,
        progress: SiteProgress,
        rules: Mapping[str, SiteRules],
    ) -> None:
        self._folder = folder
        self._config = config
        self._policy = policy
        self._clients = clients
        self._progress = progress
        self._rules = rules

    @property
    def policy(self) -> Policy:
        """The model that its clients share."""
        return self._policy

    def handle(self, phase: str, name: str, payload: bytes) -> bytes:
        """Answer one phase in one client's name.

        `evaluate` and `close` are not phases of a round: they score an adapter on the
        client's public evaluation set, and close its ledger.

        Raises:
            PrivacyError: the client declines, or a message was wrong.
            FgrpoError: what a user can mend; also a bug, whose text may quote data
                and therefore stays in the client's private folder.
        """
        if name not in self._clients:
            # A name from elsewhere must not become a path.
            msg = "a message for a client that this site does not hold"
            raise MalformedMessageError(msg)
        try:
            if phase == "evaluate":
                return self._evaluate(name, payload)
            if phase == "close":
                return self._clients[name].close(payload)
            return self._clients[name].handle(phase, payload)
        except (PrivacyError, FgrpoError):
            raise
        # The other clients of this process must not go down with this one.
        except OSError as error:
            raise StateError(*said_by_system(error)) from None
        except Exception:
            path = self._folder.private(name) / "crash.log"
            with suppress(OSError):
                write_atomically(path, traceback.format_exc().encode(), private=True)
            raise StateError(
                f"client {name} met an unexpected error",
                f"Look at {path}, which may quote data.",
            ) from None

    def _evaluate(self, name: str, payload: bytes) -> bytes:
        adapter.from_bytes(self._policy.model, payload)
        client = self._config.client_named(name)
        rules = self._rules.get(name)
        result = evaluate(
            self._config,
            client,
            self._policy,
            self._progress,
            allowed=None if rules is None else rules.allowed,
        )
        return json.dumps(asdict(result)).encode()


def open_site(
    config: RunConfig,
    plan: Plan,
    folder: RunFolder,
    names: Sequence[str],
    run: bytes,
    progress: SiteProgress,
    policy: Policy | None = None,
) -> Site:
    """Open clients of one cohort in this process: model, data, rewards, keys, ledgers.

    Args:
        config: the run's configuration.
        plan: the cohort's.
        folder: where the cohort's files are.
        names: the clients, all of this cohort.
        run: the cohort's handle.
        progress: for the operator's eyes.
        policy: the model, where clients of other cohorts have loaded it here.

    Raises:
        FgrpoError: what a user can mend.
        PrivacyError: a ledger that does not verify, a budget that is spent, or a
            site's own policy, whose refusal then stands in the client's ledger.
    """
    check_plan(plan, config)
    if plan.recipe != recipe_digest(config):
        msg = (
            "the plan has another recipe than this site's configuration, base model "
            "and settings of learning; compare these with the other parties"
        )
        raise PlanMismatchError(msg)
    rules = site_rules(config, plan, folder, names)
    for own in rules.values():
        admit(own, plan, folder, run)
    torch.set_num_threads(config.machine.threads)
    policy = policy or load_run_policy(config)
    clients = {}
    for name in names:
        own = rules.get(name)
        allowed = None if own is None else own.allowed
        task = load_task(config, config.client_named(name), policy, allowed)
        if len(task.units) > plan.client(name).units:
            msg = (
                f"the plan states fewer units for client {name!r} than it has; state "
                "`units` as a number that is not below it, since delta is held "
                "against it"
            )
            raise PlanMismatchError(msg)
        private = private_directory(folder.private(name))
        key = identity_key(private)
        roster = folder.roster(plan)
        check = None if own is None else own.check_opening
        try:
            if own is not None:
                own.check_model()
            ledger = open_client_ledger(
                config, plan, folder, name, key, run, task.units, check
            )
        except SitePolicyError as error:
            sign_refusal(error, plan, folder, name, run)
            raise
        private_run = private_directory(folder.of_run(name, run))
        remove_unfinished(private_run)
        learner = Learner(
            plan=plan,
            name=name,
            task=task,
            policy=policy,
            folder=private_run,
            progress=TenthsOfADraw(progress, f"rollouts {name}"),
        )
        clients[name] = Client(
            plan=plan,
            name=name,
            learner=learner,
            policy=policy,
            ledger=ledger,
            key=key,
            roster=roster,
            federation=run.hex(),
            rules=own,
        )
    return Site(config, policy, clients, folder, progress, rules)


def check_plan(plan: Plan, config: RunConfig) -> None:
    """Hold a cohort's plan to the terms of the configuration that the site accepted.

    Raises:
        PlanMismatchError: a term of the guarantee differs, or it is none of the
            configuration's cohorts.
    """
    names = tuple(client.name for client in plan.clients)
    known = {client.name for client in config.client}
    stated = (
        plan.unit,
        plan.max_prompts_per_unit,
        Decimal(plan.epsilon),
        Decimal(plan.delta),
        plan.trust,
        plan.rounds,
        plan.local_steps,
        plan.inner_steps,
        tuple(client.sampling_rate for client in plan.clients),
        plan.clip_norm,
        plan.modulus_bits,
        plan.rotation,
        plan.min_survivors,
        plan.colluders,
        names,
    )
    accepted = (
        config.privacy.unit,
        config.privacy.prompts_per_unit,
        config.privacy.epsilon,
        config.privacy.delta,
        config.privacy.trust,
        config.privacy.rounds,
        config.privacy.local_steps,
        config.privacy.inner_steps,
        tuple(config.sampling_rate(name) for name in names if name in known),
        Fraction(config.privacy.clip_norm),
        config.privacy.modulus_bits,
        config.privacy.rotation,
        config.federation.min_survivors,
        config.federation.colluders,
        names if names in cohort_names(config) else (),
    )
    if stated != accepted:
        msg = "the plan has other terms than the configuration; see both again"
        raise PlanMismatchError(msg)
    for client in plan.clients:
        if config.client_named(client.name).units not in {None, client.units}:
            msg = (
                f"the plan states another number of units for client {client.name!r} "
                "than the configuration; see both again"
            )
            raise PlanMismatchError(msg)


class TenthsOfADraw:
    """Progress that says the same of every draw, whatever its size: ten steps, once.

    How many units were drawn is nobody else's business, and a bar that moves by units
    tells it. An empty draw moves through the same steps.

    Args:
        progress: what is told.
        label: of the bar.
    """

    def __init__(self, progress: SiteProgress, label: str) -> None:
        self._progress = progress
        self._label = label
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        """Move on; a draw is over where `done` is `total`, and the next one begins.

        Guarantee:
            Between two ends the steps 1 to 10 are told, each once and in order.
        """
        reached = 10 if done == total else min(9, 10 * done // total)
        for step in range(self._shown + 1, reached + 1):
            self._progress(self._label, step, 10)
        self._shown = 0 if done == total else max(self._shown, reached)
