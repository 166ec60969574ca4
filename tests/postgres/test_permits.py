"""Permits on virtual time: connections of this machine with itself, whose other end closes when the test says so."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from router.decisions.letting_go import GONE_S, LONGEST_S
from router.engine.connection_budget import Budgets, EndpointBudget
from router.model.events import Health
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.policy import PoolPolicy
from router.model.state import ClusterState, EndpointState
from router.model.topology import Endpoint
from router.postgres.permits import LETS_GO_S, Permit, PoolPermits, was_heard
from tests.support.virtual_time import virtual

MAIN, N1 = ClusterName("main"), EndpointName("n1")
ENDPOINT = Endpoint(N1, MAIN, "127.0.0.1", max_connections=2)


class Connection:
    """As much of psycopg's as a permit wants."""

    def __init__(self, ours: socket.socket) -> None:
        self.pgconn = self
        self.socket = ours.fileno()


class Pool:
    """A pool's permits, and the server's ends of its connections."""

    def __init__(self, budget: EndpointBudget) -> None:
        self.permits: PoolPermits[Any] = PoolPermits(budget, TenantName("acme"), PoolPolicy(), (), lambda: None)
        self.sockets: list[socket.socket] = []

    async def closed(self) -> socket.socket:
        """The server's end of a connection that was closed here."""
        permit = await self.permits.take()
        assert isinstance(permit, Permit)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        self.sockets.append(theirs)
        permit.attach(Connection(ours))  # type: ignore[arg-type]
        ours.close()
        permit.end()
        return theirs


@contextmanager
def pool_of(budgets: Budgets) -> Iterator[Pool]:
    pool = Pool(budgets.of(ENDPOINT))
    try:
        yield pool
    finally:
        for one in pool.sockets:
            one.close()


def state(health: Health) -> ClusterState:
    return ClusterState(MAIN, endpoints={N1: EndpointState(N1, health=health)})


@virtual
async def test_it_comes_back_with_the_end_of_the_server_however_late() -> None:
    with pool_of(Budgets()) as pool:
        theirs = await pool.closed()
        await asyncio.sleep(100)
        assert pool.permits.budget.in_use == 1
        theirs.close()
        await asyncio.sleep(0.3)
        assert pool.permits.budget.in_use == 0


@virtual
async def test_it_is_not_lost_for_ever() -> None:
    with pool_of(Budgets()) as pool:
        await pool.closed()
        await asyncio.sleep(LONGEST_S - 1)
        assert pool.permits.budget.in_use == 1
        await asyncio.sleep(2)
        assert pool.permits.budget.in_use == 0


@pytest.mark.parametrize("health", list(Health))
def test_a_server_that_is_gone_or_fenced_holds_none(health: Health) -> None:
    @virtual
    async def scenario() -> None:
        budgets = Budgets()
        with pool_of(budgets) as pool:
            await pool.closed()
            await asyncio.sleep(GONE_S + 0.1)
            budgets.on_state(state(health))
            await asyncio.sleep(0.3)
            assert pool.permits.budget.in_use == (health not in (Health.DOWN, Health.QUARANTINED))

    scenario()


@virtual
async def test_a_server_that_was_gone_and_is_back_is_waited_for_again() -> None:
    budgets = Budgets()
    budgets.on_state(state(Health.DOWN))
    with pool_of(budgets) as pool:
        budgets.on_state(state(Health.UP))
        await pool.closed()
        await asyncio.sleep(GONE_S + 1)
        assert pool.permits.budget.in_use == 1


@virtual
async def test_a_server_that_has_left_the_configuration_holds_none() -> None:
    budgets = Budgets()
    with pool_of(budgets) as pool:
        budgets.apply([])
        await pool.closed()
        await asyncio.sleep(GONE_S + 0.1)
        assert pool.permits.budget.in_use == 0


@virtual
async def test_what_the_server_holds_on_to_is_not_on_its_way_back_and_counts_as_its_tenants() -> None:
    """Else others would wait for it, and its tenant have as many again."""
    with pool_of(Budgets()) as pool:
        await pool.closed()
        assert (pool.permits.leaving, pool.permits.keeps) == (1, 0)
        await asyncio.sleep(LETS_GO_S)
        assert (pool.permits.leaving, pool.permits.keeps, pool.permits.open) == (0, 1, 0)


@pytest.mark.parametrize(
    ("tcp_state", "last_ack_ms", "heard"),
    [(5, 5000, True), (4, 5000, False), (4, 1990, False), (4, 1900, True), (1, 3000, False)],
)
def test_whether_the_other_machine_has_answered_since_the_end(tcp_state: int, last_ack_ms: int, heard: bool) -> None:
    """5: it has confirmed it. 4: it has not; what it last confirmed is younger or older than the end, 2 s ago."""
    assert was_heard(bytes([tcp_state]) + bytes(55) + struct.pack("=I", last_ack_ms), 2.0) == heard
