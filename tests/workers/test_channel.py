"""The line between two processes, over a real socket pair."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from router.workers.channel import Channel, ChannelClosed
from router.workers.messages import Applied, Sent, shape

Answerer = Callable[[object], Awaitable[object]]


async def _echo(question: object) -> object:
    return question


@asynccontextmanager
async def _pair(answerer: Answerer = _echo) -> AsyncIterator[tuple[Channel, Channel, list[object]]]:
    """Ours, theirs, and what theirs was told."""
    ours, theirs = socket.socketpair()
    told: list[object] = []
    one = await Channel.over(ours, lambda _: None, _echo)
    other = await Channel.over(theirs, told.append, answerer)
    running = [asyncio.create_task(end.run()) for end in (one, other)]
    try:
        yield one, other, told
    finally:
        one.close()
        other.close()
        await asyncio.gather(*running)


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(3):
        while not condition():  # noqa: ASYNC110 (anything may be waited for)
            await asyncio.sleep(0.001)


async def test_messages_arrive_whole_and_in_order_however_large() -> None:
    async with _pair() as (ours, _, told):
        sent = [Applied(0), b"x" * 3_000_000, *map(Applied, range(1, 500))]
        ours.tell(*sent)
        await ours.flush()
        await _until(lambda: len(told) == len(sent))
        assert told == sent


async def test_a_frame_that_comes_byte_by_byte_is_one_message() -> None:
    ours, theirs = socket.socketpair()
    told: list[object] = []
    channel = await Channel.over(theirs, told.append, _echo)
    running = asyncio.create_task(channel.run())
    import pickle

    body = pickle.dumps(Applied(7))
    for byte in struct.pack("!I", len(body)) + body:
        ours.send(bytes([byte]))
        await asyncio.sleep(0)
    await _until(lambda: told)
    assert told == [Applied(7)]
    ours.close()
    await running


async def test_questions_are_answered_in_whatever_order_they_are_ready() -> None:
    async def slow_ones(question: object) -> object:
        await asyncio.sleep(0.05 if question == "slow" else 0)
        return f"{question}!"

    async with _pair(slow_ones) as (ours, _, _told):
        asked = [asyncio.create_task(ours.ask(one, 2)) for one in ("slow", "quick")]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert done == {asked[1]}
        assert await asyncio.gather(*asked) == ["slow!", "quick!"]


async def test_who_takes_too_long_is_not_waited_for_and_a_late_answer_disturbs_nobody() -> None:
    gate = asyncio.Event()

    async def stuck(question: object) -> object:
        if question == "stuck":
            await gate.wait()
        return question

    async with _pair(stuck) as (ours, _, _told):
        with pytest.raises(TimeoutError):
            await ours.ask("stuck", 0.02)
        gate.set()
        assert await ours.ask("next", 2) == "next"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_question_that_cannot_be_answered_says_so() -> None:
    seen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

    async def broken(question: object) -> object:
        raise KeyError(question)

    async with _pair(broken) as (ours, _, _told):
        with pytest.raises(ChannelClosed, match="KeyError"):
            await ours.ask("anything", 2)


async def test_the_end_of_the_other_process_ends_the_channel_and_what_waits_on_it() -> None:
    async def never(_: object) -> object:
        await asyncio.Event().wait()
        return None

    async with _pair(never) as (ours, theirs, _told):
        asking = asyncio.create_task(ours.ask("anything", 10))
        await asyncio.sleep(0.01)
        theirs.close()
        with pytest.raises(ChannelClosed):
            await asking
        await _until(lambda: ours.closed)
        ours.tell(Sent(1))  # to nobody, without an error
        with pytest.raises(ChannelClosed):
            await ours.ask("anything", 1)


async def test_a_process_that_does_not_read_is_noticed() -> None:
    ours, theirs = socket.socketpair()
    channel = await Channel.over(ours, lambda _: None, _echo)
    running = asyncio.create_task(channel.run())
    assert not channel.stuck
    channel.tell(b"x" * (40 << 20))
    assert channel.stuck
    theirs.close()
    await running


def test_the_shape_of_messages_is_the_same_in_every_process_and_never_empty() -> None:
    assert shape() == shape()
    assert len(shape()) == 16


def test_another_field_is_another_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import make_dataclass

    from router.workers import messages

    before = shape()
    other = make_dataclass("Applied", [("number", int), ("more", int)])
    other.__module__ = messages.__name__
    monkeypatch.setattr(messages, "Applied", other)
    assert shape() != before
