"""A caller that goes away while it is written to: what gRPC makes of that, told apart from mistakes of ours.

gRPC cancels the handler of a caller that has gone. But a write that is under way fails by itself, with an error that
also means mistakes, and which comes first is chance. A read never fails so: it ends, as if the caller had half-closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

import grpc.aio

T = TypeVar("T")

_FAILED = 'Failed "execute_batch"'
"""gRPC took the operation, and it failed: that happens at the end of an RPC only. What it does not take (two writes at
once) is a mistake of ours, in other words."""
_LOG = logging.getLogger("grpc._cython.cygrpc")


class CallerGone(asyncio.CancelledError):
    """The caller was found gone by a write. It is what gRPC's cancellation is to everything that runs for the caller;
    only the task itself has not been cancelled."""


def met_by(error: grpc.aio.InternalError) -> BaseException:
    """What to raise in place of a failed write: CallerGone, or the error itself where it is a mistake."""
    return CallerGone() if _says_gone(error) else error


async def told(operation: Awaitable[T]) -> T:
    """What a write or an abort gives. CallerGone where it finds nobody."""
    try:
        return await operation
    except grpc.aio.InternalError as error:
        raise met_by(error) from None


def keep_out_of_log() -> None:
    """Answers of unary RPCs and the ends of streams are written by gRPC itself, which logs those that fail so as
    errors. May be called again."""
    _LOG.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    info = record.exc_info
    return not (isinstance(info, tuple) and isinstance(info[1], grpc.aio.InternalError) and _says_gone(info[1]))


def _says_gone(error: grpc.aio.InternalError) -> bool:
    return str(error).startswith(_FAILED)
