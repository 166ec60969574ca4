"""Replies of one Multiplex stream that are ready: everything that is ready leaves as one message.

A reply is serialised once, when it is made, and framed by hand as an entry of MultiplexResponse.replies; protobuf
concatenates such entries (https://protobuf.dev/programming-guides/encoding/), and so their sizes are known.
"""

from __future__ import annotations

import asyncio

from pointsman.wire import varint

MESSAGE_BYTES = 1 << 20
"""A message is closed at this size, so that a large reply does not hold up small ones; a larger one travels alone."""
BACKLOG_BYTES = 8 << 20
"""With this much unread by the caller, its stream is not read either, and nothing of it begins."""

_DRAINING = b"\x10\x01"
_REPLY_TAGS = {"query": b"\x12", "execute": b"\x1a", "batch": b"\x22", "failure": b"\x2a"}


def reply_frame(call_id: int, kind: str, body: bytes) -> bytes:
    """One entry of MultiplexResponse.replies; body is the serialised answer of that kind."""
    size = len(body)
    head = b"\x08" + varint(call_id) + _REPLY_TAGS[kind] + varint(size)
    return b"\x0a" + varint(len(head) + size) + head + body


class Outbox:
    """Filled by calls that end, emptied by the stream's writer. One task waits to write, one to read."""

    # Of small things: an idle stream keeps one, and a deque or an Event takes 600 bytes where a list takes 56.
    __slots__ = ("_announce_drain", "_filled", "_frames", "_reader", "_writer", "bytes", "full")

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self.bytes = 0
        """Unread by the caller."""
        self.full = False
        """More than BACKLOG_BYTES are."""
        self._announce_drain = False
        self._filled = False
        self._writer: asyncio.Future[None] | None = None
        self._reader: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: bytes) -> None:
        """Queue a reply."""
        self._frames.append(frame)
        self.bytes += len(frame)
        if self.bytes > BACKLOG_BYTES:
            self.full = True
        self.wake()

    def announce_drain(self) -> None:
        """Say in the next message that the router is going away."""
        self._announce_drain = True
        self.wake()

    def wake(self) -> None:
        """Make the writer look, also when nothing is ready."""
        self._filled = True
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    def take(self) -> bytes:
        """The next message, empty when nothing is ready."""
        parts, self._frames = self._frames, []
        if self.bytes > MESSAGE_BYTES:
            self._frames = _cut(parts)
        self.bytes = sum(map(len, self._frames)) if self._frames else 0
        self.full = self.bytes > BACKLOG_BYTES
        if self._reader is not None and not self.full and not self._reader.done():
            self._reader.set_result(None)
        if self._announce_drain:
            self._announce_drain = False
            parts.append(_DRAINING)
        return b"".join(parts)

    async def wait(self) -> None:
        """Wait until there is something to take, or until woken."""
        if not self._filled:
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        self._filled = False

    async def wait_below(self) -> None:
        """Wait while the caller reads too slowly."""
        while self.full:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None


def _cut(parts: list[bytes]) -> list[bytes]:
    """Leave in parts what goes into one message, at least one frame; the rest."""
    size = 0
    for number, frame in enumerate(parts):
        size += len(frame)
        if number and size > MESSAGE_BYTES:
            rest = parts[number:]
            del parts[number:]
            return rest
    return []
