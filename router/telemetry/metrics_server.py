"""HTTP for Prometheus (/metrics) and for probes (/healthz, /livez), on the router's own event loop.

prometheus_client's server runs in a thread, where the engine's dictionaries may change under it, and it would go on
answering while the loop hangs. Here a scrape reads the state on the loop (so an answer also proves that the loop
turns), and only the text is made in a thread. Just enough of HTTP/1.1 is spoken for GET and HEAD.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum, unique
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest

_MOST_SCRAPES = 32
"""Pages of /metrics that are made or sent at once; probes are answered also beside these."""
_MOST_CONNECTIONS = 256
"""Above that, whoever has been connected longest without a request makes room: a probe asks at once."""
_MOST_HEAD_BYTES = 16 * 1024
_HEAD_TIMEOUT_S = 2.0
_SEND_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 0.5


@unique
class _Stage(Enum):
    """How far a connection is."""

    SILENT = "silent"
    """Its request has not come."""
    ASKED = "asked"
    SCRAPING = "scraping"


class AddressUnavailable(Exception):
    """The address cannot be listened on. str() says why, and the way out."""


class MetricsServer:
    """Serves one registry."""

    def __init__(
        self,
        registry: CollectorRegistry,
        healthy: Callable[[], bool],
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """healthy: whether this router takes work; a router that drains is alive, but not healthy. refresh: waits,
        for a bounded time, until the registry knows of what is in other processes."""
        self._registry = registry
        self._refresh = refresh
        self._healthy = healthy
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.WriteTransport, _Stage] = {}
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (port 0 lets the system choose). AddressUnavailable when that fails."""
        try:
            self._server = await asyncio.start_server(self._answer, host, port, limit=_MOST_HEAD_BYTES)
        except OSError as error:
            # asyncio wraps the system's words in its own; name look-ups have numbers of their own (below 0).
            number = error.errno or 0
            why = os.strerror(number) if number > 0 else error.strerror or str(error)
            raise AddressUnavailable(
                f"metrics cannot listen on {host}:{port}: {why.lower()}; "
                "choose another server.metrics_listen, or leave it empty to serve none"
            ) from None
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening, and give up who is connected; a second at most."""
        if self._server is None:
            return
        self._server.close()
        for transport in self._open:
            transport.abort()
        if self._answering:
            await asyncio.wait(self._answering, timeout=_CLOSE_TIMEOUT_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._server.wait_closed()
        self._server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport, task = writer.transport, asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        self._make_room()
        self._open[transport] = _Stage.SILENT
        try:
            status, kind, body, head_only = await self._respond(reader, transport)
            head = (
                f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            transport.set_write_buffer_limits(high=0)  # so that drain() ends when nothing is left here
            writer.write(head.encode() + (b"" if head_only else body))
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the scraper went away, or does not read
        finally:
            # What was drained is on its way. A mere close() would keep the rest for as long as nobody reads it.
            transport.abort()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            del self._open[transport]

    def _make_room(self) -> None:
        if len(self._open) >= _MOST_CONNECTIONS:
            for transport, stage in self._open.items():
                if stage is _Stage.SILENT and not transport.is_closing():
                    transport.abort()
                    return

    async def _respond(
        self, reader: asyncio.StreamReader, transport: asyncio.WriteTransport
    ) -> tuple[HTTPStatus, str, bytes, bool]:
        try:
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "text/plain", b"too large\n", False
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return HTTPStatus.BAD_REQUEST, "text/plain", b"this is HTTP/1.1: GET /metrics\n", False
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"GET only\n", False
        path = target.partition("?")[0]
        self._open[transport] = _Stage.ASKED
        if path == "/metrics":
            if sum(stage is _Stage.SCRAPING for stage in self._open.values()) >= _MOST_SCRAPES:
                return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"too many scrapes\n", False
            self._open[transport] = _Stage.SCRAPING
        status, kind, body = await self._page(path)
        return status, kind, body, method == "HEAD"

    async def _page(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        match path:
            case "/metrics":
                if self._refresh is not None:
                    await self._refresh()
                frozen = _Frozen(list(self._registry.collect()))
                text = await asyncio.to_thread(generate_latest, frozen)
                return HTTPStatus.OK, CONTENT_TYPE_PLAIN_1_0_0, text
            case "/healthz":
                if self._healthy():
                    return HTTPStatus.OK, "text/plain", b"ok\n"
                return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"draining\n"
            case "/livez":
                return HTTPStatus.OK, "text/plain", b"alive\n"  # that the loop has come here is the proof
            case _:
                return HTTPStatus.NOT_FOUND, "text/plain", b"there are /metrics, /healthz and /livez\n"


class _Frozen(CollectorRegistry):
    """Families that are already read, for a thread to write out."""

    def __init__(self, families: list[Family]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Family]:
        return iter(self._families)
