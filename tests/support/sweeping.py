"""Cancels one task at every point where it can be cancelled: run after run, one loop turn later each time.

What waits on a future can be cancelled before the future is done, in the turn in which it is done, and after; each of
the three has had its own bugs in every pool ever written. So the step is the loop's turn, not the task's await.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.virtual_time import VirtualTimeLoop

MOST_TURNS = 2000

Act = Callable[[], Awaitable[Any]]


class TurningLoop(VirtualTimeLoop):
    """A virtual loop that calls someone after each turn."""

    def __init__(self) -> None:
        super().__init__()
        self.after_turn: Callable[[], None] = lambda: None

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        self.after_turn()


class Sweep:
    """One run: cancels what `act` is given, in the turn number `at` after its start."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.hit = False
        """The task was still running then."""

    async def act(self, work: Awaitable[Any], interrupt: Callable[[], object] | None = None) -> Any:
        """The work's result, or the exception it ended with. interrupt: what to do instead of cancelling its task."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TurningLoop)
        task = asyncio.ensure_future(work)
        left = self.at

        def after_turn() -> None:
            nonlocal left
            left -= 1
            if left == 0 and not task.done():
                self.hit = True
                (interrupt or task.cancel)()

        loop.after_turn = after_turn
        try:
            return (await asyncio.gather(task, return_exceptions=True))[0]
        finally:
            loop.after_turn = lambda: None


def run_strictly(main: Callable[[], Awaitable[Any]], loop_factory: Callable[[], VirtualTimeLoop] = TurningLoop) -> None:
    """Run; a task left behind, or an exception that nobody took, is a failure."""
    lost: list[str] = []
    gc.disable()  # or it runs at any time, and over everything that was ever imported

    async def whole() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, told: lost.append(f"{told['message']}: {told.get('exception')!r}"))
        await main()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(whole())
        gc.collect(1)
    finally:
        gc.enable()
    assert not lost, lost


def sweep(story: Callable[[Sweep], Awaitable[Any]]) -> int:
    """Tell the story again and again, cancelled one turn later each time, until it ends first; how often."""
    for at in range(1, MOST_TURNS):
        one = Sweep(at)

        async def main(one: Sweep = one) -> None:
            await story(one)

        try:
            run_strictly(main)
        except BaseException as error:
            error.add_note(f"cancelled in turn {at}")
            raise
        if not one.hit:
            return at
    raise AssertionError(f"still running after {MOST_TURNS} turns")
