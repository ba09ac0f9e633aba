"""The engine's processes of one home: started, watched, restarted and ended.

    supervisor      this program; restarts an engine that died; waits for a signal
      engine        NVFlare's own process, which talks to the server
        job         its process for one job
          trainer   ours, with the data

Each inherits a variable that names the home, by which all of them are found: the engine
gives every job a session of its own, so that a process group does not hold them. A lock
on a file tells whether any of supervisor, engine and job still lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from fgrpo_secure.approvals import load_policy
from fgrpo_secure.errors import ConfigurationError, StateError
from fgrpo_secure.home import Home, HomeRole, no_policy
from fgrpo_secure.pilot.engine import check_installed, engine_environment
from fgrpo_secure.secrets import private_directory, write_atomically

# Names the home in the environment of every process that works for it.
HOME_VARIABLE = "FGRPO_HOME"
STOP_SECONDS = 15.0
# What a process is given to end by itself.
_GRACE_SECONDS = 4.0
_POLL_SECONDS = 0.2
_START_SECONDS = 20.0
# An engine that dies so often in so long will not be helped by another start.
_MOST_STARTS, _WITHIN_SECONDS = 5, 300.0
_RESTART_SECONDS = 3.0
# Of what stands behind the program's name in /proc/PID/stat; see proc(5).
_START_FIELD = 19
_MODULE = "fgrpo_secure.runtime.nvflare_processes"


@dataclass(frozen=True, slots=True)
class Running:
    """Whether a home's processes run.

    Attributes:
        alive: any of them does.
        supervisor: its process id, where it is known.
        stopped: the operator has stopped this home.
    """

    alive: bool
    supervisor: int | None
    stopped: bool


def look(home: Home) -> Running:
    """Whether a home's processes run; nothing is changed."""
    path = _lock_file(home)
    alive = path.exists() and not _can_lock(path)
    record = _record(home) if alive else {}
    found, began = record.get("supervisor"), record.get("began")
    # One that was killed left its number here, which another program may have by now.
    known = isinstance(found, int) and began is not None and _began(found) == began
    return Running(alive, found if known else None, home.stop_file.exists())


def supervise(home: Home, say: Callable[[str], None]) -> int:
    """Run a home's engine until it is told to stop; returns an exit status.

    Raises:
        ConfigurationError: the engine is not installed, or the home lacks what it
            needs.
        StateError: it runs already, or its engine keeps dying.
    """
    check_ready(home)
    with _locked(home) as lock:
        _check_ports(home)
        home.stop_file.unlink(missing_ok=True)
        stop = _StopSignal()
        starts: list[float] = []
        try:
            while not stop.asked(home):
                _check_starts(home, starts)
                engine = _start_engine(home, lock)
                say(f"{home.party}: the engine runs, process {engine.pid}")
                _record_file(home).write_text(
                    json.dumps(
                        {
                            "supervisor": os.getpid(),
                            "began": _began(os.getpid()),
                            "engine": engine.pid,
                        }
                    )
                )
                while engine.poll() is None and not stop.asked(home):
                    time.sleep(_POLL_SECONDS)
                _end_all(home)
                if not stop.asked(home):
                    say(f"{home.party}: the engine has ended; starting it again")
                    stop.wait(home, _RESTART_SECONDS)
        finally:
            _end_all(home)
            _record_file(home).unlink(missing_ok=True)
    say(f"{home.party}: stopped")
    return 0


def start_in_background(
    home: Home, within: Sequence[str] = (), words: Sequence[str] = ()
) -> int:
    """Start a supervisor that outlives this process; returns its process id.

    Args:
        home: whose.
        within: a command that goes before its own, such as one that enters a network.
        words: further ones of its own command.

    Raises:
        ConfigurationError, StateError: as `supervise` raises them, or it ended at once.
    """
    check_ready(home)
    if look(home).alive:
        raise _runs_already(home)
    home.stop_file.unlink(missing_ok=True)
    role = ["site", "start"] if home.role is HomeRole.SITE else ["pilot", "serve"]
    command = [sys.executable, "-m", "fgrpo_secure", *role, str(home.root), *words]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    log = os.open(_log_file(home), flags, 0o600)
    try:
        started = subprocess.Popen(  # noqa: S603
            [*within, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if _record(home).get("supervisor") == started.pid:
            return started.pid
        if started.poll() is not None:
            break
        time.sleep(_POLL_SECONDS)
    raise StateError(
        f"{home.party} did not start.", f"The end of {_log_file(home)} says why."
    )


def stop(home: Home) -> bool:
    """End everything that runs for a home; the server is not asked.

    What was charged stays charged, and a later start goes on. While the marker that
    this leaves is there, nothing is computed here.

    Returns:
        Whether anything ran.

    Raises:
        StateError: something did not end in time.

    Guarantee:
        Within 15 seconds no process of this home is left, or an error says so.
    """
    write_atomically(home.stop_file, b"")
    ran = look(home).alive or bool(processes(home))
    supervisor = look(home).supervisor
    if supervisor is not None:
        _signal(supervisor, signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    # A supervisor that lives does it by itself; one that was killed left them alone.
    patience = time.monotonic() + _GRACE_SECONDS + 2
    while time.monotonic() < end:
        if not processes(home) and not look(home).alive:
            return ran
        if supervisor is None or time.monotonic() > patience:
            _end_all(home, grace=1.0)
        time.sleep(_POLL_SECONDS)
    raise StateError(
        f"Processes of {home.party} are still there: "
        f"{', '.join(map(str, processes(home)))}.",
        "End them by `kill -9`, as the account that started them.",
    )


def processes(home: Home) -> list[int]:
    """Every process of this account that works for the home, but for this one.

    It tells them by their environment; the supervisor itself does not carry the mark.
    """
    mark = f"{HOME_VARIABLE}={home.root}".encode()
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) == os.getpid():
            continue
        # It may be another account's, or gone by now.
        with suppress(OSError):
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return sorted(found)


def check_ready(home: Home) -> None:
    """See that a home has what its processes need, before any starts.

    Raises:
        ConfigurationError: the engine or the kit is missing, or the site's policy or
            its own file is.
        StateError: the keys are not those that were pinned.
    """
    check_installed()
    if home.role is HomeRole.LEAD:
        raise ConfigurationError(
            f"{home.root} is the lead's home, which runs nothing.",
            "Give the home of a site, or of the server.",
        )
    if not (home.kit / "startup" / "rootCA.pem").is_file():
        raise ConfigurationError(
            f"{home.party} is not enrolled: {home.kit} is not there.",
            "Run `fgrpo pilot install` with the file that the lead sent back.",
        )
    home.identity()
    home.roster()
    if home.role is HomeRole.SITE:
        if not home.site_file.is_file():
            raise ConfigurationError(
                f"There is no {home.site_file}.",
                "It says where this site's data and rewards are; docs/pilot.md.",
            )
        if not home.policy.is_file():
            raise no_policy(home)
        load_policy(home.policy)


def _check_ports(home: Home) -> None:
    """See that a server can listen: the engine would run on and be reached by nobody.

    Raises:
        StateError: another program has one of the ports.
    """
    if home.role is not HomeRole.SERVER:
        return
    for port in sorted({home.port, home.admin_port}):
        with socket.socket() as tried:
            # What an earlier engine left behind, and the system still closes, is free.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("", port))
                tried.listen()
            except OSError as error:
                raise StateError(
                    f"The server cannot listen on port {port}: {error.strerror}.",
                    "End what has it (`ss -ltnp` lists it). The ports are those of "
                    "the invitation: others mean a new pilot.",
                ) from None


class _StopSignal:
    """What was asked of the supervisor: by a signal, or by the marker in the home."""

    def __init__(self) -> None:
        self._told = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._tell)

    def asked(self, home: Home) -> bool:
        """Whether to stop."""
        return self._told or home.stop_file.exists()

    def wait(self, home: Home, seconds: float) -> None:
        """Wait, unless it is asked to stop."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.asked(home):
            time.sleep(_POLL_SECONDS)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._told = True


def _start_engine(home: Home, lock: int) -> subprocess.Popen[bytes]:
    folder = private_directory(home.root / "request")
    environment = engine_environment(folder) | {HOME_VARIABLE: str(home.root)}
    role = "site" if home.role is HomeRole.SITE else "server"
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", _MODULE, role, str(home.kit), home.party],
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        # Whoever inherits it holds the lock.
        pass_fds=(lock,),
    )


def _check_starts(home: Home, starts: list[float]) -> None:
    now = time.monotonic()
    starts.append(now)
    if sum(now - then < _WITHIN_SECONDS for then in starts) > _MOST_STARTS:
        raise StateError(
            f"The engine of {home.party} keeps ending.",
            f"{home.kit / 'log.txt'} says why.",
        )


def _end_all(home: Home, grace: float = _GRACE_SECONDS) -> None:
    """Ask all to end, wait, and end those that do not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes(home):
            _signal(process, number)
        end = time.monotonic() + grace
        while processes(home) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)


def _began(process: int) -> int | None:
    """When a process began, in ticks since the machine did; None where it is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # Behind the program's name, in which anything may stand.
    return int(text.rpartition(")")[2].split()[_START_FIELD])


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


@contextmanager
def _locked(home: Home) -> Iterator[int]:
    descriptor = os.open(_lock_file(home), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _runs_already(home) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _can_lock(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _record(home: Home) -> dict[str, Any]:
    try:
        found = json.loads(_record_file(home).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _runs_already(home: Home) -> StateError:
    return StateError(
        f"{home.party} runs already.",
        f"`fgrpo site stop {home.root}` ends it."
        if home.role is HomeRole.SITE
        else f"`fgrpo pilot serve {home.root} --stop` ends it.",
    )


def _lock_file(home: Home) -> Path:
    return home.root / "running.lock"


def _record_file(home: Home) -> Path:
    return home.root / "running.json"


def _log_file(home: Home) -> Path:
    return home.root / "log.txt"
