"""How many bytes of large requests one Multiplex stream may have in the router, from their reading to their answers.

Beyond MOST_BYTES no large request of the stream begins: it waits, and nothing behind it is read, so that gRPC's flow
control holds back this stream alone. Small ones and cancels pass until one waits. What runs is answered, or ends at
its deadline, so there is room again in the end. Messages up to SMALL_BYTES are not looked at, nor are somewhat larger
ones of many usual calls: there are no more of them than calls.
"""

from __future__ import annotations

import asyncio

from router.model.request import Request

SMALL_BYTES = 4 << 10
"""Messages and requests up to this size are small."""
MANY_BYTES = 16 << 10
"""So are messages up to this one, of calls that have USUAL_BYTES on average."""
USUAL_BYTES = 256
MOST_BYTES = 32 << 20
"""Large requests not yet answered; the one that goes beyond it is taken, as it could be larger than all of it."""
_STEP_BYTES = 256
_PARAM_BYTES = 64
"""What objects take beside the bytes of a parameter, of which a message may have one in four bytes."""


class Intake:
    """One stream's. An idle stream keeps one."""

    __slots__ = ("_bytes", "_reader", "full", "weights")

    def __init__(self) -> None:
        self.weights: dict[int, int] = {}
        """Bytes of large requests under way, by call; empty while there are small ones only."""
        self._bytes = 0
        self.full = False
        """Another large request has to wait."""
        self._reader: asyncio.Future[None] | None = None

    def take(self, call_id: int, request: Request) -> None:
        """A request has begun. A call that is known already stays what it was."""
        steps = request.steps
        if len(steps) == 1:  # mostly, and then cheap
            weight = request.size_bytes + _PARAM_BYTES * len(steps[0].statement.params)
        else:
            weight = weight_of_batch(request)
        if weight > SMALL_BYTES and call_id not in self.weights:
            self.weights[call_id] = weight
            self._bytes += weight
            self.full = self._bytes > MOST_BYTES

    def leave(self, call_id: int) -> None:
        """It has been answered."""
        self._bytes -= self.weights.pop(call_id, 0)
        self.full = self._bytes > MOST_BYTES
        if self._reader is not None and not self.full and not self._reader.done():
            self._reader.set_result(None)

    async def wait_below(self) -> None:
        """Wait while another large request has to."""
        while self.full:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None


def is_large(size: int, calls: int) -> bool:
    """Whether a message of more than SMALL_BYTES is to be looked at, call by call."""
    return size > MANY_BYTES or size > USUAL_BYTES * calls


def weight_of_batch(request: Request) -> int:
    """Bytes that a request takes of the process, about."""
    params = sum(len(step.statement.params) for step in request.steps)
    return request.size_bytes + _STEP_BYTES * len(request.steps) + _PARAM_BYTES * params
