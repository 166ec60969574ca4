"""`pointsman tenant ...`: what a tenant needs in PostgreSQL, made and checked by the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from router.console import tenant_order_commands
from router.console.operator_options import AsJson
from router.console.trouble import Trouble

if TYPE_CHECKING:
    from router.model.topology import Tenant, Topology

app = typer.Typer(
    help="Make, change, pause and remove tenants while the router runs; make and check what they need in PostgreSQL.",
    no_args_is_help=True,
)
tenant_order_commands.add_to(app)

_T = TypeVar("_T")
_CONNECT_S = 5
"""For each endpoint."""

Name = Annotated[str, typer.Argument(help="Name of the tenant, as the configuration has it.")]
Config = Annotated[Path, typer.Option("--config", "-c", help="Configuration file (YAML).", metavar="FILE")]
Dsn = Annotated[
    str,
    typer.Option(
        "--dsn",
        envvar="POINTSMAN_SUPERUSER_DSN",
        metavar="DSN",
        help="How a superuser connects (libpq's URI or words); else to the cluster's endpoints (init: to the one that"
        " can be written to), and by libpq's environment.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the SQL as a psql script, and do nothing.")]


@app.command("init")
def tenant_init(name: Name, config: Config, dsn: Dsn = "", dry_run: DryRun = False) -> None:
    """Make or renew a tenant's role, database or schema, grants and marker. May be run again."""
    from router import tenant_setup

    topology, tenant = _find(config, name)
    if dry_run:
        print(tenant_setup.script_of(topology, tenant), end="")
        return
    tenant = _with_password(tenant)
    where = dsn or _default_dsn(topology, tenant, servers="read-write")
    _with_database(lambda: tenant_setup.init(where, topology, tenant))
    print(f"tenant {name} is ready: isolation {tenant.isolation.value}, database {tenant.database}")


@app.command("check")
def tenant_check(name: Name, config: Config, dsn: Dsn = "", as_json: AsJson = False) -> None:
    """Tell what keeps a tenant apart, and what is missing of it; ends with 1 when something is."""
    import json

    from router import tenant_setup

    topology, tenant = _find(config, name)
    where = dsn or _default_dsn(topology, tenant, servers="any")
    findings = _with_database(lambda: tenant_setup.check(where, topology, tenant))
    if as_json:
        told = [{"what": one.what, "ok": not one.problem, "problem": one.problem} for one in findings]
        print(json.dumps(told, indent=2))
    else:
        for finding in findings:
            print(f"{'missing' if finding.problem else 'ok     '}  {finding.what}{_colon(finding.problem)}")
    bad = sum(bool(finding.problem) for finding in findings)
    if bad:
        raise Trouble(f"{bad} of {len(findings)} checks of tenant {name} found something missing")


def _colon(problem: str) -> str:
    return f": {problem}" if problem else ""


def _find(config: Path, name: str) -> tuple[Topology, Tenant]:
    from router.console.config_commands import load_or_tell

    topology = load_or_tell(config).topology
    for tenant in topology.tenants.values():
        if tenant.name == name:
            return topology, tenant
    raise Trouble(f"{config} has no tenant {name}", f"It has {', '.join(sorted(topology.tenants)[:10])}.")


def _with_password(tenant: Tenant) -> Tenant:
    """The tenant with the password that its command prints now, if it has one."""
    import asyncio
    from dataclasses import replace

    from router.config.secret_commands import CommandRunner
    from router.model.secret_commands import SecretCommand, SecretFailed

    command = tenant.login.password
    if not isinstance(command, SecretCommand):
        return tenant
    try:
        password = asyncio.run(CommandRunner().run(command))
    except SecretFailed as failed:
        raise Trouble(f"the password of login {tenant.login.user}: {failed}") from None
    return replace(tenant, login=replace(tenant.login, password=password))


def _default_dsn(topology: Topology, tenant: Tenant, *, servers: str) -> str:
    """Of all endpoints of the tenant's cluster the first that is one of these servers, in libpq's words."""
    from psycopg.conninfo import make_conninfo

    endpoints = topology.clusters[tenant.cluster].endpoints
    return make_conninfo(
        host=",".join(one.host for one in endpoints),
        port=",".join(str(one.port) for one in endpoints),
        target_session_attrs=servers,
        connect_timeout=_CONNECT_S,
    )


def _with_database(work: Callable[[], _T]) -> _T:
    import psycopg

    try:
        return work()
    except psycopg.Error as error:
        line = (str(error) or type(error).__name__).strip().split("\n", 1)[0]
        raise Trouble(f"PostgreSQL: {line}", "Give a superuser's connection to the primary with --dsn.") from None
