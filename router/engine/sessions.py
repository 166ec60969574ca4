"""Interactive transactions: one caller, one connection, from the first statement to COMMIT or ROLLBACK.

The connection is borrowed with the first statement, not with begin, so that a caller that only thinks holds nothing.
BEGIN travels with that statement and, as long as nothing was answered, may be repeated elsewhere; from then on the
router repeats nothing. Every end other than a confirmed COMMIT is a rollback, and says so.
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import replace

from router.decisions.retry import Action, Replayability, classify
from router.engine.attempts import Attempts, at_route, replayability
from router.engine.batches import FORGET_SEQUENCES, before_commit, commit
from router.engine.calls import Call, Register
from router.engine.endpoints import Pools
from router.engine.judging import SessionTraces, check_stays_read_only, refused
from router.engine.lane_pool import LanePool, Slot
from router.engine.placement import Placement
from router.engine.registered import resolve
from router.engine.tenants import TenantRuntime, Tenants
from router.model.errors import Code, Executed, RouterError
from router.model.observation import AttemptFailed
from router.model.reasons import RefuseReason
from router.model.request import (
    Access,
    Method,
    OnFailover,
    Options,
    ReadFrom,
    Request,
    Residue,
    Statement,
    TransactionMode,
    TransactionState,
)
from router.model.result import Receipt, StatementResult
from router.model.token import Token
from router.model.topology import Tenant
from router.model.views import WaitPhase
from router.ports import Clock, StatementInspector


class Session:
    """One interactive transaction. Not for two tasks at once. Raises RouterError only."""

    def __init__(self, sessions: Sessions, runtime: TenantRuntime, call: Call, mode: TransactionMode) -> None:
        self._sessions = sessions
        self._runtime = runtime
        self._call = call
        self._mode = mode
        self._pool: LanePool | None = None
        self._slot: Slot | None = None
        self._ended: RouterError | None = None
        self._over = False
        self._traces = SessionTraces()
        self._expired: RouterError | None = None
        """It grew too old while a statement ran: the end of that statement ends it."""
        self._busy = False
        loop = asyncio.get_running_loop()
        policy = runtime.tenant.policy
        self._ends_at = loop.time() + policy.max_transaction_s
        self._age_timer = loop.call_at(
            self._ends_at,
            self._expire,
            f"the transaction was open for {policy.max_transaction_s:g} s (max_transaction_s)",
        )
        self._idle_timer: asyncio.TimerHandle | None = None
        self._wait_for_next()

    @property
    def status(self) -> TransactionState:
        """libpq's word, not a guess."""
        if self._slot is None or not self._slot.lane.in_transaction:
            return TransactionState.IDLE
        return TransactionState.IN_ERROR if self._slot.lane.in_failed_transaction else TransactionState.IN_TRANSACTION

    def receipt(self) -> Receipt:
        """How the session went so far."""
        return self._call.receipt()

    async def run(self, statement: Statement, deadline: float) -> StatementResult:
        """Run one statement inside the transaction. An error leaves the session usable for rollback_to."""
        if self._runtime.registered is not None:
            statement = resolve(self._runtime.registered, statement)
        traits = self._sessions.inspector.inspect_in_session(statement.sql)
        if traits.refuse_in_transaction is not None:
            raise refused(traits.refuse_in_transaction, traits)
        check_stays_read_only(traits, self._mode)
        self._call.request.escape = max(self._call.request.escape, traits.escape)
        residue, forgets = self._traces.take(traits, statement.sql)
        result = await self._perform(statement, deadline, self._left_by(residue), forgets=forgets)
        if not self._over and self.status is TransactionState.IDLE:
            error = _misuse("the statement ended the transaction by itself; use end: COMMIT or ROLLBACK")
            self._end(error)
            raise error
        return result

    async def savepoint(self, name: str, deadline: float) -> None:
        """SAVEPOINT."""
        await self._perform(Statement(b"SAVEPOINT " + _identifier(name)), deadline)

    async def rollback_to(self, name: str, deadline: float) -> None:
        """ROLLBACK TO SAVEPOINT: also the way out of a failed transaction."""
        await self._perform(Statement(b"ROLLBACK TO SAVEPOINT " + _identifier(name)), deadline)

    async def release(self, name: str, deadline: float) -> None:
        """RELEASE SAVEPOINT."""
        await self._perform(Statement(b"RELEASE SAVEPOINT " + _identifier(name)), deadline)

    async def commit(self, deadline: float) -> None:
        """COMMIT. Returns only when PostgreSQL confirmed it. OUTCOME_UNKNOWN when its answer was lost."""
        self._check_open()
        if self._pool is None or self._slot is None:
            self._end(None)
            return
        if self.status is TransactionState.IN_ERROR:
            error = RouterError(
                Code.ABORTED,
                RefuseReason.TRANSACTION_LOST,
                "a statement of the transaction had failed: it was rolled back, not committed",
                executed=Executed.ROLLED_BACK,
            )
            self._end(error)
            raise error
        self._begin_work(deadline)
        try:
            await commit(self._pool, self._slot, self._call, before_commit(self._call))
        except AttemptFailed as failure:
            error = self._judged(failure)
            self._end(error)
            raise error from failure
        if self._call.writes:
            self._sessions.placement.note_commit(self._call)
        self._end(None)

    async def rollback(self) -> None:
        """ROLLBACK; never fails: a lost connection has rolled back, too."""
        ending = self._end(None)
        if ending is not None:
            await asyncio.wait({ending})

    async def close(self) -> None:
        """The caller is gone: roll back what is open, and do not wait for it. Idempotent."""
        self._end(None, cancelled=True)

    # --- inside ------------------------------------------------------------------------------------------------

    def _left_by(self, residue: Residue) -> Residue:
        """DISCARD ALL would also leave the role that a registered tenant's connection was born with."""
        return Residue.DESTROY if residue and self._runtime.tenant.role else residue

    async def _perform(
        self, statement: Statement, deadline: float, residue: Residue = Residue.NONE, *, forgets: bool = False
    ) -> StatementResult:
        self._check_open()
        self._begin_work(min(deadline, self._ends_at))
        statements = (FORGET_SEQUENCES, statement) if forgets else (statement,)
        try:
            if self._slot is None or self._pool is None:
                return await self._first(statements, residue)
            self._slot.residue = max(self._slot.residue, residue)
            return await self._next(self._pool, self._slot, statements)
        except RouterError as error:
            if self._expired is not None:
                raise self._expired from error
            raise
        finally:
            self._busy = False
            if self._expired is not None:
                self._end(self._expired)
            self._wait_for_next()

    async def _first(self, statements: tuple[Statement, ...], residue: Residue) -> StatementResult:
        attempt = functools.partial(self._begin, statements, residue)
        try:
            return await attempt()
        except AttemptFailed as failure:
            if self._slot is not None:
                raise self._judged(failure) from failure
            return await self._sessions.attempts.again(
                self._runtime, self._call, failure, attempt, self._facts_of_first()
            )

    def _facts_of_first(self) -> Replayability:
        """As long as nothing was answered, BEGIN and the first statement are a batch without its COMMIT."""
        return replace(replayability(self._call), batch=True)

    async def _begin(self, statements: tuple[Statement, ...], residue: Residue) -> StatementResult:
        access = Access.READ_ONLY if self._reads_replicas() else Access.READ_WRITE
        route = await self._sessions.placement.route(self._runtime, self._call, access)
        try:
            pool = self._sessions.pools.get(self._runtime.tenant, route.endpoint, access, route.generation)
        except RouterError as error:
            self._end(error)  # as who it began it can run nothing any more
            raise
        self._call.attempts += 1
        slot = None
        try:
            slot = await pool.pin(self._call.request.deadline)
            slot.residue = residue  # before it runs: what a failed statement leaves behind is unknown
            begin = Statement(self._mode.begin_sql())
            unit = await pool.run_pinned(slot, (begin, *statements), self._call.request.deadline, commits=False)
        except BaseException as error:
            if slot is not None and isinstance(error, AttemptFailed) and self._is_the_callers(slot, error):
                self._take(pool, slot)
            elif slot is not None:
                pool.release(slot)
            if isinstance(error, AttemptFailed):
                raise at_route(error, route) from error
            raise
        self._take(pool, slot)
        return unit.results[-1]

    def _is_the_callers(self, slot: Slot, failure: AttemptFailed) -> bool:
        """BEGIN went through and the statement failed for good: the session lives on, for a rollback_to."""
        failed = slot.lane.in_failed_transaction and not slot.units
        return failed and classify(failure.fault, self._facts_of_first()).action is Action.FAIL

    def _take(self, pool: LanePool, slot: Slot) -> None:
        self._pool, self._slot = pool, slot
        self._runtime.in_flight[self._call.endpoint] += 1

    def _reads_replicas(self) -> bool:
        return self._mode.read_only and self._call.request.options.read is not ReadFrom.PRIMARY

    async def _next(self, pool: LanePool, slot: Slot, statements: tuple[Statement, ...]) -> StatementResult:
        self._call.enter(WaitPhase.EXECUTE, self._sessions.clock.now())
        try:
            unit = await pool.run_pinned(slot, statements, self._call.request.deadline, commits=False)
        except AttemptFailed as failure:
            error = self._judged(failure)
            if not slot.lane.in_transaction:
                self._end(error)
            raise error from failure
        return unit.results[-1]

    def _judged(self, failure: AttemptFailed) -> RouterError:
        facts = replayability(self._call, interactive=True)
        return self._sessions.attempts.error(self._runtime, self._call, failure.fault, facts)

    def _check_open(self) -> None:
        if self._ended is not None:
            raise self._ended
        if self._over:
            raise _misuse("the transaction has ended: open a new one")
        if self._busy:
            raise _misuse("the transaction is busy with an earlier message")

    def _begin_work(self, deadline: float) -> None:
        self._call.request.deadline = deadline
        self._busy = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _wait_for_next(self) -> None:
        if self._over:
            return
        idle_s = self._runtime.tenant.policy.idle_in_transaction_s
        self._idle_timer = asyncio.get_running_loop().call_later(
            idle_s, self._expire, f"no message came for {idle_s:g} s (idle_in_transaction_s)"
        )

    def _expire(self, why: str) -> None:
        """Loud: a late COMMIT is told that nothing was committed."""
        if self._over or self._call.committing:
            return
        error = RouterError(
            Code.ABORTED,
            RefuseReason.TRANSACTION_EXPIRED,
            f"{why}: it was rolled back",
            executed=Executed.ROLLED_BACK,
        )
        if self._busy:
            self._expired = error  # the running statement's deadline is the same moment
        else:
            self._end(error)

    def _end(self, error: RouterError | None, *, cancelled: bool = False) -> asyncio.Task[None] | None:
        """Everything at once, without waiting, so that no cancellation can leave half of it; the task is ROLLBACK."""
        if self._over:
            return None
        error = self._expired or error
        self._over = True
        self._ended = error
        self._age_timer.cancel()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        slot, self._slot = self._slot, None
        ending = None
        if slot is not None and self._pool is not None:
            self._runtime.in_flight[self._call.endpoint] -= 1
            ending = self._pool.release(slot)
        self._runtime.admission.transactions -= 1
        self._sessions.register.finish(self._call, error, cancelled=cancelled)
        return ending


class Sessions:
    """Opens interactive transactions, within the tenant's limits."""

    def __init__(
        self,
        tenants: Tenants,
        register: Register,
        placement: Placement,
        pools: Pools,
        attempts: Attempts,
        inspector: StatementInspector,
        clock: Clock,
    ) -> None:
        self._tenants = tenants
        self.register = register
        self.placement = placement
        self.pools = pools
        self.attempts = attempts
        self.inspector = inspector
        self.clock = clock
        self._draining = False

    def drain(self) -> None:
        """From now on no new transaction begins."""
        self._draining = True

    async def open(
        self,
        tenant: Tenant,
        mode: TransactionMode,
        options: Options,
        deadline: float,
        request_id: str,
        after: Token | None = None,
    ) -> Session:
        """Begin a session. after: what it must see at least, where it reads from replicas. RouterError
        RESOURCE_EXHAUSTED beyond the tenant's max_transactions, or its rate."""
        try:
            runtime = await self._admitted(tenant, deadline, options)
        except RouterError as error:
            self.register.refused(tenant.name, Method.TRANSACT, error)
            raise
        runtime.admission.transactions += 1
        request = Request(Method.TRANSACT, (), deadline, options, request_id, mode, after=after)
        call = self.register.enter(tenant, request)
        call.task = None
        self.register.admit(call)
        return Session(self, runtime, call, mode)

    async def _admitted(self, tenant: Tenant, deadline: float, options: Options) -> TenantRuntime:
        """The tenant's runtime, once it is not paused, if one transaction more may begin."""
        runtime = self._tenants.of(tenant)
        if not self._draining:
            patient = options.on_failover is OnFailover.WAIT
            runtime = await self._tenants.resumed(tenant, deadline, patient=patient)
        if self._draining:
            raise RouterError(
                Code.UNAVAILABLE, RefuseReason.DRAINING, "the router is shutting down", retry_after_s=0.1
            )
        limit = runtime.tenant.policy.max_transactions
        if runtime.transactions >= limit:
            raise RouterError(
                Code.RESOURCE_EXHAUSTED,
                RefuseReason.QUOTA,
                f"tenant {tenant.name} has {runtime.transactions} open transactions, {limit} are allowed "
                "(limits.max_transactions): end some, or raise it",
                retry_after_s=1.0,
                numbers={"limit": limit, "in_use": runtime.transactions, "scope": "tenant"},
            )
        runtime.admission.count()
        return runtime


def _identifier(name: str) -> bytes:
    if not name or "\0" in name or len(name.encode()) > 63:
        raise RouterError(
            Code.INVALID_ARGUMENT,
            RefuseReason.BAD_REQUEST,
            "a savepoint's name has 1 to 63 bytes and no NUL",
        )
    return b'"' + name.replace('"', '""').encode() + b'"'


def _misuse(message: str) -> RouterError:
    return RouterError(
        Code.FAILED_PRECONDITION, RefuseReason.TRANSACTION_MISUSE, message, executed=Executed.ROLLED_BACK
    )
