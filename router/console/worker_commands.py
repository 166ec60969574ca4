"""`pointsman workers ...`: the processes that serve callers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from router.console.operator_options import Address, AsJson, Dev, Token, operator
from router.console.order_commands import AsJsonLines
from router.console.trouble import Trouble

if TYPE_CHECKING:
    from router.console.admin_client import AdminClient
    from router.console.fitting_table import FittingTable

app = typer.Typer(help="The processes that serve callers (server.workers).", no_args_is_help=True)

RESTART_S = 3600.0
"""A restart ends by itself: each worker is bounded by the router's own times."""


@app.command("list")
def list_workers(address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False) -> None:
    """Workers with their process ids, load and restarts."""
    import json

    from rich.console import Console

    from router.console.message_values import plain

    with operator(address, token, development) as client:
        found = look(client)
    if as_json:
        print(json.dumps([plain(one) for one in found], indent=2))
    else:
        Console(highlight=False).print(table(found))


@app.command("restart")
def restart_workers(
    address: Address = "", token: Token = "", development: Dev = "", as_json: AsJsonLines = False
) -> None:
    """Replace the workers one by one, without failing a request; each step as it ends."""
    import json

    from pointsman.v1 import admin_service_pb2 as pb

    from router.console.message_values import plain

    done = False
    with operator(address, token, development) as client:
        for step in client.stream("RestartWorkers", pb.RestartWorkersRequest(), RESTART_S):
            done = step.done
            if as_json:
                print(json.dumps(plain(step)), flush=True)
                continue
            what = "all workers" if step.done else f"worker {step.worker} {step.step}"
            print(f"{step.elapsed_s:7.1f} s  {what}{f' ({step.detail})' if step.detail else ''}", flush=True)
    if not done:
        raise Trouble("the restart ended without saying how", "look with: pointsman workers list")


def look(client: AdminClient) -> list[Any]:
    """Ask for the workers. Trouble when the router cannot be asked."""
    from pointsman.v1 import admin_service_pb2 as pb

    return list(client.call("ListWorkers", pb.ListWorkersRequest()).workers)


def table(found: Iterable[Any]) -> FittingTable:
    """Workers, for people."""
    from rich.text import Text

    from router.console.fitting_table import Column, FittingTable
    from router.console.message_values import word
    from router.console.status_view import coloured, duration

    names = (("pid", 0), ("state", 0), ("up", 2), ("running", 0), ("conns", 1), ("restarts", 3))
    shown = FittingTable(Column("worker"), *(Column(name, right=name != "state", spare=spare) for name, spare in names))
    for one in found:
        shown.add(
            Text(str(one.number)),
            str(one.pid),
            coloured(word(one, "state")),
            duration(one.uptime_s),
            str(one.in_flight),
            str(one.connections),
            str(one.restarts),
        )
    return shown
