"""The operator's orders: switchover with live progress, drain, resume, weight, reload, and who waits for what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pointsman.v1 import admin_service_pb2 as pb
from rich.console import Console
from rich.table import Table
from rich.text import Text

from router.console.admin_client import READING_S, AdminClient
from router.console.message_values import plain
from router.console.status_view import duration
from router.console.trouble import Trouble

_SLACK_S = 5.0
"""Time that a switchover's answer may take beyond the switchover's own timeout."""


def switchover(client: AdminClient, cluster: str, to: str, timeout_s: float, console: Console) -> None:
    """Move the primary, telling each step as it ends. Trouble when it was refused or undone."""
    request = pb.SwitchoverRequest(cluster=cluster, to=to, timeout_ms=round(timeout_s * 1000))
    last: Any = None
    for step in client.stream("Switchover", request, timeout_s + _SLACK_S):
        last = step
        if not step.done:
            line = Text(f"{step.elapsed_s:7.3f} s  ", style="dim").append(step.step, style="bold")
            console.print(line.append(f"  {step.detail}" if step.detail else "", style="dim"))
    if last is None or not last.done:
        raise Trouble(f"the switchover of {cluster} ended without saying how", "look with: pointsman status")
    console.print(
        Text(f"{last.primary} is the primary of {cluster}", style="bold green").append(
            f"; writes waited {last.pause_s * 1000:.0f} ms, {last.elapsed_s:.1f} s in all", style="dim"
        )
    )


def drain(client: AdminClient, endpoint: str) -> str:
    """Give an endpoint no new work."""
    answer = client.call("DrainEndpoint", pb.DrainEndpointRequest(endpoint=endpoint))
    running = answer.in_flight
    words = f"{endpoint} takes no new work; {running} request{'' if running == 1 else 's'} still run there"
    return words + _behind(answer)


def resume(client: AdminClient, endpoint: str) -> str:
    """End a drain."""
    answer = client.call("ResumeEndpoint", pb.ResumeEndpointRequest(endpoint=endpoint))
    return f"{endpoint} takes work again" + _behind(answer)


def set_weight(client: AdminClient, endpoint: str, weight: int) -> str:
    """Change an endpoint's weight until the next reload or restart."""
    answer = client.call("SetEndpointWeight", pb.SetEndpointWeightRequest(endpoint=endpoint, weight=weight))
    return f"{endpoint}: weight {answer.previous} → {weight}, until the next reload or restart" + _behind(answer)


def _behind(answer: Any) -> str:
    """Workers that have yet to take an order: a line for each."""
    return "".join(f"\n{words}; it takes the order as soon as it answers" for words in answer.behind)


def reload(client: AdminClient, console: Console) -> None:
    """Make the router read its files again. Trouble with all their problems when they have any."""
    answer = client.call("ReloadConfig", pb.ReloadConfigRequest(), READING_S)
    for change in answer.changes:
        console.print(Text(change))
    if not answer.applied:
        nothing = "nothing else" if answer.changes else "nothing"
        raise Trouble(
            "\n".join(answer.problems) or "the configuration was refused",
            f"{nothing} was changed: mend the file (pointsman check-config FILE) and reload again",
        )
    console.print(Text("applied" if answer.changes else "applied: nothing had changed", style="green"))
    for words in answer.behind:
        console.print(Text(f"{words}; it takes the configuration as soon as it answers", style="yellow"))


def waiters(client: AdminClient, tenant: str) -> list[Any]:
    """Requests under way, the longest wait first."""
    return list(client.call("ListWaiters", pb.ListWaitersRequest(tenant=tenant)).waiters)


def waiters_table(found: Iterable[Any]) -> Table:
    """Who waits for what, for people."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("tenant", "request", "method", "phase", "for", "endpoint", "waits for"):
        table.add_column(name)
    for one in found:
        values = (
            one.tenant,
            one.request_id,
            one.method,
            one.phase,
            duration(one.waited_s),
            one.endpoint,
            one.waits_for,
        )
        table.add_row(*(Text(value) for value in values))
    return table


def waiters_json(found: Iterable[Any]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [plain(one) for one in found]
