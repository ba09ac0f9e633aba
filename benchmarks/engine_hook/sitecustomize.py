"""Loaded by every Python process that has this folder on its path.

The engine starts processes of its own, in which a benchmark has no other way to put
something in the place of a learner, or to take the time of one.
"""

import os

if os.environ.get("FGRPO_BENCHMARK"):
    from benchmarks.engine_parts import install

    install()
