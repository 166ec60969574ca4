"""What operators are shown: views to messages of admin_service.proto. Total over the enums (tested)."""

from __future__ import annotations

from collections.abc import Iterable

from pointsman.v1 import admin_service_pb2 as pb
from pointsman.v1 import types_pb2

from router.model.checkup import Finding
from router.model.events import Health, Phase
from router.model.identity import lsn_to_text
from router.model.topology import Role
from router.model.views import (
    CertificateTrouble,
    ClusterView,
    ConfigChange,
    ConfigDiff,
    ConfigEffect,
    EndpointView,
    PoolView,
    RestartProgress,
    SwitchoverProgress,
    TenantView,
    WaiterView,
    WorkerState,
    WorkerView,
)

ROLES = {
    Role.PRIMARY: types_pb2.ENDPOINT_ROLE_PRIMARY,
    Role.REPLICA: types_pb2.ENDPOINT_ROLE_REPLICA,
    Role.UNKNOWN: types_pb2.ENDPOINT_ROLE_UNSPECIFIED,
}
HEALTHS = {health: pb.EndpointHealth.Value(f"ENDPOINT_HEALTH_{health.name}") for health in Health}
PHASES = {phase: pb.ClusterPhase.Value(f"CLUSTER_PHASE_{phase.name}") for phase in Phase}

EFFECTS = {effect: pb.ConfigEffect.Value(f"CONFIG_EFFECT_{effect.name}") for effect in ConfigEffect}
WORKER_STATES = {state: pb.WorkerState.Value(f"WORKER_STATE_{state.name}") for state in WorkerState}


def tenant_message(view: TenantView) -> pb.TenantState:
    """One row of ListTenants."""
    return pb.TenantState(
        name=view.name,
        cluster=view.cluster,
        database=view.database,
        in_flight=view.in_flight,
        held=view.held,
        queued=view.queued,
        served=view.served,
        failed=view.failed,
        refused=view.refused,
        cancelled=view.cancelled,
        paused=view.paused,
        listeners=view.listeners,
        channels=view.channels,
    )


def endpoint_message(view: EndpointView) -> pb.EndpointState:
    """One row of ListEndpoints."""
    state = view.state
    reason = f"{state.health_reason.value}: {state.message}" if state.message else state.health_reason.value
    return pb.EndpointState(
        name=state.name,
        cluster=view.cluster,
        host=view.host,
        port=view.port,
        zone=view.zone,
        role=ROLES[state.role],
        health=HEALTHS[state.health],
        health_reason=reason.encode("utf-8", "replace").decode(),
        timeline=state.term,
        lsn=lsn_to_text(state.lsn) if state.lsn else "",
        lag_s=state.lag_s,
        lag_bytes=state.lag_bytes,
        weight=state.weight,
        draining=state.draining,
        in_flight=view.in_flight,
        connections=view.connections,
        connections_cap=view.cap,
        connections_granted=view.granted,
        connections_in_use=view.permits,
        connections_wanted=view.wanted,
        connections_running=view.running,
        concurrency_limit=view.concurrency.limit,
        concurrency_reason=view.concurrency.reason.value,
        slower_than_usual=view.concurrency.slower,
        probe_ms=state.probe_s * 1000,
        server_version=version_text(state.version),
    )


def finding_message(one: Finding) -> pb.Finding:
    """One line of `pointsman doctor`."""
    return pb.Finding(
        endpoint=one.endpoint, check=one.check.value, severity=one.severity.value, message=one.message, fix=one.fix
    )


def version_text(number: int) -> str:
    """PostgreSQL's server_version_num as people write it: 180006 is 18.6."""
    return f"{number // 10_000}.{number % 10_000}" if number else ""


def pool_message(view: PoolView) -> pb.PoolState:
    """One row of ListPools."""
    return pb.PoolState(
        tenant=view.tenant,
        endpoint=view.endpoint,
        access=view.access.value,
        size=view.size,
        idle=view.idle,
        leased=view.leased,
        opening=view.opening,
        waiting=view.waiting,
        max_size=view.max_size,
        generation=view.generation,
        lanes=view.lanes,
        in_flight=view.in_flight,
        due=view.due,
        database_s=view.database_s,
    )


def waiter_message(view: WaiterView) -> pb.Waiter:
    """One row of ListWaiters."""
    return pb.Waiter(
        tenant=view.tenant,
        request_id=view.request_id,
        method=view.method,
        phase=view.phase.value,
        waited_s=view.waited_s,
        endpoint=view.endpoint,
        waits_for=view.waits_for,
    )


def cluster_message(view: ClusterView) -> pb.ClusterState:
    """One cluster of WatchTopology."""
    return pb.ClusterState(
        name=view.name,
        phase=PHASES[view.phase],
        primary=view.primary or "",
        term=view.term,
        generation=view.generation,
        mode=view.mode.value,
        held=view.held,
        phase_age_s=view.phase_age_s,
        detail=view.detail,
        findings=[finding_message(one) for one in view.findings],
        endpoints=[endpoint_message(endpoint) for endpoint in view.endpoints],
    )


def progress_message(view: SwitchoverProgress) -> pb.SwitchoverResponse:
    """One step of Switchover."""
    return pb.SwitchoverResponse(
        step=view.step,
        detail=view.detail,
        elapsed_s=view.elapsed_s,
        done=view.done,
        primary=view.primary or "",
        pause_s=view.pause_s,
    )


def worker_message(view: WorkerView) -> pb.Worker:
    """One row of ListWorkers."""
    return pb.Worker(
        number=view.number,
        pid=view.pid,
        state=WORKER_STATES[view.state],
        uptime_s=view.uptime_s,
        in_flight=view.in_flight,
        connections=view.connections,
        restarts=view.restarts,
        version=view.version,
    )


def restart_message(view: RestartProgress) -> pb.RestartWorkersResponse:
    """One step of RestartWorkers."""
    return pb.RestartWorkersResponse(
        worker=view.worker, step=view.step, detail=view.detail, elapsed_s=view.elapsed_s, done=view.done
    )


def diff_message(diff: ConfigDiff) -> pb.DiffConfigResponse:
    """The answer of DiffConfig."""
    return pb.DiffConfigResponse(changes=change_messages(diff.changes), problems=diff.problems)


def change_messages(changes: Iterable[ConfigChange]) -> list[pb.ConfigChange]:
    """Differences of configurations."""
    return [pb.ConfigChange(place=one.place, change=one.change, effect=EFFECTS[one.effect]) for one in changes]


def certificate_message(view: CertificateTrouble) -> pb.CertificateTrouble:
    """A port whose certificate files are of no use."""
    return pb.CertificateTrouble(port=view.port, problem=view.problem, for_s=view.for_s)
