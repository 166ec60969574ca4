"""`pointsman tenant create|change|pause|resume|remove|list|show`: tenants of a running router (tenants_dir)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.console.operator_options import Address, AsJson, Dev, Token, operator
from router.console.trouble import ExitCode, Trouble

if TYPE_CHECKING:
    from router.console.admin_client import AdminClient

Name = Annotated[str, typer.Argument(help="Name of the tenant.")]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Its document, as it would stand below its name (YAML); - reads it from standard "
                 "input.", metavar="FILE", show_default=False),
]  # fmt: skip
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="A key of the document, such as pool.max_size=16; an empty value takes it away.",
                 metavar="KEY=VALUE", show_default=False),
]  # fmt: skip
Version = Annotated[
    str,
    typer.Option(help="Only if it is still this version, which `tenant show --json` tells.", show_default=False),
]
PAGE = 500


def add_to(app: typer.Typer) -> None:
    """Give the commands to `pointsman tenant`."""
    commands: tuple[tuple[str, Callable[..., None]], ...] = (
        ("list", listing), ("show", show), ("create", create), ("change", change), ("pause", pause), ("resume", resume),
        ("remove", remove),
    )  # fmt: skip
    for name, command in commands:
        app.command(name)(command)


def listing(address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False) -> None:
    """Tenants of the router, with what they have running."""
    import json

    from router.console.message_values import plain

    with operator(address, token, development) as client:
        found = client.tenants()
    if as_json:
        print(json.dumps([plain(one) for one in found], indent=2))
        return
    if not found:
        print("no tenants")
    for one in found:
        state = "  paused" if one.paused else ""
        print(f"{one.name}  {one.cluster}/{one.database}  {one.in_flight} running, {one.queued} waiting{state}")


def show(name: Name, address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False) -> None:
    """A tenant's document as it stands, and why it is not in force if it is not. Secrets are references."""
    import json

    from pointsman.v1 import admin_service_pb2 as pb

    from router.console.message_values import plain

    with operator(address, token, development) as client:
        found = client.call("GetTenant", pb.GetTenantRequest(tenant=name))
    if as_json:
        print(json.dumps(plain(found), indent=2))
        return
    print(found.document, end="" if found.document.endswith("\n") else "\n")
    for line in found.problems:
        print(f"not in force: {line}", file=sys.stderr)


def create(
    name: Name, file: File = None, changes: Set = None,
    address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make a tenant, by a document (--file), by keys (--set), or both. It can call when this has ended.

    What it needs in PostgreSQL is made by `pointsman tenant init`.
    """
    from pointsman.v1 import admin_service_pb2 as pb

    document = _edited(_text(file), changes or ())
    with operator(address, token, development) as client:
        done = client.call("CreateTenant", pb.CreateTenantRequest(tenant=name, document=document))
    _tell(done, as_json)
    if not as_json:
        print(f"its role and database, if not yet done: pointsman tenant init {name}")


def change(
    name: Name, file: File = None, changes: Set = None, version: Version = "",
    address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Change a tenant: a whole new document (--file), or some keys of the one it has (--set).

    With --set, a change that somebody else makes at the same time is not undone: the order is refused. Comments of the
    file are lost.
    """
    from pointsman.v1 import admin_service_pb2 as pb

    if file is None and not changes:
        raise Trouble("nothing to change", "give --file FILE or --set KEY=VALUE", ExitCode.USAGE)
    with operator(address, token, development) as client:
        text = _text(file)
        if file is None:
            now = client.call("GetTenant", pb.GetTenantRequest(tenant=name))
            text, version = now.document, version or now.version
        request = pb.ChangeTenantRequest(tenant=name, document=_edited(text, changes or ()), version=version)
        done = client.call("ChangeTenant", request)
    _tell(done, as_json)


def pause(
    name: Name, version: Version = "",
    address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Let a tenant's new requests wait, as in a failover; what runs, and open transactions, go on."""
    _order("Pause", name, version, operator(address, token, development), as_json=as_json)


def resume(
    name: Name, version: Version = "",
    address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False,
) -> None:  # fmt: skip
    """End a pause: whoever waits goes on, in turn."""
    _order("Resume", name, version, operator(address, token, development), as_json=as_json)


def remove(
    name: Name, version: Version = "",
    address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Take a tenant away: its callers are refused, statements that run end, its connections close.

    Open transactions are rolled back; to let them end, pause it first. Its database stays.
    """
    _order("Remove", name, version, operator(address, token, development), as_json=as_json)


def _order(order: str, name: str, version: str, client: AdminClient, *, as_json: bool) -> None:
    """One that needs no more than the tenant's name."""
    from pointsman.v1 import admin_service_pb2 as pb

    method = f"{order}Tenant"
    with client:
        done = client.call(method, getattr(pb, f"{method}Request")(tenant=name, version=version))
    _tell(done, as_json)


def _text(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Trouble(f"{file} cannot be read: {(why or 'unknown error').lower()}") from None


def _edited(text: str, changes: list[str] | tuple[str, ...]) -> str:
    """The document with some keys set; as it is when there are none."""
    from router.config.document_edits import EditMistake, edited

    try:
        return edited(text, changes)
    except EditMistake as mistake:
        raise Trouble(str(mistake), "write --set pool.max_size=16", ExitCode.USAGE) from None


def _tell(done: Any, as_json: bool) -> None:
    import json

    from router.console.message_values import plain

    if as_json:
        print(json.dumps(plain(done), indent=2, ensure_ascii=False))
        return
    for one in done.changes:
        print(f"{one.place}: {one.change}")
    print("done" if done.changes else "done: nothing had changed")
    for words in done.behind:
        print(f"{words}; it takes the order as soon as it answers", file=sys.stderr)
