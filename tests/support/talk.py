"""Interactive transactions of tests, with deadlines of their own; and how a test of the engine ends."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from router.engine.sessions import Session
from router.model.errors import RouterError
from router.model.request import Options, ReadFrom, Statement, TransactionMode
from tests.support.builders import Engine, now


class Talk:
    """A session, with deadlines of their own."""

    def __init__(self, engine: Engine, session: Session) -> None:
        self.engine = engine
        self.session = session

    @classmethod
    async def begin(cls, engine: Engine, **mode: Any) -> Talk:
        options = Options(read=mode.pop("read", ReadFrom.PRIMARY))
        return cls(engine, await engine.sessions.open(engine.tenant, TransactionMode(**mode), options, now() + 5, "s"))

    async def run(self, sql: str, timeout: float = 5.0) -> Any:
        return await self.session.run(Statement(sql.encode()), now() + timeout)

    async def commit(self, timeout: float = 5.0) -> None:
        await self.session.commit(now() + timeout)

    async def savepoint(self, name: str) -> None:
        await self.session.savepoint(name, now() + 5)

    async def rollback_to(self, name: str) -> None:
        await self.session.rollback_to(name, now() + 5)


async def refusal(work: Awaitable[Any]) -> RouterError:
    """The error that the work must end with."""
    with pytest.raises(RouterError) as failed:
        await work
    return failed.value


async def rest(engine: Engine) -> None:
    """All must be at rest, and can be closed."""
    await engine.quiet(2)
    engine.check_at_rest()
    await engine.close()
