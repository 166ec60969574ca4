"""The HTTP face of the metrics, over real sockets."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric

from router.telemetry.event_sink import TelemetrySink
from router.telemetry.metrics_server import AddressUnavailable, MetricsServer
from tests.support.eventually import eventually
from tests.telemetry.test_metrics import VIEW


@contextlib.asynccontextmanager
async def running(
    healthy: bool = True, registry: CollectorRegistry | None = None
) -> AsyncIterator[tuple[int, MetricsServer]]:
    sink = TelemetrySink()
    sink.watch(lambda: VIEW, "1.2.3")
    server = MetricsServer(registry or sink.registry, lambda: healthy)
    port = await server.start("127.0.0.1", 0)
    try:
        yield port, server
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def served(healthy: bool = True, registry: CollectorRegistry | None = None) -> AsyncIterator[int]:
    async with running(healthy, registry) as (port, _):
        yield port


async def ask(port: int, request: bytes) -> tuple[str, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return head, body


async def test_metrics_are_served_as_prometheus_wants_them():
    async with served() as port:
        head, body = await ask(port, b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert "Content-Type: text/plain; version=1.0.0" in head
    assert f"Content-Length: {len(body.encode())}" in head
    assert 'pointsman_build_info{version="1.2.3"} 1.0' in body


@pytest.mark.parametrize(("healthy", "status"), [(True, "200 OK"), (False, "503 Service Unavailable")])
async def test_healthz_tells_whether_the_router_takes_work(healthy: bool, status: str):
    async with served(healthy) as port:
        head, _ = await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /other HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
        (b"PRI * HTTP/2.0\r\n\r\n", "400"),
        (b"nonsense\r\n\r\n", "400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20000 + b"\r\n\r\n", "431"),
    ],
)
async def test_other_requests_get_their_status(request_bytes: bytes, status: str):
    async with served() as port:
        try:
            head, _ = await ask(port, request_bytes)
        except ConnectionResetError:
            assert status == "431", "unread bytes may reset the connection before its answer is read"
            return
    assert head.startswith(f"HTTP/1.1 {status} ")


async def test_livez_answers_also_while_draining():
    async with served(healthy=False) as port:
        head, _ = await ask(port, b"GET /livez HTTP/1.1\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK")


async def test_head_has_no_body():
    async with served() as port:
        head, body = await ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK")
    assert body == ""


async def test_a_scraper_that_goes_away_disturbs_nobody():
    async with served() as port:
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /met")
            writer.close()
        head, _ = await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n")
    assert " 200 " in head


class LargePage(CollectorRegistry):
    """Six million bytes."""

    def collect(self) -> Iterator[Metric]:
        for number in range(60):
            yield GaugeMetricFamily(f"x_{number}", "y" * 100_000, 1.0)


@contextlib.contextmanager
def unread(port: int, count: int) -> Iterator[None]:
    """Scrapers that have asked, and do not read."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            one.connect(("127.0.0.1", port))
            one.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        yield


def held(port: int) -> list[int]:
    """What waits to be sent in each of the server's transports that are left, in bytes."""
    every = asyncio.get_running_loop()._transports.values()  # type: ignore[attr-defined]
    own = [one for one in every if one.get_extra_info("sockname", ("", 0))[1] == port]
    return [one.get_write_buffer_size() for one in own if one.get_extra_info("socket").fileno() >= 0]


async def until_held(port: int, count: int) -> None:
    """So many scrapers do not read."""
    await eventually(
        lambda: sum(size > 1 << 20 for size in held(port)) == count, within_s=10, what="pages that nobody reads"
    )


async def test_scrapers_that_do_not_read_are_given_up():
    async with served(registry=LargePage()) as port:
        with unread(port, 3):
            await until_held(port, 3)
            await eventually(lambda: held(port) == [], within_s=6, what="the end of those that do not read")


async def test_the_end_does_not_wait_for_a_scraper_that_does_not_read():
    async with running(registry=LargePage()) as (port, server):
        with unread(port, 1):
            await until_held(port, 1)
            began = time.monotonic()
            await server.close()
            assert time.monotonic() - began < 1
            assert held(port) == []


@pytest.mark.parametrize("count", [32, 300])
async def test_idle_connections_keep_no_probe_from_its_answer(count: int):
    async with served() as port:
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                await asyncio.sleep(0)  # accepted here, by the same loop
            await eventually(lambda: len(held(port)) >= min(count, 250), within_s=1, what="idle connections")
            for path in (b"livez", b"healthz", b"metrics"):
                head, _ = await ask(port, b"GET /%s HTTP/1.1\r\n\r\n" % path)
                assert head.startswith("HTTP/1.1 200 OK"), path


async def test_probes_are_answered_beside_as_many_scrapes_as_there_may_be():
    async with served(registry=LargePage()) as port:
        with unread(port, 32):
            await eventually(lambda: len(held(port)) == 32, within_s=5, what="all of them")
            await asyncio.sleep(0.1)
            assert (await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n"))[0].startswith("HTTP/1.1 503")
            assert (await ask(port, b"GET /livez HTTP/1.1\r\n\r\n"))[0].startswith("HTTP/1.1 200")


async def test_a_port_in_use_is_a_clear_error():
    async with served() as port:
        with pytest.raises(AddressUnavailable, match=rf"127\.0\.0\.1:{port}: address already in use.*metrics_listen"):
            await MetricsServer(TelemetrySink().registry, lambda: True).start("127.0.0.1", port)


async def test_a_name_that_does_not_resolve_is_a_clear_error():
    with pytest.raises(AddressUnavailable, match=r"cannot listen on nowhere\.invalid:1"):
        await MetricsServer(TelemetrySink().registry, lambda: True).start("nowhere.invalid", 1)
