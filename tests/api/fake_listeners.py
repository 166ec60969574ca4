"""Listen streams that a test feeds, behind the shape of router/api/surface.py."""

from __future__ import annotations

from collections.abc import Collection

from router.engine.listener import Listener
from router.model.errors import RouterError
from router.model.request import Request
from router.model.topology import Tenant


class FakeListeners:
    """Opens the engine's own streams, without an engine behind them."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.open_ones: list[Listener] = []
        self.closed = 0
        self.refuse_with: RouterError | None = None
        self.heartbeat_s = 30.0

    async def open(self, tenant: Tenant, request: Request, channels: Collection[str]) -> Listener:
        self.requests.append(request)
        if self.refuse_with is not None:
            raise self.refuse_with
        one = Listener(frozenset(channels), self.heartbeat_s, self._left)
        self.open_ones.append(one)
        return one

    def _left(self, one: Listener) -> None:
        self.open_ones.remove(one)
        self.closed += 1
