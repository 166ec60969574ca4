"""ports.listening on virtual time: what is notified reaches who listens, and a test breaks what it wants."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from router.model.identity import EndpointName, Generation
from router.model.observation import AttemptFailed, Fault, FaultKind, PgError, Stage
from router.model.reasons import CloseReason
from router.model.topology import Cluster, Endpoint, Tenant
from router.ports.listening import Hearer


class FakeListening:
    """ports.listening.ListeningConnection."""

    def __init__(self, factory: FakeListeningFactory, endpoint: EndpointName, hearer: Hearer) -> None:
        self.endpoint = endpoint
        self.channels: set[str] = set()
        self.closed: CloseReason | None = None
        self.checks = 0
        self._factory = factory
        self._hearer = hearer

    @property
    def open(self) -> bool:
        return self.closed is None

    async def listen(self, channels: Sequence[str], deadline: float) -> None:
        await self._turn(deadline)
        if refused := self._factory.refused & set(channels):
            error = PgError(sqlstate="53200", message=f"out of memory for {refused}")
            raise AttemptFailed(Fault(FaultKind.SERVER_ERROR, Stage.EXECUTE, "53200", detail=error))
        self.channels |= set(channels)

    async def unlisten(self, channels: Sequence[str], deadline: float) -> None:
        await self._turn(deadline)
        self.channels -= set(channels)

    async def check(self, deadline: float) -> None:
        self.checks += 1
        await self._turn(deadline)

    async def _turn(self, deadline: float) -> None:
        if self._factory.frozen:
            await asyncio.sleep(max(0.0, deadline - asyncio.get_running_loop().time()))
            self.closed = self.closed or CloseReason.CONNECTION_LOST
            raise AttemptFailed(Fault(FaultKind.SILENT, Stage.EXECUTE))
        await asyncio.sleep(self._factory.answer_takes)
        if not self.open:
            raise AttemptFailed(Fault(FaultKind.CLOSED, Stage.EXECUTE))

    def close(self, reason: CloseReason) -> None:
        self.closed = self.closed or reason

    def notify(self, channel: str, payload: str) -> None:
        if self.open and channel in self.channels:
            self._hearer.notified(channel, payload, 7)

    def break_off(self) -> None:
        """The server, or the network, ends it."""
        if self.open:
            self.closed = CloseReason.CONNECTION_LOST
            self._hearer.lost(Fault(FaultKind.CONNECTION_LOST, Stage.EXECUTE, message="gone"))


class FakeListeningFactory:
    """ports.listening.ListeningFactory."""

    def __init__(self) -> None:
        self.connections: list[FakeListening] = []
        """All that were ever opened."""
        self.asked: list[EndpointName] = []
        """Where connections were wanted."""
        self.refused: set[str] = set()
        """Channels whose LISTEN fails."""
        self.failing: Fault | None = None
        self.frozen = False
        self.connect_takes = 0.01
        self.answer_takes = 0.001

    async def open(
        self,
        tenant: Tenant,
        cluster: Cluster,
        endpoint: Endpoint,
        generation: Generation,
        hearer: Hearer,
        deadline: float,
    ) -> FakeListening:
        self.asked.append(endpoint.name)
        await asyncio.sleep(self.connect_takes)
        if self.failing is not None:
            raise AttemptFailed(self.failing)
        self.connections.append(FakeListening(self, endpoint.name, hearer))
        return self.connections[-1]

    @property
    def present(self) -> list[FakeListening]:
        """Those that are open."""
        return [one for one in self.connections if one.open]

    def notify(self, endpoint: str, channel: str, payload: str) -> None:
        """Somebody's NOTIFY on a server."""
        for one in self.present:
            if one.endpoint == endpoint:
                one.notify(channel, payload)
