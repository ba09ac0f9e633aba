"""The interface of every engine: one phase, bytes out, bytes back, a deadline.

An engine sees bytes that are signed, and where secret encrypted, by the kernel. It may
lose a message, which is a dropout; it must not invent, reorder or repeat one, and if it
does, the protocol notices.
"""

from __future__ import annotations

from collections.abc import Mapping
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
