"""When a connection that was closed here stops to count against its endpoint's cap although the server has not closed
its end.

PostgreSQL counts it until its process has ended, so it counts here as well while the server lives: whatever else is
opened instead might be the one for which PostgreSQL has no place, also for those who are not our callers. A backend may
take its time: one whose COMMIT waits for a standby that is away does not look at its socket at all.

It stops where waiting has no sense: the server is known to be gone, or its machine was not heard on this connection
since the end, so that nothing will ever come of it. And after a long time in any case, so that what stands between
may be as wrong as it likes and no place is lost for ever.
"""

from __future__ import annotations

GONE_S = 1.5
"""A backend that lives and can look at its socket does so each second (conninfo), and has ended by then."""
LONGEST_S = 600.0
"""No connection counts for longer (seconds)."""


def still_counts(closed_s: float, *, heard: bool, gone: bool) -> bool:
    """closed_s: since it was closed here. heard: the server's machine has answered on this connection since. gone: the
    server is known to be down, fenced, or no part of the configuration any more."""
    if closed_s < GONE_S:
        return True
    return heard and not gone and closed_s < LONGEST_S
