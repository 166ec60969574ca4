"""A connection that does nothing but LISTEN, as the engine needs it. See the package for the rest of the outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from router.model.identity import Generation
from router.model.observation import Fault
from router.model.reasons import CloseReason
from router.model.topology import Cluster, Endpoint, Tenant


class Hearer(Protocol):
    """Takes what comes over a listening connection. Neither raises nor waits; after a close() nobody calls it."""

    def notified(self, channel: str, payload: str, process_id: int) -> None: ...

    def lost(self, fault: Fault) -> None:
        """The connection is gone, or was given up for another pool's need; the last that is told."""
        ...


class ListeningConnection(Protocol):
    """In no transaction between two calls: one that stayed in it would hold up the queue of all of PostgreSQL's
    notifications. One call at a time; each ends by its deadline. AttemptFailed: an SQL error, or it is lost."""

    async def listen(self, channels: Sequence[str], deadline: float) -> None:
        """Hear these, too: what is committed once this has returned."""
        ...

    async def unlisten(self, channels: Sequence[str], deadline: float) -> None: ...

    async def check(self, deadline: float) -> None:
        """One round trip: whatever was sent before it has been heard."""
        ...

    def close(self, reason: CloseReason) -> None:
        """At once, also in the middle of a call; may be called again."""
        ...


class ListeningFactory(Protocol):
    """Opens listening connections, each with a permit of its endpoint's cap like any other of its tenant's."""

    async def open(
        self,
        tenant: Tenant,
        cluster: Cluster,
        endpoint: Endpoint,
        generation: Generation,
        hearer: Hearer,
        deadline: float,
    ) -> ListeningConnection:
        """AttemptFailed (stage ACQUIRE or CONNECT) by the deadline."""
        ...
