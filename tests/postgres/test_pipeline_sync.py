"""Sync with and without a send of its own: found where it can be, the same both ways, never in a wrong library."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import pq

from router.devcluster import DevCluster
from router.model.policy import PoolPolicy
from router.model.reasons import CloseReason
from router.model.request import Access
from router.ports import Lane
from router.postgres import pipeline_sync
from router.postgres.endpoint_pool import PsycopgEndpointPool
from tests.contracts.promises import fault_of, soon, submit, values
from tests.contracts.real_pool import make_real_pool

pytestmark = pytest.mark.pg

KNOWN = pq.__impl__ != "python" and pq.version() >= 170000


@pytest.fixture(params=["queued", "sent at once"])
async def lane(
    request: pytest.FixtureRequest, pg_cluster_each: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Lane]:
    if request.param == "sent at once":
        monkeypatch.setattr(pipeline_sync, "_linked_libpq", lambda: None)
    pool: PsycopgEndpointPool = make_real_pool(pg_cluster_each, Access.READ_WRITE, PoolPolicy(max_size=1))
    lane = await pool.open_lane(soon())
    yield lane
    await lane.give_back()
    await pool.close(CloseReason.SHUTDOWN)


@pytest.fixture
def connection(pg_cluster: DevCluster) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(pg_cluster.tenant_dsn("acme"), autocommit=True) as connection:
        connection.pgconn.nonblocking = 1
        connection.pgconn.enter_pipeline_mode()
        yield connection


async def test_every_unit_has_a_sync_of_its_own(lane: Lane) -> None:
    made = [submit(lane, "select 1/0" if n % 4 == 2 else f"select {n}") for n in range(20)]
    two = submit(lane, "select 20", "select 1/0", "select 22")
    last = submit(lane, "select 23")
    for n, unit in enumerate(await asyncio.gather(*made)):
        if n % 4 == 2:
            assert fault_of(unit).sqlstate == "22012"
        else:
            assert values(unit) == [b"%d" % n]
    assert (fault_of(await two).step, len((await two).results)) == (1, 1)
    assert values(await last) == [b"23"]


@pytest.mark.skipif(not KNOWN, reason="this libpq has no PQsendPipelineSync")
def test_nothing_is_sent_before_the_flush(connection: psycopg.Connection[Any]) -> None:
    pgconn = connection.pgconn
    queue_sync = pipeline_sync.queue_sync_on(pgconn)
    assert queue_sync != pgconn.pipeline_sync, "libpq knows it, and we found it"
    sent = _bytes_sent(pgconn.socket)
    pgconn.send_query_params(b"select 1", None)
    queue_sync()
    assert _bytes_sent(pgconn.socket) == sent
    assert pgconn.flush() == 0
    assert _bytes_sent(pgconn.socket) > sent
    assert _statuses(pgconn) == [pq.ExecStatus.TUPLES_OK, None, pq.ExecStatus.PIPELINE_SYNC]


def _bytes_sent(fd: int) -> int:
    """tcpi_bytes_sent of struct tcp_info (linux/include/uapi/linux/tcp.h)."""
    with socket.socket(fileno=os.dup(fd)) as duplicate:
        info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("Q", info, 200)[0])


def _statuses(pgconn: Any) -> list[int | None]:
    """Of the next three results; waits for them."""
    results = [pgconn.get_result() for _ in range(3)]
    return [None if result is None else pq.ExecStatus(result.status) for result in results]


@pytest.mark.skipif(not KNOWN, reason="this libpq has no PQsendPipelineSync")
def test_a_finished_connection_is_an_error_and_no_crash(connection: psycopg.Connection[Any]) -> None:
    queue_sync = pipeline_sync.queue_sync_on(connection.pgconn)
    connection.pgconn.finish()
    with pytest.raises(psycopg.OperationalError):
        queue_sync()


@pytest.mark.parametrize("wrong", ["PQsocket", "PQbackendPID"])
def test_a_library_that_reads_the_connection_otherwise_is_not_used(
    connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    class Library:
        PQsocket = staticmethod(lambda _: connection.pgconn.socket)
        PQbackendPID = staticmethod(lambda _: connection.pgconn.backend_pid)
        PQsendPipelineSync = staticmethod(lambda _: 1)

    monkeypatch.setattr(pipeline_sync, "_linked_libpq", Library)
    assert pipeline_sync.queue_sync_on(connection.pgconn) != connection.pgconn.pipeline_sync
    monkeypatch.setattr(Library, wrong, staticmethod(lambda _: -1))
    assert pipeline_sync.queue_sync_on(connection.pgconn) == connection.pgconn.pipeline_sync


@pytest.mark.parametrize("module", ["psycopg.pq.pq_ctypes", "no.such.module"])
def test_a_module_that_is_linked_to_no_libpq_has_none(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """A Python file, as of psycopg's pure variant, and one that was never imported."""
    __import__("psycopg.pq.pq_ctypes") if KNOWN else None
    monkeypatch.setattr(pipeline_sync.pq, "PGconn", type("PGconn", (), {"__module__": module}))
    assert pipeline_sync._linked_libpq.__wrapped__() is None
