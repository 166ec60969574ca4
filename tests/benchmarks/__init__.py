"""`make bench`: the router beside its peers, on one machine, in one run.

Nothing here is collected by pytest; tests/bench tests the pure parts. Start reading at cases/__init__.py: a case is an
entry there, made of contenders (contenders.py), a kind of work (callers/work.py) and what is asked (judging.py).
"""
