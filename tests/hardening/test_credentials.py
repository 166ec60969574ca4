"""Passwords of logins change under load, some to wrong ones, and logins fail by the dozen: nobody else notices."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pointsman
import pytest
from psycopg import sql

from router.decisions.login_breaker import OPENS_AFTER
from router.devcluster import DevCluster
from tests.stories.conftest import Neighbour, undisturbed
from tests.support.dev_cluster import TENANTS
from tests.support.eventually import ask, eventually
from tests.support.running_router import Config, RunningRouter, running_router, tenant

pytestmark = pytest.mark.pg

ROTATIONS = int(os.environ.get("ROTATIONS", "4"))
"""Twenty, to believe it."""
STORM_S = 1.0
ENOUGH = 10
"""Calls of the neighbour; on a busy machine they take a while."""
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


class Load:
    """Six callers of acme who read and write until the end of the block."""

    def __init__(self, db: pointsman.Client) -> None:
        self.calls = 0
        self.failed: list[str] = []
        self._db = db
        self._stopping = False

    async def __aenter__(self) -> Load:
        self._running = [asyncio.create_task(self._run()) for _ in range(6)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._running)

    async def _run(self) -> None:
        while not self._stopping:
            try:
                await self._db.query("select count(*) from accounts", timeout=5)
                await self._db.execute("update accounts set score = score where id = 3", timeout=5)
            except pointsman.Error as error:
                self.failed.append(str(error))
            self.calls += 2
            await asyncio.sleep(0.005)

    def check(self) -> None:
        """Not one has failed."""
        assert not self.failed, f"{len(self.failed)} of {self.calls}: {self.failed[:3]}"
        assert self.calls > 0


async def test_rotations_of_a_login_fail_no_request(pg_cluster: DevCluster) -> None:
    await asyncio.to_thread(make_logins, pg_cluster)
    await asyncio.to_thread(set_password, pg_cluster, _LOGINS[0], TENANTS["acme"])

    def edit(config: Config) -> None:
        config["tenants"]["acme"]["login"] = {"user": _LOGINS[0], "password": "file:acme.password"}

    try:
        async with running_router(pg_cluster, edit=edit) as router, router.connect("acme") as db:
            async with Load(db) as load:
                for number in range(1, ROTATIONS + 1):
                    await rotate(router, pg_cluster, number)
            last = _LOGINS[ROTATIONS % 2]
            others = "select count(*) from pg_stat_activity where usename = any(%s)"
            gone = [name for name in _LOGINS if name != last]
            await until(lambda: ask(pg_cluster, others, gone) == 0, "no connections of the former login")
    finally:
        await asyncio.to_thread(drop_logins, pg_cluster)
    load.check()


@pytest.fixture
def rotating_logins(pg_cluster: DevCluster) -> Iterator[DevCluster]:
    """The cluster, with both logins as the passwords of round 0 have them."""
    make_logins(pg_cluster)
    set_password(pg_cluster, _LOGINS[0], "round-0")
    yield pg_cluster
    drop_logins(pg_cluster)


async def test_tokens_that_a_command_prints_are_renewed_under_load(rotating_logins: DevCluster) -> None:
    """Each token is worth nothing once the next one is out, as new connections find out: the command is asked again."""
    with tempfile.TemporaryDirectory() as directory:
        token, runs, held = (Path(directory) / name for name in ("token", "runs", "held"))
        token.write_text("round-0")

        def edit(config: Config) -> None:
            waits = f"while [ -e {held} ]; do sleep 0.02; done"
            config["tenants"]["acme"]["login"] = {
                "user": _LOGINS[0],
                "password": f"command:/bin/sh -c '{waits}; cat {token}; echo >> {runs}'",
                "command_ttl_s": 600,
            }
            config["tenants"]["acme"]["pool"] = {"lifetime_s": 1}

        async with running_router(rotating_logins, edit=edit) as router, router.connect("acme") as db:
            assert not runs.exists(), "a command is not run before its first connection"
            async with Load(db) as load:
                await until(runs.exists, "the first run")
                for number in range(1, ROTATIONS + 1):
                    before = runs.stat().st_size
                    held.touch()  # real tokens overlap; of two passwords, a role believes one only
                    await asyncio.to_thread(set_password, rotating_logins, _LOGINS[0], f"round-{number}")
                    since = await asyncio.to_thread(ask, rotating_logins, "select clock_timestamp()")
                    token.with_suffix(".new").write_text(f"round-{number}")
                    token.with_suffix(".new").replace(token)
                    held.unlink()
                    await until(partial(has_grown, runs, before), "a run for a new token")
                    await until(partial(is_believed, rotating_logins, since), "a connection by it")
            assert router.scrape()['pointsman_password_commands_total{result="failed"}'] == 0
            logged = router.logged()
        load.check()
        assert runs.read_text().count("\n") <= 4 * (ROTATIONS + 1), "not one run for each connection"
        assert "round-" not in logged


async def test_a_wrong_new_password_keeps_the_old_one_and_alarms(rotating_logins: DevCluster) -> None:
    def edit(config: Config) -> None:
        config["tenants"]["acme"]["login"] = {"user": _LOGINS[0], "password": "file:acme.password"}
        audited(config)

    cluster = rotating_logins
    await asyncio.to_thread(set_password, cluster, _LOGINS[0], TENANTS["acme"])
    async with running_router(cluster, edit=edit) as router, router.connect("acme") as db:
        async with Load(db) as load:
            await asyncio.sleep(0.2)
            (router.config.parent / "acme.password").write_text("canary-of-a-mistake")
            assert (await router.operate("ReloadConfig")).applied
            found = await finding(router, "login of tenant acme")
            assert "the new one is refused, the former one goes on" in found.message
            assert router.scrape()[trouble_of("acme", found.endpoint)] > 0
            # Connections that are opened now have the old one: no other is believed.
            await asyncio.gather(*(db.execute("select pg_sleep(0.2)", timeout=5) for _ in range(4)))
            # ALTER ROLE comes after the configuration: at once the old one is wrong, and the new one right.
            await asyncio.to_thread(set_password, cluster, _LOGINS[0], "canary-of-a-mistake")
            await until_settled(router)
        assert trouble_of("acme", found.endpoint) not in router.scrape()
        logged = router.logged()
        told = await alarms(router)
    load.check()
    of_one = [one for one in told if one["about"] == f"main/{found.endpoint}"]
    assert [(one["what"], one["who"], one["tenant"], one["outcome"]) for one in of_one] == [
        ("credential.login", "router", "acme", "trouble"),
        ("credential.login", "router", "acme", "mended"),
    ]
    assert "password authentication failed" in of_one[0]["why"]
    assert of_one[1]["took_s"] > 0
    assert "canary-of-a-mistake" not in str(told)
    assert "new login refused, the former one goes on" in logged
    assert "new login in use" in logged
    assert "canary-of-a-mistake" not in logged


async def test_a_wrong_new_password_of_the_routers_own_login_costs_no_endpoint(pg_cluster: DevCluster) -> None:
    async with running_router(pg_cluster, edit=audited) as router, router.connect("acme") as db:
        password = router.config.parent / "control.password"
        before = password.read_text()
        try:
            async with Load(db) as load:
                password.write_text("canary-of-a-mistake")
                assert (await router.operate("ReloadConfig")).applied
                assert "the new one is refused" in (await finding(router, "the router's own login")).message
                await asyncio.to_thread(set_password, pg_cluster, "pointsman_control", "canary-of-a-mistake")
                await until_settled(router)
        finally:
            await asyncio.to_thread(set_password, pg_cluster, "pointsman_control", before)
        # A machine that is busy otherwise makes probes late: that is no login's doing.
        logged = router.logged().partition("configuration applied")[2]
        assert not re.search(r'"endpoint health changed".*"reason": "(login_refused|probe_failed)"', logged)
        told = await alarms(router)
        assert {one["what"] for one in told} == {"credential.control_login"}
        assert sorted(one["outcome"] for one in told if one["about"] == told[0]["about"]) == ["mended", "trouble"]
    load.check()


def audited(config: Config) -> None:
    config["server"]["audit"] = {"file": "audit.jsonl", "scope": "orders"}


async def alarms(router: RunningRouter) -> list[dict[str, Any]]:
    """What the router has told of itself in the audit log, each of them by now ended."""
    file = router.config.parent / "audit.jsonl"

    def read() -> list[dict[str, Any]]:
        return [one for one in map(json.loads, file.read_text().splitlines()) if one.get("who") == "router"]

    def ended() -> bool:
        outcomes = [one["outcome"] for one in read()]
        return outcomes.count("trouble") * 2 == len(outcomes) > 0

    await until(ended, "the end of each alarm")
    return read()


def is_believed(cluster: DevCluster, since: object) -> bool:
    """Whether there are connections of the login that are younger: it is no token's fate to be never used."""
    younger = "select count(*) from pg_stat_activity where usename = %s and backend_start > %s"
    return ask(cluster, younger, _LOGINS[0], since) > 0


def has_grown(file: Path, before: int) -> bool:
    return file.stat().st_size > before


def trouble_of(tenant: str, endpoint: str) -> str:
    labels = f'cluster="main",endpoint="{endpoint}",tenant="{tenant}"'
    return f"pointsman_credential_trouble_seconds{{{labels}}}"


async def finding(router: RunningRouter, words: str) -> Any:
    """What the doctor finds about a login, once it has."""
    found: list[Any] = []

    def look() -> bool:
        with router.operator() as operator:
            found[:] = [one for cluster in operator.clusters() for one in cluster.findings]
        found[:] = [one for one in found if one.check == "credential" and words in one.message]
        return bool(found)

    await until(look, f"a finding: {words}")
    return found[0]


async def until_settled(router: RunningRouter) -> None:
    def settled() -> bool:
        with router.operator() as operator:
            return not any(one.check == "credential" for cluster in operator.clusters() for one in cluster.findings)

    await until(settled, "no finding about logins")


async def until(condition: Callable[[], bool], what: str) -> None:
    """Asked in a thread: callers go on meanwhile."""
    await eventually(lambda: asyncio.to_thread(condition), within_s=40, what=what, pause_s=0.05)


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
            began = time.monotonic()

            async def knock(db: pointsman.Client, neighbour: Neighbour) -> None:
                while time.monotonic() < began + STORM_S or neighbour.calls <= ENOUGH:
                    with pytest.raises(pointsman.Error) as caught:
                        await db.execute("select 1", timeout=1)
                    told.append(caught.value)

            async with undisturbed(router) as neighbour, router.connect(
                "locked", token="token-of-locked-in-tests"
            ) as db:
                await asyncio.gather(*(knock(db, neighbour) for _ in range(20)))
            took_s = time.monotonic() - began
            logins = sum(count for name, count in router.scrape().items() if "connect_failures_total" in name)
            # Three open the breaker, at each endpoint; then after 1 s, 2 s, 4 s and so on, of each endpoint's own.
            assert 1 <= logins <= 3 * (OPENS_AFTER + 1 + math.log2(1 + took_s)) < len(told)
            assert {error.executed for error in told} == {pointsman.Executed.NO}
            assert {error.reason for error in told} <= {"BACKEND_CONFIG", "POOL_TIMEOUT", "DEADLINE", "NO_BACKEND"}
            assert not any("acme" in str(error) or "password" in str(error) for error in told)
            assert router.process.poll() is None

