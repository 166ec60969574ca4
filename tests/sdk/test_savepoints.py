"""Savepoints that are left otherwise than by an exception: their work must not be committed with the rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Generator
from typing import Any

import grpc
import pointsman
import pytest
from pointsman.loop_thread import loop_thread
from pointsman.v1 import transaction_service_pb2 as pb

from tests.sdk.fake_router import FakeRouter, status
from tests.sdk.test_transactions import Server, told


@pytest.fixture
def server(router: FakeRouter) -> Server:
    router.on_transact = made = Server()
    return made


async def test_a_savepoint_that_is_cancelled_is_undone_alone(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    async with db.transaction() as tx:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05), tx.savepoint():
                await tx.execute("inner")
                await asyncio.sleep(5)
        await tx.execute("after")
    assert told(router) == [
        "begin + savepoint pointsman_1", "inner", "rollback_to pointsman_1", "after", "commit",
    ]  # fmt: skip


async def test_a_savepoint_that_is_interrupted_is_undone_alone(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    async with db.transaction() as tx:
        with contextlib.suppress(Interrupt):
            async with tx.savepoint():
                await tx.execute("inner")
                raise Interrupt
    assert told(router)[-2:] == ["rollback_to pointsman_1", "commit"]


class Interrupt(BaseException):
    """A KeyboardInterrupt that pytest does not take for itself."""


def test_a_savepoint_of_a_thread_that_is_interrupted_is_undone_alone() -> None:
    thread, fake = loop_thread(), FakeRouter()
    fake.on_transact = Server()
    thread.run(fake.start())
    try:
        with pointsman.sync.connect(fake.address) as db, db.transaction() as tx:
            with contextlib.suppress(Interrupt), tx.savepoint():
                tx.execute("inner")
                raise Interrupt
            tx.execute("after")
    finally:
        thread.run(fake.stop())
    assert told(fake) == ["begin + savepoint pointsman_1", "inner", "rollback_to pointsman_1", "after", "commit"]


async def test_a_savepoint_that_cannot_be_undone_costs_the_transaction(
    router: FakeRouter, db: pointsman.Client, server: Server
) -> None:
    async def leave(tx: pointsman.Transaction) -> None:
        async with tx.savepoint():
            await tx.execute("inner")
            await asyncio.Event().wait()

    async def body() -> None:
        async with db.transaction() as tx:
            left = leave(tx)
            await step_to_its_wait(left)
            left.close()  # as the interpreter does with a coroutine that nobody awaits any more

    with pytest.raises(pointsman.TransactionLost):
        await body()
    assert "commit" not in told(router)


async def step_to_its_wait(work: Coroutine[Any, Any, None]) -> None:
    """Drives a coroutine from this task until it waits for what does not come."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await Stepped(work)


class Stepped:
    """Awaits a coroutine, and leaves it where it was when that is cancelled."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work

    def __await__(self) -> Generator[Any, Any, None]:
        while True:
            yield self._work.send(None)


@pytest.mark.parametrize("cause", [ZeroDivisionError, Interrupt])
async def test_a_savepoint_whose_rollback_is_refused_costs_the_transaction(
    router: FakeRouter, db: pointsman.Client, server: Server, cause: type[BaseException]
) -> None:
    async def refuse(request: pb.TransactRequest) -> pb.TransactResponse | None:
        if request.rollback_to:
            return pb.TransactResponse(
                failed=status(grpc.StatusCode.DEADLINE_EXCEEDED, "late", reason="DEADLINE", executed="no")
            )
        return await server(request)

    router.on_transact = refuse

    async def body() -> None:
        async with db.transaction() as tx:
            with pytest.raises(cause if cause is Interrupt else pointsman.DeadlineExceeded):
                async with tx.savepoint():
                    raise cause

    with pytest.raises(pointsman.TransactionLost):
        await body()
    assert "commit" not in told(router)
