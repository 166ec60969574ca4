"""What the tests of the contract share: how a promise is told, and the small verbs in which it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from router.model.observation import Fault
from router.model.reasons import CloseReason
from router.model.request import Access, Statement
from router.ports import EndpointPool, Lane, Unit
from tests.support.builders import now

SLACK_S = 0.15
MAX_SIZE = 3


class MakePool(Protocol):
    def __call__(self, access: Access = Access.READ_WRITE, **policy: Any) -> EndpointPool: ...


Told = Callable[[MakePool], Awaitable[None]]
Run = Callable[[Told], None]


def soon(seconds: float = 5.0) -> float:
    return now() + seconds


def submit(lane: Lane, *sql: str, **fields: Any) -> asyncio.Future[Unit]:
    done: asyncio.Future[Unit] = asyncio.get_running_loop().create_future()
    lane.submit(Unit([Statement(one.encode()) for one in sql], done.set_result, **fields))
    return done


async def run_on(lane: Lane, *sql: str, **fields: Any) -> Unit:
    return await submit(lane, *sql, **fields)


def fault_of(unit: Unit) -> Fault:
    assert unit.fault is not None
    assert unit.done_at > 0
    return unit.fault


def values(unit: Unit) -> list[bytes | None]:
    return [
        one.cells.get_value(row, 0) for one in unit.results if one.cells is not None for row in range(one.cells.ntuples)
    ]


def tags(unit: Unit) -> list[str]:
    return [one.command_tag for one in unit.results]


def same_connection(one: Any, other: Any) -> bool:
    """Both lanes know their connection, though the port does not ask for it."""
    return one.connection is other.connection


async def ended(pool: EndpointPool) -> None:
    """Nothing is lent any more."""
    await asyncio.sleep(0.05)
    assert pool.statistics().leased == 0
    await pool.close(CloseReason.SHUTDOWN)
    assert pool.statistics().size == 0
