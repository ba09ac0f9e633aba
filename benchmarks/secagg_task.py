"""What both sides of `secagg.py` have in common: the vectors, the clock, the talk.

It needs numpy alone, since the other side runs in an environment of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.worker import Channel

# Values are rounded to steps of 2**-18 on both sides, and lie within 128 steps of zero:
# so small that our exact norm fits into 64 bits at ten million parameters.
STEPS = 2**18
_PEAK = 128 / STEPS
# An odd multiplier and a shift for each client: other values at every place.
_STRIDE, _SHIFT = 40_503, 1_000_003
_CYCLE = 2**16


def values(client: int, dimension: int) -> NDArray[np.float32]:
    """What a client contributes: shape (dimension,), float32, the same in every run."""
    places = np.arange(dimension, dtype=np.int64)
    cycle = (places * _STRIDE + client * _SHIFT) % _CYCLE
    return ((cycle / _CYCLE - 0.5) * (2 * _PEAK)).astype(np.float32)


class Stopwatch:
    """Seconds of each step of one party: of all its threads, and by the clock."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Time a block; blocks of one name add up."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu[step] = self.cpu.get(step, 0.0) + time.process_time() - cpu
        self.wall[step] = self.wall.get(step, 0.0) + time.perf_counter() - wall

    def figures(self) -> dict[str, Any]:
        """The sums, and the steps by themselves."""
        return {
            "cpu": sum(self.cpu.values()),
            "wall": sum(self.wall.values()),
            "steps": self.cpu,
        }


class Side(Protocol):
    """A round that was run once, so that each party's work on it can be timed."""

    def client(self) -> Stopwatch:
        """One client's work in a round, again."""

    def server(self, dropouts: int) -> Stopwatch:
        """The server's work in a round with so many dropouts, again."""


def serve(open_side: Callable[[dict[str, Any]], Side]) -> None:
    """Answer requests until there are no more.

    A request is `{"do": "open", ...}` with the round's size, or the name of a method of
    the side with its arguments.
    """
    channel = Channel()
    side: Side | None = None
    while (request := channel.receive()) is not None:
        name = request.pop("do")
        if name == "open":
            # The last round's vectors are let go before the next one's are made.
            side = None
            side = open_side(request)
            channel.send({})
        else:
            answer = getattr(side, name)(**request)
            done = answer.figures() if isinstance(answer, Stopwatch) else answer
            channel.send(done)
