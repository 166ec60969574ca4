"""A cluster of PostgreSQL servers that exists only in memory, behind ports.EdgeFactory: for tests on virtual time.

Roles, timelines, log positions, who follows whom, and the ways to fail: dead, frozen, starting, cut off from the
router only. Replication is instant while an upstream lives. Behaviour that matters was measured on real servers and
is compared with them in tests/postgres (probing) and tests/failover.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum, unique

from router.model.identity import ClusterName, EndpointName, Lsn, Term
from router.model.observation import AttemptFailed, Fault, FaultKind, ProbeOutcome, ProbeResult, RoleClaim, Stage
from router.model.policy import ClusterPolicy
from router.model.topology import Cluster, Endpoint, FailoverMode, Login

ROUND_TRIP_S = 0.001
PROMOTION_S = 0.03
PING_S = 1.0
SYSTEM = 77


@unique
class Mood(Enum):
    RUNNING = "running"
    DEAD = "dead"
    FROZEN = "frozen"
    STARTING = "starting"
    UNREACHABLE = "unreachable"
    """Alive for its standbys, silent for the router."""
    REJECTED = "rejected"
    """Alive for its standbys, and for the router as if nobody listened."""
    FULL = "full"


@dataclass
class FakeServer:
    """One server."""

    name: EndpointName
    in_recovery: bool = True
    timeline: int = 1
    lsn: int = 1000
    mood: Mood = Mood.RUNNING
    upstream: EndpointName | None = None
    fenced: bool = False
    restarting: bool = False
    """After a crash: no standby streams from it."""
    frozen_at: float = 0.0
    system_id: int = SYSTEM
    sync_names: str = ""
    sync_in_force: bool = True
    """Its checkpointer has read them: commits wait."""
    read_only: bool = False
    version: int = 180000


@dataclass
class FakeServers:
    """All servers of one cluster, and a journal of what surgeons did."""

    servers: dict[EndpointName, FakeServer] = field(default_factory=dict)
    journal: list[tuple[str, EndpointName]] = field(default_factory=list)
    failing: set[tuple[str, EndpointName]] = field(default_factory=set)
    """(step, server) that a surgeon fails at."""
    hanging: set[tuple[str, EndpointName]] = field(default_factory=set)
    """(step, server) that a surgeon hangs in until its deadline."""
    probes: list[tuple[float, EndpointName, bool]] = field(default_factory=list)
    open_edges: int = 0
    held_at: int = -1
    """Where the primary was when its writes were held."""

    @classmethod
    def of(cls, count: int = 3) -> FakeServers:
        """n1 is the primary, the others follow it; ANY 1 of the others must confirm."""
        names = [EndpointName(f"n{number + 1}") for number in range(count)]
        made = cls({name: FakeServer(name, upstream=names[0]) for name in names})
        for name in names:
            others = ", ".join(other for other in names if other != name)
            made.servers[name].sync_names = f"ANY 1 ({others})"
        made.servers[names[0]].in_recovery = False
        made.servers[names[0]].upstream = None
        return made

    def __getitem__(self, name: str) -> FakeServer:
        return self.servers[EndpointName(name)]

    def cluster(self, mode: FailoverMode = FailoverMode.PROMOTE, policy: ClusterPolicy | None = None) -> Cluster:
        """The configuration of these servers."""
        cluster = ClusterName("main")
        endpoints = tuple(Endpoint(name, cluster, "127.0.0.1", 5432 + i) for i, name in enumerate(self.servers))
        return Cluster(cluster, endpoints, Login("control"), mode=mode, policy=policy or ClusterPolicy())

    def freeze(self, name: str) -> None:
        self[name].mood = Mood.FROZEN
        self[name].frozen_at = asyncio.get_running_loop().time()

    def promote(self, name: str) -> None:
        """As if by hand: a new timeline, others are not told."""
        server = self[name]
        server.in_recovery = False
        server.timeline += 1
        server.upstream = None

    def follow(self, name: str, upstream: str) -> None:
        """Make a running server a standby of another one, whatever it was."""
        server, above = self[name], self[upstream]
        server.mood, server.in_recovery, server.fenced = Mood.RUNNING, True, False
        server.upstream, server.timeline, server.lsn = above.name, above.timeline, above.lsn

    def write(self, name: str) -> None:
        """One commit on a primary, replicated to whoever follows."""
        self[name].lsn += 100
        for server in self.servers.values():
            if self.streams(server) and server.upstream == name:
                server.lsn = self[name].lsn

    def streams(self, server: FakeServer) -> bool:
        """Whether its walreceiver is connected (also to a frozen upstream)."""
        above = self.servers.get(server.upstream) if server.upstream else None
        return (
            server.in_recovery
            and not server.fenced
            and above is not None
            and above.mood not in (Mood.DEAD, Mood.STARTING)
            and not above.restarting
            and above.timeline >= server.timeline
        )

    def claim(self, server: FakeServer) -> RoleClaim:
        alive = self.streams(server)
        above = self.servers.get(server.upstream) if server.upstream else None
        if alive and above is not None and above.mood is not Mood.FROZEN:
            server.timeline, server.lsn = above.timeline, above.lsn
        now = asyncio.get_running_loop().time()
        silent = now - above.frozen_at if above is not None and above.mood is Mood.FROZEN else 0.01
        followers = tuple(s.name for s in self.servers.values() if s.upstream == server.name and self.streams(s))
        return RoleClaim(
            in_recovery=server.in_recovery,
            system_id=server.system_id,
            timeline=Term(server.timeline),
            lsn=Lsn(server.lsn),
            received_lsn=Lsn(server.lsn if server.in_recovery else 0),
            lag_s=0.0,
            receiver_alive=alive,
            receiver_silent_s=silent,
            receiver_ping_s=PING_S,
            sync_names=server.sync_names,
            standbys=followers,
            sync_standbys=followers,
            application_name=server.name if server.in_recovery else "",
            read_only=server.read_only,
            version=server.version,
            fenced=server.fenced,
        )

    def prober(self, cluster: Cluster, endpoint: Endpoint) -> FakeProber:
        self.open_edges += 1
        return FakeProber(self, endpoint.name, cluster.policy.probe.timeout_s)

    def surgeon(self, cluster: Cluster) -> FakeSurgeon:
        self.open_edges += 1
        return FakeSurgeon(self)


_ANSWER_OF = {
    Mood.RUNNING: ProbeOutcome.OK,
    Mood.DEAD: ProbeOutcome.REFUSED,
    Mood.FROZEN: ProbeOutcome.TIMEOUT,
    Mood.UNREACHABLE: ProbeOutcome.TIMEOUT,
    Mood.REJECTED: ProbeOutcome.REFUSED,
    Mood.STARTING: ProbeOutcome.STARTING,
    Mood.FULL: ProbeOutcome.FULL,
}


class FakeProber:
    """ports.Prober over a fake server."""

    def __init__(self, servers: FakeServers, name: EndpointName, timeout_s: float) -> None:
        self._servers = servers
        self._name = name
        self._timeout_s = timeout_s
        self._probing = False

    async def probe(self, *, fresh: bool, log_in: bool = True) -> ProbeResult:
        assert not self._probing, "probes of one endpoint overlap"
        self._probing = True
        began = asyncio.get_running_loop().time()
        self._servers.probes.append((began, self._name, fresh))
        server = self._servers.servers[self._name]
        try:
            outcome = _ANSWER_OF[server.mood]
            await asyncio.sleep(self._timeout_s if outcome is ProbeOutcome.TIMEOUT else ROUND_TRIP_S)
        finally:
            self._probing = False
        ended = asyncio.get_running_loop().time()
        claim = self._servers.claim(server) if outcome in (ProbeOutcome.OK, ProbeOutcome.FULL) else None
        return ProbeResult(self._name, outcome, ended, ended - began, claim, fresh=fresh)

    async def close(self) -> None:
        self._servers.open_edges -= 1


class FakeSurgeon:
    """ports.Surgeon over fake servers."""

    def __init__(self, servers: FakeServers) -> None:
        self._servers = servers

    async def _act(self, step: str, endpoint: Endpoint, deadline: float) -> FakeServer:
        self._servers.journal.append((step, endpoint.name))
        server = self._servers[endpoint.name]
        silent = server.mood in (Mood.FROZEN, Mood.UNREACHABLE) or (step, endpoint.name) in self._servers.hanging
        if silent:
            await asyncio.sleep(deadline - asyncio.get_running_loop().time())
            raise AttemptFailed(Fault(FaultKind.SILENT, Stage.EXECUTE, message="no answer in time"))
        await asyncio.sleep(ROUND_TRIP_S)
        if server.mood is Mood.DEAD or (step, endpoint.name) in self._servers.failing:
            raise AttemptFailed(Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, message=f"{step} was refused"))
        return server

    def _result(self, server: FakeServer) -> ProbeResult:
        now = asyncio.get_running_loop().time()
        return ProbeResult(server.name, ProbeOutcome.OK, now, 0.0, self._servers.claim(server))

    async def look(self, server: Endpoint, deadline: float) -> ProbeResult:
        await asyncio.sleep(ROUND_TRIP_S)
        seen = self._servers[server.name]
        if seen.mood is not Mood.RUNNING:
            raise AttemptFailed(Fault(FaultKind.CONNECT_FAILED, Stage.CONNECT, message="look was refused"))
        return self._result(seen)

    async def fence(self, standby: Endpoint, deadline: float) -> ProbeResult:
        server = await self._act("fence", standby, deadline)
        if not server.in_recovery:
            raise AttemptFailed(Fault(FaultKind.CLOSED, Stage.EXECUTE, message="it is not a standby"))
        server.fenced = True
        return self._result(server)

    async def still_fenced(self, standby: Endpoint, deadline: float) -> bool:
        server = self._servers[standby.name]
        await asyncio.sleep(ROUND_TRIP_S)
        return server.mood is Mood.RUNNING and server.in_recovery and server.fenced

    async def set_synchronous(self, server: Endpoint, names: str, deadline: float) -> None:
        (await self._act("set_synchronous", server, deadline)).sync_names = names

    async def promote(self, standby: Endpoint, deadline: float) -> ProbeResult:
        server = await self._act("promote", standby, deadline)
        if not (server.in_recovery and server.fenced):
            raise AttemptFailed(Fault(FaultKind.CLOSED, Stage.EXECUTE, message="no standby with our fence on it"))
        await asyncio.sleep(PROMOTION_S)
        self._servers.promote(server.name)
        return self._result(server)

    async def repoint(
        self, standby: Endpoint, upstream: Endpoint, deadline: float, *, others_too: bool = True
    ) -> None:
        server = await self._act("repoint", standby, deadline)
        server.upstream, server.fenced = upstream.name, False

    async def commits_wait(self, primary: Endpoint, deadline: float) -> bool:
        server = await self._act("commits_wait", primary, deadline)
        while not server.sync_in_force:
            await asyncio.sleep(ROUND_TRIP_S)
            if asyncio.get_running_loop().time() >= deadline - 0.25:
                return False
        return True

    async def verify_write(self, primary: Endpoint, deadline: float) -> None:
        server = await self._act("verify_write", primary, deadline)
        while server.sync_names and not self._servers.claim(server).standbys:
            await asyncio.sleep(ROUND_TRIP_S)
            if asyncio.get_running_loop().time() >= deadline:
                raise AttemptFailed(Fault(FaultKind.SILENT, Stage.EXECUTE, message="not confirmed in time"))
        self._servers.write(server.name)

    async def hold_writes(self, primary: Endpoint, deadline: float) -> ProbeResult:
        server = await self._act("hold_writes", primary, deadline)
        server.read_only = True
        self._servers.held_at = server.lsn
        return self._result(server)

    async def still_held(self, primary: Endpoint, deadline: float) -> bool:
        server = await self._act("still_held", primary, deadline)
        return server.lsn == self._servers.held_at

    async def allow_writes(self, primary: Endpoint, deadline: float) -> None:
        (await self._act("allow_writes", primary, deadline)).read_only = False

    async def close(self) -> None:
        self._servers.open_edges -= 1
