"""The command `fgrpo`.

Heavy libraries are imported by the command that needs them, so that `--help`, `price`
and `ledger verify` answer at once.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgrpo_secure import __version__
from fgrpo_secure.errors import ConfigurationError, FgrpoError
from privacy.errors import LedgerError, PrivacyError, ProtocolError

if TYPE_CHECKING:
    from privacy.plan import Plan

EXIT_WRONG = 1
EXIT_REFUSED = 6
EXIT_LEDGER = 7
EXIT_PROTOCOL = 8
EXIT_INTERRUPTED = 130

_KERNEL_ERRORS: tuple[tuple[type[PrivacyError], tuple[str, int]], ...] = (
    (
        LedgerError,
        (
            "Do not go on with this ledger; `fgrpo ledger verify` says more.",
            EXIT_LEDGER,
        ),
    ),
    (ProtocolError, ("The round cannot go on; begin another.", EXIT_PROTOCOL)),
    (
        PrivacyError,
        ("Nothing was spent. `fgrpo plan` shows what is promised.", EXIT_REFUSED),
    ),
)

_DESCRIPTION = """\
Federated GRPO with differential privacy, secure aggregation and signed ledgers.

  fgrpo plan            what a run would promise, before anything runs
  fgrpo run             run it, all parties on this machine
  fgrpo ledger verify   check a run's ledgers without trusting who wrote them
  fgrpo audit canaries  attack the claimed epsilon

CONFIG is a TOML file, or `tiny`, the embedded default that needs no network.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 1: something does not verify. 2 to 5: a configuration, data or reward,
    model, or folder that a user can mend. 6: refused on privacy grounds. 7: a ledger
    that is unreliable. 8: the protocol failed. 130: interrupted.
    """
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except FgrpoError as error:
        return _fail(error.what, error.fix, error.exit_code)
    except PrivacyError as error:
        fix, code = next(how for kind, how in _KERNEL_ERRORS if isinstance(error, kind))
        return _fail(str(error), fix, code)
    except KeyboardInterrupt:
        return _fail("Interrupted.", "Nothing was lost.", EXIT_INTERRUPTED)
    except BrokenPipeError:
        return EXIT_WRONG


def _fail(what: str, fix: str, code: int) -> int:
    print(f"fgrpo: {what}", file=sys.stderr)
    print(f"       {fix}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fgrpo",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fgrpo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_plan(commands)
    _add_price(commands)
    _add_run(commands)
    _add_ledger(commands)
    _add_eval(commands)
    _add_audit(commands)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        default="tiny",
        help="a TOML file, or the name of an embedded one (default: tiny)",
    )
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change one key, for example privacy.rounds=5; may be repeated",
    )
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print JSON, for a program to read"
    )


def _add_plan(commands: Any) -> None:  # noqa: ANN401
    parser = commands.add_parser(
        "plan",
        help="print the guarantee of a configuration before anything runs",
        description="Register the plan of a configuration and print what it promises. "
        "Nothing runs and nothing is spent.",
    )
    _add_config(parser)
    parser.set_defaults(command=_plan)


def _add_price(commands: Any) -> None:  # noqa: ANN401
    parser = commands.add_parser(
        "price",
        help="epsilon of a sampling rate, a noise multiplier and a number of rounds",
        description="Price the Poisson-sampled Gaussian mechanism by two accountants. "
        "The noise multiplier is taken as it is, without slack for discrete noise.",
    )
    parser.add_argument("--sampling-rate", metavar="Q", required=True, type=_rational)
    parser.add_argument("--noise-multiplier", metavar="Z", required=True, type=float)
    parser.add_argument("--rounds", metavar="T", required=True, type=int)
    parser.add_argument(
        "--inner-steps",
        metavar="MU",
        type=int,
        default=1,
        help="gradient steps on one draw (default: 1)",
    )
    parser.add_argument("--delta", metavar="D", required=True, type=_rational)
    _add_json(parser)
    parser.set_defaults(command=_price)


def _add_run(commands: Any) -> None:  # noqa: ANN401
    parser = commands.add_parser(
        "run",
        help="run all parties on this machine",
        description="Fine-tune, all parties on this machine. An interrupted run goes "
        "on when the same command is given with its --output.",
    )
    _add_config(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="the run's folder (default: runs/<config>-<UTC>)",
    )
    parser.set_defaults(command=_run)


def _add_ledger(commands: Any) -> None:  # noqa: ANN401
    parser = commands.add_parser("ledger", help="verify or read ledgers")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    verify = actions.add_parser(
        "verify",
        help="check ledgers: chain, signatures, order, spend, agreement",
        description="Check runs' folders or single ledger files. Exit status 0 if all "
        "is right, else 1 with what is wrong and where.",
    )
    verify.add_argument("paths", metavar="DIR_OR_FILE", nargs="+", type=Path)
    verify.add_argument(
        "--unfinished",
        action="store_true",
        help="accept a run that has not ended; lines cut off its end go unnoticed",
    )
    verify.set_defaults(command=_verify)
    show = actions.add_parser("show", help="print ledgers in words")
    show.add_argument("paths", metavar="DIR_OR_FILE", nargs="+", type=Path)
    show.set_defaults(command=_show)


def _add_eval(commands: Any) -> None:  # noqa: ANN401
    parser = commands.add_parser(
        "eval",
        help="score an adapter on the public evaluation sets",
        description="Score a PEFT adapter directory on the evaluation sets that the "
        "configuration declares public.",
    )
    _add_config(parser)
    parser.add_argument(
        "--adapter", metavar="DIR", required=True, type=Path, help="a PEFT directory"
    )
    parser.set_defaults(command=_eval)


def _add_audit(commands: Any) -> None:  # noqa: ANN401
    parser = commands.add_parser("audit", help="attack our own claims")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    canaries = actions.add_parser(
        "canaries",
        help="bound epsilon from below with gradient canaries",
        description="Send gradient canaries through the real clipping, noise and "
        "secure aggregation, with the configuration's epsilon, delta, min_survivors "
        "and colluders and the noise recalibrated for one release, and bound the "
        "epsilon that was really lost. Exit status 1 if the bound is above the claim.",
    )
    _add_config(canaries)
    canaries.set_defaults(command=_audit_canaries)


def _rational(text: str) -> Fraction:
    try:
        return Fraction(Decimal(text)) if "/" not in text else Fraction(text)
    except (InvalidOperation, ValueError, ZeroDivisionError, OverflowError):
        msg = f"{text!r} is not a number"
        raise argparse.ArgumentTypeError(msg) from None


def _plan(options: argparse.Namespace) -> int:
    from fgrpo_secure.config import load_config
    from fgrpo_secure.job import make_plan

    config, _ = load_config(options.config, options.overrides)
    with _quiet_libraries():
        plan, _ = make_plan(config)
    facts = _plan_facts(plan)
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    from fgrpo_secure.guarantee import explain

    print(explain(plan, facts))
    return 0


def _plan_facts(plan: Plan) -> dict[str, Any]:
    from privacy.contribution import registered_event
    from privacy.ledger import spend_of

    spend = spend_of(
        ((registered_event(plan), plan.rounds),), Decimal(plan.delta), plan.rounds
    )
    statistic = None
    if plan.statistic_variance:
        statistic = plan.statistic_variance**0.5 / plan.statistic_norm_bound
    return {
        "digest": plan.digest,
        "unit": plan.unit,
        "trust": plan.trust,
        "epsilon_target": float(plan.epsilon),
        "epsilon_pld": float(spend.epsilon_pld),
        "epsilon_rdp": float(spend.epsilon_rdp),
        "delta": float(plan.delta),
        "rounds": plan.rounds,
        "sampling_rate": float(plan.sampling_rate),
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
        "bytes_per_round": plan.bytes_up,
        "clients": len(plan.clients),
        "min_survivors": plan.min_survivors,
        "colluders": plan.colluders,
        "threshold": plan.threshold,
    }


def _price(options: argparse.Namespace) -> int:
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


def _run(options: argparse.Namespace) -> int:
    from fgrpo_secure.config import load_config
    from fgrpo_secure.display import Display

    config, name = load_config(options.config, options.overrides)
    display = Display()
    display.say("Loading libraries ...")
    with _quiet_libraries():
        from fgrpo_secure.job import default_folder, run

        root = options.output or default_folder(name)
        try:
            finished = run(config, root, display)
        except KeyboardInterrupt:
            return _fail(
                "Interrupted. What was charged stays charged, and nothing is lost.",
                f"To go on: {_again(options, root)}",
                EXIT_INTERRUPTED,
            )
    display.result(finished.summary, finished.samples)
    display.say(f"adapter  {root / 'adapter'}")
    display.say(f"ledgers  {root / 'ledger'}")
    display.say(f"summary  {root / 'summary.json'}")
    display.say(f"verify   {_program()} ledger verify {root}")
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


def _verify(options: argparse.Namespace) -> int:
    from privacy.ledger import verify_run

    wrong = 0
    for path in options.paths:
        if path.is_dir():
            report = verify_run(path, unfinished=options.unfinished)
            for problem in report.problems:
                print(f"{path / problem.file}: {problem}")
            wrong += len(report.problems)
            if report.ok:
                _print_verified(path, report)
        else:
            wrong += _verify_file(path, closed=not options.unfinished)
    return EXIT_WRONG if wrong else 0


def _print_verified(path: Path, report: Any) -> None:  # noqa: ANN401
    from privacy.ledger import claimed_epsilon

    digest = report.plan_digest.hex()[:16]
    print(
        f"{path}: verifies: plan {digest}, {report.published} rounds published, "
        f"{report.aborted} aborted"
    )
    for name, spend in sorted(report.spends.items()):
        print(
            f"  {name}: epsilon {claimed_epsilon(spend)} at delta {spend.delta}, "
            f"{spend.charges} rounds charged"
        )


def _verify_file(path: Path, *, closed: bool) -> int:
    from privacy.ledger import read_key_file, verify_ledger

    pinned = path.parent.parent / "keys" / f"{path.stem}.pub"
    try:
        key = read_key_file(pinned) if pinned.is_file() else None
        ledger = verify_ledger(path, key=key, closed=closed)
    except LedgerError as error:
        print(error)
        return 1
    print(f"{path}: verifies: {ledger.party}, {ledger.history.records} records")
    if key is None:
        print(
            "  signed by the key that it names itself, "
            f"{ledger.key.fingerprint}: compare it with the party's"
        )
    return 0


def _show(options: argparse.Namespace) -> int:
    from privacy.ledger import show

    files: list[Path] = []
    for path in options.paths:
        files += sorted((path / "ledger").glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ConfigurationError(
            "There is no ledger there.", "Give a run's folder or a ledger file."
        )
    for path in files:
        print(path)
        for line in show(path):
            print(f"  {line}")
    return 0


def _eval(options: argparse.Namespace) -> int:
    from fgrpo_secure.config import load_config
    from fgrpo_secure.display import Display

    config, _ = load_config(options.config, options.overrides)
    with _quiet_libraries():
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


def _audit_canaries(options: argparse.Namespace) -> int:
    from audits.canaries import attack, audit_plan
    from fgrpo_secure.config import load_config
    from fgrpo_secure.display import Display
    from fgrpo_secure.registration import NORM_BOUND

    config, _ = load_config(options.config, options.overrides)
    display = Display()
    plan = audit_plan(
        epsilon=float(config.privacy.epsilon),
        delta=float(config.privacy.delta),
        clip_norm=Fraction(config.privacy.clip_norm),
        norm_bound=NORM_BOUND,
        min_survivors=config.federation.min_survivors,
        colluders=config.federation.colluders,
    )
    with display.running(rounds=1, done=0):
        result = attack(plan, progress=display.progress)
    if options.json:
        found = {
            "epsilon_lower_bound": result.epsilon_lower_bound,
            "epsilon_claimed": result.epsilon_claimed,
            "delta": result.delta,
            "scores": result.scores,
            "confidence": result.confidence,
        }
        print(json.dumps(found))
    else:
        print(
            f"epsilon is at least {result.epsilon_lower_bound:.3f} of the "
            f"{result.epsilon_claimed:g} that are claimed at delta {result.delta:g} "
            f"({result.scores} scores, {result.confidence:.0%} confidence)"
        )
        if result.refuted:
            print("The claim is refuted: do not use this build on private data.")
        elif result.weak:
            print(
                "The bound is weak: the attack or the noise is not what it should be."
            )
    return EXIT_WRONG if result.refuted else 0


def _mean(values: Any) -> float:  # noqa: ANN401
    listed = list(values)
    return sum(listed) / len(listed)


def _quiet_libraries() -> Any:  # noqa: ANN401
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
