"""A router in several processes: one that watches and operates, and workers that serve callers on one port.

Here: the channel between them, the workers' lives, and what the parent and a worker are composed of. Not here: what a
request or a supervisor does (engine/), and what both kinds of router share (data_plane.py, control_plane.py).
"""
