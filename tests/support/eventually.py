"""Waiting for what another process will show soon, and measuring how soon."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from router.devcluster import DevCluster, Server


async def eventually(
    condition: Callable[[], Any | Awaitable[Any]], *, within_s: float, what: str, pause_s: float = 0.01
) -> float:
    """Seconds until the condition holds; AssertionError when it does not in time."""
    began = time.monotonic()
    while True:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        took = time.monotonic() - began
        if holds:
            return took
        assert took < within_s, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(pause_s)


def ask(cluster: DevCluster, sql: str, *args: object, server: Server | None = None, database: str = "postgres") -> Any:
    """First column of the first row, asked by the superuser beside the router."""
    with (server or cluster.primary()).connect(database) as connection:
        row = connection.execute(sql, args).fetchone()
    return row[0] if row else None


_RUNNING = "select count(*) from pg_stat_activity where state = 'active' and pid <> pg_backend_pid() and query like %s"


def running(cluster: DevCluster, mark: str, server: Server | None = None) -> int:
    """How many backends run a statement whose text holds the mark."""
    return int(ask(cluster, _RUNNING, f"%{mark}%", server=server))


async def until_running(cluster: DevCluster, mark: str) -> float:
    """Seconds until the marked statement runs."""
    return await eventually(
        lambda: asyncio.to_thread(running, cluster, mark), within_s=5, what=f"a backend that runs {mark}"
    )


async def until_gone(cluster: DevCluster, mark: str, within_s: float, server: Server | None = None) -> float:
    """Seconds until no backend runs the marked statement any more."""
    return await eventually(
        lambda: _none_runs(cluster, mark, server), within_s=within_s, what=f"the end of {mark} in PostgreSQL"
    )


async def _none_runs(cluster: DevCluster, mark: str, server: Server | None) -> bool:
    return await asyncio.to_thread(running, cluster, mark, server) == 0


def rows_of(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    """All rows, straight from a server."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(sql).fetchall()  # type: ignore[arg-type]
