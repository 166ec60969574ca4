"""Requests under way: one record each, and the register that finds, counts and cancels them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from router.engine.directory import Directory
from router.model.errors import Code, Executed, RouterError
from router.model.events import Outcome, RequestAdmitted, RequestFinished
from router.model.identity import EndpointName, TenantName, TopologyNumber
from router.model.reasons import RefuseReason, RouteReason
from router.model.request import Access, CancelOutcome, Method, Request
from router.model.result import Durability, Receipt
from router.model.token import Token
from router.model.topology import Role, Tenant
from router.model.views import WaiterView, WaitPhase
from router.ports import Clock, EventSink

_WAITS_FOR = {
    WaitPhase.ADMISSION: "a place among the tenant's running requests",
    WaitPhase.HOLD: "a primary",
    WaitPhase.REPLAY: "a replica to replay what its consistency token names",
    WaitPhase.ACQUIRE: "a connection",
    WaitPhase.EXECUTE: "PostgreSQL's answer",
    WaitPhase.LISTEN: "notifications",
}


class Stoppable(Protocol):
    """A read that runs without a task."""

    def cancel(self) -> None:
        """Give it up; whoever started it is told that it was cancelled."""
        ...


class Causal:
    """How far a read has come that must see what its token names."""

    __slots__ = ("asked", "failed", "token", "until")

    def __init__(self, token: Token, until: float) -> None:
        self.token = token
        """What it must see; once the primary was asked, without its "and now"."""
        self.until = until
        """When it is waited for no longer (monotonic seconds)."""
        self.failed: frozenset[EndpointName] = frozenset()
        """Replicas that did not tell their position."""
        self.asked = False
        """A replica was asked for its position."""


class Call:
    """One request under way. Written by what runs it, read by operators."""

    __slots__ = (
        "acquired_s",
        "admitted",
        "answered",
        "attempts",
        "cancel_asked",
        "causal",
        "committing",
        "copied_bytes",
        "durability",
        "endpoint",
        "executed_s",
        "hedged",
        "held_s",
        "hold_until",
        "in_doubt",
        "pause_s",
        "phase",
        "phase_since",
        "queued_s",
        "read",
        "released",
        "replayed",
        "request",
        "role",
        "route_reason",
        "rows",
        "spared",
        "started",
        "stop_running",
        "streamed_s",
        "task",
        "task_cancelled",
        "tenant",
        "token",
        "topology",
        "tried",
    )

    def __init__(
        self, tenant: Tenant, request: Request, now: float, task: asyncio.Task[object] | None
    ) -> None:
        self.tenant = tenant
        self.request = request
        self.started = now
        self.phase = WaitPhase.ADMISSION
        self.phase_since = now
        self.admitted = self.hedged = False
        self.attempts = self.spared = 0  # tries, and those of them that cost no server anything
        self.queued_s = self.held_s = self.acquired_s = self.executed_s = self.streamed_s = 0.0
        self.rows = self.copied_bytes = 0
        self.hold_until = 0.0
        self.pause_s = 0.0
        """Before the next attempt (seconds)."""
        self.released = False
        """It has waited its turn in the hold and does not queue behind newcomers again."""
        self.endpoint = EndpointName("")
        self.role = Role.UNKNOWN
        self.route_reason = RouteReason.PRIMARY
        self.topology = TopologyNumber(0)
        self.token = b""  # of the receipt: what its caller has seen once it has the answer
        self.causal: Causal | None = None  # set once it is a read that waits for what its token names
        self.tried: tuple[EndpointName, ...] = ()
        self.stop_running: Callable[[], bool] | None = None
        """Set while it runs alone on a lane: stops it in PostgreSQL, so that its end is definite. False: too late."""
        self.committing = False
        self.in_doubt = False  # an attempt before, or a request with the same key, may be done; its row has not told
        self.durability = Durability.UNKNOWN  # of its write, once that is committed
        self.replayed = False  # the answer is that of an earlier request with the same key
        self.answered = False
        """A stream's last item is ready: what its reader does from then on does not change how it ended."""
        self.cancel_asked = False
        self.task = task
        self.read: Stoppable | None = None
        """Set instead of task while it is a read that needs none."""
        self.task_cancelled = False
        """The task was cancelled by us, because someone asked for that by the request's id."""

    @property
    def writes(self) -> bool:
        """What it does is committed on the primary."""
        request = self.request
        return request.access is Access.READ_WRITE and not (request.mode is not None and request.mode.read_only)

    @property
    def charged(self) -> int:
        """Attempts that reached a server: a statement sent, or a connect that failed and was made for this request."""
        return self.attempts - self.spared

    def enter(self, phase: WaitPhase, now: float) -> None:
        """Begin a phase."""
        self.phase = phase
        self.phase_since = now

    def receipt(self) -> Receipt:
        """What the caller learns about the way its request went."""
        return Receipt(
            self.request.request_id,
            self.endpoint,
            self.role,
            self.topology,
            max(1, self.charged),
            self.queued_s + self.acquired_s,
            self.held_s,
            self.executed_s,
            self.route_reason,
            self.token,
            self.replayed,
            self.hedged,
            self.durability,
        )


class Register:
    """All calls of this process. admitted = served + failed + cancelled + under way, per tenant that is configured."""

    def __init__(self, clock: Clock, events: EventSink, directory: Directory) -> None:
        self._clock = clock
        self._directory = directory
        self.events = events
        self._calls: set[Call] = set()
        self._by_id: dict[tuple[TenantName, str], Call] = {}
        self._namesakes: dict[tuple[TenantName, str], list[Call]] = {}
        """Further calls with an id that one in _by_id has: callers choose ids, and some give one to several calls."""
        self._counts: dict[TenantName, Counter[Outcome]] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def enter(self, tenant: Tenant, request: Request) -> Call:
        """A request begins, run by the current task."""
        return self._enter(Call(tenant, request, self._clock.now(), asyncio.current_task()))

    def enter_without_task(self, tenant: Tenant, request: Request) -> Call:
        """A read begins that no task runs."""
        return self._enter(Call(tenant, request, self._clock.now(), None))

    def _enter(self, call: Call) -> Call:
        self._calls.add(call)
        request = call.request
        if request.request_id:
            key = (call.tenant.name, request.request_id)
            if self._by_id.setdefault(key, call) is not call:
                self._namesakes.setdefault(key, []).append(call)
        return call

    def admit(self, call: Call) -> None:
        """A request passed admission."""
        call.admitted = True
        self.events.emit(RequestAdmitted(call.tenant.name, call.request.method))

    def finish(self, call: Call, error: RouterError | None, *, cancelled: bool = False) -> None:
        """A request ended: counted and told once."""
        self._calls.discard(call)
        request, tenant = call.request, call.tenant.name
        if request.request_id:
            key = (tenant, request.request_id)
            if self._namesakes and key in self._namesakes:
                self._forget_namesake(key, call)
            elif self._by_id.get(key) is call:
                del self._by_id[key]
        if error is None and not cancelled and call.admitted:
            outcome, reason = Outcome.SERVED, ""
        else:
            outcome = _outcome(call, error, cancelled)
            reason = error.reason.value if error is not None else RefuseReason.CANCELLED.value if cancelled else ""
        self._count(tenant, outcome)
        self.events.emit(
            RequestFinished(  # by position: names take a third longer, and one is made for each request
                tenant,
                request.method,
                outcome,
                reason,
                call.endpoint,
                call.role,
                request.request_id,
                call.charged,
                call.queued_s,
                call.held_s,
                call.acquired_s,
                call.executed_s,
                call.streamed_s,
                self._clock.now() - call.started,
                call.rows,
                call.copied_bytes,
            )
        )

    def _forget_namesake(self, key: tuple[TenantName, str], call: Call) -> None:
        left = [one for one in self._named(*key) if one is not call]
        self._by_id[key] = left[0]
        if len(left) > 1:
            self._namesakes[key] = left[1:]
        else:
            del self._namesakes[key]

    def _named(self, tenant: TenantName, request_id: str) -> list[Call]:
        first = self._by_id.get((tenant, request_id))
        return [] if first is None else [first, *self._namesakes.get((tenant, request_id), ())]

    def failed(self, call: Call, error: BaseException) -> RouterError | None:
        """A request ended without its answer; what to raise instead of error, if anything."""
        match error:
            case RouterError():
                self.finish(call, error)
            case asyncio.CancelledError():
                stopped = stopped_by_id(call)
                self.finish(call, stopped, cancelled=True)
                return stopped
            case GeneratorExit():
                self.finish(call, None, cancelled=not call.answered)
            case _:
                internal = RouterError(Code.INTERNAL, RefuseReason.INTERNAL, "internal error", executed=Executed.MAYBE)
                self.finish(call, internal)
        return None

    def refused(self, tenant: TenantName, method: Method, error: RouterError) -> None:
        """A request was refused before it became a call."""
        self._count(tenant, Outcome.REFUSED)
        self.events.emit(RequestFinished(tenant, method, Outcome.REFUSED, error.reason.value))

    def _count(self, tenant: TenantName, outcome: Outcome) -> None:
        counts = self._counts.get(tenant)
        if counts is None:
            if self._directory.get(tenant) is None:
                return  # it has been removed, and nobody would forget it again
            counts = self._counts[tenant] = Counter()
        counts[outcome] += 1

    def forget(self, names: Iterable[TenantName]) -> None:
        """Tenants that were removed from the configuration."""
        for name in names:
            self._counts.pop(name, None)

    @property
    def known(self) -> set[TenantName]:
        """Tenants whose requests have been counted."""
        return set(self._counts)

    def counts(self, tenant: TenantName) -> Counter[Outcome]:
        """How the tenant's requests have ended since the start."""
        return self._counts.get(tenant, Counter())

    def cancel(self, tenant: TenantName, request_id: str) -> CancelOutcome:
        """Ask all running requests of that id to stop."""
        outcomes = [self._stop(call) for call in self._named(tenant, request_id)]
        for outcome in (CancelOutcome.CANCELLING, CancelOutcome.NOT_CANCELLABLE):
            if outcome in outcomes:
                return outcome
        return CancelOutcome.NOT_FOUND

    def stop(self, tenant: TenantName, request: Request) -> CancelOutcome:
        """Ask this one to stop, whatever other requests have its id."""
        for call in self._named(tenant, request.request_id):
            if call.request is request:
                return self._stop(call)
        return CancelOutcome.NOT_FOUND

    def _stop(self, call: Call) -> CancelOutcome:
        """What runs alone in PostgreSQL is cancelled there, so its end is definite."""
        if call.read is not None:
            call.read.cancel()
            return CancelOutcome.CANCELLING
        if call.task is None:
            return CancelOutcome.NOT_FOUND
        if call.committing:
            return CancelOutcome.NOT_CANCELLABLE
        if call.cancel_asked:
            return CancelOutcome.CANCELLING
        if call.stop_running is None:
            call.task_cancelled = call.task.cancel()
        elif not call.stop_running() and call.request.method is not Method.EXECUTE_BATCH:
            return CancelOutcome.NOT_CANCELLABLE  # answered in this very moment; a batch still asks before it goes on
        call.cancel_asked = True
        return CancelOutcome.CANCELLING

    def find(self, tenant: TenantName, request_id: str) -> Call | None:
        """The request of that id, if it is under way."""
        return self._by_id.get((tenant, request_id))

    def under_way(self, tenant: TenantName | None = None) -> Iterator[Call]:
        """Calls under way, oldest first."""
        for call in sorted(self._calls, key=lambda one: one.started):
            if tenant is None or call.tenant.name == tenant:
                yield call

    def waiters(self, tenant: TenantName | None) -> list[WaiterView]:
        """Who waits for what."""
        now = self._clock.now()
        return [
            WaiterView(
                call.tenant.name,
                call.request.request_id,
                call.request.method.value,
                call.phase,
                now - call.phase_since,
                call.endpoint,
                _WAITS_FOR[call.phase],
            )
            for call in self.under_way(tenant)
        ]


def _outcome(call: Call, error: RouterError | None, cancelled: bool) -> Outcome:
    if not call.admitted:
        return Outcome.REFUSED
    if cancelled or (error is not None and error.reason is RefuseReason.CANCELLED):
        return Outcome.CANCELLED
    return Outcome.SERVED if error is None else Outcome.FAILED


def stopped_by_id(call: Call) -> RouterError | None:
    """The answer for a call whose task was cancelled because someone asked for it; None when its caller went away."""
    if call.task_cancelled and call.task is not None:
        call.task_cancelled = False
        if call.task.uncancel() == 0:
            return cancelled_error(Executed.MAYBE if call.in_doubt else Executed.NO)
    return None


def cancelled_error(executed: Executed) -> RouterError:
    """The answer to a request that its caller cancelled."""
    return RouterError(Code.CANCELLED, RefuseReason.CANCELLED, "the request was cancelled", executed=executed)
