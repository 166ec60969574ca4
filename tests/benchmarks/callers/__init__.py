"""A caller: one process, one event loop, N tasks, one library. `python -m tests.benchmarks.callers` is that process.

It reads a target and then jobs as JSON lines from its standard input, and answers each with a line. The driver counts
its processor time from outside.
"""
