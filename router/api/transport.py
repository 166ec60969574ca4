"""TransportPolicy as gRPC's channel arguments (https://grpc.github.io/grpc/core/group__grpc__arg__keys.html)."""

from __future__ import annotations

import math

from router.model.policy import ServerPolicy

UNREQUESTED_S = 300
"""Longer than any caller waits (seconds)."""

Options = tuple[tuple[str, int], ...]


def server_options(policy: ServerPolicy, *, shared_port: bool) -> Options:
    """The arguments of a server; shared_port: several processes listen on it."""
    limits = policy.transport
    options: Options = (
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_concurrent_streams", limits.max_streams),
        # What came and was not taken up yet. By itself gRPC cancels some of it from 1000 on and all from 3000 on, or
        # after 30 s, without a word: streams that were opened at once. max_rpcs and deadlines bound it in words.
        ("grpc.server.max_pending_requests", limits.max_rpcs),
        ("grpc.server.max_pending_requests_hard_limit", limits.max_rpcs),
        ("grpc.server_max_unrequested_time_in_server", UNREQUESTED_S),
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", 2 * limits.max_metadata_bytes),
        ("grpc.server_handshake_timeout_ms", _ms(limits.handshake_timeout_s)),
        ("grpc.keepalive_time_ms", _ms(limits.keepalive_s)),
        ("grpc.keepalive_timeout_ms", _ms(limits.keepalive_timeout_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(limits.min_ping_s)),
        ("grpc.http2.max_ping_strikes", limits.max_ping_strikes),
        ("grpc.max_connection_idle_ms", _ms(limits.idle_s)),
        # Twice the limit, so that the wrapper can answer a message that is somewhat too large in words.
        ("grpc.max_receive_message_length", 2 * policy.max_message_bytes),
        # Records for sending without a copy, which is off: 0.7 KiB of each connection.
        ("grpc.experimental.tcp_tx_zerocopy_max_simultaneous_sends", 0),
        # Not without need: any process of the same user could take a share of the port's connections.
        ("grpc.so_reuseport", int(shared_port)),
    )
    if limits.max_age_s:
        ages = (limits.max_age_s, limits.age_grace_s)
        names = ("grpc.max_connection_age_ms", "grpc.max_connection_age_grace_ms")
        options += tuple(zip(names, map(_ms, ages), strict=True))
    return options


def _ms(seconds: float) -> int:
    return min(math.ceil(seconds * 1000), (1 << 31) - 1)
