"""Runs of a pilot as the lead starts, follows, stops and collects them.

The engine ends a whole job where one process of it dies. Our run does not: it goes on
from its own checkpoint in the next job, with the same plan and the same ledgers, and
what was charged stays charged. So whoever follows a run submits it again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrpo_secure.agreement import Agreement, read_agreement
from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.explanations import shown
from fgrpo_secure.home import Home, HomeRole
from fgrpo_secure.pilot.engine import UNREACHED, Engine, EngineError
from fgrpo_secure.runtime.engine_job import RESULT, STATUS, Progress, job_files
from fgrpo_secure.secrets import private_directory, write_atomically
from privacy.ledger.durable import make_directory
from privacy.plan import MIN_CLIENTS, Plan

COMPLETED = "FINISHED:COMPLETED"
_FINISHED = "FINISHED"
_RUNNING = "RUNNING"
# A job is called running a moment before and after it runs. One of which this is so
# for so many looks was lost with the server's process.
_LOST_LOOKS = 5
_NOT_RUNNING = {"JOB_NOT_RUNNING", "JOB_NOT_FOUND"}
POLL_SECONDS = 4.0
# Without a round between them, jobs that fail are submitted again this often.
MOST_FAILURES = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 120.0


@dataclass(frozen=True, slots=True)
class Watched:
    """A run as the engine shows it now.

    Attributes:
        run: its name.
        job: the engine's handle of the last job.
        status: the engine's word for that job.
        progress: what the coordinator shows, while it runs.
        attempts: how many jobs there have been.
        lost: the engine calls the job running and runs none: it was started again.
    """

    run: str
    job: str
    status: str
    progress: Progress | None
    attempts: int
    lost: bool = False

    @property
    def over(self) -> bool:
        """Whether the engine's job has ended, one way or another."""
        return self.status.startswith(_FINISHED)


@dataclass(frozen=True, slots=True)
class LeadRun:
    """What the lead keeps of one run."""

    home: Home
    name: str

    @property
    def folder(self) -> Path:
        """Where."""
        return self.home.run(self.name)

    @property
    def engine(self) -> Engine:
        """The engine's commands for the lead."""
        return Engine(private_directory(self.home.root / "request"))

    @property
    def stop_file(self) -> Path:
        """Says that the lead has stopped it, so that nothing submits it again."""
        return self.folder / "stopped"

    def jobs(self) -> list[str]:
        """The engine's handles of all jobs so far, the last one last."""
        try:
            found = json.loads((self.folder / "jobs.json").read_text("utf-8"))
        except FileNotFoundError:
            return []
        return [str(job) for job in found]

    def call(self, *words: str | Path) -> dict[str, Any]:
        """One of the engine's commands about jobs.

        Raises:
            EngineError: it refused, or the server was not reached.
        """
        return self.engine.call("job", *words, "--startup-kit", self.home.kit)


def open_run(home: Home, name: str) -> LeadRun:
    """A run that the lead has submitted.

    Raises:
        ConfigurationError: this is not the lead's home, or there is no such run.
    """
    _check_lead(home)
    found = LeadRun(home, name)
    if not found.jobs():
        names = sorted(path.name for path in home.runs.glob("*/"))
        listed = ", ".join(one for one in names if LeadRun(home, one).jobs())
        raise ConfigurationError(
            f"There is no run {name} that was submitted.",
            f"There are: {listed or 'none'}. `fgrpo pilot submit` begins one.",
        )
    return found


def prepare(home: Home, text: str, name: str) -> tuple[LeadRun, Agreement, Plan]:
    """Read an agreement and register its plan; nothing is sent.

    Raises:
        ConfigurationError: the agreement is wrong, names a site that is not in the
            pilot, or differs from that of the run which has this name.
        FgrpoError, PrivacyError: no plan can be made of it.
    """
    from fgrpo_secure.preparation import make_plan  # noqa: PLC0415, torch takes seconds

    _check_lead(home)
    agreement = read_agreement(text)
    pinned = home.roster()
    for client in agreement.names:
        if client not in pinned:
            raise ConfigurationError(
                f"{client} is no site of this pilot.",
                f"Its sites are {', '.join(sorted(set(pinned) - {'server'}))}.",
            )
    run = LeadRun(home, name)
    kept = run.folder / "agreement.toml"
    if kept.exists() and kept.read_bytes() != text.encode():
        raise StateError(
            f"The run {name} was submitted with another agreement.",
            "Choose another --name: a run's terms never change.",
        )
    plan, _ = make_plan(agreement.at_server(home))
    return run, agreement, plan


def submit(run: LeadRun, agreement: Agreement, plan: Plan) -> str:
    """Hand a run to the engine, once more where it was before.

    Returns:
        The engine's handle of the job.

    Raises:
        EngineError: the engine refused, or the server was not reached.
    """
    make_directory(run.folder)
    write_atomically(run.folder / "agreement.toml", agreement.text.encode())
    run.stop_file.unlink(missing_ok=True)
    jobs = run.jobs()
    folder = run.folder / "job"
    shutil.rmtree(folder, ignore_errors=True)
    files = job_files(
        run.name,
        agreement.names,
        max(MIN_CLIENTS, plan.min_survivors),
        {"run": run.name, "agreement": agreement.text, "plan": plan.digest},
    )
    for path, data in files.items():
        make_directory((folder / path).parent)
        write_atomically(folder / path, data)
    # The engine knows a token again: where this program died before it noted the
    # handle, it gets the same one, and no second job runs.
    token = f"{run.home.pilot}-{run.name}-{len(jobs) + 1}"
    found = run.call("submit", "-j", folder, "--submit-token", token)
    job = str(found["job_id"])
    write_atomically(run.folder / "jobs.json", json.dumps([*jobs, job]).encode())
    return job


def watch(run: LeadRun) -> Watched:
    """How a run is.

    Raises:
        EngineError: the server was not reached.
    """
    jobs = run.jobs()
    meta = run.call("meta", jobs[-1])
    status = str(meta.get("status", "UNKNOWN"))
    progress, lost = None, False
    if not status.startswith(_FINISHED):
        try:
            progress = _progress(run.call("stats", jobs[-1], "--site", "server"))
        except EngineError as error:
            if error.code not in _NOT_RUNNING | UNREACHED:
                raise
            lost = status == _RUNNING and error.code in _NOT_RUNNING
    return Watched(run.name, jobs[-1], status, progress, len(jobs), lost)


def follow(
    run: LeadRun,
    resubmit: Callable[[], str],
    say: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[Watched]:
    """Watch a run to its end, and submit it again where the engine's job failed.

    Args:
        run: the run.
        resubmit: submits it once more.
        say: is told what happens.
        wait: lets so many seconds pass.

    Yields:
        How it is, every few seconds; the last one is how it ended.

    Raises:
        StateError: its jobs keep failing without a round between them.
        EngineError: the engine refused to take it again.
    """
    failures, reached, unreached, lost = 0, 0, False, 0
    # What the coordinator said last: its job may have ended for that.
    words = ""
    while True:
        try:
            found = watch(run)
        except EngineError as error:
            if error.code not in UNREACHED:
                raise
            if not unreached:
                say("The server is not reached; trying again until it is.")
            unreached = True
            wait(POLL_SECONDS)
            continue
        unreached = False
        yield found
        if found.status == COMPLETED or run.stop_file.exists():
            return
        if found.progress is not None and found.progress.last:
            words = f": {shown(found.progress.last)}"
        if found.progress is not None and len(found.progress.notes) > reached:
            failures, reached = 0, len(found.progress.notes)
        lost = lost + 1 if found.lost else 0
        if not found.over and lost < _LOST_LOOKS:
            wait(POLL_SECONDS)
            continue
        lost = 0
        failures += 1
        if failures >= MOST_FAILURES:
            raise StateError(
                f"The run {run.name} failed {failures} times and came no further: "
                f"{found.status}{words}",
                "The server's kit/log.txt and the sites' say why; submit again once it "
                "is mended. What was charged stays charged.",
            )
        pause = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
        say(
            f"The engine's job ended ({found.status}) and the run has not{words}. "
            f"Submitting it again in {pause:.0f} s; it goes on from its checkpoint."
        )
        words = ""
        wait(pause)
        _resubmit(resubmit, say, wait)


def stop(run: LeadRun) -> Watched:
    """Stop a run: the engine's job ends at once, and nothing submits it again.

    Raises:
        EngineError: the server was not reached. The run is stopped at the lead all the
            same: nothing here submits it again.
    """
    write_atomically(run.stop_file, b"")
    try:
        run.call("abort", run.jobs()[-1], "--force")
    except EngineError as error:
        if error.code not in _NOT_RUNNING:
            raise
    return watch(run)


def collect(run: LeadRun, output: Path) -> Path:
    """Fetch the folder of a finished run, laid out as `fgrpo run` leaves it.

    Returns:
        The folder.

    Raises:
        StateError: the run is not finished, or the folder is there already.
        EngineError: the server was not reached.
    """
    if output.exists() and any(output.iterdir()):
        raise StateError(
            f"{output} is not empty.",
            "Choose another --output: nothing is written over other files.",
        )
    found = watch(run)
    if found.status != COMPLETED:
        raise StateError(
            f"The run {run.name} is not finished: {found.status}.",
            "`fgrpo pilot status` shows it; submit it again to go on.",
        )
    work = private_directory(run.folder / "download")
    run.call("download", found.job, "--output-dir", work, "--force")
    within = sorted(work.rglob(f"{RESULT}/plan.json"))
    if len(within) != 1 or within[0].is_symlink():
        raise StateError(
            "What the engine brought has no finished run in it.",
            "See the server's kit/log.txt; its own folder runs/ has the run.",
        )
    source = within[0].parent
    for path in source.rglob("*"):
        if path.is_symlink():
            raise StateError(
                "What the engine brought holds a link to another file.",
                "Do not use it, and ask who runs the server.",
            )
    make_directory(output.parent)
    shutil.copytree(source, output, dirs_exist_ok=True)
    shutil.rmtree(work)
    return output


def _resubmit(
    resubmit: Callable[[], str],
    say: Callable[[str], None],
    wait: Callable[[float], None],
) -> None:
    told = False
    while True:
        try:
            resubmit()
        except EngineError as error:
            if error.code not in UNREACHED:
                raise
            if not told:
                say("The server is not reached; submitting again once it is.")
            told = True
            wait(POLL_SECONDS)
        else:
            return


def _progress(stats: Mapping[str, Any]) -> Progress | None:
    """What the coordinator shows, wherever the engine puts it."""
    for key, value in stats.items():
        if key == STATUS and isinstance(value, str):
            return Progress.from_text(value)
        if isinstance(value, dict):
            found = _progress(value)
            if found is not None:
                return found
    return None


def _check_lead(home: Home) -> None:
    if home.role is not HomeRole.LEAD:
        raise ConfigurationError(
            f"{home.root} is the home of {home.party}.",
            "Runs are submitted from the lead's: give it as --home.",
        )
