"""What `fgrpo pilot` and `fgrpo site` are asked for on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SITE, _SERVER = "site", "server"


def add_pilot(adding: Any) -> None:  # noqa: ANN401
    """Add the commands of the lead, of the server, and of enrolment."""
    parser = adding.add_parser(
        "pilot", help="several machines on NVFlare: enrol, serve, submit, collect"
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    begin = actions.add_parser(
        "init",
        help="the lead: make a pilot and its invitation",
        description="Make the root certificate and the invitation. May be repeated, "
        "also with more sites in PILOT.toml.",
    )
    begin.add_argument("pilot_file", metavar="PILOT.toml", type=Path)
    begin.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("pilot"),
        help="the lead's folder, which holds the root key (default: pilot)",
    )
    begin.add_argument(
        "--all-here",
        action="store_true",
        help="make every party's home on this machine too, for a rehearsal",
    )
    begin.set_defaults(command=_later("init"))
    asking = actions.add_parser(
        "request",
        help="every party: make a home and keys, and a request to the lead",
    )
    asking.add_argument(
        "invitation",
        metavar="INVITATION",
        type=Path,
        help="the file that the lead sent",
    )
    _add_home(asking, "the new home")
    asking.add_argument(
        "--as",
        metavar="NAME",
        required=True,
        dest="party",
        help="this party: a site of the pilot, server or lead",
    )
    asking.set_defaults(command=_later("request"))
    granting = actions.add_parser(
        "approve",
        help="the lead: sign requests whose fingerprints were compared",
    )
    granting.add_argument("requests", metavar="REQUEST", nargs="+", type=Path)
    granting.add_argument(
        "--pilot", metavar="DIR", type=Path, default=Path("pilot"), help="init's folder"
    )
    granting.add_argument(
        "--yes", action="store_true", help="every fingerprint was compared before"
    )
    granting.set_defaults(command=_later("approve"))
    showing = actions.add_parser(
        "show", help="print the fingerprints in an admission, to compare with others"
    )
    showing.add_argument(
        "admission", metavar="ADMISSION", type=Path, help="the file that came back"
    )
    showing.set_defaults(command=_later("show"))
    taking = actions.add_parser(
        "install", help="every party: take the admission that the lead sent back"
    )
    taking.add_argument("admission", metavar="ADMISSION", type=Path)
    _add_home(taking, "this party's home")
    taking.add_argument(
        "--fingerprint",
        metavar="F",
        required=True,
        help="of the cohort, as people told it to one another; in quotes",
    )
    taking.set_defaults(command=_later("install"))
    serving = actions.add_parser("serve", help="run the server, or stop it")
    _add_process(serving, _SERVER)
    serving.add_argument("--stop", action="store_true", help="stop the one that runs")
    serving.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        help="tell Prometheus the public numbers of its runs on this port, to this "
        "machine alone where no host is given (default: nobody)",
    )
    serving.set_defaults(command=_later("serve"))
    _add_runs(actions)
    whole = actions.add_parser(
        "rehearse",
        help="a whole pilot on this machine, from enrolment to verified ledgers",
        description="Make every home, start a server and three sites, run a short "
        "training, collect it, verify its ledgers and stop everything.",
    )
    whole.add_argument("folder", metavar="DIR", type=Path, help="new, or one before")
    whole.add_argument(
        "--namespaces",
        action="store_true",
        help="give each site a network of its own, from which only the server is "
        "reached; needs root and iproute2",
    )
    whole.set_defaults(command=_later("rehearse"))


def add_site(adding: Any) -> Any:  # noqa: ANN401
    """Add the commands of a site's operator; returns what others are added to."""
    parser = adding.add_parser("site", help="what one data owner does at its own site")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    starting = actions.add_parser("start", help="take part from now on")
    _add_process(starting, _SITE)
    starting.set_defaults(command=_later("start"))
    stopping = actions.add_parser(
        "stop", help="end all computation here within 15 s; the server is not asked"
    )
    stopping.add_argument("home", metavar="HOME", type=Path)
    stopping.set_defaults(command=_later("stop_home"), role=_SITE)
    state = actions.add_parser("status", help="whether it runs, and what is spent")
    state.add_argument("home", metavar="HOME", type=Path)
    state.add_argument("--json", action="store_true", help="print JSON")
    state.set_defaults(command=_later("site_status"))
    for name, command, text in (
        (
            "check",
            _later("site_check"),
            "try data and rewards on a proposed run",
        ),
        ("policy", _later("site_policy"), "draft policy.toml from a proposed run"),
        ("approve", _later("site_approve"), "approve a proposed run, once"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("home", metavar="HOME", type=Path)
        action.add_argument("agreement", metavar="RUN.toml", type=Path)
        if name == "approve":
            action.add_argument("--json", action="store_true", help="print JSON")
            action.add_argument(
                "--digest",
                metavar="HEX",
                help="the plan's digest, or its first 8 characters or more, in place "
                "of typing them",
            )
        action.set_defaults(command=command)
    return actions


def _add_runs(actions: Any) -> None:  # noqa: ANN401
    proposing = actions.add_parser(
        "plan",
        help="every party: what a proposed run would promise",
        description="Register the plan of an agreement and print what it promises. "
        "Nothing is sent and nothing is spent.",
    )
    proposing.add_argument("agreement", metavar="RUN.toml", type=Path)
    _add_home(proposing, "any party's home")
    proposing.add_argument("--json", action="store_true", help="print JSON")
    proposing.set_defaults(command=_later("plan"))
    giving = actions.add_parser(
        "submit",
        help="the lead: begin a run, or go on with it, and follow it",
        description="Submit a run and follow it to its end. Where the engine's job "
        "fails and the run is not finished, it is submitted again.",
    )
    giving.add_argument("agreement", metavar="RUN.toml", type=Path)
    _add_home(giving, "the lead's home")
    giving.add_argument(
        "--name", metavar="NAME", help="of the run (default: the file's name)"
    )
    giving.add_argument(
        "--detach", action="store_true", help="do not follow it, nor submit it again"
    )
    giving.set_defaults(command=_later("submit"))
    for name, command, text in (
        ("status", _later("status"), "the lead: how a run is"),
        ("stop", _later("stop_run"), "the lead: stop a run everywhere"),
        ("collect", _later("collect"), "the lead: fetch a finished run and verify it"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("run", metavar="RUN")
        _add_home(action, "the lead's home")
        if name == "status":
            action.add_argument("--watch", action="store_true", help="until it ends")
            action.add_argument("--json", action="store_true", help="print JSON")
        if name == "collect":
            action.add_argument(
                "--output", metavar="DIR", type=Path, help="new (default: runs/RUN)"
            )
        action.set_defaults(command=command)


def _add_home(parser: Any, text: str) -> None:  # noqa: ANN401
    parser.add_argument("--home", metavar="HOME", type=Path, required=True, help=text)


def _add_process(parser: Any, role: str) -> None:  # noqa: ANN401
    parser.add_argument("home", metavar="HOME", type=Path)
    parser.add_argument("--background", action="store_true", help="return once it runs")
    parser.add_argument(
        "--unless-stopped",
        action="store_true",
        help="start nothing where the operator stopped it; for a service manager",
    )
    parser.set_defaults(role=role)


def _later(name: str) -> Callable[[argparse.Namespace], int]:
    """A command of `commands`, whose libraries are loaded when it is called."""

    def call(options: argparse.Namespace) -> int:
        from fgrpo_secure.pilot import commands  # noqa: PLC0415

        called: Callable[[argparse.Namespace], int] = getattr(commands, name)
        return called(options)

    return call
