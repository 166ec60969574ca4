"""Bringing one stopped or dead server back as a standby of the present primary."""

from dataclasses import dataclass
from enum import Enum

from router.devcluster import replication
from router.devcluster.errors import DevClusterError, ToolFailedError
from router.devcluster.nodes import STREAMING_TIMEOUT_S, Nodes
from router.devcluster.server import Server
from router.devcluster.waiting import now_s

ATTACH_TIMEOUT_S = 5.0
"""A standby which does not stream by then has log of its own that the primary never had."""


class RejoinMethod(Enum):
    """How a server came back."""

    ATTACHED = "started as it was"
    REWOUND = "rewound with pg_rewind"
    COPIED = "copied anew with pg_basebackup"


@dataclass(frozen=True)
class Rejoined:
    """What was done to which server."""

    name: str
    method: RejoinMethod
    took_s: float


def attach(nodes: Nodes, server: Server, primary: Server) -> Rejoined:
    """Start a server that was a standby as a standby of `primary`; rejoined when it was none or cannot follow.

    The primary's slots must exist. Raises DevClusterError when a fresh copy does not help either.
    """
    began = now_s()
    if server.data_dir.is_dir() and replication.is_standby_on_disk(server):
        try:
            _start_standby(nodes, server, primary, ATTACH_TIMEOUT_S)
            return Rejoined(server.name, RejoinMethod.ATTACHED, now_s() - began)
        except DevClusterError:
            server.kill()
    return rejoin(nodes, server, primary)


def rejoin(nodes: Nodes, server: Server, primary: Server) -> Rejoined:
    """Make a server a standby of `primary` whatever is in its directory: rewound if possible, else copied anew.

    A running server is killed first: it may be a primary of the past whose clients must not be told anything more.
    """
    began = now_s()
    server.kill()
    replication.ensure_slots(primary, nodes.others(primary))
    method = RejoinMethod.REWOUND
    try:
        if not _can_be_rewound(server, primary):
            raise ToolFailedError("only a former primary of an older timeline can be rewound")
        replication.rewind(primary, server, nodes.launch)
        _start_standby(nodes, server, primary, ATTACH_TIMEOUT_S)
    except DevClusterError:
        server.kill()
        method = RejoinMethod.COPIED
        copy(nodes, server, primary)
    return Rejoined(server.name, method, now_s() - began)


def copy(nodes: Nodes, server: Server, primary: Server) -> None:
    """Replace what is in the directory of a stopped server by a copy of `primary`, and start it as a standby."""
    replication.copy_from(primary, server, nodes.launch, nodes.state.replication_password)
    _start_standby(nodes, server, primary, STREAMING_TIMEOUT_S)


def _can_be_rewound(server: Server, primary: Server) -> bool:
    """Whether pg_rewind would do right: it recovers the directory first, which adds a record to its log.

    On the timeline of the primary that record would make it differ, and "no rewind required" would be said all the
    same. Standbys and half-made copies come to their present state by other means than recovery alone.
    """
    if not replication.was_primary_on_disk(server):
        return False
    seen = replication.observe(primary)
    return seen is not None and replication.timeline_on_disk(server) < (seen.timeline or 0)


def _start_standby(nodes: Nodes, server: Server, primary: Server, timeout_s: float) -> None:
    nodes.configure_standby(server, primary)
    server.start()
    replication.wait_streaming(server, primary, timeout_s)
    replication.reset_slots(server, nodes.others(server))
