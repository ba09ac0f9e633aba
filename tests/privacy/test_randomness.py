"""Streams that cannot be repeated by accident."""

import copy
import os
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from scipy.stats import chi2

from privacy.crypto import Keystream
from privacy.randomness import RandomStream, system_entropy

FALSE_ALARM = 1e-6


def stream(number=0):
    return RandomStream(lambda count: number.to_bytes(count, "big"))


def test_words_are_the_keystream_read_in_order():
    one, other = stream(), stream()
    words = np.concatenate([one.uint64(3), one.uint64(5)])
    expected = np.frombuffer(Keystream(bytes(32)).read(64), dtype="<u8")
    assert np.array_equal(words, expected)
    assert other.bytes(64) == expected.tobytes()


def test_the_bytes_of_many_words_are_uniform():
    counts = np.bincount(np.frombuffer(stream().bytes(2**20), np.uint8), minlength=256)
    statistic = np.sum((counts - 4096) ** 2 / 4096)
    assert statistic < chi2.isf(FALSE_ALARM, 255)


def test_two_streams_of_the_system_differ():
    first, second = RandomStream(system_entropy), RandomStream(system_entropy)
    assert first.bytes(32) != second.bytes(32)


def test_a_stream_asks_for_one_fresh_key():
    asked = []

    def entropy(count):
        asked.append(count)
        return bytes(count)

    RandomStream(entropy).bytes(1000)
    assert asked == [32]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, ForkingPickler.dumps])
def test_a_stream_cannot_be_copied_or_stored(duplicate):
    with pytest.raises(TypeError, match="must not be copied"):
        duplicate(stream())


def test_a_stream_does_not_survive_a_fork():
    inherited = stream()
    child = os.fork()
    if child == 0:
        try:
            inherited.bytes(8)
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert len(inherited.bytes(8)) == 8
