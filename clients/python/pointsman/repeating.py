"""Writes with an idempotency key: sent again until the deadline, as their key makes that harmless.

The router answers a repeated one with what the first did. So a lost connection, a failover, an unknown outcome are no
errors any more, only time; what the router refuses for another reason is raised at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from random import random
from time import monotonic
from typing import Any

import grpc

from pointsman.errors import ClientClosed, Error, Executed

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.5
RESERVE_S = 0.005
"""No attempt starts with less than this left."""

_AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN})
_AGAIN_UNNAMED = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED})
"""Without a reason of the router's: a stream that broke."""

_DEFINITE = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)


def keyed(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The options of a write that has a key, with `idempotent` made into one; None when it has none."""
    key, wish = options.get("idempotency_key"), options.get("idempotent")
    if not key and not wish:
        return None
    made = {name: value for name, value in options.items() if name != "idempotent"}
    made["idempotency_key"] = key or str(uuid.uuid4())
    return made


class Repetition:
    """The attempts of one write. failed() says how long to wait before the next, or raises."""

    def __init__(self, timeout_s: float) -> None:
        self._deadline = monotonic() + timeout_s
        self._pause_s = FIRST_PAUSE_S
        self.in_doubt = False
        """An attempt before the next one may have been done."""

    def left_s(self) -> float:
        """For the next attempt."""
        return max(RESERVE_S, self._deadline - monotonic())

    def failed(self, error: Error) -> float:
        """Seconds until the next attempt. Raises the error when there is to be none: then its `executed` speaks of all
        of them."""
        left_s = self._deadline - monotonic()
        pause_s = min(max(self._pause_s * (0.5 + random()), error.retry_delay or 0.0), LONGEST_PAUSE_S, left_s / 2)
        if not worth_repeating(error) or left_s - pause_s < RESERVE_S:
            raise after_doubt(error) if self.in_doubt else error
        self.in_doubt = self.in_doubt or error.executed is not Executed.NO
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s


def worth_repeating(error: Error) -> bool:
    """The same write may fare better, and its key makes a repetition harmless."""
    if isinstance(error, ClientClosed):
        return False
    return error.code in _AGAIN or (not error.reason and error.code in _AGAIN_UNNAMED)


def after_doubt(error: Error) -> Error:
    """The router's error for a write of which an attempt before may have been done: `executed` speaks of all."""
    if error.safe_to_repeat and not _proves(error):
        error.executed = Executed.MAYBE
    return error


def _proves(error: Error) -> bool:
    """The refusal came after the key's row was written, or read: so no attempt before was done. What a router refuses
    by itself, such as a statement that its configuration does not allow any more, it refuses before."""
    if error.reason == "KEY_REUSED":
        return True
    return error.code in _DEFINITE and error.executed is Executed.ROLLED_BACK
