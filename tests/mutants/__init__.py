"""Bugs that a change of the router might bring, as small patches, and the tests that must notice them.

`make mutants` plants each in a copy of the tree and runs its tests there. table.py is the list.
"""
