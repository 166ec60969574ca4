"""What PostgreSQL says of a session by itself (ParameterStatus, which libpq keeps): a look costs no round trip.

A function of the tenant's own may change its session unseen by any parser. What it changes for good is reported in
front of the answer's end, so that the connection can be given up before anything more is sent on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.model.request import Access

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

READ_ONLY = b"default_transaction_read_only"
SEARCH_PATH = b"search_path"
"""Reported by PostgreSQL 18 and later."""
_NAMES = (b"client_encoding", b"DateStyle", b"IntervalStyle", b"TimeZone", b"standard_conforming_strings", SEARCH_PATH)


class SessionGuard:
    """What a connection was born with, to be compared with what it has become."""

    __slots__ = ("_access", "_born")

    def __init__(self, pgconn: PGconn, access: Access) -> None:
        self._access = access
        self._born = self._reported(pgconn)

    def _reported(self, pgconn: PGconn) -> tuple[bytes | None, ...]:
        told = pgconn.parameter_status
        # Of others the operator changes it on the fly: a planned move makes a primary read-only for a moment.
        read_only = told(READ_ONLY) if self._access is Access.READ_ONLY else None
        return read_only, *(told(name) for name in _NAMES)

    @property
    def keeps_read_only(self) -> bool:
        """Whether PostgreSQL keeps it from writing, and would tell when that ends."""
        return self._born[0] == b"on"

    @property
    def search_path(self) -> bytes | None:
        """None: the server does not tell."""
        return self._born[-1]

    def changed(self, pgconn: PGconn) -> bool:
        """Whether anything is not as it was; for an open connection."""
        return self._reported(pgconn) != self._born
