"""F3 edge: reads SQL with PostgreSQL's own grammar (postgast, libpg_query of PostgreSQL 18; BSD licence).

Here: what a statement is, and which ones may not run where connections are shared. Not here: whether a tenant may do
it (PostgreSQL's privileges), or whether it writes (PostgreSQL's read-only mode). May import: ports, model, postgast.
To add one: a row in rules.py, and its statements in tests/sql/test_inspector.py.
"""
