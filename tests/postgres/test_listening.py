"""A listening connection as PostgreSQL and the endpoint's cap see it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest

from router.model.identity import Generation
from router.model.observation import AttemptFailed, FaultKind, Stage
from router.model.reasons import CloseReason
from router.postgres import listening
from router.postgres.listening import PqListeningConnection, PsycopgListeningFactory
from router.system import SystemChance
from tests.contracts.test_listening_contract import Ear
from tests.postgres.test_connection_cap import CAP, World, soon, use, world
from tests.support.builders import Recorder
from tests.support.eventually import eventually

__all__ = ["world"]

pytestmark = pytest.mark.pg
ACTIVITY = "select {} from pg_stat_activity where usename = 'acme' and query ~ '^(LISTEN|SELECT$)'"


async def opened(world: World, ear: Ear, name: str = "acme", deadline_s: float = 5.0) -> PqListeningConnection:
    factory = PsycopgListeningFactory(world.factory, SystemChance(), Recorder())
    return await factory.open(
        world.tenant(name), world.cluster, world.endpoint, Generation(1), ear, soon(deadline_s)
    )


async def ended(world: World, connection: PqListeningConnection) -> None:
    connection.close(CloseReason.SHUTDOWN)
    await eventually(lambda: world.budget.in_use == 0, within_s=5, what="its permit is back")


async def test_it_has_a_permit_and_waits_for_one(world: World) -> None:
    pool = world.pool("globex")
    lanes = [await pool.open_lane(soon()) for _ in range(CAP)]
    with pytest.raises(AttemptFailed) as caught:
        await opened(world, Ear(), deadline_s=0.1)
    fault = caught.value.fault
    assert (fault.kind, fault.stage) == (FaultKind.POOL_TIMEOUT, Stage.ACQUIRE)
    assert f"{CAP} of {CAP} connections are open" in fault.message
    assert world.budget.waiting == 0
    await lanes.pop().give_back()
    connection = await opened(world, Ear())
    assert world.budget.in_use == CAP
    assert world.budget.shares()["acme"] == 1  # type: ignore[index]
    await ended_in(world, connection, CAP - 1)
    for lane in lanes:
        await lane.give_back()


async def ended_in(world: World, connection: PqListeningConnection, left: int) -> None:
    connection.close(CloseReason.SHUTDOWN)
    await eventually(lambda: world.budget.in_use == left, within_s=5, what="its permit is back")


async def test_who_has_less_than_its_due_gets_it_after_a_turn(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "KEEPS_S", 0.1)
    ear = Ear()
    kept = [await opened(world, ear if not number else Ear()) for number in range(CAP)]  # acme has all there is
    await use(world.pool("globex"), "select 1", 5.0)
    await ear.until(lambda: ear.losses)
    assert "the room under the cap" in ear.losses[0].message
    assert sum(one.open for one in kept) < CAP
    for one in kept:
        one.close(CloseReason.SHUTDOWN)


async def test_the_server_sees_an_idle_session_that_holds_nothing_up(world: World) -> None:
    connection = await opened(world, Ear())
    await connection.listen(("jobs",), soon())
    cluster = world.server
    facts = ACTIVITY.format("concat_ws(' ', state, coalesce(backend_xmin::text, '-'), coalesce(xact_start::text, '-'))")
    with cluster.connect() as beside:
        row = beside.execute(facts).fetchone()
        assert row == ("idle - -",)
    assert connection._pgconn.parameter_status(b"default_transaction_read_only") == b"on"
    assert await connection._link.query("show idle_session_timeout", soon()) == [("0",)]
    await ended(world, connection)


async def test_a_frozen_server_is_left_by_the_deadline(world: World) -> None:
    connection = await opened(world, Ear())
    await connection.listen(("jobs",), soon())
    pid = connection._pgconn.backend_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        began = asyncio.get_running_loop().time()
        with pytest.raises(AttemptFailed) as caught:
            await connection.check(soon(0.2))
        assert caught.value.fault.kind is FaultKind.SILENT
        assert asyncio.get_running_loop().time() - began < 0.6
        assert not connection.open
    finally:
        os.kill(pid, signal.SIGCONT)
    await eventually(lambda: world.budget.in_use == 0, within_s=5, what="its permit is back")


async def test_a_cancelled_connect_leaves_nothing(world: World) -> None:
    for turns in range(1, 40, 3):
        opening = asyncio.create_task(opened(world, Ear()))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await opening).close(CloseReason.SHUTDOWN)
    await eventually(lambda: world.budget.in_use == 0, within_s=5, what="all permits are back")


async def test_another_tenants_database_is_refused(world: World) -> None:
    tenant = world.tenant("acme")
    misled = type(tenant)(tenant.name, tenant.cluster, "globex", tenant.login, pool=tenant.pool)
    factory = PsycopgListeningFactory(world.factory, SystemChance(), Recorder())
    with pytest.raises(AttemptFailed):
        await factory.open(misled, world.cluster, world.endpoint, Generation(1), Ear(), soon())
    await eventually(lambda: world.budget.in_use == 0, within_s=5, what="its permit is back")
