"""The only door for randomness: the operating system, and streams keyed by it.

Nothing that makes noise or keys takes a seed. What a caller may pass is an `Entropy`,
a function that returns fresh bytes; the program passes `system_entropy` and nothing
else, tests pass counters.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from privacy.crypto import KEY_BYTES, Keystream

Entropy: TypeAlias = Callable[[int], bytes]


def system_entropy(count: int) -> bytes:
    """`count` fresh bytes of the operating system's generator."""
    return os.urandom(count)


class RandomStream:
    """Uniform bits from AES-256-CTR under one fresh key that is never stored.

    It cannot be copied, pickled or carried over a fork: two processes that continued
    one stream would add the same noise to different vectors.

    Args:
        entropy: where the key comes from.
    """

    __slots__ = ("_keystream", "_process")

    def __init__(self, entropy: Entropy) -> None:
        self._keystream = Keystream(entropy(KEY_BYTES))
        self._process = os.getpid()

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            RuntimeError: the process has forked since the stream was made.
        """
        if os.getpid() != self._process:
            msg = "a random stream does not survive a fork: make a new one"
            raise RuntimeError(msg)
        return self._keystream.read(count)

    def uint64(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words, shape (count,), uniform below 2**64."""
        return np.frombuffer(self.bytes(8 * count), dtype="<u8").astype(np.uint64)

    def __reduce__(self) -> str | tuple[object, ...]:
        """Refuse to be copied or pickled."""
        msg = "a random stream must not be copied"
        raise TypeError(msg)
