"""What every caller can do, whatever library it calls with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

SCALE = 10
"""pgbench's scale."""
ACCOUNTS = 100_000 * SCALE
TELLERS = 10 * SCALE
BRANCHES = SCALE

ROWS_TABLE = "bench_rows"
ROWS_QUERY = "select id, n, label, score, at from bench_rows where id <= {rows}"
COPY_QUERY = "select id, n, label, score, at from bench_rows where id <= {rows}"


@dataclass(frozen=True)
class Target:
    """Where a caller goes and how; one class for all, a caller reads what concerns it."""

    kind: str
    port: int
    callers: int
    application: str = ""
    host: str = "127.0.0.1"
    user: str = ""
    password: str = ""
    database: str = ""
    tenant: str = ""
    token: str = ""
    connections: int = 20
    """Largest size of the caller's own pool."""
    prepares: bool = True
    """False behind a pooler that knows no prepared statements."""
    pipelined: bool = False
    """psycopg: transactions in pipeline mode."""


class Caller(Protocol):
    """Methods that its library cannot do raise NotImplementedError."""

    async def open(self) -> None: ...

    async def point_read(self, aid: int) -> Any:
        """One row of pgbench_accounts by its key: (aid, bid, abalance)."""

    async def sleep(self, seconds: float) -> None:
        """A statement that takes this long."""

    async def transfer(self, aid: int, tid: int, bid: int, delta: int) -> Any:
        """pgbench's TPC-B-like transaction; the account's balance."""

    async def stream(self, rows: int) -> int:
        """All rows of a large result as Python objects; how many."""

    async def copy_out(self, rows: int, path: str) -> int:
        """COPY of the same rows into a file; how many bytes."""

    async def close(self) -> None: ...


class OnlyPointReads:
    """The rest of a caller that can do nothing else."""

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    async def transfer(self, aid: int, tid: int, bid: int, delta: int) -> Any:
        raise NotImplementedError

    async def stream(self, rows: int) -> int:
        raise NotImplementedError

    async def copy_out(self, rows: int, path: str) -> int:
        raise NotImplementedError


MakeCaller = Callable[[Target], Caller]
Job = Mapping[str, Any]

UPDATE_ACCOUNT = "update pgbench_accounts set abalance = abalance + {0} where aid = {1}"
SELECT_ACCOUNT = "select abalance from pgbench_accounts where aid = {0}"
UPDATE_TELLER = "update pgbench_tellers set tbalance = tbalance + {0} where tid = {1}"
UPDATE_BRANCH = "update pgbench_branches set bbalance = bbalance + {0} where bid = {1}"
INSERT_HISTORY = (
    "insert into pgbench_history (tid, bid, aid, delta, mtime) values ({0}, {1}, {2}, {3}, current_timestamp)"
)
POINT_READ = "select aid, bid, abalance from pgbench_accounts where aid = {0}"


def numbered(text: str) -> str:
    """The statement with $1, $2, ... as parameters."""
    return text.format("$1", "$2", "$3", "$4")


def percented(text: str) -> str:
    """The statement with %s as parameters."""
    return text.format("%s", "%s", "%s", "%s")
