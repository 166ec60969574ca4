"""Answers never reach another tenant: twenty tenants at once, while calls are cancelled, run out of time, are cut off,
and PostgreSQL's backends are killed.

Each call brings a nonce; each answer holds it, the owner in the tenant's own table, current_user and
current_database(). POINTSMAN_BLEED_CALLS sets the number of calls (5,000 unless set).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pointsman
import psycopg
import pytest

from tests.isolation.stage import STATEMENTS, Place, Stage, database, rows, schema, stage, taken

pytestmark = pytest.mark.pg

CALLS = int(os.environ.get("POINTSMAN_BLEED_CALLS", "5000"))
SEED = int(os.environ.get("POINTSMAN_BLEED_SEED", "20"))
CALLERS = 4
"""Of each tenant at once."""
KILL_S = 0.05
PLACES = tuple(
    replace(place, connections=2)
    for place in (
        *(database(f"own{number}") for number in range(4)),
        *(schema(f"half{number}") for number in range(8)),
        *(rows(f"row{number}") for number in range(4)),
        *(taken(f"role{number}") for number in range(4)),
    )
)


@pytest.fixture(scope="module")
def crowd() -> Iterator[Stage]:
    """Twenty tenants of all modes."""
    with stage(*PLACES) as ready:
        yield ready


class Caller:
    """One caller of a tenant; counts what became of its calls, and keeps every answer that is not its own."""

    def __init__(self, played: Stage, place: Place, draw: random.Random, counts: Counter[str]) -> None:
        self._played = played
        self._place = place
        self._draw = draw
        self._counts = counts
        self.strange: list[str] = []
        self._number = 0

    def text(self, name: str) -> str:
        """A statement as this tenant sends it."""
        return f"@{name}" if self._place.isolation == "registered" else STATEMENTS[name]

    def check(self, row: Any, nonce: str) -> None:
        """Whether an answer is this caller's."""
        found = tuple(row)[:4]
        expected = (nonce, self._place.name, self._place.user, self._place.database)
        self._counts["answers"] += 1
        if found != expected:
            self.strange.append(f"{found} instead of {expected}")

    async def run(self, calls: int) -> None:
        """Make so many calls, three in ten with some trouble, on a connection that is now and then cut off."""
        while calls > 0:
            part = min(calls, self._draw.randint(10, 60))
            calls -= part
            client = self._played.connect(self._place.name)
            try:
                for _ in range(part):
                    await self._one(client)
            finally:
                if self._draw.random() < 0.5:
                    pending = asyncio.ensure_future(self._quietly(self._call(client, 5.0)))
                    await asyncio.sleep(0.001 * self._draw.random())
                    await client.close()
                    await asyncio.wait({pending})
                    self._counts["cut off"] += 1
                await client.close()

    async def _one(self, client: pointsman.Client) -> None:
        trouble = self._draw.random()
        if trouble < 0.1:
            task = asyncio.ensure_future(self._quietly(self._call(client, 5.0)))
            await asyncio.sleep(0.004 * self._draw.random())
            task.cancel()
            await asyncio.wait({task})
            self._counts["cancelled"] += task.cancelled()
        elif trouble < 0.2:
            await self._quietly(self._call(client, 0.0005 + 0.006 * self._draw.random()))
        else:
            await self._quietly(self._call(client, 10.0))

    async def _quietly(self, call: Any) -> None:
        try:
            await call
        except pointsman.Error as error:
            self._counts[error.reason or error.sqlstate or "?"] += 1

    async def _call(self, client: pointsman.Client, timeout: float) -> None:
        self._number += 1
        nonce = f"{self._place.name}/{id(self)}/{self._number}"
        kind = self._draw.random()
        if kind < 0.4:
            self.check((await client.query(self.text("who"), nonce, timeout=timeout))[0], nonce)
        elif kind < 0.5:
            pause = 0.003 * self._draw.random()
            self.check((await client.query(self.text("slow"), nonce, pause, timeout=timeout))[0], nonce)
        elif kind < 0.65:
            self.check((await client.execute(self.text("bump"), nonce, timeout=timeout)).rows[0], nonce)
        elif kind < 0.75:
            async for row in client.stream(self.text("who"), nonce, timeout=timeout):
                self.check(row, nonce)
        elif kind < 0.85:
            steps = [pointsman.Step(self.text(name), [nonce], want_rows=True) for name in ("who", "bump")]
            for result in await client.batch(steps, timeout=timeout):
                self.check(result.rows[0], nonce)
        else:
            async with client.transaction(timeout=timeout) as tx:
                self.check((await tx.execute(self.text("who"), nonce)).rows[0], nonce)
                if self._place.isolation != "registered":
                    await tx.execute("SET work_mem = '5MB'")
                self.check((await tx.execute(self.text("bump"), nonce)).rows[0], nonce)


def kill_someone(connection: psycopg.Connection[Any], draw: random.Random) -> int:
    """End the backend of some tenant's session."""
    pids = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pointsman/%' AND usename <> 'pointsman_control'"
    ).fetchall()
    if not pids:
        return 0
    connection.execute("SELECT pg_terminate_backend(%s)", (draw.choice(pids)[0],))
    return 1


async def test_no_answer_reaches_another_tenant(crowd: Stage):
    draw, counts = random.Random(SEED), Counter[str]()
    callers = [Caller(crowd, place, random.Random(draw.random()), counts) for place in PLACES for _ in range(CALLERS)]
    each = -(-CALLS // len(callers))
    running = asyncio.gather(*(caller.run(each) for caller in callers))
    with crowd.cluster.primary().connect() as connection:
        while not running.done():
            counts["killed"] += await asyncio.to_thread(kill_someone, connection, draw)
            await asyncio.wait({running}, timeout=KILL_S)
    await running
    strange = [text for caller in callers for text in caller.strange]
    trouble: Mapping[str, int] = {name: count for name, count in counts.most_common() if name != "answers"}
    print(f"bleed: {each * len(callers)} calls of {len(PLACES)} tenants, {counts['answers']} answers checked, "
          f"{len(strange)} of another; trouble {trouble}")  # fmt: skip
    assert not strange, strange[:5]
    assert counts["answers"] > each * len(callers) / 2
    assert min(counts["killed"], counts["cancelled"], counts["cut off"], counts["DEADLINE"]) > 0, trouble
    log = crowd.router.log.read_text()
    assert "connection is not the tenant's" not in log
    assert "handler failed" not in log


def test_an_answer_of_another_would_be_noticed():
    caller = Caller(None, PLACES[0], random.Random(1), Counter())  # type: ignore[arg-type]
    good = ("n", "own0", "own0_app", "own0_db")
    caller.check(good, "n")
    assert not caller.strange
    for position in range(4):
        caller.check((*good[:position], "other", *good[position + 1 :]), "n")
    assert len(caller.strange) == 4
