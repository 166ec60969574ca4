"""`pointsman switchover|drain|resume|weight|reload`: options of an operator's orders; the work is in operations.py."""

from __future__ import annotations

from typing import Annotated

import typer

from router.console.operator_options import Address, AsJson, Dev, Token, operator
from router.console.trouble import ExitCode, Trouble

MAX_WEIGHT = 1_000_000
Endpoint = Annotated[str, typer.Argument(help="Name of the endpoint, as `pointsman status` shows it.")]
AsJsonLines = Annotated[bool, typer.Option("--json", help="Write one JSON object a line for each step, for programs.")]


def switchover(
    cluster: Annotated[str, typer.Argument(help="Name of the cluster.")],
    to: Annotated[str, typer.Option(help="The replica to become primary; else the most advanced one.")] = "",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds it may take before it is undone.")] = 10.0,
    address: Address = "",
    token: Token = "",
    development: Dev = "",
    as_json: AsJsonLines = False,
) -> None:
    """Move the primary by plan: writes wait for a moment, none fails."""
    from router.console import operations

    show = operations.show_step_json if as_json else operations.show_step
    with operator(address, token, development) as client:
        operations.switchover(client, cluster, to, timeout, show)


def drain(
    endpoint: Endpoint, address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False
) -> None:
    """Give an endpoint no new work; what runs there ends by itself."""
    from router.console import operations

    with operator(address, token, development) as client:
        print(operations.drain(client, endpoint, as_json=as_json))


def resume(
    endpoint: Endpoint, address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False
) -> None:
    """End a drain."""
    from router.console import operations

    with operator(address, token, development) as client:
        print(operations.resume(client, endpoint, as_json=as_json))


def weight(
    endpoint: Endpoint,
    value: Annotated[int, typer.Argument(metavar="WEIGHT", help="0 to 1000000; 0 takes no balanced reads.")],
    address: Address = "",
    token: Token = "",
    development: Dev = "",
    as_json: AsJson = False,
) -> None:
    """Set an endpoint's share of balanced reads, until the next reload or restart."""
    from router.console import operations

    if not 0 <= value <= MAX_WEIGHT:
        raise Trouble(f"WEIGHT must be 0 to {MAX_WEIGHT}, not {value}", code=ExitCode.USAGE)

    with operator(address, token, development) as client:
        print(operations.set_weight(client, endpoint, value, as_json=as_json))


def reload(address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False) -> None:
    """Make the router read its configuration file again. A file with mistakes changes nothing."""
    from router.console import operations

    with operator(address, token, development) as client:
        operations.reload(client, as_json=as_json)
