"""Virtual time for asyncio: when every task waits, the clock jumps to the next timer. For tests without sockets.

`asyncio.sleep`, `asyncio.timeout`, `TaskGroup` and `loop.call_at` all follow; an hour passes in microseconds and
times can be compared exactly. When every task waits and no timer is set, nothing can ever happen again: `Deadlock`
is raised at once, instead of a test that hangs.

    @virtual
    async def test_it(): ...          # or, inside a plain test: run_virtual(scenario())
"""

from __future__ import annotations

import asyncio
import functools
import random
import selectors
from collections.abc import Callable, Coroutine, Iterable, Iterator
from itertools import repeat
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Deadlock(Exception):
    """Every task waits for another one, and no timer is set."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: moves the loop's clock on instead."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not ready:
            if timeout is None:
                raise Deadlock("every task waits and no timer is set")
            self._jump(max(0.0, timeout))
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is a number, starting at 1000 s (so that nobody relies on a clock that starts at 0)."""

    def __init__(self, start: float = 1000.0) -> None:
        self._virtual_now = start
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        return self._virtual_now

    def _jump(self, seconds: float) -> None:
        self._virtual_now += seconds


def run_virtual(main: Coroutine[Any, Any, T], *, start: float = 1000.0) -> T:
    """Run a coroutine to its end on virtual time. Tasks it leaves behind are cancelled."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start)) as runner:
        return runner.run(main)


def virtual(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Turn an `async def` test into a plain one that runs on virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtual(test(*args, **kwargs))

    return run


async def settle(turns: int = 20) -> None:
    """Let everything that can run without time passing run."""
    for _ in range(turns):
        await asyncio.sleep(0)


class VirtualClock:
    """ports.Clock on the running (virtual) loop; remembers what was slept."""

    def __init__(self) -> None:
        self.sleeps: list[float] = []

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await asyncio.sleep(max(0.0, seconds))


class HandClock:
    """ports.Clock moved by hand, for tests without a loop."""

    def __init__(self, start: float = 1000.0) -> None:
        self.time = start

    def now(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds

    async def sleep(self, seconds: float) -> None:
        self.time += max(0.0, seconds)
        await asyncio.sleep(0)


class FixedChance:
    """ports.Chance with the draws given (then the last one again), and numbered identifiers."""

    def __init__(self, draws: Iterable[float] = (0.5,)) -> None:
        listed = list(draws)
        self._draws: Iterator[float] = iter([*listed[:-1]])
        self._rest = repeat(listed[-1])
        self._count = 0

    def draw(self) -> float:
        return next(self._draws, next(self._rest))

    def identifier(self) -> str:
        self._count += 1
        return f"id-{self._count:019d}"


class SeededChance:
    """ports.Chance from a seed: random, and the same again for the same seed."""

    def __init__(self, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._count = 0

    def draw(self) -> float:
        return self._random.random()

    def identifier(self) -> str:
        self._count += 1
        return f"id-{self._count:019d}"
