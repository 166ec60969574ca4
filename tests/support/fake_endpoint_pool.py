"""ports.EndpointPool and ports.Lane on virtual time, over a scripted server; counts what happens to connections."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from router.model.identity import EndpointName, Generation
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.reasons import CloseReason
from router.model.request import Access
from router.model.topology import Cluster, Endpoint, Login, Tenant
from router.ports import PoolStatistics
from tests.support.fake_lane import CANCEL_TAKES, FakeConnection, FakeLane
from tests.support.fake_server import FakeServer

_NOBODY = Login("nobody")


class FakeEndpointPool:
    """ports.EndpointPool. opened = idle + leased + destroyed, always."""

    def __init__(
        self,
        server: FakeServer,
        *,
        max_size: int = 4,
        access: Access = Access.READ_WRITE,
        generation: Generation = Generation(1),
        endpoint: str = "a",
        lifetime_s: float = 1800.0,
        login: Login = _NOBODY,
    ) -> None:
        self.server = server
        self.access = access
        self.endpoint = EndpointName(endpoint)
        self.cancel_takes = CANCEL_TAKES
        self.max_size = max_size
        self.lifetime_s = lifetime_s
        self.login = login
        self.opened = self.lent = self.returned = 0
        self.destroyed: Counter[CloseReason] = Counter()
        self.lanes: list[FakeLane] = []
        """All that were ever lent."""
        self._generation = generation
        self._idle: deque[FakeConnection] = deque()
        self._leased: dict[FakeConnection, None] = {}
        """In the order of lending, which a set would not keep: the same run ends the same way again."""
        self._opening = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._closed = False

    @property
    def generation(self) -> Generation:
        return self._generation

    async def open_lane(self, deadline: float) -> FakeLane:
        loop = asyncio.get_running_loop()
        while True:
            if self._closed:
                raise AttemptFailed(Fault(FaultKind.CLOSED, Stage.ACQUIRE))
            while self._idle:
                connection = self._idle.popleft()
                if not connection.backend.dead and loop.time() < connection.expires_at:
                    return self._lend(connection)
                self.destroy(connection, CloseReason.CONNECTION_LOST)
            if len(self._leased) + self._opening < self.max_size:
                connection = await self._connect(deadline)
                if connection.generation == self._generation:
                    return self._lend(connection)
                self.destroy(connection, CloseReason.GENERATION)
            else:
                await self._wait_for_room(deadline)

    async def _wait_for_room(self, deadline: float) -> None:
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room.append(room)
        try:
            async with asyncio.timeout_at(deadline):
                await room
        except TimeoutError:
            raise AttemptFailed(Fault(FaultKind.POOL_TIMEOUT, Stage.ACQUIRE, endpoint=self.endpoint)) from None

    async def _connect(self, deadline: float) -> FakeConnection:
        loop = asyncio.get_running_loop()
        generation = self._generation
        self._opening += 1
        self.server.connects += 1
        try:
            if self.server.connect_hangs or self.server.frozen:
                await asyncio.sleep(deadline - loop.time())
                raise AttemptFailed(Fault(FaultKind.POOL_TIMEOUT, Stage.ACQUIRE, endpoint=self.endpoint))
            await asyncio.sleep(self.server.connect_takes)
            self.server.logins[self.login] += 1
            if self.login in self.server.refused_logins:
                raise AttemptFailed(Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, "28P01", "no such password"))
            if self.server.connect_error == "refused":
                raise AttemptFailed(Fault(FaultKind.CONNECT_REFUSED, Stage.CONNECT, message="refused"))
            if self.server.connect_error is not None:
                raise AttemptFailed(Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, self.server.connect_error))
        finally:
            self._opening -= 1
        self.opened += 1
        return FakeConnection(self, generation, loop.time() + self.lifetime_s)

    def _lend(self, connection: FakeConnection) -> FakeLane:
        assert connection.backend.clean, "a connection that is not clean was lent"
        self._leased[connection] = None
        self.lent += 1
        lane = self._make_lane(connection)
        self.lanes.append(lane)
        return lane

    def _make_lane(self, connection: FakeConnection) -> FakeLane:
        return FakeLane(connection)

    def take_back(self, connection: FakeConnection) -> None:
        assert connection.backend.clean, "a connection that is not clean was returned"
        self._leased.pop(connection, None)
        self.returned += 1
        self._idle.append(connection)
        self._tell_room()

    def destroy(self, connection: FakeConnection, reason: CloseReason) -> None:
        self._leased.pop(connection, None)
        connection.lane = None
        connection.backend.leave()
        self.destroyed[reason] += 1
        self._tell_room()

    def _tell_room(self) -> None:
        while self._room:
            room = self._room.popleft()
            if not room.done():
                room.set_result(None)
                return

    def fence(self, generation: Generation) -> None:
        if generation == self._generation:
            return
        self._generation = generation
        for connection in list(self._leased):
            if connection.lane is not None:
                connection.lane.abandon(CloseReason.GENERATION)
        self._close_idle(CloseReason.GENERATION)

    def _close_idle(self, reason: CloseReason) -> None:
        while self._idle:
            self.destroy(self._idle.popleft(), reason)

    async def close(self, reason: CloseReason) -> None:
        self._closed = True
        for connection in list(self._leased):
            if connection.lane is not None:
                connection.lane.abandon(reason)
        self._close_idle(reason)
        await asyncio.sleep(0)

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            len(self._idle) + len(self._leased), len(self._idle), len(self._leased), self._opening, len(self._room),
            self.max_size,
        )

    def check_conserved(self, *, leased: int | None = None) -> None:
        """Nothing leaked, nothing was harmed."""
        assert self.opened == len(self._idle) + len(self._leased) + self.destroyed.total()
        assert not self.server.violations, self.server.violations
        assert all(one.backend.clean or one.backend.dead for one in self._idle)
        if leased is not None:
            assert len(self._leased) == leased, f"{len(self._leased)} connections leased, not {leased}"


class FakePoolFactory:
    """ports.PoolFactory over one fake server per endpoint."""

    def __init__(self, servers: dict[EndpointName, FakeServer]) -> None:
        self.servers = servers
        self.pools: list[FakeEndpointPool] = []

    def make(
        self, tenant: Tenant, cluster: Cluster, endpoint: Endpoint, access: Access, generation: Generation
    ) -> FakeEndpointPool:
        pool = FakeEndpointPool(
            self.servers[endpoint.name],
            max_size=tenant.pool.max_size,
            access=access,
            generation=generation,
            endpoint=endpoint.name,
            lifetime_s=tenant.pool.lifetime_s,
            login=tenant.login,
        )
        self.pools.append(pool)
        return pool
