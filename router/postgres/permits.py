"""A connection's permit: taken before it is opened, given back when the server has let go of it.

Closing a socket does not end a backend. PostgreSQL leaves its end of the socket open until the process exits
(socket_close in src/backend/libpq/pqcomm.c: "so that the client can wait until the backend has exited"), so a second
descriptor of the same socket, kept from birth, tells: the kernel's state of the connection leaves FIN_WAIT when the
server closes. A backend that was working is asked to look at its socket each second (conninfo), so GONE_S bounds it.

The socket stays open for what the server sends: an end that stands behind rows which nobody takes does not come, and a
socket that takes no more answers them with a reset, after which nothing more is known of the server's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import weakref
from collections.abc import Callable, Sized
from typing import Any, Generic, Protocol, TypeVar

import psycopg

from router.model.identity import TenantName
from router.model.policy import PoolPolicy
from router.ports.budgets import ConnectionBudget

GONE_S = 1.5
"""A server that has not closed its end by then never will: frozen, or unreachable."""
RUN_DRY_S = 0.25
"""A lane asked to run dry counts as on its way back this long; then it is taken to be busy for longer."""
TAKE_AFTER_S = 1.05
"""What the server still sends is taken from then on: a backend that meant to send much has seen the end by then."""
_TAKE_BYTES = 1 << 20
"""At a look."""
_FIRST_LOOK_S = 0.001
_LAST_PAUSE_S = 0.02
_WAITS_FOR_PEER = frozenset({1, 4, 5})
"""TCP states in which the other end has not closed: ESTABLISHED, FIN_WAIT1, FIN_WAIT2 (Linux, net/tcp_states.h)."""


class Permit:
    """One permit of a budget, from take() on. end() may be called any number of times, by whoever is first."""

    __slots__ = ("__weakref__", "_given_back", "_loop", "_pause", "_socket", "_until", "ended", "queued")

    def __init__(self, given_back: Callable[[Permit], None], *, queued: bool) -> None:
        self.ended = False
        self.queued = queued
        """It was waited for in the line."""
        self._given_back = given_back
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._pause = _FIRST_LOOK_S
        self._until = 0.0

    def __del__(self) -> None:
        self._let_go()  # an event loop that ends takes its timers along

    def attach(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """The connection is open."""
        self._socket = socket.socket(fileno=os.dup(connection.pgconn.socket))
        # Whatever forgets a connection without closing it: the permit comes back with the garbage.
        weakref.finalize(connection, self._end_from_anywhere).atexit = False

    def end(self) -> None:
        """The connection is closed on our side, or was never opened. Never waits."""
        if self.ended:
            return
        self.ended = True
        if self._socket is None:
            self._given_back(self)
            return
        self._until = self._loop.time() + GONE_S
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._let_go()  # the peer was faster
            self._given_back(self)
            return
        self._loop.call_later(self._pause, self._look)

    def _end_from_anywhere(self) -> None:
        """The garbage collector may run in any thread."""
        if not self.ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.end)

    def _look(self) -> None:
        if self._socket is not None and self._loop.time() >= self._until - GONE_S + TAKE_AFTER_S:
            _take_unread(self._socket)
        if self._socket is None or self._loop.time() >= self._until or _closed_by_peer(self._socket):
            self._let_go()
            self._given_back(self)
            return
        self._pause = min(2 * self._pause, _LAST_PAUSE_S)
        self._loop.call_later(self._pause, self._look)

    def _let_go(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Retirable(Protocol):
    """A connection in use, as its permit's holder sees it: a lane, or one that listens."""

    def retire(self) -> None:
        """End as soon as what runs there has ended."""
        ...


_Used = TypeVar("_Used", bound=Retirable)


class PoolPermits(Generic[_Used]):
    """ports.BudgetHolder: what one pool holds of its endpoint's budget, and what of that it could do without."""

    def __init__(
        self,
        budget: ConnectionBudget,
        tenant: TenantName,
        policy: PoolPolicy,
        waiters: Sized,
        close_idle: Callable[[], None],
    ) -> None:
        self.budget = budget
        self.tenant = tenant
        self.policy = policy
        self.closing = 0
        """Idle connections that are being fetched to be closed."""
        self.in_line = False
        """A connect waits for its permit; one at a time, so that pools take turns and workers stay free."""
        self.lanes: dict[_Used, float] = {}
        """Lent lanes in the order of lending, and when each was asked to run dry (0: not)."""
        self._waiters = waiters
        self._close_idle = close_idle
        self._permits: set[Permit] = set()
        self._idle: weakref.WeakKeyDictionary[psycopg.AsyncConnection[Any], float] = weakref.WeakKeyDictionary()
        budget.join(self)

    @property
    def open(self) -> int:
        """Connections that are open or being opened."""
        return sum(not permit.ended for permit in self._permits)

    async def take(self) -> Permit | None:
        """A permit for one more connection; None when there is none, and nobody here waits for it in vain."""
        queued = not self.budget.try_take(self)
        if queued:
            if not self._waiters or self.in_line:
                return None
            self.in_line = True
            try:
                if not await self.budget.take(self):
                    return None
            finally:
                self.in_line = False
        permit = Permit(self._given_back, queued=queued)
        self._permits.add(permit)
        return permit

    def _given_back(self, permit: Permit) -> None:
        self._permits.discard(permit)
        self.budget.give_back(self)

    def now_idle(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Nobody uses it, or soon nobody will."""
        self._idle[connection] = asyncio.get_running_loop().time()

    def now_used(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Lent or closed."""
        self._idle.pop(connection, None)

    # --- ports.BudgetHolder ------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """ports.BudgetHolder.waiting."""
        return len(self._waiters)

    @property
    def leaving(self) -> int:
        """ports.BudgetHolder.leaving."""
        if not self._permits:
            return 0
        recent = asyncio.get_running_loop().time() - RUN_DRY_S
        dry = sum(retired > recent for retired in self.lanes.values())
        return self.closing + dry + len(self._permits) - self.open

    @property
    def keeps(self) -> int:
        """ports.BudgetHolder.keeps."""
        if not self._permits:
            return 0
        return self.open - self.closing - sum(retired > 0 for retired in self.lanes.values())

    @property
    def idle(self) -> int:
        """ports.BudgetHolder.idle."""
        return max(0, len(self._idle) - self.closing)

    def idle_since(self, *, below_min: bool) -> float | None:
        """ports.BudgetHolder.idle_since."""
        if not below_min and self.open - self.closing <= self.policy.min_size:
            return None
        return next(itertools.islice(self._idle.values(), self.closing, None), None)

    def close_idle(self) -> None:
        """ports.BudgetHolder.close_idle."""
        self.closing += 1
        self._close_idle()

    def retire_lane(self) -> bool:
        """ports.BudgetHolder.retire_lane."""
        for lane, retired in self.lanes.items():
            if not retired:
                self.lanes[lane] = asyncio.get_running_loop().time()
                lane.retire()
                return True
        return False


def _take_unread(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.recv(_TAKE_BYTES, socket.MSG_DONTWAIT | socket.MSG_TRUNC)  # Linux: thrown away, not copied


def _closed_by_peer(sock: socket.socket) -> bool:
    """As far as this machine can tell; where it cannot, a closed connection counts as gone."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not hasattr(socket, "TCP_INFO"):
        return True
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in _WAITS_FOR_PEER
    except OSError:
        return True
