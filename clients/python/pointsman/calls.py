"""One call of a Multiplex stream: what it needs, who waits for it, and its fate when something breaks."""

from __future__ import annotations

from enum import Enum, unique
from typing import Any, Protocol

import grpc
from grpc import aio

from pointsman.connection import MAX_REQUEST_BYTES, closed_error
from pointsman.errors import (
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    Error,
    Executed,
    InternalError,
    InvalidRequest,
    OutcomeUnknown,
)
from pointsman.status import drained, error_from_rpc, error_from_status
from pointsman.v1 import errors_pb2

MAX_CRASHES = 2
"""How often a call is sent again after a stream that ended by a mistake (UNKNOWN, INTERNAL): it may be the cause."""

_LOST = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
"""Codes of a stream that broke, as opposed to one that the router refuses for good."""


class Waiter(Protocol):
    """Who waits for a reply: an asyncio.Future, or a thread."""

    def done(self) -> bool: ...
    def cancel(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...


class Call:
    """One call. It belongs to the client until it is written, then to the stream that carries it.

    body        a serialised MultiplexCall without id and timeout
    timeout_s   counted from `Multiplexer.submit`, which also gives id and deadline
    writes      it may change something; replayable: it may be sent again all the same
    seen        the version of the client's token when it was made
    doubt       an attempt before the present one may have been done, and no router has said whether it was
    renewed     it was sent again already because its stream's token or certificate held no longer
    """

    __slots__ = (
        "body",
        "crashes",
        "deadline",
        "doubt",
        "id",
        "renewed",
        "replayable",
        "seen",
        "stream",
        "timeout_s",
        "waiter",
        "writes",
        "written",
    )

    def __init__(self, body: bytes, timeout_s: float, writes: bool, replayable: bool, seen: int = 0) -> None:
        self.body = body
        self.timeout_s = timeout_s
        self.writes = writes
        self.replayable = replayable
        self.seen = seen
        self.written = False
        self.doubt = False
        self.renewed = False
        self.crashes = 0
        self.stream: Any = None
        self.waiter: Waiter
        self.id: int
        self.deadline: float

    def again(self, timeout_s: float) -> Call:
        """The same as a call of its own."""
        return Call(self.body, timeout_s, self.writes, self.replayable, self.seen)

    def fail(self, error: Error) -> None:
        """Ends the call, unless it has ended. None of these errors is the router's word about this very call, so none
        ends a doubt."""
        if self.doubt and error.safe_to_repeat:
            error.executed = Executed.MAYBE
        if not self.waiter.done():
            self.waiter.set_exception(error)

    @property
    def unsure(self) -> bool:
        """True when nobody here knows whether it had an effect."""
        return self.doubt or (self.written and self.writes)


def after_break(call: Call, failure: aio.AioRpcError | None, *, answered: bool) -> Error | None:
    """What becomes of a written call whose stream has ended: None to send it again, or its error.

    A router that refuses the whole stream before its first answer has done nothing of what was sent; one that ends it
    because it drains has done nothing of what it has not answered.
    """
    error = stream_error(failure, writes=call.writes)
    if drained(error):
        return None
    if error.code not in _LOST:
        if answered and call.writes:
            error.executed = Executed.MAYBE  # the router speaks of the stream, not of this call
        return error
    if call.writes and (answered or not error.safe_to_repeat):
        if not call.replayable:
            return OutcomeUnknown(
                f"the connection to the router was lost while the write was under way ({error.message})",
                code=error.code,
                reason="OUTCOME_UNKNOWN",
                executed=Executed.MAYBE,
            )
        call.doubt = True
    if error.code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
        call.crashes += 1
        if call.crashes > MAX_CRASHES:
            return error
    return None


def stream_error(failure: aio.AioRpcError | None, *, writes: bool) -> Error:
    """The end of a stream as an exception; None is an end without an error."""
    if failure is not None:
        return error_from_rpc(failure, writes=writes)
    return Error(
        "the router closed the stream",
        code=grpc.StatusCode.UNAVAILABLE,
        executed=Executed.MAYBE if writes else Executed.NO,
    )


def error_of(failure: bytes, *, writes: bool) -> Error:
    """The error in a reply; `failure` is a serialised Status, and may be empty."""
    return error_from_status(errors_pb2.Status.FromString(failure), writes=writes)


@unique
class Refusal(Enum):
    """Why a router did not take a call that may fare better on another stream."""

    DRAINING = "draining"
    UNPROVEN = "unproven"
    """The stream's token or certificate holds no longer."""


_REFUSALS = (grpc.StatusCode.UNAVAILABLE.value[0], grpc.StatusCode.UNAUTHENTICATED.value[0])


def refusal_of(failure: bytes) -> Refusal | None:
    """Why it was not taken; None when it was, or belongs on no other stream."""
    # The code alone would do for most, but parsing is rare enough: failures only.
    status = errors_pb2.Status.FromString(failure)
    if status.code not in _REFUSALS:
        return None
    error = error_from_status(status, writes=True)
    if drained(error):
        return Refusal.DRAINING
    unproven = error.code is grpc.StatusCode.UNAUTHENTICATED and error.executed is Executed.NO
    return Refusal.UNPROVEN if unproven else None


def overdue(call: Call) -> DeadlineExceeded:
    """The error of a call whose time is up."""
    return DeadlineExceeded(
        f"no answer within {call.timeout_s:g} s"
        + ("; the write may have been done" if call.unsure else "" if call.written else "; it was never sent"),
        code=grpc.StatusCode.DEADLINE_EXCEEDED,
        reason="DEADLINE",
        executed=Executed.MAYBE if call.unsure else Executed.NO,
    )


def closed(call: Call) -> ClientClosed:
    """The error of a call that the client's close has met."""
    return closed_error(Executed.MAYBE if call.unsure else Executed.NO)


def cut_off(call: Call) -> Cancelled:
    """The error of a call whose stream's own task was cancelled by somebody else."""
    return Cancelled(
        "the task that carries this client's calls was cancelled"
        + ("; the write may have been done" if call.unsure else ""),
        code=grpc.StatusCode.CANCELLED,
        reason="CANCELLED",
        executed=Executed.MAYBE if call.unsure else Executed.NO,
    )


def too_large(size: int) -> InvalidRequest:
    """The error for a request that no router would accept."""
    return InvalidRequest(
        f"the request has {size} bytes, the limit is {MAX_REQUEST_BYTES}: send its parameters in several calls",
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="MESSAGE_TOO_LARGE",
        executed=Executed.NO,
    )


def unexpected(error: Exception) -> Error:
    """The error of calls whose connecting met a fault of this package."""
    return InternalError(
        f"connecting failed: {type(error).__name__}: {error}",
        code=grpc.StatusCode.INTERNAL,
        reason="INTERNAL",
        executed=Executed.NO,
    )


def other_loop() -> RuntimeError:
    """The error of a call made on another event loop than the client's."""
    return RuntimeError("this client belongs to another event loop: make one client a loop, or use pointsman.sync")
