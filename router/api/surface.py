"""What the api calls in the engine, as Protocols, so that both sides can be read, checked and tested apart.

All of these raise RouterError and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from typing import Protocol

from router.model.auditing import AuditEntry
from router.model.copying import CopyAnswer, CopyLayout
from router.model.errors import RouterError
from router.model.identity import ClusterName, EndpointName, TenantName
from router.model.listening import Heard, Notification
from router.model.request import (
    CancelOutcome,
    Method,
    Options,
    Request,
    Statement,
    TransactionMode,
    TransactionState,
)
from router.model.result import Answer, Cells, OutcomeFound, Receipt, StatementResult
from router.model.token import Token
from router.model.topology import Tenant
from router.model.views import (
    ClusterView,
    ConfigDiff,
    EndpointView,
    PoolView,
    ReloadResult,
    RestartProgress,
    SwitchoverProgress,
    TenantDocument,
    TenantOrdered,
    TenantView,
    WaiterView,
    WorkerView,
)


class AuditSink(Protocol):
    """Takes what is to be audited; never raises, never waits."""

    def record(self, entry: AuditEntry) -> None: ...


class ReadUnderWay(Protocol):
    """A read that runs without a task."""

    @property
    def tag(self) -> int:
        """Chosen by whoever started it."""
        ...

    @property
    def request(self) -> Request: ...

    @property
    def answer(self) -> Answer:
        """Set when it has ended without an error."""
        ...

    @property
    def error(self) -> Exception | None:
        """RouterError, or a mistake of the engine."""
        ...

    def cancel(self) -> None:
        """Its caller no longer wants it: it ends by itself, with CANCELLED or with what was faster."""
        ...

    def abandon(self) -> None:
        """Its caller has gone: it ends, and nobody is told."""
        ...


class Executor(Protocol):
    """Runs requests."""

    async def run(self, tenant: Tenant, request: Request) -> Answer: ...

    def start(
        self, tenant: Tenant, request: Request, tag: int, told: Callable[[ReadUnderWay], None]
    ) -> ReadUnderWay | None:
        """Begin a Query without a task; told is called once, later, when it has ended. None: use run()."""
        ...

    def stream(self, tenant: Tenant, request: Request) -> AsyncGenerator[Cells | Answer, None]:
        """Chunks of rows, then the Answer; its first result may hold the columns when no row came."""
        ...

    def cancel(self, tenant: TenantName, request_id: str) -> CancelOutcome:
        """Ask all that run under this id to stop."""
        ...

    def stop(self, tenant: TenantName, request: Request) -> CancelOutcome:
        """Ask this one to stop that run() was given."""
        ...

    def refused(self, tenant_name: TenantName, method: Method, error: RouterError) -> None:
        """Count a request that never reached run() or stream()."""
        ...


class Copies(Protocol):
    """Runs copies."""

    def copy_out(
        self, tenant: Tenant, request: Request
    ) -> AsyncGenerator[CopyLayout | bytes | CopyAnswer, None]:
        """The layout, the data in pieces of at most 128 KiB, the answer."""
        ...

    async def copy_in(self, tenant: Tenant, request: Request, source: AsyncIterator[bytes]) -> CopyAnswer:
        """The end of the source commits, an exception of it rolls back; when this returns or raises, no piece of it
        is being asked for."""
        ...


class Listener(Protocol):
    """One Listen stream."""

    async def next(self) -> Heard:
        """What came next; a heartbeat when that takes long. RouterError: the end."""
        ...

    def more(self) -> list[Notification]:
        """Notifications that have come already, to go with the one from next(), as many as a message takes."""
        ...

    def drain(self) -> None:
        """Tell its caller that the router goes away, and end a moment later."""
        ...

    def close(self) -> None:
        """Its caller has gone; may be called again."""
        ...


class Listeners(Protocol):
    """Opens Listen streams."""

    async def open(self, tenant: Tenant, request: Request, channels: Collection[str]) -> Listener: ...


class Outcomes(Protocol):
    """Looks up what became of writes."""

    async def of_request(self, tenant: Tenant, request_id: str, deadline: float) -> OutcomeFound: ...

    async def of_key(self, tenant: Tenant, key: str, deadline: float, request_id: str) -> OutcomeFound: ...


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
        self,
        tenant: Tenant,
        mode: TransactionMode,
        options: Options,
        deadline: float,
        request_id: str,
        after: Token | None = None,
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


class Configuration(Protocol):
    """The configuration in force, and what would take its place."""

    async def reload(self) -> ReloadResult:
        """Read its files again; with any mistake in them nothing changes."""
        ...

    async def diff(self, document: str) -> ConfigDiff:
        """What a configuration file's text would change; empty: the file as it stands."""
        ...


class TenantStore(Protocol):
    """Tenants in files of their own. version: the one that was seen, empty for whatever there is."""

    async def show(self, name: str) -> TenantDocument: ...

    async def create(self, name: str, document: str) -> TenantOrdered: ...

    async def change(self, name: str, document: str, version: str) -> TenantOrdered: ...

    async def pause(self, name: str, version: str, *, paused: bool) -> TenantOrdered: ...

    async def remove(self, name: str, version: str) -> TenantOrdered: ...


class Workers(Protocol):
    """The processes that serve callers."""

    def views(self) -> Sequence[WorkerView]: ...

    async def refresh(self) -> None:
        """Ask all for their load, for a short time; who does not answer is marked, and shown as it was."""
        ...

    async def behind(self) -> Sequence[str]:
        """Wait a little until all have taken what was ordered; who has not, in words."""
        ...

    def restart_workers(self) -> AsyncIterator[RestartProgress]:
        """Replace them one by one, each step as it ends. RouterError when a replacement does not start."""
        ...
