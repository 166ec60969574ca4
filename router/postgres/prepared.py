"""Prepared statements of one connection: owned by the router, least recently used first out.

A text seen once goes unprepared (most texts of an ad-hoc caller never come back); from its second use on it is
prepared. Names are never reused on a connection, so a late answer cannot be taken for another statement's.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from router.model.request import Statement

_Key = tuple[bytes, tuple[int, ...]]


@dataclass(slots=True)
class Plan:
    """How to run a statement: its name, whether to prepare it first, and which name to close before."""

    name: bytes
    prepare: bool = False
    evicted: bytes | None = None


class PreparedStatements:
    """What is prepared on one connection. capacity 0 turns preparing off."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._plans: OrderedDict[_Key, Plan] = OrderedDict()
        self._keys: dict[bytes, _Key] = {}
        self._seen: OrderedDict[_Key, None] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return len(self._plans)

    def plan(self, statement: Statement) -> Plan | None:
        """The plan for a statement, None to run it unprepared. Assumes that the plan is carried out."""
        key = (statement.sql, statement.oids)
        plan = self._plans.get(key)
        if plan is not None:
            self._plans.move_to_end(key)
            return plan
        if not self._capacity or not self._again(key):
            return None
        return self._add(key)

    def _again(self, key: _Key) -> bool:
        if key in self._seen:
            del self._seen[key]
            return True
        self._seen[key] = None
        if len(self._seen) > 2 * self._capacity:
            self._seen.popitem(last=False)
        return False

    def _add(self, key: _Key) -> Plan:
        evicted = None
        if len(self._plans) >= self._capacity:
            _, old = self._plans.popitem(last=False)
            del self._keys[old.name]
            evicted = old.name
        self._count += 1
        name = b"p%d" % self._count
        self._plans[key] = Plan(name)
        self._keys[name] = key
        return Plan(name, prepare=True, evicted=evicted)

    def forget(self, name: bytes) -> None:
        """The server does not have it, or its plan no longer fits: the next use is prepared anew under a new name."""
        key = self._keys.pop(name, None)
        if key is not None:
            del self._plans[key]
            self._seen[key] = None
