"""ports.CopyChannel on virtual time: a COPY as a statement of a scripted server whose data is pieces of bytes.

The script of "copy ... to stdout" is a Reply whose rows are the pieces, one value each. That of "copy ... from stdin"
says how it begins; how it ends is the script of the same text with "finish " before it. Held to the real server by
tests/contracts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from router.model.copying import CopyLayout
from router.model.result import Cells
from router.ports import Unit
from tests.support.fake_replies import Reply

if TYPE_CHECKING:
    from tests.support.fake_lane import FakeLane

MAX_PIECES = 4


class FakeCopyChannel:
    """ports.CopyChannel."""

    def __init__(self, lane: FakeLane, unit: Unit) -> None:
        self._lane = lane
        self._unit = unit
        self._backend = lane.connection.backend
        self._sql = unit.statements[0].sql
        self._fills = b"from stdin" in self._sql.lower()
        self._begun = self._ended = self._finished = self._unwanted = False
        self._dropping = self._paused = False
        self._layout: CopyLayout | None = None
        self._pieces: deque[bytes] = deque()
        self._wake: asyncio.Future[None] | None = None
        self.taken = 0
        self._done, unit.done = unit.done, self._on_done

    @property
    def layout(self) -> CopyLayout | None:
        return self._layout

    def begin(self) -> None:
        backend = self._backend
        if not self._fills:
            self._unit.on_rows, self._unit.chunk_rows = self._on_pieces, 1
        backend.receive(self._unit)
        reply = backend._reply
        if self._fills and reply is not None and not (reply.error or reply.lost or reply.silent):
            if backend.read_only:
                backend._reply = Reply(error="25006")
            else:
                backend._restart_timer(reply.takes, self._begin_to_take)

    def _begin_to_take(self) -> None:
        self._layout = CopyLayout(1, binary=False)
        if self._unwanted:
            self._refuse()
        self._notify()

    def _on_pieces(self, cells: Cells) -> bool:
        self._layout = CopyLayout(1, binary=False)
        if not self._dropping:
            self._pieces.append(cells.get_value(0, 0) or b"")
        self._notify()
        self._paused = len(self._pieces) >= MAX_PIECES
        return not self._paused

    def _on_done(self, unit: Unit) -> None:
        self._ended = True
        if not self._fills and unit.fault is None:
            self._layout = CopyLayout(1, binary=False)
        self._notify()
        self._done(unit)

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _event(self) -> None:
        assert self._wake is None, "two wait at once"
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    async def started(self) -> None:
        while self._layout is None and not self._ended:
            await self._event()

    async def read(self) -> bytes:
        while not self._pieces and not self._ended:
            await self._event()
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        if self._paused and len(self._pieces) < MAX_PIECES // 2:
            self._paused = False
            self._lane.resume_reading()
        return piece

    def drop(self) -> None:
        self._dropping = True
        self._pieces.clear()
        if self._paused:
            self._paused = False
            self._lane.resume_reading()

    @property
    def _takes(self) -> bool:
        """In its copying state, and nothing was said about its end."""
        alive = not self._ended and not self._unit.done_at and not self._finished
        return self._fills and self._layout is not None and alive

    async def write(self, data: bytes) -> bool:
        while self._takes and self._backend.server.copy_stalls:
            asyncio.get_running_loop().call_later(0.05, self._notify)
            await self._event()
        if not self._takes:
            return False
        self.taken += len(data)
        self._backend.server.copied += len(data)
        return True

    def finish(self, *, commits: bool) -> None:
        if not self._takes:
            return
        self._finished = True
        self._unit.commits = commits
        script = self._backend.server.script.get(b"finish " + self._sql)
        usual = Reply(effect=True, tag=f"COPY {self.taken}", affected=self.taken)
        self._end_with(script if isinstance(script, Reply) else usual)

    def fail(self, why: str) -> None:
        if self._takes:
            self._refuse()
        else:
            self._unwanted = True

    def _refuse(self) -> None:
        self._finished = True
        self._end_with(Reply(error="57014", message="COPY from stdin failed"))

    def _end_with(self, reply: Reply) -> None:
        backend = self._backend
        if backend.dead or backend.current is None:
            return
        backend._reply = reply
        if not reply.silent:
            backend._restart_timer(reply.takes, backend._end_statement)
