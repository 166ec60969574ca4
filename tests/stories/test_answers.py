"""What comes back: every common type through SDK, router and PostgreSQL; rows, notices, receipts, routing."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any
from uuid import UUID

import pointsman
import psycopg
import pytest
from pointsman import Interval, Json, MultiRange, Range

from router.devcluster import DevCluster
from tests.stories.conftest import undisturbed
from tests.support.running_router import Config, RunningRouter, running_router

pytestmark = pytest.mark.pg

U = UTC
EAST = timezone(timedelta(hours=5, minutes=30))


class Colour(Enum):
    RED = "red"


TYPES: list[tuple[str, Any, Any]] = [
    # type, parameter, what comes back (... : the parameter itself)
    ("int2", -32768, ...),
    ("int4", 2**31 - 1, ...),
    ("int8", -(2**63), ...),
    ("oid", 4_000_000_000, ...),
    ("numeric", Decimal("-12345678901234567890.000100"), ...),
    ("numeric", 10**40, Decimal(10**40)),
    ("numeric", Decimal("NaN"), ...),
    ("numeric", Decimal("-Infinity"), ...),
    ("float8", 0.1 + 0.2, ...),
    ("float8", float("-inf"), ...),
    ("float8", float("nan"), ...),
    ("float8", 5e-324, ...),
    ("float4", 1.5, ...),
    ("bool", True, ...),
    ("text", "żółw \u2028 '\"\\ %s $1 {}", ...),
    ("text", "", ...),
    ("varchar(5)", "abc", ...),
    ("char(5)", "abc", "abc  "),
    ("name", "a", ...),
    ("bytea", bytes(range(256)), ...),
    ("bytea", b"", ...),
    ("uuid", UUID("00000000-0000-0000-0000-00000000000f"), ...),
    ("timestamptz", datetime(2026, 1, 2, 3, 4, 5, 678, U), ...),
    ("timestamptz", datetime(2026, 7, 1, 12, 0, 0, 0, EAST), datetime(2026, 7, 1, 6, 30, tzinfo=U)),
    ("timestamptz", datetime.max.replace(tzinfo=U), ...),
    ("timestamp", datetime(1900, 2, 28, 23, 59, 59, 999999), ...),
    ("date", date.min, ...),
    ("date", date(2024, 2, 29), ...),
    ("time", time(23, 59, 59, 999999), ...),
    ("timetz", time(1, 2, 3, tzinfo=EAST), ...),
    ("interval", timedelta(days=-3, hours=4, microseconds=7), ...),
    ("interval", Interval(14, -3, 14_706_789_000), ...),
    ("json", {"a": [1, 2.5, None, "é"], "b": {"c": True}}, ...),
    ("jsonb", Json([1, {"x": "'"}]), [1, {"x": "'"}]),
    ("jsonb", Json("text"), "text"),
    ("inet", ip_address("10.0.0.1"), ...),
    ("inet", ip_interface("2001:db8::1/64"), ...),
    ("cidr", ip_network("10.0.0.0/8"), ...),
    ("macaddr", "08:00:2b:01:02:03", ...),
    ("int4[]", [1, None, 3], ...),
    ("int8[]", [[1, 2], [3, None]], ...),
    ("int4[]", [], ...),
    ("numeric[]", [Decimal("1.50"), None], ...),
    ("text[]", [["a", 'q"x\\y{,}'], [None, "NULL"]], ...),
    ("text[]", ["", " ", "a,b", "{", "\\"], ...),
    ("bool[]", [True, False, None], ...),
    ("uuid[]", [UUID(int=1), None], ...),
    ("bytea[]", [b"\x00a", None, b""], ...),
    ("timestamptz[]", [datetime(2026, 1, 1, tzinfo=U), None], ...),
    ("jsonb[]", [{"a": 'x"y\\'}, None], ...),
    ("float8[]", [1.5, float("inf")], ...),
    ("int4range", Range(1, 10), ...),
    ("int4range", Range(empty=True), ...),
    ("numrange", Range(Decimal("1.5"), Decimal(2), "[]"), ...),
    ("daterange", Range(date(2026, 1, 1), None), ...),
    ("tstzrange", Range(datetime(2026, 1, 1, tzinfo=U), datetime(2027, 1, 1, tzinfo=U)), ...),
    ("int4multirange", MultiRange([Range(1, 2), Range(5, 7)]), ...),
    ("int4range[]", [Range(1, 2), None], ...),
    ("mood", "happy", ...),
    ("mood", Colour.RED, "red"),
    ("pair", "(7,\"a b\")", ...),
    ("bit(3)", "101", ...),
    ("point", "(1,2)", ...),
]  # fmt: skip


@pytest.fixture(scope="session")
def own_types(pg_clusters: Any) -> Any:
    """An enum and a composite in acme's database."""

    def make(cluster: DevCluster) -> None:
        with psycopg.connect(cluster.tenant_dsn("acme"), autocommit=True) as connection:
            if connection.execute("select to_regtype('mood')").fetchone() == (None,):
                connection.execute("create type mood as enum ('happy', 'red')")
                connection.execute("create type pair as (n int, t text)")

    return make


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and math.isnan(wanted):
        return isinstance(found, float) and math.isnan(found)
    if isinstance(wanted, Decimal) and wanted.is_nan():
        return isinstance(found, Decimal) and found.is_nan()
    return bool(found == wanted) and type(found) is type(wanted)


async def test_every_type_goes_in_and_comes_out(
    router_each: RunningRouter, own_types: Any, pg_clusters: Any, request: pytest.FixtureRequest
) -> None:
    major = int(request.node.callspec.id.removeprefix("pg"))
    own_types(pg_clusters(major))
    async with router_each.connect() as db:
        wrong = []
        for name, value, back in TYPES:
            wanted = value if back is ... else back
            sql = f"select $1::{name} as a, null::{name} as b, $2::{name} is null as c"
            for call in (db.query, db.execute):
                answer = await call(sql, value, None)
                row = (answer if call == db.query else answer.rows)[0]
                if not (same(row.a, wanted) and row.b is None and row.c is True):
                    wrong.append((name, value, row.a))
        assert not wrong


async def test_values_survive_a_table_a_batch_a_stream_and_a_transaction(router_each: RunningRouter) -> None:
    moment = datetime(2026, 1, 1, tzinfo=U)
    values = [7, Decimal("1.10"), "x\ty", b"\x00\xff", moment, [1, None], {"k": [1]}, None, True]
    columns = "a int, b numeric, c text, d bytea, e timestamptz, f int[], g jsonb, h text, i bool"
    places = ", ".join(f"${n}" for n in range(1, 10))
    async with router_each.connect() as db:
        await db.execute(f"create table if not exists assorted ({columns})")
        await db.execute("truncate assorted")
        insert = f"insert into assorted values ({places}) returning *"
        seen = [
            (await db.execute(insert, *values)).rows[0],
            (await db.batch([pointsman.Step(insert, values, want_rows=True)]))[0].rows[0],
        ]
        async with db.transaction() as tx:
            seen.append((await tx.execute(insert, *values)).rows[0])
        seen += [row async for row in db.stream("select * from assorted")]
        seen += await db.query("select * from assorted", read="replica")
        assert len(seen) == 9
        for row in seen:
            assert list(row) == values
        await db.execute("drop table assorted")


async def test_a_row_is_read_by_index_name_and_attribute(db: pointsman.Client) -> None:
    rows = await db.query("select 1 as id, 'Ada' as name, null as gone union all select 2, 'Bob', '' order by 1")
    assert [column.name for column in rows.columns] == ["id", "name", "gone"]
    first = rows[0]
    assert (first[0], first["name"], first.gone, len(first), first[-1]) == (1, "Ada", None, 3, None)
    assert first._asdict() == {"id": 1, "name": "Ada", "gone": None}
    assert tuple(rows[1]) == (2, "Bob", "")
    assert (rows.rowcount, await db.query_one("select 1 where false")) == (2, None)
    with pytest.raises(pointsman.NoSingleRow):
        await db.query_value("select generate_series(1, 2)")
    assert list(await db.query("select from generate_series(1, 3)")) == [(), (), ()]
    assert list(await db.query("select id from accounts where false")) == []


async def test_counts_tags_and_notices(db: pointsman.Client) -> None:
    await db.execute("delete from marks where id < 100")
    done = await db.execute("insert into marks select i, 'n' from generate_series(1, 5) i")
    assert (done.rowcount, done.command_tag, list(done.rows)) == (5, "INSERT 0 5", [])
    done = await db.execute("update marks set note = 'm' where id <= $1 returning id", 3)
    assert (done.rowcount, sorted(row.id for row in done.rows)) == (3, [1, 2, 3])
    assert (await db.execute("delete from marks where id < 100")).rowcount == 5
    said = await db.execute("do $$ begin raise warning 'mind the %', 'gap'; raise notice 'twice'; end $$")
    assert [(one.severity, one.sqlstate, one.message) for one in said.notices] == [
        ("WARNING", "01000", "mind the gap"),
        ("NOTICE", "00000", "twice"),
    ]
    assert (await db.execute("drop table if exists no_such_table")).notices[0].sqlstate == "00000"
    assert (await db.query("select 1")).notices == ()


async def test_every_answer_has_a_receipt(
    db: pointsman.Client, eventual_db: pointsman.Client, pg_cluster: DevCluster
) -> None:
    primary = pg_cluster.primary().name
    read = (await db.query("select pg_sleep(0.05)", read="replica", request_id="a-name-of-my-own")).receipt
    assert (read.endpoint in {"n2", "n3"}, read.role, read.request_id) == (True, "replica", "a-name-of-my-own")
    assert read.attempts == 1
    assert 45_000 < read.executed_us < 500_000
    assert read.queued_us < 500_000
    assert read.held_us == 0
    assert read.topology >= 1
    wrote = (await db.execute("update accounts set score = 1 where id = 4")).receipt
    assert (wrote.endpoint, wrote.role, wrote.attempts, wrote.replayed) == (primary, "primary", 1, False)
    assert wrote.executed_us > 0
    batch = (await db.batch(["select 1", "select 2"])).receipt
    assert (batch.endpoint, batch.role) == (primary, "primary")
    stream = eventual_db.stream("select generate_series(1, 3)", read="replica")
    assert len([row async for row in stream]) == 3
    assert stream.receipt is not None
    assert stream.receipt.role == "replica"
    assert stream.rowcount == 3


async def test_where_reads_run(eventual_db: pointsman.Client, pg_cluster: DevCluster) -> None:
    async def served(count: int = 40, **options: Any) -> Counter[str]:
        answers = await asyncio.gather(*(eventual_db.query("select 1", **options) for _ in range(count)))
        return Counter(answer.receipt.endpoint for answer in answers)

    primary = pg_cluster.primary().name
    assert set(await served()) == {primary}
    assert set(await served(read="primary")) == {primary}
    assert set(await served(read="replica")) == {"n1", "n2", "n3"} - {primary}
    everywhere = await served(60, read="any")
    assert set(everywhere) == {"n1", "n2", "n3"}
    assert min(everywhere.values()) >= 12, everywhere
    assert primary not in await served(read="replica", max_staleness=30)


async def test_reads_that_follow_writes_use_every_replica(db: pointsman.Client, pg_cluster: DevCluster) -> None:
    replicas = {"n1", "n2", "n3"} - {pg_cluster.primary().name}
    served: Counter[str] = Counter()
    for _ in range(40):
        assert (await db.execute("update accounts set score = score + 1 where id = 3")).rowcount == 1
        served[(await db.query("select 1", read="replica")).receipt.endpoint] += 1
    assert min(served[name] for name in replicas) >= 5, served


async def test_weights_are_respected(pg_cluster: DevCluster) -> None:
    def weigh(config: Config) -> None:
        endpoints = config["clusters"]["main"]["endpoints"]
        for name, weight in (("n1", 0), ("n2", 100), ("n3", 300)):
            endpoints[name]["weight"] = weight
        config["tenants"]["globex"]["weights"] = {"n1": 100, "n2": 0, "n3": 100}

    async with running_router(pg_cluster, edit=weigh) as router:
        shares = {}
        for tenant in ("acme", "globex"):
            async with router.connect(tenant, consistency="eventual") as db:
                answers = [await db.query("select 1", read="any") for _ in range(80)]
                shares[tenant] = Counter(answer.receipt.endpoint for answer in answers)
        assert set(shares["acme"]) == {"n2", "n3"}, shares
        assert 14 <= shares["acme"]["n2"] <= 26, shares
        assert set(shares["globex"]) == {"n1", "n3"}, shares
        assert 32 <= shares["globex"]["n1"] <= 48, shares


async def test_many_callers_of_one_client_share_its_stream(router: RunningRouter, db: pointsman.Client) -> None:
    async with undisturbed(router):
        async def one(number: int) -> int:
            if number % 3 == 0:
                (result,) = await db.batch([pointsman.Step("select $1::int", [number], want_rows=True)])
                return int(result.rows[0][0])
            if number % 3 == 1:
                return int((await db.execute("select $1::int", number)).rows[0][0])
            return int(await db.query_value("select $1::int", number, read="any"))

        assert await asyncio.gather(*(one(number) for number in range(600))) == list(range(600))


def test_the_synchronous_client_does_the_same(router: RunningRouter) -> None:
    import pointsman.sync

    with pointsman.sync.connect(router.address, tenant="acme", token=router.tokens["acme"]) as db:
        assert db.query_value("select $1::numeric + 1", Decimal("1.5")) == Decimal("2.5")
        with db.transaction() as tx:
            tx.execute("insert into marks values (80, 'sync')")
            assert tx.query_value("select note from marks where id = 80") == "sync"
            tx.rollback()
        assert [row[0] for row in db.stream("select generate_series(1, 3)")] == [1, 2, 3]
        with pytest.raises(pointsman.SqlSyntaxError):
            db.query("selct")
