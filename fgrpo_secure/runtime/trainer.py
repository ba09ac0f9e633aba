"""The process in which a site learns, as its supervisor sees it.

An engine ends a whole run when one of its own processes dies. So the one that it knows
is small and only supervises, and this one, which may run out of memory or meet a bug,
is started again. It ends with its supervisor, however that ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import IO

from fgrpo_secure.errors import FgrpoError
from fgrpo_secure.runtime.envelope import Opening
from fgrpo_secure.runtime.worker import Failure, Kind, asked
from fgrpo_secure.secrets import PRIVATE_FILE_MODE
from privacy.ledger import Reason
from privacy.wire import Reader, Writer, encode

# A process that was asked to end has so many seconds before it is made to.
GRACE_SECONDS = 5.0
_LOG = "trainer.log"
_MODULE = "fgrpo_secure.runtime.training"
_MOST_LOG_BYTES = 2**24


class DeclinedError(FgrpoError):
    """There is no answer.

    Attributes:
        reason: the code, which may be sent.
    """

    def __init__(self, reason: Reason, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Child:
    """A process, the pipe to it, and what ends it with this one."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    lifeline: int


class Trainer:
    """Starts the process, asks it, and ends it.

    One thread opens and asks; any may end.

    Args:
        home: the site's.
        private: where a log goes that may quote data.
        site: the client's name.
    """

    def __init__(self, home: Path, private: Path, site: str) -> None:
        self._home = home
        self._log = private / _LOG
        self._site = site
        self._lock = Lock()
        self._child: _Child | None = None
        self._sequence = 0
        self._kept: tuple[bytes, Opening] | None = None
        self._is_halted = False

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        child = self._child
        return child is not None and child.process.poll() is None

    @property
    def process_id(self) -> int | None:
        """Of the process, where there is one."""
        child = self._child
        return None if child is None else child.process.pid

    def open(self, run: bytes, opening: Opening) -> None:
        """Have a run open, in the process that has it open or in a new one.

        Another run, or other terms, get a process of their own, which holds them to
        what is on disk. Where they are refused, what was open is opened again when it
        is next asked for.

        Raises:
            DeclinedError: it was refused, or could not be opened.
        """
        if self.is_alive and self._kept == (run, opening):
            return
        before = self._kept
        self.end()
        try:
            self._start(run, opening)
        except DeclinedError:
            self._kept = before
            raise
        self._kept = (run, opening)

    def reopen(self) -> None:
        """Start the process again where it has died.

        Raises:
            DeclinedError: nothing was opened yet, or it cannot be opened any more.
        """
        if self._kept is None:
            raise DeclinedError(
                Reason.STOPPED, "No run is open here.", "The server opens one first."
            )
        self.open(*self._kept)

    def ask(self, phase: str, payload: bytes) -> bytes:
        """Have one phase answered.

        Raises:
            DeclinedError: the client declines, or its process died over it.
        """
        child = self._child
        if child is None:
            raise _died()
        self._sequence += 1
        try:
            child.pipe.send_bytes(asked(self._sequence, phase, self._site, payload))
            while True:
                reader = Reader(child.pipe.recv_bytes())
                kind = reader.integer()
                if kind == Kind.PROGRESS:
                    continue
                if reader.integer() == self._sequence:
                    break
        except (EOFError, OSError):
            raise _died() from None
        reader.text()
        if kind == Kind.ANSWER:
            return reader.field()
        reason, words = Reason(reader.text()), reader.text()
        raise DeclinedError(reason, words, "Nothing was sent but a code.")

    def end(self) -> None:
        """End the process and all that it started, with a few seconds of grace."""
        with self._lock:
            child, self._child = self._child, None
        if child is None:
            return
        _signal(child, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(GRACE_SECONDS)
        _signal(child, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(GRACE_SECONDS)
        # Another thread may still read the pipe, and closes it by letting go of it.
        with suppress(OSError):
            os.close(child.lifeline)

    def halt(self) -> None:
        """End the process, and start none any more until `resume`."""
        self._is_halted = True
        self.end()

    def resume(self) -> None:
        """Allow processes again."""
        self._is_halted = False

    def _start(self, run: bytes, opening: Opening) -> None:
        child = self._spawn()
        try:
            child.pipe.send_bytes(
                Writer().field(run).field(encode(opening)).finish(),
            )
            kind = Kind.PROGRESS
            while kind == Kind.PROGRESS:
                reader = Reader(child.pipe.recv_bytes())
                kind = Kind(reader.integer())
        except (EOFError, OSError):
            self.end()
            raise _died() from None
        if kind == Kind.FAILED:
            failure = Failure.read(reader)
            self.end()
            raise DeclinedError(failure.reason, failure.what, failure.fix)

    def _spawn(self) -> _Child:
        """A new process, with a pipe of its own and a lifeline.

        Raises:
            DeclinedError: nothing may be computed here.
        """
        ours, theirs = socket.socketpair()
        watched, lifeline = os.pipe()
        # Nothing is imported from the folder in which an engine lays what it was sent.
        python = [sys.executable, "-P", "-m", _MODULE]
        command = [*python, str(theirs.fileno()), str(watched), str(self._home)]
        try:
            with self._open_log() as log, self._lock:
                if self._is_halted:
                    raise DeclinedError(
                        Reason.STOPPED,
                        "This site is stopped.",
                        "`fgrpo site start` goes on.",
                    )
                process = subprocess.Popen(  # noqa: S603
                    command,
                    pass_fds=(theirs.fileno(), watched),
                    cwd=self._home,
                    env=_environment(self._home),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                child = _Child(process, Connection(ours.detach()), lifeline)
                self._child = child
        except BaseException:
            ours.close()
            os.close(lifeline)
            raise
        finally:
            theirs.close()
            os.close(watched)
        return child

    def _open_log(self) -> IO[bytes]:
        """What the process prints, which may quote data; kept from growing for ever."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._log, flags, PRIVATE_FILE_MODE)
        if os.fstat(descriptor).st_size > _MOST_LOG_BYTES:
            os.ftruncate(descriptor, 0)
        return os.fdopen(descriptor, "ab")


def _environment(home: Path) -> dict[str, str]:
    """This process's environment, but for what an engine adds to where modules are.

    NVFlare names a folder of each job there, which lies in the home.
    """
    found = dict(os.environ)
    places = found.pop("PYTHONPATH", "").split(os.pathsep)
    inside = home.resolve()
    own = [
        place
        for place in places
        if place and not Path(place).resolve().is_relative_to(inside)
    ]
    if own:
        found["PYTHONPATH"] = os.pathsep.join(own)
    return found


def _signal(child: _Child, number: signal.Signals) -> None:
    """Signal a process and what it started: it leads a group of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)


def _died() -> DeclinedError:
    return DeclinedError(
        Reason.INTERRUPTED,
        "The process that learns has ended.",
        "It is started again for the next round; see trainer.log in the private "
        "folder of this site.",
    )
