"""Who competes: the router, its peers, and how each is reached. To add one, write a line in CONTENDERS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Via(Enum):
    """What stands between the caller and PostgreSQL."""

    ROUTER = "router"
    WORKERS = "router with two workers"
    PGBOUNCER = "PgBouncer"
    NOTHING = "nothing"
    FLOOR = "a gRPC server that only sends back"


@dataclass(frozen=True)
class Contender:
    """One line of the tables."""

    title: str
    kind: str
    """The caller's library (callers/__main__.py), or pgbench."""
    via: Via
    pipelined: bool = False
    protocol: str = ""
    """pgbench's -M."""


CONTENDERS: Mapping[str, Contender] = {
    "router": Contender("Pointsman SDK", "sdk", Via.ROUTER),
    "router_workers": Contender("Pointsman SDK → 2 workers", "sdk", Via.WORKERS),
    "router_stub": Contender("plain gRPC stub → Pointsman", "stub", Via.ROUTER),
    "grpc_floor": Contender("bare grpc.aio echo, no database", "floor", Via.FLOOR),
    "psycopg_pgbouncer": Contender("psycopg → PgBouncer", "psycopg", Via.PGBOUNCER),
    "psycopg_pipeline_pgbouncer": Contender(
        "psycopg, pipeline mode → PgBouncer", "psycopg", Via.PGBOUNCER, pipelined=True
    ),
    "asyncpg_pgbouncer": Contender("asyncpg → PgBouncer", "asyncpg", Via.PGBOUNCER),
    "psycopg_straight": Contender("psycopg, straight", "psycopg", Via.NOTHING),
    "asyncpg_straight": Contender("asyncpg, straight", "asyncpg", Via.NOTHING),
    "pgbench_simple": Contender("pgbench -S (C), straight", "pgbench", Via.NOTHING, protocol="simple"),
    "pgbench_prepared": Contender("pgbench -S -M prepared (C), straight", "pgbench", Via.NOTHING, protocol="prepared"),
    "pgbench_pgbouncer": Contender("pgbench -S (C) → PgBouncer", "pgbench", Via.PGBOUNCER, protocol="simple"),
}

PYTHON_PEERS = ("psycopg_pgbouncer", "asyncpg_pgbouncer", "psycopg_straight", "asyncpg_straight")
ROUTERS = ("router", "router_workers")
