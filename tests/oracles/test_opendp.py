"""Our sampler against OpenDP's, which is exact and scalar.

Its randomness is the system's, so that the draws are new in every run: all these
tests together reject a right sampler in fewer than one run in ten million.
"""

import math

import numpy as np
import pytest
from scipy.stats import chi2

from privacy.noise import discrete_gaussian
from privacy.randomness import RandomStream

dp = pytest.importorskip("opendp.prelude")

FALSE_ALARM = 1e-8
COUNT = 20_000


def theirs(variance):
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=int)
    mechanism = dp.m.make_gaussian(*space, scale=float(np.sqrt(variance)))
    return np.array(mechanism([0] * COUNT))


def same_law_rejected(first, second):
    """Two-sample chi-square over bins that hold at least 100 of the pooled draws."""
    pooled = np.sort(np.concatenate([first, second]))
    edges = np.unique(pooled[:: max(1, pooled.size // 40)])
    counts = [np.bincount(np.searchsorted(edges, x, "right")) for x in (first, second)]
    size = max(map(len, counts))
    a, b = (np.pad(count, (0, size - len(count))) for count in counts)
    kept = a + b >= 100
    statistic = np.sum((a[kept] - b[kept]) ** 2 / (a + b)[kept])
    return not statistic <= chi2.isf(FALSE_ALARM, kept.sum())


@pytest.mark.parametrize("variance", [1, 4, 10, 100, 10**6, 2**40])
def test_our_draws_and_opendps_are_of_one_law(variance):
    reference = theirs(variance)
    ours = discrete_gaussian(RandomStream(bytes), variance, COUNT)
    assert not same_law_rejected(ours, reference)
    # The test can fail: it sees half as much again of variance.
    wider = discrete_gaussian(RandomStream(bytes), math.ceil(1.5 * variance), COUNT)
    assert same_law_rejected(wider, reference)
