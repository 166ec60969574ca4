"""Replies of one Multiplex stream that are ready: everything that is ready leaves as one message.

A reply is serialised once, when it is made, and framed by hand as an entry of MultiplexResponse.replies; protobuf
concatenates such entries (https://protobuf.dev/programming-guides/encoding/), and so their sizes are known.
"""

from __future__ import annotations

import asyncio
from collections import deque

from pointsman.wire import varint

MESSAGE_BYTES = 1 << 20
"""A message is closed at this size, so that a large reply does not hold up small ones; a larger one travels alone."""
BACKLOG_BYTES = 8 << 20
"""With this much unread by the caller, its stream is not read either."""

_DRAINING = b"\x10\x01"
_REPLY_TAGS = {"query": b"\x12", "execute": b"\x1a", "batch": b"\x22", "failure": b"\x2a"}


def reply_frame(call_id: int, kind: str, body: bytes) -> bytes:
    """One entry of MultiplexResponse.replies; body is the serialised answer of that kind."""
    size = len(body)
    head = b"\x08" + varint(call_id) + _REPLY_TAGS[kind] + varint(size)
    return b"\x0a" + varint(len(head) + size) + head + body


class Outbox:
    """Filled by calls that end, emptied by the stream's writer."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._announce_drain = False
        self._filled = asyncio.Event()
        self._below = asyncio.Event()
        self._below.set()

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: bytes) -> None:
        """Queue a reply."""
        self._frames.append(frame)
        self._bytes += len(frame)
        self._filled.set()
        if self._bytes > BACKLOG_BYTES:
            self._below.clear()

    def announce_drain(self) -> None:
        """Say in the next message that the router is going away."""
        self._announce_drain = True
        self._filled.set()

    def wake(self) -> None:
        """Make the writer look again though nothing is ready."""
        self._filled.set()

    def take(self) -> bytes:
        """The next message, empty when nothing is ready."""
        parts: list[bytes] = []
        size = 0
        while self._frames and (not parts or size + len(self._frames[0]) <= MESSAGE_BYTES):
            frame = self._frames.popleft()
            size += len(frame)
            parts.append(frame)
        self._bytes -= size
        if self._bytes <= BACKLOG_BYTES:
            self._below.set()
        if self._announce_drain:
            self._announce_drain = False
            parts.append(_DRAINING)
        return b"".join(parts)

    async def wait(self) -> None:
        """Wait until there is something to take, or until woken."""
        await self._filled.wait()
        self._filled.clear()

    async def wait_below(self) -> None:
        """Wait while the caller reads too slowly."""
        await self._below.wait()
