"""A TCP proxy on the test's event loop that can misbehave like a network: refuse, hang, delay, reset."""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import Enum
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"


class Network(Enum):
    """What the proxy does to connections, those that are open included."""

    PASSES = "passes"
    REFUSES = "refuses"
    """Nobody listens; open connections are closed."""
    HANGS = "hangs"
    """Connections are taken, and nothing that is sent arrives any more, in either direction."""
    SWALLOWS_ANSWERS = "swallows answers"
    """What is sent arrives; what the other side answers does not come back. Connections are taken."""


class Proxy:
    """Stands in front of one port; an async context manager."""

    def __init__(self, target_port: int, *, delay_s: float = 0.0, host: str = HOST) -> None:
        """delay_s: each piece of data is held this long. host: the address that it listens on."""
        self.target_port = target_port
        self.host = host
        self.delay_s = delay_s
        self.port = 0
        self.accepted = 0
        self.cut_at = b""
        """The next request that holds this is the last of its connection, which then breaks; b"" for none."""
        self.cut_arrives = False
        """Whether the server still gets that request; its answer is lost in any case."""
        self.cuts = 0
        self._network = Network.PASSES
        self._flows = asyncio.Event()
        self._flows.set()
        self._answers = asyncio.Event()
        self._answers.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deafen()
        await asyncio.sleep(0.01)  # who was accepted a moment ago begins, and so can be ended
        writers = list(self._writers)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()  # close() waits for what a frozen peer does not take
        await asyncio.sleep(0)

    @property
    def connections(self) -> int:
        """Connections open through it."""
        return len(self._writers) // 2

    async def become(self, network: Network) -> None:
        """From now on the network is like this."""
        self._network = network
        if network in (Network.PASSES, Network.SWALLOWS_ANSWERS):
            self._flows.set()
        else:
            self._flows.clear()
        if network is Network.SWALLOWS_ANSWERS:
            self._answers.clear()
        else:
            self._answers.set()
        if network is Network.REFUSES:
            self._deafen()
            self.drop()
        elif self._server is None:
            await self._listen()

    def drop(self) -> None:
        """Close all open connections in good order."""
        for writer in list(self._writers):
            writer.close()

    def reset(self) -> None:
        """Break all open connections with a TCP reset."""
        for writer in list(self._writers):
            number: socket.socket | None = writer.get_extra_info("socket")
            if number is not None and number.fileno() >= 0:
                number.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def _deafen(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._between(reader, writer)
        except asyncio.CancelledError:
            return  # the proxy's end; asyncio would print it as an error of this callback

    async def _between(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        self._writers.add(writer)
        back_writer: asyncio.StreamWriter | None = None
        try:
            await self._flows.wait()
            back_reader, back_writer = await asyncio.open_connection(HOST, self.target_port)
            self._writers.add(back_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, back_writer, self._flows, writer))
                both.create_task(self._carry(back_reader, writer, self._answers))
        except* OSError:
            pass  # one side has gone: so goes the other
        finally:
            for one in (writer, back_writer):
                if one is not None:
                    self._writers.discard(one)
                    one.close()

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        open_: asyncio.Event,
        caller: asyncio.StreamWriter | None = None,
    ) -> None:
        """caller: whose requests these are; None when they are answers."""
        while data := await reader.read(65536):
            if caller is not None and self.cut_at and self.cut_at in data:
                self.cut_at = b""
                self.cuts += 1
                caller.transport.abort()
                if self.cut_arrives:
                    writer.write(data)
                    await writer.drain()
                break
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._flows.wait()
            await open_.wait()
            writer.write(data)
            await writer.drain()
        writer.close()
