"""A planned switchover: hold writes, let the chosen standby catch up, then move the primary; undone when it fails.

What need not wait is done before writes are held (prepare); the rest is the pause: hold, fence, promote, prove.
The former primary stays out (a stale primary) until it is brought back as a standby, which SQL cannot do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from router.decisions.cluster_facts import Seen, gather
from router.decisions.machine import ClusterMachine, Event, MoveFailed, Operation
from router.decisions.promotion import PromotionPlan, Standby, read_sync_names
from router.engine.moving import STRAGGLERS_S, MoveError, Mover, RivalFound
from router.model.errors import Code, RouterError
from router.model.events import Health, Phase
from router.model.identity import EndpointName, Lsn
from router.model.journal import MoveKind, MoveNote, MoveStage
from router.model.observation import AttemptFailed, ProbeResult, RoleClaim
from router.model.reasons import PhaseReason, RefuseReason
from router.model.topology import Cluster, Endpoint, FailoverMode
from router.ports import Clock, Surgeon

CATCH_UP_STEP_S = 0.002
LANES_S = 0.3
"""Who writes opens lanes at the next primary for so long before writes are held (seconds): in the hold that would take
processor time from the very steps that everybody waits for."""
UNDO_S = 1.0
"""Undoing holds up the rescue of a cluster whose primary died meanwhile: so long at most (seconds)."""


@dataclass(frozen=True, slots=True)
class SwitchoverPlan:
    """Who hands over to whom."""

    primary: Endpoint
    to: EndpointName
    promotion: PromotionPlan
    lsn: Lsn
    """Where the primary was when this was planned."""


class Switchover:
    """Carries out one switchover."""

    def __init__(
        self,
        mover: Mover,
        surgeon: Surgeon,
        clock: Clock,
        take: Callable[[ProbeResult | Event], None],
    ) -> None:
        self._mover = mover
        self._surgeon = surgeon
        self._clock = clock
        self._take = take
        self._endpoints: dict[EndpointName, Endpoint] = {}

    def plan(
        self, cluster: Cluster, machine: ClusterMachine, seen: Mapping[EndpointName, Seen], to: EndpointName | None
    ) -> SwitchoverPlan:
        """Check that it can succeed. RouterError SWITCHOVER_REFUSED otherwise."""
        if cluster.mode is not FailoverMode.PROMOTE:
            raise refused(f"cluster {cluster.name} is in follow mode: whoever manages it moves its primary")
        if machine.manager:
            raise refused(machine.manager)
        if machine.operation is not Operation.NONE or machine.phase not in (Phase.STEADY, Phase.DRAINING):
            raise refused(f"cluster {cluster.name} is {machine.phase.value}, not steady: {machine.detail}")
        primary, claim = machine.primary, machine.last_claim
        if primary is None or claim is None:
            raise refused(f"cluster {cluster.name} has no primary")
        if to == primary:
            raise refused(f"{to} is the primary already")
        facts = gather(seen, primary, machine.term, machine.system_id)
        following = {s.name: s for s in facts.standbys if follows(s, seen[s.name], machine)}
        rule = read_sync_names(claim.sync_names)
        counted = {
            name: s
            for name, s in following.items()
            if rule.k == 0 or rule.names == ("*",) or s.application_name in rule.names
        }
        if to is not None and to not in counted:
            raise refused(f"{to} cannot take over: it is not a healthy, streaming, synchronous standby of {primary}")
        if not counted:
            raise refused("no standby is healthy, streaming and synchronous")
        if len(following) < 2 and rule.k > 0:
            raise refused(_none_left([s.name for s in facts.standbys], following))
        chosen = to or max(sorted(counted), key=lambda name: _received(counted[name]))
        names = (*((s.name, s.application_name) for s in facts.standbys), (primary, primary.lower()))
        fence = (chosen, *(name for name in following if name != chosen))
        promotion = PromotionPlan(primary, machine.term, fence, fence, len(fence), rule, names)
        self._endpoints = {endpoint.name: endpoint for endpoint in cluster.endpoints}
        return SwitchoverPlan(self._endpoints[primary], chosen, promotion, claim.lsn)

    async def prepare(self, plan: SwitchoverPlan, timeout_s: float) -> None:
        """What need not wait until writes are held: connections, the setting of the next primary, catching up, and the
        first stage in the journal.

        Changes nothing that works now, so it may be given up at any time. RouterError SWITCHOVER_REFUSED.
        """
        mover, surgeon, to = self._mover, self._surgeon, plan.to
        others = tuple(name for name in plan.promotion.fence if name != to)
        try:
            async with asyncio.timeout(timeout_s):
                names = (plan.primary.name, *others)
                looks = (surgeon.look(self._endpoints[name], mover.deadline()) for name in names)
                looking = asyncio.gather(*looks, return_exceptions=True)
                await mover.set_synchronous(plan.promotion, to, others)
                await self._clock.sleep(LANES_S)
                catching_up = mover.act("catch_up", to, self._caught_up(to, plan.lsn))
                await mover.beside(MoveNote(MoveKind.SWITCHOVER, MoveStage.HOLD, to), catching_up)
                await looking
        except TimeoutError:
            raise refused(f"{to} did not catch up within {timeout_s:g} s; nothing was changed") from None
        except MoveError as error:
            raise refused(f"{to} cannot take over: {error.detail}") from error

    async def run(self, plan: SwitchoverPlan, timeout_s: float) -> EndpointName:
        """Do it, SwitchoverOrdered having been taken. RouterError SWITCHOVER_REFUSED when it failed: then everything
        is as before, or, once promoted, as the facts say."""
        try:
            async with asyncio.timeout(timeout_s):
                finished = await self._move(plan)
        except Exception as error:  # whatever it is, the cluster must not stay in the switchover
            words = f"it took longer than {timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
            rival = isinstance(error, RivalFound)
            await self._fail(plan, f"the switchover to {plan.to} failed: {words}", rival=rival)
            raise refused(f"the switchover to {plan.to} failed: {words}") from error
        except asyncio.CancelledError:
            await self._fail(plan, "the router stops")
            raise
        self._take(finished)
        await self._mover.finish()
        return plan.to

    async def _fail(self, plan: SwitchoverPlan, words: str, *, rival: bool = False) -> None:
        """Undo it where that is still possible, and say so. rival: another primary has been seen, beside which the old
        one must not write again."""
        pledged = self._mover.pledged
        muted = pledged is not None or rival or not await self._undone(plan)
        self._take(MoveFailed(PhaseReason.SWITCHOVER, words, pledged is not None, pledged, muted))

    async def _move(self, plan: SwitchoverPlan) -> Event:
        mover, to = self._mover, plan.to
        fenced = await self._fenced(plan)
        while not await self._is_held(plan.primary):
            # On its way when writes were held, or another client's: what it wrote is not on the next primary.
            await mover.note(MoveNote(MoveKind.SWITCHOVER, MoveStage.FENCE, to))
            await asyncio.gather(*(mover.repoint(name, plan.primary.name) for name in plan.promotion.fence))
            fenced = await self._fenced(plan)
        others = tuple(name for name in fenced if name != to)
        return await mover.crown(plan.promotion, to, others, fenced[to].received_lsn)

    async def _fenced(self, plan: SwitchoverPlan) -> dict[EndpointName, RoleClaim]:
        """Hold writes and fence all standbys, with what was written there; what they say then. MoveError."""
        mover, surgeon, to = self._mover, self._surgeon, plan.to
        held = await mover.act("hold_writes", plan.primary.name, surgeon.hold_writes(plan.primary, mover.deadline()))
        goal = held.claim.lsn if held.claim is not None else Lsn(0)
        await mover.act("catch_up", to, self._caught_up(to, goal))
        fencing = mover.fence(plan.promotion.fence, plan.promotion)
        fenced = await mover.beside(MoveNote(MoveKind.SWITCHOVER, MoveStage.PROMOTE, to), fencing)
        if len(fenced) < len(plan.promotion.fence):
            raise MoveError(PhaseReason.FENCE_INCOMPLETE, "a standby could not be fenced")
        furthest = max(claim.received_lsn for claim in fenced.values())
        if fenced[to].received_lsn < furthest:
            # One that is ahead of the new primary, were it only by a checkpoint, could not follow it.
            await mover.act("repoint", to, surgeon.repoint(self._endpoints[to], plan.primary, mover.deadline()))
            await mover.act("catch_up", to, self._caught_up(to, furthest))
            fenced |= await mover.fence((to,), replace(plan.promotion, counted=(to,), needed=1))
        return fenced

    async def _is_held(self, primary: Endpoint) -> bool:
        """Whether nobody has written since the last position; one that does not say has died in the middle of it."""
        try:
            return await self._surgeon.still_held(primary, self._clock.now() + STRAGGLERS_S)
        except AttemptFailed:
            return True

    async def _caught_up(self, name: EndpointName, goal: Lsn) -> None:
        """Wait until a standby has received and replayed up to goal; bounded by the switchover's own timeout."""
        while True:
            claim = (await self._surgeon.look(self._endpoints[name], self._mover.deadline())).claim
            if claim is not None and min(claim.received_lsn, claim.lsn) >= goal:
                return
            await self._clock.sleep(CATCH_UP_STEP_S)

    async def _undone(self, plan: SwitchoverPlan) -> bool:
        """Attach the standbys to the old primary again and let it write; whether it may. Standbys that could not be
        attached are strays: the failover machine sees to them."""
        attaching = [
            asyncio.create_task(self._mover.repoint(name, plan.primary.name)) for name in plan.promotion.fence
        ]
        allowed = asyncio.create_task(self._mover.allow_writes(plan.primary.name))
        done, late = await asyncio.wait([*attaching, allowed], timeout=UNDO_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return allowed in done and allowed.result()


def follows(standby: Standby, seen: Seen, machine: ClusterMachine) -> bool:
    """Whether a standby is healthy and streams on the cluster's timeline."""
    claim = standby.claim
    return (
        seen.health.state is Health.UP
        and claim is not None
        and claim.in_recovery
        and claim.receiver_alive
        and claim.timeline == machine.term
    )


def _none_left(standbys: Sequence[str], following: Collection[str]) -> str:
    """Why nobody could confirm the writes of the next primary. standbys: all; following: the healthy and streaming."""
    missing = ", ".join(name for name in standbys if name not in following)
    return (
        f"the new primary would have no standby left to confirm its writes: of {len(standbys)} standbys only "
        f"{', '.join(following)} is healthy and streaming{f', not {missing}' if missing else ''}; 2 are needed. "
        "See `pointsman status` and `pointsman doctor`, and try again when another one streams"
    )


def refused(message: str) -> RouterError:
    """SWITCHOVER_REFUSED with words for the operator."""
    return RouterError(Code.FAILED_PRECONDITION, RefuseReason.SWITCHOVER_REFUSED, message)


def _received(standby: Standby) -> Lsn:
    return standby.claim.received_lsn if standby.claim is not None else Lsn(0)
