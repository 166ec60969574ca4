"""Set up structlog and the standard library's logging as one log on standard error.

Redaction is here: a field whose name may carry SQL, parameters or a secret is starred, whoever wrote it, and an
exception is told by its class and frames, never by its text, which may quote a row.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from pathlib import PurePath
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from router.telemetry.event_sink import threshold_of

Fields = MutableMapping[str, Any]

STARS = "***"
HIDDEN = frozenset(
    {
        "args", "arguments", "authorization", "conninfo", "cookie", "credentials", "dsn", "params", "parameters",
        "passwd", "password", "passphrase", "pgpass", "query", "secret", "sql", "statement", "statements", "token",
        "tokens", "value", "values",
    }
)  # fmt: skip
"""Names of fields that are never written, also as the end of a longer name (admin_token)."""
_IN_TEXT = re.compile(
    r"(?i)\b(password|passwd|sslpassword|token|secret|authorization)(\s*[=:]\s*)('[^']*'|\"[^\"]*\"|\S+)"
)
_URI = re.compile(r"(?i)\b(postgres(?:ql)?://[^:/@\s]+):[^@\s]+@")
_MOST_FRAMES = 30


def set_up(
    level: str = "info", form: str = "auto", stream: TextIO | None = None, *, worker: int | None = None
) -> None:
    """Begin logging. level: debug, info, warning, error. form: console, json, or auto (console on a terminal).
    worker: stands in every line, where several processes write one log.

    May be called again, for example after a reload.
    """
    out = stream if stream is not None else sys.stderr
    on_terminal = out.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        *([_of_worker(worker)] if worker is not None else []),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _exception_without_text,
        _redact,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    console = form == "console" or (form == "auto" and on_terminal)
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=on_terminal, exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(sort_keys=False)
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _head_first, renderer],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if getattr(old, "_pointsman", False):
            root.removeHandler(old)
    handler._pointsman = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    set_level(level)


def _of_worker(number: int) -> Processor:
    def name(_logger: object, _method: str, fields: Fields) -> Fields:
        fields.setdefault("worker", number)
        return fields

    return name


def process_log() -> Any:
    """The logger of the process itself: start, drain, end."""
    return structlog.get_logger("router")


def set_level(level: str) -> None:
    """Change the level of the whole log."""
    threshold = threshold_of(level)
    logging.getLogger().setLevel(threshold)
    # The pool warns of each failed connect; our own ConnectFailed tells it once, with tenant and endpoint.
    logging.getLogger("psycopg.pool").setLevel(
        max(threshold, logging.ERROR) if threshold > logging.DEBUG else threshold
    )
    # asyncio's debug lines (selector in use) and grpc's tell an operator nothing.
    for name in ("asyncio", "grpc", "grpc._cython.cygrpc"):
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


def _head_first(_logger: object, _method: str, fields: Fields) -> Fields:
    """What every line has comes first: a person reads JSON lines from the left."""
    head = {name: fields[name] for name in ("timestamp", "level", "event", "logger") if name in fields}
    return {**head, **fields}


def _redact(_logger: object, _method: str, fields: Fields) -> Fields:
    for name, value in fields.items():
        if _is_hidden(name):
            fields[name] = STARS
        elif isinstance(value, str):
            fields[name] = _clean(value)
        elif isinstance(value, dict):
            fields[name] = _redact(_logger, _method, dict(value))
        elif isinstance(value, list | tuple):
            fields[name] = [_clean(item) if isinstance(item, str) else item for item in value]
    return fields


def _is_hidden(name: str) -> bool:
    lowered = name.lower()
    return lowered in HIDDEN or lowered.rpartition("_")[2] in HIDDEN


def _clean(text: str) -> str:
    if "=" not in text and ":" not in text:
        return text
    return _URI.sub(rf"\1:{STARS}@", _IN_TEXT.sub(rf"\1\2{STARS}", text))


def _exception_without_text(_logger: object, _method: str, fields: Fields) -> Fields:
    info = fields.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else None
    if error is not None:
        fields["error"] = f"{type(error).__module__}.{type(error).__qualname__}"
        fields["trace"] = _frames(error.__traceback__)
    return fields


def _frames(trace: TracebackType | None) -> list[str]:
    frames: list[str] = []
    while trace is not None and len(frames) < _MOST_FRAMES:
        code = trace.tb_frame.f_code
        frames.append(f"{PurePath(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return frames
