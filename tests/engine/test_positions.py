"""The position of a commit, for its token: worth a short wait, and none beyond its caller's deadline."""

from __future__ import annotations

import pytest

from router.engine.lane_pool import CANCEL_S
from router.engine.positions import LINGER_S, POSITION
from router.model.request import Method
from tests.support.builders import Engine, now
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
