"""What is computed from a secret is compared in constant time, or not at all.

The tests put bytes that cannot be compared by `==`, nor looked up in a dictionary, in
the place of everything that the protocol computes from a secret.
"""

from dataclasses import replace

import pytest

from privacy import crypto
from privacy.crypto import AgreementKey
from privacy.errors import FaultyClientError
from privacy.secagg import client, key_shares, masks, unmasking
from privacy.secagg.envelope import read_client, sign
from privacy.secagg.key_shares import Direction, SharePair, deal, open_share
from privacy.secagg.messages import Reveal
from tests.privacy.secagg.harness import (
    Counter,
    identity,
    make_terms,
    plain_sum,
    play_until,
    run_round,
)

NAME, PEER = "client-001", "client-002"
# Where each module finds the function that it calls.
COMPUTED = [
    (key_shares, "share_commitment"),
    (unmasking, "share_commitment"),
    (client, "self_mask_commitment"),
    (unmasking, "self_mask_commitment"),
    (key_shares, "hkdf_sha256"),
    (masks, "hkdf_sha256"),
]


class OfSecret(bytes):
    """Bytes that are a function of a secret."""

    def __eq__(self, other):
        raise AssertionError("compared with an early exit")

    __ne__ = __lt__ = __gt__ = __eq__

    def __hash__(self):
        raise AssertionError("looked up")


@pytest.fixture
def compared(monkeypatch):
    """Which kinds of such bytes were compared in constant time."""
    kinds = set()

    def marking(function):
        def marked(*args, **kwargs):
            result = OfSecret(function(*args, **kwargs))
            result.kind = function.__name__
            return result

        return marked

    def comparing(left, right):
        kinds.update(getattr(side, "kind", None) for side in (left, right))
        return crypto.equal(left, right)

    for module, name in COMPUTED:
        monkeypatch.setattr(module, name, marking(getattr(module, name)))
    public = marking(AgreementKey.public.fget)
    monkeypatch.setattr(AgreementKey, "public", property(public))
    for module in (client, key_shares, unmasking):
        monkeypatch.setattr(module, "equal", comparing)
    return kinds


@pytest.mark.parametrize("act", ["a == b", "a != b", "b == a", "a in {}", "a in [b]"])
def test_the_bytes_that_stand_for_a_secret_cannot_be_compared(act):
    with pytest.raises(AssertionError):
        eval(act, {"a": OfSecret(b"a"), "b": b"b"})  # noqa: S307


def test_a_round_compares_what_comes_of_secrets_in_constant_time(compared):
    terms = make_terms(4)
    outcome = run_round(terms, drops={"masked": [PEER]})
    assert not outcome.errors
    expected = plain_sum(terms, outcome.unmasked.survivors)
    assert outcome.unmasked.residues.tolist() == expected.tolist()
    wanted = {"share_commitment", "self_mask_commitment", "public"}
    assert compared - {None} == wanted


@pytest.mark.parametrize("wrong", ["self_mask_commitment", "mask_key_commitment"])
def test_a_share_that_was_not_committed_to_is_found_in_constant_time(compared, wrong):
    own = AgreementKey(b"k" * 32)
    (sealed,) = deal(
        SharePair(b"\x01" * 32, b"\x02" * 32),
        threshold=1,
        roster_hash=bytes(32),
        dealer=NAME,
        own=own,
        publics={NAME: bytes(own.public)},
        entropy=Counter("deal"),
    )
    direction = Direction(bytes(32), NAME, NAME)
    open_share(sealed, direction, own, bytes(own.public))
    altered = replace(sealed, **{wrong: bytes(32)})
    with pytest.raises(FaultyClientError, match="did not commit to"):
        open_share(altered, direction, own, bytes(own.public))
    assert compared - {None} == {"share_commitment"}


def test_a_share_that_was_not_dealt_is_found_in_constant_time(compared):
    play = play_until("reveal")
    play.answer("reveal")
    digest = play.server.desk.offer_digest
    reveal = read_client(play.replies[NAME], Reveal, NAME, play.terms, digest)
    altered = replace(reveal, shares=reveal.shares[::-1])
    play.replies[NAME] = sign(altered, NAME, digest, identity(NAME))
    play.collect()
    assert "that was not dealt" in play.server.blamed[NAME]
    assert "share_commitment" in compared
