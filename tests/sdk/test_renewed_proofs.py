"""A token or certificate that holds no longer while its stream lives: the next stream brings another, once."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pointsman
import pytest
from pointsman.calls import Refusal, refusal_of
from pointsman.connection import Connections
from pointsman.options import TLS
from pointsman.v1 import query_service_pb2 as pb

from tests.sdk.fake_router import FakeRouter, MuxStream, one_row, status

WITHDRAWN = status(grpc.StatusCode.UNAUTHENTICATED, "unknown token", reason="UNAUTHENTICATED", executed="no")


class Tokens:
    """A router that knows one token at a time, and looks at those of its streams with each call, as the router does."""

    def __init__(self, router: FakeRouter) -> None:
        self.router = router
        self.valid = "first"
        self.given = "first"
        self.asked = 0
        router.on_call = self.answer
        router.on_stream = self.let_in

    def __call__(self) -> str:
        """What the client's program gives."""
        self.asked += 1
        return self.given

    def holds(self, number: int) -> bool:
        return self.router.metadata[number]["authorization"] == f"Bearer {self.valid}"

    async def let_in(self, stream: MuxStream) -> None:
        if not self.holds(len(self.router.metadata) - 1):
            stream.end(WITHDRAWN)

    async def answer(self, call: pb.MultiplexCall) -> pb.MultiplexReply | None:
        # Which stream brings a call is not known here: the newest one's token stands for all.
        return await one_row(call) if self.holds(-1) else pb.MultiplexReply(failure=WITHDRAWN)


@pytest.fixture
def tokens(router: FakeRouter) -> Tokens:
    return Tokens(router)


@pytest.mark.parametrize("method", ["query", "execute"])
async def test_a_token_function_is_asked_again(router: FakeRouter, tokens: Tokens, method: str) -> None:
    async with pointsman.connect(router.address, token=tokens, timeout=5) as db:
        await db.query("select 1")
        tokens.valid = tokens.given = "second"
        await asyncio.gather(*(getattr(db, method)("select 2") for _ in range(20)))
    assert [seen["authorization"] for seen in router.metadata] == ["Bearer first", "Bearer second"]
    assert tokens.asked == 2


async def test_a_token_that_stays_wrong_is_told_and_brings_no_loop(router: FakeRouter, tokens: Tokens) -> None:
    async with pointsman.connect(router.address, token=tokens, timeout=5) as db:
        await db.query("select 1")
        tokens.valid = "second"
        with pytest.raises(pointsman.Unauthenticated):
            await db.execute("insert")
        assert len(router.streams) == 2
        tokens.given = "second"
        assert (await db.execute("insert")).rowcount == 1, "no restart is needed"


async def test_a_fixed_token_is_told_at_once_and_tried_on_a_new_stream_by_the_next_call(
    router: FakeRouter, tokens: Tokens
) -> None:
    async with pointsman.connect(router.address, token="first", timeout=5) as db:
        await db.query("select 1")
        tokens.valid = "second"
        with pytest.raises(pointsman.Unauthenticated) as caught:
            await db.execute("insert")
        assert caught.value.executed is pointsman.Executed.NO
        assert len(router.streams) == 1
        tokens.valid = "first"
        assert (await db.execute("insert")).rowcount == 1


async def test_a_stream_that_answered_nothing_before_is_no_reason_to_ask_again(
    router: FakeRouter, tokens: Tokens
) -> None:
    async def refuse(call: pb.MultiplexCall) -> pb.MultiplexReply:
        return pb.MultiplexReply(failure=WITHDRAWN)

    router.on_call = refuse
    async with pointsman.connect(router.address, token=tokens, timeout=5) as db:
        for number in range(1, 4):
            with pytest.raises(pointsman.Unauthenticated):
                await db.execute("insert")
            assert len(router.streams) == number


async def test_streams_beside_it_are_left_too(router: FakeRouter, tokens: Tokens) -> None:
    router.headers = (("pointsman-stream", "open"), ("pointsman-workers", "2"))
    async with pointsman.connect(router.address, token=tokens, timeout=5) as db:
        await asyncio.gather(*(db.query("select 1") for _ in range(200)))
        await asyncio.sleep(0.1)
        await asyncio.gather(*(db.query("select 1") for _ in range(200)))
        assert len(router.streams) == 2
        tokens.valid = tokens.given = "second"
        await asyncio.gather(*(db.query("select 1") for _ in range(200)))
        assert tokens.asked <= 4
        assert db._mux is not None
        assert len(db._mux._open) <= 2


@pytest.mark.parametrize(
    ("failure", "refusal"),
    [
        (WITHDRAWN, Refusal.UNPROVEN),
        (status(grpc.StatusCode.UNAUTHENTICATED, executed="maybe"), None),
        (status(grpc.StatusCode.UNAUTHENTICATED), None),
        (status(grpc.StatusCode.UNAVAILABLE, reason="DRAINING", executed="no"), Refusal.DRAINING),
        (status(grpc.StatusCode.UNAVAILABLE, reason="DRAINING", executed="maybe"), None),
        (status(grpc.StatusCode.PERMISSION_DENIED, reason="TENANT_DENIED", executed="no"), None),
    ],
)
def test_what_belongs_on_another_stream(failure: Any, refusal: Refusal | None) -> None:
    assert refusal_of(failure.SerializeToString()) is refusal


def test_who_can_prove_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TLS, "credentials", lambda self: None)

    def connections(**given: Any) -> Connections:
        return Connections("127.0.0.1:1", tenant="", **{"token": None, "tls": None, **given})

    assert connections(token=lambda: "x").renewable
    assert not connections(token="x").renewable
    assert not connections().renewable
    assert not connections(tls=TLS()).renewable
    assert connections(tls=TLS(cert_file="a", key_file="b")).renewable
