"""The audit log: entries to lines of JSON, written by a thread of its own. Whoever records one never waits.

Control characters are escaped (JSON in ASCII), texts are cut, so that no caller can forge or flood a line. What does
not fit into the queue is dropped and counted: the next line that is written says how many.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
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
                if self.dropped != self._told:
                    missing, self._told = self.dropped - self._told, self.dropped
                    lines.append(line(datetime.now(UTC).timestamp(), AuditEntry("audit", f"dropped {missing}")))
                self._write("".join(lines).encode())
            if self._closing:
                return

    def _write(self, content: bytes) -> None:
        if self._policy.file == "-":
            os.write(_STANDARD_OUTPUT, content)
            return
        try:
            # Opened each time: a file that was moved away is begun anew, and nothing is held by a full disk.
            place = os.open(self._policy.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(place, content)
            finally:
                os.close(place)
        except OSError as error:
            self.dropped += content.count(b"\n")
            if not self._failing:
                self._failing = True
                structlog.get_logger("router.telemetry").error("audit log cannot be written", why=error.strerror)
        else:
            self._failing = False


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
    """One line of JSON: the time first, then what is known."""
    fields: dict[str, Any] = {"at": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")}
    for name, value in asdict(entry).items():
        if name == "sql":
            value = list(value[:_MOST_STATEMENTS])
        elif isinstance(value, str):
            value = value[:_MOST_CHARS]
        elif name == "took_s":
            value = round(value, 6)
        if value:
            fields[name] = value
    return json.dumps(fields, ensure_ascii=True) + "\n"
