"""A journal in memory, which may fail or hang, and remembers every page."""

from __future__ import annotations

import asyncio

from router.model.identity import ClusterName
from router.model.journal import ClusterRecord, JournalFailed


class FakeJournal:
    """ports.Journal."""

    def __init__(self) -> None:
        self.pages: list[ClusterRecord] = []
        self.fails = False
        self.hangs = False

    def read(self, cluster: ClusterName) -> ClusterRecord | None:
        return next((one for one in reversed(self.pages) if one.cluster == cluster), None)

    async def write(self, record: ClusterRecord) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(0.002)
        if self.fails:
            raise JournalFailed("no space left on device")
        self.pages.append(record)
