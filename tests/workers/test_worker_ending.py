"""What a worker that ends in good order waits for: whoever hears that it is gone gives its connections to others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from router import data_plane
from router.config.loaded import LoadedConfig
from router.model.identity import ClusterName, EndpointName
from router.model.ledger import Grant
from router.model.policy import RetryPolicy, ServerPolicy
from router.model.port_policies import LogPolicy
from router.model.topology import Endpoint, TenantChanges, Topology
from router.workers.messages import Begin, Configuration, Grants, Look
from router.workers.worker import WorkerProcess
from tests.engine.test_connection_budget import Holder

N1 = Endpoint(EndpointName("n1"), ClusterName("main"), "127.0.0.1", max_connections=4)


class FakeChannel:
    """To nobody."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def tell(self, *messages: object) -> None:
        self.said += messages


class World:
    """A worker without clusters or callers."""

    def __init__(self) -> None:
        config = LoadedConfig(Topology({}, {}), ServerPolicy(), RetryPolicy(), (), (), LogPolicy(), Path("none"))
        begin = Begin(1, 1, "127.0.0.1:0", Configuration(config, (), TenantChanges()))
        self.channel = FakeChannel()
        self.worker = WorkerProcess(begin, self.channel)  # type: ignore[arg-type]

    async def stopping(self, connections: int) -> tuple[asyncio.Task[None], Holder]:
        """It ends while the server has yet to let go of so many."""
        await self.worker.start()
        self.worker.take(Grants((Grant(N1.name, 4, 1),)))
        holder = Holder(self.worker._budgets.of(N1))
        await holder.open(connections)
        return asyncio.create_task(self.worker.stop(0.0)), holder

    @property
    def ended(self) -> bool:
        """The last look is its last word."""
        return any(isinstance(one, Look) for one in self.channel.said)


async def test_a_worker_is_not_gone_before_the_server_has_let_go_of_its_connections() -> None:
    world = World()
    stopping, holder = await world.stopping(connections=2)
    await asyncio.sleep(0.4)
    assert not world.ended
    holder.close()
    await asyncio.sleep(0.1)
    assert not world.ended, "one is left"
    holder.close()
    async with asyncio.timeout(0.2):
        await stopping
    assert world.ended


async def test_a_worker_does_not_wait_for_a_server_that_never_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_plane, "GONE_S", 0.05)
    world = World()
    stopping, _ = await world.stopping(connections=1)
    async with asyncio.timeout(1.0):
        await stopping
    assert world.ended
