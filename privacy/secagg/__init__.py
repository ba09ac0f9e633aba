"""Secure aggregation: the server learns the sum of the survivors' vectors, or nothing.

Bonawitz double masking with a signed consistency round against a malicious server, on
the complete graph, without input or output: states and bytes in, states and bytes out.
Read `docs/protocol.md`, then `client`, whose states are the protocol from the side that
must be protected; `server` mirrors it.
"""
