"""A hostile server that runs every strategy of `hostile.py` takes nothing it must not.

And it would: with any one of the checks removed that each mutant below names, some
strategy breaks a promise.
"""

import inspect
import random
import sys
from types import ModuleType

import pytest

from privacy.plan import threshold
from privacy.secagg import client, terms
from tests.adversary import hostile
from tests.adversary.hostile import HostileServer
from tests.adversary.knowledge import Analyst
from tests.privacy.secagg.harness import make_terms


def server(count, colluders, min_survivors):
    return HostileServer(
        make_terms(
            count, colluders=colluders, min_survivors=min_survivors, vector_length=4
        )
    )


def sizes_found(walked, strategies):
    """How large each strategy's sums were; no promise may be broken on the way."""
    sizes, analyst = set(), Analyst(walked)
    for strategy in strategies:
        learnt = analyst.learns(strategy)
        assert learnt.violations == (), strategy
        sizes |= {len(names) for names in learnt.sums}
        confirmed = [walked.sets_of(part.sent[3]) for part in strategy.confirmers]
        for part in strategy.reveals:
            # Whoever reveals does so over sets that t confirmed, colluders with them.
            agreeing = confirmed.count(walked.sets_of(part.sent[3]))
            needed = threshold(len(part.told[1]), walked.terms.colluders)
            assert agreeing + len(walked.colluding) >= needed
    return sizes


@pytest.mark.parametrize(
    ("count", "colluders", "min_survivors", "sizes"),
    [
        (3, 0, 2, {2, 3}),
        (3, 0, 3, {3}),
        (3, 1, 2, {2}),
        # Two halves of a cohort may each have a sum of their own, over disjoint
        # survivors (docs/protocol.md, "A split cohort").
        (4, 0, 2, {2, 3, 4}),
        (4, 0, 4, {4}),
        (4, 1, 2, {2, 3}),
    ],
)
def test_no_strategy_of_a_hostile_server_breaks_a_promise(
    count, colluders, min_survivors, sizes
):
    walked = server(count, colluders, min_survivors)
    # The sums that an honest server gets are among those that were found, of honest
    # clients' vectors: a walk that opened nothing would show nothing.
    assert sizes_found(walked, walked.strategies()) == sizes
    assert 0 < walked.refused < walked.tried


def test_no_lie_about_the_survivors_among_five_breaks_a_promise():
    walked = server(5, 0, 2)
    assert sizes_found(walked, walked.honest_until_survivors()) == {3, 4, 5}


# The client's code, each with one check taken out.
MUTANTS = {
    "the quorum": (
        ("            self._check(peer, signed)\n", "            pass\n"),
        ('require_clients(count, self.threshold, "confirmed the survivors")', "pass"),
    ),
    "that the quorum saw the same": (
        ("        if seen != self.seen:\n", "        if False:\n"),
    ),
    "one answer of one state": (("        if self._used:\n", "        if False:\n"),),
    "survivors within the sharers": (
        ("if not set(headers) <= set(self.key_shares):", "if False:"),
    ),
    "itself among the survivors": (
        ("        if self.seat.name not in headers:\n", "        if False:\n"),
        (
            "if not equal(headers[self.seat.name], self.header_digest):",
            "if self.seat.name not in headers: pass\n"
            "        elif not equal(headers[self.seat.name], self.header_digest):",
        ),
    ),
    "enough survivors": (
        ('        require_clients(len(headers), least, "sent a vector")\n', ""),
    ),
}


@pytest.fixture
def without(monkeypatch):
    """Puts the client's module, with some of its lines replaced, before the server."""

    def install(name):
        source = inspect.getsource(client)
        for old, new in MUTANTS[name]:
            assert source.count(old) == 1, "the client's code changed: adapt the mutant"
            source = source.replace(old, new)
        module = ModuleType("mutant_client")
        monkeypatch.setitem(sys.modules, "mutant_client", module)
        exec(compile(source, "mutant_client", "exec"), module.__dict__)  # noqa: S102
        monkeypatch.setattr(hostile, "client", module)

    return install


def first_violation(walked, strategies):
    """The first promise that is broken."""
    analyst = Analyst(walked)
    for strategy in strategies:
        for violation in analyst.learns(strategy).violations:
            return violation
    return "none"


@pytest.mark.parametrize(
    ("check", "setting", "taken"),
    [
        ("one answer of one state", (3, 0, 2), "revealed both shares"),
        ("survivors within the sharers", (4, 1, 2), "a sum of 2 vectors, where 3"),
        ("itself among the survivors", (3, 0, 2), "to call itself a dropout"),
        ("enough survivors", (4, 0, 4), "a sum of 3 vectors, where 4"),
    ],
)
def test_a_client_without_this_check_is_caught(without, check, setting, taken):
    without(check)
    walked = server(*setting)
    assert taken in first_violation(walked, walked.strategies())


@pytest.mark.parametrize("check", ["the quorum", "that the quorum saw the same"])
def test_a_client_without_the_consistency_check_is_caught(without, check):
    # Among four, 2 t > n + c alone keeps every promise: each client answers once, and
    # can leave out too few. Among five, answers to different lies add up.
    without(check)
    walked = server(5, 0, 2)
    drawn = list(walked.honest_until_survivors())
    # An order that meets a violation soon; it is no secret.
    random.Random(1).shuffle(drawn)  # noqa: S311
    assert "a sum of 2 vectors, where 3" in first_violation(walked, drawn)


def test_a_threshold_of_half_is_caught(monkeypatch):
    monkeypatch.setattr(terms, "threshold", lambda clients, colluders: clients // 2)
    walked = server(4, 0, 2)
    assert "both secrets" in first_violation(walked, walked.honest_until_survivors())


def test_an_unmutated_copy_of_the_client_keeps_its_promises(without, monkeypatch):
    # So that the mutants are caught for what they lack, not for being copies.
    monkeypatch.setitem(MUTANTS, "nothing", ())
    without("nothing")
    walked = server(3, 0, 2)
    assert sizes_found(walked, walked.strategies()) == {2, 3}
