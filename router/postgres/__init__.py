"""F3, the PostgreSQL edge: the only import of psycopg.

Here: connections, lanes, probes, surgery on roles, and the facts they report. Not here: any judgement about those
facts. May import: ports, model, psycopg, psycopg_pool.
To add one: implement a Protocol of ports in a file of its own and hand it over in app.py.
"""
