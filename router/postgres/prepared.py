"""Prepared statements of one connection: owned by the router, least recently used first out.

A text seen once goes unprepared (most texts of an ad-hoc caller never come back); from its second use on it is
prepared. Names are never reused on a connection, so a late answer cannot be taken for another statement's. Every name
that is dropped here is closed on the server, so that it holds no more than we do. Transaction control is never
prepared: nothing is saved there, and the lane reads from it that a transaction may begin.
"""

from __future__ import annotations

import re
from collections import OrderedDict

from router.model.request import Statement

_Key = tuple[bytes, tuple[int, ...]]

MAX_TEXT = 65536
"""Longer texts are not prepared (bytes)."""
MAX_TEXTS = 2 << 20
"""Bytes of all texts that are kept for one connection; the server keeps as much, and its plans."""
_CONTROL = re.compile(
    rb"[\s;]*(?:begin|start|commit|end|rollback|abort|savepoint|release|prepare|deallocate|discard)\b", re.IGNORECASE
)


class Plan:
    """A statement prepared under a name."""

    __slots__ = ("key", "name", "use")

    def __init__(self, name: bytes, key: _Key) -> None:
        self.name = name
        self.key = key
        self.use = (0, name)
        """What a lane expects of a unit that is this statement alone."""


class PreparedStatements:
    """What is prepared on one connection. capacity 0 turns preparing off."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._plans: OrderedDict[_Key, Plan] = OrderedDict()
        self._by_name: dict[bytes, Plan] = {}
        self._seen: OrderedDict[int, None] = OrderedDict()
        """Hashes, so that no text is kept for having been seen. Two alike: one is prepared a use too early."""
        self._bytes = 0
        self._count = 0
        self.closing: list[bytes] = []
        """Names to close on the server before anything else is sent."""

    def __len__(self) -> int:
        return len(self._plans)

    def ready(self, statement: Statement) -> Plan | None:
        """The plan of a statement that is prepared already."""
        plan = self._plans.get((statement.sql, statement.oids))
        if plan is not None:
            self._plans.move_to_end(plan.key)
        return plan

    def add(self, statement: Statement) -> Plan | None:
        """A new plan for a statement that is not ready, to be prepared now; None to run it unprepared."""
        sql = statement.sql
        if not self._capacity or len(sql) > MAX_TEXT or not self._again(statement):
            return None
        while self._plans and (len(self._plans) >= self._capacity or self._bytes + len(sql) > MAX_TEXTS):
            self.drop(next(iter(self._plans.values())).name, exists=True)
        self._count += 1
        # A name that no tenant chooses, and that no other name of ours begins with: errors are told apart by it.
        plan = Plan(b"pointsman_%d_" % self._count, (sql, statement.oids))
        self._plans[plan.key] = self._by_name[plan.name] = plan
        self._bytes += len(sql)
        return plan

    def _again(self, statement: Statement) -> bool:
        key = hash((statement.sql, statement.oids))
        if key in self._seen:
            del self._seen[key]
            return True
        if _CONTROL.match(statement.sql):
            return False
        self._remember(key)
        return False

    def _remember(self, key: int) -> None:
        self._seen[key] = None
        if len(self._seen) > 2 * self._capacity:
            self._seen.popitem(last=False)

    def drop(self, name: bytes, *, exists: bool) -> None:
        """Use it no more. exists: the server has it, or may have it, so that it must be closed there."""
        plan = self._by_name.pop(name, None)
        if plan is None:
            return
        del self._plans[plan.key]
        self._bytes -= len(plan.key[0])
        if exists:
            self.closing.append(name)

    def forget(self, name: bytes, *, exists: bool) -> None:
        """As drop, for a text that is still in use: the next use prepares it anew, under a new name."""
        plan = self._by_name.get(name)
        if plan is not None:
            self.drop(name, exists=exists)
            self._remember(hash(plan.key))

    def forget_all(self) -> None:
        """All are gone on the server. The next use of each prepares it anew, under a new name."""
        for key in self._plans:
            self._remember(hash(key))
        self._plans.clear()
        self._by_name.clear()
        self.closing.clear()
        self._bytes = 0


def is_control(sql: bytes) -> bool:
    """Whether a text begins or ends a transaction, or names a prepared statement of its own."""
    return _CONTROL.match(sql) is not None
