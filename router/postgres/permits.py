"""A connection's permit: taken before it is opened, given back when the server has let go of it.

Closing a socket does not end a backend. PostgreSQL leaves its end of the socket open until the process exits
(socket_close in src/backend/libpq/pqcomm.c: "so that the client can wait until the backend has exited"), so a second
descriptor of the same socket, kept from birth, tells: the kernel's state of the connection leaves FIN_WAIT when the
server closes. For how long that is waited for is the budget's to say (decisions/letting_go.py).

The socket stays open for what the server sends: an end that stands behind rows which nobody takes does not come, and a
socket that takes no more answers them with a reset, after which nothing more is known of the server's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import struct
import weakref
from collections.abc import Callable, Iterator, Sized
from typing import Any, Generic, Protocol, TypeVar

import psycopg

from router.model.identity import TenantName
from router.model.policy import PoolPolicy
from router.ports.budgets import ConnectionBudget

RUN_DRY_S = 0.25
"""A lane asked to run dry counts as on its way back this long; then it is taken to be busy for longer."""
LETS_GO_S = 1.5
"""The same for a closed connection: then the server is taken to hold on to it for longer."""
TAKE_AFTER_S = 1.05
"""What the server still sends is taken from then on: a backend that meant to send much has seen the end by then."""
_TAKE_BYTES = 1 << 20
"""At a look."""
_FIRST_LOOK_S = 0.001
_LAST_PAUSE_S = 0.02
_LONG_PAUSE_S = 0.25
"""Between looks after some seconds."""
_FIN_WAIT2 = 5
_TCP_INFO_BYTES = 60
_LAST_ACK = struct.Struct("=I")
_LAST_ACK_AT = 56
"""Where struct tcp_info (linux/tcp.h) says how long ago the other end confirmed something (ms)."""
_COARSE_S = 0.05
"""The kernel counts in ticks: what it heard in the moment of the end is not told from what came after."""
_WAITS_FOR_PEER = frozenset({1, 4, 5})
"""TCP states in which the other end has not closed: ESTABLISHED, FIN_WAIT1, FIN_WAIT2 (Linux, net/tcp_states.h)."""


class StillCounts(Protocol):
    """ports.ConnectionBudget.still_counts."""

    def __call__(self, closed_s: float, *, heard: bool) -> bool:
        """See there."""
        ...


class Permit:
    """One permit of a budget, from take() on. end() may be called any number of times, by whoever is first."""

    __slots__ = (
        *("__weakref__", "_given_back", "_loop", "_pause", "_still_counts", "_twin"),
        *("ended", "ended_at", "queued"),
    )

    def __init__(self, given_back: Callable[[Permit], None], still_counts: StillCounts, *, queued: bool) -> None:
        """still_counts: ConnectionBudget's."""
        self.ended = False
        self.ended_at = 0.0
        self.queued = queued
        """It was waited for in the line."""
        self._given_back = given_back
        self._loop = asyncio.get_running_loop()
        self._twin: _Twin | None = None
        self._still_counts = still_counts
        self._pause = _FIRST_LOOK_S

    def attach(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """The connection is open."""
        self._twin = _Twin(connection.pgconn.socket)
        # Whatever forgets a connection without closing it: the permit comes back with the garbage.
        weakref.finalize(connection, self._end_from_anywhere).atexit = False

    def end(self) -> None:
        """The connection is closed on our side, or was never opened. Never waits."""
        if self.ended:
            return
        self.ended = True
        if self._twin is None:
            self._given_back(self)
            return
        self.ended_at = self._loop.time()
        if not self._twin.shut():
            self._let_go()  # the peer was faster
            self._given_back(self)
            return
        self._loop.call_later(self._pause, self._look)

    def _end_from_anywhere(self) -> None:
        """The garbage collector may run in any thread."""
        if not self.ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.end)

    def _look(self) -> None:
        closed_s = self._loop.time() - self.ended_at
        if self._twin is None or self._is_over(self._twin, closed_s):
            self._let_go()
            self._given_back(self)
            return
        self._pause = min(2 * self._pause, max(_LAST_PAUSE_S, min(closed_s / 20, _LONG_PAUSE_S)))
        self._loop.call_later(self._pause, self._look)

    def _is_over(self, twin: _Twin, closed_s: float) -> bool:
        if closed_s >= TAKE_AFTER_S:
            twin.take_unread()
        info = twin.info()
        return info is None or not self._still_counts(closed_s, heard=was_heard(info, closed_s))

    def _let_go(self) -> None:
        if self._twin is not None:
            self._twin.close()
            self._twin = None


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
        permit = Permit(self._given_back, self.budget.still_counts, queued=queued)
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
        closed = len(self._permits) - self.open
        return self.closing + dry + closed - self._held_on_to(closed)

    @property
    def keeps(self) -> int:
        """ports.BudgetHolder.keeps."""
        if not self._permits:
            return 0
        open_now = self.open
        held = self._held_on_to(len(self._permits) - open_now)
        return open_now - self.closing - sum(retired > 0 for retired in self.lanes.values()) + held

    def _held_on_to(self, closed: int) -> int:
        """Of so many closed connections, those that the server does not let go of."""
        if not closed:
            return 0
        before = asyncio.get_running_loop().time() - LETS_GO_S
        return sum(permit.ended and permit.ended_at <= before for permit in self._permits)

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


class _Twin:
    """A second descriptor of a connection's socket. Kept as a number: an event loop that ends takes its timers along,
    and a socket that is left over complains."""

    __slots__ = ("_number",)

    def __init__(self, descriptor: int) -> None:
        self._number = os.dup(descriptor)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """The last one of the connection's here, by then."""
        if self._number >= 0:
            os.close(self._number)
            self._number = -1

    @contextlib.contextmanager
    def _socket(self) -> Iterator[socket.socket]:
        sock = socket.socket(fileno=self._number)
        try:
            yield sock
        finally:
            sock.detach()

    def shut(self) -> bool:
        """Tell the server that this is the end; False: it has ended before."""
        with self._socket() as sock:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                return False
        return True

    def take_unread(self) -> None:
        """What the server still sends, to nobody."""
        with self._socket() as sock, contextlib.suppress(OSError):
            sock.recv(_TAKE_BYTES, socket.MSG_DONTWAIT | socket.MSG_TRUNC)  # Linux: thrown away, not copied

    def info(self) -> bytes | None:
        """What the kernel knows of a connection that the other end has not closed; None: it has, as far as this machine
        can tell. Where it cannot, a closed connection counts as gone."""
        with self._socket() as sock:
            if sock.family not in (socket.AF_INET, socket.AF_INET6) or not hasattr(socket, "TCP_INFO"):
                return None
            try:
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            except OSError:
                return None
        return info if info[0] in _WAITS_FOR_PEER else None


def was_heard(info: bytes, closed_s: float) -> bool:
    """Whether the other machine has answered since the end: it has confirmed it (and from then on is asked again and
    again by the kernel's keepalive), or else that it has no room for what stands before it."""
    last_ack_s: float = _LAST_ACK.unpack_from(info, _LAST_ACK_AT)[0] / 1000
    return info[0] == _FIN_WAIT2 or last_ack_s < closed_s - _COARSE_S
