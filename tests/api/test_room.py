"""Who may begin on a Multiplex stream: nobody while much is unread, and no more of what brings much than has room."""

from __future__ import annotations

import asyncio

import pytest

from router.api.outbox import BACKLOG_BYTES, MESSAGE_BYTES, Outbox
from router.api.room import LARGE_BYTES, MOST_BYTES, ROOM_BYTES, Room, key_of
from router.model.errors import Code, Executed, RouterError
from router.model.reasons import RefuseReason
from router.model.request import BatchStep, Method, Request, Statement
from tests.support.builders import tenant

MIB = 1 << 20


class Line:
    """A room, and the calls that asked for a place in it."""

    def __init__(self, unread: int = 0) -> None:
        self.outbox = Outbox()
        self.room = Room(self.outbox)
        self.begun: list[int] = []
        self.refused: dict[int, RouterError] = {}
        for _ in range(unread):
            self.outbox.add(bytes(MESSAGE_BYTES))

    async def _enter(self, call_id: int, key: int, least: int, remaining_s: float) -> None:
        try:
            await self.room.enter(call_id, key, least, remaining_s)
        except RouterError as error:
            self.refused[call_id] = error
        else:
            self.begun.append(call_id)

    def ask(self, call_id: int, key: int = 0, *, least: int = 0, remaining_s: float = 60.0) -> asyncio.Task[None]:
        return asyncio.create_task(self._enter(call_id, key, least, remaining_s))

    async def read(self, messages: int) -> None:
        for _ in range(messages):
            self.outbox.take()
            self.room.let_in()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_nothing_begins_while_much_is_unread_and_then_all_in_their_order() -> None:
    line = Line(unread=10)
    tasks = [line.ask(number) for number in range(5)]
    await settle()
    assert line.begun == []
    await line.read(1)
    assert line.begun == []
    await line.read(1)
    assert line.outbox.bytes == BACKLOG_BYTES
    assert line.begun == [0, 1, 2, 3, 4]
    await asyncio.gather(*tasks)


async def test_who_waits_too_long_is_refused_and_has_not_begun() -> None:
    line = Line(unread=9)
    await asyncio.gather(line.ask(1, remaining_s=0.01), line.ask(2, remaining_s=-1.0))
    for error in line.refused.values():
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, RefuseReason.QUEUE_FULL)
        assert error.executed is Executed.NO
    assert set(line.refused) == {1, 2}
    await line.read(9)
    assert line.begun == []


async def test_no_more_that_brings_much_runs_than_has_room_and_the_rest_comes_in_its_order() -> None:
    line = Line()
    line.room.learn(7, 4 * MIB)
    tasks = [line.ask(number, 7) for number in range(10)]
    await settle()
    assert line.begun == [0, 1, 2, 3, 4, 5]  # 24 MiB
    line.outbox.add(bytes(4 * MIB))
    line.room.leave(2)
    await settle()
    assert len(line.begun) == 6  # what it held is unread now
    await line.read(1)
    assert line.begun[6:] == [6]
    line.room.leave(0)  # it failed
    await settle()
    assert line.begun[6:] == [6, 7]
    for number in (1, 3, 4, 5, 6, 7):
        line.room.leave(number)
    await asyncio.gather(*tasks)
    assert line.begun == list(range(10))


async def test_what_brings_little_does_not_wait_for_what_brings_much() -> None:
    line = Line()
    line.room.learn(7, ROOM_BYTES)
    tasks = [line.ask(1, 7), line.ask(2, 7), line.ask(3, 8)]
    await settle()
    assert line.begun == [1, 3]
    assert not line.room.fits(LARGE_BYTES + 1)  # it would overtake one that waits
    line.room.leave(1)
    await asyncio.gather(*tasks)
    assert line.begun == [1, 3, 2]


async def test_one_that_brings_more_than_there_is_room_begins_alone() -> None:
    line = Line(unread=8)
    line.room.learn(7, ROOM_BYTES)
    await line.ask(1, 7)
    assert line.begun == [1]


async def test_a_call_that_is_given_up_leaves_its_place_to_the_next() -> None:
    line = Line()
    line.room.learn(7, 13 * MIB)
    line.room.hold(1, 13 * MIB)
    first, second = line.ask(2, 7, least=14 * MIB), line.ask(3, 8, least=5 * MIB)
    await settle()
    assert line.begun == []
    first.cancel()
    await second
    assert line.begun == [3]


async def test_a_call_given_up_as_it_may_begin_keeps_nothing() -> None:
    line = Line()
    line.room.hold(1, ROOM_BYTES)
    waiting = line.ask(2, least=ROOM_BYTES)
    await settle()
    line.room.leave(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    line.room.leave(2)
    assert not line.room.held
    assert line.room.fits(ROOM_BYTES)


def test_what_was_learned_wears_off_with_smaller_answers_and_is_bounded() -> None:
    room = Room(Outbox())
    room.learn(1, 1000)
    assert not room.learned
    room.learn(1, MIB)
    room.learn(1, 1000)
    assert LARGE_BYTES < room.likely(1) < MIB
    for _ in range(60):
        room.learn(1, 1000)
    assert not room.learned
    for key in range(1000):
        room.learn(key, MIB)
    assert len(room.learned) == 256
    assert room.likely(999) == MIB


def test_small_answers_are_always_kept_and_writes_longer_than_reads() -> None:
    line = Line(unread=(ROOM_BYTES >> 20) - 1)
    assert line.room.keeps(1, MIB, read=True)
    assert not line.room.keeps(1, MIB + 1, read=True)
    assert line.room.keeps(1, MOST_BYTES - ROOM_BYTES + MIB, read=False)
    assert not line.room.keeps(1, MOST_BYTES - ROOM_BYTES + MIB + 1, read=False)
    line.room.hold(1, MIB)
    assert line.room.keeps(1, MOST_BYTES - ROOM_BYTES + MIB, read=True)
    line = Line(unread=MOST_BYTES >> 20)
    assert line.room.keeps(1, LARGE_BYTES, read=True)


def test_a_registered_statement_is_known_by_its_name_and_its_text() -> None:
    def request(*texts: bytes) -> Request:
        return Request(Method.QUERY, tuple(BatchStep(Statement(sql)) for sql in texts), 0.0)

    registered = tenant(statements={"all": "select 1"})
    assert key_of(registered, request(b"@all")) == key_of(registered, request(b"select 1"))
    assert key_of(registered, request(b"@all", b"b")) == key_of(registered, request(b"select 1", b"b"))
    assert key_of(registered, request(b"b", b"select 1")) != key_of(registered, request(b"select 1", b"b"))
