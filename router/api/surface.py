"""What the api calls in the engine, as Protocols, so that both sides can be read, checked and tested apart.

All of these raise RouterError and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol

from router.model.errors import RouterError
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.request import (
    CancelOutcome,
    Method,
    Options,
    Request,
    Statement,
    TransactionMode,
    TransactionState,
)
from router.model.result import Answer, Cells, Receipt, StatementResult
from router.model.topology import Tenant
from router.model.views import (
    ClusterView,
    EndpointView,
    PoolView,
    ReloadResult,
    SwitchoverProgress,
    TenantView,
    WaiterView,
)


class Directory(Protocol):
    """Who a caller is."""

    def authenticate(self, token: str | None, claimed_tenant: str | None) -> Tenant:
        """The tenant that this token proves; RouterError UNAUTHENTICATED or TENANT_DENIED."""
        ...


class Executor(Protocol):
    """Runs requests."""

    async def run(self, tenant: Tenant, request: Request) -> Answer: ...

    def stream(self, tenant: Tenant, request: Request) -> AsyncGenerator[Cells | Answer, None]:
        """Chunks of rows, then the Answer; its first result may hold the columns when no row came."""
        ...

    def cancel(self, tenant: TenantName, request_id: str) -> CancelOutcome: ...

    def refused(self, tenant_name: TenantName, method: Method, error: RouterError) -> None:
        """Count a request that never reached run() or stream()."""
        ...


class Session(Protocol):
    """One interactive transaction on one connection."""

    @property
    def status(self) -> TransactionState: ...

    async def run(self, statement: Statement, deadline: float) -> StatementResult: ...

    async def savepoint(self, name: str, deadline: float) -> None: ...

    async def rollback_to(self, name: str, deadline: float) -> None: ...

    async def release(self, name: str, deadline: float) -> None: ...

    async def commit(self, deadline: float) -> None: ...

    async def rollback(self) -> None: ...

    async def close(self) -> None:
        """Roll back what is open and give the connection up; may be called again."""
        ...

    def receipt(self) -> Receipt: ...


class Sessions(Protocol):
    """Opens interactive transactions."""

    async def open(
        self, tenant: Tenant, mode: TransactionMode, options: Options, deadline: float, request_id: str
    ) -> Session: ...


class Overview(Protocol):
    """The engine's state, for operators."""

    def tenants(self) -> Sequence[TenantView]: ...

    def endpoints(self, cluster: ClusterName | None) -> Sequence[EndpointView]: ...

    def pools(self, tenant: TenantName | None) -> Sequence[PoolView]: ...

    def waiters(self, tenant: TenantName | None) -> Sequence[WaiterView]: ...

    def clusters(self) -> Sequence[ClusterView]: ...

    def subscribe(self) -> AsyncIterator[None]:
        """One item for each change of state since the call; changes in between may share an item."""
        ...


class Operator(Protocol):
    """Carries out operators' orders."""

    def drain(self, endpoint: EndpointName) -> int:
        """Give the endpoint no new work; how many requests still run there."""
        ...

    def resume(self, endpoint: EndpointName) -> None: ...

    def set_weight(self, endpoint: EndpointName, weight: int) -> int:
        """Set the weight until the next reload; the previous one."""
        ...

    def switchover(
        self, cluster: ClusterName, to: EndpointName | None, timeout_s: float
    ) -> AsyncIterator[SwitchoverProgress]: ...

    async def reload(self) -> ReloadResult: ...
