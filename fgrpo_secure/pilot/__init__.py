"""A pilot on many machines: enrolling its parties, running them, and its jobs.

The engine is NVFlare, called by its own command line. Nothing here imports it.
"""
