"""F1, the verbs: pure decisions. Facts, the time and drawn numbers come in as arguments; values go out.

Here: health, primary, failover, routing, balancing, retry, backoff, lanes, fairness. Not here: anything that waits,
reads a clock, draws a number, logs or does I/O. May import: model and stdlib values.
To add one: a function or a small machine with frozen results, and a table or property test in tests/decisions.
"""
