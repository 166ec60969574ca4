"""Passwords of logins change under load, and logins fail by the dozen: nobody else notices."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

import pointsman
import pytest
from psycopg import sql

from router.devcluster import DevCluster
from tests.stories.conftest import undisturbed
from tests.support.dev_cluster import TENANTS
from tests.support.eventually import ask
from tests.support.running_router import Config, RunningRouter, running_router, tenant

pytestmark = pytest.mark.pg

ROTATIONS = int(os.environ.get("ROTATIONS", "4"))
"""Twenty, to believe it."""
STORM_S = 1.0
_LOGINS = ("rotating_a", "rotating_b")


def make_logins(cluster: DevCluster) -> None:
    """Two logins that may do what acme may, as they are given out in turn."""
    with cluster.primary().connect("acme") as connection:
        for name in _LOGINS:
            connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))
            connection.execute(sql.SQL("create role {} login in role acme").format(sql.Identifier(name)))
            connection.execute("insert into pointsman.tenant_marker values (%s, 'acme') on conflict do nothing", [name])


def set_password(cluster: DevCluster, login: str, password: str) -> None:
    with cluster.primary().connect("postgres") as connection:
        words = sql.SQL("alter role {} password {}").format(sql.Identifier(login), sql.Literal(password))
        connection.execute(words)


def drop_logins(cluster: DevCluster) -> None:
    with cluster.primary().connect("acme") as connection:
        connection.execute("delete from pointsman.tenant_marker where login = any(%s)", [list(_LOGINS)])
        for name in _LOGINS:
            connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))


async def test_rotations_of_a_login_fail_no_request(pg_cluster: DevCluster) -> None:
    await asyncio.to_thread(make_logins, pg_cluster)
    await asyncio.to_thread(set_password, pg_cluster, _LOGINS[0], TENANTS["acme"])

    def edit(config: Config) -> None:
        config["tenants"]["acme"]["login"] = {"user": _LOGINS[0], "password": "file:acme.password"}

    calls, failed, stopping = 0, [], False

    async def load(db: pointsman.Client) -> None:
        nonlocal calls
        while not stopping:
            try:
                await db.query("select count(*) from accounts", timeout=5)
                await db.execute("update accounts set score = score where id = 3", timeout=5)
            except pointsman.Error as error:
                failed.append(str(error))
            calls += 2

    try:
        async with running_router(pg_cluster, edit=edit) as router, router.connect("acme") as db:
            running = [asyncio.create_task(load(db)) for _ in range(6)]
            for number in range(1, ROTATIONS + 1):
                await rotate(router, pg_cluster, number)
            stopping = True
            await asyncio.gather(*running)
            last = _LOGINS[ROTATIONS % 2]
            others = "select count(*) from pg_stat_activity where usename = any(%s)"
            await asyncio.sleep(0.3)
            assert await asyncio.to_thread(ask, pg_cluster, others, [n for n in _LOGINS if n != last]) == 0
    finally:
        await asyncio.to_thread(drop_logins, pg_cluster)
    assert not failed, f"{len(failed)} of {calls}: {failed[:3]}"
    assert calls > 5 * ROTATIONS


async def rotate(router: RunningRouter, cluster: DevCluster, number: int) -> None:
    """The other login gets a new password, the router is told, and the former one's is worth nothing any more."""
    login, password = _LOGINS[number % 2], f"round-{number}"
    await asyncio.to_thread(set_password, cluster, login, password)
    (router.config.parent / "acme.password").write_text(password)
    router.edit_config(lambda config: config["tenants"]["acme"]["login"].update(user=login))
    answer = await router.operate("ReloadConfig")
    assert answer.applied, answer.problems
    await asyncio.sleep(0.05)
    await asyncio.to_thread(set_password, cluster, _LOGINS[1 - number % 2], f"gone-{number}")


async def test_a_storm_of_failing_logins_is_one_tenants_trouble(pg_cluster: DevCluster) -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "wrong").write_text("not the password")
        (Path(directory) / "token").write_text("token-of-locked-in-tests")

        def edit(config: Config) -> None:
            login = {"user": "acme", "password": f"file:{directory}/wrong"}
            del config["tenants"]["acme"]
            locked = tenant("acme", login=login, tokens=[f"file:{directory}/token"])
            config["tenants"]["locked"] = locked

        async with running_router(pg_cluster, edit=edit) as router:
            told: list[pointsman.Error] = []
            ends = time.monotonic() + STORM_S

            async def knock(db: pointsman.Client) -> None:
                while time.monotonic() < ends:
                    with pytest.raises(pointsman.Error) as caught:
                        await db.execute("select 1", timeout=1)
                    told.append(caught.value)

            async with undisturbed(router) as neighbour, router.connect(
                "locked", token="token-of-locked-in-tests"
            ) as db:
                await asyncio.gather(*(knock(db) for _ in range(20)))
            assert neighbour.calls > 10
            assert {error.executed for error in told} == {pointsman.Executed.NO}
            assert {error.reason for error in told} <= {"BACKEND_CONFIG", "POOL_TIMEOUT", "DEADLINE", "NO_BACKEND"}
            assert not any("acme" in str(error) or "password" in str(error) for error in told)
            assert router.process.poll() is None

