"""A test double of the client's mechanism, with one planted bug at a time.

`faults` plants them, from outside: no product code has a switch. `checks` are the
attacks, each run on the double as on the mechanism itself; `table` writes what they
found. A bug that no check sees would be a hole in the audits.
"""
