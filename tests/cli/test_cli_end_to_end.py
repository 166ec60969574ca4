"""The command against a real router on real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import psycopg
import pytest

from router.devcluster import DevCluster
from tests.cli.conftest import Command, Ended
from tests.cli.test_interrupts import ended, started
from tests.support.eventually import eventually
from tests.support.running_router import ADMIN_TOKEN, Config, endpoint, running_router

pytestmark = pytest.mark.pg


async def test_a_users_first_minutes(command: Command, pg_cluster: DevCluster, tmp_path: Path):
    async with running_router(pg_cluster) as router:
        caller = ("--address", router.address, "--tenant", "acme", "--token", router.tokens["acme"])
        operator = ("--address", router.admin, "--token", ADMIN_TOKEN)

        async def run(*arguments: str) -> Ended:
            return await asyncio.to_thread(command, *arguments)

        assert (await run("health", "--address", router.address)).out == "serving\n"
        told = await run("sql", "select 1 as one, null as nothing", *caller)
        assert (told.code, told.err) == (0, "")
        assert "│   1 │ ∅       │" in told.out
        assert "(primary)" in told.out.splitlines()[-1]

        async def replica_reads() -> bool:
            replica = await run("sql", "select pg_is_in_recovery()", "--read", "replica", "--json", *caller)
            return bool(json.loads(replica.out) == [{"pg_is_in_recovery": True}])

        await eventually(replica_reads, within_s=5, what="a replica is known to be up")

        written = "create table cli_demo (n int); insert into cli_demo values (1), (2); drop table cli_demo"
        tags = [line.split(" · ")[0] for line in (await run("sql", written, *caller)).out.splitlines()]
        assert tags == ["CREATE TABLE", "INSERT 0 2", "DROP TABLE"]
        undone = "begin; create table cli_demo (n int); rollback; select to_regclass('cli_demo') is null as gone"
        assert json.loads((await run("sql", undone, "--json", *caller)).out) == [{"gone": True}]

        big = await run("sql", "select n, repeat('x', 200) as x from generate_series(1, 20000) n", "--csv", *caller)
        assert len(big.out.splitlines()) == 20001, "what does not fit one answer is streamed"

        file = str(tmp_path / "n.csv")
        query = "select n, 'x' || n from generate_series(1, 1000) n"
        copied = await run("copy", "out", file, "--query", query, *caller)
        assert (copied.code, copied.out.split(" · ")[0]) == (0, "COPY 1000")
        await run("sql", "create table cli_copy (n int primary key, x text)", *caller)
        copied = await run("copy", "in", "public.cli_copy", file, "--json", *caller)
        assert json.loads(copied.out)["rows"] == 1000
        twice = await run("copy", "in", "cli_copy", file, *caller)
        assert (twice.code, "CONTEXT: COPY cli_copy, line 1" in twice.err) == (1, True)
        await run("sql", "drop table cli_copy", *caller)

        wrong = await run("sql", "select nowhere", *caller)
        assert wrong.code == 1
        assert wrong.err.splitlines() == [
            'pointsman: column "nowhere" does not exist (42703)', "LINE 1: select nowhere", "               ^",
        ]  # fmt: skip
        failed = await run("sql", "begin; select nowhere; commit", *caller)
        assert (failed.code, "nowhere" in failed.err) == (1, True)
        values = "select array['a', null, 'b c'] as a, '[1, null]'::jsonb as j, interval '1 mon 2 days 03:00' as i"
        told = (await run("sql", values, "--csv", *caller)).out
        assert told == 'a,j,i\n"{a,NULL,""b c""}","[1, null]",1 mon 2 days 03:00:00\n'
        described = await run("sql", "\\d pg_class", *caller)
        assert (described.code, "relname" in described.out) == (0, True)
        assert (await run("sql", "\\d nowhere", *caller)).code == 1

        status = json.loads((await run("status", "--json", *operator)).out)
        assert [cluster["phase"] for cluster in status["clusters"]] == ["steady"]
        assert sorted(end["role"] for end in status["clusters"][0]["endpoints"]) == ["primary", "replica", "replica"]
        (acme,) = (tenant for tenant in status["tenants"] if tenant["name"] == "acme")
        assert acme["served"] >= 5
        assert acme["in_flight"] == 0
        assert "steady" in (await run("status", *operator)).out
        assert (await run("drain", "nowhere", *operator)).code == 1


async def test_a_write_with_a_key_can_be_asked_for_and_the_routers_tables_are_no_tables_of_the_user(
    command: Command, pg_cluster: DevCluster
):
    async with running_router(pg_cluster) as router:
        caller = ("--address", router.address, "--tenant", "acme", "--token", router.tokens["acme"])

        async def run(*arguments: str) -> Ended:
            return await asyncio.to_thread(command, *arguments, *caller)

        assert (await run("sql", "create table cli_keyed (n int)", "--idempotency-key", "cli-1")).code == 0
        assert (await run("sql", "create table cli_keyed (n int)", "--idempotency-key", "cli-1")).code == 0
        assert (await run("outcome", "cli-1")).out.startswith("committed")
        told = (await run("sql", "\\dt", "--csv")).out.splitlines()
        assert any("cli_keyed" in line for line in told)
        assert not any(line.startswith("pointsman,") for line in told)
        await run("sql", "drop table cli_keyed")


async def test_a_write_ends_in_postgresql_by_ctrl_c(pg_cluster: DevCluster):
    async with running_router(pg_cluster) as router:
        given = ("--address", router.address, "--tenant", "acme", "--token", router.tokens["acme"])
        process = await started("sql", "create table cli_slow as select 1 as n from pg_sleep(60)", *given)

        async def runs() -> bool:
            with psycopg.connect(pg_cluster.tenant_dsn("acme"), autocommit=True) as look:
                found = look.execute("select 1 from pg_stat_activity where state = 'active' and query ~ 'cli_[s]low'")
                return found.fetchone() is not None

        await eventually(runs, within_s=10, what="the write runs")
        process.send_signal(signal.SIGINT)
        code, _, err = await ended(process)
        assert (code, err) == (130, "pointsman: interrupted: it was rolled back (executed: rolled_back)\n")
        assert not await runs()


async def test_the_doctor_names_a_server_that_it_could_not_examine(command: Command, pg_cluster: DevCluster):
    """That nothing was found on it would be no good news."""

    def beside_a_dead_one(config: Config) -> None:
        config["clusters"]["main"]["endpoints"]["dead"] = endpoint(1)

    async with running_router(pg_cluster, edit=beside_a_dead_one) as router:
        operator = ("--address", router.admin, "--token", ADMIN_TOKEN)
        unseen: list[dict[str, str]] = []

        async def only_one_is_unseen() -> bool:
            told = await asyncio.to_thread(command, "doctor", "--json", *operator)
            assert told.code == 1
            unseen[:] = [one for one in json.loads(told.out) if one["check"] == "not_examined"]
            return len(unseen) == 1

        await eventually(only_one_is_unseen, within_s=10, what="the living servers are examined")
        assert unseen[0]["endpoint"] == "dead"
        assert "refused" in unseen[0]["message"]
