"""Thousands of requests that make no sense, sent to a router as quickly as it answers; and what came back, judged.

Whatever is sent, an answer is an answer, or an error with one of the documented reasons. It is never UNKNOWN, and never
one of those reasons that say that something is broken.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from pointsman.v1 import admin_service_pb2, errors_pb2, query_service_pb2, transaction_service_pb2

from router.model.reasons import RefuseReason
from tests.hardening.messages import MessageMaker, mutated

PUBLIC: Sequence[MethodDescriptor] = [
    *query_service_pb2.DESCRIPTOR.services_by_name["QueryService"].methods,
    *transaction_service_pb2.DESCRIPTOR.services_by_name["TransactionService"].methods,
]
ADMIN: Sequence[MethodDescriptor] = list(admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].methods)

BROKEN = frozenset({"INTERNAL", "PROTOCOL", "CORRUPTION", "BACKEND_CONFIG", "BACKEND_FAULT"})
"""Documented as well, but by no request of a caller to be had."""
REASONS = frozenset(reason.name for reason in RefuseReason)
WIRE_ONLY = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
"""What gRPC may say by itself, without details of ours: our own side gave up, or a limit of the transport."""
_CROSSED = "Internal error from Core"
"""What grpc.aio makes of a caller's write that meets the end of its call, whatever the status was."""
ASKED_FOR = ("cache lookup failed for type ",)
"""How messages begin by which PostgreSQL calls its caller's mistake its own: a parameter of no known type."""
IN_FLIGHT = 24
CHANNELS = 3
ENDLESS = frozenset({"Listen"})
"""What ends by its caller or its deadline only: it gets the shortest one, or it would take most of the time."""
_DAMAGED = 0.3
_ABANDONED = 0.05
_STRANGE_METADATA = 0.06


@dataclass
class Tally:
    """What came back."""

    requests: int = 0
    seconds: float = 0.0
    codes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    samples: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    """What must not come, each with the number of its request."""

    def __str__(self) -> str:
        codes = ", ".join(f"{code} {n}" for code, n in self.codes.most_common())
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.reasons.most_common())
        rate = self.requests / max(self.seconds, 0.001)
        return f"{self.requests} requests, {rate:.0f}/s\n  codes: {codes}\n  reasons: {reasons}"

    def told(self) -> str:
        """What was wrong, for an assertion."""
        seen = "\n".join(f"{reason}: {sample}" for reason, sample in self.samples.items())
        return f"{len(self.wrong)} wrong answers:\n" + "\n".join(self.wrong[:20]) + f"\none of each:\n{seen}"


class Campaign:
    """Requests number 0, 1, 2... of a seed; each is the same whenever it is sent."""

    def __init__(self, address: str, token: str, methods: Sequence[MethodDescriptor], seed: int) -> None:
        self._token = token
        self._methods = methods
        self._seed = seed
        self._channels = [grpc.aio.insecure_channel(address, (("n", number),)) for number in range(CHANNELS)]
        self.tally = Tally()

    async def run(self, first: int, count: int) -> Tally:
        """Send requests first, first + 1, ..., as many at once as IN_FLIGHT."""
        began = time.monotonic()
        numbers = iter(range(first, first + count))
        async with asyncio.TaskGroup() as senders:
            for _ in range(IN_FLIGHT):
                senders.create_task(self._send_all(numbers))
        self.tally.seconds += time.monotonic() - began
        return self.tally

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()

    async def _send_all(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            await self._send(number)

    async def _send(self, number: int) -> None:
        chance = random.Random(f"{self._seed}:{number}")
        method = chance.choice(self._methods)
        payloads = _payloads(method, chance)
        call = self._begin(method, payloads, chance)
        self.tally.requests += 1
        try:
            # Many ends are the answer: a caller that goes away at any moment must leave nothing behind.
            if chance.random() < _ABANDONED:
                await asyncio.sleep(chance.random() * 0.03)
                call.cancel()
            answers = [answer async for answer in _answers(method, call)]
        except grpc.aio.AioRpcError as error:
            self._judge_error(number, method, error)
        except (asyncio.CancelledError, grpc.aio.UsageError):
            if not call.done():
                raise
            self.tally.codes["(abandoned)"] += 1
        else:
            self.tally.codes["OK"] += 1
            for answer in answers:
                self._judge_answer(number, method, answer)

    def _begin(self, method: MethodDescriptor, payloads: list[bytes], chance: random.Random) -> Any:
        channel = chance.choice(self._channels)
        path = f"/{method.containing_service.full_name}/{method.name}"
        timeout = chance.choice((0.05, 0.5, 1.0, 2.0))
        options: dict[str, Any] = {
            "metadata": self._metadata(chance), "timeout": 0.05 if method.name in ENDLESS else timeout
        }  # fmt: skip
        if method.client_streaming and method.server_streaming:
            return channel.stream_stream(path)(_slowly(payloads, chance), **options)
        if method.client_streaming:
            return channel.stream_unary(path)(_slowly(payloads, chance), **options)
        if method.server_streaming:
            return channel.unary_stream(path)(payloads[0], **options)
        return channel.unary_unary(path)(payloads[0], **options)

    def _metadata(self, chance: random.Random) -> tuple[tuple[str, str | bytes], ...]:
        mine = ("authorization", f"Bearer {self._token}")
        if chance.random() >= _STRANGE_METADATA:
            return (mine,)
        strange: Sequence[tuple[tuple[str, str | bytes], ...]] = (
            (),
            (("authorization", "Bearer "),),
            (("authorization", "Basic " + "x" * 3000),),
            (("authorization", "Bearer a.b.c"), mine),
            (mine, ("pointsman-tenant", "globex")),
            (mine, ("pointsman-tenant", "x" * 2000)),
            (mine, ("pointsman-token", "AAAA")),
            (mine, ("pointsman-token", "%%%")),
            (mine, ("some-bin", chance.randbytes(200))),
            (mine, *(("x-many", "y" * 100) for _ in range(30))),
        )
        return chance.choice(strange)

    # --- judging -----------------------------------------------------------------------------------------------

    def _judge_error(self, number: int, method: MethodDescriptor, error: grpc.aio.AioRpcError) -> None:
        self.tally.codes[error.code().name] += 1
        trailers = dict(error.trailing_metadata() or ())
        raw = trailers.get("grpc-status-details-bin")
        if isinstance(raw, bytes):
            self._judge_status(number, method, errors_pb2.Status.FromString(raw))
        elif error.details() == _CROSSED and method.client_streaming:
            self.tally.codes["(crossed)"] += 1
        elif error.code() not in WIRE_ONLY:
            self._blame(number, method, f"{error.code().name} without details: {error.details()}")

    def _judge_answer(self, number: int, method: MethodDescriptor, raw: bytes) -> None:
        try:
            answer = GetMessageClass(method.output_type).FromString(raw)
        except DecodeError:
            self._blame(number, method, f"answered with bytes that are no {method.output_type.name}")
            return
        for status in _statuses_in(answer):
            self._judge_status(number, method, status)

    def _judge_status(self, number: int, method: MethodDescriptor, status: errors_pb2.Status) -> None:
        info = errors_pb2.ErrorInfo()
        if not status.details or not info.MergeFromString(status.details[0].value):
            self._blame(number, method, f"status {status.code} without ErrorInfo: {status.message}")
            return
        self.tally.reasons[info.reason] += 1
        broken = info.reason in BROKEN and not status.message.startswith(ASKED_FOR)
        self.tally.samples.setdefault(info.reason, f"{number} {method.name}: {status.message}"[:200])
        unknown = status.code == grpc.StatusCode.UNKNOWN.value[0] and info.reason != "OUTCOME_UNKNOWN"
        if broken or unknown or info.reason not in REASONS:
            self._blame(number, method, f"status {status.code} {info.reason}: {status.message}")

    def _blame(self, number: int, method: MethodDescriptor, what: str) -> None:
        self.tally.wrong.append(f"seed {self._seed} request {number} {method.name}: {what}")


def _payloads(method: MethodDescriptor, chance: random.Random) -> list[bytes]:
    maker = MessageMaker(chance)
    count = chance.choice((1, 1, 2, 3, 5)) if method.client_streaming else 1
    messages = [maker.make(method.input_type) for _ in range(count)]
    if method.name == "CopyIn" and chance.random() < 0.8:
        messages = _copy_in(maker, chance)
    raws = [message.SerializeToString() for message in messages]
    return [mutated(raw, chance) if chance.random() < _DAMAGED else raw for raw in raws]


def _copy_in(maker: MessageMaker, chance: random.Random) -> list[Message]:
    """In an order that gets somewhere: chance alone hardly ever draws a start, data and an end."""
    start = query_service_pb2.CopyInStart()
    start.MergeFromString(maker.make(query_service_pb2.CopyInStart.DESCRIPTOR).SerializeToString())
    lines = [b"%d\tnote\n" % chance.randrange(200), b"\\N\t\\N\n", b"\\.\n", b"\xff\xfe", b"", b"x" * 70000]
    data = [query_service_pb2.CopyInRequest(data=chance.choice(lines)) for _ in range(chance.randint(0, 4))]
    end = [query_service_pb2.CopyInRequest(end={})] if chance.random() < 0.8 else []
    return [query_service_pb2.CopyInRequest(start=start), *data, *end]


async def _slowly(payloads: list[bytes], chance: random.Random) -> AsyncIterator[bytes]:
    for payload in payloads:
        if chance.random() < 0.1:
            await asyncio.sleep(chance.random() * 0.02)
        yield payload


async def _answers(method: MethodDescriptor, call: Any) -> AsyncIterator[bytes]:
    if method.server_streaming:
        async for answer in call:
            yield answer
    else:
        yield await call


def _statuses_in(answer: Message) -> Iterable[errors_pb2.Status]:
    """Failures that are told inside a stream."""
    if isinstance(answer, query_service_pb2.MultiplexResponse):
        return [reply.failure for reply in answer.replies if reply.HasField("failure")]
    if isinstance(answer, transaction_service_pb2.TransactResponse) and answer.HasField("failed"):
        return [answer.failed]
    return ()
