"""What servers in trouble are asked: attempts per request stay within the retry budget, whatever fails and how long."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections.abc import Callable

import pytest

from router.model.errors import RouterError
from router.model.policy import RetryPolicy, TenantPolicy
from router.model.request import Method, Options, ReadFrom, Statement
from tests.support.builders import Engine
from tests.support.fake_replies import Lost, Reply
from tests.support.talk import rest
from tests.support.virtual_time import virtual

RATE, SECONDS = 60, 23


def everything(_: random.Random) -> Callable[[Statement], Reply]:
    return lambda _: Reply(takes=0.002, lost=Lost.BEFORE)


def one_in_two(drawn: random.Random) -> Callable[[Statement], Reply]:
    return lambda _: Reply(takes=0.002, lost=Lost.BEFORE if drawn.random() < 0.5 else None, rows=((b"1",),))


def conflicts(_: random.Random) -> Callable[[Statement], Reply]:
    return lambda _: Reply(takes=0.002, error="40001", message="could not serialize access")


def worst_ten_seconds(asked: list[float], arrived: list[float]) -> float:
    """Most attempts per request in any ten seconds of requests. Both in their order."""
    worst = 0.0
    for begin in arrived[: bisect_left(arrived, arrived[-1] - 10)]:
        requests = bisect_left(arrived, begin + 10) - bisect_left(arrived, begin)
        worst = max(worst, (bisect_left(asked, begin + 10) - bisect_left(asked, begin)) / requests)
    return worst


@pytest.mark.parametrize("trouble", [everything, one_in_two, conflicts])
@virtual
async def test_attempts_stay_within_the_budget(
    trouble: Callable[[random.Random], Callable[[Statement], Reply]],
) -> None:
    engine = Engine("a", "b", "c", policy=TenantPolicy(max_in_flight=1000, max_attempts=10))
    policy, drawn = RetryPolicy(), random.Random(11)
    asked: list[float] = []

    def counted(reply: Callable[[Statement], Reply]) -> Callable[[Statement], Reply]:
        def answer(statement: Statement) -> Reply:
            asked.append(asyncio.get_running_loop().time())
            return reply(statement)

        return answer

    for server in engine.servers.values():
        server.script[b"select 1"] = counted(trouble(drawn))

    async def one() -> None:
        try:
            await engine.run(Method.QUERY, "select 1", options=Options(read=ReadFrom.ANY), timeout=2.0)
        except RouterError:
            return

    arrived = []
    tasks = []
    for _ in range(RATE * SECONDS):
        arrived.append(asyncio.get_running_loop().time())
        tasks.append(engine.start(one()))
        await asyncio.sleep(1 / RATE)
    await asyncio.gather(*tasks)
    worst = worst_ten_seconds(asked, arrived)
    print(f"\n{len(asked)} attempts for {len(arrived)} requests, at worst {worst:.3f}")
    assert worst <= 1 + policy.budget_ratio
    assert len(asked) > len(arrived), "nothing was repeated: the trouble was none"
    await rest(engine)
