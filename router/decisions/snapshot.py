"""What is published about a cluster: the machine and the endpoints as seen, as one frozen ClusterState. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from router.decisions.cluster_facts import Seen
from router.decisions.health import NEVER
from router.decisions.machine import ClusterMachine
from router.decisions.promotion import is_silent
from router.model.events import Health
from router.model.identity import EndpointName, TopologyNumber
from router.model.observation import RoleClaim
from router.model.state import ClusterState, EndpointState
from router.model.topology import Endpoint, Role


@dataclass(frozen=True, slots=True)
class Orders:
    """What an operator has ordered for one endpoint."""

    draining: bool = False
    weight: int | None = None
    """None: as configured."""


NO_ORDERS = Orders()


def present(
    machine: ClusterMachine,
    endpoints: Iterable[Endpoint],
    seen: Mapping[EndpointName, Seen],
    orders: Mapping[EndpointName, Orders],
    number: TopologyNumber,
    successor: EndpointName | None = None,
) -> ClusterState:
    """The snapshot for readers."""
    claim = machine.last_claim
    shown = {e.name: _endpoint(machine, e, seen[e.name], orders.get(e.name, NO_ORDERS)) for e in endpoints}
    return ClusterState(
        name=machine.name,
        phase=machine.phase,
        primary=machine.routed_primary,
        term=machine.term,
        generation=machine.generation,
        endpoints=shown,
        number=number,
        system_id=machine.system_id,
        synchronous=claim is not None and bool(claim.sync_names),
        confirmed_before=machine.confirmed_before,
        history=claim.history if claim is not None and claim.timeline == machine.term else None,
        since=machine.since,
        detail=machine.detail,
        successor=successor,
        switches=machine.switches,
    )


def _endpoint(machine: ClusterMachine, endpoint: Endpoint, seen: Seen, orders: Orders) -> EndpointState:
    health, claim = seen.health, seen.claim
    told = EndpointState(
        name=endpoint.name,
        health=health.state,
        health_reason=health.reason,
        weight=endpoint.weight if orders.weight is None else orders.weight,
        draining=orders.draining,
        message=health.message,
        probe_s=seen.took_s,
    )
    if claim is None:
        return told
    lag_bytes = -1
    if claim.in_recovery and machine.last_claim is not None:
        lag_bytes = max(0, machine.last_claim.lsn - claim.lsn)
    return EndpointState(
        name=told.name,
        role=role_of(machine, endpoint.name, seen),
        health=told.health,
        health_reason=told.health_reason,
        weight=told.weight,
        draining=told.draining,
        term=claim.timeline,
        lsn=claim.lsn,
        position_at=max(seen.probed_at, health.since),
        lag_s=_lag(machine, claim, seen),
        lag_bytes=lag_bytes if claim.in_recovery else 0,
        probe_s=told.probe_s,
        version=claim.version,
        message=told.message,
    )


def _lag(machine: ClusterMachine, claim: RoleClaim, seen: Seen) -> float:
    """A standby on an older timeline lacks all that was written since the term began, whatever it says of its upstream:
    that may be a former primary. How much it is behind is not known where nobody saw the term begin.

    One that is about to follow serves for as long as its readers accept that, so a failover does not send all of them
    to the primary at once."""
    if not claim.in_recovery or claim.timeline >= machine.term or seen.lag_s < 0:
        return seen.lag_s
    return max(seen.lag_s, seen.probed_at - machine.term_at) if machine.term_at > NEVER else -1.0


def role_of(machine: ClusterMachine, name: EndpointName, seen: Seen) -> Role:
    """The role by observation. A writable server that is not the accepted primary has none: nothing goes there."""
    if seen.claim is None or seen.health.state is Health.QUARANTINED:
        return Role.UNKNOWN
    if seen.claim.in_recovery:
        return Role.REPLICA
    return Role.PRIMARY if name == machine.primary else Role.UNKNOWN


def replica_lag(claim: RoleClaim, asked_at: float, caught_up_at: float) -> float:
    """How far behind a replica's data may be, in seconds; 0 for a primary, -1 unknown.

    A server can only tell the age of the last transaction it replayed. On a quiet system that is far too much the
    moment a new one arrives; it cannot be behind by more than the time since it had last replayed all it received.
    A receiver that hears nothing does not know what it misses: then its silence counts.
    """
    if not claim.in_recovery:
        return 0.0
    lag = claim.lag_s
    if lag > 0 and claim.receiver_alive:
        lag = min(lag, max(0.0, asked_at - caught_up_at))
    if claim.receiver_alive and is_silent(claim):
        lag = max(lag, claim.receiver_silent_s)
    return lag
