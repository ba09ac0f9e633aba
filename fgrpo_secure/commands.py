"""What each command of `fgrpo` does, from its parsed options to its exit status.

Heavy libraries are imported by the command that needs them, so that `--help`, `price`
and `ledger verify` answer at once.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgrpo_secure.errors import ConfigurationError
from privacy.errors import LedgerError

if TYPE_CHECKING:
    from fgrpo_secure.admission import Ask
    from fgrpo_secure.approvals import Proposal
    from fgrpo_secure.config import RunConfig
    from privacy.ledger import Report, SignedRoot
    from privacy.plan import Plan

EXIT_WRONG = 1
EXIT_REFUSED = 6
EXIT_LEDGER = 7
EXIT_PROTOCOL = 8
EXIT_INTERRUPTED = 130


def fail(what: str, fix: str, code: int) -> int:
    """Print the two lines of an error; returns the exit status."""
    print(f"fgrpo: {what}", file=sys.stderr)
    print(f"       {fix}", file=sys.stderr)
    return code


def init_project(options: argparse.Namespace) -> int:
    """Write a new project, from flags or from answers."""
    from fgrpo_secure.scaffold import FIELDS, ask, make_answers, write_project

    given = {name: getattr(options, name) for name in FIELDS}
    given = {name: text for name, text in given.items() if text is not None}
    if options.yes or sys.stdin is None or not sys.stdin.isatty():
        answers = make_answers(given)
    else:
        try:
            answers = ask(given, input, print)
        except EOFError:
            raise ConfigurationError(
                "The questions have no answers, and nothing was written.",
                "Answer them, give flags, or say --yes to what is proposed.",
            ) from None
    for path in write_project(options.folder, answers):
        print(path)
    config = options.folder / "run.toml"
    print(f"\nNext: {_program()} check {config}")
    print(f"      {_program()} plan {config}")
    print(f"      {_program()} run {config}")
    return 0


def check_clients(options: argparse.Namespace) -> int:
    """Try what each client learns from, for its owner's eyes."""
    from dataclasses import asdict

    from fgrpo_secure.config import load_config

    config, _ = load_config(options.config, options.overrides)
    known = [client.name for client in config.client]
    names = options.names or known
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"There is no client {name} in the configuration.",
                f"Name one of: {', '.join(known)}.",
            )
    with quiet_libraries():
        from fgrpo_secure.task import load_run_policy
        from fgrpo_secure.trial import try_client

        policy = load_run_policy(config)
        trials = [try_client(config, config.client_named(n), policy) for n in names]
    if options.json:
        print(json.dumps([asdict(trial) for trial in trials]))
        return 0
    for trial in trials:
        print("\n".join(trial.lines()))
    print(
        "\nExact counts of private data: for their owner's eyes. Nothing was spent.\n"
        "A number that is read off them and written into the configuration is itself a "
        "release,\nwhich no guarantee covers."
    )
    return 0


def show_plan(options: argparse.Namespace) -> int:
    """Print what a configuration would promise."""
    from fgrpo_secure.config import load_config
    from fgrpo_secure.preparation import make_plans

    config, _ = load_config(options.config, options.overrides)
    with quiet_libraries():
        plans, _ = make_plans(config)
    plan, facts = run_facts(plans)
    budgets = [budget_facts(config, one) for one in plans]
    clients = {name: own for one in budgets for name, own in one["clients"].items()}
    facts |= {"budget": budgets[0] | {"clients": clients}}
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    from fgrpo_secure.guarantee import explain

    print(explain(plan, facts))
    return 0


def operator_asked(config: RunConfig) -> Ask:
    """A way to ask whoever sits at this terminal, with the plan in words."""

    def ask(plan: Plan, proposal: Proposal) -> str:
        from fgrpo_secure.approvals import TYPED
        from fgrpo_secure.guarantee import explain

        budget = budget_facts(config, plan)
        # What other clients have left nobody at this site knows.
        budget["clients"] = {proposal.client: budget["clients"][proposal.client]}
        facts = plan_facts(plan) | {"budget": budget}
        words = [explain(plan, facts), "", "To approve", *proposal.words(), ""]
        print("\n".join(words), file=sys.stderr)
        print(
            f"The policy of {proposal.client} asks you. Type the first {TYPED} "
            "characters of the plan's digest to approve, or nothing to decline:",
            file=sys.stderr,
        )
        try:
            return input()
        except EOFError:
            return ""

    return ask


def budget_facts(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """What is left of each client's budget, and whether it lets this run begin."""
    from fgrpo_secure.budget import standings
    from fgrpo_secure.display import stated_epsilon
    from privacy.ledger import claimed_epsilon

    clients: dict[str, Any] = {}
    for name, found in standings(config, plan).items():
        if isinstance(found, str):
            clients[name] = {"may_run": False, "why_not": found}
            continue
        former, spent = found.former_cap, found.spent
        clients[name] = {
            "may_run": found.refusal is None,
            "why_not": found.refusal,
            "runs": found.runs,
            "spent": stated_epsilon(claimed_epsilon(spent)) if spent else 0.0,
            # What counts once there is a second run; the difference to `after` is
            # what this one costs.
            "counted": stated_epsilon(spent.epsilon_rdp) if spent else 0.0,
            "after": stated_epsilon(found.after),
            "cap": stated_epsilon(found.cap),
            "least_cap": stated_epsilon(found.least_cap),
            "former_cap": None if former is None else stated_epsilon(former),
            "delta": float(found.delta),
            "by_filter": found.runs > 0,
        }
    return {"shared": config.machine.state is not None, "clients": clients}


def run_facts(plans: Sequence[Plan]) -> tuple[Plan, dict[str, Any]]:
    """What a run promises: the plan of its most exposed client, and facts of all.

    Cohorts differ in their clients alone, so that each one's terms are those of all.
    """
    plan = max(plans, key=lambda one: one.sampling_rate)
    facts = plan_facts(plan)
    if len(plans) == 1:
        return plan, facts | {"cohorts": []}
    each = [facts if one is plan else plan_facts(one) for one in plans]
    for name in ("epsilon_by_client", "sampling_rate_by_client", "expected_batch"):
        facts |= {name: {c: value for one in each for c, value in one[name].items()}}
    told = ("digest", "clients", "threshold")
    cohorts = [{name: one[name] for name in told} for one in each]
    return plan, facts | {
        "clients": sum(one["clients"] for one in cohorts),
        "cohorts": cohorts,
    }


def plan_facts(plan: Plan) -> dict[str, Any]:
    """What a plan promises, for programs; the words are `guarantee.explain`."""
    from fgrpo_secure.display import stated_epsilon
    from fgrpo_secure.guarantee import attack_on
    from privacy.contribution import registered_spend
    from privacy.ledger import claimed_epsilon

    attack = attack_on(plan)
    spends = {c.name: registered_spend(plan, c.name) for c in plan.clients}
    spend = spends[plan.most_exposed]
    statistic = None
    if plan.statistic_variance:
        statistic = plan.statistic_variance**0.5 / plan.statistic_norm_bound
    return {
        "digest": plan.digest,
        "unit": plan.unit,
        "max_prompts_per_unit": plan.max_prompts_per_unit,
        "trust": plan.trust,
        "epsilon_target": stated_epsilon(Decimal(plan.epsilon)),
        "epsilon_pld": stated_epsilon(spend.epsilon_pld),
        "epsilon_rdp": stated_epsilon(spend.epsilon_rdp),
        "epsilon_by_client": {
            name: stated_epsilon(claimed_epsilon(own)) for name, own in spends.items()
        },
        "delta": float(plan.delta),
        "attack": {"accuracy": attack.accuracy, "found": attack.found},
        "rounds": plan.rounds,
        "local_steps": plan.local_steps,
        "inner_steps": plan.inner_steps,
        "sampling_rate": float(plan.sampling_rate),
        "sampling_rate_by_client": {
            client.name: float(client.sampling_rate) for client in plan.clients
        },
        "expected_batch": {
            client.name: float(plan.expected_batch(client.name))
            for client in plan.clients
        },
        "noise_multiplier": plan.noise_multiplier,
        "statistic_multiplier": statistic,
        "noise_share_std": plan.noise_share_variance**0.5,
        "clip_norm": float(plan.clip_norm),
        "norm_bound": plan.norm_bound,
        "dimension": plan.dimension,
        "modulus_bits": plan.modulus_bits,
        "rotation": plan.rotation,
        "bytes_per_round": plan.bytes_up,
        "bytes_per_parameter": plan.bytes_up / plan.dimension,
        "clients": len(plan.clients),
        "min_survivors": plan.min_survivors,
        "colluders": plan.colluders,
        "threshold": plan.threshold,
    }


def price_mechanism(options: argparse.Namespace) -> int:
    """Print what a mechanism costs, by two accountants."""
    from privacy.accountant import price

    cost = price(
        sampling_rate=options.sampling_rate,
        noise_multiplier=options.noise_multiplier,
        rounds=options.rounds,
        inner_steps=options.inner_steps,
        delta=options.delta,
    )
    if options.json:
        found = {"epsilon_pld": cost.epsilon_pld, "epsilon_rdp": cost.epsilon_rdp}
        print(json.dumps(found))
    else:
        print(f"epsilon {cost.epsilon_pld:.5f} by the privacy loss distribution")
        print(f"epsilon {cost.epsilon_rdp:.5f} by Renyi divergence at integer orders")
    return 0


def run_job(options: argparse.Namespace) -> int:
    """Run all parties on this machine."""
    from fgrpo_secure.config import load_config
    from fgrpo_secure.display import Display
    from privacy.ledger import cohort_folders

    config, name = load_config(options.config, options.overrides)
    display = Display()
    display.say("Loading libraries ...")
    with quiet_libraries():
        from fgrpo_secure.job import run
        from fgrpo_secure.preparation import default_folder

        root = options.output or default_folder(name)
        ask = operator_asked(config) if sys.stdin and sys.stdin.isatty() else None
        try:
            finished = run(config, root, display, ask)
        except KeyboardInterrupt:
            return fail(
                "Interrupted. What was charged stays charged, and nothing is lost.",
                f"To go on: {_again(options, root)}",
                EXIT_INTERRUPTED,
            )
    display.result(finished.summary, finished.samples)
    display.say(f"adapter  {root / 'adapter'}")
    for folder in cohort_folders(root) or [root]:
        display.say(f"ledgers  {folder / 'ledger'}")
    display.say(f"summary  {root / 'summary.json'}")
    display.say(f"verify   {_program()} ledger verify {root}")
    for folder in cohort_folders(root) or [root]:
        display.say(f"report   {_program()} report {folder}")
    if options.json:
        print(json.dumps(finished.summary))
    return 0


def _program() -> str:
    """How this program was called, so that a printed command can be repeated."""
    called = sys.argv[0]
    return called if Path(called).name == "fgrpo" else "fgrpo"


def _again(options: argparse.Namespace, root: Path) -> str:
    words = [_program(), "run", options.config, f"--output {root}"]
    words += [f"--set {override}" for override in options.overrides]
    return " ".join(words)


def print_version() -> None:
    """Say what runs, as a ledger does."""
    from fgrpo_secure.software import software

    print(software())


def verify_ledgers(options: argparse.Namespace) -> int:
    """Check runs' folders and single ledger files."""
    from privacy.ledger import (
        cohort_folders,
        split_views,
        verify_federation,
        verify_run,
    )

    wrong = 0
    roots: list[SignedRoot] = []
    for path in options.paths:
        if path.is_dir() and cohort_folders(path):
            reports, between = verify_federation(path, unfinished=options.unfinished)
            for name, report in reports.items():
                wrong += _print_report(path / name, report, roots)
            for problem in between:
                print(f"{path / problem.file}: {problem}")
            wrong += len(between)
            if not between and all(report.ok for report in reports.values()):
                print(f"{path}: verifies: {len(reports)} cohorts of one run")
        elif path.is_dir():
            report = verify_run(path, unfinished=options.unfinished)
            wrong += _print_report(path, report, roots)
        else:
            wrong += _verify_file(path, roots, closed=not options.unfinished)
    split = split_views(roots)
    for found in split:
        print(found)
    return EXIT_WRONG if wrong or split else 0


def _print_report(path: Path, report: Report, roots: list[SignedRoot]) -> int:
    """Say what was found of a run's folder; returns how much is wrong.

    Args:
        path: the folder.
        report: of it.
        roots: what is signed in it is added here.
    """
    from privacy.ledger import SignedRoot

    roots += [
        SignedRoot(root.head, root.server, f"{path / root.where}")
        for root in report.roots
    ]
    for problem in report.problems:
        print(f"{path / problem.file}: {problem}")
    if report.ok:
        _print_verified(path, report)
    return len(report.problems)


def _print_verified(path: Path, report: Any) -> None:  # noqa: ANN401
    from privacy.ledger import claimed_epsilon, decimal_text

    digest = report.plan_digest.hex()[:16]
    print(
        f"{path}: verifies: plan {digest}, {report.published} rounds published, "
        f"{report.aborted} aborted"
    )
    for name, spend in sorted(report.spends.items()):
        print(
            f"  {name}: epsilon {decimal_text(claimed_epsilon(spend))} at delta "
            f"{decimal_text(spend.delta)}, {spend.charges} charges"
        )
        print(f"    {report.budgets[name].words()}")
    print(f"  log: {report.log_size} lines, {_cosigned_words(report)}")


def _cosigned_words(report: Any) -> str:  # noqa: ANN401
    """How far each client has cosigned the server's log."""
    by_size: dict[int, list[str]] = {}
    for name in sorted(report.spends):
        by_size.setdefault(report.cosigned.get(name, 0), []).append(name)
    parts = [
        f"cosigned up to {size} by {' '.join(names)}"
        if size
        else f"not cosigned by {' '.join(names)}"
        for size, names in sorted(by_size.items(), reverse=True)
    ]
    return "; ".join(parts)


def _verify_file(path: Path, roots: list[SignedRoot], *, closed: bool) -> int:
    from privacy.ledger import (
        Budget,
        Role,
        read_key_file,
        roots_of,
        roots_of_log,
        verify_ledger,
    )

    pinned = path.parent.parent / "keys" / f"{path.stem}.pub"
    try:
        key = read_key_file(pinned) if pinned.is_file() else None
        ledger = verify_ledger(path, key=key, closed=closed)
    except LedgerError as error:
        print(error)
        return 1
    print(f"{path}: verifies: {ledger.party}, {ledger.history.records} records")
    roots += roots_of(str(path), ledger.runs)
    if ledger.role is Role.SERVER:
        lines = path.read_bytes().splitlines()
        roots += roots_of_log(str(path), lines, ledger.runs[0].opened)
    if ledger.role is Role.CLIENT and ledger.runs:
        print(f"  {Budget.of(ledger.runs).words()}")
    if key is None:
        print(
            "  signed by the key that it names itself, "
            f"{ledger.key.fingerprint}: compare it with the party's"
        )
    return 0


def show_ledgers(options: argparse.Namespace) -> int:
    """Print ledgers in words."""
    from privacy.ledger import cohort_folders, show

    files: list[Path] = []
    for path in options.paths:
        folders = cohort_folders(path) or [path]
        found = [f for folder in folders for f in folder.glob("ledger/*.jsonl")]
        files += sorted(found) if path.is_dir() else [path]
    if not files:
        raise ConfigurationError(
            "There is no ledger there.", "Give a run's folder or a ledger file."
        )
    for path in files:
        print(path)
        for line in show(path):
            print(f"  {line}")
    return 0


def report(options: argparse.Namespace) -> int:
    """Write the report and the claim of a run."""
    import audits
    from fgrpo_secure.report import Refuted, write_report

    released = Path(audits.__file__).parent / "results"
    with quiet_libraries():
        found = write_report(options.folder, released, unfinished=options.unfinished)
    if isinstance(found, Refuted):
        for problem in found.problems:
            print(problem)
        what = f"{options.folder} does not verify: nothing is claimed about this run."
        return fail(what, f"See {options.folder / 'report.html'}.", EXIT_WRONG)
    print(options.folder / "report.html")
    print(options.folder / "claim.json")
    return 0


def score(options: argparse.Namespace) -> int:
    """Score an adapter on the public evaluation sets."""
    from fgrpo_secure.config import load_config
    from fgrpo_secure.display import Display

    config, _ = load_config(options.config, options.overrides)
    with quiet_libraries():
        from fgrpo_secure.evaluate import score_adapter

        display = Display()
        with display.running(rounds=1, done=0):
            scores = score_adapter(config, options.adapter, display.progress)
    found = {name: score.mean for name, score in scores.items()}
    if options.json:
        print(json.dumps({"clients": found, "reward": _mean(found.values())}))
        return 0
    for name, value in found.items():
        print(f"{name:20} {value:.3f}")
    print(f"{'mean':20} {_mean(found.values()):.3f}")
    return 0


def audit(options: argparse.Namespace) -> int:
    """Attack our own claims."""
    from audits.commands import run_audit

    with quiet_libraries():
        return run_audit(options)


def _mean(values: Any) -> float:  # noqa: ANN401
    listed = list(values)
    return sum(listed) / len(listed)


def quiet_libraries() -> Any:  # noqa: ANN401
    """Keep the libraries' advice off the screen; their errors still come through."""
    import contextlib
    import logging
    import os
    import warnings

    # Idle threads that spin would take the cores from the other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    logging.getLogger("absl").setLevel(logging.ERROR)
    stack = contextlib.ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    return stack
