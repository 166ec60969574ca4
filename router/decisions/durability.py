"""Where a confirmed commit is safe: by what the connection waits for, and whether there are standbys to wait for."""

from __future__ import annotations

from collections.abc import Mapping

from router.model.policy import CommitWait
from router.model.result import Durability
from router.model.state import EndpointState

_BY_WAIT: Mapping[CommitWait, Durability] = {
    CommitWait.LOCAL: Durability.LOCAL,
    CommitWait.WRITTEN: Durability.STANDBY_WRITTEN,
    CommitWait.FLUSHED: Durability.STANDBY_FLUSHED,
    CommitWait.APPLIED: Durability.STANDBY_APPLIED,
}


def durability(wait: CommitWait, primary: EndpointState | None) -> Durability:
    """Of a commit that PostgreSQL confirmed without a warning, on the endpoint as it was last seen."""
    if wait is CommitWait.LOCAL:
        return Durability.LOCAL
    if primary is None or primary.synchronous is None:
        return Durability.UNKNOWN
    return _BY_WAIT[wait] if primary.synchronous else Durability.LOCAL
