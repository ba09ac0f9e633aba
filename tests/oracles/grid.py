"""The settings at which accountants are compared."""

from itertools import product

RATES = ("1/1000", "1/100", "1/10", "1/2", "1")
MULTIPLIERS = (0.6, 1.0, 3.0, 20.0)
ROUNDS = (1, 1000)
DELTAS = (1e-5, 1e-8)

SETTINGS = list(product(RATES, MULTIPLIERS, ROUNDS))

# Sampling rate, noise multiplier, rounds, delta: for accountants that take time.
FEW = [
    ("1/1000", 0.6, 1000, 1e-8),
    ("1/1000", 1.0, 10_000, 1e-8),
    ("1/500", 0.7, 5000, 1e-5),
    ("1/100", 1.0, 1000, 1e-5),
    ("1/100", 3.0, 1000, 1e-5),
    ("1/25", 1.5, 2250, 1e-5),
    ("1/10", 1.0, 30, 1e-5),
    ("1/10", 2.0, 200, 1e-6),
    ("1/10", 20.0, 1000, 1e-5),
    ("1/2", 0.6, 1, 1e-8),
    ("1/2", 1.0, 20, 1e-5),
    ("1/2", 5.0, 20, 1e-5),
]

# One run of unequal rounds: sampling rate, noise multiplier, rounds.
UNEQUAL = [("1/10", 1.0, 30), ("1/50", 0.8, 100), ("1/5", 2.5, 40)]
