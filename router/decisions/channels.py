"""Which channels a tenant may listen to, and how many.

NOTIFY channels belong to a whole database, and PostgreSQL asks nobody for a right to LISTEN. So in a database of its
own a tenant may listen to everything; in one that others use, too, only to what its configuration names, and that may
name no channel of a neighbour (config/isolation.py).
"""

from __future__ import annotations

from collections.abc import Collection

from router.decisions.refusal import Refuse
from router.model.errors import Code
from router.model.listening import MAX_CHANNEL_BYTES, is_channel_name
from router.model.reasons import RefuseReason
from router.model.topology import IsolationMode, Tenant


def refuse_channels(tenant: Tenant, channels: Collection[str]) -> Refuse | None:
    """Why the tenant may not listen to these; None: it may."""
    if not channels:
        return Refuse(RefuseReason.BAD_REQUEST, Code.INVALID_ARGUMENT, "name at least one channel")
    for channel in channels:
        if not is_channel_name(channel):
            return Refuse(
                RefuseReason.BAD_REQUEST,
                Code.INVALID_ARGUMENT,
                f"a channel's name has 1 to {MAX_CHANNEL_BYTES} bytes and no NUL",
                {"bytes": len(channel.encode("utf-8", "surrogatepass")), "limit": MAX_CHANNEL_BYTES},
            )
    if not tenant.channels and tenant.isolation is IsolationMode.DATABASE:
        return None
    foreign = next((one for one in channels if one not in tenant.channels), None)
    if foreign is None:
        return None
    why = (
        "its configuration names those that it may listen to (channels)"
        if tenant.isolation is IsolationMode.DATABASE
        else f"with isolation: {tenant.isolation.value} others use its database, and channels are the whole "
        "database's: it may listen to those that its configuration names (channels)"
    )
    return Refuse(
        RefuseReason.CHANNEL_DENIED,
        Code.PERMISSION_DENIED,
        f"tenant {tenant.name} may not listen to {foreign!r}: {why}",
        {"allowed": len(tenant.channels)},
    )


def refuse_listener(tenant: Tenant, listeners: int, channels: int, wanted: int) -> Refuse | None:
    """Why there may be no further Listen stream. listeners: open now; channels: listened to, and wanted with it."""
    policy = tenant.policy
    if listeners >= policy.max_listeners:
        return Refuse(
            RefuseReason.QUOTA,
            Code.RESOURCE_EXHAUSTED,
            f"tenant {tenant.name} has {listeners} Listen streams, {policy.max_listeners} are allowed "
            "(limits.max_listeners): let some share one, or raise it",
            {"limit": policy.max_listeners, "in_use": listeners, "scope": "tenant"},
            retry_after_s=1.0,
        )
    if wanted > policy.max_channels:
        return Refuse(
            RefuseReason.QUOTA,
            Code.RESOURCE_EXHAUSTED,
            f"tenant {tenant.name} listens to {channels} channels, with these {wanted}; {policy.max_channels} are "
            "allowed (limits.max_channels): put a kind into the payload instead of the channel's name, or raise it",
            {"limit": policy.max_channels, "in_use": channels, "wanted": wanted, "scope": "tenant"},
            retry_after_s=1.0,
        )
    return None
