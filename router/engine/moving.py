"""Moving the primary role: carries out a PromotionPlan, and orders a planned switchover. Each step is told as an event.

Steps: (hold_writes, catch_up,) fence, choose, set_synchronous, promote, commits_wait, verify_write beside repoint. Up
to promote everything can be undone; from promote on, the facts decide what has become of it.

A router may be killed, or stopped for minutes, between any two acts. So the journal has a stage before its first act,
and right before the promotion every server is asked whether our fence still stands: who moved one of them meanwhile,
another router or a person, has the right of way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from router.decisions.machine import MoveFailed, MoveFinished
from router.decisions.promotion import PromotionPlan, choose_candidate, is_rival, next_rule
from router.model.events import FailoverStep
from router.model.identity import NO_LSN, ClusterName, EndpointName, Lsn
from router.model.journal import JournalFailed, MoveKind, MoveNote, MoveStage
from router.model.observation import AttemptFailed, ProbeResult, RoleClaim
from router.model.reasons import PhaseReason
from router.model.topology import Endpoint
from router.ports import Clock, Surgeon

T = TypeVar("T")
SYNCHRONOUS_S = 60.0
"""So long the checkpointer of a new primary may take to read who must confirm commits; no write can wait so long, and
without an end nobody could undo a move to a server whose checkpointer is lost (seconds)."""
STRAGGLERS_S = 0.2
"""Once enough standbys are fenced, the others get this long to be fenced too (seconds)."""


class MoveError(Exception):
    """A step failed; reason and words for the operator."""

    def __init__(self, reason: PhaseReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class RivalFound(MoveError):
    """Somebody else has promoted a server meanwhile: what was begun is neither finished nor taken back."""


class Mover:
    """Carries out one move; made anew for each."""

    def __init__(
        self,
        cluster: ClusterName,
        endpoints: Mapping[EndpointName, Endpoint],
        surgeon: Surgeon,
        clock: Clock,
        step_timeout_s: float,
        on_step: Callable[[FailoverStep], None],
        on_claim: Callable[[ProbeResult], None],
        write: Callable[[MoveNote], Awaitable[None]] | None = None,
    ) -> None:
        """write: puts a stage into the journal, where there is one; JournalFailed."""
        self._write = write
        self._cluster = cluster
        self._endpoints = endpoints
        self._surgeon = surgeon
        self._clock = clock
        self._step_timeout_s = step_timeout_s
        self._on_step = on_step
        self._on_claim = on_claim
        self._pledged: EndpointName | None = None
        self._repoints: list[asyncio.Task[bool]] = []

    @property
    def promoted(self) -> bool:
        """Whether pg_promote may have been asked for: then nothing is undone."""
        return self._pledged is not None

    @property
    def pledged(self) -> EndpointName | None:
        """Of whom."""
        return self._pledged

    async def promote(self, plan: PromotionPlan) -> MoveFinished | MoveFailed:
        """Fence, choose, promote, verify. Never raises but for cancellation."""
        try:
            await self.note(MoveNote(MoveKind.PROMOTION, MoveStage.FENCE))
            fenced = await self.fence(plan.fence, plan)
            chosen = choose_candidate(plan, fenced)
            if chosen is None:
                count = sum(name in fenced for name in plan.counted)
                raise MoveError(
                    PhaseReason.FENCE_INCOMPLETE, f"{count} standbys could be fenced, {plan.needed} are needed"
                )
            self._say("choose", chosen, 0.0, f"timeline {fenced[chosen].timeline}, of {len(fenced)} fenced")
            others = tuple(name for name in fenced if name != chosen)
            await self.beside(
                MoveNote(MoveKind.PROMOTION, MoveStage.PROMOTE, chosen), self.set_synchronous(plan, chosen, others)
            )
            return await self.crown(plan, chosen, others, fenced[chosen].received_lsn)
        except MoveError as error:
            return MoveFailed(error.reason, error.detail, self.promoted, self._pledged)
        except Exception as error:  # whatever it is, the cluster must not stay in PROMOTING
            words = f"unexpected: {error!r}"
            return MoveFailed(PhaseReason.PROMOTION_FAILED, words, self.promoted, self._pledged)

    async def fence(self, names: Iterable[EndpointName], plan: PromotionPlan) -> dict[EndpointName, RoleClaim]:
        """Fence standbys at once; returns when all are, or when enough are and the rest has had its chance.

        MoveError when one turns out to be primary: whoever promoted it has let the others go, and enough can be had.
        """
        fenced: dict[EndpointName, RoleClaim] = {}
        refused: list[ProbeResult] = []

        async def fence_one(name: EndpointName) -> None:
            try:
                result = await self.act("fence", name, self._surgeon.fence(self._endpoints[name], self.deadline()))
            except MoveError:
                refused.extend(await self._look(name))
                return
            self._on_claim(result)
            if result.claim is not None:
                fenced[name] = result.claim

        tasks = [asyncio.create_task(fence_one(name)) for name in names]
        pending: set[asyncio.Task[None]] = set(tasks)
        try:
            while pending and sum(name in fenced for name in plan.counted) < plan.needed:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                await asyncio.wait(pending, timeout=STRAGGLERS_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for result in refused:
            self._on_claim(result)
            if result.claim is not None and is_rival(result.claim, fenced.values()):
                words = f"{result.endpoint} takes writes already: somebody else has promoted it"
                raise RivalFound(PhaseReason.FENCE_INCOMPLETE, words)
        return dict(fenced)

    async def _look(self, name: EndpointName) -> tuple[ProbeResult, ...]:
        """What a server is that would not be fenced; nothing when it does not say."""
        try:
            return (await self._surgeon.look(self._endpoints[name], self.deadline()),)
        except AttemptFailed:
            return ()

    async def crown(
        self,
        plan: PromotionPlan,
        chosen: EndpointName,
        others: tuple[EndpointName, ...],
        switch_lsn: Lsn = NO_LSN,
    ) -> MoveFinished:
        """Promote a fenced standby, attach the others to it, and prove it by a write. MoveError when it fails.

        set_synchronous comes first: from its first moment as primary it must not acknowledge what nobody else has.
        """
        candidate = self._endpoints[chosen]
        await self._recheck(plan, chosen, others)
        self._pledged = chosen
        result = await self.act("promote", chosen, self._surgeon.promote(candidate, self.deadline()))
        if next_rule(plan, chosen, others).text():
            await self._commits_wait(chosen)
        self._repoints = [asyncio.create_task(self.repoint(name, chosen)) for name in others]
        await self.act("verify_write", chosen, self._surgeon.verify_write(candidate, self.deadline()))
        if result.claim is None:
            raise MoveError(PhaseReason.PROMOTION_FAILED, f"{chosen} did not say its timeline")
        self._on_claim(result)
        return MoveFinished(chosen, result.claim.timeline, switch_lsn, result.claim)

    async def _commits_wait(self, chosen: EndpointName) -> None:
        """Until commits on the new primary wait for who has to confirm them: before that nobody may follow it, and no
        write may go there. MoveError after SYNCHRONOUS_S."""
        until = self._clock.now() + SYNCHRONOUS_S
        while not await self.act(
            "commits_wait", chosen, self._surgeon.commits_wait(self._endpoints[chosen], self.deadline())
        ):
            words = "commits do not wait for a standby yet: its checkpointer has not read synchronous_standby_names"
            self._say("commits_wait", chosen, 0.0, words, ok=False)
            if self._clock.now() >= until:
                raise MoveError(PhaseReason.PROMOTION_FAILED, f"{chosen}: {words}, for {SYNCHRONOUS_S:g} s")

    async def set_synchronous(
        self, plan: PromotionPlan, chosen: EndpointName, others: tuple[EndpointName, ...]
    ) -> None:
        """Say who must confirm the commits of the one that is to be primary."""
        rule = next_rule(plan, chosen, others)
        setting = self._surgeon.set_synchronous(self._endpoints[chosen], rule.text(), self.deadline())
        await self.act("set_synchronous", chosen, setting, rule.text() or "nobody: writes are not replicated")

    async def _recheck(self, plan: PromotionPlan, chosen: EndpointName, others: tuple[EndpointName, ...]) -> None:
        """Whether what was fenced still is, by us. MoveError when somebody else has moved it meanwhile."""
        names = (chosen, *others)

        async def stands(name: EndpointName) -> bool:
            try:
                return await self._surgeon.still_fenced(self._endpoints[name], self.deadline())
            except AttemptFailed:
                return False

        standing = {
            name for name, stood in zip(names, await asyncio.gather(*map(stands, names)), strict=True) if stood
        }
        enough = sum(name in standing for name in plan.counted) >= plan.needed
        if chosen in standing and enough:
            return
        moved = ", ".join(name for name in names if name not in standing)
        words = f"{moved} is not as we left it: somebody else moves the primary, or it is gone"
        self._say("recheck", chosen, 0.0, words, ok=False)
        raise MoveError(PhaseReason.FENCE_INCOMPLETE, words)

    async def note(self, note: MoveNote) -> None:
        """Put a stage into the journal before its first act. MoveError when that fails: then nothing may be done."""
        if self._write is None:
            return
        try:
            await self._write(note)
        except JournalFailed as error:
            raise MoveError(PhaseReason.JOURNAL_FAILED, str(error)) from error

    async def beside(self, note: MoveNote, work: Coroutine[Any, Any, T]) -> T:
        """Put a stage into the journal while something else is done that may be done without it. MoveError."""
        noting = asyncio.create_task(self.note(note))
        try:
            result = await work
        except BaseException:
            noting.cancel()
            await asyncio.gather(noting, return_exceptions=True)  # of the two failures the first is told
            raise
        await noting
        return result

    async def finish(self) -> None:
        """Wait for what may outlast the proof of service: standbys that are still being attached."""
        await asyncio.gather(*self._repoints)

    async def repoint(self, standby: EndpointName, upstream: EndpointName, *, others_too: bool = True) -> bool:
        """Attach a standby to another server; whether it worked. others_too: also one under another router's fence."""
        there, to = self._endpoints[standby], self._endpoints[upstream]
        work = self._surgeon.repoint(there, to, self.deadline(), others_too=others_too)
        try:
            await self.act("repoint", standby, work, f"to {upstream}")
        except MoveError:
            return False
        return True

    async def allow_writes(self, primary: EndpointName) -> bool:
        """Take back the hold on a primary's writes; whether it worked."""
        work = self._surgeon.allow_writes(self._endpoints[primary], self.deadline())
        try:
            await self.act("allow_writes", primary, work)
        except MoveError:
            return False
        return True

    async def act(self, step: str, endpoint: EndpointName, work: Awaitable[T], detail: str = "") -> T:
        """One step, timed and told. MoveError when the surgeon fails."""
        began = self._clock.now()
        try:
            result = await work
        except AttemptFailed as error:
            words = error.fault.message or error.fault.kind.value
            self._say(step, endpoint, self._clock.now() - began, words, ok=False)
            raise MoveError(PhaseReason.PROMOTION_FAILED, f"{step} on {endpoint} failed: {words}") from error
        self._say(step, endpoint, self._clock.now() - began, detail)
        return result

    def deadline(self) -> float:
        """When a step that starts now must have ended."""
        return self._clock.now() + self._step_timeout_s

    def _say(self, step: str, endpoint: EndpointName, took_s: float, detail: str, *, ok: bool = True) -> None:
        self._on_step(FailoverStep(self._cluster, step, endpoint, ok, took_s, detail))
