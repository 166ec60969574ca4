"""`pointsman copy`: through the SDK, with a progress bar for a person and a summary for everyone."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TextIO

import pointsman
from pointsman.options import ReadPreference
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from router.console.admin_client import reach
from router.console.sql_session import trouble_of
from router.console.targets import Target
from router.console.trouble import ExitCode, Trouble

_FORMS = ("csv", "text", "binary")
_BY_ENDING = {".csv": "csv", ".tsv": "text", ".txt": "text"}
_STANDARD = "-"
_QUERIES = ("select", "with", "values", "table")
"""With more behind it, this begins a query, and no table's name."""

Told = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Encoding:
    """The data's format; empty and None mean PostgreSQL's defaults."""

    form: str
    header: bool
    delimiter: str
    null: str | None
    quote: str

    def options(self) -> dict[str, Any]:
        """As the SDK takes them."""
        return {
            "format": self.form,
            "header": self.header,
            "delimiter": self.delimiter or None,
            "null": self.null,
            "quote": self.quote or None,
        }


@dataclass(frozen=True)
class CopyOut:
    """What `copy out` was asked for."""

    table: str
    """Empty with a query."""
    query: str
    file: str
    columns: list[str]
    encoding: Encoding
    read: ReadPreference
    timeout_s: float | None


@dataclass(frozen=True)
class CopyIn:
    """What `copy in` was asked for."""

    table: str
    file: str
    columns: list[str]
    encoding: Encoding
    timeout_s: float | None
    key: str = ""


def out_arguments(first: str, second: str, query: str) -> tuple[str, str]:
    """Table and file; with a query the only argument is the file. Trouble when one is missing or too many."""
    if query:
        if second:
            raise Trouble(
                "either a table or --query", 'such as: pointsman copy out file.csv --query "select …"', ExitCode.USAGE
            )
        return "", first
    if not second:
        raise Trouble(
            "no file given", f"such as: pointsman copy out {first} {first}.csv; - is standard output", ExitCode.USAGE
        )
    words = first.split(None, 1)
    if len(words) == 2 and words[0].lower().lstrip("(") in _QUERIES:
        way_out = f"such as: pointsman copy out {shlex.quote(second)} --query {shlex.quote(first)}"
        raise Trouble("that is a query, not the name of a table", way_out, ExitCode.USAGE)
    return first, second


def form_of(given: str, file: str) -> str:
    """The format that was given, or that the file's name tells. Trouble for an unknown one."""
    if not given:
        return _BY_ENDING.get(os.path.splitext(file)[1].lower(), "text")
    if given not in _FORMS:
        raise Trouble(f"there is no format {given}", f"formats: {', '.join(_FORMS)}", ExitCode.USAGE)
    return given


def names(columns: str) -> list[str]:
    """The columns of "a, b"."""
    return [name.strip() for name in columns.split(",") if name.strip()]


def run_out(target: Target, asked: CopyOut, as_json: bool) -> None:
    """Copy to a file and tell the end. Trouble when it does not come to it."""
    _check_folder(asked.file)
    reach(target)
    to: str | BinaryIO = sys.stdout.buffer if asked.file == _STANDARD else asked.file
    with _connected(target) as db, _troubles(target, asked.query, asked.table), _progress(asked.file, None) as told:
        began = time.perf_counter()
        source = {"query": asked.query} if asked.query else {"table": asked.table, "columns": asked.columns}
        result = db.copy_out(
            **source, to=to, progress=told, read=asked.read, timeout=asked.timeout_s, **asked.encoding.options()
        )
        took_s = time.perf_counter() - began
    # With the data on standard output, what is told about it goes beside.
    sys.stdout.flush()
    _tell(result, took_s, as_json, sys.stderr if asked.file == _STANDARD else sys.stdout)


def run_in(target: Target, asked: CopyIn, as_json: bool) -> None:
    """Copy from a file and tell the end. Trouble when it does not come to it; then nothing was kept."""
    if asked.file == _STANDARD and sys.stdin.isatty():
        raise Trouble("standard input is a terminal", "such as: cat rows.csv | pointsman copy in TABLE -")
    size = _size_of(asked.file)
    reach(target)
    source = _standard_input() if asked.file == _STANDARD else asked.file
    with _connected(target) as db, _troubles(target, "", asked.table), _progress(asked.file, size) as told:
        began = time.perf_counter()
        result = db.copy_in(
            asked.table, source, progress=told, columns=asked.columns, timeout=asked.timeout_s,
            idempotency_key=asked.key or None, **asked.encoding.options(),
        )  # fmt: skip
        took_s = time.perf_counter() - began
    _tell(result, took_s, as_json, sys.stdout)


def _standard_input() -> BinaryIO:
    """Standard input without Python's buffer, whose lock the thread that waits in its read would hold: where the
    program is interrupted meanwhile, the end of the interpreter wants that lock, and aborts."""
    try:
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    except (OSError, AttributeError):  # one that is no file
        return sys.stdin.buffer


def _check_folder(file: str) -> None:
    """The data is written beside the file first: what is missing is its folder, whatever the system says of it."""
    folder = os.path.dirname(os.path.realpath(file))
    if file != _STANDARD and not os.path.isdir(folder):
        problem = f"{file} cannot be written: there is no folder {folder}"
        raise Trouble(problem, f"make it first: mkdir -p {shlex.quote(folder)}")


def _size_of(file: str) -> int | None:
    """Bytes of a regular file; None where that says nothing. Trouble when it cannot be read."""
    if file == _STANDARD:
        return None
    try:
        with open(file, "rb"):
            return os.path.getsize(file) if os.path.isfile(file) else None
    except OSError as error:
        raise Trouble(f"{file} cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def _connected(target: Target) -> Iterator[pointsman.sync.Client]:
    with pointsman.sync.connect(target.address, tenant=target.tenant, token=target.token, tls=target.tls) as db:
        yield db


@contextlib.contextmanager
def _troubles(target: Target, query: str, table: str) -> Iterator[None]:
    try:
        yield
    except pointsman.Error as error:
        trouble = trouble_of(error, target.address, query)
        if isinstance(error, pointsman.UndefinedTable) and table != table.lower():
            way_out = f"names are taken as the catalogue has them, capitals included: is it {table.lower()}?"
            trouble = Trouble(trouble.message, way_out, trouble.code)
        context = error.pg.context if error.pg is not None else ""
        if context:  # names the line of the data
            trouble = Trouble(trouble.message, f"{trouble.way_out}\nCONTEXT: {context}".strip("\n"), trouble.code)
        raise trouble from None
    except BrokenPipeError:
        raise  # the reader of standard output left
    except OSError as error:
        raise Trouble(f"{error.filename or 'the file'}: {error.strerror or error}") from None
    except (ValueError, TypeError) as error:
        raise Trouble(str(error), code=ExitCode.USAGE) from None


@contextlib.contextmanager
def _progress(file: str, total: int | None) -> Iterator[Told | None]:
    """A bar on standard error for a person who watches it; else nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    known = (BarColumn(), TimeRemainingColumn()) if total is not None else (TimeElapsedColumn(),)
    columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn(), *known)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(file if file != _STANDARD else "copying", total=total)
        yield lambda size, _: bar.update(task, completed=size)


def _tell(result: pointsman.CopyResult, took_s: float, as_json: bool, out: TextIO) -> None:
    receipt = result.receipt
    if as_json:
        summary = {
            "command": result.command_tag,
            "rows": result.rows,
            "bytes": result.bytes,
            "took_s": round(took_s, 6),
            "endpoint": receipt.endpoint,
            "role": receipt.role,
            "attempts": receipt.attempts,
            "held_s": receipt.held_us / 1e6,
            "replayed": receipt.replayed,
            "request_id": receipt.request_id,
        }
        print(json.dumps(summary), file=out)
        return
    rate = decimal(int(result.bytes / took_s)) if took_s > 0 else "?"
    where = f"{receipt.endpoint} ({receipt.role})" if receipt.role else receipt.endpoint
    again = " · it was done before" if receipt.replayed else ""
    size = decimal(result.bytes)
    print(f"{result.command_tag} · {size} in {took_s:.2f} s ({rate}/s) · {where}{again}", file=out)
    for notice in result.notices:
        print(f"{notice.severity}: {notice.message}", file=sys.stderr)
