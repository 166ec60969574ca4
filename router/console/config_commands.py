"""`pointsman check-config` and `pointsman config ...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.console.trouble import Trouble

if TYPE_CHECKING:
    from router.config.loading import LoadedConfig

app = typer.Typer(help="Look at configuration files and their form.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="Configuration file (YAML).")]
Write = Annotated[Path | None, typer.Option("--write", help="Write it into this file.", metavar="FILE")]


def check_config(file: File) -> None:
    """Check a configuration file, its secrets included; every mistake is told with its line."""
    config = load_or_tell(file)
    topology = config.topology
    endpoints = sum(len(cluster.endpoints) for cluster in topology.clusters.values())
    counts = ((len(topology.clusters), "cluster"), (endpoints, "endpoint"), (len(topology.tenants), "tenant"))
    print(f"{file}: good ({', '.join(_counted(count, noun) for count, noun in counts)})")


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
def config_diff(old: File, new: File) -> None:
    """Tell in words what a second file changes; what needs a restart is marked."""
    from router.config.differences import diff, needs_restart

    before, after = load_or_tell(old), load_or_tell(new)
    later = set(needs_restart(before, after))
    for line in diff(before, after) or ("no difference",):
        print(f"{line} (after a restart)" if line in later else line)


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
