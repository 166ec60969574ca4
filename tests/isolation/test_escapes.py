"""The corpus of escapes in every isolation mode: none succeeds, whatever PostgreSQL answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pointsman
import pytest

from tests.isolation.corpus import CORPUS, Vector
from tests.isolation.stage import Place, Stage

pytestmark = pytest.mark.pg

PAIRS = {"database": ("da", "db"), "schema": ("sa", "sb"), "rows": ("ra", "rb"), "roles": ("ta", "tb")}
_WITHOUT_SQL = {"BAD_REQUEST"}
"""Refused before anybody looks who sends it."""


async def attempt(db: pointsman.Client, vector: Vector, words: dict[str, str]) -> tuple[str, str]:
    """What became of it: "ok" or the name of the refusal, and everything that the attacker got to see."""
    texts = [_filled(text, words) for text in vector.sql]
    seen: list[Any] = []
    try:
        await _RPCS[vector.rpc](db, texts, seen)
    except pointsman.Error as error:
        fields = vars(error.pg) if hasattr(error.pg, "__dict__") else error.pg
        return error.sqlstate or error.reason, f"{seen!r} {error} {error.metadata} {fields}"
    return "ok", repr(seen)


def _filled(text: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        text = text.replace("{" + name + "}", value)
    return text


async def _query(db: pointsman.Client, texts: list[str], seen: list[Any]) -> None:
    for text in texts:
        seen.append(list(await db.query(text)))


async def _execute(db: pointsman.Client, texts: list[str], seen: list[Any]) -> None:
    for text in texts:
        seen.append(list((await db.execute(text)).rows))


async def _stream(db: pointsman.Client, texts: list[str], seen: list[Any]) -> None:
    for text in texts:
        async for row in db.stream(text):
            seen.append(row)


async def _batch(db: pointsman.Client, texts: list[str], seen: list[Any]) -> None:
    results = await db.batch([pointsman.Step(text, want_rows=True) for text in texts])
    seen.extend(list(result.rows) for result in results if result is not None)


async def _transact(db: pointsman.Client, texts: list[str], seen: list[Any]) -> None:
    async with db.transaction() as tx:
        for text in texts:
            seen.append(list((await tx.execute(text)).rows))


async def _copy_out(db: pointsman.Client, texts: list[str], seen: list[Any]) -> None:
    for text in texts:
        async for piece in db.copy_out(query=text):
            seen.append(piece)


async def _copy_in(db: pointsman.Client, texts: list[str], seen: list[Any]) -> None:
    for text in texts:
        seen.append(await db.copy_in(tuple(part.strip('"') for part in text.split(".")[-2:]), b"a\tb\t1\n"))


_RPCS = {
    "query": _query, "execute": _execute, "stream": _stream, "batch": _batch, "transact": _transact,
    "copy_out": _copy_out, "copy_in": _copy_in,
}  # fmt: skip


def words_of(attacker: Place, victim: Place) -> dict[str, str]:
    table = f"{victim.database}.{victim.table}" if victim.isolation == "database" else victim.table
    return {"v": victim.user, "db": victim.database, "table": table, "me": attacker.user}


_FACTS = """
SELECT (SELECT string_agg(v::text, ',' ORDER BY v::text) FROM {table} v),
       (SELECT string_agg(r::text, ',' ORDER BY rolname) FROM pg_authid r),
       (SELECT string_agg(m::text, ',' ORDER BY m::text) FROM pg_auth_members m),
       (SELECT string_agg(s::text, ',' ORDER BY s::text) FROM pg_db_role_setting s),
       (SELECT string_agg(datname || datdba || coalesce(datacl::text, ''), ',' ORDER BY datname) FROM pg_database),
       (SELECT string_agg(login || tenant, ',' ORDER BY 1) FROM pointsman.tenant_marker),
       (SELECT string_agg(pg_get_triggerdef(oid), ',') FROM pg_trigger WHERE NOT tgisinternal),
       (SELECT string_agg(nspname || nspowner || coalesce(nspacl::text, ''), ',' ORDER BY nspname) FROM pg_namespace
         WHERE nspname !~ '^pg_(toast_)?temp_'),
       (SELECT relrowsecurity FROM pg_class WHERE oid = 'pointsman.tenant_marker'::regclass)
"""


@contextlib.contextmanager
def watched(played: Stage, victim: Place) -> Iterator[Callable[[], str]]:
    """Tells all that must not change: its rows, everyone's logins, settings and databases, the markers, its schemas."""
    statement = _FACTS.replace("{table}", victim.table).encode()
    with played.cluster.primary().connect(victim.database) as connection:
        yield lambda: repr(connection.execute(statement).fetchone())


async def prepare(played: Stage, victim: Place) -> None:
    """Give the attacker something to find: the secret in statistics and in a statement's text."""
    with played.cluster.primary().connect(victim.database) as connection:
        connection.execute(f"ANALYZE {victim.table}".encode())
    async with played.connect(victim.name) as db:
        if victim.isolation == "registered":
            assert [row["secret"] for row in await db.query("@mine")] == [victim.secret]
        else:
            text = f"SELECT secret FROM vault WHERE secret = '{victim.secret}'"
            assert [row["secret"] for row in await db.query(text)] == [victim.secret]


def test_the_corpus_is_large_enough():
    assert len(CORPUS) >= 60
    assert len({vector.name for vector in CORPUS}) == len(CORPUS)
    assert {vector.rpc for vector in CORPUS} == set(_RPCS)


@pytest.mark.parametrize("mode", ["database", "schema"])
async def test_no_escape_succeeds_where_any_sql_may_be_sent(played: Stage, mode: str):
    attacker, victim = (played.places[name] for name in PAIRS[mode])
    await prepare(played, victim)
    failures: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        facts = stack.enter_context(watched(played, victim))
        db = await stack.enter_async_context(played.connect(attacker.name))
        before = facts()
        for vector in CORPUS:
            outcome, seen = await attempt(db, vector, words_of(attacker, victim))
            if outcome not in vector.expect.split("|"):
                failures.append(f"{vector.name}: {outcome}, expected {vector.expect}: {seen[:200]}")
            if f"canary-of-{victim.name}" in seen:
                failures.append(f"{vector.name}: the secret was seen: {seen[:300]}")
            if facts() != before:
                failures.append(f"{vector.name}: the victim is changed")
        assert (await db.query_one("SELECT current_user::text AS me"))["me"] == attacker.user
    assert not failures, "\n".join(failures)
    print(f"escapes, isolation {mode}: {len(CORPUS)} vectors, 0 succeeded")


@pytest.mark.parametrize("mode", ["rows", "roles"])
async def test_registered_tenants_send_no_sql_at_all(played: Stage, mode: str):
    attacker, victim = (played.places[name] for name in PAIRS[mode])
    await prepare(played, victim)
    failures: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        facts = stack.enter_context(watched(played, victim))
        db = await stack.enter_async_context(played.connect(attacker.name))
        before = facts()
        for vector in CORPUS:
            outcome, seen = await attempt(db, vector, words_of(attacker, victim))
            if outcome not in {"NOT_REGISTERED"} | _WITHOUT_SQL or victim.secret in seen:
                failures.append(f"{vector.name}: {outcome}: {seen[:200]}")
        assert facts() == before
        assert [row["secret"] for row in await db.query("@mine")] == [attacker.secret]
        assert [row["secret"] for row in await db.query("SELECT secret FROM vault")] == [attacker.secret]
        async with db.transaction() as tx:
            assert (await tx.query_one("@who", "n"))["owner"] == attacker.name
        (step,) = await db.batch([pointsman.Step("@bump", ["n"], want_rows=True)])
        assert [row["owner"] for row in step.rows] == [attacker.name]
        with pytest.raises(pointsman.PermissionDenied) as caught:
            await db.query("@theirs")
        assert caught.value.executed is pointsman.Executed.NO
    async with played.connect(victim.name) as db:
        assert [row["secret"] for row in await db.query("@mine")] == [victim.secret]
    assert not failures, "\n".join(failures)
    print(f"escapes, registered by {mode}: {len(CORPUS)} vectors, 0 ran")
