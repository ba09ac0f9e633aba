"""The two theorems of docs/privacy.md against exact enumeration.

Small widths make the discrete Gaussian as unlike the continuous one as it gets, and
let its whole law be summed.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from mpmath import mp
from scipy.special import log_ndtr, ndtr

from privacy.events import Event, combined_multiplier, transferred_multiplier
from privacy.renyi import rdp_curve

REACH = 60
ORDERS = (2, 3, 5, 16)


def enumerated(shift, variance):
    """The noise on a grid of one or two dimensions, unshifted and shifted.

    Returns:
        Two log-probability vectors over the same points.
    """
    line = np.arange(-REACH, REACH + 1, dtype=float)
    log_mass = []
    for entry in shift:
        logs = [-((line - centre) ** 2) / (2 * variance) for centre in (0, entry)]
        log_mass.append([log - np.log(np.exp(log).sum()) for log in logs])
    if len(shift) == 1:
        return log_mass[0]
    (p, q), (r, s) = log_mass
    return [np.add.outer(p, r).ravel(), np.add.outer(q, s).ravel()]


def mixture(absent, present, rate):
    return np.logaddexp(math.log1p(-rate) + absent, math.log(rate) + present)


def renyi(numerator, denominator, order):
    logs = order * numerator - (order - 1) * denominator
    return np.logaddexp.reduce(logs) / (order - 1)


@pytest.mark.parametrize("shift", [(1,), (3,), (1, 1), (2, -1)])
@pytest.mark.parametrize("variance", [0.16, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("rate", ["1/100", "1/10", "1/2"])
def test_theorem_1_holds_exactly_at_integer_orders(shift, variance, rate):
    absent, present = enumerated(shift, variance)
    mixed = mixture(absent, present, float(Fraction(rate)))
    norm = math.sqrt(sum(entry**2 for entry in shift))
    curve = rdp_curve(Event(Fraction(rate), math.sqrt(variance) / norm))
    for order in ORDERS:
        # The formula is met in one direction and not passed in the other. Beyond the
        # reach of the grid the sums would be cut short.
        if order * max(map(abs, shift)) > REACH - 8 * math.sqrt(variance):
            continue
        stated = curve[order - 2]
        assert renyi(mixed, absent, order) == pytest.approx(stated, rel=1e-9)
        assert renyi(absent, mixed, order) <= stated * (1 + 1e-9)


@pytest.mark.parametrize(
    ("shift", "variance", "statistic_shift", "statistic_variance"),
    [(1, 1.0, 1, 25.0), (3, 4.0, -1, 4.0), (2, 0.5, 1, 1.0)],
)
@pytest.mark.parametrize("rate", ["1/100", "1/2"])
def test_two_releases_on_one_draw_have_the_divergence_of_their_one_event(
    shift, variance, statistic_shift, statistic_variance, rate
):
    first = enumerated((shift,), variance)
    second = enumerated((statistic_shift,), statistic_variance)
    absent, present = (
        np.add.outer(*pair).ravel() for pair in zip(first, second, strict=True)
    )
    mixed = mixture(absent, present, float(Fraction(rate)))
    multiplier = combined_multiplier(
        math.sqrt(variance) / shift, math.sqrt(statistic_variance) / statistic_shift
    )
    curve = rdp_curve(Event(Fraction(rate), multiplier))
    for order in ORDERS[:3]:
        stated = curve[order - 2]
        assert renyi(mixed, absent, order) == pytest.approx(stated, rel=1e-9)
        assert renyi(absent, mixed, order) <= stated * (1 + 1e-9)
        # As two draws they would seem to cost less: one draw holds both or neither.
        apart = sum(
            renyi(mixture(*release, float(Fraction(rate))), release[0], order)
            for release in (first, second)
        )
        assert apart < stated


def test_at_a_fractional_order_the_discrete_noise_leaks_more_than_the_continuous():
    """Why the Renyi accountant takes integer orders alone."""
    order, rate = mp.mpf(5) / 2, mp.mpf(1) / 10
    with mp.workdps(40):

        def ratio(x):
            return 1 - rate + rate * mp.exp(x - mp.mpf(1) / 2)

        normal = mp.sqrt(2 * mp.pi)
        continuous = mp.quad(
            lambda x: ratio(x) ** order * mp.exp(-(x**2) / 2) / normal,
            mp.linspace(-14, 16, 31),
        )
        points = range(-40, 41)
        weights = [mp.exp(-(mp.mpf(k) ** 2) / 2) for k in points]
        discrete = mp.fsum(
            ratio(mp.mpf(k)) ** order * weight
            for k, weight in zip(points, weights, strict=True)
        ) / mp.fsum(weights)
        excess = (mp.log(discrete) - mp.log(continuous)) / (order - 1)
    assert float(excess) == pytest.approx(2.448494e-10, rel=1e-5)


def discrete_delta(variance, shift, rate, epsilon):
    """Of the sampled discrete mechanism, the greater of its two directions."""
    absent, present = enumerated((shift,), variance)
    mixed = mixture(absent, present, rate)
    forwards = np.maximum(0, np.exp(mixed) - np.exp(epsilon + absent)).sum()
    backwards = np.maximum(0, np.exp(absent) - np.exp(epsilon + mixed)).sum()
    return max(forwards, backwards)


def continuous_delta(multiplier, rate, epsilon):
    """Of the sampled Gaussian mechanism, in closed form."""
    deltas = [0.0]

    def threshold(likelihood_ratio):
        return multiplier * math.log(likelihood_ratio) + 1 / (2 * multiplier)

    # Present against absent: outcomes whose mixed ratio is above exp(epsilon).
    above = threshold((math.exp(epsilon) - 1 + rate) / rate)
    deltas.append(
        rate * ndtr(1 / multiplier - above)
        - math.expm1(epsilon) * ndtr(-above)
        - rate * ndtr(-above)
    )
    # Absent against present: outcomes whose mixed ratio is below exp(-epsilon).
    least = math.exp(-epsilon) - 1 + rate
    if least > 0:
        below = threshold(least / rate)
        log_mixed = np.logaddexp(
            math.log1p(-rate) + log_ndtr(below),
            math.log(rate) + log_ndtr(below - 1 / multiplier),
        )
        deltas.append(ndtr(below) - math.exp(epsilon + log_mixed))
    return max(deltas)


def test_at_the_same_width_the_discrete_noise_can_have_the_larger_delta():
    """Why the claim is not made at z = sigma / D."""
    assert discrete_delta(16, 4, 0.1, 1.0) == pytest.approx(2.128e-4, rel=1e-3)
    assert continuous_delta(1.0, 0.1, 1.0) == pytest.approx(2.071e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("variance", "shift", "rate", "epsilon"),
    itertools.product((9, 16, 50), (1, 4), (0.01, 0.1, 0.5), (0.3, 1.0)),
)
def test_theorem_2_bounds_the_discrete_noise_by_a_narrower_continuous_one(
    variance, shift, rate, epsilon
):
    transferred = transferred_multiplier(variance, shift)
    discrete = discrete_delta(variance, shift, rate, epsilon)
    assert discrete <= continuous_delta(transferred, rate, epsilon) + 1e-14


def test_rounding_at_width_two_turns_continuous_noise_into_the_discrete_one():
    """The kernel of Theorem 2, integrated: no probability is off by 1e-12."""
    variance, tau_squared = 16.0, 4.0
    inner = variance - tau_squared
    points = np.linspace(-60, 60, 4801)
    density = np.exp(-(points**2) / (2 * inner)) / math.sqrt(2 * math.pi * inner)
    line = np.arange(-40, 41)
    kernel = np.exp(-((line - points[:, np.newaxis]) ** 2) / (2 * tau_squared))
    far = np.arange(-90, 91)
    normaliser = np.zeros_like(points)
    for value in far:
        normaliser += np.exp(-((value - points) ** 2) / (2 * tau_squared))
    step = points[1] - points[0]
    rounded = (density / normaliser) @ kernel * step
    expected = np.exp(-(line**2) / (2 * variance))
    expected /= np.exp(-(far**2) / (2 * variance)).sum()
    middle = np.abs(line) <= 16
    assert np.allclose(rounded[middle], expected[middle], rtol=1e-12, atol=0)


def test_the_slack_of_the_transfer_is_negligible_at_every_size():
    """Rounds * parameters * eta, with eta as in Theorem 2, stays below 1e-12."""
    with mp.workdps(60):

        def tail(width):
            return 2 * mp.exp(-2 * mp.pi**2 * mp.mpf(width) ** 2)

        eta = -mp.log(1 - tail(2)) + mp.log(1 + tail(4))
        assert float(eta) == pytest.approx(1.03e-34, rel=0.01)
        assert 2 * 10**4 * 10**7 * eta < mp.mpf(10) ** -22
