"""Where a confirmed commit is safe: by what the connection waits for, and whether there are standbys to wait for."""

from __future__ import annotations

from collections.abc import Mapping

from router.model.identity import EndpointName
from router.model.policy import CommitWait
from router.model.result import Durability
from router.model.state import ClusterState

_BY_WAIT: Mapping[CommitWait, Durability] = {
    CommitWait.LOCAL: Durability.LOCAL,
    CommitWait.WRITTEN: Durability.STANDBY_WRITTEN,
    CommitWait.FLUSHED: Durability.STANDBY_FLUSHED,
    CommitWait.APPLIED: Durability.STANDBY_APPLIED,
}


def durability(wait: CommitWait, state: ClusterState, endpoint: EndpointName) -> Durability:
    """Of a commit that PostgreSQL confirmed without a warning on that endpoint, which was last seen so."""
    if wait is CommitWait.LOCAL:
        return Durability.LOCAL
    if endpoint != state.primary:
        return Durability.UNKNOWN
    return _BY_WAIT[wait] if state.synchronous else Durability.LOCAL
