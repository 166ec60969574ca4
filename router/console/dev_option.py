"""The option --dev, which all commands share that talk to a router."""

from __future__ import annotations

import os
from typing import Annotated

import typer

_OF_ANOTHER_ROUTER = ("POINTSMAN_ADDRESS", "POINTSMAN_TOKEN", "POINTSMAN_ADMIN_ADDRESS", "POINTSMAN_ADMIN_TOKEN")


def _chosen(context: typer.Context, option: typer.CallbackParam, directory: str) -> str:
    """Given on the command line, it beats what the environment says of another router.

    Options on the command line are read before those that only the environment has, so an --address beside it stays.
    """
    source = context.get_parameter_source(str(option.name))
    if directory and source is not None and source.name == "COMMANDLINE":
        for name in _OF_ANOTHER_ROUTER:
            os.environ.pop(name, None)
    return directory


Dev = Annotated[
    str,
    typer.Option(
        "--dev", envvar="POINTSMAN_DEV", metavar="DIR", callback=_chosen,
        help="Address and tokens of `pointsman dev --data DIR`.",
    ),
]  # fmt: skip
