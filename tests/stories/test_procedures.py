"""Procedures that commit on their way: what they committed is done once, and their errors do not call it undone."""

from __future__ import annotations

import pointsman
import pytest
from pointsman import Executed

from tests.support.running_router import RunningRouter

pytestmark = pytest.mark.pg

LEDGER = "create table if not exists ledger (entry text)"


async def entries(db: pointsman.Client) -> int:
    return int(await db.query_value("select count(*) from ledger"))


async def prepare(db: pointsman.Client) -> None:
    await db.execute(LEDGER)
    await db.execute("truncate ledger")


def body(then: str) -> str:
    return f"$$ begin insert into ledger values ('x'); commit; {then}; end $$"


@pytest.mark.parametrize("sqlstate", ["40P01", "40001", "25006", "P0001"])
async def test_what_a_procedure_committed_before_its_error_is_done_once(
    router_each: RunningRouter, sqlstate: str
) -> None:
    async with router_each.connect() as db:
        await prepare(db)
        raising = body(f"raise exception 'met another' using errcode = '{sqlstate}'")
        await db.execute(f"create or replace procedure p() language plpgsql as {raising}")
        for number, sql in enumerate(["call p()", "call p()", "call p()", f"do {raising}"], 1):
            with pytest.raises(pointsman.Error) as caught:
                await db.execute(sql)
            assert caught.value.executed is Executed.MAYBE
            assert not caught.value.safe_to_repeat
            assert caught.value.sqlstate == sqlstate
            assert await entries(db) == number, "prepared or not, it ran once"


async def test_a_procedure_that_is_stopped_says_so(db: pointsman.Client) -> None:
    await prepare(db)
    with pytest.raises(pointsman.DeadlineExceeded) as late:
        await db.execute(f"do {body('perform pg_sleep(60)')}", timeout=1)
    assert late.value.executed is Executed.MAYBE
    assert await entries(db) == 1


async def test_what_was_refused_as_a_whole_is_still_called_undone(db: pointsman.Client) -> None:
    await prepare(db)
    for sql in ("call no_such()", "do $$ begin commit; nonsense end $$", "call p(", "vacuum (nonsense) ledger"):
        with pytest.raises(pointsman.Error) as caught:
            await db.execute(sql)
        assert caught.value.executed is Executed.ROLLED_BACK, sql
    assert await entries(db) == 0


async def test_with_a_key_a_commit_inside_is_refused_and_all_of_it_undone(db: pointsman.Client) -> None:
    await prepare(db)
    with pytest.raises(pointsman.Error) as caught:
        await db.execute(f"do {body('null')}", idempotent=True)
    assert caught.value.sqlstate == "2D000"
    assert caught.value.executed is Executed.ROLLED_BACK
    assert await entries(db) == 0
