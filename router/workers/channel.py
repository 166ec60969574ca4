"""The line between the control process and one worker: whole messages in order, and questions with answers.

A frame is its length (4 bytes, big end first) and a pickle. The end of the stream is the end of the other process:
whoever holds the other socket has gone. Prior art for the framing: asyncio streams' readexactly over a socketpair.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import socket
import struct
from collections.abc import Awaitable, Callable

from router.workers.messages import Answer, Ask

_LENGTH = struct.Struct("!I")
MAX_FRAME_BYTES = 256 << 20
"""A configuration of ten thousand tenants has a few million bytes; anything like this is a mistake."""
MAX_UNREAD_BYTES = 32 << 20
"""So much waits for the other end only when it has stopped reading."""


class ChannelClosed(Exception):
    """The other process has gone, or does not read any more."""


class Channel:
    """One end. on_message takes what is told; on_question answers what is asked. Both run on the event loop."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_message: Callable[[object], None],
        on_question: Callable[[object], Awaitable[object]],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_message = on_message
        self._on_question = on_question
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[object]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def over(
        cls,
        end: socket.socket,
        on_message: Callable[[object], None],
        on_question: Callable[[object], Awaitable[object]],
    ) -> Channel:
        """A channel over one end of a socket pair, which it then owns."""
        reader, writer = await asyncio.open_unix_connection(sock=end)
        return cls(reader, writer, on_message, on_question)

    @property
    def closed(self) -> bool:
        """Whether nothing can be told any more."""
        return self._closed

    @property
    def stuck(self) -> bool:
        """Whether the other end has stopped reading."""
        return self._writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES

    def tell(self, *messages: object) -> None:
        """Send, in order, without waiting; to a process that has gone it does nothing."""
        if not self._closed:
            self._writer.write(b"".join(map(_frame, messages)))

    async def ask(self, question: object, timeout_s: float) -> object:
        """The other end's answer. ChannelClosed when it has gone or failed, TimeoutError when it takes too long."""
        if self._closed:
            raise ChannelClosed("the channel is closed")
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self.tell(Ask(number, question))
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            self._asked.pop(number, None)

    async def run(self) -> None:
        """Take what comes until the other process has gone or close(); never raises for its sake."""
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                if length > MAX_FRAME_BYTES:
                    return
                self._take(pickle.loads(await self._reader.readexactly(length)))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._end()

    def _take(self, message: object) -> None:
        match message:
            case Ask(number, question):
                task = asyncio.get_running_loop().create_task(self._answer(number, question))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case Answer(number, value, failed):
                waiting = self._asked.get(number)
                if waiting is not None and not waiting.done():
                    if failed:
                        waiting.set_exception(ChannelClosed(f"the other process could not answer: {failed}"))
                    else:
                        waiting.set_result(value)
            case _:
                self._on_message(message)

    async def _answer(self, number: int, question: object) -> None:
        try:
            answer = Answer(number, await self._on_question(question))
        except Exception as error:
            self.tell(Answer(number, None, type(error).__name__))
            raise
        self.tell(answer)

    def _end(self) -> None:
        self._closed = True
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(ChannelClosed("the other process has gone"))
        for task in self._answering:
            task.cancel()
        self._writer.close()

    async def flush(self) -> None:
        """Wait until all that was told has left this process, or the other one has gone."""
        self._writer.transport.set_write_buffer_limits(high=0)
        with contextlib.suppress(OSError):
            await self._writer.drain()

    def close(self) -> None:
        """Give the line up; run() then ends."""
        if not self._closed:
            self._end()


def _frame(message: object) -> bytes:
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body
