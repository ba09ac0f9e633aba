"""What a client's weight and baseline are made of."""

import numpy as np
import pytest

from fgrpo_secure import draws as draws_module
from fgrpo_secure.learner import Learner
from privacy import contribution as door
from privacy.contribution import Contribution
from privacy.ledger import Joined, Outcome, Reason, Status

NAME = "sums"
TRIO = ("count", "shift", NAME)
# Each round's noised statistic, as the tests say that it came out.
NOISED = (-0.5, -0.45, -0.52)


@pytest.fixture
def told(federation, monkeypatch):
    """Rounds of one learner: what it weighed and kept, and the raw rewards."""

    def learn(noised, reward):
        one = federation(names=TRIO)
        # The learner alone: no round of the protocol is needed.
        learner = Learner(
            plan=one.plan,
            name=NAME,
            task=one.tasks[NAME],
            policy=one.site_policy,
            folder=one.client_folder(NAME),
        )
        coming, weights, baselines, raw = iter(noised), [], [], []
        weigh = Contribution.weigh

        def spied(contribution, weight):
            weights.append(weight)
            weigh(contribution, weight)

        def fixed(rewards, **terms):
            raw.append(list(rewards))
            return next(coming)

        def scored(rewards, example, group):
            return np.full(len(group.texts), reward)

        with monkeypatch.context() as patch:
            patch.setattr(Contribution, "weigh", spied)
            patch.setattr(door, "noised_mean", fixed)
            patch.setattr(draws_module, "score", scored)
            for number in range(1, len(noised) + 1):
                ledger = one.ledgers[NAME]
                ledger.append(Joined(number, 1, bytes(32), bytes(32)))
                learner.contribute(ledger, one.server.adapter)
                kept = one.client_folder(NAME) / "baseline.json"
                baselines.append(kept.read_bytes())
                ledger.append(
                    Outcome(
                        number,
                        1,
                        Status.MISSED,
                        Reason.INTERRUPTED,
                        (),
                        None,
                        None,
                        None,
                    )
                )
        return weights, baselines, raw

    return learn


def test_weight_and_baseline_follow_the_noised_statistic_and_no_reward(told):
    best = told(NOISED, 0.7318205)
    worst = told(NOISED, -0.4186937)
    assert best[2] != worst[2]
    assert best[:2] == worst[:2]


def test_weight_and_baseline_change_with_the_noised_statistic(told):
    """Without this the test before it could pass for a constant."""
    one = told(NOISED, 0.0)
    other = told((*NOISED[:-1], -0.44), 0.0)
    assert one[2] == other[2]
    assert len(set(one[0])) == len(NOISED)
    assert one[0][:-1] == other[0][:-1]
    assert one[0][-1] < other[0][-1]
    assert one[1][:-1] == other[1][:-1]
    assert one[1][-1] != other[1][-1]
