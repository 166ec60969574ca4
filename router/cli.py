"""The command `pointsman`. Commands here only read their options; the work is in app.py, dev.py, config/, console/.

Exit codes: 0 done; 1 what was asked could not be done, or not written to standard output (without a word where its
reader left); 2 the command line is wrong; 3 no router answers.
Imports that cost time are inside the commands, so that `pointsman --help` is quick.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import router
from router import early_signals, interpreter, tenant_commands
from router.console import (
    config_commands,
    copy_commands,
    listen_command,
    order_commands,
    outcome_command,
    worker_commands,
)
from router.console.command_group import CommandGroup
from router.console.operator_options import Address, AsJson, Dev, Token, operator
from router.console.trouble import ExitCode, Trouble

if TYPE_CHECKING:
    from rich.console import Console

_UNBOUNDED = 10_000
RUN, ASK, OPERATE, CONFIGURE = "Run a router", "Ask it", "Operate it", "Configure it"

_SERVING = ("serve", "dev")
_OUTPUT_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Without a file's name beside them these are standard output's."""

app = typer.Typer(
    cls=CommandGroup,
    epilog="Exit codes: 0 done · 1 could not be done · 2 wrong command line · 3 no router answers",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
    tls: Annotated[bool, typer.Option("--tls", help="Speak TLS; the system's authorities are believed.")] = False,
    ca: Annotated[str, typer.Option(metavar="FILE", help="Believe these authorities (PEM).", show_default=False)] = "",
    cert: Annotated[str, typer.Option(metavar="FILE", help="Prove yourself by this certificate.")] = "",
    key: Annotated[str, typer.Option(metavar="FILE", help="Its private key.")] = "",
) -> None:
    """A multi-tenant, failover-aware routing pool service for PostgreSQL.

    Begin with: pointsman dev

    How to reach a router with TLS stands before the command, or in POINTSMAN_TLS, POINTSMAN_CA, POINTSMAN_CERT,
    POINTSMAN_KEY.
    """
    # Before a command imports grpc. Where we ask, its own lines tell a user nothing that our message does not.
    _let_grpc_tell("ERROR" if context.invoked_subcommand in _SERVING else "NONE")
    for name, value in (("TLS", "1" if tls else ""), ("CA", ca), ("CERT", cert), ("KEY", key)):
        if value:
            os.environ[f"POINTSMAN_{name}"] = value


CallerAddress = Annotated[
    str,
    typer.Option(
        "--address",
        "-a",
        envvar="POINTSMAN_ADDRESS",
        metavar="HOST:PORT",
        help="The router's address for callers; else 127.0.0.1:7432.",
        show_default=False,
    ),
]


def main() -> None:
    """Entry point: runs a command, and ends with its exit code."""
    # gRPC reads it when it is imported: its fork handlers have no use here, and tell of each process that is started.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    code = _run()
    try:
        if sys.stdout is not None:  # it is where a command is begun with it closed
            sys.stdout.flush()  # here, where it can still be told; Python's own at the end ends in 120 and a traceback
    except OSError as error:
        code = _unwritten(error) or code
    sys.exit(code)


def _run() -> int:
    try:
        app()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except Trouble as trouble:
        _complain(trouble)
        return trouble.code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS or error.filename is not None:
            raise
        return _unwritten(error)
    return ExitCode.OK


def _unwritten(error: OSError) -> int:
    """Standard output has not taken all: what is left goes nowhere. A reader that left (head, less) has had enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        _complain(Trouble(f"standard output cannot be written: {(error.strerror or str(error)).lower()}"))
    return ExitCode.PROBLEM


def _complain(trouble: Trouble) -> None:
    from router.console.result_output import visible

    print(f"pointsman: {visible(trouble.message)}", file=sys.stderr)
    if trouble.way_out:
        print(visible(trouble.way_out), file=sys.stderr)


def _console() -> Console:
    from rich.console import Console

    # Into a pipe or a file nothing is folded or cut; COLUMNS still says otherwise.
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _UNBOUNDED
    return Console(highlight=False, width=wide)


def _let_grpc_tell(least: str) -> None:
    """Before grpc is imported, which reads it once: below this level its own lines tell nobody anything."""
    os.environ.setdefault("GRPC_VERBOSITY", least)


# --- run ---------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=RUN)
def serve(
    file: Annotated[Path, typer.Option("--config", "-c", envvar="POINTSMAN_CONFIG", help="Configuration file (YAML).")],
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Processes for callers; else server.workers.", show_default=False),
    ] = None,
) -> None:
    """Run the router. SIGTERM drains it, SIGHUP reads the configuration again, SIGUSR1 restarts its workers."""
    early_signals.note()
    interpreter.begin()
    from router.config import reading

    read = reading.begin(file)  # at once: the imports below take as long as it does
    from router.app import serve as run

    raise typer.Exit(run(read, workers))


@app.command(rich_help_panel=RUN)
def dev(
    data: Annotated[
        Path | None, typer.Option(help="Keep the data here; without it, all is gone at the end.", metavar="DIR")
    ] = None,
    pg_bin: Annotated[
        Path | None, typer.Option(help="PostgreSQL's bin folder (15 or newer); else it is looked for.", metavar="DIR")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65533, help="Port for callers; the next two are admin's and metrics'. 0: any.")
    ] = 7432,
    replicas: Annotated[int, typer.Option(min=1, max=8, help="How many replicas stream from the primary.")] = 2,
) -> None:
    """Run everything on this machine: PostgreSQL with replicas, the router, two demo tenants. Ctrl-C ends it all."""
    interpreter.begin()
    from router.dev import DevOptions, run

    raise typer.Exit(run(DevOptions(data=data, pg_bin=pg_bin, port=port, replicas=replicas)))


# --- ask ---------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=ASK)
def sql(
    query: Annotated[str | None, typer.Argument(help="A statement; - reads it from standard input.")] = None,
    address: CallerAddress = "",
    tenant: Annotated[str, typer.Option(envvar="POINTSMAN_TENANT", help="Who calls.", show_default=False)] = "",
    token: Annotated[str, typer.Option(envvar="POINTSMAN_TOKEN", help="Its token.", show_default=False)] = "",
    development: Dev = "",
    read: Annotated[str, typer.Option(help="Where reads go: primary, replica or any.", metavar="WHERE")] = "primary",
    form: Annotated[
        str, typer.Option("--format", "-f", help="table, expanded, json or csv.", metavar="FORM")
    ] = "table",
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV.")] = False,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that a statement may take.")] = 30.0,
    after: Annotated[
        str, typer.Option("--after-token", metavar="TOKEN", help="Reads see at least what this token names.")
    ] = "",
    show_token: Annotated[
        bool, typer.Option("--show-token", help="Tell the consistency token in the end, on standard error.")
    ] = False,
    key: Annotated[
        str, typer.Option("--idempotency-key", metavar="KEY", help="Of one write: done once, however often sent.")
    ] = "",
    statement: Annotated[str, typer.Option("-c", "--command", metavar="QUERY", help="The same as QUERY.")] = "",
) -> None:
    """Run a statement, or without one an interactive prompt.

    Reads (SELECT, WITH, SHOW, ...) may go to a replica with --read; everything else runs on the primary.
    What one run has written or seen, another one's replica reads see if it is given its consistency token.
    --json writes the rows as an array of objects; of several statements, each one's array on a line of its own.
    """
    from router.console import sql_command
    from router.console.targets import Given, caller_target

    if statement and query is not None:
        raise Trouble("there are two statements: QUERY, and that of -c", "give one of them", ExitCode.USAGE)
    sql_command.run(
        statement or query,
        caller_target(Given(address, token, tenant, development)),
        sql_command.read_preference(read),
        sql_command.output_form("json" if as_json else "csv" if as_csv else form),
        timeout,
        _console(),
        sql_command.Tokens(after, show_token),
        key,
    )


app.command(rich_help_panel=ASK)(outcome_command.outcome)
app.command(rich_help_panel=ASK)(listen_command.listen)
app.add_typer(copy_commands.app, name="copy", rich_help_panel=ASK)


@app.command(rich_help_panel=ASK)
def status(
    address: Address = "",
    token: Token = "",
    development: Dev = "",
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks with --watch.")] = 1.0,
) -> None:
    """Clusters, endpoints, tenants and pools at a glance: who is primary, what lags, what waits."""
    from router.console import status_view

    with operator(address, token, development) as client:
        if watch and as_json:
            status_view.watch_json(lambda: status_view.look(client), interval)
        elif watch:
            status_view.watch(lambda: status_view.look(client), _console(), interval)
        elif as_json:
            print(status_view.as_json(status_view.look(client)))
        else:
            _console().print(status_view.as_tables(status_view.look(client)))


@app.command(rich_help_panel=ASK)
def doctor(
    address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False
) -> None:
    """What in the servers' settings will make a failover slow, unsafe or impossible, and the SQL that mends it.

    Exit code 1 when something is found, or a server could not be examined.
    """
    from router.console import doctor_command

    with operator(address, token, development) as client:
        found = doctor_command.look(client)
    if as_json:
        print(doctor_command.as_json(found))
    else:
        doctor_command.show(found, _console())
    if found:
        raise typer.Exit(1)


@app.command(rich_help_panel=ASK)
def waiters(
    address: Address = "",
    token: Token = "",
    development: Dev = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant's requests.")] = "",
    as_json: AsJson = False,
) -> None:
    """Requests under way and what each waits for, the longest wait first."""
    import json

    from router.console import operations

    with operator(address, token, development) as client:
        found = operations.waiters(client, tenant)
    if as_json:
        print(json.dumps(operations.waiters_json(found), indent=2))
    elif found:
        _console().print(operations.waiters_table(found))
    else:
        print("nothing waits")


@app.command(rich_help_panel=ASK)
def health(address: CallerAddress = "", development: Dev = "") -> None:
    """Exit code 0 when the router takes work, 1 when it drains, 3 when none answers. For container health checks."""
    from router.console.admin_client import health as ask
    from router.console.targets import Given, health_address

    given = Given(address=address, dev=development)
    where = health_address(given)
    if not ask(where, tls=given.tls):
        raise Trouble(f"the router at {where} takes no work", "it is starting or draining")
    print("serving")


@app.command(rich_help_panel=ASK)
def version() -> None:
    """The version of this command."""
    print(f"pointsman {router.__version__}")


# --- operate -----------------------------------------------------------------------------------------------------

for _order in (
    order_commands.switchover,
    order_commands.drain,
    order_commands.resume,
):
    app.command(rich_help_panel=OPERATE)(_order)
# A negative weight is told its range, and not taken for an option.
app.command(rich_help_panel=OPERATE, context_settings={"ignore_unknown_options": True})(order_commands.weight)
app.command(rich_help_panel=OPERATE)(order_commands.reload)
app.add_typer(worker_commands.app, name="workers", rich_help_panel=OPERATE)


# --- configure ---------------------------------------------------------------------------------------------------

app.command("check-config", rich_help_panel=CONFIGURE)(config_commands.check_config)
app.add_typer(config_commands.app, name="config", rich_help_panel=CONFIGURE)
app.add_typer(tenant_commands.app, name="tenant", rich_help_panel=CONFIGURE)
