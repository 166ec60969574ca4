"""The parts of an endpoint's limit: of every tenant that is at work there, or was a moment ago.

A tenant keeps its part for a moment when it runs nothing: callers that ask again as soon as they are answered would
else find what they had left taken by a crowd.
"""

from __future__ import annotations

from collections.abc import Mapping

from router.decisions.concurrency import ConcurrencyLimit, Due, parts
from router.model.identity import TenantName

KEPT_S = 0.5
"""For so long after it has run something a tenant's part is not divided among the others."""
FEW = 20
"""Among so many tenants parts are divided anew whenever one comes; else at the next tick."""


class Part:
    """One tenant's."""

    __slots__ = ("apart", "connections", "due", "ran", "ran_at", "scale")

    def __init__(self, due: Due) -> None:
        self.due = due
        self.apart = 0
        """Of those at work, what was not of its part at the last tick: it rests, or has fast reads only."""
        self.connections = 1
        """It may have so many at work while the limit divides."""
        self.scale = 1.0
        """Of the level, for each of its connections."""
        self.ran = True
        """Since the last tick."""
        self.ran_at = 0.0
        """The last tick at which it had (monotonic seconds)."""

    def level(self, running: int, limit: ConcurrencyLimit) -> float:
        """The least limit under which so many are within it; who has all of it, by its floor too, is at the limit."""
        level = running * self.scale
        return max(level, limit.level) if limit.divides and running >= self.connections else level


class TenantParts:
    """Of one endpoint. Called from the event loop only."""

    def __init__(self) -> None:
        self._parts: dict[TenantName, Part] = {}
        self._weights = 0.0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def get(self, tenant: TenantName) -> Part | None:
        """None: it has not run anything for a while."""
        return self._parts.get(tenant)

    def join(self, tenant: TenantName, due: Due, limit: ConcurrencyLimit) -> Part:
        """It runs something, and has a part from now on."""
        part = self._parts[tenant] = Part(due)
        if len(self._parts) <= FEW:
            self.divide(limit)
        else:
            self._weights += due.weight
            part.scale = self._weights / due.weight
            part.connections = max(1, int(limit.level / part.scale))
        return part

    def divide(self, limit: ConcurrencyLimit) -> None:
        """Anew, after the limit or the tenants have changed."""
        if not self._parts:
            return
        self._weights = sum(one.due.weight for one in self._parts.values())
        limit.share(min(one.due.weight for one in self._parts.values()) / self._weights)
        if limit.divides:
            for name, connections in parts(limit.level, {name: one.due for name, one in self._parts.items()}).items():
                self._parts[name].connections = connections
        for one in self._parts.values():
            one.scale = self._weights / one.due.weight

    def renew(self, running: Mapping[TenantName, int], dues: Mapping[TenantName, Due], now: float) -> None:
        """At each tick: who has not run anything for a while goes; weights and floors may be others by now."""
        for name, one in list(self._parts.items()):
            one.apart = 0
            one.due = dues.get(name, one.due)
            if one.ran or running.get(name):
                one.ran, one.ran_at = False, now
            elif now - one.ran_at > KEPT_S:
                del self._parts[name]

    def level(self, running: Mapping[TenantName, int], limit: ConcurrencyLimit) -> float:
        """The least limit under which what runs now is within every tenant's part."""
        return max((one.level(running.get(name, 0), limit) for name, one in self._parts.items()), default=0.0)

    def set_apart(self, tenant: TenantName, connections: int) -> None:
        """At a tick, of one who waits."""
        if (part := self._parts.get(tenant)) is not None:
            part.apart = connections

    def clear(self) -> None:
        """There is no limit."""
        self._parts.clear()
