"""Opening lanes: how many are on their way, and a rest after one that could not be opened."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from router.model.observation import AttemptFailed, Fault, FaultKind, Stage
from router.ports import Clock, EndpointPool, Lane

OPEN_AGAIN_S = 1.0
"""After a failed attempt to open one more, the lanes that are there must do for this long."""


class LaneOpener:
    """Opens the lanes of one pool. opened and failed are told, one of them once per lane."""

    __slots__ = ("_clock", "_failed", "_opened", "_pool", "_resting_until", "_timeout_s", "closed", "opening")

    def __init__(
        self,
        pool: EndpointPool,
        timeout_s: float,
        clock: Clock,
        opened: Callable[[Lane], None],
        failed: Callable[[Fault], None],
    ) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._clock = clock
        self._opened = opened
        self._failed = failed
        self._resting_until = 0.0
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

    def go_on(self) -> None:
        """Whatever was wrong may be over."""
        self._resting_until = 0.0

    def open(self) -> Coroutine[object, object, None]:
        """One lane more, counted from now on; whoever calls runs what is returned."""
        self.opening += 1
        return self._open()

    async def _open(self) -> None:
        fault: Fault | None = None
        try:
            lane = await self._pool.open_lane(self._clock.now() + self._timeout_s)
        except AttemptFailed as failure:
            fault = failure.fault
        except Exception as error:
            # A bug of an edge; whoever waits must not wait for it in vain.
            fault = Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, message=f"unexpected {type(error).__name__}")
            raise
        finally:
            self.opening -= 1
            if fault is not None:
                self._failed(fault)
        if fault is None:
            if self.closed:
                await lane.give_back()
            else:
                self._opened(lane)
