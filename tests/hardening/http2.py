"""HTTP/2 as nobody should speak it: frames by hand (RFC 9113), so that every rule of it can be broken."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def settings(*values: tuple[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack("!HI", name, value) for name, value in values))


def header(name: bytes, value: bytes) -> bytes:
    """A field that no table keeps (RFC 7541, 6.2.2)."""
    return b"\0" + _counted(name) + _counted(value)


def call(path: bytes, token: str) -> bytes:
    """The header block of an RPC."""
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"t"))
    own = (
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"authorization", b"Bearer " + token.encode()),
    )
    return b"".join(header(name, value) for name, value in (*fields, *own))


def message(raw: bytes) -> bytes:
    """A gRPC message as DATA carries it."""
    return b"\0" + struct.pack("!I", len(raw)) + raw


def _counted(text: bytes) -> bytes:
    length = len(text)
    if length < 127:
        return bytes([length]) + text
    length -= 127
    head = b"\x7f"
    while length >= 128:
        head += bytes([length % 128 | 128])
        length //= 128
    return head + bytes([length]) + text


class Wire:
    """One connection, and whether the other side has ended it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.received = 0
        self.ended = asyncio.Event()
        self._reading = asyncio.create_task(self._read(reader))

    async def send(self, data: bytes) -> bool:
        """False: the connection has been ended."""
        if self.ended.is_set():
            return False
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            self.ended.set()
        return not self.ended.is_set()

    async def ended_within(self, seconds: float) -> bool:
        """Whether the other side has ended it by then."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), seconds)
        return self.ended.is_set()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.received += len(data)
        self.ended.set()

    def close(self) -> None:
        """At once."""
        self._reading.cancel()
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def wire(address: str, hello: bytes = PREFACE + settings()) -> AsyncIterator[Wire]:
    """A connection that has said this much."""
    host, _, port = address.rpartition(":")
    one = Wire(*await asyncio.open_connection(host, int(port)))
    try:
        await one.send(hello)
        yield one
    finally:
        one.close()
