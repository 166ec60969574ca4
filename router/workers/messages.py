"""What the control process and its workers tell each other.

Every message is state rather than a step wherever that is possible, so that the newest one says it all. They travel as
pickles: both ends are the same user's, one started the other, and `shape()` proves that both hold the same classes.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from types import ModuleType

from prometheus_client.core import Metric as Family

from router.config import loaded
from router.model import (
    callers,
    certificates,
    errors,
    events,
    identity,
    ledger,
    observation,
    policy,
    port_policies,
    reasons,
    request,
    state,
    topology,
    views,
)
from router.model.certificates import PortCertificates
from router.model.identity import ClusterName, TenantName, TopologyNumber
from router.model.ledger import Demand, Grant
from router.model.observation import Fault
from router.model.request import CancelOutcome, WriteOutcome
from router.model.state import ClusterState
from router.model.topology import TenantChanges
from router.model.views import Load

# --- both ways -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Wants an Answer with the same number."""

    number: int
    question: object


@dataclass(frozen=True, slots=True)
class Answer:
    """To an Ask; failed: the class of what went wrong instead."""

    number: int
    value: object
    failed: str = ""


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Question: cancel a request of a tenant, wherever it runs. Its answer is a CancelOutcome."""

    tenant: TenantName
    request_id: str


@dataclass(frozen=True, slots=True)
class WriteAsked:
    """Question: who is at work on the write of that key, or else request id? Its answer is a WriteOutcome: RUNNING,
    NOT_FOUND (nobody), UNKNOWN (one did not answer)."""

    tenant: TenantName
    key: str
    request_id: str


# --- from a worker -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a worker."""

    shape: str
    version: str


@dataclass(frozen=True, slots=True)
class Serving:
    """It takes callers."""

    address: str


@dataclass(frozen=True, slots=True)
class CannotServe:
    """It ends, having served nobody."""

    message: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """It was told to end by somebody else (SIGTERM) and drains."""


@dataclass(frozen=True, slots=True)
class FaultSeen:
    """What a request saw of a server."""

    cluster: ClusterName
    fault: Fault


@dataclass(frozen=True, slots=True)
class RoomEmpty:
    """No request of this worker waits for the cluster's primary any more."""

    cluster: ClusterName
    number: TopologyNumber
    """Of the newest state it has taken."""


@dataclass(frozen=True, slots=True)
class Applied:
    """All that was sent before has been taken: pools fenced, holds released, configuration in force."""

    number: int


@dataclass(frozen=True, slots=True)
class Demands:
    """What it has and wants of the endpoints' connections."""

    demands: tuple[Demand, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """How a worker stands."""

    load: Load
    running: int
    samples: tuple[Family, ...] = ()


# --- to a worker ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Its place, and all that it needs to serve."""

    place: int
    workers: int
    """How many there are."""
    address: str
    """The callers' port, which the control process keeps reserved."""
    configuration: Configuration
    certificates: PortCertificates | None = None
    """What the port's files were when they could serve last: to begin with, should they not. None: not known, or no
    TLS."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration in force, already judged, with a state of each of its clusters.

    In Begin it is whole. Later ones come without tenants, but for changes: ten thousand are megabytes.
    """

    config: loaded.LoadedConfig
    states: tuple[ClusterState, ...]
    changes: TenantChanges


@dataclass(frozen=True, slots=True)
class TenantsChanged:
    """Of the configuration in force only these tenants are others now."""

    changes: TenantChanges


@dataclass(frozen=True, slots=True)
class Published:
    """A supervisor's new snapshot."""

    state: ClusterState


@dataclass(frozen=True, slots=True)
class Sent:
    """A mark after other messages: to be answered with Applied."""

    number: int


@dataclass(frozen=True, slots=True)
class Grants:
    """How many connections it may have from now on."""

    grants: tuple[Grant, ...]


@dataclass(frozen=True, slots=True)
class LookAsked:
    """Question: how does it stand? Its answer is a Look."""

    samples: bool
    """With the metrics' samples."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Take nothing new, finish what runs, tell a last Look, and end."""

    grace_s: float


Question = CancelAsked | WriteAsked | LookAsked
Reply = CancelOutcome | WriteOutcome | Look

_CLASSES = (
    *(callers, certificates, errors, events, identity, ledger, observation, policy, port_policies, reasons, request),
    *(state, topology, views),
    loaded,
)


def shape() -> str:
    """A digest of all classes that travel: both ends must agree on it, then a pickle means the same to both.

    A worker of newer code whose messages are the same may so replace one of older code.
    """
    digest = hashlib.sha256()
    for module in (*_CLASSES, sys.modules[__name__]):
        for line in _described(module):
            digest.update(line.encode())
    return digest.hexdigest()[:16]


def _described(module: ModuleType) -> Iterator[str]:
    for name, value in sorted(vars(module).items()):
        if not isinstance(value, type) or value.__module__ != module.__name__:
            continue
        if issubclass(value, Enum):
            yield f"{module.__name__}.{name}:{','.join(f'{one.name}={one.value}' for one in value)};"
        elif is_dataclass(value):
            yield f"{module.__name__}.{name}({','.join(f'{one.name}:{one.type}' for one in fields(value))});"
