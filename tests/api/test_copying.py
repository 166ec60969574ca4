"""CopyOut and CopyIn over a real server and scripted copies: what is asked, what is committed, who waits for whom."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.api.copying import MAX_DATA_BYTES, in_request, out_request
from router.model.copying import CopyLayout
from router.model.errors import Code, Executed, RouterError
from router.model.reasons import RefuseReason
from router.model.request import Access, Method, ReadFrom
from tests.api.conftest import AUTH, World, eventually
from tests.api.fake_copies import ANSWER
from tests.api.reading import reason_of

TABLE = pb.CopyTable(schema="s", name="t", columns=["a", 'b"c'])
START = pb.CopyInRequest(start=pb.CopyInStart(table=TABLE))
END = pb.CopyInRequest(end=pb.CopyInEnd())


def data(raw: bytes) -> pb.CopyInRequest:
    return pb.CopyInRequest(data=raw)


async def copy_in(world: World, *messages: pb.CopyInRequest) -> pb.CopyInResponse:
    call: Any = world.query.CopyIn(metadata=AUTH)
    for message in messages:
        await call.write(message)
    await call.done_writing()
    answer: pb.CopyInResponse = await call
    return answer


async def refused(world: World, *messages: pb.CopyInRequest) -> tuple[str, str]:
    with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)) as caught:
        await copy_in(world, *messages)
    assert isinstance(caught.value, grpc.aio.AioRpcError)
    return reason_of(caught.value)


# --- requests --------------------------------------------------------------------------------------------------------


def sql_of(request: Any) -> str:
    return str(request.steps[0].statement.sql.decode())


def test_the_sql_of_a_table() -> None:
    encoding = pb.CopyEncoding(format=pb.COPY_FORMAT_CSV, header=True, delimiter="'", null_text="\\N'", quote="\\")
    asked = out_request(pb.CopyOutRequest(table=TABLE, encoding=encoding), 1.0, "id")
    options = r"""(FORMAT csv, HEADER true, DELIMITER E'''', QUOTE E'\\', NULL E'\\N''')"""
    assert sql_of(asked) == f'COPY "s"."t" ("a", "b""c") TO STDOUT {options}'
    assert (asked.method, asked.access, asked.nested_query) == (Method.COPY_OUT, Access.READ_ONLY, b"")
    given = in_request(pb.CopyInStart(table=pb.CopyTable(name="T")), 1.0, "id")
    assert sql_of(given) == 'COPY "T" FROM STDIN (FORMAT text)'
    assert (given.method, given.access) == (Method.COPY_IN, Access.READ_WRITE)


def test_the_sql_of_a_query() -> None:
    options = types_pb2.QueryOptions(read=types_pb2.READ_PREFERENCE_ANY)
    asked = out_request(pb.CopyOutRequest(query=" select 1 -- x ; \n", options=options), 1.0, "id")
    assert sql_of(asked) == "COPY (select 1 -- x\n) TO STDOUT (FORMAT text)"
    assert (asked.nested_query, asked.options.read) == (b"select 1 -- x", ReadFrom.ANY)


@pytest.mark.parametrize(
    "asked",
    [
        pb.CopyOutRequest(),
        pb.CopyOutRequest(query=" ; "),
        pb.CopyOutRequest(table=pb.CopyTable()),
        pb.CopyOutRequest(table=pb.CopyTable(name="a\0")),
        pb.CopyOutRequest(table=pb.CopyTable(name="é" * 32)),
        pb.CopyOutRequest(table=pb.CopyTable(name="t", columns=[""])),
        pb.CopyOutRequest(table=pb.CopyTable(name="t", columns=["a"] * 1601)),
        pb.CopyOutRequest(query="select 1", encoding=pb.CopyEncoding(format=9)),  # type: ignore[arg-type]
        pb.CopyOutRequest(query="select 1", encoding=pb.CopyEncoding(delimiter="ab")),
        pb.CopyOutRequest(query="select 1", encoding=pb.CopyEncoding(delimiter="é")),
        pb.CopyOutRequest(query="select 1", encoding=pb.CopyEncoding(delimiter="\n")),
        pb.CopyOutRequest(query="select 1", encoding=pb.CopyEncoding(quote="'")),
        pb.CopyOutRequest(query="select 1", encoding=pb.CopyEncoding(null_text="\0")),
        pb.CopyOutRequest(query="select 1", encoding=pb.CopyEncoding(format=pb.COPY_FORMAT_BINARY, header=True)),
        pb.CopyOutRequest(query="select 1", options=types_pb2.QueryOptions(after_token=b"x")),
        pb.CopyOutRequest(query="select 1", options=types_pb2.QueryOptions(priority=9)),  # type: ignore[arg-type]
    ],
    ids=lambda asked: str(asked)[:40].replace("\n", " "),
)
def test_what_makes_no_sense(asked: pb.CopyOutRequest) -> None:
    with pytest.raises(RouterError) as failed:
        out_request(asked, 1.0, "id")
    assert failed.value.executed is Executed.NO


# --- out -------------------------------------------------------------------------------------------------------------


async def test_out(world: World) -> None:
    pieces = [b"x" * size for size in (1, 127, 128, 16383, 16384, 131072)]
    world.copies.items = [CopyLayout(2, binary=False), *pieces, ANSWER]
    call = world.query.CopyOut(
        pb.CopyOutRequest(table=TABLE, encoding=pb.CopyEncoding(format=pb.COPY_FORMAT_CSV)), metadata=AUTH
    )
    start, *middle, end = [message async for message in call]
    assert start.start == pb.CopyOutStart(format=pb.COPY_FORMAT_CSV, columns=2)
    assert [message.data for message in middle] == pieces
    assert (end.end.rows, end.end.bytes, end.end.command_tag) == (3, 10, "COPY 3")
    assert (end.end.receipt.endpoint, end.end.notices[0].message) == ("pg1", "hm")
    assert len(world.copies.requests[0].request_id) == 22
    assert not world.executor.refusals


async def test_out_that_fails_among_its_data(world: World) -> None:
    lost = RouterError(Code.ABORTED, RefuseReason.BACKEND_LOST, "lost", executed=Executed.ROLLED_BACK)
    world.copies.items = [CopyLayout(1, binary=False), b"a", lost]
    call = world.query.CopyOut(pb.CopyOutRequest(table=TABLE), metadata=AUTH)
    assert [await call.read() is not None for _ in range(2)] == [True, True]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert reason_of(caught.value) == ("BACKEND_LOST", "rolled_back")


async def test_out_whose_reader_leaves_is_closed(world: World) -> None:
    world.copies.items = [CopyLayout(1, binary=False), *([b"x" * 100_000] * 1000), ANSWER]
    call = world.query.CopyOut(pb.CopyOutRequest(table=TABLE), metadata=AUTH)
    await call.read()
    call.cancel()
    await eventually(lambda: world.copies.ends)
    assert world.server.running == 0


async def test_the_deadline_is_the_longest_of_the_tenant_without_a_wish(world: World) -> None:
    async for _ in world.query.CopyOut(pb.CopyOutRequest(table=TABLE), metadata=AUTH):
        pass
    wished = pb.CopyOutRequest(table=TABLE, options=types_pb2.QueryOptions(timeout_ms=3000))
    async for _ in world.query.CopyOut(wished, metadata=AUTH):
        pass
    longest, wish = (request.deadline for request in world.copies.requests)
    assert 15.5 < longest - wish < 17.5


# --- in --------------------------------------------------------------------------------------------------------------


async def test_in(world: World) -> None:
    end = pb.CopyInRequest(end=pb.CopyInEnd(bytes=3))
    answer = await copy_in(world, START, data(b"ab"), data(b""), data(b"c"), end)
    assert (answer.rows, answer.bytes, answer.command_tag) == (2, 3, "COPY")
    assert (answer.receipt.endpoint, world.copies.taken) == ("pg1", [b"ab", b"c"])
    assert world.copies.ends == ["committed"]


async def test_the_headers_come_once_data_is_wanted(world: World) -> None:
    """So a caller can keep its source untouched while its start is held or refused."""
    call: Any = world.query.CopyIn(metadata=AUTH)
    await call.write(START)
    async with asyncio.timeout(3):
        assert ("pointsman-stream", "open") in list(await call.initial_metadata())
    await call.write(END)
    await call
    call = world.query.CopyIn(metadata=AUTH)
    await call.write(END)
    async with asyncio.timeout(3):
        assert "pointsman-stream" not in dict(await call.initial_metadata())


async def test_in_without_its_end_message_is_undone(world: World) -> None:
    assert await refused(world, START, data(b"ab")) == ("CANCELLED", "rolled_back")
    assert world.copies.ends == ["undone"]


@pytest.mark.parametrize("how", ["cancel", "disconnect"])
async def test_in_of_a_caller_that_goes_away_is_undone(world: World, how: str) -> None:
    """gRPC shows both as the end of the stream first, and as what they are only then."""
    for _ in range(5):
        channel = grpc.aio.insecure_channel(world.server.public_address, [("grpc.use_local_subchannel_pool", 1)])
        call: Any = channel.stream_unary(
            "/pointsman.v1.QueryService/CopyIn", request_serializer=pb.CopyInRequest.SerializeToString
        )(metadata=AUTH)
        await call.write(START)
        await call.write(data(b"ab"))
        taken = len(world.copies.taken)
        await eventually(lambda taken=taken: len(world.copies.taken) >= taken)
        if how == "cancel":
            call.cancel()
        await channel.close()
    await eventually(lambda: not world.server.running)
    assert len(world.copies.ends) == len(world.copies.requests)
    assert set(world.copies.ends) <= {"undone"}


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (data(b"ab"),),
        (END,),
        (pb.CopyInRequest(start=pb.CopyInStart()),),
        (START, START),
        (START, data(b"ab"), pb.CopyInRequest()),
        (START, data(b"ab"), pb.CopyInRequest(end=pb.CopyInEnd(bytes=3))),
    ],
    ids=["nothing", "data first", "end first", "no table", "two starts", "empty message", "bytes missing"],
)
async def test_messages_in_a_wrong_order(world: World, messages: tuple[pb.CopyInRequest, ...]) -> None:
    reason, _ = await refused(world, *messages)
    assert reason in ("BAD_REQUEST", "STATEMENT_MISSING")
    assert "committed" not in world.copies.ends


async def test_too_much_data_in_a_message(world: World) -> None:
    reason, _ = await refused(world, START, data(b"x" * (MAX_DATA_BYTES + 1)), END)
    assert reason == "MESSAGE_TOO_LARGE"
    assert world.copies.ends == ["undone"]


async def test_a_refusal_comes_before_the_caller_has_said_its_end(world: World) -> None:
    bad = RouterError(Code.INVALID_ARGUMENT, RefuseReason.BAD_DATA, "bad", executed=Executed.ROLLED_BACK)
    world.copies.refuse_after = (2, bad)
    call: Any = world.query.CopyIn(metadata=AUTH)
    await call.write(START)
    for _ in range(2):
        await call.write(data(b"x" * 1000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason_of(caught.value) == ("BAD_DATA", "rolled_back")


async def test_who_sends_faster_than_postgresql_takes_waits(world: World) -> None:
    world.copies.gate = asyncio.Event()
    call: Any = world.query.CopyIn(metadata=AUTH)
    await call.write(START)
    sent = 0

    async def send() -> None:
        nonlocal sent
        for _ in range(256):
            await call.write(data(b"x" * MAX_DATA_BYTES))
            sent += 1

    sending = asyncio.create_task(send())
    await asyncio.sleep(0.5)
    assert sent < 64, "gRPC's own windows and the kernel's buffers hold a few MiB, no more"
    world.copies.gate.set()
    await sending
    await call.write(END)
    assert (await call).bytes == 256 * MAX_DATA_BYTES


async def test_refusals_are_counted(world: World) -> None:
    await refused(world, data(b"x"))
    ((tenant, method, error),) = world.executor.refusals
    assert (tenant, method, error.reason) == ("acme", Method.COPY_IN, RefuseReason.BAD_REQUEST)
