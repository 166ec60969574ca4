"""What the engine keeps per tenant while it is in use: admission, balancing, retry budget, requests in flight."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from router.decisions.balancing import BALANCERS
from router.decisions.fairness import Admit, admit
from router.decisions.latencies import Latencies
from router.decisions.pace import Pace
from router.decisions.refusal import Refuse
from router.decisions.request_rate import RequestRate
from router.decisions.retry_budget import RetryBudget
from router.decisions.routing import RouteBook, Want
from router.engine.directory import Directory
from router.engine.expiry import Expired, wait_until
from router.engine.pausing import Pause
from router.engine.registered import texts_of
from router.engine.waiting_line import WaitingLine
from router.model.errors import Code, RouterError
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.policy import HoldPolicy, RetryPolicy
from router.model.reasons import RefuseReason
from router.model.request import DEFAULT_OPTIONS, Access, Options, Priority
from router.model.topology import Tenant, TenantChanges
from router.ports import Clock


class HedgeBook:
    """What a tenant's hedges need to know: how long its reads take, and how many hedges it may make."""

    __slots__ = ("budget", "latencies")

    LEAST = 5.0
    """Hedges in ten seconds that may be made however few reads there are."""

    def __init__(self, ratio: float, now: float) -> None:
        self.latencies = Latencies()
        self.budget = RetryBudget(ratio, self.LEAST, now)


class Admission:
    """At most max_in_flight requests of a tenant run, at most max_queue wait, the more important first. Who could not
    be answered by its deadline is refused on arrival, as soon as the queue's pace is known."""

    def __init__(self, tenant: Tenant, clock: Clock) -> None:
        self.tenant = tenant
        self._clock = clock
        self._rate = rate_of(tenant, clock.now())
        self._pace = Pace()
        self.in_flight = 0
        self.transactions = 0
        """Interactive transactions open; counted here, where a changed configuration does not lose them."""
        self.listeners = 0
        """Listen streams open; counted here for the same reason."""
        self.queued = 0
        """Requests waiting."""
        self._line = WaitingLine()

    def apply(self, tenant: Tenant) -> None:
        """A changed configuration: counts stay, limits are the new ones."""
        before, self.tenant = self.tenant.policy, tenant
        if (before.rate_per_s, before.rate_burst) != (tenant.policy.rate_per_s, tenant.policy.rate_burst):
            self._rate = rate_of(tenant, self._clock.now())

    def try_enter(self) -> bool:
        """Enter at once when there is room, nobody waits, and the tenant's rate allows it; never during a pause."""
        if self.tenant.paused or self.queued or self.in_flight >= self.tenant.policy.max_in_flight:
            return False
        if self._rate is not None and self._rate.take(self._clock.now()):
            return False
        self.in_flight += 1
        return True

    def count(self) -> None:
        """One request more that takes no place among the running ones. RouterError RESOURCE_EXHAUSTED: the rate does
        not allow it."""
        wait_s = self._rate.take(self._clock.now()) if self._rate is not None else 0.0
        if wait_s:
            policy = self.tenant.policy
            raise RouterError(
                Code.RESOURCE_EXHAUSTED,
                RefuseReason.QUOTA,
                f"tenant {self.tenant.name} sends more than {policy.rate_per_s:g} requests a second "
                f"(limits.rate_per_s) and {policy.rate_burst} at once (limits.rate_burst): send fewer, or raise them",
                retry_after_s=wait_s,
                numbers={"limit": policy.rate_per_s, "burst": policy.rate_burst, "scope": "tenant"},
            )

    async def enter(self, deadline: float, priority: Priority = Priority.MEDIUM) -> None:
        """Wait in turn. When the queue is full, who is more important takes the place of who is less. RouterError
        RESOURCE_EXHAUSTED: the rate or the queue does not allow it, or the deadline would pass first, or does."""
        now = self._clock.now()
        self.count()
        if not self.queued:
            self._pace.begin(now)
        verdict = self._judge(deadline - now, self.in_flight + self._line.ahead_of(priority) + 1, now)
        if isinstance(verdict, Refuse) and not self._makes_room(verdict, priority):
            raise verdict.error()
        if verdict is Admit.GO:
            self.in_flight += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.join(place, deadline, priority)
        self.queued += 1
        try:
            await wait_until(place, deadline)
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.leave()  # it was our turn in the very moment of the cancellation
            raise
        except Expired:
            raise self._expired() from None
        finally:
            self._line.leave(place, priority)
            self.queued = len(self._line)

    def _makes_room(self, verdict: Refuse, priority: Priority) -> bool:
        if verdict.reason is not RefuseReason.QUEUE_FULL:
            return False
        place = self._line.take_less_important(priority)
        self.queued = len(self._line)
        if place is not None and not place.done():
            place.set_exception(verdict.error())
        return place is not None

    def leave(self) -> None:
        """A request ended: the next one takes its place."""
        self.in_flight -= 1
        self.let_in()

    def let_in(self) -> None:
        """Whoever waits and has room does not wait any more."""
        if not self.queued:
            return
        now = self._clock.now()
        self._pace.left(now)
        while self.queued and self.in_flight < self.tenant.policy.max_in_flight:
            place, deadline = self._line.take()
            self.queued -= 1
            if place.done():
                continue
            # What would not be done in time takes the place of what would.
            verdict = self._judge(deadline - now, self.in_flight + 1, now)
            if isinstance(verdict, Refuse) and verdict.reason is RefuseReason.HOPELESS_DEADLINE:
                place.set_exception(verdict.error())
            else:
                self.in_flight += 1
                place.set_result(None)

    def _judge(self, left_s: float, ahead: int, now: float) -> Admit | Refuse:
        expected_s = self._pace.wait_s(ahead, now)
        return admit(self.in_flight, self.queued, self.tenant.policy, left_s, expected_s)

    def _expired(self) -> RouterError:
        policy = self.tenant.policy
        return RouterError(
            Code.RESOURCE_EXHAUSTED,
            RefuseReason.QUOTA,
            f"tenant {self.tenant.name}: the deadline passed while waiting for admission; {self.in_flight} of "
            f"{policy.max_in_flight} running (limits.max_in_flight): send fewer at once, or give them more time",
            retry_after_s=0.5,
            numbers={
                "limit": policy.max_in_flight,
                "in_use": self.in_flight,
                "waiting": self.queued,
                "scope": "tenant",
            },
        )


def rate_of(tenant: Tenant, now: float) -> RequestRate | None:
    """A tenant's rate; None: it has no limit."""
    policy = tenant.policy
    return RequestRate(policy.rate_per_s, float(policy.rate_burst), now) if policy.rate_per_s else None


class TenantRuntime:
    """One tenant in use."""

    def __init__(self, tenant: Tenant, budget: RetryBudget, admission: Admission, pause: Pause) -> None:
        self.tenant = tenant
        self.admission = admission
        self.pause = pause
        self.book = RouteBook()
        self.balancer = BALANCERS[tenant.policy.balancer]()
        self.in_flight: Counter[EndpointName] = Counter()
        self.budget = budget
        """Of its repetitions; one for all tenants of its cluster stands above it."""
        self.uses_keys = False
        """It has sent an idempotency key to this process."""
        self.registered = texts_of(tenant)
        """What it may run, if not everything."""
        self.hedges: HedgeBook | None = None
        """What hedging has learned; made by its first read."""
        self._reads: dict[Options, Want] = {}
        self._writes: dict[Options, Want] = {}
        self.plain_read = self.want(Access.READ_ONLY, DEFAULT_OPTIONS)
        """Of a read without options, as most are: never looked up."""

    @property
    def transactions(self) -> int:
        """Interactive transactions open."""
        return self.admission.transactions

    @property
    def under_way(self) -> int:
        """Admitted, and not ended: requests, interactive transactions, Listen streams."""
        return self.admission.in_flight + self.admission.transactions + self.admission.listeners

    def want(self, access: Access, options: Options) -> Want:
        """The facts for routing, one object per kind of request."""
        wants = self._reads if access is Access.READ_ONLY else self._writes
        want = wants.get(options)
        if want is None:
            if len(wants) > 256:
                wants.clear()
            want = wants[options] = Want(
                access,
                options.read,
                options.max_staleness_s,
                self.tenant.policy.lag_limit_s,
                options.fallback,
                options.on_failover,
            )
        return want


class Tenants:
    """Runtimes by tenant; a changed configuration keeps the counts and takes the new limits."""

    def __init__(
        self,
        retry: RetryPolicy,
        clock: Clock,
        directory: Directory,
        pause_s: Callable[[Tenant], float] = lambda _: HoldPolicy.window_s,
    ) -> None:
        """pause_s: how long a request of a tenant waits for the end of a pause."""
        self._retry = retry
        self._clock = clock
        self._directory = directory
        self._pause_s = pause_s
        self._runtimes: dict[TenantName, TenantRuntime] = {}
        self._shared: dict[ClusterName, RetryBudget] = {}

    def of(self, tenant: Tenant) -> TenantRuntime:
        """The runtime of a tenant, made on first use. RouterError: it has been removed."""
        runtime = self._runtimes.get(tenant.name)
        if runtime is not None and runtime.tenant is tenant:
            return runtime
        tenant = self._directory.in_force(tenant)  # who was admitted before brings no former one back
        if runtime is None:
            admission, pause = Admission(tenant, self._clock), Pause(self._pause_s(tenant))
            runtime = self._runtimes[tenant.name] = TenantRuntime(tenant, self._budget(tenant), admission, pause)
        elif runtime.tenant is not tenant:
            before, same = runtime, runtime.tenant.cluster == tenant.cluster
            budget = before.budget if same else self._budget(tenant)
            runtime = TenantRuntime(tenant, budget, before.admission, before.pause)
            runtime.admission.apply(tenant)
            runtime.pause.window_s = self._pause_s(tenant)
            runtime.in_flight = before.in_flight
            runtime.uses_keys = before.uses_keys
            self._runtimes[tenant.name] = runtime
        return runtime

    async def resumed(self, tenant: Tenant, deadline: float, *, patient: bool) -> TenantRuntime:
        """The runtime of a tenant, once it is not paused. RouterError as of Pause.over()."""
        runtime = self.of(tenant)
        while runtime.tenant.paused:
            await runtime.pause.over(tenant, deadline, patient=patient)
            runtime = self.of(tenant)
        return runtime

    def take(self, changes: TenantChanges) -> None:
        """Tenants have changed or gone, as the directory knows; who waits and now may go on does."""
        for tenant in changes.changed:
            if tenant.name in self._runtimes:
                runtime = self.of(tenant)
                runtime.admission.let_in()
                if not tenant.paused:
                    runtime.pause.end()
        self.forget(set(changes.removed))

    def _budget(self, tenant: Tenant) -> RetryBudget:
        """A tenant's own below its cluster's: many tenants with few requests each are one load to a server."""
        now, policy = self._clock.now(), self._retry
        shared = self._shared.get(tenant.cluster)
        if shared is None:
            shared = self._shared[tenant.cluster] = RetryBudget(policy.budget_ratio, policy.budget_least, now)
        return RetryBudget(policy.budget_ratio, policy.budget_least, now, shared)

    def find(self, name: TenantName) -> TenantRuntime | None:
        """The runtime of a tenant that is in use."""
        return self._runtimes.get(name)

    @property
    def known(self) -> set[TenantName]:
        """Tenants in use."""
        return set(self._runtimes)

    def note_key(self, name: TenantName) -> None:
        """A tenant has sent an idempotency key; of one that has been removed nobody takes note."""
        runtime = self._runtimes.get(name)
        if runtime is not None:
            runtime.uses_keys = True

    def with_keys(self) -> list[TenantRuntime]:
        """Those that have sent idempotency keys."""
        return [runtime for runtime in self._runtimes.values() if runtime.uses_keys]

    def forget(self, names: set[TenantName]) -> None:
        """Tenants that were removed from the configuration."""
        for name in names:
            runtime = self._runtimes.pop(name, None)
            if runtime is not None:
                runtime.pause.turn_away()
