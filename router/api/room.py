"""How much one Multiplex stream may take of this process's memory, whatever its caller sends and reads.

Three bounds, each for what the one before cannot see. With BACKLOG_BYTES unread nothing further begins: calls wait
here, first come first served, until the caller has read, or until their deadline. A statement whose answers were large
counts as so many bytes while it runs, so no more of them run than there is room for; small ones do not wait for those.
What nobody could know before is judged when it is there: a read's answer beyond ROOM_BYTES is let go, and the read
done again when it can have a place; a write's beyond MOST_BYTES is refused, and said to be done. A small answer is
always kept: there are no more of them than calls.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from router.api.outbox import Outbox
from router.model.errors import Code, Executed, RouterError
from router.model.reasons import RefuseReason
from router.model.request import Request
from router.model.topology import Tenant

LARGE_BYTES = 16 << 10
"""Answers up to this size are small."""
ROOM_BYTES = 24 << 20
"""Unread answers and the likely size of those under way, together."""
MOST_BYTES = 32 << 20
"""Unread answers at most, small ones apart. Up to here go writes, not to be done again, and reads with a place."""
RETRY_S = 0.05
_KEPT = 256


@dataclass(slots=True, eq=False)
class _Waiting:
    """A call that has not begun."""

    call_id: int
    key: int
    least: int
    """Bytes of an answer of its own that was let go."""
    turn: asyncio.Future[bool]
    """True: begin. False: its time is over."""


class Room:
    """One stream's. An idle stream keeps one: dicts and a list, which are small while they are empty."""

    __slots__ = ("_held_bytes", "_outbox", "_waiting", "held", "learned")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.learned: dict[int, int] = {}
        """Bytes of a large answer by its statement's hash; nothing while the stream has had small answers only."""
        self.held: dict[int, int] = {}
        """What calls under way are likely to bring, by call; those only that are known to bring much."""
        self._held_bytes = 0
        self._waiting: list[_Waiting] = []

    def likely(self, key: int) -> int:
        """Bytes that the statement will bring; 0 for small and for unknown ones."""
        return self.learned.get(key, 0)

    def fits(self, likely: int) -> bool:
        """Whether a call that brings much may begin before those that wait; one may always, lest none ever did."""
        if self._waiting:
            return False
        return self._fits(likely)

    def _fits(self, likely: int) -> bool:
        return not self.held or self._outbox.bytes + self._held_bytes + likely <= ROOM_BYTES

    def hold(self, call_id: int, likely: int) -> None:
        """The call begins."""
        if likely:
            self.held[call_id] = likely
            self._held_bytes += likely

    def leave(self, call_id: int) -> None:
        """The call has ended; its answer is in the outbox, or there is none."""
        likely = self.held.pop(call_id, 0)
        if likely:
            self._held_bytes -= likely
            self.let_in()

    async def enter(self, call_id: int, key: int, least: int, remaining_s: float) -> None:
        """Wait until the call may begin. RouterError when that takes too long: it did not."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(call_id, key, least, loop.create_future())
        self._waiting.append(waiting)
        self.let_in()
        if waiting.turn.done():
            return
        timer = loop.call_later(max(0.0, remaining_s), _time_over, waiting.turn)
        try:
            if not await waiting.turn:
                raise _no_room(self._outbox.bytes)
        finally:
            timer.cancel()
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self.let_in()

    def let_in(self) -> None:
        """Begin whatever waits and has room now. What brings little does not wait for what brings much."""
        if not self._waiting or self._outbox.full:
            return
        left: list[_Waiting] = []
        for waiting in self._waiting:
            if waiting.turn.done():
                continue
            likely = max(waiting.least, self.likely(waiting.key))
            if likely and (left or not self._fits(likely)):
                left.append(waiting)
                continue
            self.hold(waiting.call_id, likely)
            waiting.turn.set_result(True)
        self._waiting = left

    def learn(self, key: int, size: int) -> None:
        """An answer has this size. A statement is known by its largest, which wears off while smaller ones come."""
        before = self.learned.pop(key, 0)
        likely = max(size, before - before // 8)
        if likely > LARGE_BYTES:
            self.learned[key] = likely
            if len(self.learned) > _KEPT:
                del self.learned[next(iter(self.learned))]

    def keeps(self, call_id: int, size: int, *, read: bool) -> bool:
        """Whether an answer that is there may be kept until the caller reads it. What held its place is not put off
        for the sake of others that did not."""
        most = ROOM_BYTES if read and call_id not in self.held else MOST_BYTES
        return size <= LARGE_BYTES or self._outbox.bytes + size <= most


def key_of(tenant: Tenant, request: Request) -> int:
    """The same for the same statements, also for a registered one's name and its text."""
    if len(request.steps) == 1:
        return hash(_text(tenant, request.steps[0].statement.sql))
    return hash(tuple(_text(tenant, step.statement.sql) for step in request.steps))


def _text(tenant: Tenant, sql: bytes) -> bytes:
    if sql[:1] != b"@":
        return sql
    return tenant.statements.get(sql[1:].decode(errors="replace"), "").encode()


def _time_over(turn: asyncio.Future[bool]) -> None:
    if not turn.done():
        turn.set_result(False)


def _no_room(unread: int) -> RouterError:
    return RouterError(
        Code.RESOURCE_EXHAUSTED,
        RefuseReason.QUEUE_FULL,
        f"the call waited until its deadline for the caller to read: {unread} bytes of this stream are unread",
        retry_after_s=RETRY_S,
        numbers={"unread_bytes": unread},
    )


def not_kept(unread: int, size: int) -> RouterError:
    """For a write whose answer has no room: it was done."""
    return RouterError(
        Code.RESOURCE_EXHAUSTED,
        RefuseReason.RESULT_TOO_LARGE,
        f"the write was done, but its answer of {size} bytes is lost: the caller has left {unread} bytes unread",
        executed=Executed.YES,
        numbers={"bytes": size, "unread_bytes": unread},
    )
