"""Which units a round draws, and the randomness that belongs to one unit alone.

Both rest on exact integers: a unit is drawn when a uniform 64-bit word falls below a
threshold that an exact rational fixes, never when a float falls below another.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from privacy.crypto import KEY_BYTES, Keystream, Label, hmac_sha256
from privacy.errors import RefusalError
from privacy.randomness import RandomStream
from privacy.vectors import FloatVector

_WORD_BITS = 64
# A double holds 53 bits exactly; the low bits of the word are not used.
_UNUSED_BITS = 11


def poisson_draw(
    unit_ids: Sequence[str], rate: Fraction, stream: RandomStream
) -> list[str]:
    """Draw each unit on its own, with probability `rate`.

    The threshold is floor(rate * 2**64), so no unit is drawn with more than the
    registered probability. The draw is never truncated: what does not fit into one
    batch of the device runs in more batches. An empty draw is a draw.

    Args:
        unit_ids: the client's units, each once.
        rate: 0 < rate <= 1, the plan's sampling rate.
        stream: fresh, secret randomness; one word per unit is taken.

    Returns:
        The drawn units, in the order given.

    Raises:
        RefusalError: the rate is not in (0, 1], or a unit is listed twice.

    Guarantee:
        Whether one unit is drawn does not depend on which other units exist, beyond
        its own position in the list.

    Source: Mironov, Talwar and Zhang, arXiv 1908.10530, section 2 (Poisson sampling).
    """
    if not 0 < rate <= 1:
        msg = "the sampling rate is not in (0, 1]: register one that is"
        raise RefusalError(msg)
    if len(set(unit_ids)) != len(unit_ids):
        # Two entries of one unit would be two chances to be drawn.
        msg = "a unit is listed twice: merge what belongs to one unit before drawing"
        raise RefusalError(msg)
    words = stream.uint64(len(unit_ids))
    if rate == 1:
        return list(unit_ids)
    threshold = np.uint64(rate.numerator * 2**_WORD_BITS // rate.denominator)
    return [unit_ids[index] for index in np.flatnonzero(words < threshold).tolist()]


def unit_stream(round_key: bytes, unit_id: str) -> bytes:
    """The key of one unit's own randomness in one round.

    A stream that the units shared would be reshuffled by one unit more or less, and
    every other unit's completions with it.

    Args:
        round_key: 32 secret bytes, fresh for the round.
        unit_id: the unit.

    Returns:
        32 bytes.

    Guarantee:
        The key depends on the round key and the unit, and on no other unit.
    """
    if len(round_key) != KEY_BYTES:
        msg = f"a round key has {KEY_BYTES} bytes, got {len(round_key)}"
        raise ValueError(msg)
    return hmac_sha256(round_key, Label.UNIT_STREAM, unit_id.encode("utf-8"))


def uniforms(key: bytes, count: int) -> FloatVector:
    """The first `count` uniform numbers of a unit's stream, for its rollouts.

    These choose tokens and decide nothing of the guarantee, which is why they may be
    floats.

    Args:
        key: 32 bytes from `unit_stream`.
        count: how many.

    Returns:
        Shape (count,), float64, multiples of 2**-53 in [0, 1).
    """
    words = np.frombuffer(Keystream(key).read(8 * count), dtype="<u8")
    return (words >> np.uint64(_UNUSED_BITS)).astype(np.float64) * 2.0**-53
