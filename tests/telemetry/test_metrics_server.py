"""The HTTP face of the metrics, over real sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from router.telemetry.event_sink import TelemetrySink
from router.telemetry.metrics_server import AddressUnavailable, MetricsServer
from tests.telemetry.test_metrics import VIEW


@contextlib.asynccontextmanager
async def served(healthy: bool = True) -> AsyncIterator[int]:
    sink = TelemetrySink()
    sink.watch(lambda: VIEW, "1.2.3")
    server = MetricsServer(sink.registry, lambda: healthy)
    port = await server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.close()


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


async def test_a_port_in_use_is_a_clear_error():
    async with served() as port:
        with pytest.raises(AddressUnavailable, match=rf"127\.0\.0\.1:{port}: address already in use.*metrics_listen"):
            await MetricsServer(TelemetrySink().registry, lambda: True).start("127.0.0.1", port)


async def test_a_name_that_does_not_resolve_is_a_clear_error():
    with pytest.raises(AddressUnavailable, match=r"cannot listen on nowhere\.invalid:1"):
        await MetricsServer(TelemetrySink().registry, lambda: True).start("nowhere.invalid", 1)
