"""The table of idempotency keys on a scripted server: rows that live with their transaction, and who waits for whom."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Protocol

from router.decisions.keys import TABLE
from router.model.request import Statement
from tests.support.fake_replies import Reply


class Holder(Protocol):
    """A backend."""

    lock_timeout_s: float

    def judge_again(self) -> None:
        """What it waits for has ended."""
        ...


@dataclass
class Row:
    """One key's."""

    request_hash: bytes
    answer: bytes | None = None


@dataclass
class KeyTable:
    """The committed rows, and those of open transactions. Servers that replicate synchronously may share it."""

    rows: MutableMapping[bytes, Row] = field(default_factory=dict)
    missing: bool = False
    forbidden: bool = False
    old: int = 0
    """Rows beyond their age."""
    purges: list[int] = field(default_factory=list)
    _open: dict[bytes, tuple[Holder, Row]] = field(default_factory=dict)
    _waiting: list[tuple[bytes, Holder]] = field(default_factory=list)

    def concerns(self, statement: Statement) -> bool:
        return TABLE in statement.sql

    def judge(self, backend: Holder, statement: Statement) -> Reply:
        """What a statement about the table does."""
        if self.missing or self.forbidden:
            return Reply(error="42P01" if self.missing else "42501")
        if statement.sql.startswith(b"DELETE"):
            deleted = min(self.old, int(statement.params[2] or 0))
            self.old -= deleted
            self.purges.append(deleted)
            return Reply(tag=f"DELETE {deleted}", affected=deleted)
        key = statement.params[1]
        assert key is not None
        row = self.rows.get(key)
        if statement.sql.startswith(b"SELECT"):
            return Reply(rows=((_hex(row.request_hash), _hex(row.answer), b"1000000"),) if row else (), tag="SELECT 1")
        if statement.sql.startswith(b"UPDATE"):
            mine = self._open[key][1]
            mine.answer = statement.params[2]
            if len(statement.params) == 4:  # a copy: its data is known at last
                mine.request_hash = statement.params[3] or b""
            return Reply(tag="UPDATE 1", affected=1)
        return self._insert(backend, key, statement)

    def _insert(self, backend: Holder, key: bytes, statement: Statement) -> Reply:
        asks_only = b"ON CONFLICT" in statement.sql
        if key in self.rows:
            return Reply(tag="INSERT 0 0", affected=0) if asks_only else Reply(error="23505")
        holder = self._open.get(key)
        if holder is not None and holder[0] is not backend:
            self._waiting.append((key, backend))
            return Reply(takes=backend.lock_timeout_s, error="55P03")
        self._open[key] = backend, Row(statement.params[2] or b"")
        return Reply(tag="INSERT 0 1", affected=1, rows=((b"t",),) if asks_only else ())

    def held_by(self, backend: Holder) -> tuple[tuple[bytes, Row], ...]:
        """The rows that are a backend's transaction's."""
        return tuple((key, row) for key, (holder, row) in self._open.items() if holder is backend)

    def ended(self, backend: Holder, *, committed: bool) -> None:
        """A backend's transaction is over."""
        mine = [key for key, (holder, _) in self._open.items() if holder is backend]
        self._waiting = [(key, one) for key, one in self._waiting if one is not backend]
        for key in mine:
            _, row = self._open.pop(key)
            if committed:
                self.rows[key] = row
        told = [one for key, one in self._waiting if key in mine]
        self._waiting = [(key, one) for key, one in self._waiting if key not in mine]
        for one in told:
            one.judge_again()


def _hex(data: bytes | None) -> bytes | None:
    return None if data is None else b"\\x" + data.hex().encode()
