"""What comes to a Listen stream, in the order in which it comes."""

from __future__ import annotations

from dataclasses import dataclass

from router.model.identity import EndpointName, TopologyNumber
from router.model.reasons import GapReason

MAX_CHANNEL_BYTES = 63
"""PostgreSQL would cut a longer name off, and so mean another channel (NAMEDATALEN - 1)."""


def is_channel_name(name: str) -> bool:
    """Whether LISTEN can mean exactly this."""
    return bool(name) and "\0" not in name and len(name.encode("utf-8", "surrogatepass")) <= MAX_CHANNEL_BYTES


@dataclass(frozen=True, slots=True)
class Ready:
    """LISTEN is active: what is committed from now on comes."""

    endpoint: EndpointName
    topology: TopologyNumber


@dataclass(frozen=True, slots=True)
class Notification:
    """Somebody's NOTIFY."""

    channel: str
    payload: str
    process_id: int
    """Of the backend that sent it."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Notifications may be missing between `since` and this; from here on none is."""

    reason: GapReason
    since: float
    """Monotonic seconds."""
    missed: int = 0
    """How many are missing for certain; 0 where nobody can know."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing has happened for a while, or the listening was interrupted just now."""

    listening: bool


@dataclass(frozen=True, slots=True)
class Draining:
    """The router goes away, and the stream ends in a moment."""


Heard = Ready | Notification | Gap | Heartbeat | Draining
