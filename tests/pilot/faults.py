"""What a pilot survives: `python -m tests.pilot.faults [NAME ...] [--record]`.

Real processes over mutual TLS, one server and four sites, of which three make a sum.
Each fault strikes in the first round; then the run goes on to its end by itself, and
both verifiers hold all ledgers to one another. It takes some minutes a fault.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from audits.verify_ledger import main as verify_alone
from fgrpo_secure.cli import main
from privacy.plan import SERVER
from tests.pilot.stage import (
    LEAD,
    Cable,
    Stage,
    fgrpo,
    playing,
    records,
    until,
    wire,
)

SITES = ("count", "shift", "sort", "sums")
STRUCK = "count"
ROUNDS = 3
DEADLINE = 30.0
PATIENCE = 900.0
# What a stop has to be done within.
STOP_SECONDS = 15.0
RECORD = Path(__file__).parents[2] / "docs" / "faults.md"


class Play:
    """One run, and what may befall it."""

    def __init__(self, stage, cast, cable, run):
        self.stage, self.cast, self.cable, self.run = stage, cast, cable, run

    def at(self, kind, number=1):
        """Wait for a line of the server's ledger of a round."""
        until(
            lambda: any(
                record["kind"] == kind and record.get("round") == number
                for record in self.stage.server_ledger(self.run)
            ),
            PATIENCE,
        )

    def over(self, number=1):
        """Wait for the end of a round, whichever it is."""
        ends = {"published", "aborted"}
        until(
            lambda: any(
                record["kind"] in ends and record.get("round") == number
                for record in self.stage.server_ledger(self.run)
            ),
            PATIENCE,
        )


def trainer_killed(play):
    """kill -9 of the process that learns at one site, in R3."""
    play.at("roster")
    os.kill(play.cast.trainer(STRUCK), signal.SIGKILL)


def site_killed(play):
    """kill -9 of all processes of one site, in R3; it starts again a round later."""
    play.at("roster")
    play.cast.kill(STRUCK)
    play.over()
    play.cast.start(STRUCK)


def server_killed(play):
    """kill -9 of all processes of the server, in R3; it starts again."""
    play.at("roster")
    play.cast.kill(SERVER)
    play.cast.start(SERVER)


def site_slow(play):
    """One site stands still in R3 for longer than the deadline, and goes on."""
    play.at("roster")
    trainer = play.cast.trainer(STRUCK)
    os.kill(trainer, signal.SIGSTOP)
    play.over()
    os.kill(trainer, signal.SIGCONT)


def site_gone(play):
    """One site's network is cut before the second round, and mended after it."""
    play.at("survivors")
    play.cable.cut()
    play.over(2)
    play.cable.mend()


def lead_stops(play):
    """The lead stops the run once R3 has begun, and submits it again."""
    play.at("roster")
    fgrpo("pilot", "stop", play.run, "--home", play.stage.homes / LEAD)
    began = time.monotonic()
    until(lambda: not any(map(play.cast.trainer, SITES)), PATIENCE)
    assert time.monotonic() - began < STOP_SECONDS
    return play.cast.submit(play.run)


def site_stops(play):
    """One site's operator stops it once R3 has begun, and starts it again later."""
    play.at("roster")
    began = time.monotonic()
    fgrpo("site", "stop", play.stage.home(STRUCK).root)
    assert play.cast.trainer(STRUCK) is None
    assert time.monotonic() - began < STOP_SECONDS
    play.over()
    play.cast.start(STRUCK)


def cut_in_r3(play):
    """One site's network is cut as the masked vectors are made, and mended later."""
    play.at("roster")
    play.cable.cut()
    play.over()
    play.cable.mend()


def cut_in_r5(play):
    """One site's network is cut as the sum is about to be opened, and mended later."""
    play.at("survivors")
    play.cable.cut()
    play.over()
    play.cable.mend()


FAULTS = {
    fault.__name__.replace("_", "-"): fault
    for fault in (
        trainer_killed,
        site_killed,
        server_killed,
        site_slow,
        site_gone,
        lead_stops,
        site_stops,
        cut_in_r3,
        cut_in_r5,
    )
}


def told_rounds(stage, run):
    """How the rounds ended, by the server's ledger."""
    ends = {}
    for record in stage.server_ledger(run):
        if record["kind"] == "published":
            ends[record["round"]] = f"{len(record['survivors'])} in the sum"
        elif record["kind"] == "aborted":
            ends[record["round"]] = f"dropped ({record['reason']})"
    return [ends.get(number, "none") for number in range(1, ROUNDS + 1)]


def charges(stage, site, run):
    """How many rounds a site's ledger has charged in a run."""
    handle = stage.server_ledger(run)[0]["run"]
    own = records(stage.home(site).private / "ledger" / f"{site}.jsonl")
    return sum(r["kind"] == "joined" and r["run"] == handle for r in own)


def strike(stage, cast, cable, name):
    """Play one fault; returns a line of the table.

    Raises:
        AssertionError: the run does not end, or a ledger does not verify.
    """
    began = time.monotonic()
    run = f"{name}-{int(time.time())}"
    lead = cast.submit(run)
    try:
        lead = FAULTS[name](Play(stage, cast, cable, run)) or lead
        told, _ = lead.communicate(timeout=PATIENCE)
    except BaseException:
        lead.kill()
        raise
    assert lead.returncode == 0, told
    output = stage.folder / f"collected-{name}"
    fgrpo("pilot", "collect", run, "--home", stage.homes / LEAD, "--output", output)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        verdicts = (
            main(["ledger", "verify", str(output)]),
            verify_alone([str(output)]),
        )
    assert verdicts == (0, 0), said.getvalue()
    jobs = len(json.loads((stage.home(LEAD).run(run) / "jobs.json").read_text()))
    spent = {site: charges(stage, site, run) for site in SITES}
    # Whoever was in a roster was charged before; nobody is charged less.
    for record in stage.server_ledger(run):
        for site in record.get("survivors", ()):
            assert spent[site] >= 1
    return {
        "fault": name,
        "what": FAULTS[name].__doc__.strip(),
        "rounds": told_rounds(stage, run),
        "charged": spent,
        "jobs": jobs,
        "seconds": round(time.monotonic() - began),
    }


def table(found):
    """The results as Markdown."""
    lines = [
        "# What a pilot survives",
        "",
        "Written by `python -m tests.pilot.faults --record`: one server and four "
        f"sites, {ROUNDS} rounds, a deadline of {DEADLINE:.0f} s for each phase. "
        "Every run below went on to its end by itself, and both verifiers accept all "
        "its ledgers.",
        "",
        "| fault | rounds | rounds charged, by site | jobs of the engine | seconds |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        charged = ", ".join(f"{site} {n}" for site, n in one["charged"].items())
        rounds = "; ".join(one["rounds"])
        lines.append(
            f"| {one['what']} | {rounds} | {charged} | {one['jobs']} | "
            f"{one['seconds']} |"
        )
    return "\n".join(lines) + "\n"


def run(names, folder, report=print):
    """Play these faults, one after another, in one pilot; returns their lines."""
    stage = Stage(
        folder,
        sites=SITES,
        enrolled=True,
        own={"deadline_seconds": DEADLINE},
        life=len(FAULTS) + 1,
        public=(),
        privacy={"rounds": ROUNDS},
        federation={"min_survivors": 3},
    )
    cable = Cable(stage.home(STRUCK).port)
    wire(stage, STRUCK, cable)
    found = []
    with playing(stage) as cast:
        cast.start_all()
        for name in names:
            found.append(strike(stage, cast, cable, name))
            report(json.dumps(found[-1]), flush=True)
    cable.close()
    return found


def entry(arguments):
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.pilot.faults")
    parser.add_argument("names", nargs="*", choices=[[], *FAULTS])
    parser.add_argument("--record", action="store_true", help="write docs/faults.md")
    parser.add_argument("--folder", type=Path, help="new; kept")
    options = parser.parse_args(arguments)
    names = options.names or list(FAULTS)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fgrpo-faults-"))
    folder.mkdir(exist_ok=True)
    found = run(names, folder)
    if options.record:
        RECORD.write_text(table(found), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(entry(sys.argv[1:]))
