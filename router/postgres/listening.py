"""A connection that does nothing but LISTEN: opened like any other of its tenant's, then read at psycopg.pq level.

Not a lane: in pipeline mode libpq gives notifications out, too, but a lane lives from units and their answers, and here
nothing is asked for minutes. Each statement is one message in a transaction of its own, so that none stays open:
PostgreSQL keeps every notification of every database until the slowest listener's transaction has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import psycopg

from router.model.events import ConnectionClosed
from router.model.identity import EndpointName, Generation
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.request import Access
from router.model.topology import Cluster, Endpoint, Login, Tenant
from router.ports import Chance, EventSink
from router.ports.listening import Hearer
from router.postgres import conninfo, faults
from router.postgres.answer_size import AnswerSize
from router.postgres.control_connection import ControlConnection
from router.postgres.endpoint_pool import PsycopgPoolFactory
from router.postgres.liveness import shut_socket
from router.postgres.opening import Opener
from router.postgres.permits import PoolPermits

ACCESS = Access.READ_ONLY
"""LISTEN needs a primary, but may not write: PostgreSQL keeps such a session from it."""
_LEAVES_LINE_S = 0.01
_Ended = Callable[["PqListeningConnection", CloseReason], None]
KEEPS_S: Final = 1.0
"""After so long it may be asked for, by a tenant that has less than its due: a turn, as elsewhere."""


class PqListeningConnection:
    """ports.listening.ListeningConnection."""

    def __init__(
        self, connection: psycopg.AsyncConnection[Any], place: Fault, hearer: Hearer, ended: _Ended
    ) -> None:
        """place: where the connection is, as its faults say it."""
        self._pgconn = connection.pgconn
        self._pgconn.nonblocking = 1
        self._asking = False
        self._closed = False
        self._place = place
        self._hearer = hearer
        self._ended = ended
        self._link = ControlConnection(self._pgconn)
        self._size = AnswerSize(self._pgconn.socket)
        self._fd = self._pgconn.socket
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._on_readable)

    async def listen(self, channels: Sequence[str], deadline: float) -> None:
        """ports.listening.ListeningConnection.listen."""
        for channel in channels:
            await self._ask(f"LISTEN {_quoted(channel)}", deadline)

    async def unlisten(self, channels: Sequence[str], deadline: float) -> None:
        """ports.listening.ListeningConnection.unlisten."""
        for channel in channels:
            await self._ask(f"UNLISTEN {_quoted(channel)}", deadline)

    async def check(self, deadline: float) -> None:
        """ports.listening.ListeningConnection.check."""
        await self._ask("SELECT", deadline)

    @property
    def open(self) -> bool:
        """Not lost, not closed."""
        return not self._closed

    def retire(self) -> None:
        """permits.Retirable: another pool of the endpoint needs the room more."""
        self._lose("another pool needs the room under the cap", CloseReason.RECLAIMED)

    def close(self, reason: CloseReason) -> None:
        """ports.listening.ListeningConnection.close."""
        if self._closed:
            return
        self._closed = True
        # Shut, not closed, while a question waits on the descriptor: that ends by it, and nobody else gets its number.
        shut_socket(self._pgconn)
        if not self._asking:
            self._finish()
        self._ended(self, reason)

    def _finish(self) -> None:
        self._loop.remove_reader(self._fd)
        self._pgconn.finish()

    async def _ask(self, sql: str, deadline: float) -> None:
        if self._closed:
            raise AttemptFailed(self._place)
        self._loop.remove_reader(self._fd)
        self._asking = True
        try:
            await self._link.query(sql, deadline)
        finally:
            self._asking = False
            if self._closed:
                self._pgconn.finish()
            elif self._link.usable:
                self._loop.add_reader(self._fd, self._on_readable)
                self._take()
            else:
                self._closed = True
                self._ended(self, CloseReason.CONNECTION_LOST)
        if self._closed:  # under the question, whose answer had come all the same
            raise AttemptFailed(self._place)

    def _on_readable(self) -> None:
        try:
            self._pgconn.consume_input()
            self._take()
        except psycopg.Error as error:
            self._lose(faults.first_line(error), CloseReason.CONNECTION_LOST)
            return
        if not self._closed and self._size.unasked():
            self._lose("the server talks without being asked", CloseReason.CONNECTION_LOST)

    def _take(self) -> None:
        """Hand on what has come whole."""
        while not self._closed and (notify := self._pgconn.notifies()) is not None:
            self._size.idle_from = None
            channel, payload = notify.relname.decode("utf-8", "replace"), notify.extra.decode("utf-8", "replace")
            self._hearer.notified(channel, payload, notify.be_pid)

    def _lose(self, message: str, reason: CloseReason) -> None:
        if not self._closed:
            self.close(reason)
            self._hearer.lost(Fault(
                FaultKind.CONNECTION_LOST, Stage.EXECUTE, message=message, endpoint=self._place.endpoint,
                generation=self._place.generation,
            ))  # fmt: skip


class PsycopgListeningFactory:
    """ports.listening.ListeningFactory: with the gates and budgets of the pools."""

    def __init__(
        self,
        pools: PsycopgPoolFactory,
        chance: Chance,
        events: EventSink,
        login_of: Callable[[Tenant, EndpointName], Login] = lambda tenant, _: tenant.login,
    ) -> None:
        """login_of: what a tenant's new connections to an endpoint are opened with."""
        self._login_of = login_of
        self._pools = pools
        self._chance = chance
        self._events = events

    async def open(
        self,
        tenant: Tenant,
        cluster: Cluster,
        endpoint: Endpoint,
        generation: Generation,
        hearer: Hearer,
        deadline: float,
    ) -> PqListeningConnection:
        """ports.listening.ListeningFactory.open."""
        gate, budget = self._pools.gate_of(cluster, endpoint), self._pools.budget_of(endpoint)
        told: asyncio.Future[Fault | None] = asyncio.get_running_loop().create_future()
        waiters = {told: None}
        permits = PoolPermits[PqListeningConnection](budget, tenant.name, tenant.pool, waiters, _nothing_idle)
        opener = Opener(
            replace(tenant, login=self._login_of(tenant, endpoint.name)),
            cluster, endpoint, ACCESS, generation, gate, permits, waiters, self._pools.passwords,
            self._pools.handshakes, self._chance, self._events,
        )  # fmt: skip
        try:
            connection = await _connected(opener, permits, told, endpoint, deadline)
        except BaseException:
            budget.leave(permits)
            raise
        permits.now_used(connection)
        waiters.clear()

        def ended(listening: PqListeningConnection, reason: CloseReason) -> None:
            self._events.emit(ConnectionClosed(tenant.name, endpoint.name, ACCESS, reason))
            permits.lanes.pop(listening, None)
            opener.forget(connection)
            budget.leave(permits)

        place = Fault(FaultKind.CLOSED, Stage.EXECUTE, endpoint=endpoint.name, generation=generation)
        listening = PqListeningConnection(connection, place, hearer, ended)
        asyncio.get_running_loop().call_later(KEEPS_S, _may_be_asked_for, permits, listening)
        return listening


async def _connected(
    opener: Opener,
    permits: PoolPermits[PqListeningConnection],
    told: asyncio.Future[Fault | None],
    endpoint: Endpoint,
    deadline: float,
) -> psycopg.AsyncConnection[Any]:
    """A connection that is the tenant's own. AttemptFailed when there is none by the deadline."""
    budget = permits.budget
    # Who stands in line leaves it first, so that the end of the time tells what it was waited for.
    leaving = asyncio.get_running_loop().call_at(deadline - _LEAVES_LINE_S, budget.withdraw, permits)
    try:
        async with asyncio.timeout_at(deadline):
            return await opener.connection_class().connect(**conninfo.never_idle(opener.parameters))
    except TimeoutError:
        fault = Fault(FaultKind.SILENT, Stage.CONNECT, message="no answer while connecting", endpoint=endpoint.name)
    except faults.CLIENT_ERRORS:
        words = f"the endpoint's cap is used up, {budget.in_use} of {budget.granted} connections are open"
        no_room = Fault(FaultKind.POOL_TIMEOUT, Stage.ACQUIRE, message=words, endpoint=endpoint.name)
        fault = (told.result() if told.done() else None) or no_room
    finally:
        leaving.cancel()
    raise AttemptFailed(fault)


def _may_be_asked_for(permits: PoolPermits[PqListeningConnection], listening: PqListeningConnection) -> None:
    if listening.open:
        permits.lanes[listening] = 0.0


def _nothing_idle() -> None:
    """A listening connection is always used."""


def _quoted(channel: str) -> str:
    return '"' + channel.replace('"', '""') + '"'
