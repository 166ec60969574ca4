"""The position of a commit, for its token: worth a short wait, and none beyond its caller's deadline."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from router.engine.lane_pool import CANCEL_S
from router.engine.positions import LINGER_S, POSITION, seen
from router.model.errors import RouterError
from router.model.events import Health
from router.model.identity import NO_LSN, EndpointName, Lsn, Term
from router.model.policy import TenantPolicy
from router.model.reasons import RefuseReason
from router.model.request import Fallback, Method, Options, ReadFrom
from router.model.result import StatementResult
from router.model.token import Token, decode
from tests.support.builders import Engine, now, request
from tests.support.fake_lane import FakeCells
from tests.support.fake_replies import Reply
from tests.support.talk import rest
from tests.support.virtual_time import virtual

LATE_S = 0.5 + 0.9 * CANCEL_S


@pytest.mark.parametrize(
    ("method", "takes", "ends"),
    [
        pytest.param(Method.EXECUTE, 0.3, 0.3 + LINGER_S, id="early"),
        pytest.param(Method.EXECUTE, 0.49, 0.5, id="just before its deadline"),
        pytest.param(Method.EXECUTE, LATE_S, LATE_S, id="after its deadline, in spite of the cancel request"),
        pytest.param(Method.EXECUTE_BATCH, 0.3, 0.3 + LINGER_S, id="a batch, early"),
        pytest.param(Method.EXECUTE_BATCH, 0.49, 0.5, id="a batch, just before its deadline"),
    ],
)
@virtual
async def test_a_committed_write_waits_for_its_position_no_longer_than_its_deadline(
    method: Method, takes: float, ends: float
) -> None:
    engine = Engine()
    engine.server().script[b"insert a"] = Reply(takes=takes, effect=True, ignores_cancel=True)
    engine.server().script[POSITION.sql] = Reply(takes=0.2, rows=((b"0/10", None, b"t"),))
    began = now()
    answer = await engine.run(method, "insert a", timeout=0.5)
    assert answer.receipt.endpoint == "a"
    assert now() - began == pytest.approx(ends, abs=0.012)
    assert now() - began <= max(takes, 0.5) + 0.005
    await engine.quiet()
    await rest(engine)


SENSELESS = [
    pytest.param((b"0/1z", b"00000001000000000000000A", b"t"), id="no position"),
    pytest.param((b"\xff/1", b"00000001000000000000000A", b"t"), id="no text"),
    pytest.param((b"123456789/0", b"00000001000000000000000A", b"t"), id="beyond the last position"),
    pytest.param((b"0/10", b"0000000", b"t"), id="no timeline"),
    pytest.param((b"0/10", b"\xff\xfe", b"t"), id="no log file"),
]


@pytest.mark.parametrize("row", SENSELESS)
def test_a_position_that_makes_no_sense_is_none(row: tuple[bytes, ...]) -> None:
    """What it stands behind is done: nothing may be raised there."""
    known = Token(7, Term(1), Lsn(1), now=True).encode()
    assert seen(known, StatementResult(FakeCells((row,)), "SELECT 1", 1)) is None


def test_the_position_behind_a_commit() -> None:
    known = Token(7, Term(1), Lsn(1), now=True).encode()
    cells = FakeCells(((b"1/10", b"00000002000000000000000A", b"t"),))
    assert seen(known, StatementResult(cells, "SELECT 1", 1)) == Token(7, Term(2), Lsn((1 << 32) + 16))


@virtual
async def test_what_a_replica_showed_of_the_next_timeline_is_not_unseen_on_another_one() -> None:
    """A replica had followed before it was probed, so its token says {timeline 1, 700}, where 1 was left at 500. Both
    replicas are past 500; only one of them is past what the primary has, and so past all that was seen."""
    engine = Engine("a", "b", "c")
    state = engine.supervisor.state
    at = {"a": 600, "b": 600, "c": 650}
    endpoints = {
        name: replace(one, term=Term(2), lsn=Lsn(at[name])) for name, one in state.endpoints.items()
    }
    engine.supervisor.publish(
        term=Term(2), endpoints=endpoints, system_id=7, synchronous=True, history=((Term(1), Lsn(500)),)
    )
    for name, lsn in {"a": 800, "b": 800, "c": 650}.items():
        file = b"000000020000000000000001" if name == "a" else None
        engine.server(name).script[POSITION.sql] = Reply(rows=((b"0/%X" % lsn, file, b"t"),))
    options = Options(read=ReadFrom.REPLICA, fallback=Fallback.FAIL)
    asked = request(Method.QUERY, "select 1", options=options, timeout=1.0)
    for _ in range(4):
        answer = await engine.executor.run(
            engine.tenant, replace(asked, after=Token(7, Term(1), Lsn(700)))
        )
        assert answer.receipt.endpoint == EndpointName("b")
        assert decode(answer.receipt.token) == Token(7, Term(2), Lsn(800))
    await rest(engine)


@pytest.mark.parametrize("fate", ["probed", "in doubt", "rebuilt"])
@virtual
async def test_a_replica_that_restarts_is_not_where_it_was(fate: str) -> None:
    """It tells 0/5000, crashes, and opens at 0/4F00: a read that must see 0/4FF0 goes to the primary."""
    engine = Engine("a", "b")
    engine.change(policy=TenantPolicy(token_wait_s=0.05))
    publish_replica(engine, lsn=Lsn(0x4E00))
    engine.server("b").script[POSITION.sql] = Reply(rows=((b"0/5000", None, b"t"),))
    asked = request(Method.QUERY, "select 1", options=Options(read=ReadFrom.REPLICA), timeout=20.0)
    read = replace(asked, after=Token(7, Term(1), Lsn(0x4FF0)))
    for _ in range(2):
        answer = await engine.executor.run(engine.tenant, read)
        assert answer.receipt.endpoint == EndpointName("b")
    assert engine.server("b").seen.count(POSITION.sql) == 1 + 2, "it is remembered; each read tells its own"

    engine.server("b").script[POSITION.sql] = Reply(rows=((b"0/4F00", None, b"t"),))
    await asyncio.sleep(0.1)
    if fate == "probed":
        publish_replica(engine, lsn=Lsn(0x4F00), position_at=now())
    elif fate == "in doubt":
        publish_replica(engine, lsn=Lsn(0x5000), position_at=now(), health=Health.SUSPECT)
        read = replace(read, options=Options(read=ReadFrom.REPLICA, fallback=Fallback.FAIL))
    else:
        publish_replica(engine, lsn=NO_LSN, health=Health.UNKNOWN)
        publish_replica(engine, lsn=Lsn(0x4F00), position_at=now(), health=Health.UP)
    if fate == "in doubt":
        with pytest.raises(RouterError) as refused:
            await engine.executor.run(engine.tenant, read)
        assert refused.value.reason is RefuseReason.NO_REPLICA
    else:
        answer = await engine.executor.run(engine.tenant, read)
        assert answer.receipt.endpoint == EndpointName("a")
    await rest(engine)


def publish_replica(engine: Engine, **fields: Any) -> None:
    state = engine.supervisor.state
    b = replace(state.endpoints[EndpointName("b")], term=Term(1), **fields)
    engine.supervisor.publish(endpoints={**state.endpoints, b.name: b}, system_id=7, term=Term(1))
