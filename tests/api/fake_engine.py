"""An engine that does what a test tells it, behind the shapes of router/api/surface.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

from pointsman.v1 import types_pb2

from router.model.errors import Code, Executed, RouterError
from router.model.events import Health, Phase
from router.model.identity import ClusterName, EndpointName, Lsn, TenantName, Term, TopologyNumber
from router.model.reasons import ConcurrencyReason, HealthReason, RefuseReason, RouteReason
from router.model.request import (
    Access,
    CancelOutcome,
    Method,
    Options,
    Request,
    Statement,
    TransactionMode,
    TransactionState,
)
from router.model.result import Answer, Cells, Receipt, StatementResult
from router.model.state import EndpointState
from router.model.token import Token
from router.model.topology import FailoverMode, Role, Tenant
from router.model.views import (
    Allowance,
    ClusterView,
    ConfigChange,
    ConfigDiff,
    ConfigEffect,
    EndpointView,
    PoolView,
    ReloadResult,
    RestartProgress,
    SwitchoverProgress,
    TenantDocument,
    TenantOrdered,
    TenantView,
    WaiterView,
    WaitPhase,
    WorkerState,
    WorkerView,
)

RECEIPT = Receipt(
    request_id="r" * 22,
    endpoint=EndpointName("pg1"),
    role=Role.REPLICA,
    topology=TopologyNumber(7),
    attempts=2,
    queued_s=0.001,
    held_s=0.5,
    executed_s=0.25,
    route_reason=RouteReason.BALANCED,
    token=b"token",
)


class FakeCells:
    """model.result.Cells over Python lists."""

    def __init__(self, names: Sequence[str], rows: Sequence[Sequence[bytes | None]]) -> None:
        self._names = names
        self._rows = rows

    @property
    def ntuples(self) -> int:
        return len(self._rows)

    @property
    def nfields(self) -> int:
        return len(self._names)

    def fname(self, column_number: int) -> bytes | None:
        return self._names[column_number].encode()

    def ftype(self, column_number: int) -> int:
        return 25

    def fmod(self, column_number: int) -> int:
        return -1

    def ftable(self, column_number: int) -> int:
        return 0

    def ftablecol(self, column_number: int) -> int:
        return 0

    def fformat(self, column_number: int) -> int:
        return 0

    def get_value(self, row_number: int, column_number: int) -> bytes | None:
        return self._rows[row_number][column_number]


class FakeEncoder:
    """api.results.ResultEncoder with texts only."""

    def encode_schema(self, cells: Cells) -> types_pb2.ResultSchema:
        names = [(cells.fname(number) or b"").decode() for number in range(cells.nfields)]
        columns = [types_pb2.ColumnInfo(name=name, kind=types_pb2.COLUMN_KIND_TEXT) for name in names]
        return types_pb2.ResultSchema(columns=columns, has_columns=True)

    def encode_batch(self, cells: Cells, first_row: int, last_row: int) -> types_pb2.RowBatch:
        batch = types_pb2.RowBatch()
        self.encode_into(batch, cells, first_row, last_row)
        return batch

    def encode_into(self, batch: types_pb2.RowBatch, cells: Cells, first_row: int, last_row: int) -> None:
        batch.row_count = last_row - first_row
        for column in range(cells.nfields):
            data = batch.columns.add()
            for row in range(first_row, last_row):
                data.texts.append((cells.get_value(row, column) or b"").decode())

    def result_bytes(self, cells: Cells) -> bytes | None:
        return None  # the message's way; reply_bytes has its own tests, over the real encoder

    def estimate_bytes(self, cells: Cells) -> int:
        positions = ((row, column) for row in range(cells.ntuples) for column in range(cells.nfields))
        return 20 + sum(4 + len(cells.get_value(row, column) or b"") for row, column in positions)


def rows_of(*texts: str) -> FakeCells:
    """One text column."""
    return FakeCells(["name"], [[text.encode()] for text in texts])


def result_of(*texts: str, tag: str = "SELECT") -> StatementResult:
    return StatementResult(rows_of(*texts), f"{tag} {len(texts)}", len(texts))


def answer_of(*texts: str, tag: str = "SELECT") -> Answer:
    return Answer([result_of(*texts, tag=tag)], RECEIPT)


Run = Callable[[Tenant, Request], Awaitable[Answer]]


class FakeRead:
    """api.surface.ReadUnderWay: an executor's run() behind a callback."""

    def __init__(self, request: Request, tag: int, told: Callable[[FakeRead], None], run: Awaitable[Answer]) -> None:
        self.request = request
        self.tag = tag
        self._answer: Answer | None = None
        self.error: Exception | None = None
        self._told: Callable[[FakeRead], None] | None = told
        self._task = asyncio.ensure_future(run)
        self._task.add_done_callback(self._ended)

    @property
    def answer(self) -> Answer:
        assert self._answer is not None
        return self._answer

    def _ended(self, task: asyncio.Future[Answer]) -> None:
        if task.cancelled():
            self.error = RouterError(Code.CANCELLED, RefuseReason.CANCELLED, "cancelled", executed=Executed.NO)
        elif isinstance(error := task.exception(), Exception):
            self.error = error
        else:
            self._answer = task.result()
        if self._told is not None:
            self._told(self)

    def cancel(self) -> None:
        self._task.cancel()

    def abandon(self) -> None:
        self._told = None
        self._task.cancel()


class FakeExecutor:
    """Answers "ok" until told otherwise. run_with and stream_items say what happens."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.tenants: list[TenantName] = []
        self.refusals: list[tuple[TenantName, Method, RouterError]] = []
        self.cancels: list[tuple[TenantName, str]] = []
        self.stopped: list[Request] = []
        self.cancel_outcome = CancelOutcome.NOT_FOUND
        self.run_with: Run | None = None
        self.starts_reads = False
        """Whether reads run without a task of the api's."""
        self.stream_items: list[Cells | Answer | RouterError] = []
        self.running = 0
        self.most_running = 0
        self.streams_closed = 0
        self.gate = asyncio.Event()

    async def run(self, tenant: Tenant, request: Request) -> Answer:
        self.requests.append(request)
        self.tenants.append(tenant.name)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.run_with is not None:
                return await self.run_with(tenant, request)
            return Answer([result_of("ok") for _ in request.steps], RECEIPT)
        finally:
            self.running -= 1

    def start(
        self, tenant: Tenant, request: Request, tag: int, told: Callable[[FakeRead], None]
    ) -> FakeRead | None:
        return FakeRead(request, tag, told, self.run(tenant, request)) if self.starts_reads else None

    async def wait_for_gate(self, tenant: Tenant, request: Request) -> Answer:
        """A run_with that answers with its SQL as soon as the gate opens; "slow" ones only."""
        if b"slow" in request.steps[0].statement.sql:
            await self.gate.wait()
        return answer_of(request.steps[0].statement.sql.decode())

    async def stream(self, tenant: Tenant, request: Request) -> AsyncGenerator[Cells | Answer, None]:
        self.requests.append(request)
        self.running += 1
        try:
            for item in self.stream_items:
                if isinstance(item, RouterError):
                    raise item
                yield item
                await asyncio.sleep(0)
        finally:
            self.running -= 1
            self.streams_closed += 1

    def cancel(self, tenant: TenantName, request_id: str) -> CancelOutcome:
        self.cancels.append((tenant, request_id))
        return self.cancel_outcome

    def stop(self, tenant: TenantName, request: Request) -> CancelOutcome:
        self.stopped.append(request)
        return self.cancel_outcome

    def refused(self, tenant_name: TenantName, method: Method, error: RouterError) -> None:
        self.refusals.append((tenant_name, method, error))


class FakeSession:
    """A transaction whose statements do what their SQL says: "fail", "lose", "hang", or return rows."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.status = TransactionState.IDLE
        self.commit_error: RouterError | None = None
        self.closed = asyncio.Event()
        self.deadlines: list[float] = []

    async def run(self, statement: Statement, deadline: float) -> StatementResult:
        text = statement.sql.decode()
        self.log.append(text)
        self.deadlines.append(deadline)
        if text == "refuse":
            raise RouterError(Code.INVALID_ARGUMENT, RefuseReason.TRANSACTION_CONTROL, "not here")
        self.status = TransactionState.IN_TRANSACTION
        if text == "fail":
            self.status = TransactionState.IN_ERROR
            raise RouterError(
                Code.INVALID_ARGUMENT, RefuseReason.BAD_SQL, "syntax error", executed=Executed.ROLLED_BACK
            )
        if text == "lose":
            self.status = TransactionState.IDLE
            raise RouterError(Code.ABORTED, RefuseReason.TRANSACTION_LOST, "gone", executed=Executed.ROLLED_BACK)
        if text == "hang":
            await asyncio.Event().wait()
        if text == "large":
            return result_of(*("x" * 1000 for _ in range(2000)))
        return result_of(text)

    async def savepoint(self, name: str, deadline: float) -> None:
        self.log.append(f"savepoint {name}")

    async def rollback_to(self, name: str, deadline: float) -> None:
        self.log.append(f"rollback_to {name}")
        self.status = TransactionState.IN_TRANSACTION

    async def release(self, name: str, deadline: float) -> None:
        self.log.append(f"release {name}")

    async def commit(self, deadline: float) -> None:
        self.log.append("commit")
        self.status = TransactionState.IDLE
        if self.commit_error is not None:
            raise self.commit_error

    async def rollback(self) -> None:
        self.log.append("rollback")
        self.status = TransactionState.IDLE

    async def close(self) -> None:
        self.log.append("close")
        await asyncio.sleep(0)
        self.closed.set()

    def receipt(self) -> Receipt:
        return RECEIPT


class FakeSessions:
    """Opens FakeSessions that share one log."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.opened: list[tuple[TransactionMode, Options]] = []
        self.open_error: RouterError | None = None
        self.commit_error: RouterError | None = None
        self.session: FakeSession | None = None

    async def open(
        self,
        tenant: Tenant,
        mode: TransactionMode,
        options: Options,
        deadline: float,
        request_id: str,
        after: Token | None = None,
    ) -> FakeSession:
        if self.open_error is not None:
            raise self.open_error
        self.opened.append((mode, options))
        self.session = FakeSession(self.log)
        self.session.commit_error = self.commit_error
        return self.session


ENDPOINT_VIEW = EndpointView(
    cluster=ClusterName("main"),
    host="db1",
    port=5432,
    zone="a",
    state=EndpointState(
        name=EndpointName("pg1"),
        role=Role.PRIMARY,
        health=Health.UP,
        health_reason=HealthReason.PROBE_OK,
        weight=50,
        term=Term(3),
        lsn=Lsn(0x3000148),
        lag_s=0.0,
        lag_bytes=0,
        probe_s=0.002,
        version=180006,
    ),
    in_flight=4,
    connections=5,
    cap=80,
    granted=60,
    permits=6,
    wanted=2,
    running=3,
    concurrency=Allowance(5, ConcurrencyReason.SLOW, 2.5),
)


class FakeOverview:
    """One of everything; change() tells the watchers."""

    def __init__(self) -> None:
        self.tenant_names = ["acme"]
        self.asked: list[str | None] = []
        self.phase = Phase.STEADY
        self.watchers: list[asyncio.Queue[None]] = []

    def tenants(self) -> list[TenantView]:
        return [TenantView(TenantName(name), ClusterName("main"), name, served=9) for name in self.tenant_names]

    def endpoints(self, cluster: ClusterName | None) -> list[EndpointView]:
        self.asked.append(cluster)
        return [ENDPOINT_VIEW]

    def pools(self, tenant: TenantName | None) -> list[PoolView]:
        self.asked.append(tenant)
        return [PoolView(TenantName("acme"), EndpointName("pg1"), Access.READ_ONLY, size=3, max_size=8)]

    def waiters(self, tenant: TenantName | None) -> list[WaiterView]:
        self.asked.append(tenant)
        waits = ((0.5, WaitPhase.EXECUTE), (2.5, WaitPhase.HOLD))
        return [WaiterView(TenantName("acme"), "id", "query", phase, waited_s) for waited_s, phase in waits]

    def clusters(self) -> list[ClusterView]:
        return [
            ClusterView(
                ClusterName("main"), self.phase, FailoverMode.FOLLOW, EndpointName("pg1"), endpoints=(ENDPOINT_VIEW,)
            )
        ]

    def change(self, phase: Phase) -> None:
        self.phase = phase
        for watcher in self.watchers:
            watcher.put_nowait(None)

    async def subscribe(self) -> AsyncGenerator[None, None]:
        queue: asyncio.Queue[None] = asyncio.Queue()
        self.watchers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.watchers.remove(queue)


class FakeOperator:
    """Knows one endpoint, pg1."""

    def __init__(self) -> None:
        self.log: list[tuple[str, object]] = []

    def _check(self, endpoint: EndpointName) -> None:
        if endpoint != "pg1":
            raise RouterError(Code.NOT_FOUND, RefuseReason.UNKNOWN_NAME, f"there is no endpoint {endpoint}")

    def drain(self, endpoint: EndpointName) -> int:
        self._check(endpoint)
        self.log.append(("drain", endpoint))
        return 3

    def resume(self, endpoint: EndpointName) -> None:
        self._check(endpoint)
        self.log.append(("resume", endpoint))

    def set_weight(self, endpoint: EndpointName, weight: int) -> int:
        self._check(endpoint)
        self.log.append(("weight", weight))
        return 100

    async def switchover(
        self, cluster: ClusterName, to: EndpointName | None, timeout_s: float
    ) -> AsyncIterator[SwitchoverProgress]:
        self.log.append(("switchover", (cluster, to, timeout_s)))
        yield SwitchoverProgress("hold")
        yield SwitchoverProgress("serve", done=True, primary=EndpointName("pg2"), pause_s=0.4)


class FakeConfiguration:
    """Always wrong when it is read again."""

    async def reload(self) -> ReloadResult:
        return ReloadResult(False, (), ("line 3: no such cluster",))

    async def diff(self, document: str) -> ConfigDiff:
        if document:
            return ConfigDiff((ConfigChange("tenants.acme", document, ConfigEffect.DRAINS),))
        return ConfigDiff(problems=("line 3: no such cluster",))


class FakeTenantStore:
    """Has one tenant, acme, of version v1."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    async def show(self, name: str) -> TenantDocument:
        if name != "acme":
            raise RouterError(Code.NOT_FOUND, RefuseReason.UNKNOWN_NAME, f"there is no tenant {name!r}")
        return TenantDocument(name, "cluster: main\n", "v1", ("acme.yaml:1: wrong",))

    def _done(self, *order: object) -> TenantOrdered:
        self.log.append(order)
        return TenantOrdered("v2", (ConfigChange("tenants.acme", str(order[0]), ConfigEffect.AT_ONCE),))

    async def create(self, name: str, document: str) -> TenantOrdered:
        return self._done("create", name, document)

    async def change(self, name: str, document: str, version: str) -> TenantOrdered:
        return self._done("change", name, document, version)

    async def pause(self, name: str, version: str, *, paused: bool) -> TenantOrdered:
        return self._done("pause" if paused else "resume", name, version)

    async def remove(self, name: str, version: str) -> TenantOrdered:
        return self._done("remove", name, version)


class FakeWorkers:
    """Two workers of which the second is silent; nobody else knows a request until cancel_outcome says so."""

    def __init__(self) -> None:
        self.refreshed = 0
        self.cancels: list[tuple[TenantName, str]] = []
        self.cancel_outcome = CancelOutcome.NOT_FOUND

    async def cancel(self, tenant: TenantName, request_id: str) -> CancelOutcome:
        self.cancels.append((tenant, request_id))
        return self.cancel_outcome

    def views(self) -> list[WorkerView]:
        return [
            WorkerView(1, 101, WorkerState.SERVING, 12.5, 3, 8, 0, "1.2.3"),
            WorkerView(2, 102, WorkerState.SILENT, restarts=2),
        ]

    async def refresh(self) -> None:
        self.refreshed += 1

    async def behind(self) -> list[str]:
        return ["worker 2 (pid 102) has not confirmed"]

    async def restart_workers(self) -> AsyncIterator[RestartProgress]:
        yield RestartProgress(1, "started", "pid 201", 0.5)
        yield RestartProgress(0, "done", done=True)
