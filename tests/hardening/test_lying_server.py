"""The router as the client of a server that lies: at the login, in answers, at COMMIT.

Whatever comes, its callers have an answer by their deadline; what it calls done was done; a value is its own
caller's or there is none; its memory is bounded; and the next honest connection works. Another tenant, whose server is
honest, notices nothing.

LIES=10000 and LIES_SEED=7 make more of it, and other ones.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pointsman
import psycopg
import pytest

from router.devcluster import DevCluster
from tests.hardening.conftest import furnish
from tests.hardening.lying_server import FLOODS, LyingServer
from tests.hardening.residue import SERVING, residue_of
from tests.stories.conftest import undisturbed
from tests.support.eventually import eventually, rows_of
from tests.support.running_router import Config, RunningRouter, endpoint, running_router

pytestmark = [pytest.mark.pg, pytest.mark.timeout(3600)]

CONVERSATIONS = int(os.environ.get("LIES", "500"))
SEED = int(os.environ.get("LIES_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
CALLERS = 16
MOST_S = 2.5
TIMEOUT_S = 1.0
SLACK_S = 1.5
"""Beyond a caller's deadline, on a machine that does much else."""
SILENT_S = 4.0
TABLE = "CREATE TABLE IF NOT EXISTS told (id bigint PRIMARY KEY, note text); TRUNCATE told"


@dataclass
class Account:
    """What the callers were told."""

    done: set[int] = field(default_factory=set)
    """Writes that were acknowledged."""
    undone: dict[int, str] = field(default_factory=dict)
    """Writes that were told to have left nothing, and how."""
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    values: set[str] = field(default_factory=set)
    """Every value that any caller has asked for."""


Ask = Callable[[pointsman.Client, Account, int], Awaitable[None]]


async def reads(db: pointsman.Client, account: Account, number: int) -> None:
    mine = f"{SEED}-{number}"
    account.values.add(mine)
    got = await db.query_value("select $1::text", mine, timeout=TIMEOUT_S, read="primary")
    if got != mine and got in account.values:
        account.wrong.append(f"foreign: asked for {mine}, got {got!r}")


async def streams(db: pointsman.Client, account: Account, number: int) -> None:
    mine = f"{SEED}-{number}"
    async for one in db.stream("select $1::text from generate_series(1, 40)", mine, timeout=TIMEOUT_S):
        if one[0] != mine and one[0] in account.values:
            account.wrong.append(f"foreign: asked for {mine}, got {one[0]!r}")


async def writes(db: pointsman.Client, account: Account, number: int) -> None:
    await db.execute("insert into told values ($1, 'single')", number, timeout=TIMEOUT_S)


async def writes_a_batch(db: pointsman.Client, account: Account, number: int) -> None:
    insert = ("insert into told values ($1, 'batch')", [number])
    await db.batch([insert, ("update told set note = 'batch 2' where id = $1", [number])], timeout=TIMEOUT_S)


async def transacts(db: pointsman.Client, account: Account, number: int) -> None:
    async with db.transaction(timeout=TIMEOUT_S) as tx:
        await tx.execute("insert into told values ($1, 'transact')", number)


ASKS: tuple[Ask, ...] = (reads, reads, streams, writes, writes_a_batch, transacts)
WRITES = (writes, writes_a_batch, transacts)
UNDONE = (pointsman.Executed.NO, pointsman.Executed.ROLLED_BACK)


@asynccontextmanager
async def lied_to(
    cluster: DevCluster, *users: bytes
) -> AsyncIterator[tuple[RunningRouter, LyingServer]]:
    """acme behind a server that lies to these logins, globex behind an honest one: two clusters to the router."""
    furnish(cluster)
    with psycopg.connect(cluster.tenant_dsn("acme"), autocommit=True) as connection:
        connection.execute(TABLE)
    port = cluster.primary().port
    async with LyingServer(port, SEED, users=frozenset(users)) as liar:

        def edit(config: Config) -> None:
            main = config["clusters"]["main"]
            main |= {"mode": "follow", "endpoints": {"liar": endpoint(liar.port)}, "connect_timeout_s": 1}
            config["clusters"]["calm"] = {**main, "endpoints": {"honest": endpoint(port)}}
            config["tenants"]["globex"]["cluster"] = "calm"
            config["tenants"]["acme"]["limits"] = {"default_timeout_s": 2, "max_timeout_s": 5}

        async with running_router(cluster, edit=edit, program=SERVING) as router:
            yield router, liar


async def ask_until(
    router: RunningRouter, liar: LyingServer, account: Account, enough: Callable[[], bool], callers: int = CALLERS
) -> None:
    """Callers with all kinds of requests, one after the other each."""
    numbers = iter(range(1, 1 << 30))

    async def call(db: pointsman.Client) -> None:
        while not enough():
            number = next(numbers)
            ask = random.Random(f"{SEED}:{number}").choice(ASKS)
            began = time.monotonic()
            try:
                await ask(db, account, number)
                account.outcomes["ok"] += 1
                if ask in WRITES:
                    account.done.add(number)
            except pointsman.Error as error:
                account.outcomes[error.reason or type(error).__name__] += 1
                if ask in WRITES and error.executed in UNDONE and not _may_be_made_up(error):
                    account.undone[number] = f"{ask.__name__} {number}: {error.executed} {error!r}"
                if error.reason == "INTERNAL":
                    account.wrong.append(f"{ask.__name__} {number}: {error}")
            except Exception as error:
                account.wrong.append(f"{ask.__name__} {number}: {error!r}")
            took = time.monotonic() - began
            if took > TIMEOUT_S + SLACK_S:
                account.wrong.append(f"late: {ask.__name__} {number} took {took:.2f} s")

    async with router.connect("acme") as db:
        await asyncio.gather(*(call(db) for _ in range(callers)))


@pytest.mark.parametrize("users", [(b"acme",), (b"acme", b"pointsman_control")], ids=["to tenants", "to probes too"])
async def test_a_server_that_lies(pg_cluster: DevCluster, users: tuple[bytes, ...]) -> None:
    account = Account()
    async with lied_to(pg_cluster, *users) as (router, liar):
        before = await residue_of(router)
        router.reset_peak_memory()
        async with undisturbed(router) as neighbour:
            await ask_until(router, liar, account, _enough(liar))
            liar.honest = True
            async with router.connect("acme") as db:
                await eventually(lambda: _answers(db), within_s=SILENT_S, what="a read on an honest connection")
        print(liar.conversations, "conversations;", dict(liar.told), dict(account.outcomes))
        print("neighbour's slowest", neighbour.slowest_s, "peak", router.peak_memory_bytes() >> 20)
        settle(account, pg_cluster)
        log = router.logged()
        assert router.process.poll() is None
        for word in ("Traceback", "request handler failed", "never retrieved", '"trace"'):
            assert word not in log, log[max(0, log.index(word) - 800) :][:3000]
        assert router.peak_memory_bytes() < before.memory_bytes + (96 << 20)


async def test_rows_and_notices_without_end_take_no_memory(pg_cluster: DevCluster) -> None:
    account = Account()
    async with lied_to(pg_cluster, b"acme") as (router, liar):
        liar.kinds = FLOODS
        router.reset_peak_memory()
        before = router.memory_bytes()
        ends = time.monotonic() + MOST_S
        async with undisturbed(router):
            await ask_until(router, liar, account, lambda: liar.told.total() >= 8 or time.monotonic() > ends)
            liar.honest = True
        assert not account.wrong, account.wrong[:10]
        assert liar.told.total() >= 2
        # Of eight floods of 192 MiB. Each may bring what libpq takes at once beyond the limit of one answer; on a
        # machine that does much else that is several times the limit.
        assert router.peak_memory_bytes() < before + (256 << 20)


def _enough(liar: LyingServer) -> Callable[[], bool]:
    """Half of the conversations for each kind of logins; on a busy machine, as many as come in MOST_S."""
    ends = time.monotonic() + (MOST_S if CONVERSATIONS <= 500 else 3600)
    return lambda: liar.conversations >= CONVERSATIONS // 2 or time.monotonic() > ends


def settle(account: Account, cluster: DevCluster) -> None:
    """Compare what was told with what the table holds."""
    there = {row[0] for row in rows_of(cluster.tenant_dsn("acme"), "select id from told")}
    assert not account.wrong, f"{len(account.wrong)}:\n" + "\n".join(account.wrong[:20])
    assert account.done - there == set(), "acknowledged and not there"
    told = [account.undone[number] for number in sorted(account.undone.keys() & there)]
    assert not told, "told to have failed, and there:\n" + "\n".join(told)
    assert account.outcomes["ok"]


def _may_be_made_up(error: pointsman.Error) -> bool:
    """Nobody can tell an error that the server did not mean, nor what follows once it had the request repeated: another
    attempt, or the wait for a connection until the deadline, before which nothing was sent once more."""
    waited_again = error.reason == "DEADLINE" and error.executed is pointsman.Executed.NO
    return error.pg is not None or error.metadata.get("attempts", "1") != "1" or waited_again


async def _answers(db: pointsman.Client) -> bool:
    try:
        return bool(await db.query_value("select 1", timeout=2) == 1)
    except pointsman.Error:
        return False

