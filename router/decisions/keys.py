"""Idempotency keys: the row that makes a write exactly-once, and what each failure around it means.

The row is written by the first statement of the write's own transaction, so both live or die together, also in a
failover. A second request with the key meets the row (a unique violation: the first one was done), or waits for the
transaction that holds it (its outcome is open), or writes the row itself (the first one left nothing behind).
The table is made by deploy/tenant_database.sql.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, unique

from router.model.errors import Code, RouterError, bad_request
from router.model.observation import Fault, FaultKind
from router.model.reasons import RefuseReason
from router.model.request import BatchStep, Request, Statement, TransactionMode

TABLE = b"pointsman.idempotency"
PURGE_ROWS = 1000
"""Keys deleted by one statement."""
_TEXT, _BYTEA, _FLOAT8, _INT4 = 25, 17, 701, 23

_MINE = b" WHERE login = session_user AND tenant = $1 AND key = $2"
_INSERT = b"INSERT INTO " + TABLE + b" (tenant, key, request_hash) VALUES ($1, $2, $3)"
_STORE = b"UPDATE " + TABLE + b" SET answer = $3" + _MINE
_STORE_COPY = b"UPDATE " + TABLE + b" SET answer = $3, request_hash = $4" + _MINE
_LOOK = (
    b"SELECT request_hash, answer, (extract(epoch FROM created_at) * 1000000)::bigint FROM "
    + TABLE
    + _MINE
    + b" FOR UPDATE"
)
_PROBE = _INSERT + b" ON CONFLICT DO NOTHING RETURNING true"
_PURGE = (
    b"DELETE FROM "
    + TABLE
    + b" WHERE login = session_user AND tenant = $1 AND key = ANY (ARRAY (SELECT key FROM "
    + TABLE
    + b" WHERE login = session_user AND tenant = $1 AND created_at < now() - make_interval(secs => $2)"
    b" ORDER BY created_at LIMIT $3 FOR UPDATE SKIP LOCKED))"
)
_ANY_WAIT = Statement(b"SET LOCAL lock_timeout TO DEFAULT")

ASSERT_DURABILITY = Statement(b"SET LOCAL synchronous_commit TO DEFAULT")
"""In front of each COMMIT of ours: whatever the transaction has set is undone, and the connection's own value holds."""
COMMIT = Statement(b"COMMIT")
ROLLBACK = Statement(b"ROLLBACK")

INSERT_PLACE = 2
"""Of the key's row among the statements of opening()."""
LOOK_PLACE = -3
PROBE_PLACE = 2


@unique
class KeyTrouble(Enum):
    """What an error of the opening says."""

    TAKEN = "taken"
    """The key's transaction is committed: its answer is there."""
    BUSY = "busy"
    """The key's transaction is open: under way, or waiting for its standby."""
    NOT_CONFIGURED = "not_configured"
    """There is no table, or this login may not use it."""


_TROUBLES: Mapping[str, KeyTrouble] = {
    "23505": KeyTrouble.TAKEN,
    "55P03": KeyTrouble.BUSY,
    "3F000": KeyTrouble.NOT_CONFIGURED,
    "42P01": KeyTrouble.NOT_CONFIGURED,
    "42703": KeyTrouble.NOT_CONFIGURED,
    "42501": KeyTrouble.NOT_CONFIGURED,
}


@dataclass(frozen=True, slots=True)
class Key:
    """A key within its tenant."""

    tenant: str
    text: str

    def statement(self, sql: bytes, *data: bytes) -> Statement:
        """A statement about its row, whose further parameters are bytea."""
        params = (self.tenant.encode(), self.text.encode(), *data)
        return Statement(sql, params, (0, 0, *(1 for _ in data)), (_TEXT, _TEXT, *(_BYTEA for _ in data)))


def opening(mode: TransactionMode, key: Key, request_hash: bytes, wait_s: float) -> tuple[Statement, ...]:
    """What a keyed transaction begins with; the caller's statements wait for locks as long as ever."""
    row = key.statement(_INSERT, request_hash)
    return Statement(mode.begin_sql()), _lock_timeout(wait_s), row, _ANY_WAIT


def closing(key: Key, answer: bytes) -> tuple[Statement, ...]:
    """What goes in front of its COMMIT."""
    return key.statement(_STORE, answer), ASSERT_DURABILITY


def closing_copy(key: Key, answer: bytes, request_hash: bytes) -> tuple[Statement, ...]:
    """The same of a copy, of which the opening did not know the data yet."""
    return key.statement(_STORE_COPY, answer, request_hash), ASSERT_DURABILITY


def looking(key: Key, *, after_failure: bool) -> tuple[Statement, ...]:
    """Read a key's row, alone or after a failed opening; its result is the one at LOOK_PLACE, counted from the end.

    Reading is not enough: the row of a commit that is not yet on its standby may be visible (after a restart, or when
    its wait was ended). Locked, it makes this COMMIT wait for the standby too, and so for the older one's records.
    """
    whole = (Statement(b"BEGIN READ WRITE"), key.statement(_LOOK), ASSERT_DURABILITY, COMMIT)
    return (ROLLBACK, *whole) if after_failure else whole


def probing(key: Key, wait_s: float) -> tuple[Statement, ...]:
    """Ask whether an open transaction holds a key that has no row: then 55P03. The result at PROBE_PLACE has a row when
    none does, and no row when one was written meanwhile."""
    return Statement(b"BEGIN READ WRITE"), _lock_timeout(wait_s), key.statement(_PROBE, b""), ROLLBACK


def purging(tenant: str, age_s: float) -> Statement:
    """Delete some of the keys older than this (seconds); those that somebody looks at are left for the next time."""
    params = (tenant.encode(), b"%.3f" % age_s, b"%d" % PURGE_ROWS)
    return Statement(_PURGE, params, (0, 0, 0), (_TEXT, _FLOAT8, _INT4))


def _lock_timeout(wait_s: float) -> Statement:
    return Statement(b"SET LOCAL lock_timeout TO %d" % max(1, round(wait_s * 1000)))


def trouble(fault: Fault, *, at_row: bool) -> KeyTrouble | None:
    """What an error says about the key; at_row: it is that of the statement about the key's row. None: nothing."""
    if fault.kind is not FaultKind.SERVER_ERROR or not at_row or fault.stale_statement:
        return None
    return _TROUBLES.get(fault.sqlstate)


def not_configured(fault: Fault) -> RouterError:
    """The answer where the table cannot be used."""
    denied = fault.sqlstate == "42501"
    what = "may not be used by the tenant's login" if denied else "is missing, or not as it should be"
    return RouterError(
        Code.FAILED_PRECONDITION,
        RefuseReason.IDEMPOTENCY_NOT_CONFIGURED,
        f"the table {TABLE.decode()} {what} in the tenant's database (pointsman tenant init makes it); nothing was "
        "executed: send the request without a key, or not at all",
        numbers={"sqlstate": fault.sqlstate},
        fault=fault,
    )


def reused() -> RouterError:
    """The answer to a key that another request has."""
    return bad_request(
        RefuseReason.KEY_REUSED,
        "this idempotency key was used for another request, which was done; nothing was executed for this one",
    )


def request_hash(request: Request) -> bytes:
    """Of all that decides what a request does: 32 bytes. Its deadline, limits and tags may differ."""
    found = hashlib.sha256()
    for part in _parts(request):
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.digest()


def _parts(request: Request) -> Iterator[bytes]:
    mode = request.mode or TransactionMode()
    yield request.method.value.encode()
    yield mode.begin_sql()
    yield b"%d" % len(request.steps)
    for step in request.steps:
        yield from _step_parts(step)


def _step_parts(step: BatchStep) -> Iterator[bytes]:
    statement, guard = step.statement, step.guard
    count = len(statement.params)
    yield statement.sql
    yield b"%d" % count
    formats = statement.formats or (0,) * count
    oids = statement.oids or (0,) * count
    for value, form, oid in zip(statement.params, formats, oids, strict=True):
        yield b"%d %d %d" % (value is None, form, oid)
        yield value or b""
    yield b"rows" if step.want_rows else b""
    if guard is None:
        yield b""
    else:
        yield f"{guard.step} {guard.need.value} {guard.count} {guard.skip}".encode()
