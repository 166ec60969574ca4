"""Raw bytes to messages: for one message, and for the two directions of a bidi stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from router.api.departures import CallerGone, met_by
from router.model.errors import bad_request
from router.model.reasons import RefuseReason

M = TypeVar("M", bound=Message)


_OPEN = (("pointsman-stream", "open"),)
"""Tells headers of ours from the empty ones that gRPC makes of a refusal."""
_PROCESSES = "pointsman-workers"


class Context(Protocol):
    """What we use of grpc.aio.ServicerContext, with raw messages."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...

    def peer(self) -> str: ...

    def auth_context(self) -> object: ...

    def set_trailing_metadata(self, trailing_metadata: tuple[tuple[str, str], ...]) -> None: ...

    def time_remaining(self) -> float | None: ...

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None: ...

    async def read(self) -> Any: ...

    async def write(self, message: bytes) -> None: ...

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: Sequence[tuple[str, str | bytes]]
    ) -> NoReturn: ...

    def done(self) -> bool: ...


def parse(message_class: type[M], raw: bytes, max_bytes: int) -> M:
    """The message, or RouterError INVALID_ARGUMENT when it is too large or none at all."""
    check_size(len(raw), max_bytes)
    return _decoded(message_class, raw)


def check_size(size: int, max_bytes: int) -> None:
    """RouterError MESSAGE_TOO_LARGE for a message beyond the bound."""
    if size > max_bytes:
        raise bad_request(
            RefuseReason.MESSAGE_TOO_LARGE,
            f"the message has {size} bytes, the limit is {max_bytes}: send its parameters in several requests",
            bytes=size,
            limit=max_bytes,
        )


def _decoded(message_class: type[M], raw: bytes) -> M:
    try:
        return message_class.FromString(raw)
    except DecodeError:
        name = message_class.DESCRIPTOR.full_name
        raise bad_request(
            RefuseReason.BAD_REQUEST, f"the bytes are no {name}: use stubs generated from this router's protos"
        ) from None


class MessageStream(Generic[M]):
    """A bidi stream of one RPC. One read and one write may be under way at a time."""

    def __init__(self, message_class: type[M], context: Context, max_bytes: int) -> None:
        self._message_class = message_class
        self._context = context
        self.max_bytes = max_bytes
        self.last_bytes = 0
        """Size of the message read last; whoever reads compares it with max_bytes, to answer in-band."""
        self._gone = False
        """After a write that failed gRPC takes no other one, and calls that a mistake."""

    def time_remaining(self) -> float | None:
        """Seconds until the RPC's own deadline; None without one."""
        return self._context.time_remaining()

    async def let_in(self, processes: int = 1) -> None:
        """Send the headers now and not with the first answer: the caller then knows that it was not refused."""
        headers = _OPEN if processes == 1 else (*_OPEN, (_PROCESSES, str(processes)))
        try:
            await self._context.send_initial_metadata(headers)
        except grpc.aio.InternalError as error:
            raise self._met_by(error) from None

    async def read(self) -> M | None:
        """The next message; None when the caller has ended its side. RouterError when it is no message at all."""
        raw = await self._context.read()
        if raw is grpc.aio.EOF:
            return None
        self.last_bytes = len(raw)
        return _decoded(self._message_class, raw)

    async def write(self, raw: bytes) -> None:
        """Send one message that is serialised already; waits while the caller does not read. CallerGone."""
        try:
            await self._context.write(raw)
        except grpc.aio.InternalError as error:
            raise self._met_by(error) from None

    def _met_by(self, error: grpc.aio.InternalError) -> BaseException:
        met = CallerGone() if self._gone else met_by(error)
        self._gone = isinstance(met, CallerGone)
        return met
