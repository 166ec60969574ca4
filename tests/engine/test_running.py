"""The concurrency of an endpoint on virtual time: followed, shared, and never in the way of what must go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from router.decisions.concurrency import ConcurrencyLimit
from router.engine.running import TICK_S, EndpointRuns
from router.model.policy import ClusterPolicy, Concurrency, PoolPolicy, TenantPolicy
from router.model.reasons import ConcurrencyReason
from router.model.request import Method, Options, Statement, TransactionMode
from router.model.topology import Tenant
from tests.support.builders import Engine, now, request, tenant
from tests.support.fake_replies import Reply
from tests.support.virtual_time import virtual

CAP = 80
POOL = PoolPolicy(max_size=24, acquire_timeout_s=20.0)
ADAPTIVE = ClusterPolicy(concurrency=Concurrency.ADAPTIVE)


class Processors:
    """A server whose statements take longer the more of them run at once."""

    def __init__(self, engine: Engine, count: float) -> None:
        self.engine = engine
        self.count = count
        self.most = 0

    def statement(self, sql: str, cost_s: float) -> str:
        self.engine.server().script[sql.encode()] = lambda _: self._reply(cost_s)
        return sql

    def _reply(self, cost_s: float) -> Reply:
        running = runs_of(self.engine).running
        self.most = max(self.most, running)
        return Reply(takes=cost_s * max(1.0, running / self.count))


def runs_of(engine: Engine) -> EndpointRuns:
    return next(runs for runs in engine.runs if runs.endpoint == "a")


def an_engine(pool: PoolPolicy = POOL) -> Engine:
    return Engine("a", pool=pool, policy=TenantPolicy(max_in_flight=256), cluster=ADAPTIVE)


class Callers:
    """Each asks again as soon as it is answered, until it is told to stop."""

    def __init__(
        self, engine: Engine, owner: Tenant, callers: int, sql: str, pause_s: float = 0.0,
        method: Method = Method.EXECUTE,
    ) -> None:
        self.took_s: list[float] = []
        self._pause_s = pause_s
        self._method = method
        self.stopping = False
        self._tasks = [engine.start(self._call(engine, owner, sql)) for _ in range(callers)]

    async def _call(self, engine: Engine, owner: Tenant, sql: str) -> None:
        while not self.stopping:
            began = now()
            await engine.executor.run(owner, request(self._method, sql, timeout=30))
            self.took_s.append(now() - began)
            if self._pause_s:
                await asyncio.sleep(self._pause_s)

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self._tasks)


async def calm_then_crowded(engine: Engine, owner: Tenant, sql: str) -> Callers:
    few = Callers(engine, owner, 1, sql)
    await asyncio.sleep(2)
    await few.stop()
    many = Callers(engine, owner, 20, sql)
    await asyncio.sleep(5)
    return many


@virtual
async def test_less_runs_while_the_server_is_slow_and_all_again_when_it_is_not() -> None:
    engine = an_engine()
    server = Processors(engine, 3)
    sql = server.statement("update accounts", 0.05)
    many = await calm_then_crowded(engine, engine.tenant, sql)
    runs = runs_of(engine)
    assert runs.limit is not None
    assert runs.allowance.reason in (ConcurrencyReason.SLOW, ConcurrencyReason.GROWING)
    assert 3 <= runs.limit.allowed <= 10
    server.most, many.took_s[:] = 0, []
    await asyncio.sleep(1)
    assert server.most <= 10
    assert len(many.took_s) > 0.9 * 3 / 0.05, "the server has no pause"
    server.count = 1000
    await asyncio.sleep(6)
    assert runs.limit.allowed >= 20
    assert runs.allowance.reason in (ConcurrencyReason.CAP, ConcurrencyReason.UNUSED)
    await many.stop()
    engine.check_at_rest()
    await engine.close()


@virtual
async def test_a_neighbour_is_answered_sooner_beside_a_crowd() -> None:
    async def beside(cluster: ClusterPolicy) -> float:
        engine = Engine("a", pool=POOL, policy=TenantPolicy(max_in_flight=256), cluster=cluster)
        server = Processors(engine, 2)
        calm = tenant("globex", pool=POOL)
        sql, short = server.statement("update accounts", 0.05), server.statement("update one", 0.01)
        one = Callers(engine, calm, 1, short)
        many = await calm_then_crowded(engine, engine.tenant, sql)
        one.took_s.clear()
        await asyncio.sleep(3)
        took_s = sorted(one.took_s)[len(one.took_s) // 2]
        await asyncio.gather(one.stop(), many.stop())
        engine.check_at_rest()
        await engine.close()
        return took_s

    assert await beside(ADAPTIVE) < 0.6 * await beside(ClusterPolicy())


@virtual
async def test_callers_that_ask_again_find_their_places_beside_a_crowd() -> None:
    """Two calm callers and a crowd on one processor, with a pause between answer and next request: what they leave for
    that long is not given away, and the crowd has no more at work than they."""
    engine = an_engine()
    server = Processors(engine, 1)
    calm = tenant("globex", pool=POOL)
    sql, short = server.statement("update accounts", 0.05), server.statement("update one", 0.01)
    few = Callers(engine, calm, 2, short, pause_s=0.002)
    many = await calm_then_crowded(engine, engine.tenant, sql)
    await asyncio.sleep(5)
    few.took_s.clear()
    await asyncio.sleep(3)
    took_s = sorted(few.took_s)
    assert took_s[len(took_s) // 2] <= 0.045, "four at work, of which two are theirs"
    assert took_s[int(len(took_s) * 0.9)] <= 0.055
    await asyncio.gather(few.stop(), many.stop())
    engine.check_at_rest()
    await engine.close()


@virtual
async def test_beside_a_floor_that_is_hardly_used_a_tenant_has_all_again_when_the_server_is_well() -> None:
    """Its part is smaller than a quarter of the limit: that it has all of it must count as use of the limit."""
    engine = an_engine(PoolPolicy(max_size=24, acquire_timeout_s=20.0))
    server = Processors(engine, 1)
    floored = tenant("globex", pool=PoolPolicy(max_size=24, acquire_timeout_s=20.0, floor=20))
    one = Callers(engine, floored, 1, server.statement("update one", 0.01))
    many = await calm_then_crowded(engine, engine.tenant, server.statement("update accounts", 0.05))
    runs = runs_of(engine)
    assert runs.limit is not None
    assert runs.limit.divides
    assert runs.running < 10
    server.count = 1000
    await asyncio.sleep(30)
    many.took_s.clear()
    await asyncio.sleep(1)
    assert len(many.took_s) > 0.8 * 20 / 0.05
    await asyncio.gather(one.stop(), many.stop())
    engine.check_at_rest()
    await engine.close()


class Fixed(ConcurrencyLimit):
    """It stays where it is, whatever is measured."""

    def __init__(self, allowed: int) -> None:
        super().__init__(1, CAP, 0.0)
        self._limit = float(allowed)

    def step(self, *_: Any) -> bool:
        return False


def _slow_now(engine: Engine, allowed: int) -> EndpointRuns:
    runs = runs_of(engine)
    runs.limit = Fixed(allowed)
    return runs


@virtual
async def test_fast_reads_keep_no_write_of_their_tenant_waiting() -> None:
    engine = an_engine()
    script = engine.server().script
    script[b"select point"] = Reply(takes=0.0005, rows=((b"1",),))
    script[b"update row"] = Reply(takes=0.2)
    others = [tenant(name, pool=POOL) for name in ("globex", "initech")]
    _slow_now(engine, 5)
    busy = [Callers(engine, engine.tenant, 4, "select point", method=Method.QUERY)]
    busy += [Callers(engine, one, 1, "update row") for one in others]
    await asyncio.sleep(1)
    took_s = []
    for _ in range(10):
        began = now()
        await engine.run(Method.EXECUTE, "update row", timeout=20)
        took_s.append(now() - began)
    assert max(took_s) < 0.2 + 2 * TICK_S
    await asyncio.gather(*(one.stop() for one in busy))
    await engine.quiet()
    engine.check_at_rest()
    await engine.close()


@virtual
async def test_what_waited_behind_its_own_tenants_read_is_let_in_when_that_has_ended() -> None:
    """More tenants at work than may run: each has one, and whoever has nothing at work is never kept waiting."""
    engine = an_engine()
    script = engine.server().script
    script[b"select slowly"] = Reply(takes=1.0, rows=((b"1",),))
    script[b"update row"] = Reply(takes=0.2)
    others = [tenant(name, pool=POOL) for name in ("globex", "initech", "hooli")]
    _slow_now(engine, 2)
    busy = [Callers(engine, one, 2, "update row") for one in others]
    await asyncio.sleep(1)
    read = engine.start(engine.run(Method.QUERY, "select slowly", timeout=20))
    await asyncio.sleep(0.5)
    began = now()
    await engine.run(Method.EXECUTE, "update row", timeout=20)
    assert now() - began < 0.5 + 0.2 + 2 * TICK_S
    await asyncio.gather(read, *(one.stop() for one in busy))
    await engine.quiet()
    engine.check_at_rest()
    await engine.close()


@virtual
async def test_a_limit_that_goes_and_comes_back_finds_what_runs() -> None:
    engine = an_engine()
    engine.server().script[b"update row"] = Reply(takes=0.3)
    other = tenant("globex", pool=POOL)
    runs = _slow_now(engine, 4)
    busy = [Callers(engine, one, 6, "update row") for one in (engine.tenant, other)]
    await asyncio.sleep(1)
    assert runs.running == 4
    runs.set_limit(Concurrency.FIXED, 1, CAP)
    await asyncio.sleep(1)
    assert runs.running == 12
    runs.set_limit(Concurrency.ADAPTIVE, 1, CAP)
    _slow_now(engine, 4)
    await asyncio.sleep(1)
    assert runs.running == 4
    assert Counter(runs._of) == {"acme": 2, "globex": 2}
    await asyncio.gather(*(one.stop() for one in busy))
    await engine.quiet()
    engine.check_at_rest()
    await engine.close()


@virtual
async def test_a_transaction_is_not_kept_waiting_by_those_that_wait_for_it() -> None:
    """Ten writes wait for a lock that a transaction holds; the least may run, and the transaction must go on."""
    engine = an_engine()
    released: list[bool] = []
    engine.server().script[b"update row"] = lambda _: Reply(takes=0.001 if released else 3.0)
    runs = runs_of(engine)
    assert runs.limit is not None
    runs.limit.resize(1, 1)
    talk = await engine.sessions.open(engine.tenant, TransactionMode(), Options(), now() + 10, "")
    await talk.run(Statement(b"select for update"), now() + 5)
    waiting = [engine.start(engine.run(Method.EXECUTE, "update row", timeout=20)) for _ in range(10)]
    await asyncio.sleep(0.5)
    began = now()
    await talk.run(Statement(b"update other"), now() + 5)
    await talk.commit(now() + 5)
    assert now() - began < 0.1
    released.append(True)
    await asyncio.gather(*waiting)
    await engine.quiet()
    engine.check_at_rest()
    await engine.close()


@virtual
async def test_transactions_that_wait_for_their_callers_take_no_place() -> None:
    engine = an_engine()
    runs = runs_of(engine)
    assert runs.limit is not None
    runs.limit.resize(2, 2)
    talks = []
    for _ in range(4):
        talk = await engine.sessions.open(engine.tenant, TransactionMode(), Options(), now() + 30, "")
        await talk.run(Statement(b"select 1"), now() + 5)
        talks.append(talk)
    began = now()
    await engine.run(Method.EXECUTE, "update row")
    assert now() - began < 2 * TICK_S + 0.01
    for talk in talks:
        await talk.close()
    await engine.quiet()
    engine.check_at_rest()
    await engine.close()


@virtual
async def test_what_may_run_is_divided_by_weight_among_tenants_and_evenly_among_pools() -> None:
    engine = an_engine()
    engine.server().script[b"update row"] = Reply(takes=0.1)
    engine.server().script[b"select slowly"] = Reply(takes=0.1, rows=((b"1",),))
    heavy = tenant("globex", pool=PoolPolicy(max_size=24, acquire_timeout_s=20.0, weight=300))
    runs = runs_of(engine)
    assert runs.limit is not None
    runs.limit.resize(8, 8)
    done: Counter[str] = Counter()
    until = now() + 5

    async def again(name: str, owner: Tenant, method: Method, sql: str) -> None:
        while now() < until:
            await engine.executor.run(owner, request(method, sql, timeout=30))
            done[name] += 1

    callers: list[tuple[str, Tenant, Method, str]] = [
        ("heavy", heavy, Method.EXECUTE, "update row"),
        ("writes", engine.tenant, Method.EXECUTE, "update row"),
        ("reads", engine.tenant, Method.QUERY, "select slowly"),
    ]
    await asyncio.gather(*(again(*one) for one in callers for _ in range(10)))
    assert done["heavy"] / (done["writes"] + done["reads"]) > 2
    assert 0.7 < done["writes"] / done["reads"] < 1.4
    await engine.quiet()
    engine.check_at_rest()
    await engine.close()


@virtual
async def test_who_waits_is_let_in_when_the_limit_goes() -> None:
    engine = an_engine()
    engine.server().script[b"update row"] = Reply(takes=0.9)
    runs = runs_of(engine)
    assert runs.limit is not None
    runs.limit.resize(1, 1)
    began = now()
    works = [engine.start(engine.run(Method.EXECUTE, "update row", timeout=20)) for _ in range(5)]
    await asyncio.sleep(0.01)
    runs.set_limit(Concurrency.FIXED, 1, CAP)
    await asyncio.gather(*works)
    assert now() - began < 1.1
    await engine.quiet()
    engine.check_at_rest()
    await engine.close()
