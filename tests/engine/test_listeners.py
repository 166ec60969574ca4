"""Listen streams on virtual time: who hears what, from where, and where it is told that something may be missing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.engine import channel_hub, listener
from router.engine.listener import Listener
from router.model.errors import Code, RouterError
from router.model.events import Health, ListenGapped, NotificationsHeard, Outcome, RequestFinished
from router.model.listening import Draining, Gap, Heard, Heartbeat, Notification, Ready
from router.model.observation import Fault, FaultKind, Stage
from router.model.policy import TenantPolicy
from router.model.reasons import GapReason, RefuseReason
from router.model.request import CancelOutcome, Method
from router.model.topology import IsolationMode, Login, TenantChanges
from tests.support.builders import Engine, now, request
from tests.support.talk import refusal, rest
from tests.support.virtual_time import settle, virtual

FAILOVER, RECONNECT, SLOW = GapReason.BACKEND_FAILOVER, GapReason.RECONNECT, GapReason.SLOW_CONSUMER


async def listen(engine: Engine, *channels: str, request_id: str = "") -> Listener:
    return await engine.listeners.open(engine.tenant, request(Method.LISTEN, request_id=request_id), channels)


async def ready(engine: Engine, *channels: str) -> Listener:
    one = await listen(engine, *channels)
    assert isinstance(await one.next(), Ready)
    return one


async def beyond_heartbeats(one: Listener) -> Heard:
    while isinstance(heard := await one.next(), Heartbeat):
        pass
    return heard


def payloads(one: Listener) -> list[str]:
    return [item.payload for item in one._queue if isinstance(item, Notification)]


def change(engine: Engine, **fields: Any) -> None:
    engine.change(**fields)


async def left(engine: Engine, *ones: Listener) -> None:
    for one in ones:
        one.close()
        one.close()
    await asyncio.sleep(2 * channel_hub.LINGER_S + 1)
    assert not engine.listening.present
    assert engine.runtime.admission.listeners == 0
    await rest(engine)


@virtual
async def test_streams_share_a_connection_and_hear_their_channels() -> None:
    engine = Engine()
    jobs, both = await ready(engine, "jobs"), await ready(engine, "jobs", "news", "jobs")
    assert len(engine.listening.connections) == 1
    assert engine.listening.asked == ["a"]
    engine.listening.notify("a", "jobs", "1")
    engine.listening.notify("a", "news", "2")
    assert await jobs.next() == Notification("jobs", "1", 7)
    assert [await both.next(), await both.next()] == [Notification("jobs", "1", 7), Notification("news", "2", 7)]
    assert engine.listeners.channels_of(engine.tenant.name) == {"jobs", "news"}
    assert engine.listeners.endpoints() == {"a": 1}
    both.close()
    await asyncio.sleep(0.1)
    assert engine.listening.present[0].channels == {"jobs"}  # nobody wants the other one any more
    assert engine.runtime.under_way == 1
    await left(engine, jobs)
    (heard,) = engine.events.of(NotificationsHeard)
    assert heard == NotificationsHeard(engine.tenant.name, 3, 0)
    finished: list[Any] = engine.events.of(RequestFinished)
    assert [(one.method, one.outcome) for one in finished] == [(Method.LISTEN, Outcome.SERVED)] * 2


@virtual
async def test_nothing_is_heard_before_all_channels_are_active() -> None:
    engine = Engine()
    first = await ready(engine, "jobs")
    second = await listen(engine, "jobs", "news")
    engine.listening.notify("a", "jobs", "early")
    assert isinstance(await second.next(), Ready)
    assert payloads(second) == []
    assert payloads(first) == ["early"]
    await left(engine, first, second)


@virtual
async def test_a_lost_connection_is_a_gap_in_front_of_the_next_ready() -> None:
    engine = Engine()
    one = await ready(engine, "jobs")
    await asyncio.sleep(7)
    assert engine.listening.present[0].checks >= 3
    engine.listening.present[0].break_off()
    broke = now()
    assert await one.next() == Heartbeat(listening=False)
    gap = await beyond_heartbeats(one)
    assert isinstance(gap, Gap)
    assert (gap.reason, gap.missed) == (RECONNECT, 0)
    assert broke - channel_hub.CHECK_S - 0.1 <= gap.since <= broke
    assert isinstance(await one.next(), Ready)
    engine.listening.notify("a", "jobs", "after")
    assert await one.next() == Notification("jobs", "after", 7)
    assert [event.reason for event in engine.events.of(ListenGapped)] == [RECONNECT]  # type: ignore[union-attr]
    await left(engine, one)


@virtual
async def test_a_failover_is_a_gap_and_the_former_primary_is_not_heard_any_more() -> None:
    engine = Engine()
    one = await ready(engine, "jobs")
    engine.listening.notify("a", "jobs", "before")
    former = engine.listening.present[0]
    engine.supervisor.lose_primary()  # in doubt only: what there is goes on
    assert former.open
    engine.listening.notify("a", "jobs", "in doubt")
    engine.supervisor.promote("b")
    assert not former.open  # in the very turn in which the newer term is accepted
    former.notify("jobs", "too late")
    heard = [await one.next() for _ in range(5)]
    assert [type(item) for item in heard] == [Notification, Notification, Heartbeat, Gap, Ready]
    assert isinstance(heard[3], Gap)
    assert heard[3].reason is FAILOVER
    assert isinstance(heard[4], Ready)
    assert heard[4].endpoint == "b"
    engine.listening.notify("b", "jobs", "new primary")
    assert await one.next() == Notification("jobs", "new primary", 7)
    await left(engine, one)


@virtual
async def test_a_primary_that_moves_while_the_connection_opens_is_not_listened_to() -> None:
    engine = Engine()
    engine.listening.connect_takes = 0.5
    one = await listen(engine, "jobs")
    await asyncio.sleep(0.2)
    engine.supervisor.promote("b")
    first = await one.next()
    assert isinstance(first, Ready)
    assert first.endpoint == "b"
    assert engine.listening.asked == ["a", "b"]
    assert not engine.listening.connections[0].open
    await left(engine, one)


@virtual
async def test_without_a_primary_it_waits_and_says_that_it_lives() -> None:
    engine = Engine(primary=None, policy=TenantPolicy(listen_heartbeat_s=2.0, default_timeout_s=9.0))
    one = await listen(engine, "jobs")
    began = now()
    assert await one.next() == Heartbeat(listening=False)
    assert now() - began == pytest.approx(2.0)
    engine.supervisor.promote("b")
    assert isinstance(await one.next(), Ready)
    assert now() - began < 2.2  # at once, without the pause of a failed connect
    assert await one.next() == Heartbeat(listening=True)
    await left(engine, one)


@virtual
async def test_who_never_becomes_ready_is_told_why_in_the_tenants_time() -> None:
    engine = Engine(primary=None, policy=TenantPolicy(default_timeout_s=3.0))
    one = await listen(engine, "jobs")
    began = now()
    error = await refusal(beyond_heartbeats(one))
    assert (error.code, error.reason) == (Code.UNAVAILABLE, RefuseReason.NO_BACKEND)
    assert now() - began == pytest.approx(3.0)
    await left(engine, one)
    (finished,) = engine.events.of(RequestFinished)
    assert finished.outcome is Outcome.FAILED  # type: ignore[union-attr]


@virtual
async def test_a_login_that_is_refused_is_told_at_once_to_who_has_nothing_to_lose() -> None:
    engine = Engine()
    old = await ready(engine, "jobs")
    engine.listening.failing = Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, "28P01", "password refused")
    engine.listening.present[0].break_off()
    new = await listen(engine, "jobs")
    error = await refusal(new.next())
    assert error.reason is RefuseReason.BACKEND_CONFIG
    engine.listening.failing = None
    assert isinstance(await beyond_heartbeats(old), Gap)
    await left(engine, old, new)


@virtual
async def test_a_channel_that_the_server_refuses_ends_its_streams_only() -> None:
    engine = Engine()
    engine.listening.refused = {"news"}
    jobs, news = await ready(engine, "jobs"), await listen(engine, "news", "jobs")
    assert (await refusal(news.next())).reason is RefuseReason.BACKEND_RESOURCE
    engine.listening.notify("a", "jobs", "1")
    assert payloads(jobs) == ["1"]
    await left(engine, jobs, news)


@virtual
async def test_a_slow_reader_has_a_gap_and_disturbs_nobody() -> None:
    engine = Engine()
    slow, quick = await ready(engine, "jobs"), await ready(engine, "jobs")
    for number in range(listener.MAX_QUEUED + 10):
        engine.listening.notify("a", "jobs", str(number))
        assert await quick.next() == Notification("jobs", str(number), 7)
    assert slow.queued == listener.MAX_QUEUED + 1
    heard = [await slow.next() for _ in range(listener.MAX_QUEUED)]
    assert [item.payload for item in heard if isinstance(item, Notification)] == [*map(str, range(listener.MAX_QUEUED))]
    gap = await slow.next()
    assert isinstance(gap, Gap)
    assert (gap.reason, gap.missed) == (SLOW, 10)
    engine.listening.notify("a", "jobs", "and on")
    assert await slow.next() == Notification("jobs", "and on", 7)
    await left(engine, slow, quick)
    assert engine.events.of(NotificationsHeard) == [
        NotificationsHeard(engine.tenant.name, 2 * listener.MAX_QUEUED + 12, 10)
    ]


@virtual
async def test_bytes_are_bounded_too_and_a_reader_who_stands_still_costs_no_more_with_each_failover() -> None:
    engine = Engine()
    one = await ready(engine, "jobs")
    for _ in range(200):
        engine.listening.notify("a", "jobs", "x" * 8000)
    assert one.queued < 135
    for _ in range(listener.MAX_QUEUED):
        engine.listening.notify("a", "jobs", "y")
        one._bytes = 0  # as many short ones
    full = one.queued
    for number in range(6):
        engine.supervisor.promote("ab"[(number + 1) % 2])
        await asyncio.sleep(1)
        assert one.listening
    assert one.queued <= full + 3
    last = [item for item in one._queue if isinstance(item, Gap)][-1]
    assert last.reason is FAILOVER
    assert isinstance(one._queue[-1], Ready)
    await left(engine, one)


@virtual
async def test_what_is_refused_says_numbers_and_a_way_out() -> None:
    engine = Engine(policy=TenantPolicy(max_listeners=2, max_channels=3))
    ones = [await ready(engine, "a", "b"), await ready(engine, "b")]
    error = await refusal(listen(engine, "a"))
    assert (error.code, error.reason, error.numbers["limit"]) == (Code.RESOURCE_EXHAUSTED, RefuseReason.QUOTA, 2)
    assert "limits.max_listeners" in error.message
    ones.pop().close()
    error = await refusal(listen(engine, "b", "c", "d"))
    assert (error.numbers["limit"], error.numbers["in_use"], error.numbers["wanted"]) == (3, 2, 4)
    assert "limits.max_channels" in error.message
    for names in ((), ("",), ("a\0",), ("é" * 32,)):
        error = await refusal(listen(engine, *names))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, RefuseReason.BAD_REQUEST)
    assert engine.runtime.admission.listeners == 1
    await left(engine, *ones)


@virtual
async def test_a_changed_tenant_keeps_what_it_may_have() -> None:
    engine = Engine()
    jobs, news = await ready(engine, "jobs"), await ready(engine, "news")
    change(engine, channels=("jobs",))
    assert (await refusal(news.next())).reason is RefuseReason.CHANNEL_DENIED
    first = engine.listening.present
    change(engine, login=Login("acme2"))  # a login that needs new connections
    await asyncio.sleep(0.1)
    assert engine.listening.present != first
    assert [type(await jobs.next()) for _ in range(3)] == [Heartbeat, Gap, Ready]
    engine.listeners.take(TenantChanges(removed=(engine.tenant.name,)))
    assert not engine.listening.present
    assert (await refusal(jobs.next())).code is Code.UNAUTHENTICATED
    await left(engine, jobs, news)


@virtual
async def test_in_a_shared_database_only_configured_channels_are_heard() -> None:
    for isolation in (IsolationMode.SCHEMA, IsolationMode.REGISTERED):
        engine = Engine()
        change(engine, isolation=isolation)
        error = await refusal(listen(engine, "jobs"))
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, RefuseReason.CHANNEL_DENIED)
        assert isolation.value in error.message
        change(engine, channels=("acme_jobs",))
        await left(engine, await ready(engine, "acme_jobs"))


@virtual
async def test_a_connection_that_never_lasts_is_not_opened_in_a_frenzy() -> None:
    engine = Engine()
    one = await listen(engine, "jobs")
    end = now() + 60
    while now() < end:
        await asyncio.sleep(0.01)
        for connection in engine.listening.present:
            connection.break_off()
    assert 15 < len(engine.listening.connections) < 40
    await left(engine, one)


@virtual
async def test_a_server_that_freezes_is_left_after_an_unanswered_question() -> None:
    engine = Engine()
    one = await ready(engine, "jobs")
    engine.listening.frozen = True
    await asyncio.sleep(channel_hub.CHECK_S + channel_hub.ANSWER_S + 0.1)
    assert not one.listening
    engine.listening.frozen = False
    assert [type(await beyond_heartbeats(one)) for _ in range(2)] == [Gap, Ready]
    engine.supervisor.set_health("a", Health.DOWN)
    assert not one.listening
    engine.supervisor.set_health("a", Health.UP)
    assert [type(await beyond_heartbeats(one)) for _ in range(2)] == [Gap, Ready]
    await left(engine, one)


@virtual
async def test_the_ends_of_a_stream() -> None:
    engine = Engine()
    drained, cancelled = await ready(engine, "jobs"), await listen(engine, "jobs", request_id="r" * 16)
    assert engine.executor.cancel(engine.tenant.name, "r" * 16) is CancelOutcome.CANCELLING
    await settle()
    assert (await refusal(beyond_ready(cancelled))).reason is RefuseReason.CANCELLED
    drained.drain()
    engine.listeners.drain()
    assert await drained.next() == Draining()
    engine.listening.notify("a", "jobs", "last")
    assert isinstance(await drained.next(), Notification)
    assert (await refusal(drained.next())).reason is RefuseReason.DRAINING
    assert (await refusal(listen(engine, "jobs"))).reason is RefuseReason.DRAINING
    await left(engine, drained, cancelled)
    outcomes = [event.outcome for event in engine.events.of(RequestFinished)]  # type: ignore[union-attr]
    assert sorted(one.value for one in outcomes) == ["cancelled", "refused", "served"]


async def beyond_ready(one: Listener) -> Heard:
    while isinstance(heard := await one.next(), Ready | Heartbeat):
        pass
    return heard


@virtual
async def test_a_reader_that_is_cancelled_misses_nothing() -> None:
    engine = Engine()
    one = await ready(engine, "jobs")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await one.next()
    engine.listening.notify("a", "jobs", "1")
    assert await one.next() == Notification("jobs", "1", 7)
    await left(engine, one)


@virtual
async def test_a_mistake_in_the_hub_ends_its_streams_instead_of_leaving_them_deaf(
) -> None:
    engine = Engine()
    one = await ready(engine, "jobs")
    (task,) = engine.listeners._tasks
    task.cancel()
    with pytest.raises(RouterError) as caught:
        await beyond_heartbeats(one)
    assert caught.value.reason is RefuseReason.INTERNAL
    again = await ready(engine, "jobs")
    await left(engine, one, again)


# --- a drained primary ---------------------------------------------------------------------------------------------


@virtual
async def test_who_listens_on_a_primary_that_drains_goes_on_without_a_gap() -> None:
    engine = Engine()
    one = await ready(engine, "jobs")
    engine.supervisor.drain("a")
    await asyncio.sleep(3 * channel_hub.CHECK_S)
    other = await ready(engine, "news")
    engine.supervisor.drain("a", draining=False)
    await asyncio.sleep(3 * channel_hub.CHECK_S)
    engine.listening.notify("a", "jobs", "still")
    engine.listening.notify("a", "news", "here")
    assert await beyond_heartbeats(one) == Notification("jobs", "still", 7)
    assert await beyond_heartbeats(other) == Notification("news", "here", 7)
    assert len(engine.listening.connections) == 1
    assert not engine.events.of(ListenGapped)
    await left(engine, one, other)


@virtual
async def test_no_new_connection_goes_to_a_primary_that_drains() -> None:
    engine = Engine(policy=TenantPolicy(default_timeout_s=3.0))
    engine.supervisor.drain("a")
    late, began = await listen(engine, "jobs"), now()
    error = await refusal(late.next())
    assert (error.reason, now() - began) == (RefuseReason.NO_BACKEND, pytest.approx(3.0, abs=0.1))
    assert "the primary is draining" in error.message
    waiting = await listen(engine, "jobs")
    await asyncio.sleep(1.0)
    assert not engine.listening.asked
    engine.supervisor.drain("a", draining=False)
    resumed = now()
    assert isinstance(await waiting.next(), Ready)
    assert now() - resumed < 0.1, "at once"
    engine.supervisor.drain("a")
    engine.listening.present[0].break_off()
    assert await waiting.next() == Heartbeat(listening=False)
    await asyncio.sleep(10)
    assert engine.listening.asked == ["a"]
    engine.supervisor.promote("b")
    gap = await beyond_heartbeats(waiting)
    assert isinstance(gap, Gap)
    assert gap.reason is FAILOVER
    assert engine.listening.asked == ["a", "b"]
    await left(engine, late, waiting)
