"""Operators' orders: drain, weights, switchover; each carried out by the one who owns the state it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from router.engine.supervisors import Supervisors
from router.model.errors import Code, RouterError
from router.model.events import FailoverStep, Phase
from router.model.identity import ClusterName, EndpointName
from router.model.reasons import RefuseReason
from router.model.views import NO_ENDPOINT_LOAD, Load, SwitchoverProgress
from router.ports import Clock

MAX_WEIGHT = 10_000


class Operator:
    """All raise RouterError only."""

    def __init__(
        self,
        supervisors: Supervisors,
        load: Callable[[], Load],
        clock: Clock,
    ) -> None:
        self._supervisors = supervisors
        self._load = load
        self._clock = clock

    def drain(self, endpoint: EndpointName) -> int:
        """Give an endpoint no new work; how many units still run there."""
        self._supervisors.of_endpoint(endpoint).drain(endpoint)
        return self._load().endpoints.get(endpoint, NO_ENDPOINT_LOAD).in_flight

    def resume(self, endpoint: EndpointName) -> None:
        """End a drain."""
        self._supervisors.of_endpoint(endpoint).resume(endpoint)

    def set_weight(self, endpoint: EndpointName, weight: int) -> int:
        """Set a weight until the next reload; the previous one."""
        if not 0 <= weight <= MAX_WEIGHT:
            raise RouterError(
                Code.INVALID_ARGUMENT,
                RefuseReason.BAD_REQUEST,
                f"a weight lies between 0 and {MAX_WEIGHT}, not {weight}",
                numbers={"limit": MAX_WEIGHT},
            )
        supervisor = self._supervisors.of_endpoint(endpoint)
        before = supervisor.state.endpoints[endpoint].weight
        supervisor.set_weight(endpoint, weight)
        return before

    async def switchover(
        self, cluster: ClusterName, to: EndpointName | None, timeout_s: float
    ) -> AsyncIterator[SwitchoverProgress]:
        """Move the primary by plan; each step as it ends, then one with done and the writes' pause."""
        supervisor = self._supervisors[cluster]
        started = self._clock.now()
        steps: asyncio.Queue[FailoverStep | None] = asyncio.Queue()
        pause = _Pause(self._clock)

        async def move() -> EndpointName | RouterError:
            try:
                return await supervisor.switchover(to, timeout_s, steps.put_nowait)
            except RouterError as refusal:
                return refusal  # who asked may be gone; a task must not end with what nobody takes
            finally:
                steps.put_nowait(None)

        unsubscribe = supervisor.subscribe(lambda state: pause.see(state.phase))
        moving = asyncio.create_task(move())
        try:
            while (step := await steps.get()) is not None:
                words = f"{step.endpoint}: {step.detail}" if step.detail else step.endpoint
                outcome = "" if step.ok else "failed: "
                yield SwitchoverProgress(step.step, outcome + words, self._clock.now() - started)
            primary = await asyncio.shield(moving)
            if isinstance(primary, RouterError):
                raise primary
            yield SwitchoverProgress(
                "done", "", self._clock.now() - started, done=True, primary=primary, pause_s=pause.seconds
            )
        finally:
            unsubscribe()


class _Pause:
    """How long a cluster took no writes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None
        self.seconds = 0.0

    def see(self, phase: Phase) -> None:
        """Follow the cluster's phase."""
        serving = phase in (Phase.STEADY, Phase.DRAINING)
        now = self._clock.now()
        if not serving and self._since is None:
            self._since = now
        elif serving and self._since is not None:
            self.seconds += now - self._since
            self._since = None
