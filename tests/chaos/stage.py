"""Where a case plays: a cluster, a router as a process of its own, and on request a proxy before each server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import yaml
from pointsman.v1 import admin_service_pb2 as pb

from router.console.trouble import Trouble
from router.devcluster import DevCluster, DevClusterError, NoPrimaryError, Server, replication
from router.devcluster.server import free_port
from tests.chaos.callers import Caller, SdkCaller, StubCaller
from tests.chaos.history import History
from tests.chaos.load import Load
from tests.support.dev_cluster import new_cluster
from tests.support.proxy import Network, Proxy
from tests.support.running_router import Config, RunningRouter, running_router

TENANT = "acme"
PROMOTED_S = 8.0
"""A dead primary is replaced by then, or, after two faults at once, by nobody."""
CALM_S = 40.0
"""Longest wait for everything to be well again after a fault has been taken away."""


class StageBroken(Exception):
    """The servers or the router did not come back: nothing more can be measured here."""


@dataclass
class Stage:
    """Everything that a nemesis can hit and a workload can call."""

    cluster: DevCluster
    router: RunningRouter
    proxies: dict[str, Proxy]
    history: History = field(default_factory=History)
    load: Load | None = None
    """The callers at work, once there are any."""
    moves: bool = True
    """The router promotes by itself (promote mode)."""

    def callers(self, sdk: int = 1, stub: int = 1, *, session: bool = False, **options: Any) -> list[Caller]:
        """So many callers of each kind; the load closes them. session: the stubs carry consistency tokens, too."""
        made: list[Caller] = [SdkCaller(self.router.connect(TENANT, **options)) for _ in range(sdk)]
        token = self.router.tokens[TENANT]
        return made + [StubCaller(self.router.address, TENANT, token, session=session) for _ in range(stub)]

    async def do(self, act: Callable[..., Any], *args: Any) -> Any:
        """Something that blocks, beside the event loop."""
        return await asyncio.to_thread(act, *args)

    async def primary(self) -> Server:
        """The server that is primary now; StageBroken when none comes up in PROMOTED_S."""
        until = time.monotonic() + PROMOTED_S
        while True:
            try:
                server: Server = await self.do(self.cluster.primary)
                return server
            except NoPrimaryError as error:
                if time.monotonic() > until:
                    raise StageBroken(f"no primary: {error}") from None
            await asyncio.sleep(0.05)

    async def timeline(self) -> int:
        """Of the primary."""
        server = await self.primary()
        seen = (await self.do(self.cluster.observe)).get(server.name)
        return int(seen.timeline or 0) if seen else 0

    async def router_view(self) -> Any:
        """What the router says of the cluster. Trouble when it says nothing."""
        def look() -> Any:
            with self.router.operator() as operator:
                return operator.clusters()[0]

        return await self.do(look)

    async def network(self, how: Network, *names: str) -> None:
        """The network between router and servers (all when none is named) is like this from now on."""
        for name in names or tuple(self.proxies):
            await self.proxies[name].become(how)

    async def calm(self, within_s: float = CALM_S) -> float:
        """Undo everything: thaw, pass, start, rejoin; until router and servers agree. Seconds taken."""
        began = time.monotonic()
        for proxy in self.proxies.values():
            proxy.delay_s = 0.0
            await proxy.become(Network.PASSES)
        for server in self.cluster.servers.values():
            if server.is_running:
                server.thaw()
        if self.router.process.poll() is not None:
            await self.do(self.router.relaunch)
        problem, healed = "not looked at", time.monotonic()
        while time.monotonic() - began < within_s:
            try:
                problem = await self._mend(time.monotonic() - began)
            except Trouble as error:
                problem = f"the router: {error}"
            if problem and "primary" not in problem and time.monotonic() - healed > 1.0:
                # As `pointsman dev` does, once a second: the router has had time to repoint standbys itself.
                await self.do(self.cluster.heal)
                healed = time.monotonic()
            if not problem:
                self.history.note("all well")
                return time.monotonic() - began
            await asyncio.sleep(0.1)
        raise StageBroken(f"not well after {within_s:g} s: {problem}\n{self.router.logged()[-3000:]}")

    async def _mend(self, waited_s: float) -> str:
        """One look, one repair; what is still wrong, or nothing."""
        seen = await self.do(self.cluster.observe)
        newest = self._dead_primary(max((one.timeline or 0 for one in seen.values() if not one.in_recovery), default=0))
        if newest is not None and (waited_s > PROMOTED_S or any(not one.in_recovery for one in seen.values())):
            # What it holds was acknowledged: the others must follow it, not a former primary that is still there.
            await self.do(newest.start)
            return f"{newest.name} was started again as the newest primary"
        try:
            primary = await self.do(self.cluster.primary)
        except NoPrimaryError:
            return "no primary"
        view = await self.router_view()
        if view.primary != primary.name:
            return f"the router's primary is {view.primary or 'none'}, not {primary.name}"
        for name, server in self.cluster.servers.items():
            lost = not server.is_running or (name in seen and not seen[name].in_recovery)
            if name != primary.name and lost:
                with contextlib.suppress(DevClusterError):
                    await self.do(self.cluster.rejoin, name)
                return f"{name} was rejoined"
        up = {one.name for one in view.endpoints if one.health == pb.ENDPOINT_HEALTH_UP}
        missing = set(self.cluster.servers) - up
        if missing or view.phase != pb.CLUSTER_PHASE_STEADY:
            return f"{sorted(missing)} not up, {pb.ClusterPhase.Name(view.phase)} {view.detail}"
        return await self._streaming(primary)

    def _dead_primary(self, timeline: int) -> Server | None:
        """The server that was primary on a newer timeline than anyone who is primary now, and does not run."""
        dead = [one for one in self.cluster.servers.values()
                if not one.is_running and replication.was_primary_on_disk(one)]
        newest = max(dead, key=replication.timeline_on_disk, default=None)
        return newest if newest is not None and replication.timeline_on_disk(newest) > timeline else None

    async def _streaming(self, primary: Server) -> str:
        def count() -> int:
            with primary.connect() as connection:
                row = connection.execute(
                    "select count(*) from pg_stat_replication where state = 'streaming' and sync_state = 'quorum'"
                ).fetchone()
            return int(row[0]) if row else 0

        try:
            found = await self.do(count)
        except psycopg.Error as error:
            return f"{primary.name}: {error}"
        wanted = len(self.cluster.servers) - 1
        return "" if found == wanted else f"{found} of {wanted} standbys stream"

    def rows(self, sql: str, server: Server | None = None) -> list[tuple[Any, ...]]:
        """What a server holds of the tenant's data, asked directly; of the primary unless one is named."""
        with psycopg.connect(self.cluster.tenant_dsn(TENANT, server), autocommit=True) as connection:
            return connection.execute(sql).fetchall()  # type: ignore[arg-type]

    def run_sql(self, *statements: str) -> None:
        """Done on the primary as the tenant."""
        with psycopg.connect(self.cluster.tenant_dsn(TENANT), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[arg-type]


@asynccontextmanager
async def staged(
    *,
    mode: str = "promote",
    proxied: bool = False,
    edit: Callable[[Config], object] | None = None,
    cluster: DevCluster | None = None,
    **router_options: Any,
) -> AsyncIterator[Stage]:
    """A fresh cluster (or the given one, which stays up) with a router before it; all ends with the block."""
    port, admin = free_port(), free_port()

    def fixed_ports(config: Config) -> None:
        config["server"].setdefault("listen", "")
        config["server"]["listen"] = f"127.0.0.1:{port}"
        config["server"]["admin_listen"] = f"127.0.0.1:{admin}"
        if edit is not None:
            edit(config)

    own = cluster is None
    world = await asyncio.to_thread(new_cluster) if cluster is None else cluster
    try:
        async with contextlib.AsyncExitStack() as stack:
            proxies = {}
            for server in world.servers.values() if proxied else ():
                proxies[server.name] = await stack.enter_async_context(Proxy(server.port))
            ports = {name: proxy.port for name, proxy in proxies.items()}
            ports |= router_options.pop("ports", {})
            options = {"mode": mode, "ports": ports, "edit": fixed_ports, **router_options}
            router = await stack.enter_async_context(running_router(world, **options))
            yield Stage(world, router, proxies, moves=mode == "promote")
    finally:
        if own:
            await asyncio.to_thread(world.stop)


def policy(router: RunningRouter) -> Config:
    """The configuration that the router runs with."""
    values: Config = yaml.safe_load(router.config.read_text())
    return values
