"""What `fgrpo pilot` and `fgrpo site` do, from parsed options to an exit status.

Heavy libraries are imported by the command that needs them.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fgrpo_secure.agreement import read_agreement
from fgrpo_secure.commands import quiet_libraries
from fgrpo_secure.errors import ConfigurationError
from fgrpo_secure.home import Home, HomeRole, open_home
from fgrpo_secure.pilot import enrol, processes
from fgrpo_secure.pilot.invitation import (
    Admission,
    Invitation,
    Request,
    fingerprint,
    read_small,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fgrpo_secure.agreement import Agreement
    from fgrpo_secure.pilot.jobs import LeadRun, Watched
    from privacy.plan import Plan

_EXIT_UNFINISHED = 1


def init(options: argparse.Namespace) -> int:
    """Make the lead's folder and the invitation; with --all-here every home too."""
    pilot = enrol.init_pilot(options.pilot_file, options.output)
    print(_columns("root certificate", pilot.root_fingerprint))
    if options.all_here:
        from fgrpo_secure.pilot.rehearsal import provision_here

        cohort = provision_here(pilot, options.output / "homes")
        print(_columns("cohort", cohort.fingerprint))
        print(f"homes             {options.output / 'homes'}")
        return 0
    print(f"invitation        {pilot.root / enrol.INVITATION}")
    print(
        "\nNext: send the invitation to everybody. Each runs, on their own machine,\n"
        "      fgrpo pilot request invitation.json --home HOME --as NAME\n"
        f"with NAME one of: {', '.join(pilot.invitation.parties)}."
    )
    return 0


def request(options: argparse.Namespace) -> int:
    """Make a home and its keys, and say what to send."""
    source = str(options.invitation)
    invitation = Invitation.from_bytes(read_small(options.invitation), source)
    found = enrol.request_admission(invitation, options.home, options.party)
    path = options.home / f"{found.party}.request.json"
    print(f"request           {path}")
    print(_columns("fingerprint", fingerprint(found.to_bytes())))
    print(
        "\nNext: send the request to the lead, and tell them its fingerprint over\n"
        "another way, such as a call: whoever carries the file could exchange it."
    )
    return 0


def approve(options: argparse.Namespace) -> int:
    """Sign requests, and write what goes back once all have asked."""
    pilot = enrol.open_pilot(options.pilot)
    cohort = enrol.approve_requests(pilot, options.requests, _ask_lead(options.yes))
    missing = enrol.missing(pilot)
    if missing:
        print(f"not approved yet  {', '.join(missing)}")
    if cohort is None:
        print("Nothing can go back before all sites and the server have asked.")
        return 0
    print(_columns("cohort", cohort.fingerprint))
    print(f"admissions        {pilot.root / 'admissions'}")
    print(
        "\nNext: send each party its own admission. Then call them all at once, and\n"
        "let each read the cohort's fingerprint, as `fgrpo pilot show` prints it of\n"
        "their own file: it must be the same for everybody."
    )
    return 0


def show(options: argparse.Namespace) -> int:
    """Print who is in an admission, to be compared with others."""
    data, source = read_small(options.admission), str(options.admission)
    cohort = Admission.from_bytes(data, source).cohort
    for name, key in sorted(cohort.keys.items()):
        digits = key.fingerprint
        groups = [digits[at : at + 4] for at in range(0, len(digits), 4)]
        print(_columns(f"key of {name}", " ".join(groups)))
    called = cohort.invitation
    print(f"server            {called.host}, ports {called.port}, {called.admin_port}")
    print(_columns("root certificate", cohort.root))
    print(_columns("cohort", cohort.fingerprint))
    print(
        "\nNext: read the cohort's to the others, which covers all above it. The same\n"
        "for everybody? Then `fgrpo pilot install`; else install nothing."
    )
    return 0


def install(options: argparse.Namespace) -> int:
    """Take what the lead sent back."""
    cohort = enrol.install(options.admission, options.home, options.fingerprint)
    home = open_home(options.home)
    print(f"installed  {home.kit}")
    print(f"pinned     {', '.join(sorted(cohort.keys))}")
    if home.role is HomeRole.SITE:
        print(
            f"\nNext: say in {home.site_file} where data and rewards\n"
            "lie. Then, with the RUN.toml that the lead proposes,\n"
            f"      fgrpo site check {options.home} RUN.toml\n"
            f"      fgrpo site policy {options.home} RUN.toml\n"
            f"      fgrpo site approve {options.home} RUN.toml\n"
            f"      fgrpo site start {options.home}"
        )
    return 0


def start(options: argparse.Namespace, words: Sequence[str] = ()) -> int:
    """Run a site's or the server's processes, here or in the background.

    Args:
        options: as they were given.
        words: further ones of the same command in the background.
    """
    home = _home(options.home, HomeRole(options.role))
    if options.unless_stopped and home.stop_file.exists():
        print(f"{home.party}: stopped by its operator; nothing is started")
        return 0
    if options.background:
        print(processes.start_in_background(home, words=words))
        return 0
    return processes.supervise(home, _say)


def stop_home(options: argparse.Namespace) -> int:
    """End a home's processes, without asking the server."""
    home = _home(options.home, HomeRole(options.role))
    ran = processes.stop(home)
    print(f"{home.party}: {'stopped' if ran else 'nothing ran'}")
    return 0


def serve(options: argparse.Namespace) -> int:
    """Run the server, or stop it."""
    if options.stop:
        return stop_home(options)
    if options.metrics is None:
        return start(options)
    from fgrpo_secure.pilot.exporter import exposed, read_address

    address = read_address(options.metrics)
    if options.background:
        return start(options, ("--metrics", options.metrics))
    with exposed(_home(options.home, HomeRole.SERVER), address, _say):
        return start(options)


def site_status(options: argparse.Namespace) -> int:
    """Say whether a site runs, and what its data sets have spent."""
    from privacy.ledger import Budget, verify_ledger

    home = _home(options.home, HomeRole.SITE)
    found = processes.look(home)
    state = "runs" if found.alive else "stopped" if found.stopped else "does not run"
    spent = {}
    for path in sorted((home.private / "ledger").glob("*.jsonl")):
        ledger = verify_ledger(path, key=home.identity().verify_key, closed=False)
        spent[path.stem] = Budget.of(ledger.runs).words() if ledger.runs else "nothing"
    if options.json:
        print(json.dumps({"party": home.party, "state": state, "data_sets": spent}))
        return 0
    print(f"{home.party}: {state}")
    for name, words in spent.items():
        print(f"  data set {name}: {words}")
    return 0


def site_check(options: argparse.Namespace) -> int:
    """Try a site's own data, rewards and model on a proposed run."""
    home, agreement = _proposed(options)
    config = agreement.to_propose(home)
    with quiet_libraries():
        from fgrpo_secure.task import load_run_policy
        from fgrpo_secure.trial import try_client

        found = try_client(
            config, config.client_named(home.party), load_run_policy(config)
        )
    print("\n".join(found.lines()))
    print("\nExact counts of private data: for their owner's eyes. Nothing was spent.")
    return 0


def site_policy(options: argparse.Namespace) -> int:
    """Write a draft of a site's policy from a proposed run."""
    from fgrpo_secure.policy_commands import draft

    home, agreement = _proposed(options)
    config = agreement.to_propose(home)
    draft(config, home.party, home.policy, str(options.agreement))
    print("\nNext: read every line of it. It allows what was proposed, and asks you.")
    return 0


def site_approve(options: argparse.Namespace) -> int:
    """Show a proposed run in words, and keep the operator's approval of it."""
    from fgrpo_secure.policy_commands import approve_config

    home, agreement = _proposed(options)
    options.names, options.config = [home.party], str(options.agreement)
    return approve_config(agreement.at_site(home), options)


def plan(options: argparse.Namespace) -> int:
    """Print what a proposed run would promise; nothing is sent and nothing spent."""
    from fgrpo_secure.commands import plan_facts
    from fgrpo_secure.guarantee import explain

    home = open_home(options.home)
    agreement = _read(options.agreement)
    config = (
        agreement.to_propose(home)
        if home.role is HomeRole.SITE
        else agreement.at_server(home)
    )
    with quiet_libraries():
        from fgrpo_secure.preparation import make_plan

        found, _ = make_plan(config)
    facts = plan_facts(found)
    print(json.dumps(facts, indent=2) if options.json else explain(found, facts))
    return 0


def submit(options: argparse.Namespace) -> int:
    """Submit a run, and follow it to its end unless told not to."""
    from fgrpo_secure.pilot import jobs

    home = _home(options.home, HomeRole.LEAD)
    text = _read(options.agreement).text
    name = options.name or options.agreement.stem
    with quiet_libraries():
        run, agreement, plan = jobs.prepare(home, text, name)
    _say(
        f"plan {plan.digest[:16]}: epsilon {plan.epsilon} at delta {plan.delta} over "
        f"{plan.rounds} rounds; run {name}"
    )
    jobs.submit(run, agreement, plan)
    if options.detach:
        print(name)
        return 0
    return _follow(run, agreement, plan)


def status(options: argparse.Namespace) -> int:
    """Say how a run is; with --watch until it ends."""
    from fgrpo_secure.pilot import dashboard, jobs

    run = jobs.open_run(_home(options.home, HomeRole.LEAD), options.run)
    if not options.watch:
        found = jobs.watch(run)
        text = json.dumps(dashboard.facts(found)) if options.json else None
        print(text or dashboard.line(found))
        return 0
    from rich.live import Live

    with Live(refresh_per_second=4) as live, contextlib.suppress(KeyboardInterrupt):
        while True:
            found = jobs.watch(run)
            live.update(dashboard.screen(found))
            if found.over:
                break
            time.sleep(jobs.POLL_SECONDS)
    return 0


def stop_run(options: argparse.Namespace) -> int:
    """Stop a run at the server and at all sites."""
    from fgrpo_secure.pilot import dashboard, jobs

    run = jobs.open_run(_home(options.home, HomeRole.LEAD), options.run)
    print(dashboard.line(jobs.stop(run)))
    print("What was charged stays charged. Submit it again to go on.")
    return 0


def collect(options: argparse.Namespace) -> int:
    """Fetch a finished run, verify its ledgers, and say where its summary is."""
    from fgrpo_secure.commands import verify_ledgers
    from fgrpo_secure.pilot import jobs

    run = jobs.open_run(_home(options.home, HomeRole.LEAD), options.run)
    output = options.output or Path("runs") / run.name
    folder = jobs.collect(run, output)
    wrong = verify_ledgers(argparse.Namespace(paths=[folder], unfinished=False))
    print(folder / "summary.json")
    return wrong


def rehearse(options: argparse.Namespace) -> int:
    """A whole pilot on this machine, from enrolment to verified ledgers."""
    from fgrpo_secure.pilot.rehearsal import rehearse as run

    summary = run(options.folder, _say, namespaces=options.namespaces)
    print(summary)
    return 0


def _follow(run: LeadRun, agreement: Agreement, plan: Plan) -> int:
    """Follow a run; returns 0 where it finished."""
    from fgrpo_secure.pilot import dashboard, jobs

    last, found = "", None
    try:
        for found in jobs.follow(run, lambda: jobs.submit(run, agreement, plan), _say):
            told = dashboard.line(found)
            if told != last:
                _say(told)
            last = told
    except KeyboardInterrupt:
        _say(
            "Not followed any more; the run goes on. `fgrpo pilot status` shows it, "
            "and the same command follows it again."
        )
        return 0
    if _finished(found):
        _say(f"collect  fgrpo pilot collect {run.name} --home {run.home.root}")
        return 0
    return _EXIT_UNFINISHED


def _finished(found: Watched | None) -> bool:
    from fgrpo_secure.pilot.jobs import COMPLETED

    return found is not None and found.status == COMPLETED


def _ask_lead(yes: bool) -> Callable[[Request, str], bool]:
    def agree(request: Request, shown: str) -> bool:
        print(_columns(request.party, shown))
        if yes:
            return True
        if sys.stdin is None or not sys.stdin.isatty():
            raise ConfigurationError(
                "There is no terminal at which anybody could compare fingerprints.",
                "Give --yes once every fingerprint above was compared with its sender.",
            )
        answer = input(f"Has {request.party} told you this fingerprint? [y/N] ")
        return answer.strip().lower() in {"y", "yes"}

    return agree


def _proposed(options: argparse.Namespace) -> tuple[Home, Agreement]:
    return _home(options.home, HomeRole.SITE), _read(options.agreement)


def _read(path: Path) -> Agreement:
    try:
        return read_agreement(path.read_text("utf-8"))
    except (FileNotFoundError, UnicodeDecodeError):
        raise ConfigurationError(
            f"There is no agreement {path}.",
            "Give the RUN.toml that the lead proposes.",
        ) from None


def _home(root: Path, role: HomeRole) -> Home:
    home = open_home(root)
    if home.role is not role:
        raise ConfigurationError(
            f"{home.root} is the home of {home.party}.",
            f"This command is for the home of a {role.value}."
            if role is HomeRole.SITE
            else f"This command is for the home of the {role.value}.",
        )
    return home


def _columns(label: str, fingerprint: str) -> str:
    """A fingerprint in two lines, which a terminal of 80 columns does not break."""
    space = " " if " " in fingerprint else ":"
    parts = fingerprint.split(space)
    half = (len(parts) + 1) // 2
    first, second = space.join(parts[:half]), space.join(parts[half:])
    return f"{label:<17} {first}{space.rstrip()}\n{'':18}{second}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
