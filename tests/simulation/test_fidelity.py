"""The model behaves as real servers do: one script, run on both, with the same observations.

A commit that waits for its standbys is seen by nobody; a cancel request answers it as if all were well, with a notice,
and a killed session leaves it committed all the same; a crashed backend restarts the server, which stays what it was;
with its standbys fenced a primary confirms nothing more; after a promotion the control file still tells the old
timeline, and both servers say that they are not in recovery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Protocol

import psycopg
import pytest

from router.devcluster import DevCluster
from router.model.identity import Generation, Term
from router.model.observation import FaultKind
from router.model.policy import ClusterPolicy
from router.model.request import Access, Statement, TransactionMode
from router.model.topology import FailoverMode
from router.ports import Unit
from router.postgres.surgeon import PostgresSurgeon
from tests.postgres.control_cluster import configured, endpoint
from tests.simulation.edges import ModelSurgeon
from tests.simulation.judge import Judge
from tests.simulation.network import ROUTER, Network
from tests.simulation.pools import ModelPool
from tests.simulation.servers import Servers
from tests.simulation.trace import Trace
from tests.simulation.workload import write_of
from tests.support.builders import tenant
from tests.support.virtual_time import SeededChance, run_virtual

pytestmark = [pytest.mark.pg, pytest.mark.chaos]
WAITS_S = 0.5
PATIENCE_S = 20.0


class Side(Protocol):
    """Real servers or the model: n1 is the primary, n2 and n3 its standbys, ANY 1 must confirm."""

    async def begin(self, name: str, *, says_read_write: bool = False) -> Any:
        """Write a row on n1, and wait for the commit beside."""
        ...

    async def hold(self) -> None:
        """Writes on n1."""
        ...

    async def allow(self) -> None: ...

    async def outcome(self, begun: Any, within_s: float) -> str:
        """confirmed, local (with the notice), lost, read-only; or waits."""
        ...

    async def cancel(self, begun: Any) -> None: ...

    async def terminate(self, begun: Any) -> None: ...

    async def visible(self, name: str) -> bool:
        """On n1."""
        ...

    async def freeze(self, server: str) -> None: ...

    async def thaw(self, server: str) -> None: ...

    async def crash_backend(self) -> None:
        """And wait until n1 answers again."""
        ...

    async def fence(self, server: str) -> None: ...

    async def promote(self, server: str) -> None:
        """With nobody to confirm."""
        ...

    async def says(self, server: str) -> tuple[bool, int, int, int]:
        """In recovery, timeline by the log, timeline by the control file, system identifier."""
        ...


async def script(side: Side) -> list[tuple[str, Any]]:
    """What is done, and what is seen."""
    seen: list[tuple[str, Any]] = [("plain", await side.outcome(await side.begin("plain"), PATIENCE_S))]
    await side.hold()
    for name, says in (("held", False), ("held, and says READ WRITE", True)):
        seen.append((name, await side.outcome(await side.begin(name, says_read_write=says), PATIENCE_S)))
    await side.allow()
    for standby in ("n2", "n3"):
        await side.freeze(standby)
    for name, end in (("cancelled", side.cancel), ("terminated", side.terminate)):
        begun = await side.begin(name)
        seen.append((name, await side.outcome(begun, WAITS_S)))
        seen.append(("seen while it waits", await side.visible(name)))
        await end(begun)
        seen.append(("then", await side.outcome(begun, PATIENCE_S)))
        seen.append(("seen", await side.visible(name)))
    for standby in ("n2", "n3"):
        await side.thaw(standby)
    seen.append(("thawed", await side.outcome(await side.begin("thawed"), PATIENCE_S)))
    before = await side.says("n1")
    await side.crash_backend()
    seen.append(("the same after a crash", await side.says("n1") == before))
    seen.append(("restarted", await side.outcome(await side.begin("restarted"), PATIENCE_S)))
    for standby in ("n2", "n3"):
        await side.fence(standby)
    seen.append(("fenced", await side.outcome(await side.begin("fenced"), WAITS_S)))
    await side.promote("n2")
    old, new = await side.says("n1"), await side.says("n2")
    seen.append(("the old one in recovery, timelines", old[:3]))
    seen.append(("the new one in recovery, timelines", new[:3]))
    seen.append(("one system", old[3] == new[3]))
    return seen


class Real:
    """A development cluster."""

    def __init__(self, cluster: DevCluster, surgeon: PostgresSurgeon) -> None:
        self._cluster = cluster
        self._topology = configured(cluster)
        self._surgeon = surgeon
        self._threads = ThreadPoolExecutor(4)
        self._open: list[Any] = []

    async def _ask(self, server: str, sql: str, *values: Any) -> list[Any]:
        def ask() -> list[Any]:
            with self._cluster.servers[server].connect() as connection:
                return connection.execute(sql, values).fetchall()

        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                return await asyncio.to_thread(ask)
            except psycopg.OperationalError:  # it restarts after a crash
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def prepare(self) -> None:
        def make() -> None:
            with self._cluster.servers["n1"].connect() as connection:
                connection.execute("create table facts (name text)")

        await asyncio.to_thread(make)

    async def begin(self, name: str, *, says_read_write: bool = False) -> Any:
        def run(connection: Any, notices: list[str]) -> str:
            try:
                if says_read_write:
                    connection.execute("begin read write")
                connection.execute("insert into facts values (%s)", (name,))
                if says_read_write:
                    connection.execute("commit")
            except psycopg.OperationalError:
                return "lost"
            except psycopg.errors.ReadOnlySqlTransaction:
                return "read-only"
            return "local" if "01000" in notices else "confirmed"

        connection = await asyncio.to_thread(self._cluster.servers["n1"].connect)
        connection.autocommit = True
        notices: list[str] = []
        connection.add_notice_handler(lambda told: notices.append(told.sqlstate))
        self._open.append(connection)
        work = asyncio.get_running_loop().run_in_executor(self._threads, run, connection, notices)
        return connection, work

    async def outcome(self, begun: Any, within_s: float) -> str:
        done, _ = await asyncio.wait({begun[1]}, timeout=within_s)
        return str(begun[1].result()) if done else "waits"

    async def cancel(self, begun: Any) -> None:
        await asyncio.to_thread(begun[0].cancel_safe)

    async def terminate(self, begun: Any) -> None:
        await self._ask("n1", "select pg_terminate_backend(%s)", begun[0].info.backend_pid)

    async def visible(self, name: str) -> bool:
        return bool(await self._ask("n1", "select 1 from facts where name = %s", name))

    async def freeze(self, server: str) -> None:
        await asyncio.to_thread(self._cluster.servers[server].freeze)

    async def thaw(self, server: str) -> None:
        await asyncio.to_thread(self._cluster.servers[server].thaw)

    async def crash_backend(self) -> None:
        await asyncio.to_thread(self._cluster.servers["n1"].crash_one_backend)
        await asyncio.to_thread(self._cluster.servers["n1"].wait_ready)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + PATIENCE_S

    async def hold(self) -> None:
        await self._surgeon.hold_writes(endpoint(self._topology, "n1"), self._deadline())

    async def allow(self) -> None:
        await self._surgeon.allow_writes(endpoint(self._topology, "n1"), self._deadline())

    async def fence(self, server: str) -> None:
        await self._surgeon.fence(endpoint(self._topology, server), self._deadline())

    async def promote(self, server: str) -> None:
        await self._surgeon.set_synchronous(endpoint(self._topology, server), "", self._deadline())
        await self._surgeon.promote(endpoint(self._topology, server), self._deadline())

    async def says(self, server: str) -> tuple[bool, int, int, int]:
        rows = await self._ask(
            server,
            "select pg_is_in_recovery(), "
            "('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int, "
            "(select timeline_id from pg_control_checkpoint()), (select system_identifier from pg_control_system())",
        )
        return tuple(rows[0])

    async def close(self) -> None:
        """The write that still waits is ended with its connection."""
        for connection in self._open:
            if not connection.closed:
                await self._ask("n1", "select pg_terminate_backend(%s)", connection.info.backend_pid)
        await asyncio.to_thread(self._threads.shutdown)
        for connection in self._open:
            connection.close()
        await self._surgeon.close()


class Model:
    """The simulation's servers, reached through its lanes."""

    def __init__(self) -> None:
        judge = Judge(Trace())
        self._servers = judge.servers = Servers(3, 1, Network(SeededChance(1)), SeededChance(2), judge)
        cluster = self._servers.configured(FailoverMode.PROMOTE, ClusterPolicy())
        life: Any = SimpleNamespace(
            host=ROUTER,
            dead=False, judge=judge, servers=self._servers, mark="m", term=Term(0), open_edges=0, switching=True,
            fencing=False, cluster=cluster,
        )
        self._endpoints = {one.name: one for one in cluster.endpoints}
        self._surgeon = ModelSurgeon(life)
        who = tenant()
        self._pool = ModelPool(life, self._servers.nodes["n1"], who, cluster, Access.READ_WRITE, Generation(1))

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + PATIENCE_S

    async def begin(self, name: str, *, says_read_write: bool = False) -> Any:
        write = Statement(write_of(name))
        around = (Statement(TransactionMode().begin_sql()), write, Statement(b"COMMIT"))
        done: asyncio.Future[Unit] = asyncio.get_running_loop().create_future()
        lane = await self._pool.open_lane(self._deadline())
        lane.submit(Unit(around if says_read_write else (write,), done.set_result))
        return lane, done

    async def outcome(self, begun: Any, within_s: float) -> str:
        done, _ = await asyncio.wait({begun[1]}, timeout=within_s)
        if not done:
            return "waits"
        fault = begun[1].result().fault
        if fault is None:
            await begun[0].give_back()
            return "confirmed"
        if fault.sqlstate == "25006":
            return "read-only"
        return {FaultKind.LOCAL_COMMIT: "local", FaultKind.CONNECTION_LOST: "lost"}[fault.kind]

    async def cancel(self, begun: Any) -> None:
        await begun[0].cancel()

    async def terminate(self, begun: Any) -> None:
        begun[0].connection.backend.terminate()

    async def visible(self, name: str) -> bool:
        node = self._servers.nodes["n1"]
        return any(write_of(name) in record.writes for record in node.wal[: node.visible()])

    async def freeze(self, server: str) -> None:
        self._servers.nodes[server].freeze()

    async def thaw(self, server: str) -> None:
        self._servers.nodes[server].thaw()
        await asyncio.sleep(5)  # until its receiver has found its way back

    async def crash_backend(self) -> None:
        self._servers.nodes["n1"].crash_backend()
        await asyncio.sleep(5)

    async def hold(self) -> None:
        await self._surgeon.hold_writes(self._endpoints["n1"], self._deadline())

    async def allow(self) -> None:
        await self._surgeon.allow_writes(self._endpoints["n1"], self._deadline())

    async def fence(self, server: str) -> None:
        await self._surgeon.fence(self._endpoints[server], self._deadline())

    async def promote(self, server: str) -> None:
        await self._surgeon.set_synchronous(self._endpoints[server], "", self._deadline())
        await self._surgeon.promote(self._endpoints[server], self._deadline())

    async def says(self, server: str) -> tuple[bool, int, int, int]:
        node = self._servers.nodes[server]
        return node.in_recovery, node.timeline, node.control_timeline, node.system_id


def modelled() -> list[tuple[str, Any]]:
    """The script on the model."""

    async def run() -> list[tuple[str, Any]]:
        return await script(Model())

    return run_virtual(run())


def test_the_model_does_what_was_measured() -> None:
    seen = dict(modelled())
    assert (seen["plain"], seen["cancelled"], seen["terminated"]) == ("confirmed", "waits", "waits")
    assert (seen["held"], seen["held, and says READ WRITE"]) == ("read-only", "confirmed")
    assert seen["fenced"] == "waits"
    assert seen["the old one in recovery, timelines"] == (False, 1, 1)
    assert seen["the new one in recovery, timelines"] == (False, 2, 1)


async def test_real_servers_do_the_same(make_cluster: Callable[..., DevCluster]) -> None:
    cluster = make_cluster(tenants=False)
    side = Real(cluster, PostgresSurgeon(configured(cluster), "fidelity"))
    await side.prepare()
    try:
        seen = await script(side)
    finally:
        for standby in ("n2", "n3"):
            await side.thaw(standby)
        await side.close()
    assert seen == await asyncio.to_thread(modelled)
