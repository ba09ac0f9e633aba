"""The interface of every engine: one phase, bytes out, bytes back, a deadline.

An engine sees bytes that are signed, and where secret encrypted, by the kernel. It may
lose a message, which is a dropout; it must not invent, reorder or repeat one, and if it
does, the protocol notices.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol


class Exchange(Protocol):
    """Carries one phase of a round."""

    def exchange(
        self, phase: str, messages: Mapping[str, bytes], deadline: float
    ) -> dict[str, bytes]:
        """Send each client its message and gather what comes back in time.

        Args:
            phase: the name of the phase, by which a client knows what to do.
            messages: bytes for each client, by name.
            deadline: seconds from now after which an answer no longer counts.

        Returns:
            The answers that arrived, by client; a client that is missing has dropped
            out of this round.
        """
        ...


class Engine(Exchange, Protocol):
    """An exchange, and what a whole run asks of it besides."""

    def gather(self, number: int, cohorts: Mapping[tuple[str, ...], int]) -> None:
        """Come back when a round may begin, which all that follows is then of.

        Args:
            number: of the round, from 1; 0 where the rounds are over.
            cohorts: by the clients of each cohort, how many of them a sum takes.

        Raises:
            StateError: too few clients are there, and none will come.
        """
        ...

    def evaluating(self, public: Collection[str]) -> Collection[str]:
        """Which clients to ask for scores of a public evaluation set.

        Args:
            public: those that have one, as far as this party's configuration knows.
        """
        ...

    def collect_ledgers(self) -> None:
        """Bring the clients' ledgers into the run's folder, as far as they come."""
        ...
