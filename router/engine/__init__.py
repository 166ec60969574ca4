"""F2, the engine: carries decisions out, with asyncio.

Here: supervisors, probing, holds, lanes' queues, requests and sessions. Not here: grpc, psycopg, clocks, chance, and
judgement (decisions/). May import: decisions, ports, model, asyncio; tenacity in attempts.py only.
To add one: take ports and policy in the constructor, decide by calling decisions, and build it in app.py.
"""
