"""Alarms about credentials, for the audit log: each begins once and ends once, however it ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from router.engine.control_logins import ControlLogins
from router.model.events import AlarmChange, CredentialAlarm, CredentialKind
from router.model.identity import EndpointName
from router.model.request import Method
from router.model.topology import Login, Secret
from tests.engine.test_credentials import NEW, NEWER, OLD, WRITE, change, engine_of
from tests.engine.test_passwords import LOGIN, World
from tests.support.builders import Engine, Recorder, make_cluster
from tests.support.virtual_time import VirtualClock, virtual

BEGUN, MENDED, DROPPED = AlarmChange
A, B = EndpointName("a"), EndpointName("b")


def told(events: Recorder) -> list[AlarmChange]:
    """What became of the alarm about one credential."""
    alarms = events.of(CredentialAlarm)
    assert len({(one.kind, one.about, one.tenant) for one in alarms}) <= 1
    return [one.change for one in alarms]


async def refused(engine: Engine) -> None:
    """A new login of a tenant that the server does not take, for some time."""
    await engine.run(Method.EXECUTE, WRITE)
    engine.server().refused_logins.add(NEW)
    change(engine, NEW)
    for _ in range(20):
        await engine.run(Method.EXECUTE, WRITE)
        await asyncio.sleep(1)


@virtual
async def test_a_wrong_new_login_begins_one_alarm_and_its_acceptance_ends_it() -> None:
    async with engine_of() as engine:
        await refused(engine)
        (alarm,) = engine.events.of(CredentialAlarm)
        assert (alarm.kind, alarm.about, alarm.tenant) == (CredentialKind.LOGIN, "main/a", "acme")
        assert alarm.problem == "the new one is refused, the former one goes on: no such password"
        engine.server().refused_logins.clear()
        await asyncio.sleep(60)
        assert told(engine.events) == [BEGUN, MENDED]
        assert engine.events.of(CredentialAlarm)[1].lasted_s > 19
        assert not any(word in str(engine.events.of(CredentialAlarm)) for word in ("old", "newer"))


@pytest.mark.parametrize("end", ["back", "another", "removed", "server"])
@virtual
async def test_what_nobody_needs_any_more_ends_its_alarm(end: str) -> None:
    async with engine_of() as engine:
        await refused(engine)
        match end:
            case "back":
                change(engine, OLD)
            case "another":
                change(engine, NEWER)
            case "removed":
                engine.pools.forget_tenants({engine.tenant.name})
            case "server":
                engine.pools.forget_servers({A})
        assert told(engine.events) == [BEGUN, DROPPED]
        assert not list(engine.pools.credentials.troubles())
        await asyncio.sleep(60)
        assert told(engine.events) == [BEGUN, DROPPED]


@virtual
async def test_a_login_that_is_accepted_at_once_is_no_alarm() -> None:
    async with engine_of() as engine:
        await engine.run(Method.EXECUTE, WRITE)
        change(engine, NEW)
        await asyncio.sleep(5)
        assert told(engine.events) == []


@pytest.mark.parametrize("end", [MENDED, DROPPED])
@pytest.mark.parametrize("gone", ["cluster", "endpoint", "change"])
def test_the_routers_own_login(end: AlarmChange, gone: str) -> None:
    clock, events = VirtualClock(), Recorder()
    clock.now = lambda: 100.0  # type: ignore[method-assign]
    logins, cluster = ControlLogins(clock, events), replace(make_cluster("a", "b"), control=OLD)
    logins.apply(cluster)
    changed = replace(cluster, control=NEW)
    logins.apply(changed)
    for _ in range(3):
        logins.was_refused(changed, A, NEW, "no such password")
        logins.apply(changed)
    if end is MENDED:
        logins.accepted(changed, A, NEW)
    match gone:
        case "cluster":
            logins.forget(cluster.name)
        case "endpoint":
            logins.apply(replace(changed, endpoints=changed.endpoints[1:]))
        case "change":
            logins.apply(cluster)
    assert told(events) == [BEGUN, end]
    assert events.of(CredentialAlarm)[0].kind is CredentialKind.CONTROL_LOGIN


@virtual
async def test_a_command_that_fails() -> None:
    world = World()
    await world.ask()
    world.runner.fails = True
    for _ in range(200):
        await world.ask()
        await asyncio.sleep(1)
    (alarm,) = world.events.of(CredentialAlarm)
    assert (alarm.kind, alarm.about) == (CredentialKind.COMMAND, "command token, for user acme")
    assert alarm.problem == "command token ended with exit code 1"
    world.passwords.configured([Login("other", Secret("word")), LOGIN])
    assert told(world.events) == [BEGUN], "it is needed yet"
    world.runner.fails = False
    await asyncio.sleep(60)
    await world.ask()
    await asyncio.sleep(2)
    assert told(world.events) == [BEGUN, MENDED]


@virtual
async def test_a_command_that_fails_and_is_configured_no_more() -> None:
    world = World()
    await world.ask()
    world.runner.fails = True
    await asyncio.sleep(90)
    await world.ask()
    await asyncio.sleep(2)
    world.passwords.configured([Login("acme", Secret("word"))])
    assert told(world.events) == [BEGUN, DROPPED]
