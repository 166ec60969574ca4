"""A TCP proxy that adds a network's delay, the same for whoever speaks through it: `--target PORT --delay-us N`.

Bytes leave, in order, `delay` after they came, each way; the pipe between is as wide as wanted, so that only
round trips cost. An event loop of its own on select(), since asyncio's epoll rounds pauses up to whole milliseconds.
Prints its port.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import selectors
from collections import deque
from typing import Any

HOST = "127.0.0.1"
PR_SET_TIMERSLACK = 29


class _Flow:
    """One direction: pieces with the time at which they are due."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.to: asyncio.Transport | None = None

    def put(self, data: bytes) -> None:
        """Takes a piece; an empty one says that the sender has closed."""
        self._waiting.append((self._loop.time() + self._delay_s, data))
        if self._timer is None and self.to is not None:
            self._arm()

    def connected(self, to: asyncio.Transport) -> None:
        self.to = to
        if self._waiting and self._timer is None:
            self._arm()

    def _arm(self) -> None:
        self._timer = self._loop.call_at(self._waiting[0][0], self._deliver)

    def _deliver(self) -> None:
        now = self._loop.time()
        assert self.to is not None
        while self._waiting and self._waiting[0][0] <= now:
            data = self._waiting.popleft()[1]
            if data:
                self.to.write(data)
            else:
                self.to.close()
        self._timer = None
        if self._waiting:
            self._arm()


class _Side(asyncio.Protocol):
    """One end of a connection: what it receives goes into one flow, the other flow comes out of it."""

    def __init__(self, inward: _Flow, outward: _Flow) -> None:
        self._inward = inward
        self._outward = outward

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._outward.connected(transport)

    def data_received(self, data: bytes) -> None:
        self._inward.put(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inward.put(b"")


async def listen(target: int, delay_s: float) -> asyncio.Server:
    """A server on any port whose connections lead to `target`."""
    loop = asyncio.get_running_loop()
    connecting: set[asyncio.Task[Any]] = set()

    def accepted() -> asyncio.Protocol:
        there, back = _Flow(delay_s), _Flow(delay_s)
        task = loop.create_task(loop.create_connection(lambda: _Side(back, there), HOST, target))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
        return _Side(there, back)

    return await loop.create_server(accepted, HOST, 0, backlog=512)


async def serve(target: int, delay_s: float) -> None:
    """Until the process is ended."""
    server = await listen(target, delay_s)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Runs the proxy."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--delay-us", type=float, required=True)
    arguments = parser.parse_args()
    with contextlib.suppress(OSError, AttributeError):
        # The kernel may otherwise end each pause 50 µs late.
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    with contextlib.suppress(KeyboardInterrupt):
        loop.run_until_complete(serve(arguments.target, arguments.delay_us / 1e6))


if __name__ == "__main__":
    main()
