"""What the audit log tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class AuditEntry:
    """One line. It never holds SQL, parameters or a secret."""

    what: str
    """An RPC's full name, or a method's; or whose alarm."""
    outcome: str
    """ok, or the reason of the error; or what has become of the alarm."""
    who: str = ""
    """A proved identity as people see it; empty when nothing was proved; or the router itself."""
    tenant: str = ""
    peer: str = ""
    """Where the call came from, where that is known."""
    request_id: str = ""
    executed: str = ""
    """What an error says about its effects."""
    sql: tuple[str, ...] = ()
    """SHA-256 of each statement's text, shortened."""
    took_s: float = 0.0
    about: str = ""
    """What else an alarm is about: cluster and endpoint, a command, or a port."""
    why: str = ""
    """In words, of an alarm."""
