"""Waiting for an answer no longer than a deadline.

asyncio.timeout cancels the waiting task and leaves it to unwind; here the future itself ends, so that what waits on
it can tell its own deadline from its caller's cancellation, at the price of one timer.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

_T = TypeVar("_T")


class Expired(Exception):
    """The deadline passed first."""


async def wait_until(future: asyncio.Future[_T], deadline: float) -> _T:
    """The future's result; Expired once the loop's clock passes the deadline (seconds)."""
    timer = asyncio.get_running_loop().call_at(deadline, _expire, future)
    try:
        return await future
    finally:
        timer.cancel()


def _expire(future: asyncio.Future[_T]) -> None:
    if not future.done():
        future.set_exception(Expired())
