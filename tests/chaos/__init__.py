"""Chaos: real PostgreSQL servers and a real router under faults, and a checker that reads what survived.

`make chaos` runs `python -m tests.chaos`; `make test` runs small sizes of some cases (test_chaos.py).
Start reading at cases/__init__.py; one run goes stage.py → load.py (workloads.py, callers.py) → nemeses.py → checker.py
→ figures.py → report.py.
"""
