"""The driver's end of a caller's process."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.callers.contract import Target
from tests.benchmarks.starting import (
    BenchmarkFailed,
    PeerMissing,
    Process,
    own_environment,
    python_module,
    read_line,
    started,
)

SLACK_S = 120.0
"""A job may take this much longer than its seconds before it counts as stuck; large results have none of their own."""


class CallerProcess:
    """Jobs go in, answers come out; one at a time."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin(self, job: dict[str, Any]) -> None:
        """Hand over a job; `finish` waits for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()

    def finish(self, seconds: float) -> dict[str, Any]:
        """The answer. PeerMissing when the library cannot do that, BenchmarkFailed when the work failed."""
        answer: dict[str, Any] = json.loads(read_line(self.process, seconds + SLACK_S, self._log))
        if "unable" in answer:
            raise PeerMissing(answer["unable"])
        if "error" in answer:
            raise BenchmarkFailed(answer["error"])
        return answer


@contextmanager
def caller_process(target: Target, log: Path) -> Iterator[CallerProcess]:
    """A caller's process, connected and ready."""
    command = python_module("tests.benchmarks.callers")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(command, log, env=own_environment(), **pipes) as process:
        caller = CallerProcess(process, log)
        caller.begin(asdict(target))
        caller.finish(0.0)
        try:
            yield caller
        finally:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # `started` ends it then
                process.wait(5)
