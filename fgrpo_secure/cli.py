"""The command `fgrpo`.

What is asked for is read here, and errors are told here; what a command does is in
`commands`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

from fgrpo_secure import commands, policy_commands, site_commands
from fgrpo_secure.errors import (
    FgrpoError,
    StateError,
    said_by_kernel,
    said_by_system,
)
from fgrpo_secure.pilot.arguments import add_pilot, add_site
from privacy.errors import LedgerError, PrivacyError, ProtocolError

_KERNEL_ERRORS: tuple[tuple[type[PrivacyError], tuple[str, int]], ...] = (
    (
        LedgerError,
        (
            "Do not go on with this ledger; `fgrpo ledger verify` says more.",
            commands.EXIT_LEDGER,
        ),
    ),
    (ProtocolError, ("The round cannot go on; begin another.", commands.EXIT_PROTOCOL)),
    (
        PrivacyError,
        (
            "Nothing was spent. `fgrpo plan` shows what is promised.",
            commands.EXIT_REFUSED,
        ),
    ),
)

_DESCRIPTION = """\
Federated GRPO with differential privacy, secure aggregation and signed ledgers.

  fgrpo init DIR        a configuration of your own to start from
  fgrpo check           try data, rewards and model; for the data owner's eyes
  fgrpo plan            what a run would promise, before anything runs
  fgrpo run             run it, all parties on this machine
  fgrpo policy check    what a site's own rules would refuse; also init and approve
  fgrpo site close      end a client's part in a run that cannot go on
  fgrpo ledger verify   check a run's ledgers without trusting who wrote them
  fgrpo report          one page for who has to answer for a run, and a claim
  fgrpo audit canaries  attack the claimed epsilon; other audits beside it
  fgrpo pilot, site     the same on several machines, on NVFlare; docs/pilot.md

CONFIG is a TOML file, or `tiny`, the embedded default that needs no network.

Exit status: 0 done; 1 something does not verify; 2 a command or configuration, 3 data
or a reward, 4 a model, 5 a folder that can be mended; 6 refused on privacy grounds;
7 a ledger that is unreliable; 8 the protocol failed; 130 interrupted.
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
        return commands.fail(error.what, error.fix, error.exit_code)
    except PrivacyError as error:
        fix, code = next(how for kind, how in _KERNEL_ERRORS if isinstance(error, kind))
        return commands.fail(*said_by_kernel(error, fix), code)
    except KeyboardInterrupt:
        return commands.fail(
            "Interrupted.", "Nothing was lost.", commands.EXIT_INTERRUPTED
        )
    except BrokenPipeError:
        return commands.EXIT_WRONG
    except OSError as error:
        what, fix = said_by_system(error)
        if error.filename is not None:
            # In this process paths are those that its operator gave.
            what = f"{error.filename}: {error.strerror or type(error).__name__}."
        return commands.fail(what, fix, StateError.exit_code)


class _Parser(argparse.ArgumentParser):
    """Says after the usage what is wrong, and where to read on."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        commands.fail(f"{message}.", f"`{self.prog} --help` says more.", 2)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fgrpo",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        help="show the version and the digest of the code, and exit",
    )
    adding = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_init(adding)
    _add_check(adding)
    _add_plan(adding)
    _add_price(adding)
    _add_run(adding)
    _add_policy(adding)
    _add_ledger(adding)
    _add_report(adding)
    _add_eval(adding)
    _add_audit(adding)
    add_pilot(adding)
    _add_closing(add_site(adding))
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


def _add_init(adding: Any) -> None:  # noqa: ANN401
    parser = adding.add_parser(
        "init",
        help="write a configuration, a reward and sample data to start from",
        description="Write a commented run.toml, a reward and made-up data into DIR, "
        "which run as they are. On a terminal it asks for what is not given.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="new or empty")
    texts = (
        ("clients", "NAME,NAME,NAME", "the data owners, at least three"),
        ("base", "MODEL", "a directory, a hub name or embedded:tiny"),
        ("unit", "UNIT", "prompt, or the column that says whose a row is"),
        ("units", "N", "how many units the largest data owner will have"),
        ("epsilon", "E", "target of the whole run"),
        ("rounds", "T", "rounds to register"),
        ("delta", "D", "target of the whole run (default: from the units)"),
    )
    for name, metavar, text in texts:
        parser.add_argument(f"--{name}", metavar=metavar, help=text)
    parser.add_argument(
        "--yes", action="store_true", help="ask nothing and take what is proposed"
    )
    parser.set_defaults(command=commands.init_project)


def _add_check(adding: Any) -> None:  # noqa: ANN401
    parser = adding.add_parser(
        "check",
        help="try each client's data, rewards and model before a run",
        description="Load what each client learns from and score a few completions, so "
        "that mistakes are found before anything is charged. Exact counts of private "
        "data are printed: run it where only their owner looks.",
    )
    _add_config(parser)
    parser.add_argument(
        "--client",
        metavar="NAME",
        action="append",
        dest="names",
        help="only this client, whose data are here (default: all)",
    )
    parser.set_defaults(command=commands.check_clients)


def _add_plan(adding: Any) -> None:  # noqa: ANN401
    parser = adding.add_parser(
        "plan",
        help="print the guarantee of a configuration before anything runs",
        description="Register the plan of a configuration and print what it promises. "
        "Nothing runs and nothing is spent.",
    )
    _add_config(parser)
    parser.set_defaults(command=commands.show_plan)


def _add_price(adding: Any) -> None:  # noqa: ANN401
    parser = adding.add_parser(
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
    parser.set_defaults(command=commands.price_mechanism)


def _add_run(adding: Any) -> None:  # noqa: ANN401
    parser = adding.add_parser(
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
    parser.set_defaults(command=commands.run_job)


def _add_policy(adding: Any) -> None:  # noqa: ANN401
    parser = adding.add_parser("policy", help="a site's own rules, and approvals")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    begin = actions.add_parser(
        "init",
        help="write a policy to start from",
        description="Write a commented policy that allows what a client of a "
        "configuration would do now, and asks its operator each time. Read every line "
        "of it: the configuration may be another's.",
    )
    begin.add_argument("policy", metavar="POLICY", type=Path, help="a new file")
    _add_config(begin)
    begin.add_argument(
        "--client", metavar="NAME", required=True, help="whose site it is"
    )
    begin.set_defaults(command=policy_commands.write_policy)
    tried = actions.add_parser(
        "check",
        help="say what a policy would refuse, and why",
        description="Hold a policy to a configuration, or to the plan.json of one. "
        "Nothing runs, nothing is spent and nothing is written. Exit status 6 if "
        "anything would be refused.",
    )
    tried.add_argument("policy", metavar="POLICY", type=Path)
    _add_config(tried)
    _add_names(tried, "those that name this policy, or else all")
    tried.set_defaults(command=policy_commands.check_policy)
    agree = actions.add_parser(
        "approve",
        help="approve a plan where the policy asks for it",
        description="Show a plan in words with the base model and the rewards, and "
        "keep its operator's approval beside the policy. It is of exactly this plan, "
        "these files and one run.",
    )
    _add_config(agree)
    _add_names(agree, "all whose policies ask")
    agree.add_argument(
        "--digest",
        metavar="HEX",
        help="the plan's digest, or its first 8 characters or more, in place of "
        "typing them",
    )
    agree.set_defaults(command=policy_commands.approve_plan)


def _add_closing(actions: Any) -> None:  # noqa: ANN401
    close = actions.add_parser(
        "close",
        help="end a client's part in a run that cannot go on",
        description="Close a run in a client's ledger without the server, so that its "
        "data set is free for other runs. What was charged stays charged, and this "
        "client has no further part in that run. Refused while a process runs; to "
        "repeat it changes nothing.",
    )
    close.add_argument(
        "place",
        metavar="DIR_OR_CONFIG",
        type=Path,
        help="the run's folder, or where that is gone a configuration that names the "
        "store: then the run that is open in the ledger is closed",
    )
    close.add_argument(
        "--client",
        metavar="NAME",
        action="append",
        dest="names",
        required=True,
        help="whose part; may be repeated",
    )
    _add_json(close)
    close.set_defaults(command=site_commands.close_runs)


def _add_names(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--client",
        metavar="NAME",
        action="append",
        dest="names",
        help=f"only this client; may be repeated (default: {default})",
    )


def _add_ledger(adding: Any) -> None:  # noqa: ANN401
    parser = adding.add_parser("ledger", help="verify or read ledgers")
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
    verify.set_defaults(command=commands.verify_ledgers)
    show = actions.add_parser("show", help="print ledgers in words")
    show.add_argument("paths", metavar="DIR_OR_FILE", nargs="+", type=Path)
    show.set_defaults(command=commands.show_ledgers)


def _add_report(adding: Any) -> None:  # noqa: ANN401
    parser = adding.add_parser(
        "report",
        help="write what a run promised and did into report.html and claim.json",
        description="Verify a run's folder and write report.html and claim.json into "
        "it. Exit status 0, or 1 where something does not verify: the page then says "
        "what, and claims nothing.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a run's folder")
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="accept a run that has not ended; lines cut off its end go unnoticed",
    )
    parser.set_defaults(command=commands.report)


def _add_eval(adding: Any) -> None:  # noqa: ANN401
    parser = adding.add_parser(
        "eval",
        help="score an adapter on the public evaluation sets",
        description="Score a PEFT adapter directory on the evaluation sets that the "
        "configuration declares public.",
    )
    _add_config(parser)
    parser.add_argument(
        "--adapter", metavar="DIR", required=True, type=Path, help="a PEFT directory"
    )
    parser.set_defaults(command=commands.score)


def _add_audit(adding: Any) -> None:  # noqa: ANN401
    parser = adding.add_parser("audit", help="attack our own claims")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    canaries = actions.add_parser(
        "canaries",
        help="bound epsilon from below with gradient canaries",
        description="Send gradient canaries through the real clipping, noise and "
        "secure aggregation, with the configuration's epsilon, delta, min_survivors, "
        "colluders and steps and the noise recalibrated for one round without "
        "sampling, and bound the epsilon that was really lost. With rule 'fgrpo' the "
        "noised reward statistic is attacked together with the gradient. Exit status 1 "
        "if a bound is above the claim, as it is by chance in 3 of 1000 attacks on a "
        "sound mechanism; a run makes up to three attacks, so that this happens in 9 "
        "of 1000 runs at most. Exit status 2 if the scores are too few for the claim.",
    )
    _add_config(canaries)
    _add_trust(canaries)
    canaries.add_argument(
        "--releases",
        metavar="R",
        type=_between(1, 1000),
        default=10,
        help="rounds to play, of 1000 scores each, and 250 rounds of one score for "
        "each of them where a statistic is attacked (default: 10)",
    )
    canaries.set_defaults(command=commands.audit, audit="canaries")
    planted = actions.add_parser(
        "planted",
        help="plant known bugs and see that every one is caught",
        description="Run the audits on a test double of the client's mechanism with "
        "one planted bug at a time, and on the mechanism itself. Exit status 1 if a "
        "bug goes unseen, or if the mechanism itself is taken for a broken one.",
    )
    planted.add_argument(
        "--write",
        metavar="FILE",
        type=Path,
        help="put the table between the markers of this Markdown file",
    )
    _add_json(planted)
    planted.set_defaults(command=commands.audit, audit="planted")
    for name, text, description in (
        (
            "noise-fit",
            "compare the noise in real releases with the registered law",
            "Play rounds without data, and compare variance, fourth moment and law of "
            "the noise that is in the sums, or with trust 'local' in each release, "
            "with what is registered; and see that no noise comes twice.",
        ),
        (
            "transcript",
            "test what the coordinator sees against uniform words",
            "Play rounds and keep every byte that clients send. Masked inputs and key "
            "shares are tested against uniform, the unmasked sum against the plain "
            "one, and the length and value of every field against other data.",
        ),
    ):
        measured = actions.add_parser(
            name,
            help=text,
            description=f"{description} The report states how rarely chance refutes a "
            "right mechanism. Exit status 1 if anything is refuted.",
        )
        _add_config(measured)
        _add_trust(measured)
        measured.add_argument(
            "--dimension",
            metavar="D",
            # With fewer than a thousand a test sees nothing.
            type=_between(1000, 10**6),
            default=50_000,
            help="numbers in one vector (default: 50000)",
        )
        measured.add_argument(
            "--write",
            metavar="DIR",
            type=Path,
            help="leave the report there, as JSON and as Markdown",
        )
        measured.set_defaults(command=commands.audit, audit=name)


class _Version(argparse.Action):
    """The digest is computed where it is asked for, and not for every command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print what runs."""
        commands.print_version()
        parser.exit()


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        choices=("distributed", "local"),
        help="whose noise protects: the cohort's or each client's own (default: the "
        "configuration's)",
    )


def _between(lowest: int, highest: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = lowest - 1
        if not lowest <= number <= highest:
            msg = f"{text!r} is not a number from {lowest} to {highest}"
            raise argparse.ArgumentTypeError(msg)
        return number

    return count


def _rational(text: str) -> Fraction:
    try:
        return Fraction(Decimal(text)) if "/" not in text else Fraction(text)
    except (InvalidOperation, ValueError, ZeroDivisionError, OverflowError):
        msg = f"{text!r} is not a number"
        raise argparse.ArgumentTypeError(msg) from None


if __name__ == "__main__":
    # `python -m fgrpo_secure.cli` would else do nothing and say that all is well.
    sys.exit(main())
