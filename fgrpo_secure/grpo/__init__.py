"""Learning: data, rewards, the policy, its generations and their gradients.

Nothing here knows that training is private. What privacy asks of this package is one
property only, *locality*: what is computed for one unit depends on that unit, on the
adapter and on the unit's own random numbers, and on nothing of its batch mates.
"""
