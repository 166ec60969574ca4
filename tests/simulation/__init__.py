"""Deterministic simulation: the router's decisions and engine on virtual time, against a model of a cluster.

Start reading at world.py. One seed is one run, the same each time: `make simulate SEED=7 VERBOSE=1` shows it.
"""
