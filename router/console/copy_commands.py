"""The options of `pointsman copy out` and `pointsman copy in`; the work is in copying.py."""

from __future__ import annotations

from typing import Annotated

import typer

from router.console.dev_option import Dev

app = typer.Typer(help="Copy a table to a file, or a file into a table: the fastest way to many rows.",
                  no_args_is_help=True)

Address = Annotated[
    str,
    typer.Option(
        "--address", "-a", envvar="POINTSMAN_ADDRESS", metavar="HOST:PORT",
        help="The router's address for callers; else 127.0.0.1:7432.", show_default=False,
    ),
]  # fmt: skip
Tenant = Annotated[str, typer.Option(envvar="POINTSMAN_TENANT", help="Who calls.", show_default=False)]
Token = Annotated[str, typer.Option(envvar="POINTSMAN_TOKEN", help="Its token.", show_default=False)]
Form = Annotated[
    str,
    typer.Option(
        "--format", "-f", metavar="FORM", show_default=False,
        help="csv, text or binary; else by the file's ending, else text.",
    ),
]  # fmt: skip
Header = Annotated[bool, typer.Option("--header", help="The first line holds the columns' names.")]
Columns = Annotated[
    str, typer.Option(metavar="A,B", help="Only these columns, in this order.", show_default=False)
]
Delimiter = Annotated[str, typer.Option(metavar="C", help="What stands between columns.", show_default=False)]
Null = Annotated[str | None, typer.Option(help="What stands for NULL.", show_default=False)]
Quote = Annotated[str, typer.Option(metavar="C", help="The quote of csv.", show_default=False)]
Timeout = Annotated[
    float | None,
    typer.Option(min=0.001, help="Seconds it may take; else the tenant's longest.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Tell the end as JSON, for programs.")]


@app.command("out")
def copy_out(
    table: Annotated[str, typer.Argument(help="TABLE or SCHEMA.TABLE; with --query this is the file.")],
    file: Annotated[str, typer.Argument(help="Where to; - is standard output.")] = "",
    query: Annotated[str, typer.Option("--query", "-q", help="What this returns instead of a table.")] = "",
    form: Form = "",
    header: Header = False,
    columns: Columns = "",
    delimiter: Delimiter = "",
    null: Null = None,
    quote: Quote = "",
    read: Annotated[str, typer.Option(help="Where from: primary, replica or any.", metavar="WHERE")] = "primary",
    address: Address = "",
    tenant: Tenant = "",
    token: Token = "",
    development: Dev = "",
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Copy a table, or what a query returns, to a file. The file is complete in the end, or as it was before."""
    from router.console import copying
    from router.console.sql_command import read_preference
    from router.console.targets import Given, caller_target

    source, path = copying.out_arguments(table, file, query)
    encoding = copying.Encoding(copying.form_of(form, path), header, delimiter, null, quote)
    copying.run_out(
        caller_target(Given(address, token, tenant, development)),
        copying.CopyOut(source, query, path, copying.names(columns), encoding, read_preference(read), timeout),
        as_json,
    )


@app.command("in")
def copy_in(
    table: Annotated[str, typer.Argument(help="TABLE or SCHEMA.TABLE.")],
    file: Annotated[str, typer.Argument(help="Where from; - is standard input.")],
    form: Form = "",
    header: Header = False,
    columns: Columns = "",
    delimiter: Delimiter = "",
    null: Null = None,
    quote: Quote = "",
    key: Annotated[
        str,
        typer.Option(
            "--idempotency-key", metavar="KEY", show_default=False,
            help="Copy once, however often this is run: with the same key and data the first answer comes again.",
        ),
    ] = "",
    address: Address = "",
    tenant: Tenant = "",
    token: Token = "",
    development: Dev = "",
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Copy a file into a table: all of it or, after any mistake and after Ctrl-C, nothing."""
    from router.console import copying
    from router.console.targets import Given, caller_target

    encoding = copying.Encoding(copying.form_of(form, file), header, delimiter, null, quote)
    copying.run_in(
        caller_target(Given(address, token, tenant, development)),
        copying.CopyIn(table, file, copying.names(columns), encoding, timeout, key),
        as_json,
    )
