"""Requests of one tenant that wait for admission: the more important first, among equals who came first."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from router.model.request import Priority

Place = asyncio.Future[None]


class WaitingLine:
    """Places with their deadlines. Whoever is in a line is told by its future, once."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[Priority, OrderedDict[Place, float]] = {one: OrderedDict() for one in _FIRST_TO_LAST}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def ahead_of(self, priority: Priority) -> int:
        """How many would be served before one that came now."""
        return sum(len(line) for one, line in self._lines.items() if one.value >= priority.value)

    def join(self, place: Place, deadline: float, priority: Priority) -> None:
        """Behind its equals."""
        self._lines[priority][place] = deadline

    def leave(self, place: Place, priority: Priority) -> None:
        """It waits no longer; it may have been taken already."""
        self._lines[priority].pop(place, None)

    def take(self) -> tuple[Place, float]:
        """The next one, with its deadline. KeyError when nobody waits."""
        line = next((line for line in self._lines.values() if line), self._lines[Priority.LOW])
        return line.popitem(last=False)

    def take_less_important(self, than: Priority) -> Place | None:
        """Of the least important, who came last, if it is less important than this; it makes room."""
        for priority in reversed(_FIRST_TO_LAST):
            if priority.value >= than.value:
                return None
            if self._lines[priority]:
                return self._lines[priority].popitem()[0]
        return None


_FIRST_TO_LAST = sorted(Priority, key=lambda one: -one.value)
