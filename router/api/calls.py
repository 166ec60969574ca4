"""One wrapper around every RPC: who calls, until when, and what becomes of errors.

It reads and writes raw bytes, so that a message which is no message is answered with an error of ours, and so that an
RPC cannot be added without passing through here.
"""

from __future__ import annotations

import asyncio
import math
import traceback
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from router.api.auditing import CALLER, Audit
from router.api.departures import CallerGone, told
from router.api.drain import Drain
from router.api.message_stream import Context, MessageStream, parse
from router.api.proving import Proving, expired_error
from router.api.rpc_roles import NEEDED, PROVE_AGAIN, check_role
from router.api.status import grpc_code, status_of, trailers_of
from router.api.token_metadata import merged, presented_token, return_token
from router.model.callers import Admission, shown
from router.model.errors import Code, Executed, RouterError
from router.model.events import HandlerFailed
from router.model.identity import TenantName
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import Request
from router.model.topology import Tenant
from router.ports import Clock, EventSink

MAX_REPLY_BYTES = (4 << 20) - 1024
"""Every gRPC client takes 4 MiB unless told otherwise."""
RETRY_WHILE_DRAINING_S = 0.2
REFUSED_IDENTITIES = frozenset({RefuseReason.UNAUTHENTICATED, RefuseReason.TENANT_DENIED, RefuseReason.ROLE_DENIED})

_ANSWER_RESERVE_S = 0.05
"""Kept of the caller's deadline, so that our answer comes before its own timer; of short ones, a tenth."""

Caller = TypeVar("Caller")
Proved = TypeVar("Proved", covariant=True)
Result = TypeVar("Result")
Handler = Callable[[Any, Context], Awaitable[Any]]


class Proof(Protocol[Proved]):
    """Tells as whom a call may go on now, by the configuration in force. RouterError: as nobody."""

    def __call__(self) -> Admission[Proved]: ...

    def remaining_s(self) -> float: ...


class Call(Generic[Caller]):
    """One RPC under way."""

    __slots__ = ("_now", "_remaining_s", "caller", "counted", "method", "presented", "prove", "role", "token", "who")

    def __init__(
        self,
        prove: Proof[Caller],
        method: str,
        now: float,
        remaining_s: float | None,
        presented: str | None = None,
    ) -> None:
        """RouterError when the proof is none."""
        self.prove = prove
        """To be asked again while a long stream goes on."""
        admission = prove()
        self.caller = admission.caller
        self.role = admission.role
        self.who = admission.who
        self.method = method
        self.counted = False
        """Set when the engine has taken the request, which it then counts by itself."""
        self.presented = presented
        """The caller's consistency token as metadata; None: it does not use this way."""
        self.token = b""
        """Of the answer; goes back as metadata to who came with some."""
        self._now = now
        self._remaining_s = remaining_s

    def deadline(self, policy: TenantPolicy, timeout_ms: int) -> float:
        """When the request of a unary RPC must have ended (monotonic seconds)."""
        return self._now + timeout_s(policy, self._remaining_s, timeout_ms)

    def present_token(self, request: Request) -> None:
        """Have a request see what the metadata's token names. RouterError when that is none."""
        if self.presented:
            request.after = merged(request.after, self.presented)


def timeout_s(policy: TenantPolicy, rpc_remaining_s: float | None, *timeouts_ms: int) -> float:
    """The shortest of what the RPC, the caller's options and the tenant allow; without a wish, the tenant's default.

    A timeout of 0 ms is no wish.
    """
    least = math.inf
    for ms in timeouts_ms:
        if 0 < ms < least:
            least = ms
    least /= 1000
    if rpc_remaining_s is not None:
        least = min(least, rpc_remaining_s - min(_ANSWER_RESERVE_S, rpc_remaining_s / 10))
    return policy.default_timeout_s if least == math.inf else min(least, policy.max_timeout_s)


class Gate(Generic[Caller]):
    """Wraps the methods of services; one gate a port."""

    def __init__(
        self,
        proving: Proving[Caller],
        refused: Callable[[Caller | None, str, RouterError], None],
        *,
        clock: Clock,
        events: EventSink,
        drain: Drain | None,
        max_message_bytes: int,
        audit: Audit | None = None,
        audit_all: bool = False,
    ) -> None:
        """refused: told of each request that the engine never saw. drain: None for a port that serves to the end.

        audit: told who is refused, and with audit_all how every RPC ends.
        """
        self._audit = audit
        self._audit_all = audit_all
        self._proving = proving
        self._refused = refused
        self._clock = clock
        self._events = events
        self._drain = drain
        self._max_message_bytes = max_message_bytes
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """RPCs under way."""
        return self._running

    async def wait_idle(self) -> None:
        """Wait until no RPC is under way."""
        await self._idle.wait()

    def service(self, descriptor: ServiceDescriptor, implementation: object) -> grpc.GenericRpcHandler:
        """Handlers for all methods of a service, found by their names in snake case."""
        handlers = {method.name: self._handler(method, implementation) for method in descriptor.methods}
        return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)

    def _handler(self, method: MethodDescriptor, implementation: object) -> grpc.RpcMethodHandler[Any, Any]:
        function = getattr(implementation, _snake_case(method.name))
        message_class: type[Message] = GetMessageClass(method.input_type)
        name = method.full_name
        if method.client_streaming and not method.server_streaming:
            return grpc.stream_unary_rpc_method_handler(self._collection(name, function, message_class))
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(self._conversation(name, function, message_class))
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(name, function, message_class))
        return grpc.unary_unary_rpc_method_handler(self._unary(name, function, message_class))

    def _unary(self, name: str, function: Any, message_class: type[Message]) -> Handler:
        async def handle(raw: bytes, context: Context) -> bytes:
            async def run(call: Call[Caller]) -> bytes:
                message: Message | bytes = await function(call, parse(message_class, raw, self._max_message_bytes))
                return serialized(message)

            return await self._run(name, context, run)

        return handle

    def _stream(self, name: str, function: Any, message_class: type[Message]) -> Handler:
        async def handle(raw: bytes, context: Context) -> None:
            async def run(call: Call[Caller]) -> None:
                async with aclosing(function(call, parse(message_class, raw, self._max_message_bytes))) as messages:
                    async for message in messages:
                        await told(context.write(serialized(message)))

            await self._run(name, context, _while_proved(name, run, Executed.NO))

        return handle

    def _conversation(self, name: str, function: Any, message_class: type[Message]) -> Handler:
        async def handle(_: object, context: Context) -> None:
            async def run(call: Call[Caller]) -> None:
                await function(call, MessageStream(message_class, context, self._max_message_bytes))

            await self._run(name, context, _while_proved(name, run, Executed.MAYBE))

        return handle

    def _collection(self, name: str, function: Any, message_class: type[Message]) -> Handler:
        async def handle(_: object, context: Context) -> bytes:
            async def run(call: Call[Caller]) -> bytes:
                stream = MessageStream(message_class, context, self._max_message_bytes)
                message: Message | bytes = await function(call, stream)
                return serialized(message)

            return await self._run(name, context, _while_proved(name, run, Executed.MAYBE))

        return handle

    async def _run(self, name: str, context: Context, work: Callable[[Call[Caller]], Awaitable[Result]]) -> Result:
        """Do the work of one RPC and turn whatever goes wrong into a status."""
        self._running += 1
        self._idle.clear()
        call: Call[Caller] | None = None
        try:
            call = self._admit(name, context)
            if self._audit is not None:
                CALLER.set(shown(call.who))
            result = await work(call)
            return_token(context, call.presented, call.token)
            if self._audit is not None and self._audit_all:
                self._audit.rpc(name, None, context.peer(), None)
            return result
        except (grpc.aio.AbortError, CallerGone):
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the caller has gone, or the server stops: grpc expects to see it
            # Escaping without a cancelled RPC it would leave the caller without any status (grpc#29248).
            await self._fail(name, context, call, _lost_cancellation())
        except RouterError as error:
            await self._fail(name, context, call, error)
        except Exception as error:
            if context.done():
                raise asyncio.CancelledError from error  # a write or read met the end of the RPC
            self._events.emit(handler_failed(name, error))
            await self._fail(name, context, call, unexpected_error())
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _admit(self, name: str, context: Context) -> Call[Caller]:
        call: Call[Caller] | None = None
        try:
            proof, remaining_s = self._proving.begin(context), context.time_remaining()
            call = Call(proof, name, self._clock.now(), remaining_s, presented_token(context))
            check_role(call.role, NEEDED.get(name), name)
        except RouterError as error:
            self._refused(call.caller if call is not None else None, name, error)
            raise
        if self._drain is not None and self._drain.refuses(name):
            draining = draining_error()
            self._refused(call.caller, name, draining)
            call.counted = True
            raise draining
        return call

    async def _fail(self, name: str, context: Context, call: Call[Caller] | None, error: RouterError) -> NoReturn:
        if call is not None and not call.counted:
            self._refused(call.caller, call.method, error)
        tenant = tenant_name_of(call.caller) if call is not None else None
        if self._audit is not None and (self._audit_all or error.reason in REFUSED_IDENTITIES):
            self._audit.rpc(call.method if call is not None else name, error, context.peer(), tenant)
        status = status_of(error, tenant)
        await told(context.abort(grpc_code(error), status.message, trailers_of(error, status)))


def _while_proved(
    name: str, work: Callable[[Call[Caller]], Awaitable[Result]], executed: Executed
) -> Callable[[Call[Caller]], Awaitable[Result]]:
    """The work of a stream, which ends with the token or certificate that began it. executed: what may be done then."""
    if name in PROVE_AGAIN:
        return work

    async def bounded(call: Call[Caller]) -> Result:
        remaining_s = call.prove.remaining_s()
        if remaining_s == math.inf:
            return await work(call)
        try:
            async with asyncio.timeout(max(0.0, remaining_s)) as bound:
                return await work(call)
        except TimeoutError:
            if not bound.expired():
                raise
            error = expired_error()
            raise RouterError(error.code, error.reason, error.message, executed=executed) from None

    return bounded


def tenant_name_of(caller: object) -> TenantName | None:
    """The caller's tenant; operators have none."""
    return caller.name if isinstance(caller, Tenant) else None


def serialized(message: Message | bytes) -> bytes:
    """The message's bytes, if a client with gRPC's default limit can take them."""
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    if len(raw) > MAX_REPLY_BYTES:
        raise reply_too_large(len(raw))
    return raw


def reply_too_large(size: int) -> RouterError:
    """For an answer that turns out larger than estimated; it says nothing against a write having been done."""
    return RouterError(
        Code.FAILED_PRECONDITION,
        RefuseReason.RESULT_TOO_LARGE,
        f"the answer has {size} bytes, a message takes {MAX_REPLY_BYTES}: use StreamQuery, or set options.max_bytes",
        executed=Executed.YES,
        numbers={"bytes": size, "limit": MAX_REPLY_BYTES},
    )


def draining_error() -> RouterError:
    """For work that comes after the drain began."""
    return RouterError(
        Code.UNAVAILABLE,
        RefuseReason.DRAINING,
        "the router is shutting down and takes no new work: repeat the request on a new connection",
        retry_after_s=RETRY_WHILE_DRAINING_S,
    )


def unexpected_error() -> RouterError:
    """For a mistake of our own, without a word about its inside."""
    return RouterError(
        Code.INTERNAL,
        RefuseReason.INTERNAL,
        "the router made a mistake; its log has the details",
        executed=Executed.MAYBE,
    )


def _lost_cancellation() -> RouterError:
    return RouterError(
        Code.CANCELLED,
        RefuseReason.CANCELLED,
        "the work was cancelled inside the router",
        executed=Executed.MAYBE,
    )


def handler_failed(name: str, error: Exception) -> HandlerFailed:
    frames = traceback.extract_tb(error.__traceback__)
    trace = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return HandlerFailed(name, type(error).__name__, trace)


def _snake_case(name: str) -> str:
    return "".join("_" + letter.lower() if letter.isupper() else letter for letter in name).lstrip("_")
