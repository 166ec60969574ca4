"""What a worker and the ledger of an endpoint's connections tell each other. The ledger itself is in
decisions/connection_ledger.py, the worker's end in engine/connection_budget.py.

A worker states its Demand now and then and at once after each Grant that asks it to shrink; the ledger answers with
Grants. Both are state, not steps: a lost or repeated message does no harm, the next one says it all again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.model.identity import EndpointName, TenantName


@dataclass(frozen=True, slots=True)
class FloorWish:
    """What a tenant with a floor would like to have of it in one worker."""

    floor: int
    """Over all workers."""
    wish: int
    """Connections that it uses here, or waits for."""


@dataclass(frozen=True, slots=True)
class CeilingWish:
    """What a tenant with a ceiling has in one worker, and would like to have."""

    ceiling: int
    """Over all workers."""
    in_use: int
    """Connections open, being opened or being closed here."""
    wish: int
    """Connections that it uses here, or waits for; the ceiling at most."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one worker has of an endpoint's connections, and what it would like."""

    endpoint: EndpointName
    granted: int
    """Most connections this worker lets itself have open now: the last Grant it obeys."""
    in_use: int
    """Connections open or being opened; at most granted, save for a worker that is still shrinking."""
    waiting: int
    """Connections that could not be opened because the grant is used up."""
    number: int = 0
    """Of the last Grant obeyed; a Demand that answers an older Grant says nothing about a newer one."""
    floors: Mapping[TenantName, FloorWish] = field(default_factory=dict)
    ceilings: Mapping[TenantName, CeilingWish] = field(default_factory=dict)
    """Of the tenants with a ceiling that have or want a connection here."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Most connections a worker may have open to an endpoint from now on."""

    endpoint: EndpointName
    connections: int
    number: int
    """Rises with each Grant to a worker for an endpoint; what comes late is known by a lower number."""
    floors: Mapping[TenantName, int] = field(default_factory=dict)
    """What each tenant has of its floor here: whole connections, over all workers no more than the floor."""
    ceilings: Mapping[TenantName, int] = field(default_factory=dict)
    """Most connections here of each tenant with a ceiling; one that is not named may have none."""
