"""What a login makes libpq compute is computed beside the event loop: it holds up that login, and nobody else."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import waiting
from psycopg.waiting import Wait

from router.devcluster import DevCluster
from router.model.identity import ClusterName, EndpointName, Generation, TenantName
from router.model.observation import AttemptFailed, Fault, FaultKind
from router.model.policy import ClusterPolicy, PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Access
from router.model.topology import Cluster, Endpoint, Login, Secret, Tenant
from router.postgres import handshakes
from router.postgres.endpoint_pool import PsycopgEndpointPool, PsycopgPoolFactory
from router.postgres.faults import LOGIN_FAILED
from router.postgres.handshakes import Handshakes, NeverProven
from router.system import SystemChance
from tests.postgres.test_lane import soon, unit, values
from tests.support.budgets import roomy
from tests.support.builders import Recorder
from tests.support.eventually import eventually

ENDLESS, SLOW = 12_000_000, 600_000
"""Iterations: more than can be computed before a connect times out; a few tenths of a second."""
WHO = (TenantName("acme"), "acme")
OTHER = (TenantName("globex"), "globex")
_LOWEST = 19
"""The lowest priority there is; tests may have been started with it."""


# --- real servers --------------------------------------------------------------------------------------------------


def verifier(password: str, iterations: int) -> str:
    """As PostgreSQL keeps it; of an endless one the keys do not matter, as nobody comes to compare them."""
    salt = b"salt"
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, min(iterations, SLOW))
    client, server = (hmac.digest(salted, word, "sha256") for word in (b"Client Key", b"Server Key"))
    keys = [base64.b64encode(one).decode() for one in (salt, hashlib.sha256(client).digest(), server)]
    return f"SCRAM-SHA-256${iterations}:{keys[0]}${keys[1]}:{keys[2]}"


@pytest.fixture
def laborious(pg_cluster: DevCluster) -> Iterator[Callable[[int], None]]:
    """Gives acme's login a verifier of so many iterations; as it was afterwards. acme could do so by itself, with ALTER
    ROLE, which computes them all once."""
    with pg_cluster.primary().connect("postgres") as connection:

        def make(iterations: int) -> None:
            new = verifier("acme-secret", iterations)
            connection.execute("UPDATE pg_authid SET rolpassword = %s WHERE rolname = 'acme'", (new,))

        yield make
        connection.execute("ALTER ROLE acme PASSWORD 'acme-secret'")


def pool_of(
    factory: PsycopgPoolFactory, pg: DevCluster, name: str, access: Access = Access.READ_ONLY
) -> PsycopgEndpointPool:
    server = pg.primary()
    endpoint = Endpoint(EndpointName(server.name), ClusterName("main"), "127.0.0.1", server.port)
    control, policy = Login("pointsman_control", Secret(pg.control_password)), ClusterPolicy(connect_timeout_s=2.0)
    cluster = Cluster(ClusterName("main"), (endpoint,), control, policy=policy)
    login = Login(name, Secret(f"{name}-secret"))
    owner = Tenant(TenantName(name), cluster.name, name, login, pool=PoolPolicy(max_size=2))
    return factory.make(owner, cluster, endpoint, access, Generation(1))


@contextlib.asynccontextmanager
async def reading(pool: PsycopgEndpointPool) -> Any:
    """A neighbour that reads all the while: how long it was from each answer to the next (seconds)."""
    took: list[float] = []
    ended = asyncio.Event()
    lane = await pool.open_lane(soon())

    async def read() -> None:
        began = time.monotonic()
        while not ended.is_set():
            made, done = unit("select 1")
            lane.submit(made)
            assert values(await done) == [[b"1"]]
            took.append(time.monotonic() - began)
            began = time.monotonic()
            await asyncio.sleep(0.005)

    task = asyncio.create_task(read())
    try:
        yield took
    finally:
        ended.set()
        await task
        await lane.give_back()


async def fault_of(pool: PsycopgEndpointPool) -> tuple[Fault, float]:
    began = time.monotonic()
    with pytest.raises(AttemptFailed) as failed:
        await pool.open_lane(soon())
    return failed.value.fault, time.monotonic() - began


@pytest.mark.pg
async def test_a_verifier_without_end_holds_up_its_own_login_only(
    pg_cluster: DevCluster, laborious: Callable[[int], None]
) -> None:
    laborious(ENDLESS)
    factory = PsycopgPoolFactory(SystemChance(), Recorder(), roomy)
    endless = [pool_of(factory, pg_cluster, "acme", access) for access in (Access.READ_WRITE, Access.READ_ONLY)]
    quiet = pool_of(factory, pg_cluster, "globex")
    async with reading(quiet) as took:
        (fault, after_s), _ = await asyncio.gather(*map(fault_of, endless))
        assert (fault.kind, fault.sqlstate) == (FaultKind.CONNECT_FAILED, LOGIN_FAILED)
        assert fault.message.startswith("login acme: its password takes too long to prove")
        assert after_s < 3.0
        again, after_s = await fault_of(endless[0])
        assert (again.message, after_s < 0.5) == (fault.message, True)  # one computation, and it goes on
    for pool in (*endless, quiet):
        await pool.close(CloseReason.SHUTDOWN)
    assert len(took) > 50
    assert max(took) < 0.1, sorted(took)[-5:]


@pytest.mark.pg
async def test_many_iterations_are_computed_beside_the_neighbours_reads(
    pg_cluster: DevCluster, laborious: Callable[[int], None]
) -> None:
    laborious(SLOW)
    factory = PsycopgPoolFactory(SystemChance(), Recorder(), roomy)
    thorough, quiet = pool_of(factory, pg_cluster, "acme"), pool_of(factory, pg_cluster, "globex")
    async with reading(quiet) as took:
        began = time.monotonic()
        lane = await thorough.open_lane(soon())
        assert time.monotonic() - began > 0.1  # it did compute
        await lane.give_back()
    for pool in (thorough, quiet):
        await pool.close(CloseReason.SHUTDOWN)
    assert max(took) < 0.1, sorted(took)[-5:]


# --- without a server ----------------------------------------------------------------------------------------------


class Logins:
    """Connects whose computations are functions of the test."""

    def __init__(self) -> None:
        self.handshakes = Handshakes()
        self.ours, self.theirs = socket.socketpair()
        self.theirs.send(b"to be read")
        self.threads: set[int] = set()

    def _polling(self, work: Callable[[], None]) -> Any:
        yield self.ours.fileno(), Wait.W
        assert threading.get_ident() == threading.main_thread().ident
        for each in (lambda: None, work, lambda: None):
            yield self.ours.fileno(), Wait.R
            self.threads.add(threading.get_native_id())
            each()
        return "connected"

    def log_in(self, who: tuple[TenantName, str], work: Callable[[], None]) -> asyncio.Task[str]:
        driven = self.handshakes.driven(who, self._polling(work))
        return asyncio.create_task(waiting.wait_conn_async(driven, 0.05, 5.0))  # type: ignore[arg-type]

    def __enter__(self) -> Logins:
        return self

    def __exit__(self, *_: object) -> None:
        self.ours.close()
        self.theirs.close()


async def test_each_login_computes_one_thing_at_a_time_and_none_waits_for_another_login() -> None:
    with Logins() as logins:
        running = most = 0

        def work() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            time.sleep(0.02)
            running -= 1

        may_end = threading.Event()
        held = logins.log_in(OTHER, may_end.wait)  # type: ignore[arg-type]
        found = await asyncio.gather(*(logins.log_in(WHO, work) for _ in range(5)))
        assert (found, most) == (["connected"] * 5, 1)
        assert not held.done()
        may_end.set()
        assert await held == "connected"
        assert threading.get_native_id() not in logins.threads
        await eventually(lambda: not logins.handshakes._lines, within_s=2.0, what="no thread is left")


async def test_an_error_of_the_connect_is_its_own() -> None:
    with Logins() as logins:

        def refuse() -> None:
            raise psycopg.OperationalError("refused")

        with pytest.raises(psycopg.OperationalError, match="refused"):
            await logins.log_in(WHO, refuse)
        assert await logins.log_in(WHO, lambda: None) == "connected"


async def test_what_is_given_up_and_computes_on_is_the_only_one_of_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "LONG_S", 0.1)
    with Logins() as logins:
        may_end, threads = threading.Event(), []

        def work() -> None:
            threads.append(threading.get_native_id())
            may_end.wait()

        first = logins.log_in(WHO, work)
        await eventually(lambda: logins.handshakes.computes(WHO), within_s=2.0, what="the first has begun")
        second = logins.log_in(WHO, lambda: None)
        await eventually(lambda: len(logins.handshakes._lines[WHO]) == 2, within_s=2.0, what="the second waits")
        first.cancel()
        await asyncio.wait([first])
        del first
        assert logins.ours.fileno() >= 0
        assert logins.theirs.recv(99) == b""  # the server is not kept waiting
        with pytest.raises(NeverProven, match="login acme: its password takes too long"):
            await logins.log_in(WHO, work)
        assert not second.done()
        ours, its = (os.getpriority(os.PRIO_PROCESS, one) for one in (threading.get_native_id(), threads[0]))
        assert its > ours or ours == _LOWEST
        may_end.set()
        assert await second == "connected"
        assert await logins.log_in(WHO, lambda: None) == "connected"
        assert len(threads) == 1


async def test_a_connect_that_was_just_given_up_keeps_the_next_one_waiting_and_no_longer() -> None:
    with Logins() as logins:
        began, may_end = threading.Event(), threading.Event()

        def work() -> None:
            began.set()
            may_end.wait()

        first = logins.log_in(WHO, work)
        await asyncio.to_thread(began.wait)
        first.cancel()
        await asyncio.wait([first])
        del first
        second = logins.log_in(WHO, lambda: None)
        await asyncio.sleep(0.05)
        assert not second.done()
        may_end.set()
        assert await second == "connected"
