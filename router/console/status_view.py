"""`pointsman status`: what the router sees and does, at a glance, as tables or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pointsman.v1 import admin_service_pb2 as pb
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from router.console import worker_commands
from router.console.admin_client import AdminClient
from router.console.fitting_table import Column, FittingTable
from router.console.message_values import plain, word
from router.console.result_output import visible

_GOOD = frozenset({"steady", "up", "primary", "serving"})
_BAD = frozenset({"stuck", "down", "quarantined", "holding", "silent"})
_SHOWN_TENANTS = 30


@dataclass(frozen=True)
class Status:
    """One look at a router."""

    server: Any
    clusters: list[Any]
    tenants: list[Any]
    pools: list[Any]
    workers: list[Any] = field(default_factory=list)


def look(client: AdminClient) -> Status:
    """Ask for everything. Trouble when the router cannot be asked."""
    return Status(
        client.call("GetServerInfo", pb.GetServerInfoRequest()),
        client.clusters(),
        client.tenants(),
        list(client.call("ListPools", pb.ListPoolsRequest()).pools),
        list(client.call("ListWorkers", pb.ListWorkersRequest()).workers),
    )


def as_json(status: Status, *, compact: bool = False) -> str:
    """Everything, for scripts. The form is that of the messages in admin_service.proto. compact: on one line."""
    return json.dumps(
        {
            "server": plain(status.server),
            "clusters": [plain(cluster) for cluster in status.clusters],
            "tenants": [plain(tenant) for tenant in status.tenants],
            "pools": [plain(pool) for pool in status.pools],
            "workers": [plain(worker) for worker in status.workers],
        },
        indent=None if compact else 2,
        separators=(",", ":") if compact else None,
    )


def as_tables(status: Status) -> RenderableType:
    """Everything, for people."""
    parts: list[RenderableType] = [_server_line(status.server)]
    if len(status.workers) > 1:
        parts += [Text(), worker_commands.table(status.workers)]
    for cluster in status.clusters:
        parts += [Text(), _cluster_line(cluster), _endpoints(cluster), *_messages(cluster)]
    parts += [Text(), _tenants(status.tenants)]
    if status.pools:
        parts += [Text(), _pools(status.pools)]
    return Group(*parts)


def watch(read: Callable[[], Status], console: Console, interval_s: float) -> None:
    """Show it again and again until Ctrl-C. Trouble when the router cannot be asked any more."""
    while not console.is_terminal:  # looks one below the other
        console.print(as_tables(read()), Text())
        time.sleep(interval_s)
    with Live(as_tables(read()), console=console, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval_s)
            live.update(as_tables(read()), refresh=True)


def watch_json(read: Callable[[], Status], interval_s: float) -> None:
    """The same for programs: one line of JSON for each look (JSON Lines)."""
    while True:
        print(as_json(read(), compact=True), flush=True)
        time.sleep(interval_s)


def _server_line(server: Any) -> Text:
    line = Text("pointsman ", style="bold").append(server.version)
    line.append(f" · up {duration(server.uptime_s)} · topology {server.topology} · {server.config_path}", style="dim")
    if server.draining:
        line.append(" · DRAINING", style="bold yellow")
    if server.config_problem:
        more = f" and {len(server.config_problems) - 1} more" if len(server.config_problems) > 1 else ""
        since = f"refused for {duration(server.config_refused_s)}"
        line.append(
            f"\nthe newest configuration is {since}, the one before goes on: {server.config_problem}{more}",
            style="bold red",
        )
    for one in server.certificate_troubles:
        line.append(
            f"\nthe {one.port}' port goes on with the certificates from before, for {duration(one.for_s)}: "
            f"{visible(one.problem)}",
            style="bold red",
        )
    return line


def _cluster_line(cluster: Any) -> Text:
    phase = word(cluster, "phase")
    line = Text("cluster ", style="bold").append(cluster.name, style="bold").append("  ")
    line.append_text(coloured(phase)).append(f" for {duration(cluster.phase_age_s)}", style="dim")
    line.append(f"  primary {cluster.primary or 'none'}", style="" if cluster.primary else "bold red")
    line.append(f"  term {cluster.term}  generation {cluster.generation}  {cluster.mode}", style="dim")
    if cluster.held:
        line.append(f"  {cluster.held} held", style="bold yellow")
    if cluster.findings:
        many = "" if len(cluster.findings) == 1 else "s"
        line.append(f"  {len(cluster.findings)} finding{many}: pointsman doctor", style="yellow")
    if cluster.detail:
        line.append(f"\n  {cluster.detail}", style="yellow")
    return line


def _endpoints(cluster: Any) -> FittingTable:
    zones = any(end.zone for end in cluster.endpoints)
    table = FittingTable(
        Column("endpoint"),
        Column("address"),
        *([Column("zone", spare=4)] if zones else []),
        Column("role"),
        Column("health", wraps=True),
        Column("lag", right=True),
        Column("weight", right=True, spare=2),
        Column("running", right=True, spare=5),
        Column("conns", right=True, spare=3),
        Column("probe", right=True, spare=1),
    )
    for end in cluster.endpoints:
        role, health = word(end, "role"), word(end, "health")
        state = coloured(health)
        reason, _ = _reason(end)
        if reason:
            state.append(f" ({reason})", style="dim")
        if end.draining:
            state.append(" draining", style="yellow")
        table.add(
            Text(end.name),
            Text(f"{end.host}:{end.port}"),
            *([Text(end.zone)] if zones else []),
            coloured(role),
            state,
            _lag(end, role),
            str(end.weight),
            _running(end),
            _connections(end),
            f"{end.probe_ms:.1f} ms",
        )
    return table


def _running(end: Any) -> Text:
    """Statements; and, where concurrency is adaptive and below the cap, on how many connections at most, and why."""
    text = Text(str(end.in_flight))
    if end.concurrency_limit and end.concurrency_reason != "cap":
        text.append(f" (≤ {end.concurrency_limit}: {end.concurrency_reason})", style="yellow")
    return text


def _connections(end: Any) -> Text:
    """Of the cap; and how many more are wanted than it allows."""
    text = Text(f"{end.connections}/{end.connections_cap}" if end.connections_cap else str(end.connections))
    if end.connections_wanted:
        text.append(f" +{end.connections_wanted}", style="yellow")
    return text


def _reason(end: Any) -> tuple[str, str]:
    """Why an endpoint is not up: the code, and in words, as far as the router knows."""
    if word(end, "health") == "up":
        return "", ""
    code, _, message = end.health_reason.partition(": ")
    return code, visible(" ".join(message.split()))


def _messages(cluster: Any) -> list[RenderableType]:
    """Below the table, not in it: an error of libpq is longer than all columns together. Logins in trouble as well."""
    told = [(end.name, _reason(end)[1]) for end in cluster.endpoints]
    told += [(one.endpoint, visible(one.message)) for one in cluster.findings if one.check == "credential"]
    return [Text(f"  {name}: ", style="dim").append(message, style="yellow") for name, message in told if message]


def _tenants(tenants: list[Any]) -> RenderableType:
    spare = {"refused": 3, "cancelled": 1, "listening": 2}
    listening = ("listening",) if any(one.listeners for one in tenants) else ()
    numbers = ("running", "queued", "held", "served", "failed", "refused", "cancelled", *listening)
    table = FittingTable(
        Column("tenant"),
        Column("cluster", spare=4),
        Column("database", spare=2),
        *(Column(name, right=True, spare=spare.get(name, 0)) for name in numbers),
    )
    busy_first = sorted(
        tenants, key=lambda one: (not one.paused, -one.in_flight - one.held - one.queued, -one.served, one.name)
    )
    for tenant in busy_first[:_SHOWN_TENANTS]:
        table.add(
            Text(tenant.name).append(" paused" if tenant.paused else "", style="yellow"),
            Text(tenant.cluster),
            Text(tenant.database),
            *(
                str(number)
                for number in (
                    tenant.in_flight, tenant.queued, tenant.held, tenant.served, tenant.failed, tenant.refused,
                    tenant.cancelled, *((tenant.listeners,) if listening else ()),
                )
            ),
        )  # fmt: skip
    if len(tenants) > _SHOWN_TENANTS:
        return Group(table, Text(f"and {len(tenants) - _SHOWN_TENANTS} quieter tenants (all with --json)", style="dim"))
    return table


def _pools(pools: list[Any]) -> FittingTable:
    numbers = (("size", 0), ("due", 4), ("idle", 3), ("leased", 2), ("opening", 1), ("waiting", 0), ("lanes", 4),
               ("running", 0))
    table = FittingTable(
        Column("pool"),
        Column("endpoint"),
        Column("access"),
        *(Column(name, right=True, spare=spare) for name, spare in numbers),
    )
    for pool in sorted(pools, key=lambda one: (-one.in_flight, one.tenant, one.endpoint, one.access))[:_SHOWN_TENANTS]:
        table.add(
            Text(pool.tenant),
            Text(pool.endpoint),
            Text(pool.access.replace("_", " ")),
            f"{pool.size}/{pool.max_size}",
            str(pool.due),
            str(pool.idle),
            str(pool.leased),
            str(pool.opening),
            str(pool.waiting),
            str(pool.lanes),
            str(pool.in_flight),
        )
    return table


def _lag(end: Any, role: str) -> Text:
    if role != "replica":
        return Text("")
    if end.lag_s < 0:
        return Text("unknown", style="dim")
    size = f" {end.lag_bytes / 1024:.0f} KiB" if end.lag_bytes >= 1024 else ""
    return Text(f"{end.lag_s:.1f} s{size}", style="yellow" if end.lag_s >= 1 else "")


def coloured(state: str) -> Text:
    """A state's word in the colour of how good it is."""
    style = "green" if state in _GOOD else "bold red" if state in _BAD else "" if state == "replica" else "yellow"
    return Text(state, style=style)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 3.2 s, 4 min, 5 h, 6 d."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    for size, unit in ((86400, "d"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 60:.0f} min"
