"""The sampler's law, its exact fallback, and the size of a share.

Statistical tests reject a right sampler with probability 1e-6. Their streams are
fixed, so a pass stays a pass and no run raises a false alarm; each is shown to reject
a planted fault.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from scipy.stats import binom, chi2, norm

from privacy import noise
from privacy.noise import discrete_gaussian
from privacy.plan import MIN_NOISE_SHARE_STD, ClientTerms, Plan, Weighting
from privacy.randomness import RandomStream

FALSE_ALARM = 1e-6


def stream(number=0):
    return RandomStream(lambda count: number.to_bytes(count, "big"))


class GivenBytes:
    """Stands in for a stream, with bytes that the test chooses."""

    def __init__(self, data):
        self.data = data

    def bytes(self, count):
        piece, self.data = self.data[:count], self.data[count:]
        assert len(piece) == count
        return piece

    def uint64(self, count):
        return np.frombuffer(self.bytes(8 * count), "<u8").astype(np.uint64)


def probabilities(variance, reach):
    """Of N_Z(0, variance) at -reach .. reach, from 40 digits."""
    with mp.workdps(40):
        half = [mp.exp(-mp.mpf(k * k) / (2 * variance)) for k in range(reach + 1)]
        total = half[0] + 2 * mp.fsum(half[1:])
        right = [float(weight / total) for weight in half]
    return np.arange(-reach, reach + 1), np.array(right[:0:-1] + right)


def chi_square_rejects(draws, variance):
    """Whether the draws fail a chi-square test against N_Z(0, variance)."""
    values, expected = probabilities(variance, math.ceil(12 * math.sqrt(variance)))
    expected = expected * draws.size
    kept = expected >= 10
    observed = np.array([np.sum(draws == value) for value in values[kept]])
    rest, rest_expected = draws.size - observed.sum(), expected[~kept].sum()
    statistic = np.sum((observed - expected[kept]) ** 2 / expected[kept])
    statistic += (rest - rest_expected) ** 2 / rest_expected
    return not statistic <= chi2.isf(FALSE_ALARM, kept.sum())


def exact_moments(variance):
    """The moments 0 to 8 of N_Z(0, variance) / sigma.

    From a variance of 100 on they differ from those of the Gaussian by less than
    exp(-1900).
    """
    if variance >= 100:
        return [1, 0, 1, 0, 3, 0, 15, 0, 105]
    values, law = probabilities(variance, math.ceil(15 * math.sqrt(variance)))
    return [np.sum((values / math.sqrt(variance)) ** k * law) for k in range(9)]


def moments_reject(draws, variance):
    """Whether one of the first four moments is off."""
    standard = draws / math.sqrt(variance)
    moments = exact_moments(variance)
    deviations = [
        (np.mean(standard**k) - moments[k])
        / math.sqrt((moments[2 * k] - moments[k] ** 2) / draws.size)
        for k in range(1, 5)
    ]
    return not np.abs(deviations).max() <= norm.isf(FALSE_ALARM / 8)


def bins_reject(draws, variance, bins=256):
    """Chi-square over bins of nearly equal probability, for wide noise.

    The cumulative law is the Gaussian's half a step further on; between steps it is
    off by less than 1 / variance.
    """
    sigma = math.sqrt(variance)
    edges = np.unique(np.floor(sigma * norm.ppf(np.arange(1, bins) / bins)))
    expected = np.diff(norm.cdf((edges + 0.5) / sigma), prepend=0, append=1)
    observed = np.bincount(np.searchsorted(edges, draws), minlength=edges.size + 1)
    statistic = np.sum((observed - draws.size * expected) ** 2 / expected) / draws.size
    return not statistic <= chi2.isf(FALSE_ALARM, edges.size)


def binomial_rejects(heads, trials, probability):
    """Whether so many heads are out of the law, two-sided."""
    law = binom(trials, probability)
    return not law.ppf(FALSE_ALARM / 2) <= heads <= law.isf(FALSE_ALARM / 2)


def test_the_reference_law_has_its_known_values():
    values, quarter = probabilities(0.25, 20)
    assert quarter[20] == pytest.approx(0.786570707, abs=1e-9)
    assert np.sum(values**2 * quarter) == pytest.approx(0.215012675, abs=1e-9)
    assert probabilities(1, 20)[1][20] == pytest.approx(0.398942278, abs=1e-9)


@pytest.mark.parametrize("variance", [1, 2, 3, 4, 7, 10, 16, 100, 1000])
def test_the_law_is_the_discrete_gaussian(variance):
    draws = discrete_gaussian(stream(), variance, 2**18)
    assert not chi_square_rejects(draws, variance)
    assert not moments_reject(draws, variance)


@pytest.mark.parametrize(
    "variance", [2**12, 10**6, 2**20, 2**30 + 12345, 2**40, 2**43, 2**52]
)
def test_wide_noise_has_the_bins_and_the_moments_of_the_gaussian(variance):
    draws = discrete_gaussian(stream(), variance, 2**18)
    assert not bins_reject(draws, variance)
    assert not moments_reject(draws, variance)


@pytest.mark.parametrize("variance", [10**6, 2**40])
def test_a_law_of_the_right_moments_and_the_wrong_shape_would_be_seen(variance):
    """Two thirds at 0 and a sixth at each of sqrt(3) sigma: moments to the fifth."""
    reach = math.isqrt(3 * variance)
    dice = stream().uint64(2**18) % np.uint64(6)
    draws = np.select([dice == 0, dice == 1], [-reach, reach], 0)
    assert not moments_reject(draws, variance)
    assert bins_reject(draws, variance)
    assert bins_reject(
        discrete_gaussian(stream(), variance * 21 // 20, 2**18), variance
    )


@pytest.mark.parametrize("variance", [2, 16, 2**30])
def test_half_the_variance_would_be_seen(variance):
    draws = discrete_gaussian(stream(), variance // 2, 2**18)
    seen = chi_square_rejects if variance < 100 else bins_reject
    assert seen(draws, variance)
    assert moments_reject(draws, variance)


def test_five_percent_of_variance_would_be_seen():
    assert moments_reject(discrete_gaussian(stream(), 950_000, 2**18), 1_000_000)


def test_a_zero_counted_with_both_signs_would_be_seen():
    draws = discrete_gaussian(stream(), 16, 2**18)
    doubled = np.concatenate([draws, draws[draws == 0]])
    assert chi_square_rejects(doubled, 16)


def test_rounded_continuous_noise_would_be_seen():
    first, second = (stream(k).uint64(2**18) / 2.0**64 for k in (1, 2))
    continuous = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * math.pi * second)
    assert chi_square_rejects(np.rint(continuous).astype(np.int64), 1)


def test_signs_are_fair_and_neighbours_are_unrelated():
    draws = discrete_gaussian(stream(), 2**30, 2**18).astype(float)
    limit = norm.isf(FALSE_ALARM / 2) * math.sqrt(draws.size)
    assert abs(np.sign(draws).sum()) < limit
    for lag in (1, 2, 1000):
        product = draws[lag:] * draws[:-lag] / 2**30
        assert abs(product.sum()) < limit


def test_the_exact_path_decides_every_coin_as_the_fast_one_does(monkeypatch):
    """With this margin every coin goes through the integer comparison."""
    fast = [discrete_gaussian(stream(), variance, 400) for variance in (1, 50, 2**40)]
    calls = []
    compare = noise._compare_exp
    monkeypatch.setattr(noise, "_MARGIN", 2.0)
    monkeypatch.setattr(
        noise, "_compare_exp", lambda *given: calls.append(0) or compare(*given)
    )
    exact = [discrete_gaussian(stream(), variance, 400) for variance in (1, 50, 2**40)]
    assert len(calls) > 2400
    assert all(np.array_equal(*pair) for pair in zip(fast, exact, strict=True))


@pytest.mark.parametrize("variance", [1, 4, 50])
def test_the_law_holds_where_further_bits_decide_every_coin(monkeypatch, variance):
    """A coin of two bits straddles its threshold, so that the second stream decides."""
    calls = []
    extend = noise._extend
    monkeypatch.setattr(noise, "_COIN_BITS", 2)
    monkeypatch.setattr(noise, "_MARGIN", 2.0)
    monkeypatch.setattr(
        noise, "_extend", lambda *given: calls.append(0) or extend(*given)
    )
    draws = discrete_gaussian(stream(), variance, 2**13)
    assert len(calls) > 2 * draws.size
    assert not chi_square_rejects(draws, variance)
    assert not moments_reject(draws, variance)
    # Further bits that are always the same would be seen.
    monkeypatch.setattr(
        noise, "_extend", lambda prefix, bits, more: (prefix << 64, bits + 64)
    )
    assert chi_square_rejects(discrete_gaussian(stream(), variance, 2**13), variance)


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 3), (22, 7), (10**9 + 7, 10**8)])
def test_coins_that_meet_their_threshold_come_up_as_its_further_bits_say(n, d):
    """Nothing is patched: these words reach the exact path by themselves."""
    with mp.workdps(60):
        scaled = mp.exp(-mp.mpf(n) / d) * 2**53
        first = int(mp.floor(scaled))
        probability = float(scaled - first)
    trials = 4000
    coins = np.full(trials, first << 11, np.uint64)
    heads = noise._bernoulli_exp(
        coins, np.full(trials, n / d), lambda index: (n, d), stream()
    )
    assert not binomial_rejects(heads.sum(), trials, probability)
    assert 0 < heads.sum() < trials


def test_the_arithmetic_of_the_fast_path_errs_less_than_half_its_margin():
    """The bound that the margin rests on, on exponents over their whole range."""
    numerators = [int(word) >> 20 for word in stream().uint64(3000)]
    denominators = [(int(word) >> 24) + 1 for word in stream(1).uint64(3000)]
    computed = np.exp(
        -np.array([a / b for a, b in zip(numerators, denominators, strict=True)])
    )
    with mp.workdps(40):
        for p, a, b in zip(computed, numerators, denominators, strict=True):
            assert abs(mp.exp(-mp.mpf(a) / b) - mp.mpf(float(p))) < 2.0**-49


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 2**60), st.integers(1, 2**60), st.sampled_from([53, 64, 117, 500])
)
def test_the_exact_comparison_agrees_with_multiple_precision(n, d, bits):
    with mp.workdps(300):
        boundary = int(
            mp.floor(mp.exp(-mp.mpf(min(n, 40 * d)) / d) * mp.mpf(2) ** bits)
        )
    n = min(n, 40 * d)
    assert noise._compare_exp(boundary, bits, n, d) is None
    assert noise._compare_exp(boundary + 3, bits, n, d) is False
    if boundary >= 3:
        assert noise._compare_exp(boundary - 3, bits, n, d) is True


def test_a_probability_of_one_needs_no_bits():
    assert noise._compare_exp(2**53 - 1, 53, 0, 7) is True


def test_a_close_call_reads_further_bits_until_it_is_decided():
    with mp.workdps(100):
        digits = int(mp.floor(mp.exp(-1) * mp.mpf(2) ** (53 + 192)))
    prefix = digits >> 192
    # The further bits agree with exp(-1) for two words and then fall on either side.
    agreeing = ((digits >> 64) % 2**128).to_bytes(16, "big")
    last = digits % 2**64
    for word, verdict in [(last - 2**40, True), (last + 2**40, False)]:
        more = GivenBytes(agreeing + (word % 2**64).to_bytes(8, "big"))
        assert noise._is_below_exp(prefix, 53, 1, 1, more) is verdict
        assert more.data == b""


def test_the_geometric_thresholds_are_the_first_64_bits_of_exp():
    assert noise._ASCENDING[0] == 0
    assert noise._ASCENDING.size == 45
    with mp.workdps(50):
        for level, threshold in enumerate(noise._ASCENDING[::-1].tolist(), start=1):
            assert threshold == int(mp.floor(mp.exp(-level) * 2**64))


@pytest.mark.parametrize("level", [1, 2, 10, 43, 44])
def test_a_geometric_word_that_equals_a_threshold_is_decided_by_further_bits(level):
    word = int(noise._ASCENDING[::-1][level - 1])
    one = GivenBytes(word.to_bytes(8, "little"))
    assert noise._geometric(one, GivenBytes(bytes(8)), 1) == [level]
    one = GivenBytes(word.to_bytes(8, "little"))
    assert noise._geometric(one, GivenBytes(b"\xff" * 8), 1) == [level - 1]


@pytest.mark.parametrize("level", [1, 2, 20, 44])
def test_geometric_words_that_equal_a_threshold_are_split_where_it_lies(level):
    trials = 1000
    with mp.workdps(60):
        scaled = mp.exp(-level) * 2**64
        first = int(mp.floor(scaled))
        probability = float(scaled - first)
    words = GivenBytes(first.to_bytes(8, "little") * trials)
    values = noise._geometric(words, stream(level), trials)
    assert set(values.tolist()) == {level - 1, level}
    assert not binomial_rejects(np.sum(values == level), trials, probability)


def test_geometric_words_of_zero_have_the_law_of_the_tail():
    """Given that a uniform real is below 2**-64, V is at least 44."""
    trials = 1000
    values = noise._geometric(GivenBytes(bytes(8 * trials)), stream(), trials)
    with mp.workdps(60):
        least = [min(1.0, float(mp.exp(-k) * 2**64)) for k in range(44, 50)]
    expected = trials * -np.diff([*least, 0.0])
    observed = np.bincount(np.minimum(values, 49) - 44, minlength=6)
    statistic = np.sum((observed - expected) ** 2 / expected)
    assert statistic < chi2.isf(FALSE_ALARM, 5)


def test_a_geometric_value_beyond_the_thresholds_is_exact():
    zero, more = GivenBytes(bytes(8)), GivenBytes(bytes(8) + b"\xff" * 8)
    # The real lies just below 2**-128: between exp(-89) and exp(-88).
    assert noise._geometric(zero, more, 1) == [math.floor(128 * math.log(2))]


def test_geometric_values_have_their_law():
    values = noise._geometric(stream(), stream(1), 2**18)
    expected = 2**18 * np.exp(-np.arange(9.0)) * (1 - math.exp(-1))
    observed = np.bincount(values, minlength=9)[:9]
    statistic = np.sum((observed - expected) ** 2 / expected)
    assert statistic < chi2.isf(FALSE_ALARM, 9)


def test_uniform_integers_drop_the_words_that_would_favour_some():
    top = 2**64 // 3 * 3
    words = GivenBytes(b"".join(w.to_bytes(8, "little") for w in (top - 1, top, 5)))
    assert noise._uniform_below(words, 3, 3).tolist() == [2, 2]
    every = GivenBytes((2**64 - 1).to_bytes(8, "little"))
    assert noise._uniform_below(every, 8, 1).tolist() == [7]


@pytest.mark.parametrize("count", [0, 1, 2, 1000, 2**16 + 1])
def test_exactly_as_many_values_as_asked_for(count):
    draws = discrete_gaussian(stream(), 100, count)
    assert draws.shape == (count,)
    assert draws.dtype == np.int64


def test_two_streams_give_two_vectors():
    first, second = (discrete_gaussian(stream(k), 2**40, 100) for k in (1, 2))
    assert np.count_nonzero(first == second) < 3


def test_one_stream_never_repeats_itself():
    source = stream()
    first, second = (discrete_gaussian(source, 2**40, 100) for _ in range(2))
    assert np.count_nonzero(first == second) < 3


@pytest.mark.parametrize("variance", [0, -1, 2**52 + 1])
def test_a_variance_out_of_range_is_a_bug(variance):
    with pytest.raises(ValueError, match="variance"):
        discrete_gaussian(stream(), variance, 1)


def test_a_negative_count_is_a_bug():
    with pytest.raises(ValueError, match="cannot draw"):
        discrete_gaussian(stream(), 1, -1)


def plan_of(*, min_survivors, colluders, noise_variance=2**30):
    """A plan of four clients; what is not given does not touch the noise."""
    return Plan(
        unit="prompt",
        max_prompts_per_unit=1,
        trust="distributed",
        epsilon="8",
        delta="0.00001",
        rounds=30,
        local_steps=1,
        inner_steps=1,
        clip_norm=Fraction(1),
        norm_bound=2**15,
        noise_variance=noise_variance,
        statistic_norm_bound=0,
        statistic_variance=0,
        modulus_bits=32,
        rotation=False,
        dimension=100,
        min_survivors=min_survivors,
        colluders=colluders,
        clients=tuple(ClientTerms(name, 2000, Fraction(1, 10)) for name in "abcd"),
        weighting=Weighting(
            "uniform", "relative", Fraction(1), Fraction(1, 2), Fraction(3)
        ),
        recipe="0" * 64,
    )


@pytest.mark.parametrize(
    ("survivors", "colluders", "honest"), [(3, 1, 2), (3, 0, 2), (4, 2, 2), (4, 1, 3)]
)
def test_the_sampled_shares_of_the_honest_sum_to_the_registered_noise(
    survivors, colluders, honest
):
    """Fewest survivors, most colluders: the shares that are left suffice, just."""
    plan = plan_of(min_survivors=survivors, colluders=colluders)
    share = plan.noise_share_variance
    left = sum(discrete_gaussian(stream(k), share, 2**17) for k in range(honest))
    assert not moments_reject(left, plan.noise_variance)
    # Shares over all clients, or one colluder forgotten, would be too small.
    for count in {len(plan.clients), honest + 1}:
        smaller = plan.noise_variance // count
        wrong = sum(discrete_gaussian(stream(k), smaller, 2**17) for k in range(honest))
        assert moments_reject(wrong, plan.noise_variance)


def convolved(weights, times):
    result = weights
    for _ in range(times - 1):
        result = np.convolve(result, weights)
    return result


def greatest_log_ratio(variance, shares):
    """Of the sum of shares against the discrete Gaussian of the summed variance."""
    reach = math.ceil(9 * math.sqrt(variance))
    _, one = probabilities(variance, reach)
    total = convolved(one, shares)
    _, law = probabilities(shares * variance, reach * shares)
    middle = np.abs(np.arange(-reach * shares, reach * shares + 1)) <= 4 * math.sqrt(
        shares * variance
    )
    return np.max(np.abs(np.log(total[middle] / law[middle])))


@pytest.mark.parametrize("shares", [2, 3, 6])
def test_shares_of_the_least_width_sum_to_a_discrete_gaussian(shares):
    assert greatest_log_ratio(MIN_NOISE_SHARE_STD**2, shares) < 1e-11
    # Narrow shares do not, which is why they are refused.
    assert greatest_log_ratio(0.5, shares) > 1e-4
