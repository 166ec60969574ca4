"""Opening lanes: how many are on their way, and a rest after one that could not be opened.

Whatever number of requests waits, a server that may not be there is asked by one connect at a time, and after each that
failed the pool rests: what the pool tries is paid by its own pauses, not by each request that waits for it. A connect
that takes long is let go on, but reads need not wait for it: another server may have a connection. Who waits for a
place under the endpoint's cap waits for its own time, not for that of whoever came first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace

from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.ports import Clock, EndpointPool, Lane

OPEN_AGAIN_S = 1.0
"""After a failed attempt to open one more, the lanes that are there must do for this long."""
FIRST_REST_S = 0.02
LONGEST_REST_S = 0.5
"""Without any lane, the rest after a failed connect; doubled from the first to the longest (seconds)."""
SLOW_S = 0.5
"""Many times what a connect takes (seconds)."""


class LaneOpener:
    """Opens the lanes of one pool. opened and failed are told, one of them once per lane; slow before that."""

    __slots__ = (
        "_clock", "_failed", "_failures", "_fault", "_opened", "_pool", "_resting_until", "_tell_slow", "_timeout_s",
        "_wanted", "closed", "opening", "slow",
    )  # fmt: skip

    def __init__(
        self,
        pool: EndpointPool,
        timeout_s: float,
        clock: Clock,
        opened: Callable[[Lane], None],
        failed: Callable[[Fault], None],
        slow: Callable[[Fault], None],
        wanted: Callable[[], bool],
    ) -> None:
        """wanted: whether some wait on for one that did not come in its time."""
        self._pool = pool
        self._timeout_s = timeout_s
        self._clock = clock
        self._opened = opened
        self._failed = failed
        self._tell_slow = slow
        self._wanted = wanted
        self.slow: Fault | None = None
        """Why no read should wait for the connect that is under way."""
        self._resting_until = 0.0
        self._failures = 0
        """Connects in a row that failed."""
        self._fault: Fault | None = None
        self.opening = 0
        """Lanes on their way."""
        self.closed = False
        """Lanes that come now go back at once."""

    @property
    def rests(self) -> bool:
        """The lanes that are there must do for now."""
        if self._resting_until and self._clock.now() >= self._resting_until:
            self._resting_until = 0.0
        return self._resting_until > 0.0

    def rest(self) -> None:
        """One could not be opened, and others are there."""
        self._resting_until = self._clock.now() + OPEN_AGAIN_S

    def room(self, lanes: int, most: int) -> int:
        """How many lanes there may be, those being opened included, when so many are there and the pool has most."""
        if self._failures or not lanes:
            return min(most, lanes + (self.opening or not self.rests))  # one goes to find out
        if self._resting_until and self.rests:
            return lanes
        return most

    def refusal(self) -> Fault | None:
        """Why there is no lane just now, for those who come during the rest after a connect that failed."""
        if self._fault is None or not self.rests:
            return None
        return replace(self._fault, shared=True)

    def go_on(self) -> None:
        """Whatever was wrong may be over."""
        self._resting_until = 0.0

    def open(self) -> Coroutine[object, object, None]:
        """One lane more, counted from now on; whoever calls runs what is returned."""
        self.opening += 1
        return self._open()

    async def _open(self) -> None:
        fault: Fault | None = None
        watch = asyncio.create_task(self._watch())
        try:
            lane = await self._lane()
        except AttemptFailed as failure:
            fault = failure.fault
        except Exception as error:
            # A bug of an edge; whoever waits must not wait for it in vain.
            fault = Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, message=f"unexpected {type(error).__name__}")
            raise
        finally:
            self.opening -= 1
            self.slow = None
            watch.cancel()
            if fault is not None:
                self._note(fault)
                self._failed(fault)
        if fault is None:
            self._failures, self._fault = 0, None
            if self.closed:
                await lane.give_back()
            else:
                self._opened(lane)

    async def _lane(self) -> Lane:
        """Whoever came while others waited has time left when theirs has passed; asked again in the same turn, the pool
        keeps its place in the line for the endpoint's cap."""
        while True:
            try:
                return await self._pool.open_lane(self._clock.now() + self._timeout_s)
            except AttemptFailed as failure:
                if failure.fault.kind is not FaultKind.POOL_TIMEOUT or not self._wanted():
                    raise

    async def _watch(self) -> None:
        """Beside a lane that is being opened; what only waits for a place under the endpoint's cap is not slow."""
        while True:
            await self._clock.sleep(SLOW_S)
            if self._pool.statistics().opening:
                words = f"a connect has been under way for longer than {SLOW_S:g} s"
                self.slow = Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, message=words, shared=True)
                self._tell_slow(self.slow)

    def _note(self, fault: Fault) -> None:
        if fault.stage is not Stage.CONNECT:
            return
        if not fault.shared:
            self._failures += 1
        self._fault = fault
        rest_s = min(LONGEST_REST_S, FIRST_REST_S * (1 << min(max(self._failures, 1) - 1, 30)))
        self._resting_until = max(self._resting_until, self._clock.now() + rest_s)
