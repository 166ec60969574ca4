"""Connections that abuse HTTP/2: each is cut off or costs little, the router's memory is bounded, and callers on other
connections go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from pointsman.v1 import query_service_pb2 as pb

from router.devcluster import DevCluster
from tests.hardening import http2
from tests.hardening.conftest import furnish, fuzzable
from tests.hardening.residue import SERVING, Residue, residue_of
from tests.stories.conftest import Neighbour, undisturbed
from tests.support.eventually import eventually
from tests.support.running_router import Config, RunningRouter, started_router

pytestmark = pytest.mark.pg

MEMORY_MORE_BYTES = 100 << 20
HANDSHAKE_S = 1.0
MULTIPLEX = b"/pointsman.v1.QueryService/Multiplex"
STREAM_QUERY = b"/pointsman.v1.QueryService/StreamQuery"


@pytest.fixture(scope="module")
def abused(pg_cluster: DevCluster) -> Iterator[RunningRouter]:
    """A router that does not wait long for handshakes."""

    def edit(config: Config) -> None:
        fuzzable(config)
        config["server"]["transport"] = {"handshake_timeout_s": HANDSHAKE_S}

    furnish(pg_cluster)
    with started_router(pg_cluster, edit=edit, program=SERVING) as router:
        yield router


@contextlib.asynccontextmanager
async def survives(router: RunningRouter) -> AsyncIterator[Neighbour]:
    """Whatever happens inside: a neighbour sees no error, memory is bounded, and nothing stays."""
    before: Residue = await residue_of(router)
    router.reset_peak_memory()
    async with undisturbed(router) as neighbour:
        yield neighbour
    assert router.process.poll() is None
    assert router.peak_memory_bytes() < before.memory_bytes + MEMORY_MORE_BYTES

    async def gone() -> bool:
        return (await residue_of(router)).files <= before.files + 24  # the neighbour's pool may be open

    await eventually(gone, within_s=8, what="the end of the abuser's connections", pause_s=0.2)


async def test_rapid_reset(abused: RunningRouter) -> None:
    """Streams that are opened and reset at once, which cost the sender nothing (CVE-2023-44487)."""
    block = http2.call(MULTIPLEX, abused.tokens["acme"])
    async with survives(abused), http2.wire(abused.address) as wire:
        for burst in range(200):
            frames = bytearray()
            for number in range(50):
                stream = 2 * (50 * burst + number) + 1
                frames += http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block)
                frames += http2.frame(http2.RST_STREAM, 0, stream, b"\0\0\0\x08")
            if not await wire.send(bytes(frames)):
                break


async def test_whoever_pings_too_often_is_cut_off(abused: RunningRouter) -> None:
    async with survives(abused), http2.wire(abused.address) as wire:
        for _ in range(10):
            await wire.send(http2.frame(http2.PING, 0, 0, b"8 bytes."))
            if await wire.ended_within(0.05):
                break
        assert await wire.ended_within(2)


@pytest.mark.parametrize(
    "one",
    [http2.frame(http2.PING, 0, 0, b"8 bytes."), http2.settings((http2.INITIAL_WINDOW_SIZE, 65535))],
    ids=["ping", "settings"],
)
async def test_a_flood_of_frames_that_want_an_answer(
    abused: RunningRouter, one: bytes
) -> None:
    async with survives(abused), http2.wire(abused.address) as wire:
        for _ in range(400):
            if not await wire.send(one * 100):
                break
            await asyncio.sleep(0)


async def test_headers_without_end(abused: RunningRouter) -> None:
    """32 MiB of them in one block: what is beyond the limit is dropped as it comes."""
    block = http2.call(MULTIPLEX, abused.tokens["acme"])
    async with survives(abused), http2.wire(abused.address) as wire:
        await wire.send(http2.frame(http2.HEADERS, 0, 1, block))
        piece = http2.frame(http2.CONTINUATION, 0, 1, http2.header(b"x", b"y" * 16000))
        for _ in range(2000):
            if not await wire.send(piece):
                break


async def test_whoever_never_reads_is_sent_little(abused: RunningRouter) -> None:
    """Streams with a window of nothing: their results wait in PostgreSQL, not in the router."""
    rows = pb.StreamQueryRequest(statement={"sql": "select repeat('x', 1000) from generate_series(1, 20000)"})
    block, body = http2.call(STREAM_QUERY, abused.tokens["acme"]), http2.message(rows.SerializeToString())
    hello = http2.PREFACE + http2.settings((http2.INITIAL_WINDOW_SIZE, 0))
    async with survives(abused), http2.wire(abused.address, hello) as wire:
        for stream in range(1, 60, 2):
            await wire.send(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block))
            await wire.send(http2.frame(http2.DATA, http2.END_STREAM, stream, body))
        await asyncio.sleep(1.0)
        assert wire.received < 1 << 20


@pytest.mark.parametrize("hello", [b"", http2.PREFACE[:10], b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00"])
async def test_half_a_handshake_ends_after_its_time(abused: RunningRouter, hello: bytes) -> None:
    async with survives(abused), contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(http2.wire(abused.address, hello)) for _ in range(40)]
        ended = await asyncio.gather(*(one.ended_within(HANDSHAKE_S + 3) for one in wires))
        assert all(ended), f"{ended.count(False)} of {len(ended)} connections were kept"
