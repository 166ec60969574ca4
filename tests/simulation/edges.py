"""ports.EdgeFactory over the model: probes and surgery that travel, and find what the nodes are at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from router.model.identity import EndpointName, Lsn, Term
from router.model.observation import AttemptFailed, Fault, FaultKind, ProbeOutcome, ProbeResult, RoleClaim, Stage
from router.model.topology import Cluster, Endpoint
from tests.simulation.node import Node, Process
from tests.simulation.receiver import PING_S
from tests.simulation.wal import RECORD_BYTES

if TYPE_CHECKING:
    from tests.simulation.router_life import RouterLife

DEADLINE_SHARE = 0.98
STEP_S = 0.005
GRACE_S = 1.0
"""Writers get this long to end before they are ended."""


def claim(node: Node) -> RoleClaim:
    """What a node says about itself."""
    receiver = node.receiver
    streaming = tuple(sorted(node.connections)) if not node.in_recovery else ()
    behind = node.in_recovery and node.replayed < node.flushed
    return RoleClaim(
        in_recovery=node.in_recovery,
        system_id=node.system_id,
        timeline=Term(node.timeline),
        lsn=Lsn((node.replayed if node.in_recovery else len(node.wal)) * RECORD_BYTES),
        received_lsn=Lsn(node.received_lsn if node.in_recovery else 0),
        lag_s=node.replay_lag_s if behind else 0.0,
        receiver_alive=receiver.alive,
        receiver_silent_s=receiver.silent_s,
        receiver_ping_s=PING_S,
        sync_names=node.sync_names,
        standbys=streaming,
        sync_standbys=streaming,
        application_name=node.name if node.in_recovery else "",
        read_only=node.read_only,
        version=180000,
        retry_interval_ms=round(node.retry_s * 1000),
        fenced=bool(node.fence_mark),
        history=None if node.in_recovery else node.servers.histories[node.timeline],
    )


class _Edge:
    """Reaching a node from one life of the router."""

    def __init__(self, life: RouterLife) -> None:
        self._life = life
        self._network = life.servers.network
        self._loop = asyncio.get_running_loop()
        life.open_edges += 1

    async def arrive(self, node: Node, deadline: float) -> None:
        """A request arrives at a server that answers. TimeoutError, or AttemptFailed when it says no."""
        if self._life.dead:
            await self._loop.create_future()
        await self._network.travel(self._life.host, node.name, deadline)
        if not node.host_down and node.process is not Process.RUNNING:
            await self._network.travel(node.name, self._life.host, deadline)
            dead = node.process is Process.DEAD
            raise AttemptFailed(Fault(FaultKind.CONNECT_REFUSED if dead else FaultKind.CONNECT_FAILED, Stage.CONNECT,
                                      "" if dead else "57P03", f"{node.name} does not answer"))
        while not node.answers:
            if self._loop.time() + STEP_S >= deadline:
                await asyncio.sleep(max(0.0, deadline - self._loop.time()))
                raise TimeoutError
            await asyncio.sleep(STEP_S)
        if self._life.dead:
            await self._loop.create_future()

    async def back(self, node: Node, deadline: float) -> None:
        """The answer arrives."""
        await self._network.travel(node.name, self._life.host, deadline)

    async def close(self) -> None:
        self._life.open_edges -= 1


class ModelProber(_Edge):
    """ports.Prober."""

    def __init__(self, life: RouterLife, cluster: Cluster, endpoint: Endpoint) -> None:
        super().__init__(life)
        self._node = life.servers.nodes[endpoint.name]
        self._endpoint = endpoint
        self._timeout_s = cluster.policy.probe.timeout_s

    async def probe(self, *, fresh: bool, log_in: bool = True) -> ProbeResult:
        began = self._loop.time()
        deadline = began + self._timeout_s * DEADLINE_SHARE
        outcome, said = await self._ask(deadline)
        if outcome is ProbeOutcome.OK and fresh and self._node.postmaster_frozen:
            await asyncio.sleep(max(0.0, deadline - self._loop.time()))
            outcome = ProbeOutcome.FRESH_HANGS
        ended = self._loop.time()
        self._life.probes += 1
        return ProbeResult(self._endpoint.name, outcome, ended, ended - began, said, fresh=fresh)

    async def _ask(self, deadline: float) -> tuple[ProbeOutcome, RoleClaim | None]:
        try:
            await self.arrive(self._node, deadline)
            said = claim(self._node)
            await self.back(self._node, deadline)
        except TimeoutError:
            return ProbeOutcome.TIMEOUT, None
        except AttemptFailed as failure:
            refused = failure.fault.kind is FaultKind.CONNECT_REFUSED
            return ProbeOutcome.REFUSED if refused else ProbeOutcome.STARTING, None
        return ProbeOutcome.OK, said


class ModelSurgeon(_Edge):
    """ports.Surgeon. A fence bears the mark of the life that set it."""

    async def _act(self, step: str, endpoint: Endpoint, deadline: float, act: Callable[[Node], None]) -> Node:
        node = self._life.servers.nodes[endpoint.name]
        try:
            await self.arrive(node, deadline)
            self._life.judge.operated(self._life, step, node)
            act(node)
            await self.back(node, deadline)
        except TimeoutError:
            raise AttemptFailed(Fault(FaultKind.SILENT, Stage.EXECUTE, message="no answer in time")) from None
        return node

    async def _until(self, node: Node, deadline: float, condition: Callable[[], bool]) -> None:
        """Look again and again, over the network."""
        while not condition():
            await asyncio.sleep(STEP_S)
            if self._loop.time() >= deadline or self._life.dead:
                raise AttemptFailed(Fault(FaultKind.SILENT, Stage.EXECUTE, message="not in time"))
            try:
                await self.arrive(node, deadline)
            except TimeoutError:
                raise AttemptFailed(Fault(FaultKind.SILENT, Stage.EXECUTE, message="no answer in time")) from None

    def _result(self, node: Node) -> ProbeResult:
        now = self._loop.time()
        return ProbeResult(EndpointName(node.name), ProbeOutcome.OK, now, 0.0, claim(node))

    async def look(self, server: Endpoint, deadline: float) -> ProbeResult:
        return self._result(await self._act("look", server, deadline, lambda _: None))

    async def fence(self, standby: Endpoint, deadline: float) -> ProbeResult:
        def act(node: Node) -> None:
            if not node.in_recovery:
                raise _impossible("it is not a standby")
            node.fence_mark, node.upstream, node.read_only = self._life.mark, None, False
            node.receiver.end()

        node = await self._act("fence", standby, deadline, act)
        return self._result(node)

    async def still_fenced(self, standby: Endpoint, deadline: float) -> bool:
        node = await self._act("still_fenced", standby, deadline, lambda _: None)
        return node.in_recovery and node.fence_mark == self._life.mark and not node.receiver.alive

    async def set_synchronous(self, server: Endpoint, names: str, deadline: float) -> None:
        def act(node: Node) -> None:
            node.sync_names = names
            node.release()

        await self._act("set_synchronous", server, deadline, act)

    async def promote(self, standby: Endpoint, deadline: float) -> ProbeResult:
        def act(node: Node) -> None:
            if not node.in_recovery or node.fence_mark != self._life.mark:
                raise _impossible("it is no standby with our fence on it")
            node.promote(lambda: None)

        node = await self._act("promote", standby, deadline, act)
        await self._until(node, deadline, lambda: not node.in_recovery)
        return self._result(node)

    async def repoint(
        self, standby: Endpoint, upstream: Endpoint, deadline: float, *, others_too: bool = True
    ) -> None:
        def act(node: Node) -> None:
            if not node.in_recovery:
                raise _impossible("it is not a standby")
            if not others_too and node.fence_mark and not node.fence_mark.startswith(f"{self._life.host}/"):
                raise _impossible("another router's fence stands on it")
            node.upstream, node.fence_mark = upstream.name, ""
            node.receiver.end()
            node.receiver.look()

        node = await self._act("repoint", standby, deadline, act)

        def streams() -> bool:
            return node.receiver.upstream is not None and node.receiver.upstream.name == upstream.name

        await self._until(node, deadline, streams)

    async def commits_wait(self, primary: Endpoint, deadline: float) -> bool:
        return True  # here a setting is in force at once

    async def verify_write(self, primary: Endpoint, deadline: float) -> None:
        confirmed: list[bool] = []

        def act(node: Node) -> None:
            if node.in_recovery:
                raise _impossible("it is a standby")
            node.commit((), confirmed.append)

        node = await self._act("verify_write", primary, deadline, act)
        await self._until(node, deadline, lambda: bool(confirmed))

    async def hold_writes(self, primary: Endpoint, deadline: float) -> ProbeResult:
        def act(node: Node) -> None:
            node.read_only = True
            for backend in list(node.server.backends):
                backend.end_open_transaction()

        node = await self._act("hold_writes", primary, deadline, act)
        grace_ends = self._loop.time() + GRACE_S

        def quiet() -> bool:
            """Also of those who began since, and said READ WRITE."""
            writers = [one for one in node.server.backends if one.in_transaction]
            if self._loop.time() >= grace_ends:
                for backend in writers:
                    backend.end_open_transaction()
            return not writers and not node.waiting

        await self._until(node, deadline, quiet)
        node.held_at = len(node.wal)
        return self._result(node)

    async def still_held(self, primary: Endpoint, deadline: float) -> bool:
        node = await self._act("still_held", primary, deadline, lambda _: None)
        await self.back(node, deadline)
        return not node.waiting and not any(one.writes for one in node.wal[node.held_at :])

    async def allow_writes(self, primary: Endpoint, deadline: float) -> None:
        def act(node: Node) -> None:
            node.read_only = False

        await self._act("allow_writes", primary, deadline, act)


def _impossible(why: str) -> AttemptFailed:
    return AttemptFailed(Fault(FaultKind.CLOSED, Stage.EXECUTE, message=why))


class ModelEdges:
    """ports.EdgeFactory of one life of the router."""

    def __init__(self, life: RouterLife) -> None:
        self._life = life

    def prober(self, cluster: Cluster, endpoint: Endpoint) -> ModelProber:
        return ModelProber(self._life, cluster, endpoint)

    def surgeon(self, cluster: Cluster) -> ModelSurgeon:
        return ModelSurgeon(self._life)
