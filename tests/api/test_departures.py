"""A caller that is found gone by a write: gRPC's own errors, in every kind of RPC, before the cancellation comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from pointsman.v1 import admin_service_pb2 as admin_pb
from pointsman.v1 import query_service_pb2 as pb
from pointsman.v1 import transaction_service_pb2 as tx_pb
from pointsman.v1 import types_pb2

from router.api.calls import Gate
from router.api.departures import CallerGone, keep_out_of_log, met_by
from router.model.copying import CopyLayout
from router.model.errors import RouterError
from router.model.events import HandlerFailed
from router.model.listening import Notification
from tests.api.conftest import ADMIN_AUTH, AUTH, World, eventually
from tests.api.fake_copies import ANSWER
from tests.api.fake_engine import answer_of, rows_of

Handlers = Callable[[str], Any]
HEADERS, WRITE, ABORT, TWICE = "headers", "write", "abort", "twice"

GRPC_LOG = logging.getLogger("grpc._cython.cygrpc")


class Failing:
    """A real server whose handler goes on when its caller has gone, and keeps what gRPC raises then."""

    def __init__(self) -> None:
        self.errors: dict[str, BaseException] = {}
        self.read: object = None
        self._ended = asyncio.Event()

    def _late(self, name: str, operation: Callable[[Any], Awaitable[object]]) -> Any:
        async def handle(_: object, context: Any) -> None:
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                self.read = await context.read()
                await self._keep(name, operation(context))
                self._ended.set()

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _twice(self, _: object, context: Any) -> None:
        writes = [asyncio.create_task(context.write(bytes(3 << 20))) for _ in range(2)]
        await asyncio.wait(writes, return_when=asyncio.FIRST_EXCEPTION)
        await self._keep(TWICE, writes[1])
        self._ended.set()

    async def _keep(self, name: str, operation: Awaitable[object]) -> None:
        try:
            await operation
        except grpc.aio.InternalError as error:
            self.errors[name] = error

    async def run(self) -> None:
        server = grpc.aio.server()
        handlers = {
            HEADERS: self._late(HEADERS, lambda context: context.send_initial_metadata(())),
            WRITE: self._late(WRITE, lambda context: context.write(b"x")),
            ABORT: self._late(ABORT, lambda context: context.abort(grpc.StatusCode.ABORTED, "no")),
            TWICE: grpc.stream_stream_rpc_method_handler(self._twice),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for name in handlers:
                self._ended.clear()
                call: Any = channel.stream_stream(f"/s/{name}")()
                await call.write(b"")
                await asyncio.sleep(0.1)
                if name is TWICE:
                    await asyncio.wait_for(self._ended.wait(), 3)
                call.cancel()
                await asyncio.wait_for(self._ended.wait(), 3)
        await server.stop(None)


@pytest.fixture(scope="module")
def failing() -> Failing:
    found = Failing()
    asyncio.run(found.run())
    return found


class Leaving:
    """api.message_stream.Context: what came before its caller went, and then errors of some operations."""

    def __init__(self, errors: dict[str, BaseException], metadata: Any, *messages: Message) -> None:
        self._errors = errors
        self._metadata = metadata
        self._messages = [message.SerializeToString() for message in messages]
        self.aborted = False
        self.before_read: Callable[[], Awaitable[object]] | None = None

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return tuple(self._metadata)

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> object:
        return {}

    def set_trailing_metadata(self, trailing_metadata: tuple[tuple[str, str], ...]) -> None: ...

    def time_remaining(self) -> float | None:
        return None

    def done(self) -> bool:
        return False

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self._meet(HEADERS)

    async def read(self) -> Any:
        if self.before_read is not None:
            await self.before_read()
        return self._messages.pop(0) if self._messages else grpc.aio.EOF

    async def write(self, message: bytes) -> None:
        await asyncio.sleep(0)
        self._meet(WRITE)

    async def abort(self, code: object, details: str, trailing_metadata: object) -> NoReturn:
        self.aborted = True
        self._meet(ABORT)
        raise grpc.aio.AbortError

    def _meet(self, name: str) -> None:
        error = self._errors.get(name)
        if error is not None:
            raise type(error)(*error.args)


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> Handlers:
    """To be asked for before the world: its handlers by the RPC's name."""
    found: list[grpc.GenericRpcHandler] = []
    service = Gate.service

    def kept(gate: Gate[Any], *what: Any) -> grpc.GenericRpcHandler:
        found.append(service(gate, *what))
        return found[-1]

    def handler(name: str) -> Any:
        asked: Any = SimpleNamespace(method=f"/pointsman.v1.{name.replace('.', '/')}", invocation_metadata=())
        method: Any = next(method for one in found if (method := one.service(asked)) is not None)
        return method.unary_unary or method.unary_stream or method.stream_unary or method.stream_stream

    monkeypatch.setattr(Gate, "service", kept)
    return handler


STATEMENT = types_pb2.Statement(sql="s")
TABLE = pb.CopyTable(name="t")
COPY_IN = (pb.CopyInRequest(start=pb.CopyInStart(table=TABLE)), pb.CopyInRequest(data=b"a"))
CALLS = pb.MultiplexRequest(calls=[pb.MultiplexCall(id=1, query=pb.QueryRequest(statement=STATEMENT))])
BEGIN = tx_pb.TransactRequest(tag=1, begin=tx_pb.TransactBegin(), run=STATEMENT)

RPCS: dict[str, tuple[str, str, tuple[Message, ...]]] = {
    "a refusal": ("QueryService.Query", ABORT, (pb.QueryRequest(),)),
    "rows": ("QueryService.StreamQuery", WRITE, (pb.StreamQueryRequest(statement=STATEMENT),)),
    "a copy out": ("QueryService.CopyOut", WRITE, (pb.CopyOutRequest(table=TABLE),)),
    "a copy in's headers": ("QueryService.CopyIn", HEADERS, COPY_IN),
    "a copy in's end": ("QueryService.CopyIn", ABORT, COPY_IN),
    "notifications": ("QueryService.Listen", WRITE, (pb.ListenRequest(channels=["c"]),)),
    "many calls' headers": ("QueryService.Multiplex", HEADERS, (CALLS,)),
    "many calls' replies": ("QueryService.Multiplex", WRITE, (CALLS,)),
    "a transaction": ("TransactionService.Transact", WRITE, (BEGIN,)),
    "a topology": ("AdminService.WatchTopology", WRITE, (admin_pb.WatchTopologyRequest(),)),
}


async def serve(handlers: Handlers, world: World, rpc: str, errors: dict[str, BaseException]) -> Leaving:
    """One RPC to its end."""
    name, _, messages = RPCS[rpc]
    world.executor.stream_items = [rows_of("a"), answer_of("a")]
    world.copies.items = [CopyLayout(1, binary=False), b"a", ANSWER]
    context = Leaving(errors, ADMIN_AUTH if name.startswith("Admin") else AUTH, *messages)
    handler = handlers(name)
    unary = name.endswith(("Query", "CopyOut", "Listen", "WatchTopology"))
    serving = asyncio.create_task(handler(messages[0].SerializeToString() if unary else None, context))
    if name.endswith("Listen"):
        await eventually(lambda: world.listeners.open_ones)
        world.listeners.open_ones[0].notify(Notification("c", "", 1), 0.0)
    with pytest.raises((asyncio.CancelledError, grpc.aio.AbortError)):
        await asyncio.wait_for(serving, 3)
    return context


def test_grpc_fails_what_is_sent_to_a_caller_that_is_gone_and_ends_what_is_read(failing: Failing) -> None:
    assert set(failing.errors) == {HEADERS, WRITE, ABORT, TWICE}
    assert failing.read is grpc.aio.EOF
    for name, error in failing.errors.items():
        assert isinstance(error, grpc.aio.InternalError)
        met = met_by(error)
        assert met is error if name is TWICE else isinstance(met, CallerGone)


@pytest.mark.parametrize("rpc", RPCS)
async def test_a_caller_found_gone_is_no_failure(handlers: Handlers, world: World, failing: Failing, rpc: str) -> None:
    operation = RPCS[rpc][1]
    context = await serve(handlers, world, rpc, {operation: failing.errors[operation]})
    assert context.aborted is (operation is ABORT)  # after another operation an abort would fail by itself
    assert not world.events.events
    assert not world.server.running
    assert world.executor.running == 0
    assert not world.listeners.open_ones
    assert "committed" not in world.copies.ends
    assert len(world.copies.ends) == len(world.copies.requests)
    assert world.sessions.session is None or world.sessions.session.closed.is_set()


@pytest.mark.parametrize("rpc", [name for name, (_, operation, _) in RPCS.items() if operation is WRITE])
async def test_a_mistake_in_writing_is_still_told(handlers: Handlers, world: World, failing: Failing, rpc: str) -> None:
    context = await serve(handlers, world, rpc, {WRITE: failing.errors[TWICE]})
    (told,) = world.events.events
    assert isinstance(told, HandlerFailed)
    assert (told.method, told.error) == (f"pointsman.v1.{RPCS[rpc][0]}", "ExecuteBatchError")
    assert context.aborted


async def test_a_transaction_whose_caller_is_found_gone_by_the_word_of_a_drain(
    handlers: Handlers, world: World, failing: Failing
) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    errors = {WRITE: failing.errors[WRITE]}
    context = Leaving(errors, AUTH, BEGIN)
    drained = asyncio.Event()
    context.before_read = drained.wait
    serving = asyncio.create_task(handlers("TransactionService.Transact")(None, context))
    await asyncio.sleep(0)
    await world.server.drain(0.05)
    errors[WRITE] = failing.errors[TWICE]  # what gRPC says of writes after one that failed
    drained.set()
    with pytest.raises(CallerGone):
        await asyncio.wait_for(serving, 3)
    assert not complaints
    assert not world.events.events


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What gRPC's log lets through."""
    found: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Keeping()
    GRPC_LOG.addHandler(handler)
    yield found
    GRPC_LOG.removeHandler(handler)


def test_grpcs_own_words_about_it_stay_out_of_the_log(failing: Failing, logged: list[str]) -> None:
    keep_out_of_log()
    for name, error in (*failing.errors.items(), ("another", RouterError.__new__(RouterError)), ("none", None)):
        try:
            if error is not None:
                raise error
        except BaseException:
            GRPC_LOG.exception(name)
        else:
            GRPC_LOG.error(name)
    assert logged == [TWICE, "another", "none"]
