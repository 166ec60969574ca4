"""Limits of a port as gRPC's arguments."""

from __future__ import annotations

from router.api.transport import UNREQUESTED_S, server_options
from router.model.policy import ServerPolicy, TenantPolicy
from router.model.port_policies import TransportPolicy


def test_what_was_opened_at_once_is_not_cancelled_by_grpc_below_our_own_limit() -> None:
    """By itself gRPC cancels what has not been taken up yet, from 1000 on at random, from 3000 on or after 30 s for
    certain."""
    options = dict(server_options(ServerPolicy(transport=TransportPolicy(max_rpcs=7000)), shared_port=False))
    assert options["grpc.server.max_pending_requests"] == 7000
    assert options["grpc.server.max_pending_requests_hard_limit"] == 7000
    assert options["grpc.server_max_unrequested_time_in_server"] == UNREQUESTED_S >= TenantPolicy().max_timeout_s
