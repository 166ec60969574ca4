"""What the engine keeps per tenant while it is in use: admission, balancing, retry budget, requests in flight."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict

from router.decisions.balancing import BALANCERS
from router.decisions.fairness import Admit, admit
from router.decisions.latencies import Latencies
from router.decisions.refusal import Refuse
from router.decisions.retry_budget import RetryBudget
from router.decisions.routing import RouteBook, Want
from router.engine.expiry import Expired, wait_until
from router.engine.registered import texts_of
from router.model.errors import Code, RouterError
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.policy import RetryPolicy
from router.model.reasons import RefuseReason
from router.model.request import Access, Options
from router.model.topology import Tenant
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
    """At most max_in_flight requests of a tenant run, at most max_queue wait; first come, first served."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.in_flight = 0
        self.transactions = 0
        """Interactive transactions open; counted here, where a changed configuration does not lose them."""
        self._queue: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    @property
    def queued(self) -> int:
        """Requests waiting."""
        return len(self._queue)

    def try_enter(self) -> bool:
        """Enter at once when there is room and nobody waits."""
        if self._judge() is not Admit.GO:
            return False
        self.in_flight += 1
        return True

    def _judge(self) -> Admit | Refuse:
        # How long the queue will take is not measured yet, so no deadline is hopeless on arrival.
        return admit(self.in_flight, len(self._queue), self.tenant.policy, math.inf)

    async def enter(self, deadline: float) -> None:
        """Wait in turn. RouterError RESOURCE_EXHAUSTED when the queue is full or the deadline passes first."""
        verdict = self._judge()
        if isinstance(verdict, Refuse):
            raise self._refused(verdict.reason, f"{len(self._queue)} requests already wait")
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue[place] = None
        try:
            await wait_until(place, deadline)
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.leave()  # it was our turn in the very moment of the cancellation
            raise
        except Expired:
            raise self._refused(RefuseReason.QUOTA, "the deadline passed while waiting for admission") from None
        finally:
            self._queue.pop(place, None)

    def leave(self) -> None:
        """A request ended: the next one takes its place."""
        self.in_flight -= 1
        while self._queue and self.in_flight < self.tenant.policy.max_in_flight:
            place, _ = self._queue.popitem(last=False)
            if not place.done():
                self.in_flight += 1
                place.set_result(None)

    def _refused(self, reason: RefuseReason, words: str) -> RouterError:
        policy = self.tenant.policy
        return RouterError(
            Code.RESOURCE_EXHAUSTED,
            reason,
            f"tenant {self.tenant.name}: {words}; {self.in_flight} of {policy.max_in_flight} running",
            retry_after_s=0.5,
            numbers={
                "limit": policy.max_in_flight,
                "in_use": self.in_flight,
                "waiting": len(self._queue),
                "scope": "tenant",
            },
        )


class TenantRuntime:
    """One tenant in use."""

    def __init__(self, tenant: Tenant, budget: RetryBudget) -> None:
        self.tenant = tenant
        self.admission = Admission(tenant)
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

    @property
    def transactions(self) -> int:
        """Interactive transactions open."""
        return self.admission.transactions

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

    def __init__(self, retry: RetryPolicy, clock: Clock) -> None:
        self._retry = retry
        self._clock = clock
        self._runtimes: dict[TenantName, TenantRuntime] = {}
        self._shared: dict[ClusterName, RetryBudget] = {}

    def of(self, tenant: Tenant) -> TenantRuntime:
        """The runtime of a tenant, made on first use."""
        runtime = self._runtimes.get(tenant.name)
        if runtime is None:
            runtime = self._runtimes[tenant.name] = TenantRuntime(tenant, self._budget(tenant))
        elif runtime.tenant is not tenant:
            same = runtime.tenant.cluster == tenant.cluster
            before, runtime = runtime, TenantRuntime(tenant, runtime.budget if same else self._budget(tenant))
            runtime.admission = before.admission
            runtime.admission.tenant = tenant
            runtime.in_flight = before.in_flight
            runtime.uses_keys = before.uses_keys
            self._runtimes[tenant.name] = runtime
        return runtime

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

    def with_keys(self) -> list[TenantRuntime]:
        """Those that have sent idempotency keys."""
        return [runtime for runtime in self._runtimes.values() if runtime.uses_keys]

    def forget(self, names: set[TenantName]) -> None:
        """Tenants that were removed from the configuration."""
        for name in names:
            self._runtimes.pop(name, None)
