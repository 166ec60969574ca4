"""Many callers at once, with every kind of work and trouble, by random schedules: the promises that hold in all.

Each request ends by its deadline plus 0.1 s; admitted = served + failed + cancelled; no connection leaks, is lent
twice or goes back dirty; no COMMIT is cancelled; what is answered as done is done once, and what is answered as not
done is not done at all.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.model.errors import Executed, RouterError
from router.model.events import Health, Outcome, RequestAdmitted
from router.model.policy import ClusterPolicy, Concurrency, HoldPolicy, PoolPolicy, TenantPolicy
from router.model.request import Method, Options, ReadFrom, Statement, TransactionMode
from tests.support.builders import Engine, now, request
from tests.support.fake_replies import Lost, Reply
from tests.support.sweeping import run_strictly

LATE_S = 0.101
TROUBLES = ["none", "none", "none", "slow", "error", "conflict", "lost before", "lost after", "silent", "stubborn"]


class Crowd:
    """A crowd of callers on one engine, all decisions drawn from one seed."""

    def __init__(self, seed: int, callers: int) -> None:
        self.draw = random.Random(seed)
        self.callers = callers
        self.engine = Engine(
            "a", "b",
            pool=PoolPolicy(max_size=self.draw.choice([1, 2, 4]), acquire_timeout_s=2.0, lifetime_s=5.0, lane_window=4),
            policy=TenantPolicy(max_in_flight=self.draw.choice([4, 64]), max_queue=64),
            cluster=ClusterPolicy(
                hold=HoldPolicy(window_s=3.0, max_requests=20),
                concurrency=self.draw.choice(list(Concurrency)),
                least_concurrency=1,
            ),
        )
        for server in self.engine.servers.values():
            server.script[b"COMMIT"] = lambda _: self.commit_reply()
        self.number = 0
        self.sure: list[bytes] = []
        """Writes answered as done."""
        self.undone: list[bytes] = []
        """Writes answered as not done."""
        self.latest = 0.0

    def text(self, word: str) -> str:
        """A statement of its own, with its trouble."""
        self.number += 1
        sql = f"{word} {self.number}"
        effect = word == "insert"
        rows = () if effect else ((b"1",),)
        match self.draw.choice(TROUBLES):
            case "slow":
                reply = Reply(takes=self.draw.uniform(0, 1), rows=rows, effect=effect)
            case "error":
                reply = Reply(error="23505")
            case "conflict":
                reply = Reply(error="40001")
            case "lost before":
                reply = Reply(takes=0.01, lost=Lost.BEFORE, effect=effect)
            case "lost after":
                reply = Reply(takes=0.01, lost=Lost.AFTER, effect=effect)
            case "silent":
                reply = Reply(silent=True, rows=rows, effect=effect)
            case "stubborn":
                reply = Reply(takes=30, ignores_cancel=True, rows=rows, effect=effect)
            case _:
                return sql
        for server in self.engine.servers.values():
            server.script[sql.encode()] = [reply] if self.draw.random() < 0.7 else reply
        return sql

    def commit_reply(self) -> Reply:
        match self.draw.choice(["none", "none", "slow", "conflict", "lost before", "lost after", "local", "silent"]):
            case "slow":
                return Reply(takes=self.draw.uniform(0, 3))
            case "conflict":
                return Reply(error="40001")
            case "lost before":
                return Reply(lost=Lost.BEFORE)
            case "lost after":
                return Reply(lost=Lost.AFTER)
            case "local":
                return Reply(local_commit=True)
            case "silent":
                return Reply(silent=True)
        return Reply()

    async def one(self) -> None:
        await asyncio.sleep(self.draw.uniform(0, 3))
        kind = self.draw.choice([self.read, self.read, self.read, self.write, self.batch, self.stream, self.session])
        timeout = self.draw.choice([0.05, 0.3, 1.0, 2.0])
        deadline = now() + timeout
        work = asyncio.ensure_future(kind(timeout))
        if self.draw.random() < 0.2:
            asyncio.get_running_loop().call_later(self.draw.uniform(0, 0.5), work.cancel)
        await asyncio.wait({work})
        if kind != self.session:
            self.latest = max(self.latest, now() - deadline)
        if not work.cancelled():
            work.result()

    async def _settled(self, work: Any, writes: list[str]) -> None:
        """Note what the caller may believe."""
        texts = [one.encode() for one in writes]
        try:
            await work
        except RouterError as error:
            if error.executed in (Executed.NO, Executed.ROLLED_BACK):
                self.undone += texts
        else:
            self.sure += texts

    async def read(self, timeout: float) -> None:
        options = Options(read=self.draw.choice(list(ReadFrom)))
        await self._settled(self.engine.run(Method.QUERY, self.text("select"), timeout=timeout, options=options), [])

    async def write(self, timeout: float) -> None:
        sql = self.text("insert")
        await self._settled(self.engine.run(Method.EXECUTE, sql, timeout=timeout), [sql])

    async def batch(self, timeout: float) -> None:
        texts = [self.text("insert") for _ in range(self.draw.randint(1, 3))]
        await self._settled(self.engine.run(Method.EXECUTE_BATCH, *texts, timeout=timeout), texts)

    async def stream(self, timeout: float) -> None:
        wanted = request(Method.STREAM_QUERY, "select g from generate_series(1, 3000) g", timeout=timeout)
        most = self.draw.randint(1, 10)
        items = self.engine.executor.stream(self.engine.tenant, wanted)
        try:
            async for _ in items:
                most -= 1
                if most == 0:
                    break
        except RouterError:
            return
        finally:
            await items.aclose()

    async def session(self, timeout: float) -> None:
        mode, options = TransactionMode(), Options()
        try:
            talk = await self.engine.sessions.open(self.engine.tenant, mode, options, now() + timeout, "")
        except RouterError:
            return
        texts = [self.text("insert") for _ in range(2)]

        async def say() -> None:
            for sql in texts:
                await talk.run(Statement(sql.encode()), now() + timeout)
                await asyncio.sleep(self.draw.uniform(0, 0.2))
            await talk.commit(now() + timeout)

        try:
            await self._settled(say(), texts)
        finally:
            await talk.close()

    async def weather(self) -> None:
        """What happens to the servers meanwhile."""
        engine = self.engine
        for _ in range(self.draw.randint(0, 6)):
            await asyncio.sleep(self.draw.uniform(0, 1))
            match self.draw.choice(["fail over", "kill", "refuse", "down", "freeze", "full"]):
                case "fail over":
                    engine.supervisor.lose_primary()
                    await asyncio.sleep(self.draw.uniform(0, 0.5))
                    engine.supervisor.promote(self.draw.choice("ab"))
                case "kill":
                    engine.server(self.draw.choice("ab")).kill_all()
                case "refuse":
                    await self.spell("connect_error", "refused", None)
                case "full":
                    await self.spell("connect_error", "53300", None)
                case "down":
                    engine.supervisor.set_health("b", Health.DOWN)
                    await asyncio.sleep(0.1)
                    engine.supervisor.set_health("b", Health.UP)
                case _:
                    server = engine.server(self.draw.choice("ab"))
                    server.freeze()
                    await asyncio.sleep(self.draw.uniform(0, 1))
                    server.thaw()

    async def spell(self, name: str, bad: str, good: str | None) -> None:
        server = self.engine.server(self.draw.choice("ab"))
        setattr(server, name, bad)
        await asyncio.sleep(self.draw.uniform(0, 0.5))
        setattr(server, name, good)

    async def run(self) -> None:
        sweeping = asyncio.create_task(self.engine.pools.sweep())
        weather = asyncio.create_task(self.weather())
        await asyncio.gather(*(self.one() for _ in range(self.callers)))
        await weather
        await self.engine.quiet(40)  # a COMMIT without an answer keeps its connection for 30 s
        sweeping.cancel()
        await asyncio.wait({sweeping})
        self.check()
        await self.engine.close()

    def check(self) -> None:
        engine = self.engine
        assert self.latest <= LATE_S, f"{self.latest} s after its deadline"
        engine.check_at_rest()
        counts = engine.register.counts(engine.tenant.name)
        admitted = len(engine.events.of(RequestAdmitted))
        assert admitted == counts[Outcome.SERVED] + counts[Outcome.FAILED] + counts[Outcome.CANCELLED]
        assert engine.room.entered == sum(engine.room.ended.values())
        committed = [one for server in engine.servers.values() for one in server.committed]
        assert len(set(committed)) == len(committed), "done twice"
        assert set(self.sure) <= set(committed), "answered as done, and lost"
        assert not set(self.undone) & set(committed), "answered as not done, and done"


def play(seed: int, callers: int) -> None:
    async def main() -> None:
        await Crowd(seed, callers).run()

    run_strictly(main)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.integers(0, 1 << 32), st.integers(1, 40))
def test_the_promises_hold_in_any_schedule(seed: int, callers: int) -> None:
    play(seed, callers)


@pytest.mark.parametrize("seed", range(10))
def test_the_promises_hold_in_a_crowd(seed: int) -> None:
    play(seed, 300)
