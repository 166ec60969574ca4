"""ports.PoolFactory over the model: tests.support's pools and lanes, whose connections go over the network."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from router.model.identity import Generation
from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.model.request import Access
from router.model.topology import Cluster, Endpoint, Tenant
from router.ports import Unit
from tests.simulation.backend import ModelBackend
from tests.simulation.node import Node, Process
from tests.support.fake_endpoint_pool import FakeEndpointPool
from tests.support.fake_lane import CANCEL_S, FakeConnection, FakeLane
from tests.support.fake_server import Backend

if TYPE_CHECKING:
    from tests.simulation.router_life import RouterLife


class ModelLane(FakeLane):
    """A lane whose cancel requests travel like everything else."""

    pool: ModelPool

    def submit(self, unit: Unit) -> None:
        if self.closed is None:
            self.pool.life.judge.submitted(self.pool, self, unit)
        super().submit(unit)

    async def cancel(self) -> bool:
        if self.closed is not None or self.given_back or not self._pending or self.pool.life.dead:
            return not self._cancel_unconfirmed
        self._cancel_unconfirmed = True
        network, node = self.pool.node.servers.network, self.pool.node
        backend = self.connection.backend
        deadline = self._loop.time() + CANCEL_S
        try:
            await network.travel(self.pool.life.host, node.name, deadline)
            if not node.answers:
                node.soon(backend.signal)
                await asyncio.sleep(deadline - self._loop.time())
                return False
            backend.signal()
            await network.travel(node.name, self.pool.life.host, deadline)
        except TimeoutError:
            return False
        self._cancel_unconfirmed = False
        return True


class ModelPool(FakeEndpointPool):
    """Connections of one tenant to one node."""

    def __init__(self, life: RouterLife, node: Node, tenant: Tenant, cluster: Cluster, access: Access,
                 generation: Generation) -> None:
        super().__init__(node.server, max_size=tenant.pool.max_size, access=access, generation=generation,
                         endpoint=node.name, lifetime_s=tenant.pool.lifetime_s)
        self.life = life
        self.node = node
        self._connect_timeout_s = cluster.policy.connect_timeout_s

    def _make_lane(self, connection: FakeConnection) -> FakeLane:
        return ModelLane(connection)

    def killed(self) -> None:
        """The router's process is gone."""
        for connection in (*self._idle, *self._leased):
            connection.backend.client_killed()

    async def _connect(self, deadline: float) -> FakeConnection:
        loop = asyncio.get_running_loop()
        generation = self._generation
        node, network = self.node, self.node.servers.network
        until = min(deadline, loop.time() + self._connect_timeout_s)
        self._opening += 1
        try:
            for _ in range(2):  # TCP's handshake and start-up, then the login
                await network.travel(self.life.host, node.name, until)
                if not node.answers or node.postmaster_frozen:
                    await self._not_connected(until)
                await network.travel(node.name, self.life.host, until)
        except TimeoutError:
            kind = FaultKind.POOL_TIMEOUT if until == deadline else FaultKind.CONNECT_FAILED
            raise AttemptFailed(Fault(kind, Stage.ACQUIRE, endpoint=self.endpoint)) from None
        finally:
            self._opening -= 1
        self.opened += 1
        return ModelConnection(self, generation, loop.time() + self.lifetime_s)

    async def _not_connected(self, until: float) -> None:
        node, network = self.node, self.node.servers.network
        if node.host_down or node.frozen or node.postmaster_frozen:
            await asyncio.sleep(until - asyncio.get_running_loop().time())
            raise TimeoutError
        await network.travel(node.name, self.life.host, until)
        if node.process is Process.DEAD:
            raise AttemptFailed(Fault(FaultKind.CONNECT_REFUSED, Stage.CONNECT, message="refused"))
        raise AttemptFailed(Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, message="the server is starting up"))


class ModelConnection(FakeConnection):
    """One connection through the network."""

    pool: ModelPool

    def _make_backend(self) -> Backend:
        return ModelBackend(self.pool.node, self.pool.access is Access.READ_ONLY, self._deliver, self.pool.life.host)


class ModelPoolFactory:
    """Makes them, for one life of a router."""

    def __init__(self, life: RouterLife) -> None:
        self._life = life
        self.pools: list[ModelPool] = []

    def make(self, tenant: Tenant, cluster: Cluster, endpoint: Endpoint, access: Access,
             generation: Generation) -> ModelPool:
        node = self._life.servers.nodes[endpoint.name]
        pool = ModelPool(self._life, node, tenant, cluster, access, generation)
        self.pools.append(pool)
        return pool
