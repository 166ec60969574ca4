"""Idempotency keys of the model: their rows live in the log, to be lost, copied and found with their writes."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING

from router.model.request import Statement
from tests.support.fake_keys import Holder, KeyTable, Row
from tests.support.fake_replies import Reply

if TYPE_CHECKING:
    from tests.simulation.node import Node


def increment(counter: bytes, stamp: int) -> bytes:
    """How the log has one execution of `update COUNTER set x = x + 1`."""
    return b"%s + 1 ('#%d')" % (counter, stamp)


class LoggedRows(MutableMapping[bytes, Row]):
    """Those that a transaction on this server meets: committed, and no longer waiting for a standby."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __getitem__(self, key: bytes) -> Row:
        node = self._node
        for record, position in node.servers.judge.keys.runs(key):
            if node.has(record, position) and not any(one.record is record for one in node.waiting):
                return dict(record.keys)[key]
        raise KeyError(key)

    def __setitem__(self, key: bytes, row: Row) -> None:
        """The commit has brought it into the log."""

    def __delitem__(self, key: bytes) -> None:
        raise AssertionError("no key is deleted")

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("nobody lists keys")

    def __len__(self) -> int:
        return 0


class LoggedKeys(KeyTable):
    """The table of one server."""

    def __init__(self, node: Node) -> None:
        super().__init__(LoggedRows(node))
        self._node = node

    def judge(self, backend: Holder, statement: Statement) -> Reply:
        if self._node.in_recovery:
            return Reply(error="25006", message="cannot write in a read-only transaction")
        reply = super().judge(backend, statement)
        if statement.sql.endswith(b"FOR UPDATE") and reply.rows:
            reply.effect, reply.wrote = True, b""  # a locked row: its COMMIT is one that waits for the standby
        return reply
