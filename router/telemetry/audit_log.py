"""The audit log: entries to lines of JSON, written by a thread of its own. Whoever records one never waits.

Control characters are escaped (JSON in ASCII), texts are cut, so that no caller can forge or flood a line. What does
not fit into the queue, or cannot be written, is dropped and counted: the next line that is written says how many. What
was written of a line that did not fit on the disk is made blank.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import structlog

from router.model.auditing import AuditEntry
from router.model.events import CredentialAlarm
from router.model.port_policies import AuditPolicy

_MOST_CHARS = 256
_MOST_STATEMENTS = 32
_BATCH = 256
_STANDARD_OUTPUT = 1
_FULL_PIPE_MS = 1000
ROUTER = "router"
"""Who, in what the router does of itself."""


class AuditLog:
    """ports.AuditSink. Several processes may add to one file: each writes whole lines."""

    def __init__(self, policy: AuditPolicy) -> None:
        self._policy = policy
        self._waiting: deque[tuple[float, AuditEntry]] = deque()
        self._filled = threading.Event()
        self._closing = False
        self.dropped = 0
        """Entries lost since the start."""
        self._told = 0
        self._failing = False
        self._torn = False
        """Whether the last line that was written lacks its end."""
        self._thread = threading.Thread(target=self._run, name="audit log", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, policy: AuditPolicy) -> AuditLog | None:
        """That of a process; None: it is off."""
        return cls(policy) if policy.file else None

    def record(self, entry: AuditEntry) -> None:
        """Queue an entry; from any thread."""
        if self._closing or len(self._waiting) >= self._policy.max_waiting:
            self.dropped += 1
            return
        self._waiting.append((datetime.now(UTC).timestamp(), entry))
        self._filled.set()

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        self._closing = True
        self._filled.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while True:
            self._filled.wait()
            self._filled.clear()
            while self._waiting:
                lines = [line(*self._waiting.popleft()) for _ in range(min(_BATCH, len(self._waiting)))]
                missing = self.dropped - self._told
                if missing:
                    lines.append(line(datetime.now(UTC).timestamp(), AuditEntry("audit", f"dropped {missing}")))
                lost = self._write([one.encode() for one in lines])
                # The line that tells is the last one, so it is lost with whatever is; nobody had asked for it.
                self.dropped += lost - 1 if lost and missing else lost
                self._told += 0 if lost else missing
            if self._closing:
                return

    def _write(self, lines: Sequence[bytes]) -> int:
        """How many of the lines, from the last one backwards, are lost."""
        content, done = b"".join(lines), 0
        try:
            with _opened(self._policy.file) as place:
                try:
                    if self._torn:
                        _write_some(place, b"\n")
                        self._torn = False
                    for piece in _pieces(lines):
                        end = done + len(piece)
                        while done < end:  # less may be written than was asked
                            done += _write_some(place, content[done:end])
                except OSError:
                    if torn := done - content.rfind(b"\n", 0, done) - 1:
                        self._torn = not _blanked(place, torn)
                    raise
        except OSError as error:
            if not self._failing:
                self._failing = True
                structlog.get_logger("router.telemetry").error("audit log cannot be written", why=error.strerror)
            return content.count(b"\n", done + self._torn)  # what is torn may lack nothing but its end
        self._failing = False
        return 0


@contextlib.contextmanager
def _opened(file: str) -> Iterator[int]:
    """Opened each time: a file that was moved away is begun anew, and nothing is held by a full disk."""
    if file == "-":
        yield _STANDARD_OUTPUT
        return
    place = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield place
    finally:
        os.close(place)


def _blanked(place: int, count: int) -> bool:
    """Turn the last bytes that were written here into blanks, behind which a line of any process may follow. Not cut
    off: another process's may follow already. False where that cannot be, as in a pipe."""
    if place == _STANDARD_OUTPUT:
        return False
    try:
        end = os.lseek(place, 0, os.SEEK_CUR)
        fcntl.fcntl(place, fcntl.F_SETFL, fcntl.fcntl(place, fcntl.F_GETFL) & ~os.O_APPEND)
        return os.pwrite(place, b" " * count, end - count) == count
    except OSError:
        return False


def _write_some(place: int, content: bytes) -> int:
    """How many bytes were taken. Standard output may have been made one that is not waited for, by whoever shares it:
    a full pipe is waited for all the same, for a while."""
    try:
        return os.write(place, content)
    except BlockingIOError:
        ready = select.poll()
        ready.register(place, select.POLLOUT)
        if not ready.poll(_FULL_PIPE_MS):
            raise
        return 0


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, as many as a pipe takes at once: those of several processes do not mix."""
    piece = b""
    for one in lines:
        if piece and len(piece) + len(one) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += one
    if piece:
        yield piece


def of_alarm(alarm: CredentialAlarm) -> AuditEntry:
    """An alarm's beginning, or its end and how long it lasted."""
    return AuditEntry(
        f"credential.{alarm.kind.value}",
        alarm.change.value,
        ROUTER,
        alarm.tenant or "",
        about=alarm.about,
        why=alarm.problem,
        took_s=alarm.lasted_s,
    )


def line(at: float, entry: AuditEntry) -> str:
    """One line of JSON: the time first, then what is known; short enough for a pipe to take it at once."""
    text = ""
    for most in (_MOST_CHARS, _MOST_CHARS // 4, _MOST_CHARS // 16):  # escaped, a character may take twelve
        text = _line(at, entry, most)
        if len(text) <= select.PIPE_BUF:
            break
    return text


def _line(at: float, entry: AuditEntry, most_chars: int) -> str:
    fields: dict[str, Any] = {"at": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")}
    for name, value in asdict(entry).items():
        if name == "sql":
            value = list(value[:_MOST_STATEMENTS])
        elif isinstance(value, str):
            value = value[:most_chars]
        elif name == "took_s":
            value = round(value, 6)
        if value:
            fields[name] = value
    return json.dumps(fields, ensure_ascii=True) + "\n"
