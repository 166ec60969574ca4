"""`pointsman check-config` and `pointsman config ...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.console.operator_options import Address, AsJson, Dev, Token, operator
from router.console.trouble import Trouble

if TYPE_CHECKING:
    from router.config.loaded import LoadedConfig
    from router.config.problems import ConfigProblems

app = typer.Typer(help="Look at configuration files, their form, and what they would change.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="Configuration file (YAML).")]
Write = Annotated[Path | None, typer.Option("--write", help="Write it into this file.", metavar="FILE")]


def check_config(file: File, as_json: AsJson = False) -> None:
    """Check a configuration file, its secrets included; every mistake is told with its line."""
    import json

    from router.config.loading import load
    from router.config.problems import ConfigProblems

    try:
        config = load(file) if as_json else load_or_tell(file)
    except ConfigProblems as found:
        print(json.dumps({"file": str(file), "good": False, "problems": _plain(found)}, indent=2, ensure_ascii=False))
        raise Trouble(f"{_counted(len(found.problems), 'problem')} in {file}") from None
    topology = config.topology
    endpoints = sum(len(cluster.endpoints) for cluster in topology.clusters.values())
    counts = ((len(topology.clusters), "cluster"), (endpoints, "endpoint"), (len(topology.tenants), "tenant"))
    if as_json:
        numbers = {f"{noun}s": count for count, noun in counts}
        print(json.dumps({"file": str(file), "good": True, "problems": [], **numbers}, indent=2, ensure_ascii=False))
        return
    print(f"{file}: good ({', '.join(_counted(count, noun) for count, noun in counts)})")


def _plain(found: ConfigProblems) -> list[dict[str, object]]:
    """Mistakes for programs; line 0 is the whole file."""
    source = str(found.source)
    return [
        {"file": one.source or source, "line": one.line, "place": one.path, "message": one.message}
        for one in found.problems
    ]


@app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    import json

    from router.config.json_schema import schema

    print(json.dumps(schema(), indent=2))


@app.command("show")
def config_show(file: File) -> None:
    """Print a file as it counts, with every default filled in. Secrets are starred."""
    from router.config.showing import show

    config = load_or_tell(file)
    print(show(config, file.read_text(encoding="utf-8-sig")), end="")


@app.command("diff")
def config_diff(
    file: Annotated[Path | None, typer.Argument(help="What is to come; else the router's own file.")] = None,
    other: Annotated[Path | None, typer.Argument(help="What is to come after FILE; no router is asked.")] = None,
    address: Address = "",
    token: Token = "",
    development: Dev = "",
    as_json: AsJson = False,
) -> None:
    """What a file would change in the running router, and how each change comes into force. Changes nothing.

    With two files: what the second one changes. Secrets are told to differ, never shown.
    """
    from router.console import config_diffs

    if file is not None and other is not None:
        found = config_diffs.between(load_or_tell(file), load_or_tell(other))
    else:
        text = "" if file is None else _text_of(file)
        with operator(address, token, development) as client:
            found = config_diffs.against_the_router(client, text, file)
    print(config_diffs.as_json(found) if as_json else config_diffs.as_lines(found))


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Trouble(f"{file} cannot be read: {(why or 'unknown error').lower()}") from None


@app.command("reload")
def config_reload(address: Address = "", token: Token = "", development: Dev = "", as_json: AsJson = False) -> None:
    """Make the router read its configuration again, as `pointsman reload` does. Mistakes in it change nothing."""
    from router.console import operations

    with operator(address, token, development) as client:
        operations.reload(client, as_json=as_json)


@app.command("sample")
def config_sample(write: Write = None) -> None:
    """Print a commented sample with every key."""
    from router.config.sample import sample

    _print_or_write(sample(), write)


@app.command("reference")
def config_reference(write: Write = None) -> None:
    """Print the reference as Markdown; --write renews it between the markers of a file."""
    from router.config.reference import MarkersMissing, fill, reference

    try:
        text = reference() if write is None else fill(write.read_text(encoding="utf-8"))
    except MarkersMissing as missing:
        raise Trouble(f"{write} {missing}") from None
    except OSError as error:
        raise Trouble(f"{write} cannot be read: {(error.strerror or 'unknown error').lower()}") from None
    _print_or_write(text, write)


def _print_or_write(text: str, write: Path | None) -> None:
    if write is None:
        print(text, end="")
        return
    try:
        write.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Trouble(f"{write} cannot be written: {(error.strerror or 'unknown error').lower()}") from None


def load_or_tell(file: Path) -> LoadedConfig:
    """Load it; Trouble after its mistakes were told."""
    from router.config.loading import load
    from router.config.problems import ConfigProblems

    try:
        return load(file)
    except ConfigProblems as problems:
        for line in problems.lines():
            print(line, file=sys.stderr)
        raise Trouble(f"{_counted(len(problems.problems), 'problem')} in {file}") from None


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
