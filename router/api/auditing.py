"""Who did what: wrappers around the engine that tell the audit log how each request ended. Not there when it is off."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Any, cast

from router.api.surface import (
    AuditSink,
    Copies,
    Executor,
    Listener,
    Listeners,
    ReadUnderWay,
    Session,
    Sessions,
)
from router.model.auditing import AuditEntry
from router.model.copying import CopyAnswer, CopyLayout
from router.model.errors import RouterError
from router.model.identity import TenantName
from router.model.port_policies import AuditScope
from router.model.request import Access, CancelOutcome, Method, Options, Request, Statement, TransactionMode
from router.model.result import Answer, Cells, StatementResult
from router.model.token import Token
from router.model.topology import Tenant

CALLER: ContextVar[str] = ContextVar("caller", default="")
"""Who the RPC of this task is of; tasks that it starts inherit it."""
ABOUT: ContextVar[str] = ContextVar("about", default="")
"""The tenant that an operator's order of this task is about."""


class Audit:
    """The audit log and what it is to tell."""

    def __init__(self, sink: AuditSink, scope: AuditScope) -> None:
        self._sink = sink
        self._scope = scope

    def tells(self, request: Request) -> bool:
        """Whether a request's end is told."""
        if self._scope is AuditScope.ALL:
            return True
        return self._scope is AuditScope.WRITES and request.access is Access.READ_WRITE

    @property
    def tells_writes(self) -> bool:
        """Whether transactions are told."""
        return self._scope is not AuditScope.ORDERS

    def rpc(self, what: str, error: RouterError | None, peer: str, tenant: TenantName | None) -> None:
        """An operator's order, or a call that was refused before it was anybody's request."""
        entry = AuditEntry(what, "ok", CALLER.get(), tenant or ABOUT.get(), peer)
        self._end(entry, error)

    @contextmanager
    def request(self, tenant: Tenant, request: Request) -> Any:
        """A request that ends with this block."""
        method = request.method.value
        with self.block(method, tenant, request.request_id, (step.statement.sql for step in request.steps)):
            yield

    @contextmanager
    def block(self, what: str, tenant: Tenant, request_id: str, texts: Iterable[bytes]) -> Any:
        """The same in parts."""
        began = time.monotonic()
        entry = AuditEntry(what, "ok", CALLER.get(), tenant.name, "", request_id, "", tuple(map(fingerprint, texts)))
        error: BaseException | None = None
        try:
            yield
        except BaseException as problem:
            error = problem
            raise
        finally:
            entry.took_s = time.monotonic() - began
            self._end(entry, error)

    def _end(self, entry: AuditEntry, error: BaseException | None) -> None:
        if isinstance(error, RouterError):
            entry.outcome, entry.executed = error.reason.value, error.executed.value
        elif error is not None:
            entry.outcome, entry.executed = "cancelled", "maybe"
        self._sink.record(entry)


def fingerprint(sql: bytes) -> str:
    """A statement by its hash."""
    return hashlib.sha256(sql).hexdigest()[:16]


class AuditedExecutor:
    """surface.Executor."""

    def __init__(self, inner: Executor, audit: Audit) -> None:
        self._inner = inner
        self._audit = audit

    async def run(self, tenant: Tenant, request: Request) -> Answer:
        """See Executor."""
        if not self._audit.tells(request):
            return await self._inner.run(tenant, request)
        with self._audit.request(tenant, request):
            return await self._inner.run(tenant, request)

    def start(
        self, tenant: Tenant, request: Request, tag: int, told: Callable[[ReadUnderWay], None]
    ) -> ReadUnderWay | None:
        """Reads that are told take the longer way."""
        return None if self._audit.tells(request) else self._inner.start(tenant, request, tag, told)

    async def stream(self, tenant: Tenant, request: Request) -> AsyncGenerator[Cells | Answer, None]:
        """See Executor."""
        async with aclosing(self._inner.stream(tenant, request)) as items:
            if not self._audit.tells(request):
                async for item in items:
                    yield item
                return
            with self._audit.request(tenant, request):
                async for item in items:
                    yield item

    def cancel(self, tenant: TenantName, request_id: str) -> CancelOutcome:
        """See Executor."""
        return self._inner.cancel(tenant, request_id)

    def stop(self, tenant: TenantName, request: Request) -> CancelOutcome:
        """See Executor."""
        return self._inner.stop(tenant, request)

    def refused(self, tenant_name: TenantName, method: Method, error: RouterError) -> None:
        """See Executor."""
        self._inner.refused(tenant_name, method, error)


class AuditedCopies:
    """surface.Copies."""

    def __init__(self, inner: Copies, audit: Audit) -> None:
        self._inner = inner
        self._audit = audit

    async def copy_out(
        self, tenant: Tenant, request: Request
    ) -> AsyncGenerator[CopyLayout | bytes | CopyAnswer, None]:
        """See Copies."""
        async with aclosing(self._inner.copy_out(tenant, request)) as items:
            if not self._audit.tells(request):
                async for item in items:
                    yield item
                return
            with self._audit.request(tenant, request):
                async for item in items:
                    yield item

    async def copy_in(self, tenant: Tenant, request: Request, source: AsyncIterator[bytes]) -> CopyAnswer:
        """See Copies."""
        if not self._audit.tells(request):
            return await self._inner.copy_in(tenant, request, source)
        with self._audit.request(tenant, request):
            return await self._inner.copy_in(tenant, request, source)


class AuditedListeners:
    """surface.Listeners: that somebody began to listen, or was refused."""

    def __init__(self, inner: Listeners, audit: Audit) -> None:
        self._inner = inner
        self._audit = audit

    async def open(self, tenant: Tenant, request: Request, channels: Collection[str]) -> Listener:
        """See Listeners."""
        if not self._audit.tells(request):
            return await self._inner.open(tenant, request, channels)
        with self._audit.request(tenant, request):
            return await self._inner.open(tenant, request, channels)


class AuditedSessions:
    """surface.Sessions."""

    def __init__(self, inner: Sessions, audit: Audit) -> None:
        self._inner = inner
        self._audit = audit

    async def open(
        self,
        tenant: Tenant,
        mode: TransactionMode,
        options: Options,
        deadline: float,
        request_id: str,
        after: Token | None = None,
    ) -> Session:
        """See Sessions."""
        if not self._audit.tells_writes:
            return await self._inner.open(tenant, mode, options, deadline, request_id, after)
        with self._audit.block("transact.begin", tenant, request_id, ()):
            session = await self._inner.open(tenant, mode, options, deadline, request_id, after)
        return cast("Session", _AuditedSession(session, self._audit, tenant, request_id))


class _AuditedSession:
    """surface.Session whose statements and commit are told; all else is the inner one's."""

    def __init__(self, inner: Session, audit: Audit, tenant: Tenant, request_id: str) -> None:
        self._inner = inner
        self._audit = audit
        self._tenant = tenant
        self._request_id = request_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def run(self, statement: Statement, deadline: float) -> StatementResult:
        with self._audit.block("transact.run", self._tenant, self._request_id, (statement.sql,)):
            return await self._inner.run(statement, deadline)

    async def commit(self, deadline: float) -> None:
        with self._audit.block("transact.commit", self._tenant, self._request_id, ()):
            await self._inner.commit(deadline)
