"""How a command is told which router it asks, and as whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from router.console.dev_option import Dev

if TYPE_CHECKING:
    from router.console.admin_client import AdminClient

__all__ = ["Address", "AsJson", "Dev", "Token", "operator"]

Address = Annotated[
    str,
    typer.Option(
        "--address",
        "-a",
        envvar="POINTSMAN_ADMIN_ADDRESS",
        metavar="HOST:PORT",
        help="The router's address for operators; else 127.0.0.1:7433.",
        show_default=False,
    ),
]
Token = Annotated[
    str,
    typer.Option(
        "--token", envvar="POINTSMAN_ADMIN_TOKEN", help="An operator's token (one of admin.tokens).", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]


def operator(address: str, token: str, development: str) -> AdminClient:
    """A connection to the router that was named; Trouble when the token is missing."""
    from router.console.admin_client import AdminClient
    from router.console.targets import Given, operator_target

    return AdminClient(operator_target(Given(address=address, token=token, dev=development)))
