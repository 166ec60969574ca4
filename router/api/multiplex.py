"""Multiplex: many requests over one stream. Each runs by itself; replies leave as soon as the stream can be written.

A message costs far more than a statement, so whatever is ready when the last write has ended leaves as one message:
no timer, at most one write under way. A call that fails is answered in-band and disturbs no other. A caller that
ends its side still gets its answers; one that goes away has everything of it cancelled.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from pointsman.v1 import query_service_pb2 as pb

from router.api import translate
from router.api.answering import Answering
from router.api.calls import (
    MAX_REPLY_BYTES,
    Call,
    draining_error,
    handler_failed,
    reply_too_large,
    timeout_s,
    unexpected_error,
)
from router.api.drain import Drain
from router.api.intake import SMALL_BYTES, Intake, is_large
from router.api.message_stream import MessageStream, check_size
from router.api.outbox import Outbox, reply_frame
from router.api.room import LARGE_BYTES, Room, key_of, not_kept
from router.api.rpc_roles import IN_MULTIPLEX, check_role
from router.api.status import status_of
from router.api.surface import ReadUnderWay
from router.model.callers import CallerRole
from router.model.errors import Code, Executed, RouterError, bad_request
from router.model.reasons import RefuseReason
from router.model.request import CancelOutcome, Method, Request
from router.model.topology import Tenant
from router.ports import Clock, EventSink

METHOD_NAME = "pointsman.v1.QueryService.Multiplex"
STARTS_PER_TURN = 32
"""Calls started before other streams get their turn on the event loop."""
LINGER_S = 0.5
"""After a drain, a stream with nothing under way is kept this long for its caller to end it."""
RETRY_WHEN_FULL_S = 0.05
END_OF_PROOF_S = 10.0
"""A caller whose token or certificate is about to end has this long, or a fifth of what is left, for a new stream."""

_METHODS = {"query": Method.QUERY, "execute": Method.EXECUTE, "batch": Method.EXECUTE_BATCH}


@dataclass(frozen=True, slots=True)
class Multiplexing:
    """What all Multiplex streams share."""

    answering: Answering
    drain: Drain
    clock: Clock
    events: EventSink
    max_calls: int
    """Calls of one stream under way or not yet read by the caller; more are refused."""
    processes: int = 1
    """Processes behind the port: a caller with much to do spreads over them by more connections."""

    async def serve(self, call: Call[Tenant], stream: MessageStream[pb.MultiplexRequest]) -> None:
        """Serve one stream until the caller ends or drops it."""
        await stream.let_in(self.processes)
        await _Conversation(self, call, stream).run()


@dataclass(slots=True)
class _Running:
    """A call under way."""

    kind: str
    request: Request
    task: asyncio.Task[None] | None = None
    started: bool = False
    cancelled: bool = False
    waiting: bool = False
    """For room: nothing of it has begun, or it is a read to be done again."""
    least: int = 0
    """Bytes of its answer that was let go."""


class _Conversation:
    """One stream. Its handler's task writes, a second task reads, and each call has one of its own."""

    def __init__(self, shared: Multiplexing, call: Call[Tenant], stream: MessageStream[pb.MultiplexRequest]) -> None:
        self._shared = shared
        self._prove = call.prove
        self._tenant = call.caller
        self._role = call.role
        self._denied: RouterError | None = None
        self._stream = stream
        self._outbox = Outbox()
        self._room = Room(self._outbox)
        self._held = self._room.held
        self._intake = Intake()
        self._weights = self._intake.weights
        self._running: dict[int, _Running | ReadUnderWay] = {}
        self._closing = False

    async def run(self) -> None:
        """Until the caller has ended its side and all is answered; RouterError when the stream itself must fail."""
        unsubscribe = self._shared.drain.subscribe(self._outbox.announce_drain)
        ending = self._announce_end_of_proof()
        reader = asyncio.create_task(self._read())
        reader.add_done_callback(lambda _: self._outbox.wake())
        try:
            await self._write(reader)
        finally:
            unsubscribe()
            if ending is not None:
                ending.cancel()
            await self._stop(reader)

    def _announce_end_of_proof(self) -> asyncio.TimerHandle | None:
        """Its caller is asked for a new stream before the token or certificate of this one ends."""
        remaining_s = self._prove.remaining_s()
        if remaining_s == math.inf:
            return None
        before_s = remaining_s - min(END_OF_PROOF_S, remaining_s / 5)
        return asyncio.get_running_loop().call_later(max(0.0, before_s), self._outbox.announce_drain)

    async def _write(self, reader: asyncio.Task[None]) -> None:
        while True:
            await self._wait_for_replies()
            while message := self._outbox.take():
                self._room.let_in()
                await self._stream.write(message)
            if reader.done():
                reader.result()
                if not self._running and not self._outbox:
                    return

    async def _wait_for_replies(self) -> None:
        if not self._shared.drain.begun or self._running:
            await self._outbox.wait()
            return
        try:
            await asyncio.wait_for(self._outbox.wait(), LINGER_S)
        except TimeoutError:
            # Everything that was read has been answered, so what the caller misses was never executed.
            raise draining_error() from None

    async def _read(self) -> None:
        while (message := await self._stream.read()) is not None:
            await self._take_all(message)
            del message  # not to be held until the next one comes, which may be never
            await self._outbox.wait_below()

    async def _take_all(self, message: pb.MultiplexRequest) -> None:
        now = self._shared.clock.now()
        remaining_s = self._stream.time_remaining()
        size = self._stream.last_bytes
        large = size > SMALL_BYTES and is_large(size, len(message.calls))
        self._prove_again()
        for number, call in enumerate(message.calls, 1):
            kind = call.WhichOneof("call")
            if large and self._intake.full and kind != "cancel" and call.ByteSize() > SMALL_BYTES:
                await self._intake.wait_below()
                self._prove_again()
            self._take(call, kind, now, remaining_s)
            if large and (running := self._running.get(call.id)) is not None:
                self._intake.take(call.id, running.request)
            if number % STARTS_PER_TURN == 0:
                await asyncio.sleep(0)
                if len(self._running) + len(self._outbox) >= self._shared.max_calls:
                    await self._outbox.wait_below()  # what follows is refused, and refusals take room as well

    def _prove_again(self) -> None:
        """A reload may have changed the tenant, or taken its token away, since the stream was opened."""
        try:
            admission = self._prove()
            self._tenant, self._role, self._denied = admission.caller, admission.role, None
        except RouterError as error:
            self._denied = error

    def _take(
        self, call: pb.MultiplexCall, kind: str | None, now: float, remaining_s: float | None
    ) -> None:
        """Start a call, or refuse it in-band."""
        call_id = call.id
        if kind == "cancel":
            self._cancel(call_id)
            return
        try:
            known = self._acceptable(call_id, kind)
            self._start(call_id, known, self._request(call, known, now, remaining_s))
        except RouterError as error:
            method = _METHODS.get(kind or "")
            if method is not None:
                self._shared.answering.executor.refused(self._tenant.name, method, error)
            self._reply_failure(call_id, error)
        except Exception as error:
            self._shared.events.emit(handler_failed(METHOD_NAME, error))
            self._reply_failure(call_id, unexpected_error())

    def _start(self, call_id: int, kind: str, request: Request) -> None:
        if kind == "query" and not self._outbox.full:
            room = self._room
            likely = room.likely(key_of(self._tenant, request)) if room.learned else 0
            if not likely or room.fits(likely):
                read = self._shared.answering.executor.start(self._tenant, request, call_id, self._read_ended)
                if read is not None:
                    self._running[call_id] = read
                    room.hold(call_id, likely)
                    return
        self._begin(call_id, _Running(kind, request))

    def _begin(self, call_id: int, running: _Running) -> None:
        self._running[call_id] = running
        running.task = asyncio.create_task(self._serve(call_id, running))

    def _acceptable(self, call_id: int, kind: str | None) -> str:
        """The call's kind; RouterError when it cannot be taken."""
        check_size(self._stream.last_bytes, self._stream.max_bytes)
        if self._denied is not None:
            raise self._denied
        if self._shared.drain.begun:
            raise draining_error()
        if call_id in self._running:
            raise bad_request(RefuseReason.BAD_REQUEST, f"call {call_id} is already in flight on this stream")
        in_use = len(self._running) + len(self._outbox)
        if in_use >= self._shared.max_calls:
            raise _stream_full(in_use, self._shared.max_calls)
        if kind is None:
            raise bad_request(RefuseReason.BAD_REQUEST, "the call is empty, or of a kind unknown to this router")
        if self._role is not CallerRole.WRITER:
            check_role(self._role, IN_MULTIPLEX.get(kind), kind)
        return kind

    def _request(self, call: pb.MultiplexCall, kind: str, now: float, remaining_s: float | None) -> Request:
        message = getattr(call, kind)
        wish_ms = message.options.timeout_ms if message.HasField("options") else 0
        deadline = now + timeout_s(self._tenant.policy, remaining_s, call.timeout_ms, wish_ms)
        request_id = self._shared.answering.request_id(message.request_id)
        if kind == "query":
            return translate.query_request(message, deadline, request_id)
        if kind == "execute":
            return translate.execute_request(message, deadline, request_id)
        return translate.batch_request(message, deadline, request_id)

    def _read_ended(self, read: ReadUnderWay) -> None:
        """Called by the engine, once, for a read that runs without a task of ours."""
        call_id = read.tag
        del self._running[call_id]
        try:
            if read.error is not None:
                raise read.error
            body = self._shared.answering.query_bytes(self._tenant, read.request, read.answer)
            if (len(body) > LARGE_BYTES or self._held) and not self._keeps(call_id, read.request, body):
                self._begin(call_id, _Running("query", read.request, least=len(body)))
                return
        except RouterError as error:
            self._reply_failure(call_id, error)
        except Exception as error:
            self._shared.events.emit(handler_failed(METHOD_NAME, error))
            self._reply_failure(call_id, unexpected_error())
        else:
            self._outbox.add(reply_frame(call_id, "query", body))
        finally:
            if self._held:
                self._room.leave(call_id)
            if self._weights and call_id not in self._running:
                self._intake.leave(call_id)

    def _keeps(self, call_id: int, request: Request, body: bytes) -> bool:
        """Learn an answer's size; False when there is no room for it. RouterError when there can be none."""
        size = len(body)
        if size > MAX_REPLY_BYTES:
            raise reply_too_large(size)
        self._room.learn(key_of(self._tenant, request), size)
        return self._room.keeps(call_id, size, read=request.method is Method.QUERY)

    async def _serve(self, call_id: int, running: _Running) -> None:
        """Run one call and queue its reply; ends without one only when the stream is closing."""
        running.started = True
        try:
            if running.cancelled:
                raise _cancelled(Executed.NO)
            body = await self._answer_with_room(call_id, running)
        except RouterError as error:
            self._reply_failure(call_id, error)
        except asyncio.CancelledError:
            if self._closing:
                raise
            self._reply_failure(call_id, _cancelled(_executed_when_cut_off(running)))
        except Exception as error:
            self._shared.events.emit(handler_failed(METHOD_NAME, error))
            self._reply_failure(call_id, unexpected_error())
        else:
            self._outbox.add(reply_frame(call_id, running.kind, body))
        finally:
            del self._running[call_id]
            if self._held:
                self._room.leave(call_id)
            if self._weights:
                self._intake.leave(call_id)

    async def _answer_with_room(self, call_id: int, running: _Running) -> bytes:
        """Begin the call when there is room for its answer; a read whose answer had none after all is done again."""
        request = running.request
        while True:
            if self._outbox.full or self._room.learned or running.least:
                await self._wait_for_room(call_id, running)
            body = await self._answer(running)
            if not (len(body) > LARGE_BYTES or self._held) or self._keeps(call_id, request, body):
                return body
            running.least = len(body)
            del body  # not to be held while it waits
            if running.kind != "query":
                raise not_kept(self._outbox.bytes, running.least)
            self._room.leave(call_id)

    async def _wait_for_room(self, call_id: int, running: _Running) -> None:
        request = running.request
        remaining_s = request.deadline - self._shared.clock.now()
        running.waiting = True
        try:
            await self._room.enter(call_id, key_of(self._tenant, request), running.least, remaining_s)
        except RouterError as error:
            self._shared.answering.executor.refused(self._tenant.name, request.method, error)
            raise
        running.waiting = False

    async def _answer(self, running: _Running) -> bytes:
        answering = self._shared.answering
        if running.kind == "query":
            return await answering.query(self._tenant, running.request)
        if running.kind == "execute":
            return await answering.execute(self._tenant, running.request)
        return await answering.batch(self._tenant, running.request)

    def _cancel(self, call_id: int) -> None:
        """Stop a call; it answers by itself, with CANCELLED or with its result when that was faster."""
        running = self._running.get(call_id)
        if running is None:
            return
        if not isinstance(running, _Running):
            running.cancel()
            return
        outcome = self._shared.answering.executor.stop(self._tenant.name, running.request)
        if outcome is not CancelOutcome.NOT_FOUND:
            return
        # The engine does not know it yet, or no longer.
        running.cancelled = True
        if running.started and running.task is not None:
            running.task.cancel()

    def _reply_failure(self, call_id: int, error: RouterError) -> None:
        self._outbox.add(reply_frame(call_id, "failure", status_of(error, self._tenant.name).SerializeToString()))

    async def _stop(self, reader: asyncio.Task[None]) -> None:
        """Cancel all that is left and wait until it has cleaned up."""
        self._closing = True
        reader.cancel()
        tasks = []
        for running in list(self._running.values()):
            if not isinstance(running, _Running):
                running.abandon()
            elif running.task is not None:
                tasks.append(running.task)
                running.task.cancel()
        await asyncio.gather(reader, *tasks, return_exceptions=True)


def _stream_full(in_use: int, limit: int) -> RouterError:
    return RouterError(
        Code.RESOURCE_EXHAUSTED,
        RefuseReason.QUEUE_FULL,
        f"{in_use} calls of this stream are under way or unread, the limit is {limit}",
        retry_after_s=RETRY_WHEN_FULL_S,
        numbers={"in_use": in_use, "limit": limit},
    )


def _executed_when_cut_off(running: _Running) -> Executed:
    return Executed.NO if running.kind == "query" or running.waiting else Executed.MAYBE


def _cancelled(executed: Executed) -> RouterError:
    return RouterError(Code.CANCELLED, RefuseReason.CANCELLED, "the caller cancelled the request", executed=executed)
