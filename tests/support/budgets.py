"""Budgets for tests that are not about them."""

from __future__ import annotations

from router.engine.connection_budget import EndpointBudget
from router.model.topology import Endpoint


def roomy(endpoint: Endpoint) -> EndpointBudget:
    """A budget of an endpoint's whole cap, shared with nobody."""
    return EndpointBudget(endpoint.name, endpoint.max_connections, lambda: None)
