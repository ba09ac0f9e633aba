"""The bounds against other ways of computing them, and by how much chance moves them.

The chances are exact: sums over both binomial counts of errors, and no experiments.
"""

from functools import cache

import numpy as np
import pytest
from mpmath import mp
from scipy.stats import binom, binomtest, norm

from audits.bounds import (
    FALSE_ALARM,
    AuditResult,
    epsilon_of_mu,
    largest_bound,
    lower_bound,
    mu_of_epsilon,
    sound_bound,
)

DELTA = 1e-5


def guesses(false_positives, false_negatives, trials):
    """Scores and who was there, `trials` of each kind."""
    there = np.repeat([True, False], trials)
    scores = there.astype(float)
    scores[:false_negatives] = 0.0
    scores[trials : trials + false_positives] = 1.0
    return scores, there


@cache
def mu_of_bounds(claim, scores):
    """Each mu that may bound a Gaussian mechanism of this claim, and its chance."""
    trials = scores // 2
    rate = norm.sf(mu_of_epsilon(claim, DELTA) / 2)
    spread = 7 * np.sqrt(trials * rate * (1 - rate)) + 10
    low, high = max(0, int(trials * rate - spread)), int(trials * rate + spread)
    errors = np.arange(low, min(high, trials) + 1)
    upper = [
        binomtest(int(count), trials).proportion_ci(0.95, "exact").high
        for count in errors
    ]
    chance, part = binom.pmf(errors, trials, rate), norm.isf(upper)
    return part[:, None] + part, chance[:, None] * chance


def chance_below(mark, claim, scores):
    """How often such a mechanism is bounded below a mark."""
    mu, chance = mu_of_bounds(claim, scores)
    return float(chance[mu < mu_of_epsilon(mark, DELTA)].sum())


def test_gaussian_privacy_has_its_known_epsilon():
    # The analytic Gaussian mechanism at sigma = 3.73063 (Balle and Wang 2018).
    assert epsilon_of_mu(1 / 3.73063, DELTA) == pytest.approx(1.0, abs=1e-4)
    assert epsilon_of_mu(1e-9, DELTA) == 0.0
    assert epsilon_of_mu(-1.0, DELTA) == 0.0


@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0, 9.0, 20.0, 40.0])
def test_epsilon_and_mu_agree_with_many_digits_however_large_they_are(mu):
    epsilon = epsilon_of_mu(mu, DELTA)
    with mp.workdps(500):
        left = mp.ncdf(mp.mpf(mu) / 2 - mp.mpf(epsilon) / mu)
        right = mp.exp(epsilon) * mp.ncdf(-mp.mpf(mu) / 2 - mp.mpf(epsilon) / mu)
        assert float(left - right) == pytest.approx(DELTA, rel=1e-6)
    assert mu_of_epsilon(epsilon, DELTA) == pytest.approx(mu, rel=1e-9)


def test_guesses_no_better_than_chance_bound_nothing():
    assert lower_bound(*guesses(2500, 2500, 5000), DELTA) == 0.0
    assert lower_bound(*guesses(5000, 5000, 5000), DELTA) == 0.0


def test_both_rates_of_error_share_five_per_cent_of_doubt():
    # The two-sided interval at 95% leaves 2.5% above it.
    positive, negative = (
        binomtest(errors, 1000).proportion_ci(0.95, "exact").high
        for errors in (300, 200)
    )
    mu = norm.isf(positive) + norm.isf(negative)
    bound = lower_bound(*guesses(300, 200, 1000), DELTA)
    assert bound == pytest.approx(epsilon_of_mu(mu, DELTA), rel=1e-9)


@pytest.mark.parametrize(
    ("scores", "bound"), [(2500, 37.91), (10_000, 46.58), (1_000_000, 73.68)]
)
def test_perfect_guesses_bound_as_much_as_their_number_allows(scores, bound):
    # No error in n trials leaves 1 - 0.025 ** (1 / n) as the upper end of its rate.
    rate = 1 - 0.025 ** (2 / scores)
    assert epsilon_of_mu(2 * norm.isf(rate), DELTA) == pytest.approx(bound, abs=0.01)
    perfect = lower_bound(*guesses(0, 0, scores // 2), DELTA)
    assert perfect == largest_bound(scores, DELTA) == pytest.approx(bound, abs=0.01)


def test_scores_that_are_too_few_can_show_nothing():
    assert largest_bound(1, DELTA) == largest_bound(2, DELTA) == 0.0


@pytest.mark.parametrize("scores", [2500, 10_000])
@pytest.mark.parametrize("claim", [1.0, 8.0])
def test_a_sound_mechanism_passes_its_claim_in_three_of_a_thousand_attacks(
    claim, scores
):
    assert 0.0015 < 1 - chance_below(claim, claim, scores) < 0.003


@pytest.mark.parametrize(
    ("claim", "scores"),
    [(1.0, 10_000), (8.0, 2500), (8.0, 10_000), (30.0, 2500)],
)
def test_a_sound_mechanism_shows_less_than_its_mark_as_rarely_as_is_said(claim, scores):
    mark = sound_bound(claim, DELTA, scores)
    assert 0.2 * FALSE_ALARM < chance_below(mark - 1e-6, claim, scores) <= FALSE_ALARM
    assert chance_below(mark + 0.05, claim, scores) > FALSE_ALARM


def test_a_result_says_what_it_refutes_and_where_it_is_weak():
    assert AuditResult(8.0, 8.1, DELTA, 10_000).refuted
    assert not AuditResult(8.0, 7.9, DELTA, 10_000).refuted
    assert AuditResult(8.0, 5.5, DELTA, 10_000).weak
    assert not AuditResult(8.0, 5.7, DELTA, 10_000).weak


def test_a_result_is_weak_below_a_part_of_the_claim_or_what_its_scores_can_show():
    assert AuditResult(8.0, 0.0, DELTA, 10_000).weak_below == 0.7 * 8.0
    assert AuditResult(8.0, 0.0, DELTA, 2500).weak_below == 0.7 * 8.0
    small = AuditResult(1.0, 0.4, DELTA, 10_000)
    assert small.weak_below == sound_bound(1.0, DELTA, 10_000)
    assert 0.4 < small.weak_below < 0.5
    assert small.weak
    # Nothing is what a sound mechanism shows too, with scores so few.
    nothing = AuditResult(1.0, 0.0, DELTA, 2500)
    assert nothing.weak_below == 0.0
    assert not nothing.weak
