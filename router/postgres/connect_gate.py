"""How many connections are being opened to one endpoint at once, and whose turn it is: tenants share that.

A connect that takes long goes on, but its place here is given back: what makes it slow may be in its tenant's own hands
(a lock on its catalogue, a password that takes long to prove), and neighbours would stand behind it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from router.model.identity import TenantName
from router.model.policy import ClusterPolicy

SLOW_S: Final = 0.5
"""Many times what a connect takes (seconds)."""


class ConnectGate:
    """At most so many connections being opened to one endpoint at once, over all tenants; slow ones not counted."""

    def __init__(self, policy: ClusterPolicy) -> None:
        self.limit = policy.connects_in_flight
        self.timeout_s = policy.connect_timeout_s
        """A connection that is not open after this long has failed."""
        self.counted = 0
        self.under_way: Counter[TenantName] = Counter()
        """Connects that have begun, slow ones too."""
        self.slow: set[TenantName] = set()
        """Tenants whose connect was slow the last time: they go behind others."""
        self._line: dict[asyncio.Future[None], TenantName] = {}

    def follow(self, policy: ClusterPolicy) -> None:
        """Another configuration: for connects from now on."""
        self.limit, self.timeout_s = policy.connects_in_flight, policy.connect_timeout_s
        self._let_in()

    def place(self, tenant: TenantName) -> Place:
        """To be entered for one connect."""
        return Place(self, tenant)

    async def turn(self, tenant: TenantName) -> None:
        """Wait for a place. May be cancelled at any time: none is lost."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line[waiter] = tenant
        self._let_in()
        try:
            await waiter
        except asyncio.CancelledError:
            if self._line.pop(waiter, None) is None:  # it had just been let in
                self.end(tenant)
                self.give_back()
            raise

    def end(self, tenant: TenantName) -> None:
        """A connect is over."""
        self.under_way[tenant] -= 1
        if not self.under_way[tenant]:
            del self.under_way[tenant]

    def give_back(self) -> None:
        """A place is free again."""
        self.counted -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._line and self.counted < self.limit:
            waiter = min(self._line, key=self._rank)  # of equals the first that came
            tenant = self._line.pop(waiter)
            self.counted += 1
            self.under_way[tenant] += 1
            waiter.set_result(None)

    def _rank(self, waiter: asyncio.Future[None]) -> tuple[bool, int]:
        tenant = self._line[waiter]
        return tenant in self.slow, self.under_way[tenant]


class Place:
    """One connect's place in a gate, as a context; given back at its end, or sooner when it is slow."""

    __slots__ = ("_alarm", "_gate", "_tenant")

    def __init__(self, gate: ConnectGate, tenant: TenantName) -> None:
        self._gate = gate
        self._tenant = tenant
        self._alarm: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._gate.turn(self._tenant)
        self._alarm = asyncio.get_running_loop().call_later(SLOW_S, self._be_slow)

    async def __aexit__(self, *_: object) -> None:
        gate = self._gate
        gate.end(self._tenant)
        if self._alarm is not None:
            self._alarm.cancel()
            gate.slow.discard(self._tenant)
            gate.give_back()

    def _be_slow(self) -> None:
        self._alarm = None
        self._gate.slow.add(self._tenant)
        self._gate.give_back()
