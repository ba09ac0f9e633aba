"""What `fgrpo policy init`, `check` and `approve` do.

Heavy libraries are imported by the command that needs them, as in `commands`.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from fgrpo_secure.commands import EXIT_REFUSED, operator_asked, quiet_libraries
from fgrpo_secure.errors import ConfigurationError, StateError

if TYPE_CHECKING:
    from fgrpo_secure.admission import SiteRules
    from fgrpo_secure.config import RunConfig
    from fgrpo_secure.site_policy import Facts, Refusal, SitePolicy
    from privacy.plan import Plan

_TEMPLATE = """\
# What this site allows, whatever a plan, a configuration or a coordinator says.
# Every key is required, and what no line allows is refused. docs/policy.md.
#
# Written from {source} as it was. Read every line before you rely on it.

[plan]
# What the promise is about: "prompt", or names of columns.
units = [{unit}]
# "distributed": other clients' noise protects as well. "local": only this site's own.
trust = [{trust}]
# Fewest clients in a plan, and in every round that this site is charged for.
least_clients = {clients}
# Fewest clients in a sum that may be opened.
least_survivors = {survivors}
# The promise must hold though so many other clients work with the coordinator.
# Larger is stricter.
least_colluders = {colluders}
# Base models that may be trained, by the digest of their files.
base_models = [{base_model}]

# One for each data set: most that a run may promise, and that all runs may add up to.
[[data_set]]
name = {data_set}
epsilon = {epsilon}
delta = {delta}
epsilon_for_life = {epsilon_for_life}
delta_for_life = {delta_for_life}

# Reward functions that may see the data, by the file that defines each.
{rewards}
# What may be learnt from a data set, with exactly these rewards.
[[task]]
data_set = {data_set}
rewards = [{names}]
# "ask": the operator approves each run. "auto": whatever passes the rest.
approval = "ask"
"""

_REWARD = """\
[[reward]]
name = {name}
sha256 = {sha256}
"""


def write_policy(options: argparse.Namespace) -> int:
    """Write a policy that allows what one client would do now."""
    from fgrpo_secure.config import load_config

    config, _ = load_config(options.config, options.overrides)
    _check_names(config, [options.client])
    draft(config, options.client, options.policy, options.config)
    print(
        f'\nNext: read it, then write policy = "{options.policy}" in the [[client]] '
        f"table of {options.client}."
    )
    return 0


def draft(config: RunConfig, client: str, policy: Path, source: str) -> None:
    """Write a policy that allows what one client would do under a configuration.

    Args:
        config: the configuration.
        client: whose site it is.
        policy: a new file.
        source: what the configuration is called.

    Raises:
        ConfigurationError: no policy could allow it.
        StateError: the file is there already.
    """
    bound = _bound(config, [client], policy)
    with quiet_libraries():
        found = _proposed(bound, [client])
    _, _, facts = found[client]
    if facts.base_model is None:
        raise ConfigurationError(
            "The files of the base model are not here, so that nothing names them.",
            "Download it first, or name a directory as [model] base.",
        )
    if not facts.epsilon.is_finite():
        raise ConfigurationError(
            "This configuration promises no privacy, and no policy can allow that.",
            "State a finite epsilon, or run baselines without a policy.",
        )
    text = _TEMPLATE.format(
        source=source,
        unit=_quoted(facts.unit),
        trust=_quoted(facts.trust),
        clients=facts.clients,
        survivors=facts.min_survivors,
        colluders=facts.colluders,
        base_model=_quoted(facts.base_model),
        data_set=_quoted(facts.data_set),
        epsilon=_number(facts.epsilon),
        delta=_number(facts.delta),
        epsilon_for_life=_number(facts.cap_epsilon),
        delta_for_life=_number(facts.cap_delta),
        rewards="\n".join(
            _REWARD.format(name=_quoted(r.name), sha256=_quoted(r.sha256))
            for r in sorted(set(facts.rewards), key=lambda r: (r.name, r.sha256))
        ),
        names=", ".join(
            _quoted(name) for name in sorted({r.name for r in facts.rewards})
        ),
    )
    try:
        with policy.open("x", encoding="utf-8") as handle:
            handle.write(text)
    except FileExistsError:
        raise StateError(
            f"{policy} is there already.",
            "Name a new file: a policy is not written over.",
        ) from None
    policy.chmod(0o644)
    print(policy)


def check_policy(options: argparse.Namespace) -> int:
    """Say what a policy would refuse; nothing is written."""
    from fgrpo_secure.approvals import load_policy
    from fgrpo_secure.config import load_config

    # What is typed may lead through links; a policy that is read by a run may not.
    policy = load_policy(options.policy.parent.resolve() / options.policy.name)
    if options.config.endswith(".json"):
        return _report(_of_plan(policy, Path(options.config)), options)
    config, _ = load_config(options.config, options.overrides)
    known = [client.name for client in config.client]
    own = str(options.policy.resolve())
    named = [client.name for client in config.client if client.policy == own]
    names = options.names or named or known
    _check_names(config, names)
    with quiet_libraries():
        found = _proposed(_bound(config, names, options.policy), names)
    from fgrpo_secure.site_policy import check

    return _report(
        {name: check(policy, facts) for name, (*_, facts) in found.items()}, options
    )


def approve_plan(options: argparse.Namespace) -> int:
    """Show what is proposed, and keep an operator's approval of it."""
    from fgrpo_secure.config import load_config

    config, _ = load_config(options.config, options.overrides)
    return approve_config(config, options)


def approve_config(config: RunConfig, options: argparse.Namespace) -> int:
    """The same of a configuration that is read already.

    Args:
        config: the configuration.
        options: which clients (`names`), the plan's `digest` where there is no
            terminal, and how to report.
    """
    from fgrpo_secure.admission import policy_of
    from fgrpo_secure.approvals import TYPED, approve
    from fgrpo_secure.folders import RunFolder

    if options.names:
        _check_names(config, options.names)
    folder = RunFolder.of(Path(), config)
    known = [client.name for client in config.client]
    bound = [name for name in known if policy_of(config, folder, name) is not None]
    names = [name for name in options.names or bound if name in bound]
    if not names:
        raise ConfigurationError(
            "No client of this configuration that is meant names a policy.",
            'Write policy = "FILE" in its [[client]] table, or put it into the store.',
        )
    with quiet_libraries():
        found = _proposed(config, names)
    ask = operator_asked(config)
    for name, (plan, rules, _) in found.items():
        history = rules.history()
        run, refusals = rules.to_approve(history)
        if not refusals:
            print(f"{name}: nothing is left to approve.")
            continue
        if any(refusal.reason.value != "not_approved" for refusal in refusals):
            return _report({name: refusals}, options)
        proposal = rules.proposal(history, run)
        if options.digest is not None:
            typed = options.digest
        elif sys.stdin is not None and sys.stdin.isatty():
            typed = ask(plan, proposal)
        else:
            raise ConfigurationError(
                "There is no terminal at which anybody could read what is approved.",
                "Read it by `fgrpo plan`, or `fgrpo pilot plan` in a pilot, and give "
                "--digest with the plan's digest.",
            )
        if not proposal.is_named_by(typed):
            raise ConfigurationError(
                f"That is not the digest of the plan for {name}; nothing is approved.",
                f"Type the first {TYPED} characters of the plan that you were shown.",
            )
        print(f"{name}: approved for one run, in {approve(rules.path, proposal)}")
    return 0


def _proposed(
    config: RunConfig, names: list[str]
) -> dict[str, tuple[Plan, SiteRules, Facts]]:
    """For each of these clients its cohort's plan, and what it would be to it."""
    from fgrpo_secure.admission import NO_RUN, site_rules
    from fgrpo_secure.folders import RunFolder
    from fgrpo_secure.preparation import make_plans

    plans, _ = make_plans(config)
    found = {}
    for plan in plans:
        held = [client.name for client in plan.clients if client.name in names]
        rules = site_rules(config, plan, RunFolder.of(Path(), config), held)
        for name, own in rules.items():
            found[name] = (plan, own, own.facts(own.history(), NO_RUN))
    return found


def _of_plan(policy: SitePolicy, path: Path) -> dict[str, list[Refusal]]:
    """What a policy has against a plan, data set by data set.

    Which model, rewards and ledger it would meet at a site a plan does not say.
    """
    from fgrpo_secure.site_policy import Facts, check_plan, check_run_cost
    from privacy.contribution import registered_spend
    from privacy.ledger import claimed_epsilon
    from privacy.plan import Plan
    from privacy.wire import parse_canonical_json

    try:
        plan = Plan.from_json(parse_canonical_json(path.read_bytes().strip()))
    except FileNotFoundError:
        raise ConfigurationError(
            f"There is no plan {path}.", "Give a run's plan.json, or a configuration."
        ) from None
    price = claimed_epsilon(registered_spend(plan, plan.most_exposed))
    facts = Facts(
        data_set="",
        unit=plan.unit,
        trust=plan.trust,
        epsilon=max(Decimal(plan.epsilon), price),
        delta=Decimal(plan.delta),
        cap_epsilon=Decimal(0),
        cap_delta=Decimal(0),
        kept=True,
        clients=len(plan.clients),
        min_survivors=plan.min_survivors,
        colluders=plan.colluders,
        base_model=None,
        rewards=(),
        approved=False,
    )
    return {"plan": check_plan(policy, facts)} | {
        f"data set {rules.name}": check_run_cost(rules, facts)
        for rules in policy.data_set
    }


def _report(found: dict[str, list[Refusal]], options: argparse.Namespace) -> int:
    refused = any(found.values())
    if options.json:
        listed = {
            name: [
                {"reason": one.reason.value, "what": one.what, "fix": one.fix}
                for one in refusals
            ]
            for name, refusals in found.items()
        }
        print(json.dumps(listed, indent=2))
        return EXIT_REFUSED if refused else 0
    for name, refusals in found.items():
        print(f"{name}: {'REFUSED' if refusals else 'allowed'}")
        for one in refusals:
            print(f"  {one.reason.value}")
            for text in (one.what, one.fix):
                sentence = f"{text[:1].upper()}{text[1:]}."
                print(textwrap.indent(textwrap.fill(sentence, 74), "    "))
    if options.config.endswith(".json"):
        print("A plan does not say which base model, rewards and ledger it would meet.")
    return EXIT_REFUSED if refused else 0


def _bound(config: RunConfig, names: list[str], policy: Path) -> RunConfig:
    """The configuration with one policy for these clients."""
    own = str(policy.resolve())
    clients = tuple(
        client.model_copy(update={"policy": own}) if client.name in names else client
        for client in config.client
    )
    return config.model_copy(update={"client": clients})


def _check_names(config: RunConfig, names: list[str]) -> None:
    known = [client.name for client in config.client]
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"There is no client {name} in the configuration.",
                f"Name one of: {', '.join(known)}.",
            )


def _quoted(text: str) -> str:
    """A TOML string; JSON's escapes are TOML's too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _number(value: Decimal) -> str:
    return format(value.normalize(), "f")
