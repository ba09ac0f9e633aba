from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import MalformedMessageError
from privacy.secagg.shamir import (
    PRIME,
    check_element,
    combine,
    draw_element,
    lagrange_weights,
    split,
)
from tests.privacy.secagg.harness import Counter

secrets = st.integers(0, PRIME - 1).map(lambda value: value.to_bytes(32, "big"))


def is_probable_prime(n):
    """Miller and Rabin's test for the first 12 primes."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        x = pow(base, odd, n)
        if x not in (1, n - 1) and all(
            (x := x * x % n) != n - 1 for _ in range(twos - 1)
        ):
            return False
    return True


def test_the_modulus_is_the_largest_prime_of_256_bits():
    assert is_probable_prime(PRIME)
    assert not any(is_probable_prime(n) for n in range(PRIME + 2, 2**256, 2))


@settings(deadline=None)
@given(secrets, st.data())
def test_any_threshold_of_shares_gives_the_secret_back(secret, data):
    count = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, count))
    chosen = data.draw(st.permutations(range(1, count + 1)))[:threshold]
    shares = split(secret, threshold, count, Counter("split"))
    assert combine({x: shares[x - 1] for x in chosen}) == secret


def test_every_quorum_of_a_small_roster_gives_the_secret_back():
    secret = draw_element(Counter("secret"))
    shares = split(secret, 3, 5, Counter("split"))
    for chosen in combinations(range(1, 6), 3):
        assert combine({x: shares[x - 1] for x in chosen}) == secret


@settings(deadline=None)
@given(secrets)
def test_fewer_shares_fit_every_secret(other):
    # Two shares of a threshold of three, and any secret at zero, determine a third
    # share: whatever the two shares are, no secret is ruled out.
    shares = split(draw_element(Counter("secret")), 3, 3, Counter("split"))
    known = {0: other, 1: shares[0], 2: shares[1]}
    at_three = sum(
        int.from_bytes(share, "big") * weight
        for share, weight in zip(known.values(), (1, -3, 3), strict=True)
    )
    third = (at_three % PRIME).to_bytes(32, "big")
    assert combine({1: shares[0], 2: shares[1], 3: third}) == other


def test_a_wrong_share_gives_another_secret():
    secret = draw_element(Counter("secret"))
    shares = split(secret, 2, 3, Counter("split"))
    altered = bytes([shares[0][0] ^ 1]) + shares[0][1:]
    assert combine({1: altered, 2: shares[1]}) != secret


def test_shares_follow_the_polynomial_of_an_independent_evaluation():
    again = Counter("split")
    high, low = (int.from_bytes(again(32), "big") for _ in range(2))
    secret = (5).to_bytes(32, "big")
    for x, share in enumerate(split(secret, 3, 4, Counter("split")), start=1):
        expected = (5 + low * x + high * x**2) % PRIME
        assert int.from_bytes(share, "big") == expected


def test_secrets_are_drawn_by_rejection():
    queue = [b"\xff" * 32, PRIME.to_bytes(32, "big"), (PRIME - 1).to_bytes(32, "big")]
    assert draw_element(lambda _: queue.pop(0)) == (PRIME - 1).to_bytes(32, "big")
    assert queue == []


@pytest.mark.parametrize("data", [PRIME.to_bytes(32, "big"), b"\xff" * 32, b"", b"a"])
def test_elements_have_one_encoding(data):
    with pytest.raises(MalformedMessageError):
        check_element(data)


@pytest.mark.parametrize(("threshold", "count"), [(0, 3), (4, 3), (1, 0)])
def test_a_threshold_that_does_not_fit_is_refused(threshold, count):
    with pytest.raises(ValueError, match="threshold"):
        split(bytes(32), threshold, count, Counter("split"))


def test_lagrange_weights_sum_to_one():
    # They reproduce the constant polynomial 1.
    assert sum(lagrange_weights((1, 4, 9, 200))) % PRIME == 1
