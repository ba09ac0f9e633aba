"""The life of a process that holds clients: it opens them, then answers until the end.

Every runtime has such processes, and talks to them over a pipe. Nothing here imports
the learner, so that whoever supervises them stays small.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from fgrpo_secure.errors import (
    FgrpoError,
    StateError,
    said_by_kernel,
    said_by_system,
)
from fgrpo_secure.refusals import Silence, reasons_of, silence_of
from fgrpo_secure.secrets import write_atomically
from privacy.errors import PrivacyError
from privacy.ledger import Reason
from privacy.wire import Reader, Writer

REFUSAL_EXIT = 6
# A text that is longer in bytes than its reader takes would end the run.
_MOST_CHARACTERS = 1000

# Called with a label, what is done and what there is to do.
Progress = Callable[[str, int, int], None]


class Kind(IntEnum):
    """What a worker says."""

    READY = 0
    ANSWER = 1
    SILENCE = 2
    PROGRESS = 3
    FAILED = 4


class Answering(Protocol):
    """Clients that answer phases; `Site` in earnest."""

    def handle(self, phase: str, name: str, payload: bytes) -> bytes:
        """Answer one phase in one client's name."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker could not open its clients.

    Attributes:
        reason: the code.
        what: happened, for the operator of the worker's machine.
        fix: what to do.
        exit_code: of the program.
    """

    reason: Reason
    what: str
    fix: str
    exit_code: int

    def to_bytes(self) -> bytes:
        """The message."""
        message = Writer().integer(Kind.FAILED).text(self.reason.value)
        message.text(self.what[:_MOST_CHARACTERS]).text(self.fix[:_MOST_CHARACTERS])
        return message.integer(self.exit_code).finish()

    @staticmethod
    def read(reader: Reader) -> Failure:
        """Read it, behind its kind."""
        return Failure(
            Reason(reader.text()), reader.text(), reader.text(), reader.integer()
        )

    @property
    def error(self) -> StateError:
        """The same to be raised on this machine."""
        error = StateError(self.what, self.fix)
        error.exit_code = self.exit_code
        return error


def asked(sequence: int, phase: str, name: str, payload: bytes) -> bytes:
    """What a worker is asked: a number that its answer repeats, and the phase."""
    message = Writer().integer(sequence).text(phase).text(name)
    return message.field(payload).finish()


def work(
    pipe: Connection,
    open_clients: Callable[[Progress], Mapping[str, Answering]],
    crash_log: Callable[[], Path],
) -> None:
    """Be a worker. Where its server has died, there is nobody to tell.

    Args:
        pipe: to whoever started this process.
        open_clients: makes what answers for each client, by name.
        crash_log: where an error goes whose text may quote data.
    """
    with suppress(BrokenPipeError, ConnectionResetError):
        _open_and_answer(pipe, open_clients, crash_log)


def _open_and_answer(
    pipe: Connection,
    open_clients: Callable[[Progress], Mapping[str, Answering]],
    crash_log: Callable[[], Path],
) -> None:
    """A worker's life: open the clients, then answer until the pipe closes."""
    # The parent decides what Ctrl-C means, for all processes at once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def progress(label: str, done: int, total: int) -> None:
        message = Writer().integer(Kind.PROGRESS).text(label)
        pipe.send_bytes(message.integer(done).integer(total).finish())

    try:
        clients = open_clients(progress)
    except Exception as error:
        pipe.send_bytes(_failure(error, crash_log).to_bytes())
        return
    pipe.send_bytes(Writer().integer(Kind.READY).finish())
    while True:
        try:
            reader = Reader(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        sequence, phase, name = reader.integer(), reader.text(), reader.text()
        payload = reader.field()
        try:
            answer = clients[name].handle(phase, name, payload)
            message = Writer().integer(Kind.ANSWER).integer(sequence).text(name)
            message.field(answer)
        except (PrivacyError, FgrpoError) as error:
            message = _silence(sequence, name, silence_of(error))
        pipe.send_bytes(message.finish())


def _silence(sequence: int, name: str, silence: Silence) -> Writer:
    """Why there is no answer: a code for all, and words for this machine's operator."""
    message = Writer().integer(Kind.SILENCE).integer(sequence).text(name)
    words = silence.said_to_operator[:_MOST_CHARACTERS]
    return message.text(silence.reason.value).text(words)


def _failure(error: Exception, crash_log: Callable[[], Path]) -> Failure:
    """Why the clients could not be opened."""
    if isinstance(error, FgrpoError):
        return Failure(Reason.ENVIRONMENT, error.what, error.fix, error.exit_code)
    if isinstance(error, PrivacyError):
        what, fix = said_by_kernel(error, "Nothing was spent. See docs/ledger.md.")
        return Failure(reasons_of(error)[0], what, fix, REFUSAL_EXIT)
    if isinstance(error, OSError):
        what, fix = said_by_system(error)
        return Failure(Reason.ENVIRONMENT, what, fix, StateError.exit_code)
    # Another library's text may quote data, so it stays in the clients' folder.
    path = crash_log()
    with suppress(OSError):
        write_atomically(path, traceback.format_exc().encode(), private=True)
    what = f"A client met an unexpected error ({type(error).__name__})."
    return Failure(
        Reason.ENVIRONMENT, what, f"Look at {path}, which may quote data.", 1
    )
