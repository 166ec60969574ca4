"""Secrets that are nowhere to be read: each is planted where the router has it, and everything it says is searched.

Planted: passwords of logins, tokens of callers and operators, another tenant's rows, parameters, SQL, copied data.
Searched: the log at its loudest, every error and answer, status, metrics, audit log, `config show`, `config check`,
trouble with logins, and what other processes of the machine can see.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

import pointsman
import psycopg
import pytest
from psycopg import sql

from router.devcluster import DevCluster
from tests.support.dev_cluster import TENANTS
from tests.support.running_router import ADMIN_TOKEN, Config, RunningRouter, running_router, tenant

pytestmark = pytest.mark.pg

ROW = "canary-row-of-globex-7f1c"
PARAM = "canary-parameter-51ab"
TEXT = "canary-sql-text-9d20"
COPIED = "canary-copied-c3c4"
WRONG = "canary-wrong-token-e8e1"
TOKEN = "canary-token-of-broken-b00b"
PASSWORD = "canary-wrong-password-aa02"


def planted(directory: Path) -> Callable[[Config], None]:
    """A router that tells as much as it can, and a tenant whose login is refused."""
    (directory / "password").write_text(PASSWORD)
    (directory / "token").write_text(TOKEN)

    def edit(config: Config) -> None:
        config["log"] = {"level": "debug", "format": "json"}
        config["server"]["audit"] = {"file": str(directory / "audit.jsonl"), "scope": "all"}
        login = {"user": "broken", "password": f"file:{directory}/password"}
        config["tenants"]["broken"] = tenant("broken", login=login, tokens=[f"file:{directory}/token"])

    return edit


async def everything_goes_wrong(router: RunningRouter) -> list[str]:
    """Callers' mistakes of all kinds, each with something to hide in it; what they were told."""
    told: list[str] = []

    async def note(answer: Awaitable[object]) -> None:
        try:
            told.append(repr(await answer))
        except pointsman.Error as error:
            told.append(f"{error!r} {error} {error.metadata}")

    async with router.connect("acme", timeout=3) as db:
        wrong: list[Callable[[], Awaitable[object]]] = [
            lambda: db.query(f"select '{TEXT}' from nowhere"),
            lambda: db.execute(f"select '{TEXT}' ; select 1"),
            lambda: db.query("select 1 / $1::int", 0),
            lambda: db.batch([("select $1::text", [PARAM]), "selct 1"]),
            lambda: db.query("select pg_sleep(2), $1::text", PARAM, timeout=0.1),
            lambda: db.execute("select pg_terminate_backend(pg_backend_pid()), $1::text", PARAM),
            lambda: db.copy_in("accounts", [COPIED.encode() + b"\tx\n"], columns=["id", "owner"]),
            lambda: db.query("select * from kept"),
        ]
        for ask in wrong:
            await note(ask())
    async with router.connect("globex", token=WRONG, timeout=3) as stranger:
        await note(stranger.query("select 1"))
    async with router.connect("globex", token=router.tokens["acme"], timeout=3) as foreign:
        await note(foreign.query("select * from kept"))
    async with router.connect("broken", token=TOKEN, timeout=2) as broken:
        await note(broken.query("select 1"))
    return told


async def test_no_canary_is_anywhere(pg_cluster: DevCluster) -> None:
    with psycopg.connect(pg_cluster.tenant_dsn("globex"), autocommit=True) as connection:
        connection.execute("create table if not exists kept (note text)")
        connection.execute(sql.SQL("insert into kept values ({})").format(sql.Literal(ROW)))

    with tempfile.TemporaryDirectory() as directory:
        edit = planted(Path(directory))
        async with running_router(pg_cluster, edit=edit) as router:
            said = {"answers": "\n".join(await everything_goes_wrong(router))}
            said |= await asyncio.to_thread(outputs, router)
            said["audit"] = (Path(directory) / "audit.jsonl").read_text()
            assert await router.terminate() == 0
            said["log"] = router.logged()
    secrets = {PASSWORD, WRONG, TOKEN, ROW, COPIED, ADMIN_TOKEN, pg_cluster.control_password}
    secrets |= {*router.tokens.values(), *TENANTS.values()}
    assert f":{pg_cluster.primary().port}" not in said["answers"], "callers learn where servers are"
    for place, text in said.items():
        assert text.strip(), f"{place} says nothing: the test has lost it"
        found = {secret for secret in secrets if secret in text}
        assert not found, f"{place}: {found}"
    for place in ("audit", "log", "status", "metrics"):
        assert PARAM not in said[place], place
        assert TEXT not in said[place], place


def outputs(router: RunningRouter) -> dict[str, str]:
    """What operators and other processes see."""
    said = {}
    with urllib.request.urlopen(f"http://{router.metrics}/metrics", timeout=5) as page:
        said["metrics"] = page.read().decode()
    with router.operator() as operator:
        said["status"] = "\n".join(str(cluster) for cluster in operator.clusters())
    said["command line"] = Path(f"/proc/{router.process.pid}/cmdline").read_text().replace("\0", " ")
    for command in ("show", "check"):
        run = subprocess.run(
            [sys.executable, "-m", "router", "config", command, str(router.config)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        said[f"config {command}"] = run.stdout + run.stderr
    return said
