"""What servers in trouble are asked: attempts per request stay within the retry budget, whatever fails and how long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from router.model.errors import RouterError
from router.model.policy import RetryPolicy, TenantPolicy
from router.model.request import Method, Options, ReadFrom, Statement
from tests.support.builders import Engine
from tests.support.fake_replies import Lost, Reply
from tests.support.talk import rest
from tests.support.virtual_time import virtual

RATE, SECONDS = 100, 15


def everything(_: random.Random) -> Callable[[Statement], Reply]:
    return lambda _: Reply(takes=0.002, lost=Lost.BEFORE)


def one_in_two(drawn: random.Random) -> Callable[[Statement], Reply]:
    return lambda _: Reply(takes=0.002, lost=Lost.BEFORE if drawn.random() < 0.5 else None, rows=((b"1",),))


def conflicts(_: random.Random) -> Callable[[Statement], Reply]:
    return lambda _: Reply(takes=0.002, error="40001", message="could not serialize access")


@pytest.mark.parametrize("trouble", [everything, one_in_two, conflicts])
@virtual
async def test_attempts_stay_within_the_budget(
    trouble: Callable[[random.Random], Callable[[Statement], Reply]],
) -> None:
    engine = Engine("a", "b", "c", policy=TenantPolicy(max_in_flight=1000, max_attempts=10))
    policy, drawn = RetryPolicy(), random.Random(11)
    asked = 0

    def counted(reply: Callable[[Statement], Reply]) -> Callable[[Statement], Reply]:
        def answer(statement: Statement) -> Reply:
            nonlocal asked
            asked += 1
            return reply(statement)

        return answer

    for server in engine.servers.values():
        server.script[b"select 1"] = counted(trouble(drawn))

    async def one() -> None:
        try:
            await engine.run(Method.QUERY, "select 1", options=Options(read=ReadFrom.ANY), timeout=2.0)
        except RouterError:
            return

    began = asyncio.get_running_loop().time()
    tasks = []
    for _ in range(RATE * SECONDS):
        tasks.append(engine.start(one()))
        await asyncio.sleep(1 / RATE)
    await asyncio.gather(*tasks)
    took = asyncio.get_running_loop().time() - began
    requests = RATE * SECONDS
    # A full budget, a tenth of the requests, one a second: in the long run 1.10.
    most = requests + policy.budget_burst + policy.budget_ratio * requests + policy.budget_per_s * took
    print(f"\n{asked} attempts for {requests} requests: {asked / requests:.3f}")
    assert asked <= most
    assert asked > requests, "nothing was repeated: the trouble was none"
    await rest(engine)
