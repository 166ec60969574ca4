"""`pointsman doctor`: what in the servers' settings will make a failover slow, unsafe or impossible, and which logins
are not in use as configured, with the fix; and which servers could not be examined.
"""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from router.console.admin_client import AdminClient
from router.console.message_values import plain


def look(client: AdminClient) -> list[tuple[str, Any]]:
    """Every finding with its cluster. Trouble when the router cannot be asked."""
    return [(cluster.name, finding) for cluster in client.clusters() for finding in cluster.findings]


def as_json(found: list[tuple[str, Any]]) -> str:
    """For programs."""
    return json.dumps([{"cluster": cluster, **plain(finding)} for cluster, finding in found], indent=2)


def show(found: list[tuple[str, Any]], console: Console) -> None:
    """For people: what, where, and the fix to copy."""
    for cluster, one in found:
        style = "bold red" if one.severity == "error" else "yellow"
        line = Text(f"{one.severity:8}", style=style).append(f"{cluster}/{one.endpoint}  ", style="bold")
        console.print(line.append(one.message))
        console.print(Text(f"        {one.fix}", style="dim"))
    if not found:
        console.print(Text("nothing found", style="green"))
