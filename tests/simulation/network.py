"""The links between the router and the nodes, and among the nodes: cut, one-way, slow; and what a TCP connection makes
of that.

A cut link loses nothing of a connection that survives it: TCP sends again once the link is back. Messages of one
connection keep their order, those of different connections overtake one another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.support.virtual_time import SeededChance

ROUTER, SECOND_ROUTER = "router", "router2"
RESEND_S = 0.2
"""After a link is back, TCP's next attempt comes this much later."""
APART_S = 1e-7
"""Between two messages of one connection: timers of the same moment keep no order."""
Link = tuple[str, str]


class Network:
    """Which links are cut, and how long a message takes on the others."""

    def __init__(self, chance: SeededChance) -> None:
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._cuts: dict[Link, int] = {}
        self._slow: dict[Link, float] = {}
        self._waiting: dict[Link, list[Callable[[], None]]] = {}
        self.disturbed_at: dict[Link, float] = {}
        """When a link was last cut or slow."""

    def up(self, source: str, target: str) -> bool:
        return (source, target) not in self._cuts

    def both(self, one: str, other: str) -> bool:
        """Whether a connection can be opened."""
        return self.up(one, other) and self.up(other, one)

    def cut(self, source: str, target: str) -> None:
        """One way; cuts of the same link add up."""
        link = (source, target)
        self._cuts[link] = self._cuts.get(link, 0) + 1

    def heal(self, source: str, target: str) -> None:
        link = (source, target)
        left = self._cuts.get(link, 0) - 1
        if left > 0:
            self._cuts[link] = left
        elif link in self._cuts:
            del self._cuts[link]
            self.disturbed_at[link] = self._loop.time()
            for resume in self._waiting.pop(link, []):
                self._loop.call_later(RESEND_S, resume)

    def slow(self, source: str, target: str, seconds: float) -> None:
        """Each message takes up to so much longer; 0 ends it."""
        link = (source, target)
        if seconds:
            self._slow[link] = seconds
        else:
            self._slow.pop(link, None)
        self.disturbed_at[link] = self._loop.time()

    def disturbed_since(self, link: Link, moment: float) -> bool:
        """Whether it was cut or slow at any time since then."""
        return link in self._cuts or link in self._slow or self.disturbed_at.get(link, -1.0) >= moment

    def delay(self, source: str, target: str) -> float:
        """How long a message takes."""
        extra = self._slow.get((source, target), 0.0)
        return 0.0002 + 0.0004 * self._chance.draw() + (extra * self._chance.draw() if extra else 0.0)

    def when_up(self, source: str, target: str, resume: Callable[[], None]) -> None:
        self._waiting.setdefault((source, target), []).append(resume)

    async def travel(self, source: str, target: str, deadline: float) -> None:
        """A message of its own arrives. TimeoutError when it has not by the deadline."""
        while not self.up(source, target):
            healed: asyncio.Future[None] = self._loop.create_future()
            self.when_up(source, target, partial(_wake, healed))
            async with asyncio.timeout_at(deadline):
                await healed
        until = self._loop.time() + self.delay(source, target)
        await asyncio.sleep(min(until, max(deadline, self._loop.time())) - self._loop.time())
        if until > deadline:
            raise TimeoutError


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Wire:
    """One direction of one connection."""

    def __init__(self, network: Network, source: str, target: str) -> None:
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._source, self._target = source, target
        self._free_at = 0.0
        self._stuck: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def send(self, act: Callable[..., None], *arguments: Any) -> None:
        """Have something done at the other end, once it arrives."""
        if self._stuck or not self._network.up(self._source, self._target):
            if not self._stuck:
                self._network.when_up(self._source, self._target, self._again)
            self._stuck.append((act, arguments))
            return
        arrives = self._loop.time() + self._network.delay(self._source, self._target)
        self._free_at = max(self._free_at + APART_S, arrives)
        self._loop.call_at(self._free_at, act, *arguments)

    def _again(self) -> None:
        if not self._network.up(self._source, self._target):
            self._network.when_up(self._source, self._target, self._again)
            return
        stuck, self._stuck = self._stuck, deque()
        for act, arguments in stuck:
            self.send(act, *arguments)
