"""The exchange of a pilot: sites that come, go and come back, and deadlines of ours.

The engine carries bytes from here to a site, and calls back with what a site says. A
message is sent until the site has it; an answer comes by itself, whenever it is ready.
Whatever is not signed by the site that was asked, for exactly that request, is not an
answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from threading import Condition
from typing import Protocol

from fgrpo_secure.errors import StateError
from fgrpo_secure.runtime.envelope import (
    Hello,
    RefusedError,
    Request,
    payload_digest,
    read_answer,
    read_hello,
    round_of,
    write_request,
)
from privacy.crypto import SigningKey, VerifyKey
from privacy.errors import PrivacyError
from privacy.ledger import Reason

# Messages under way at once: each may hold an adapter.
_SENDERS = 16


class Post(Protocol):
    """What an engine does for the server: bring bytes to a site's process."""

    def send(self, site: str, data: bytes) -> bool:
        """Bring bytes to a site; returns whether its process has them."""
        ...

    def is_connected(self, site: str) -> bool:
        """Whether a site's engine is there, with or without a process for this job."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the server waits for sites, in seconds.

    Attributes:
        again: between two tries to bring a message to a site.
        absent: since a site's last hello, after which it counts as gone.
        straggler: for all sites, before a round begins without some.
        together: since the job began, before it is ended to have a site in it
            that came back.
        enough: for as many as a sum takes, before the run is given up.
    """

    again: float = 1.0
    absent: float = 30.0
    straggler: float = 120.0
    together: float = 120.0
    enough: float = 1800.0


@dataclass(slots=True)
class _Presence:
    """What is known of a site: its last hello, and when it came."""

    hello: Hello
    heard: float


@dataclass(slots=True)
class _Turn:
    """One phase under way.

    Attributes:
        end: when its answers stop to count, on the monotonic clock.
        asked: what each site was asked, as long as its answer is awaited.
        answers: what came, by site.
        silent: why nothing came or will come, by site.
        refused: the codes of those that refused.
        is_over: whether its answers have stopped to count.
    """

    end: float
    asked: dict[str, Request] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    refused: dict[str, Reason] = field(default_factory=dict)
    is_over: bool = False

    def awaits(self, site: str) -> bool:
        """Whether an answer of this site would still count."""
        done = self.is_over or time.monotonic() >= self.end
        return not done and site not in self.answers and site not in self.silent


class Courier:
    """Carries phases to sites over a `Post`; an `Exchange`.

    Args:
        post: of the engine.
        job: what the engine calls this job.
        run: the run's handle.
        key: the server's identity.
        sites: pinned keys of the clients, by name.
        patience: how long to wait.
        on_silence: called with a site and why it did not answer; the reason is a code.
        on_absence: called with the sites that are there and those that are not,
            whenever these change.
        stopped: whether the engine wants this process to end.
    """

    def __init__(
        self,
        *,
        post: Post,
        job: str,
        run: bytes,
        key: SigningKey,
        sites: Mapping[str, VerifyKey],
        patience: Patience,
        on_silence: Callable[[str, str], None],
        on_absence: Callable[[Collection[str], Collection[str]], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._post = post
        self._job = job
        self._run = run
        self._key = key
        self._sites = sites
        self._patience = patience
        self._on_silence = on_silence
        self._on_absence = on_absence
        self._stopped = stopped
        self._changed = Condition()
        self._known: dict[str, _Presence] = {}
        self._sequences = count(1)
        self._round = 0
        self._turn = _Turn(0.0, is_over=True)
        self._told: frozenset[str] | None = None

    def begin(self, number: int) -> None:
        """Have all that follows be of this round; 0 is of none."""
        self._round = number

    def hear(self, data: bytes) -> bool:
        """Take a hello, from whichever thread of the engine.

        Returns:
            Whether it was of a pinned site and for this job. What is not leaves no
            trace: anybody could send it.
        """
        try:
            hello = read_hello(data, self._sites, self._job)
        except PrivacyError:
            return False
        with self._changed:
            known = self._known.get(hello.site)
            now = time.monotonic()
            if known is None or known.hello != hello:
                # Another life of its process: it has opened nothing.
                self._known[hello.site] = _Presence(hello, now)
            else:
                known.heard = now
            self._changed.notify_all()
        return True

    def take(self, site: str, data: bytes) -> None:
        """Take what a site answers, from whichever thread of the engine.

        Args:
            site: who the engine says it is from, which is believed only as far as the
                signature.
            data: the answer. The site need not send it again, whatever it is.
        """
        with self._changed:
            turn = self._turn
            request = turn.asked.get(site)
        if request is None:
            return
        try:
            answer, refused = read_answer(data, request, self._sites[site]), None
        except RefusedError as error:
            answer, refused = b"", error.reason
        except PrivacyError:
            # Late, or false. The one who was asked may still answer.
            return
        with self._changed:
            if turn.awaits(site):
                if refused is None:
                    turn.answers[site] = answer
                else:
                    turn.refused[site] = refused
                    turn.silent[site] = f"refused {request.phase!r}: {refused.value}"
            self._changed.notify_all()

    def is_present(self, site: str) -> bool:
        """Whether a site's process has said hello lately."""
        known = self._known.get(site)
        if known is None:
            return False
        return time.monotonic() - known.heard < self._patience.absent

    @property
    def present(self) -> frozenset[str]:
        """The sites whose processes have said hello lately."""
        with self._changed:
            return frozenset(site for site in self._sites if self.is_present(site))

    @property
    def refused(self) -> Mapping[str, Reason]:
        """The sites that refused what they were last asked, and the codes they gave."""
        return self._turn.refused

    def lives(self) -> dict[str, bytes]:
        """The sites that are present, and the nonce of each one's process."""
        with self._changed:
            return {
                site: known.hello.nonce
                for site, known in self._known.items()
                if self.is_present(site)
            }

    def is_back(self, site: str) -> bool:
        """Whether a site's engine is there, and its process for this job is gone."""
        return not self.is_present(site) and self._post.is_connected(site)

    def wait_for(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait until something holds; returns whether it does.

        Raises:
            StateError: this process is to end.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                self._check_stopped()
                if ready():
                    return True
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 1.0))

    def tell_absent(self) -> None:
        """Say which sites are missing, where these are others than was last said."""
        present = self.present
        if present != self._told:
            self._told = present
            self._on_absence(present, self._sites.keys() - present)

    def exchange(
        self, phase: str, messages: Mapping[str, bytes], deadline: float
    ) -> dict[str, bytes]:
        """Carry one phase; see `Exchange`.

        A site that is gone for longer than patience allows has dropped out before the
        deadline.

        Raises:
            StateError: this process is to end.
        """
        turn = _Turn(time.monotonic() + deadline)
        names = sorted(messages)

        def carry(name: str) -> None:
            why = self._carry(turn, phase, name, messages)
            with self._changed:
                if why and turn.awaits(name):
                    turn.silent[name] = why
                self._changed.notify_all()

        with self._changed:
            self._turn = turn
        pool = ThreadPoolExecutor(max(1, min(_SENDERS, len(names))))
        try:
            tasks = [pool.submit(carry, name) for name in names]
            self.wait_for(lambda: not any(map(self._still_waits, names)), deadline)
        finally:
            with self._changed:
                turn.is_over = True
            pool.shutdown(wait=False, cancel_futures=True)
        for task in tasks:
            if task.done() and not task.cancelled():
                # A bug is no dropout.
                task.result()
        for name in names:
            if name not in turn.answers:
                late = f"no answer to {phase!r} within {deadline:.0f} s"
                late = late if self.is_present(name) else "it is gone"
                self._on_silence(name, turn.silent.get(name, late))
        return turn.answers

    def _still_waits(self, name: str) -> bool:
        """Whether a site may still answer the phase that is under way."""
        return self._turn.awaits(name) and self.is_present(name)

    def _carry(
        self, turn: _Turn, phase: str, name: str, messages: Mapping[str, bytes]
    ) -> str:
        """Bring one site its message; returns why not, where that is known."""
        with self._changed:
            known = self._known.get(name)
            if known is None or not self.is_present(name):
                return "it is gone"
        payload = messages[name]
        request = self._request(phase, known.hello, payload)
        data = write_request(request, payload, self._key)
        with self._changed:
            turn.asked[name] = request
        while turn.awaits(name):
            if self._post.send(name, data):
                return ""
            with self._changed:
                if self._known[name].hello != known.hello:
                    # What it was asked is lost with the process that was asked.
                    return "its process has ended"
                self._changed.wait(self._patience.again)
        return ""

    def _request(self, phase: str, hello: Hello, payload: bytes) -> Request:
        return Request(
            nonce=hello.nonce,
            run=self._run,
            sequence=next(self._sequences),
            round=round_of(phase, self._round),
            phase=phase,
            client=hello.site,
            payload=payload_digest(payload),
        )

    def _check_stopped(self) -> None:
        if self._stopped():
            raise StateError(
                "The engine was told to stop this run.",
                "Submit it again under the same name, and it goes on from here.",
            )
