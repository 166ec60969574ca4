"""The operator's orders: switchover with live progress, drain, resume, weight, reload, and who waits for what."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from pointsman.v1 import admin_service_pb2 as pb
from rich.console import Console
from rich.table import Table
from rich.text import Text

from router.console.admin_client import READING_S, AdminClient
from router.console.message_values import plain
from router.console.status_view import duration
from router.console.trouble import ExitCode, Trouble

_SLACK_S = 5.0
"""Time that a switchover's answer may take beyond the switchover's own timeout."""


def switchover(client: AdminClient, cluster: str, to: str, timeout_s: float, show: Callable[[Any, str], None]) -> None:
    """Move the primary, showing each step as it ends. Trouble when it was refused or undone."""
    request = pb.SwitchoverRequest(cluster=cluster, to=to, timeout_ms=round(timeout_s * 1000))
    last: Any = None
    try:
        for step in client.stream("Switchover", request, timeout_s + _SLACK_S):
            last = step
            show(step, cluster)
    except KeyboardInterrupt:
        raise Trouble(
            f"interrupted: the router goes on with the switchover of {cluster}, or undoes it",
            "see: pointsman status",
            ExitCode.INTERRUPTED,
        ) from None
    if last is None or not last.done:
        raise Trouble(f"the switchover of {cluster} ended without saying how", "look with: pointsman status")


def show_step(step: Any, cluster: str) -> None:
    """One step of a switchover, or its end, for people."""
    console = Console(highlight=False, soft_wrap=True)
    if step.done:
        end = Text(f"{step.primary} is the primary of {cluster}", style="bold green")
        console.print(
            end.append(f"; writes waited {step.pause_s * 1000:.0f} ms, {step.elapsed_s:.1f} s in all", style="dim")
        )
        return
    line = Text(f"{step.elapsed_s:7.3f} s  ", style="dim").append(step.step, style="bold")
    console.print(line.append(f"  {step.detail}" if step.detail else "", style="dim"))


def show_step_json(step: Any, cluster: str) -> None:
    """The same for programs, on one line."""
    print(json.dumps({"cluster": cluster, **plain(step)}, ensure_ascii=False), flush=True)


def drain(client: AdminClient, endpoint: str, *, as_json: bool = False) -> str:
    """Give an endpoint no new work; what to tell of it."""
    answer = client.call("DrainEndpoint", pb.DrainEndpointRequest(endpoint=endpoint))
    running = answer.in_flight
    words = f"{endpoint} takes no new work; {running} request{'' if running == 1 else 's'} still run there"
    if any(endpoint == cluster.primary for cluster in client.clusters()):
        words += f"\n{endpoint} is the primary: requests wait, and fail in the end, until: pointsman resume {endpoint}"
    return _told(answer, words, {"endpoint": endpoint}, as_json)


def resume(client: AdminClient, endpoint: str, *, as_json: bool = False) -> str:
    """End a drain; what to tell of it."""
    answer = client.call("ResumeEndpoint", pb.ResumeEndpointRequest(endpoint=endpoint))
    return _told(answer, f"{endpoint} takes work again", {"endpoint": endpoint}, as_json)


def set_weight(client: AdminClient, endpoint: str, weight: int, *, as_json: bool = False) -> str:
    """Change an endpoint's weight until the next reload or restart; what to tell of it."""
    answer = client.call("SetEndpointWeight", pb.SetEndpointWeightRequest(endpoint=endpoint, weight=weight))
    words = f"{endpoint}: weight {answer.previous} → {weight}, until the next reload or restart"
    return _told(answer, words, {"endpoint": endpoint, "weight": weight}, as_json)


def _told(answer: Any, words: str, facts: dict[str, Any], as_json: bool) -> str:
    """In words, with a line for each worker that has yet to take the order; or all of it as JSON."""
    if as_json:
        return json.dumps({**facts, **plain(answer)}, indent=2, ensure_ascii=False)
    return words + "".join(f"\n{late}; it takes the order as soon as it answers" for late in answer.behind)


def reload(client: AdminClient, *, as_json: bool = False) -> None:
    """Make the router read its files again. Trouble with all their problems when they have any."""
    answer = client.call("ReloadConfig", pb.ReloadConfigRequest(), READING_S)
    if as_json:
        print(json.dumps(plain(answer), indent=2, ensure_ascii=False))
    else:
        _show_reload(answer)
    if not answer.applied:
        nothing = "nothing else" if answer.changes else "nothing"
        raise Trouble(
            "\n".join(answer.problems) or "the configuration was refused",
            f"{nothing} was changed: mend the file (pointsman check-config FILE) and reload again",
        )


def _show_reload(answer: Any) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for change in answer.changes:
        console.print(Text(change))
    if answer.applied:
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
