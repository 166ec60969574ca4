"""The surgeon on real servers, with the rights of the control role only."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg
import pytest

from router.devcluster import DevCluster
from router.model.identity import lsn_from_text
from router.model.observation import AttemptFailed, FaultKind
from router.model.topology import Cluster
from router.postgres.surgeon import PostgresSurgeon
from tests.postgres.control_cluster import configured, endpoint
from tests.support.dev_cluster import MakeCluster, make_cluster, on_every_major

__all__ = ["make_cluster"]
pytestmark = [pytest.mark.pg, pytest.mark.chaos]


@asynccontextmanager
async def surgeon(cluster: Cluster, owner: str = "tests") -> AsyncIterator[PostgresSurgeon]:
    made = PostgresSurgeon(cluster, owner)
    try:
        yield made
    finally:
        await made.close()


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


def asked(dev: DevCluster, name: str, query: str) -> object:
    with dev.servers[name].connect() as connection:
        row = connection.execute(query).fetchone()  # type: ignore[arg-type]
        assert row is not None
        return row[0]


def order(dev: DevCluster, name: str, statement: str) -> None:
    """Run one statement, and reload."""
    with dev.servers[name].connect() as connection:
        connection.execute(statement)  # type: ignore[arg-type]
        connection.execute("SELECT pg_reload_conf()")


async def within(seconds: float, condition: Callable[[], object]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.02)


@on_every_major
async def test_kill_fence_promote_repoint_verify(make_cluster: MakeCluster, pg_major: int):
    dev = make_cluster(major=pg_major, tenants=False)
    cluster = configured(dev)
    n2, n3 = endpoint(cluster, "n2"), endpoint(cluster, "n3")
    with dev.servers["n1"].connect() as connection:
        connection.execute("CREATE TABLE ledger (id integer)")
        connection.execute("INSERT INTO ledger VALUES (1)")
    dev.servers["n1"].kill()
    async with surgeon(cluster) as hands:
        fenced = [await hands.fence(standby, soon()) for standby in (n2, n3)]
        for result in fenced:
            assert result.claim is not None
            assert (result.claim.fenced, result.claim.receiver_alive, result.claim.timeline) == (True, False, 1)
            assert result.claim.received_lsn > 0
        await hands.set_synchronous(n2, "ANY 1 (n1, n3)", soon())
        promoted = await hands.promote(n2, soon())
        assert promoted.claim is not None
        assert (promoted.claim.in_recovery, promoted.claim.timeline) == (False, 2)
        assert promoted.claim.sync_names == "ANY 1 (n1, n3)"
        with pytest.raises(AttemptFailed) as unconfirmed:
            await hands.verify_write(n2, soon(0.3))
        assert unconfirmed.value.fault.kind is FaultKind.SILENT
        await hands.repoint(n3, n2, soon())
        await hands.verify_write(n2, soon())
    assert asked(dev, "n2", "SELECT count(*) FROM ledger") == 1
    with dev.servers["n2"].connect() as connection:
        connection.execute("INSERT INTO ledger VALUES (2)")
    await within(2, lambda: asked(dev, "n3", "SELECT count(*) FROM ledger") == 2)


async def test_a_new_primary_is_not_followed_until_its_checkpointer_has_read_who_confirms(make_cluster: MakeCluster):
    """In the middle of a checkpoint it may not for a while: sessions see the setting, and commits do not wait."""
    dev = make_cluster(tenants=False)
    cluster = configured(dev)
    n2, n3 = endpoint(cluster, "n2"), endpoint(cluster, "n3")
    order(dev, "n2", "ALTER SYSTEM SET synchronous_standby_names = ''")
    await asyncio.sleep(0.5)
    checkpointer = asked(dev, "n2", "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    assert isinstance(checkpointer, int)
    dev.servers["n1"].kill()
    async with surgeon(cluster) as hands:
        for standby in (n2, n3):
            await hands.fence(standby, soon())
        os.kill(checkpointer, signal.SIGSTOP)
        try:
            await hands.set_synchronous(n2, "ANY 1 (n1, n3)", soon())
            await hands.promote(n2, soon())
            await hands.verify_write(n2, soon())  # it comes through, and nobody has it
            assert not await hands.commits_wait(n2, soon(0.8))
            waiting = asyncio.create_task(hands.commits_wait(n2, soon(10.0)))
            await asyncio.sleep(0.3)
            assert not waiting.done()
        finally:
            os.kill(checkpointer, signal.SIGCONT)
        assert await waiting
        with pytest.raises(AttemptFailed):
            await hands.verify_write(n2, soon(0.3))
        await hands.repoint(n3, n2, soon())
        await hands.verify_write(n2, soon())
        assert await hands.commits_wait(n2, soon()), "who follows already confirms"


async def test_a_fenced_quorum_confirms_nothing_more(make_cluster: MakeCluster):
    dev = make_cluster(tenants=False)
    cluster = configured(dev)
    async with surgeon(cluster) as hands:
        for name in ("n2", "n3"):
            await hands.fence(endpoint(cluster, name), soon())
            await hands.fence(endpoint(cluster, name), soon())  # twice is as good as once
        with pytest.raises(AttemptFailed) as silent:
            await hands.verify_write(endpoint(cluster, "n1"), soon(0.5))
        assert silent.value.fault.kind is FaultKind.SILENT
        for name in ("n2", "n3"):
            await hands.repoint(endpoint(cluster, name), endpoint(cluster, "n1"), soon())
        await hands.verify_write(endpoint(cluster, "n1"), soon())
    assert "n2" in str(asked(dev, "n2", "SHOW primary_conninfo")), "the application name is kept"


async def test_of_two_routers_only_the_one_whose_fence_stands_promotes(make_cluster: MakeCluster):
    dev = make_cluster(tenants=False)
    cluster = configured(dev)
    n2, n3 = endpoint(cluster, "n2"), endpoint(cluster, "n3")
    async with surgeon(cluster, "first") as first, surgeon(cluster, "second") as second:
        with pytest.raises(AttemptFailed, match="no standby with our fence"):
            await first.promote(n2, soon())  # not fenced at all
        await first.fence(n2, soon())
        assert await first.still_fenced(n2, soon())
        await second.fence(n2, soon())
        assert not await first.still_fenced(n2, soon())
        with pytest.raises(AttemptFailed, match="no standby with our fence"):
            await first.promote(n2, soon())
        assert asked(dev, "n2", "SELECT pg_is_in_recovery()")
        await second.fence(n3, soon())
        with pytest.raises(AttemptFailed, match="another router's fence stands on it"):
            await first.repoint(n3, endpoint(cluster, "n1"), soon(), others_too=False)
        async with surgeon(cluster, "second/again") as restarted:
            await restarted.repoint(n3, endpoint(cluster, "n1"), soon(), others_too=False)
        await second.fence(n3, soon())
        dev.servers["n1"].kill()
        await second.promote(n2, soon())
        assert not await second.still_fenced(n2, soon())
        with pytest.raises(AttemptFailed, match="no standby with our fence"):
            await first.promote(n3, soon())
        assert asked(dev, "n3", "SELECT pg_is_in_recovery()")


async def test_a_fence_outlives_a_restart_and_the_login_is_still_known(make_cluster: MakeCluster):
    dev = make_cluster(tenants=False)
    cluster = configured(dev)
    async with surgeon(cluster) as hands:
        await hands.fence(endpoint(cluster, "n2"), soon())
    dev.servers["n2"].stop()
    dev.servers["n2"].start()
    await asyncio.sleep(0.3)
    assert asked(dev, "n2", "SELECT count(*) FROM pg_stat_wal_receiver") == 0
    async with surgeon(cluster) as hands:
        await hands.repoint(endpoint(cluster, "n2"), endpoint(cluster, "n1"), soon())
    assert asked(dev, "n2", "SELECT status FROM pg_stat_wal_receiver") == "streaming"


@on_every_major
async def test_a_standby_that_was_started_lately_is_fenced_once_it_knows_what_it_has(
    make_cluster: MakeCluster, pg_major: int
):
    dev = make_cluster(major=pg_major, tenants=False)
    cluster = configured(dev)
    n3 = endpoint(cluster, "n3")
    order(dev, "n3", "ALTER SYSTEM SET recovery_min_apply_delay = '1h'")  # stands for minutes of log to be replayed
    await within(2, lambda: asked(dev, "n3", "SHOW recovery_min_apply_delay") == "1h")
    order(dev, "n1", "CREATE TABLE ledger (id integer)")
    confirmed = str(asked(dev, "n1", "SELECT pg_current_wal_flush_lsn()::text"))
    await within(2, lambda: asked(dev, "n3", f"SELECT pg_last_wal_receive_lsn() >= '{confirmed}'"))
    dev.servers["n1"].kill()
    dev.servers["n3"].kill()
    dev.servers["n3"].start()
    async with surgeon(cluster) as hands:
        with pytest.raises(AttemptFailed, match="has not replayed yet all that it had confirmed"):
            await hands.fence(n3, soon())
        order(dev, "n3", "ALTER SYSTEM RESET recovery_min_apply_delay")
        await within(5, lambda: asked(dev, "n3", "SELECT pg_last_wal_receive_lsn() IS NOT NULL"))
        fenced = (await hands.fence(n3, soon())).claim
        assert fenced is not None
        assert fenced.received_lsn >= lsn_from_text(confirmed)


@on_every_major
async def test_a_walreceiver_that_still_connects_is_fenced_too(make_cluster: MakeCluster, pg_major: int):
    dev = make_cluster(major=pg_major, tenants=False, settings={"wal_receiver_timeout": "1s"})
    n2 = endpoint(configured(dev), "n2")
    connects = "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver) AND EXISTS (SELECT FROM pg_stat_activity"
    connects += " WHERE backend_type = 'walreceiver')"
    dev.servers["n1"].freeze()  # its kernel still takes connections
    await within(10, lambda: asked(dev, "n2", connects))
    startup = int(str(asked(dev, "n2", "SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'")))
    os.kill(startup, signal.SIGSTOP)  # it has to end the walreceiver, and has not come to it yet
    try:
        async with surgeon(configured(dev)) as hands:
            with pytest.raises(AttemptFailed) as silent:
                await hands.fence(n2, soon(0.5))
            assert silent.value.fault.kind is FaultKind.SILENT
            os.kill(startup, signal.SIGCONT)
            fenced = await hands.fence(n2, soon())
            assert fenced.claim is not None
            assert fenced.claim.fenced
    finally:
        os.kill(startup, signal.SIGCONT)


async def test_acts_on_one_server_may_overlap(make_cluster: MakeCluster):
    dev = make_cluster(tenants=False)
    cluster = configured(dev)
    n1, n3 = endpoint(cluster, "n1"), endpoint(cluster, "n3")
    dev.servers["n1"].kill()
    async with surgeon(cluster) as hands:
        await hands.fence(n3, soon())
        attaching = asyncio.create_task(hands.repoint(n3, n1, soon(2)))  # to one that is gone: it looks until then
        await within(1, lambda: "pointsman-fenced" not in str(asked(dev, "n3", "SHOW primary_conninfo")))
        fenced = await hands.fence(n3, soon(1.5))
        assert fenced.claim is not None
        assert fenced.claim.fenced
        with pytest.raises(AttemptFailed) as silent:
            await attaching
        assert silent.value.fault.kind is FaultKind.SILENT


async def test_writes_are_held_and_allowed_again(make_cluster: MakeCluster):
    dev = make_cluster()
    cluster = configured(dev)
    n1 = endpoint(cluster, "n1")
    writing, reading = psycopg.connect(dev.tenant_dsn("acme")), psycopg.connect(dev.tenant_dsn("acme"), autocommit=True)
    with writing, reading:
        writing.execute("CREATE TABLE late (id integer)")
        async with surgeon(cluster) as hands:
            held = await hands.hold_writes(n1, soon())
            assert held.claim is not None
            assert held.claim.lsn > 0
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                reading.execute("CREATE TABLE later (id integer)")
            with pytest.raises(psycopg.OperationalError):
                writing.execute("SELECT 1")
            await hands.allow_writes(n1, soon())
        await within(2, lambda: asked(dev, "n1", "SHOW default_transaction_read_only") == "off")
        reading.execute("CREATE TABLE later (id integer)")
        writing.close()


def writes(dev: DevCluster, name: str) -> psycopg.Connection:
    """A transaction that says READ WRITE, which beats the default; it ends with its connection."""
    connection = psycopg.connect(dev.tenant_dsn("acme"), autocommit=True)
    connection.execute(f"BEGIN READ WRITE; {name}")
    return connection


async def test_a_write_that_began_when_writes_were_held_already_is_before_the_last_position(make_cluster: MakeCluster):
    dev = make_cluster()
    cluster = configured(dev)
    n1 = endpoint(cluster, "n1")
    with psycopg.connect(dev.tenant_dsn("acme"), autocommit=True) as setting_up:
        setting_up.execute("CREATE TABLE late (id integer)")
    early = writes(dev, "INSERT INTO late VALUES (1)")
    async with surgeon(cluster) as hands:
        holding = asyncio.create_task(hands.hold_writes(n1, soon()))
        await within(2, lambda: asked(dev, "n1", "SHOW default_transaction_read_only") == "on")
        late = writes(dev, "INSERT INTO late VALUES (2)")
        early.execute("COMMIT")
        await asyncio.sleep(0.2)
        assert not holding.done()
        late.execute("COMMIT")
        committed = lsn_from_text(str(asked(dev, "n1", "SELECT pg_current_wal_insert_lsn()")))
        held = await holding
        assert held.claim is not None
        assert held.claim.lsn >= committed
        assert await hands.still_held(n1, soon())
        early.execute("SELECT count(*) FROM late")
        assert await hands.still_held(n1, soon()), "reads do not matter"
        early.execute("BEGIN READ WRITE; INSERT INTO late VALUES (3)")
        assert not await hands.still_held(n1, soon())
        early.execute("COMMIT")
        assert not await hands.still_held(n1, soon())
        await hands.hold_writes(n1, soon())
        assert await hands.still_held(n1, soon())
    early.close()
    late.close()


async def test_one_that_may_still_write_when_writes_are_held_is_ended(make_cluster: MakeCluster):
    dev = make_cluster()
    cluster = configured(dev)
    early = writes(dev, "CREATE TABLE late (id integer)")
    async with surgeon(cluster) as hands:
        holding = asyncio.create_task(hands.hold_writes(endpoint(cluster, "n1"), soon()))
        await within(2, lambda: asked(dev, "n1", "SHOW default_transaction_read_only") == "on")
        late = writes(dev, "SELECT 1")
        early.execute("COMMIT")
        await holding
        with pytest.raises(psycopg.OperationalError):
            late.execute("INSERT INTO late VALUES (1)")
    early.close()


async def test_promoting_takes_back_a_hold_on_writes(make_cluster: MakeCluster):
    dev = make_cluster(tenants=False)
    cluster = configured(dev)
    async with surgeon(cluster) as hands:
        await hands.hold_writes(endpoint(cluster, "n1"), soon())
        n2 = endpoint(cluster, "n2")
        with dev.servers["n2"].connect() as connection:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")
        await hands.fence(n2, soon())
        promoted = await hands.promote(n2, soon())
        assert promoted.claim is not None
        assert not promoted.claim.in_recovery
        await within(2, lambda: asked(dev, "n2", "SHOW default_transaction_read_only") == "off")


async def test_a_request_to_promote_that_is_missed_is_noticed_soon(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("router.postgres.surgeon.AT_REST_S", 0.0)  # asked while the start-up process tries to stream
    dev = make_cluster(tenants=False, settings={"wal_retrieve_retry_interval": "5s"})
    cluster = configured(dev)
    dev.servers["n1"].kill()
    async with surgeon(cluster) as hands:
        for name in ("n2", "n3"):
            await hands.fence(endpoint(cluster, name), soon())
            await hands.allow_writes(endpoint(cluster, name), soon())  # its reload wakes the start-up process
            began = time.monotonic()
            await hands.promote(endpoint(cluster, name), soon(20))
            assert time.monotonic() - began < 3


async def test_what_cannot_be_done_is_said(make_cluster: MakeCluster):
    dev = make_cluster(tenants=False)
    cluster = configured(dev)
    async with surgeon(cluster) as hands:
        with pytest.raises(AttemptFailed, match="n1: it is not a standby"):
            await hands.fence(endpoint(cluster, "n1"), soon())
        dev.servers["n3"].freeze()
        began = time.monotonic()
        with pytest.raises(AttemptFailed) as silent:
            await hands.fence(endpoint(cluster, "n3"), soon(0.3))
        assert silent.value.fault.kind is FaultKind.SILENT
        assert time.monotonic() - began < 0.5
        dev.servers["n3"].thaw()
        dev.servers["n3"].kill()
        with pytest.raises(AttemptFailed):
            await hands.promote(endpoint(cluster, "n3"), soon())
