"""Names and numbers by which tenants, clusters, endpoints and their states are told apart."""

from __future__ import annotations

from typing import NewType

TenantName = NewType("TenantName", str)
ClusterName = NewType("ClusterName", str)
EndpointName = NewType("EndpointName", str)

Term = NewType("Term", int)
"""Orders the primaries of a cluster: PostgreSQL's timeline id. A lower term is never written to again."""

Generation = NewType("Generation", int)
"""Ours, per cluster: raised whenever the primary changes. A connection of an older generation is closed, not reused."""

TopologyNumber = NewType("TopologyNumber", int)
"""Counts the published snapshots of this router; every receipt names the one its route was chosen on."""

Lsn = NewType("Lsn", int)
"""A write-ahead log position in bytes; PostgreSQL prints it as two hexadecimal halves ("0/3000148")."""

NO_TERM = Term(0)
NO_LSN = Lsn(0)
_HALF = 0xFFFFFFFF


def lsn_from_text(text: str) -> Lsn:
    """Read PostgreSQL's pg_lsn text form. ValueError when it is not one."""
    high, low = (int(half, 16) for half in text.split("/"))
    if not (0 <= high <= _HALF and 0 <= low <= _HALF):
        raise ValueError(f"not a position in the log: {text[:40]!r}")
    return Lsn(high << 32 | low)


def lsn_to_text(lsn: Lsn) -> str:
    """PostgreSQL's pg_lsn text form of a position."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
