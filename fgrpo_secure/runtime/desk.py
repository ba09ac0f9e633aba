"""What a site's own process does in a pilot: let requests in, have them answered.

It holds the site's key, lets in what is the pinned server's and in its order, hands it
to the process that learns, and signs what that says. It imports no learner: an engine
ends a whole run when this process ends, so it must have nothing to die of.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Protocol

from fgrpo_secure.errors import FgrpoError
from fgrpo_secure.runtime.envelope import (
    OPEN,
    Admitted,
    Gate,
    Hello,
    Opening,
    Request,
    write_answer,
    write_hello,
    write_refusal,
)
from fgrpo_secure.runtime.trainer import DeclinedError
from privacy.crypto import SigningKey, VerifyKey
from privacy.errors import PrivacyError
from privacy.ledger import Reason
from privacy.wire import decode

# Lines that messages of strangers may put into the site's log, in one life of it.
_STRANGERS_LINES = 100


class Training(Protocol):
    """What answers phases; `Trainer` in earnest."""

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        ...

    def open(self, run: bytes, opening: Opening) -> None:
        """Have a run open."""
        ...

    def reopen(self) -> None:
        """Start the process again where it has died."""
        ...

    def ask(self, phase: str, payload: bytes) -> bytes:
        """Have one phase answered."""
        ...

    def halt(self) -> None:
        """End the process, and start none any more."""
        ...

    def resume(self) -> None:
        """Allow processes again."""
        ...


class Desk:
    """A site's side of the engine, in three threads of its own.

    Args:
        site: the client's name.
        job: what the engine calls this job.
        key: the site's identity.
        server: the server's key, as it is pinned here.
        nonce: fresh, for this life of the process.
        trainer: answers phases.
        stop_file: while this file is there, nothing is computed.
        send_hello: brings a hello to the server; returns whether it has it.
        send_answer: likewise, of an answer.
        say: a line for the site's log, which stays here.
        beat: seconds between two hellos, and between two tries to bring an answer.
    """

    def __init__(
        self,
        *,
        site: str,
        job: str,
        key: SigningKey,
        server: VerifyKey,
        nonce: bytes,
        trainer: Training,
        stop_file: Path,
        send_hello: Callable[[bytes], bool],
        send_answer: Callable[[bytes], bool],
        say: Callable[[str], None],
        beat: float = 5.0,
    ) -> None:
        self._key = key
        self._hello = write_hello(Hello(site, job, nonce), key)
        self._gate = Gate(site, nonce, server)
        self._trainer = trainer
        self._stop_file = stop_file
        self._send_hello, self._send_answer = send_hello, send_answer
        self._say = say
        self._beat = beat
        self._changed = Condition()
        self._ended = Event()
        self._pending: Admitted | None = None
        self._outgoing: bytes | None = None
        self._strangers = 0
        self._is_stopped = False
        self._threads = [
            Thread(target=work, daemon=True)
            for work in (self._answer_all, self._send_all, self._greet)
        ]

    def start(self) -> None:
        """Say hello, and wait for requests."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """End it all, the process that learns first."""
        self._ended.set()
        with self._changed:
            self._changed.notify_all()
        self._trainer.halt()

    def receive(self, data: bytes) -> None:
        """Take a message, from whichever thread of the engine; returns at once.

        What is not the pinned server's for this process leaves a line in the log, up to
        some, and nothing else: anybody could send it.
        """
        with self._changed:
            try:
                admitted = self._gate.admit(data)
            except PrivacyError as error:
                self._strangers += 1
                if self._strangers <= _STRANGERS_LINES:
                    self._say(f"refused a message: {error}")
                return
            if admitted.is_new:
                # The server has moved on: what waits is not asked for any more.
                self._pending, self._outgoing = admitted, None
            elif admitted.kept is not None:
                self._outgoing = admitted.kept
            self._changed.notify_all()

    def _answer_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._pending is not None or self._ended.is_set()
                )
                admitted, self._pending = self._pending, None
            if self._ended.is_set() or admitted is None:
                return
            answer = self._answer(admitted.request, admitted.payload)
            with self._changed:
                if self._gate.keep(admitted.request, answer):
                    self._outgoing = answer
                    self._changed.notify_all()
            self._revive()

    def _answer(self, request: Request, payload: bytes) -> bytes:
        """A signed answer or refusal; the words of a refusal stay in the log."""
        try:
            self._look_for_stop()
            if request.phase == OPEN:
                self._trainer.open(request.run, decode(Opening, payload))
                self._say(f"opened run {request.run.hex()}")
                return write_answer(request, b"", self._key)
            if not self._trainer.is_alive:
                self._trainer.reopen()
            answer = self._trainer.ask(request.phase, payload)
            return write_answer(request, answer, self._key)
        except DeclinedError as error:
            if self._is_stopped:
                reason, words = Reason.STOPPED, "this site is stopped"
            else:
                reason, words = error.reason, f"{error.what} {error.fix}"
        except PrivacyError as error:
            reason, words = Reason.MALFORMED_MESSAGE, str(error)
        except (FgrpoError, OSError) as error:
            reason, words = Reason.ENVIRONMENT, str(error)
        except Exception as error:
            # A thread that ends here would leave a site that says hello and no more.
            reason = Reason.ENVIRONMENT
            words = f"it met an unexpected error ({type(error).__name__})"
        self._say(f"declined {request.phase!r}, {reason.value}: {words}")
        return write_refusal(request, reason, self._key)

    def _revive(self) -> None:
        """Start again at once what died, so that it is ready for the next round."""
        if self._trainer.is_alive or self._is_stopped or self._ended.is_set():
            return
        try:
            self._trainer.reopen()
        except DeclinedError:
            # It is tried again when it is next asked, and says then what is wrong.
            return
        self._say("the process that learns was started again")

    def _send_all(self) -> None:
        """Bring the last answer to the server until it has it."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._outgoing is not None or self._ended.is_set()
                )
                answer = self._outgoing
            if self._ended.is_set() or answer is None:
                return
            arrived = self._send_answer(answer)
            with self._changed:
                if arrived and self._outgoing is answer:
                    self._outgoing = None
            if not arrived:
                self._ended.wait(self._beat / 5)

    def _greet(self) -> None:
        """Say hello again and again, and look for the stop file in between."""
        while not self._ended.is_set():
            self._look_for_stop()
            if not self._is_stopped:
                self._send_hello(self._hello)
            self._ended.wait(self._beat)

    def _look_for_stop(self) -> None:
        """Halt or go on, as the operator's marker says.

        A site that is stopped says no hello: to the server it is gone.
        """
        wanted = self._stop_file.exists()
        if wanted and not self._is_stopped:
            self._is_stopped = True
            self._say("stopped by its operator")
            self._trainer.halt()
        elif self._is_stopped and not wanted:
            self._is_stopped = False
            self._trainer.resume()
            self._say("goes on")
