"""Plans and randomness for tests of what happens within a round."""

import hashlib
from dataclasses import replace
from fractions import Fraction

from privacy.plan import ClientTerms, Plan, Weighting

NAMES = ("alpha", "beta", "gamma", "omega")
FGRPO = Weighting("fgrpo", "relative", Fraction(1), Fraction(4, 5), Fraction(3))
UNIFORM = Weighting("uniform", "relative", Fraction(1), Fraction(4, 5), Fraction(3))
SIZE = Weighting("size", "relative", Fraction(1), Fraction(4, 5), Fraction(3))
# A plan that adds no noise must say that it promises nothing.
NO_PROMISE = {"epsilon": "infinity", "noise_variance": 0, "statistic_variance": 0}
NO_STATISTIC = {"statistic_norm_bound": 0, "statistic_variance": 0}


def make_plan(**changes):
    """A plan of four clients that is cheap to price; any term can be changed.

    `sampling_rate` stands for the rate of every client.
    """
    rate = changes.pop("sampling_rate", None)
    terms = {
        "unit": "prompt",
        "max_prompts_per_unit": 1,
        "trust": "distributed",
        "epsilon": "8",
        "delta": "0.00001",
        "rounds": 3,
        "local_steps": 1,
        "inner_steps": 1,
        "clip_norm": Fraction(1, 10),
        "norm_bound": 1024,
        "noise_variance": 2**22,
        "statistic_norm_bound": 4096,
        "statistic_variance": 2**30,
        "modulus_bits": 32,
        "rotation": False,
        "dimension": 6,
        "min_survivors": 3,
        "colluders": 1,
        "clients": cohort(*[40] * len(NAMES), names=NAMES),
        "weighting": FGRPO,
        "recipe": "ab" * 32,
    }
    terms |= changes
    if rate is not None:
        clients = terms["clients"]
        terms["clients"] = tuple(replace(c, sampling_rate=rate) for c in clients)
    return Plan(**terms)


def cohort(*sizes, rate=Fraction(1, 10), names=None):
    """Clients of these sizes; by default they are called client-000 and so on"""
    names = names or [f"client-{number:03d}" for number in range(len(sizes))]
    return tuple(
        ClientTerms(name, size, rate) for name, size in zip(names, sizes, strict=True)
    )


class Counter:
    """Reproducible bytes in place of entropy, so that a test sees the same noise."""

    def __init__(self, seed=""):
        self.seed = seed.encode()
        self.calls = 0

    def __call__(self, count):
        self.calls += 1
        material = self.seed + self.calls.to_bytes(8, "big")
        return hashlib.shake_256(material).digest(count)
