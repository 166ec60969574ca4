"""Questions of one message and one answer that change nothing when they are asked again: asked until there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc import aio

from pointsman.connection import GRACE_S, Connections, Pauses
from pointsman.errors import Error, Executed
from pointsman.status import drained, error_from_rpc, worth_another_try

Answer = TypeVar("Answer", bound=Message)


async def ask_until(
    connections: Connections,
    method: str,
    question: Callable[[float], Message],
    kind: type[Answer],
    timeout_s: float,
) -> Answer:
    """The router's answer; question(left_s) makes the message. Unavailable when it was not reached in time,
    ClientClosed, or the router's own Error."""
    loop = asyncio.get_running_loop()
    by, pauses = loop.time() + timeout_s, Pauses()
    left_s = timeout_s
    while True:
        try:
            return await _ask(connections, method, question(left_s), kind, left_s + GRACE_S)
        except Error as error:
            if not worth_another_try(error):
                raise
            pauses.failed()
            pause_s = pauses.next_s()
            left_s = by - loop.time() - pause_s
            if left_s <= 0:
                raise connections.unavailable(timeout_s, error.message) from None
        await asyncio.sleep(pause_s)


async def _ask(
    connections: Connections, method: str, question: Message, kind: type[Answer], timeout_s: float
) -> Answer:
    link = connections.acquire()
    try:
        call: aio.UnaryUnaryMultiCallable[Any, Answer] = link.channel.unary_unary(
            method, request_serializer=type(question).SerializeToString, response_deserializer=kind.FromString
        )
        return await call(question, timeout=timeout_s, metadata=connections.metadata())
    except BaseException as failure:
        closed = connections.met_close(failure, Executed.NO)
        if closed is not None:
            raise closed from None
        if not isinstance(failure, aio.AioRpcError):
            raise
        error = error_from_rpc(failure, writes=False)
        if drained(error):
            link.retire()
        raise error from None
    finally:
        link.release()
