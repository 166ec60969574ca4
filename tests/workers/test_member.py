"""One worker's process as its parent sees it: real processes that do not come to serve."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
import structlog

from router.decisions.connection_ledger import WorkerId
from router.model.errors import RouterError
from router.system import SystemClock
from router.workers import member as members
from router.workers.member import Member


def _member() -> Member:
    async def no_answer(_member: Member, _question: object) -> object:
        return None

    return Member(1, WorkerId(1), SystemClock(), lambda *_: None, no_answer, lambda _: None)


def _nothing(_: Member) -> Any:
    raise AssertionError("it must not be told anything")


async def test_a_worker_of_other_code_is_refused_before_it_is_told_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "shape", lambda: "another shape")
    member = _member()
    with pytest.raises(RouterError, match=r"runs other code .* restart the whole router"):
        await member.start(_nothing)
    assert member.gone.done(), "it is not left behind"


async def test_a_worker_that_dies_before_it_serves_says_so() -> None:
    member = _member()
    starting = asyncio.create_task(member.start(_nothing))
    await member._executed.wait()
    os.kill(member.pid, signal.SIGKILL)
    with pytest.raises(RouterError, match=r"ended before it served \(exit code -9\)"):
        await starting


async def test_a_worker_that_does_not_serve_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "START_S", 0.05)
    member = _member()
    with pytest.raises(RouterError, match=r"did not serve within 0\.05 s"):
        await member.start(_nothing)
    assert member.gone.done()


async def test_a_mistake_in_taking_its_messages_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    member = _member()

    def mistaken(_message: object) -> None:
        raise LookupError("not there")

    monkeypatch.setattr(member, "_take", mistaken)
    with structlog.testing.capture_logs() as told, pytest.raises(RouterError, match="ended before it served"):
        await member.start(_nothing)
    (line,) = told
    assert (line["event"], line["worker"], type(line["exc_info"])) == ("worker's channel failed", 1, LookupError)


async def test_whoever_stops_waiting_for_a_start_leaves_no_process() -> None:
    member = _member()
    starting = asyncio.create_task(member.start(_nothing))
    await asyncio.sleep(0.02)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert member.gone.done()
