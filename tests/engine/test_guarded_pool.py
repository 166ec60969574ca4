"""A pool behind a login breaker: a wrong password is tried by one, told to all, and mended by a new one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from router.decisions.backoff import FIRST_PAUSE_S
from router.decisions.login_breaker import OPENS_AFTER
from router.engine.guarded_pool import GuardedPool, LoginBreakers
from router.model.identity import EndpointName
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.topology import Login, Secret
from router.ports import Lane
from tests.support.builders import tenant
from tests.support.fake_endpoint_pool import FakeEndpointPool
from tests.support.fake_server import FakeServer
from tests.support.virtual_time import VirtualClock, virtual

PG1 = EndpointName("pg1")


class LoginPool(FakeEndpointPool):
    """Asks the server for each lane; its login may be refused, or hang."""

    tries = 0
    refuses = True
    hangs = False
    shared = False

    async def open_lane(self, deadline: float) -> Lane:  # type: ignore[override]
        self.tries += 1
        await asyncio.sleep(9.0 if self.hangs else 0.01)
        if self.refuses and not self.statistics().idle:
            fault = Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, "28P01", "wrong password", shared=self.shared)
            raise AttemptFailed(fault)
        return await super().open_lane(deadline)


def guarded() -> tuple[LoginPool, GuardedPool]:
    inner = LoginPool(FakeServer())
    return inner, GuardedPool(inner, LoginBreakers().of(tenant(), PG1), VirtualClock())


async def refused(pool: GuardedPool) -> Fault:
    with pytest.raises(AttemptFailed) as failed:
        await pool.open_lane(asyncio.get_running_loop().time() + 5)
    return failed.value.fault


@virtual
async def test_a_storm_of_requests_with_a_wrong_password_reaches_the_server_a_few_times() -> None:
    inner, pool = guarded()
    for _ in range(1000):
        assert (await refused(pool)).sqlstate == "28P01"
        await asyncio.sleep(0.01)
    # 10 s: three to open it, then after 1, 2 and 4 s.
    assert OPENS_AFTER + 2 <= inner.tries <= OPENS_AFTER + 4
    fault = await refused(pool)
    assert f"{inner.tries} times in a row; not tried again for" in fault.message


@virtual
async def test_one_probe_finds_out_that_the_password_is_right_again() -> None:
    inner, pool = guarded()
    for _ in range(OPENS_AFTER):
        await refused(pool)
    inner.refuses = False
    await refused(pool)
    await asyncio.sleep(FIRST_PAUSE_S)
    deadline = asyncio.get_running_loop().time() + 5
    opened = await asyncio.gather(*(pool.open_lane(deadline) for _ in range(5)), return_exceptions=True)
    assert [isinstance(one, AttemptFailed) for one in opened] == [False, True, True, True, True]
    await pool.open_lane(deadline)


@virtual
async def test_a_probe_whose_caller_goes_away_leaves_the_next_one_to_probe() -> None:
    inner, pool = guarded()
    for _ in range(OPENS_AFTER):
        await refused(pool)
    await asyncio.sleep(FIRST_PAUSE_S)
    inner.hangs = True
    probing = asyncio.create_task(pool.open_lane(asyncio.get_running_loop().time() + 5))
    await asyncio.sleep(0.1)
    probing.cancel()
    await asyncio.wait({probing})
    inner.hangs = inner.refuses = False
    await pool.open_lane(asyncio.get_running_loop().time() + 5)


@virtual
async def test_one_login_that_is_refused_counts_once_however_many_wait_for_it() -> None:
    inner, pool = guarded()
    inner.shared = True
    for _ in range(2 * OPENS_AFTER):
        await refused(pool)
    assert inner.tries == 2 * OPENS_AFTER, "it is closed yet"
    inner.shared = False
    for _ in range(2 * OPENS_AFTER):
        await refused(pool)
    assert inner.tries == 3 * OPENS_AFTER


@virtual
async def test_connections_that_are_open_already_are_lent_whatever_becomes_of_logins() -> None:
    inner, pool = guarded()
    inner.refuses = False
    deadline = asyncio.get_running_loop().time() + 5
    lane, other = await pool.open_lane(deadline), await pool.open_lane(deadline)
    await other.give_back()
    inner.refuses = True
    other = await pool.open_lane(deadline)
    for _ in range(OPENS_AFTER):
        await refused(pool)
    await lane.give_back()
    tries = inner.tries
    lane = await pool.open_lane(deadline)
    await refused(pool)
    assert inner.tries == tries + 1, "what was lent is no proof that the login is good again"


def test_another_login_or_database_begins_with_a_closed_breaker_and_both_accesses_share_one() -> None:
    breakers = LoginBreakers()
    one = tenant()
    breaker = breakers.of(one, PG1)
    assert breakers.of(replace(one), PG1) is breaker
    assert breakers.of(one, EndpointName("pg2")) is not breaker
    mended = replace(one, login=Login(one.login.user, Secret("another")))
    assert breakers.of(mended, PG1) is not breaker
    assert breakers.of(replace(mended, database="other"), PG1) is not breakers.of(mended, PG1)
    breakers.forget({one.name})
    assert breakers.of(one, PG1) is not breaker
