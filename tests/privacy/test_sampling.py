"""The Poisson draw, and the randomness of one unit.

Statistical tests reject a right draw with probability 1e-6. Their streams are fixed, so
a pass stays a pass and no run raises a false alarm.
"""

import hmac
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chi2, norm

from privacy.crypto import Label, framed
from privacy.errors import RefusalError
from privacy.randomness import RandomStream
from privacy.sampling import poisson_draw, uniforms, unit_stream

FALSE_ALARM = 1e-6


class GivenWords:
    """Stands in for a stream, with words that the test chooses."""

    def __init__(self, *words):
        self.words = words

    def uint64(self, count):
        assert count == len(self.words)
        return np.array(self.words, dtype=np.uint64)


def stream(number=0):
    return RandomStream(lambda count: number.to_bytes(count, "big"))


@given(st.fractions(min_value=Fraction(1, 2**64), max_value=1))
def test_a_unit_is_drawn_just_when_its_word_is_below_the_threshold(rate):
    threshold = math.floor(rate * 2**64)
    words = [0, threshold - 1, min(threshold, 2**64 - 1), 2**64 - 1]
    drawn = poisson_draw(["a", "b", "c", "d"], rate, GivenWords(*words))
    assert drawn == (["a", "b"] if rate < 1 else ["a", "b", "c", "d"])


EXTREME_RATES = [
    Fraction(1, 2**64),
    Fraction(1, 2**40),
    Fraction(1, 3),
    Fraction(2, 3),
    1 - Fraction(1, 2**60),
    1 - Fraction(1, 2**64),
]


@pytest.mark.parametrize("rate", EXTREME_RATES)
def test_the_words_that_draw_a_unit_are_as_many_as_the_rate_says(rate):
    """Of the 2**64 words; the probability is their number, floor(rate * 2**64)."""
    share = rate.numerator * 2**64 // rate.denominator
    assert poisson_draw(["a", "b"], rate, GivenWords(share - 1, share)) == ["a"]
    # Never more than registered, and less by under 2**-64.
    assert 0 <= rate - Fraction(share, 2**64) < Fraction(1, 2**64)


class KnownTopBits:
    """Uniform words, given that their top bits are all zeros or all ones."""

    def __init__(self, source, bits, *, ones):
        self.source, self.bits, self.ones = source, bits, ones

    def uint64(self, count):
        words = self.source.uint64(count) >> np.uint64(self.bits)
        return ~words if self.ones else words


@pytest.mark.parametrize(
    ("rate", "bits", "ones", "given"),
    [
        # Of the words below 2**-32 one in 2**8 is below 2**-40.
        (Fraction(1, 2**40), 32, False, Fraction(1, 2**8)),
        # Of the words above 1 - 2**-52 one in 2**8 is above 1 - 2**-60.
        (1 - Fraction(1, 2**60), 52, True, 1 - Fraction(1, 2**8)),
    ],
)
def test_extreme_rates_are_met_where_words_come_near_them(rate, bits, ones, given):
    """As doubles the two rates are 2**-40 and 1, and the second would draw all."""
    units = [str(index) for index in range(200_000)]
    source = KnownTopBits(stream(), bits, ones=ones)
    size = len(poisson_draw(units, rate, source))
    law = binom(len(units), float(given))
    assert law.ppf(FALSE_ALARM / 2) <= size <= law.isf(FALSE_ALARM / 2)


def test_rate_one_draws_everything_in_order():
    units = [f"unit-{index}" for index in range(100)]
    assert poisson_draw(units, Fraction(1), stream()) == units


def test_a_rate_below_the_resolution_of_a_word_draws_nothing():
    assert poisson_draw(["a"], Fraction(1, 2**65), GivenWords(0)) == []


def test_no_units_draw_an_empty_draw():
    assert poisson_draw([], Fraction(1, 2), stream()) == []


@pytest.mark.parametrize("rate", [Fraction(1, 3), Fraction(1, 10), Fraction(1, 500)])
def test_the_draw_size_is_binomial(rate):
    units = [str(index) for index in range(200_000)]
    size = len(poisson_draw(units, rate, stream()))
    law = binom(len(units), float(rate))
    assert law.ppf(FALSE_ALARM / 2) <= size <= law.isf(FALSE_ALARM / 2)


def test_the_test_of_the_draw_size_would_see_a_rate_ten_percent_off():
    units = [str(index) for index in range(200_000)]
    size = len(poisson_draw(units, Fraction(11, 100), stream()))
    assert size > binom(len(units), 0.1).isf(FALSE_ALARM / 2)


def test_two_units_are_drawn_independently():
    together = sum(
        len(poisson_draw(["a", "b"], Fraction(1, 2), stream(number))) == 2
        for number in range(4000)
    )
    law = binom(4000, 0.25)
    assert law.ppf(FALSE_ALARM / 2) <= together <= law.isf(FALSE_ALARM / 2)


UNITS = tuple("abcdefgh")


def patterns(draw, rounds=20_000):
    """How often each of the 2**8 subsets was drawn, by one stream after another."""
    source = stream()
    powers = {unit: 2**place for place, unit in enumerate(UNITS)}
    found = [sum(powers[unit] for unit in draw(source)) for _ in range(rounds)]
    return np.bincount(found, minlength=2 ** len(UNITS))


def independence_rejected(counts, rate):
    """Chi-square of the subsets against the product of the units' own laws."""
    sizes = np.array([bin(subset).count("1") for subset in range(counts.size)])
    expected = counts.sum() * rate**sizes * (1 - rate) ** (len(UNITS) - sizes)
    # What is too rare for a bin of its own joins the next.
    order = np.argsort(-expected)
    bins = np.minimum(np.arange(counts.size), np.sum(expected >= 20) - 1)
    observed = np.bincount(bins, counts[order])
    expected = np.bincount(bins, expected[order])
    statistic = np.sum((observed - expected) ** 2 / expected)
    return not statistic <= chi2.isf(FALSE_ALARM, expected.size - 1)


@pytest.mark.parametrize("rate", [Fraction(1, 3), Fraction(1, 2)])
def test_every_subset_of_the_units_has_its_own_probability(rate):
    counts = patterns(lambda source: poisson_draw(UNITS, rate, source))
    assert not independence_rejected(counts, float(rate))


def test_dependent_draws_of_the_right_rate_would_be_seen():
    def fixed_size(source):
        """Always half of the units: each has rate 1/2 all the same."""
        order = np.argsort(source.uint64(len(UNITS)))
        return [UNITS[index] for index in order[:4]]

    def pairs(source):
        """One word for two neighbours."""
        words = np.repeat(source.uint64(4), 2)
        return poisson_draw(UNITS, Fraction(1, 2), GivenWords(*words.tolist()))

    for wrong in (fixed_size, pairs):
        assert independence_rejected(patterns(wrong), 0.5)


def test_draws_of_consecutive_rounds_are_unrelated():
    source, rate = stream(), Fraction(1, 3)
    drawn = np.array(
        [
            np.isin(UNITS, poisson_draw(UNITS, rate, source)).astype(float)
            for _ in range(10_000)
        ]
    )
    centred = (drawn - 1 / 3) / math.sqrt(2 / 9)
    # Every unit of one round with every unit of the next: 64 products.
    products = centred[1:].T @ centred[:-1] / math.sqrt(len(centred) - 1)
    assert np.abs(products).max() < norm.isf(FALSE_ALARM / 2 / products.size)


def test_a_unit_more_at_the_end_changes_no_other_units_draw():
    units = [str(index) for index in range(500)]
    rate = Fraction(1, 5)
    drawn = poisson_draw(units, rate, stream())
    with_one_more = poisson_draw([*units, "more"], rate, stream())
    assert [unit for unit in with_one_more if unit != "more"] == drawn


@pytest.mark.parametrize("rate", [Fraction(0), Fraction(-1, 2), Fraction(11, 10)])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(RefusalError, match="sampling rate"):
        poisson_draw(["a"], rate, stream())


def test_a_unit_listed_twice_is_refused_without_naming_it():
    with pytest.raises(RefusalError, match="listed twice") as caught:
        poisson_draw(["secret", "secret"], Fraction(1, 2), stream())
    assert "secret" not in str(caught.value)


def test_a_unit_stream_is_an_hmac_of_the_unit_under_the_round_key():
    key = bytes(range(32))
    expected = hmac.digest(key, framed(Label.UNIT_STREAM, b"patient-7"), "sha256")
    assert unit_stream(key, "patient-7") == expected


def test_unit_streams_differ_by_unit_and_by_round():
    one, other = bytes(32), bytes([1] * 32)
    streams = {unit_stream(key, unit) for key in (one, other) for unit in ("a", "b")}
    assert len(streams) == 4


def test_a_short_round_key_is_a_bug():
    with pytest.raises(ValueError, match="32 bytes"):
        unit_stream(bytes(16), "a")


def test_uniforms_are_53_bit_numbers_in_the_unit_interval():
    numbers = uniforms(bytes(32), 100_000)
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.array_equal(numbers * 2.0**53, np.floor(numbers * 2.0**53))
    # The mean has standard deviation sqrt(1 / 12 / count).
    limit = norm.isf(FALSE_ALARM / 2) * math.sqrt(1 / 12 / numbers.size)
    assert abs(numbers.mean() - 0.5) < limit


def test_uniforms_of_one_key_do_not_depend_on_how_many_are_asked_for():
    assert np.array_equal(uniforms(bytes(32), 10), uniforms(bytes(32), 1000)[:10])


def test_uniforms_of_two_units_differ():
    key = bytes(32)
    first, second = (uniforms(unit_stream(key, unit), 8) for unit in ("a", "b"))
    assert not np.any(first == second)
