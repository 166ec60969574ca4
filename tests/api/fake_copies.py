"""Copies that a test scripts, behind the shape of router/api/surface.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from router.model.copying import CopyAnswer, CopyLayout
from router.model.errors import RouterError
from router.model.request import Request, WriteOutcome
from router.model.result import OutcomeFound, PgNotice
from router.model.topology import Tenant
from tests.api.fake_engine import RECEIPT

ANSWER = CopyAnswer(3, 10, "COPY 3", RECEIPT, (PgNotice("NOTICE", "00000", "hm"),))


class FakeOutcomes:
    """Finds what it is told to."""

    def __init__(self) -> None:
        self.found = OutcomeFound(WriteOutcome.COMMITTED, 1_700_000_000_000_000, ("INSERT 0 1", ""), RECEIPT)
        self.asked: list[str] = []

    async def of_request(self, tenant: Tenant, request_id: str, deadline: float) -> OutcomeFound:
        self.asked.append(request_id)
        return OutcomeFound(WriteOutcome.UNKNOWN)

    async def of_key(self, tenant: Tenant, key: str, deadline: float, request_id: str) -> OutcomeFound:
        self.asked.append(key)
        return self.found


class FakeCopies:
    """Gives `items` out, takes everything in; raises what it is told to."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.items: list[CopyLayout | bytes | CopyAnswer | RouterError] = [CopyLayout(2, binary=False), ANSWER]
        self.taken: list[bytes] = []
        self.ends: list[str] = []
        """How each ended: "committed", "undone", "closed"."""
        self.refuse_after: tuple[int, RouterError] | None = None
        self.gate: asyncio.Event | None = None
        """Data is taken once it opens."""

    async def copy_out(
        self, tenant: Tenant, request: Request
    ) -> AsyncGenerator[CopyLayout | bytes | CopyAnswer, None]:
        self.requests.append(request)
        try:
            for item in self.items:
                if isinstance(item, RouterError):
                    raise item
                yield item
                await asyncio.sleep(0)
        finally:
            self.ends.append("closed")

    async def copy_in(self, tenant: Tenant, request: Request, source: AsyncIterator[bytes]) -> CopyAnswer:
        self.requests.append(request)
        try:
            async for data in source:
                if self.gate is not None:
                    await self.gate.wait()
                self.taken.append(data)
                if self.refuse_after is not None and len(self.taken) == self.refuse_after[0]:
                    raise self.refuse_after[1]
        except BaseException:
            self.ends.append("undone")
            raise
        self.ends.append("committed")
        return CopyAnswer(len(self.taken), sum(map(len, self.taken)), "COPY", RECEIPT)
