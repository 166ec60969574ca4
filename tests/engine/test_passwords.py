"""Passwords that commands print, on virtual time: one run for all, a fresh one in time, the old one in trouble."""

from __future__ import annotations

import asyncio

import pytest

from router.engine.passwords import Passwords
from router.model.events import SecretCommandEnded
from router.model.secret_commands import SecretCommand, SecretFailed
from router.model.topology import Login, Secret
from tests.support.builders import Recorder
from tests.support.virtual_time import VirtualClock, virtual

COMMAND = SecretCommand(("/usr/bin/token", "--for", "acme"), ttl_s=100.0)
LOGIN = Login("acme", COMMAND)


class Runner:
    """Prints token-1, token-2 and so on, after a second."""

    def __init__(self) -> None:
        self.runs = 0
        self.fails = False
        self.numbers: list[int] = []
        """Printed first, if there are any."""

    async def run(self, command: SecretCommand) -> Secret:
        self.runs += 1
        number = self.numbers.pop(0) if self.numbers else self.runs
        await asyncio.sleep(1.0)
        if self.fails:
            raise SecretFailed(f"{command} ended with exit code 1")
        return Secret(f"token-{number}")


class World:
    def __init__(self) -> None:
        self.runner, self.clock, self.events = Runner(), VirtualClock(), Recorder()
        self.passwords = Passwords(self.runner, self.clock, self.events)

    async def ask(self, login: Login = LOGIN) -> str:
        secret = await self.passwords.of(login)
        assert secret is not None
        return secret.value


@virtual
async def test_nothing_is_run_before_it_is_needed_and_once_for_all_who_wait() -> None:
    world = World()
    assert world.runner.runs == 0
    assert set(await asyncio.gather(*(world.ask() for _ in range(50)))) == {"token-1"}
    assert world.runner.runs == 1
    assert await world.ask(Login("other", SecretCommand(("/usr/bin/token",)))) == "token-2"
    assert await world.passwords.of(Login("plain", Secret("word"))) == Secret("word")
    assert await world.passwords.of(Login("certificate")) is None


@virtual
async def test_the_run_goes_on_when_the_first_who_waits_goes_away() -> None:
    world = World()
    first = asyncio.create_task(world.ask())
    await asyncio.sleep(0.5)
    first.cancel()
    await asyncio.wait({first})
    assert await world.ask() == "token-1"
    assert world.runner.runs == 1


@virtual
async def test_connections_made_later_use_the_fresh_one() -> None:
    world = World()
    assert await world.ask() == "token-1"
    await asyncio.sleep(80)
    began = world.clock.now()
    assert await world.ask() == "token-1", "it is good yet, nobody waits"
    assert world.clock.now() == began
    await asyncio.sleep(2)
    assert await world.ask() == "token-2"
    await asyncio.sleep(500)
    assert await world.ask() == "token-3", "one that is too old is not used while there may be a newer one"


@virtual
async def test_a_failing_refresh_keeps_the_old_one_and_alarms() -> None:
    world = World()
    await world.ask()
    world.runner.fails = True
    await asyncio.sleep(90)
    for _ in range(600):
        assert await world.ask() == "token-1"
        await asyncio.sleep(1)
    assert 10 < world.runner.runs < 40, "with pauses"
    problem, for_s = world.passwords.trouble(LOGIN) or ("", 0.0)
    assert "command token ended with exit code 1, what it printed before goes on" in problem
    assert for_s > 500
    told = world.events.of(SecretCommandEnded)
    assert told[-1] == SecretCommandEnded("command token", "command token ended with exit code 1", kept=True)
    world.runner.fails = False
    await asyncio.sleep(60)
    assert (await world.ask()).startswith("token-")
    await asyncio.sleep(2)
    assert await world.ask() != "token-1"
    assert world.passwords.trouble(LOGIN) is None


@virtual
async def test_without_any_who_asks_is_told_why_and_the_command_is_not_run_for_each() -> None:
    world = World()
    world.runner.fails = True
    for _ in range(200):
        with pytest.raises(SecretFailed, match="exit code 1"):
            await world.ask()
        await asyncio.sleep(0.05)
    assert world.runner.runs <= 5
    problem, _ = world.passwords.trouble(LOGIN) or ("", 0.0)
    assert problem == "command token ended with exit code 1"


@virtual
async def test_one_that_a_server_refuses_is_printed_anew() -> None:
    world = World()
    used = await world.passwords.of(LOGIN)
    began = world.clock.now()
    newer = await world.passwords.newer(LOGIN, used)
    assert newer == Secret("token-2")
    assert world.clock.now() - began == 2.0, "not twice a second, and the run itself"
    assert await world.passwords.newer(LOGIN, used) == newer, "another connection has seen to it"
    assert await world.passwords.newer(Login("plain", Secret("word")), Secret("word")) is None


@virtual
async def test_a_run_that_began_before_the_refusal_says_nothing_of_what_comes_next() -> None:
    world = World()
    used = await world.passwords.of(LOGIN)
    await asyncio.sleep(80)
    world.runner.numbers = [1, 2]  # it has looked already when the password is changed
    assert await world.passwords.of(LOGIN) == used, "a refresh beside"
    await asyncio.sleep(0.5)
    assert await world.passwords.newer(LOGIN, used) == Secret("token-2")
    assert world.runner.runs == 3


@virtual
async def test_those_that_nobody_asks_for_are_forgotten() -> None:
    world = World()
    for number in range(200):
        await world.ask(Login("one", SecretCommand(("/usr/bin/token", str(number)), ttl_s=10.0)))
    assert len(world.passwords._tokens) < 130
